//! The engine with MongoDB at one end or both.

use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{Document, doc};
use tidegate_core::port::{Conversions, Route, Selection, Store};
use tidegate_core::{Result, Scope, SystemClock, TableName, Type, Value};
use tidegate_flow::verify::{Verification, verify};
use tidegate_flow::{Ended, Flow, Gauge, Options, Until, Wanted, plan, run_once};
use tidegate_memory::{MemoryStore, Write};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::place::{Place, flow};

async fn flow_of(source: Arc<dyn Store>, target: Arc<dyn Store>) -> Flow {
    let wanted = Wanted {
        exclude: Default::default(),
        tables: Selection::All,
        names: Default::default(),
        conversions: Conversions::new(),
        allow_non_empty: false,
    };
    let (from, to) = (source.catalog().await.unwrap(), target.catalog().await.unwrap());
    let plan = plan(from.as_ref(), to.as_ref(), &wanted).await.unwrap();
    assert!(plan.obstacles.is_empty(), "{:?}", plan.obstacles);
    let routes = plan.routes();
    let targets: Vec<_> = routes.iter().map(|route: &Route| Arc::clone(&route.target)).collect();
    to.create(&targets).await.unwrap();
    let mut options = Options::default();
    options.chunk_rows = 150;
    options.workers = 2;
    options.acknowledge_every = Duration::from_millis(50);
    Flow {
        name: flow(),
        source,
        target,
        routes,
        wanted,
        refused: Default::default(),
        options,
        clock: SystemClock::shared(),
    }
}

async fn run(flow: &Flow, until: Until, stop: &CancellationToken) -> Result<Ended> {
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (_keep, mut requests) = mpsc::unbounded_channel();
    let running = Box::pin(run_once(flow, until, &gauge, &mut requests, stop));
    tokio::time::timeout(Duration::from_secs(60), running).await.expect("a run ends")
}

/// What a verification counts: missing, extra, different.
async fn verified(flow: &Flow) -> (u64, u64, u64) {
    let state = flow.target.state().await.unwrap();
    let verification = Verification {
        run: None,
        name: &flow.name,
        source: flow.source.as_ref(),
        target: flow.target.as_ref(),
        routes: &flow.routes,
        patience: Duration::from_secs(5),
        clock: flow.clock.as_ref(),
    };
    let report = Box::pin(verify(&verification, &state)).await.unwrap();
    assert!(report.complete);
    (report.missing, report.extra, report.different)
}

/// Runs that are stopped in the middle of their work.
async fn run_in_pieces(flow: &Flow) {
    for millis in [60, 150, 300] {
        let stop = CancellationToken::new();
        let stopper = async {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(run(flow, Until::Stopped, &stop), stopper);
        assert_eq!(ended.unwrap(), Ended::Stopped);
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn orders() -> (MemoryStore, TableName) {
    let store = MemoryStore::new("shop");
    let orders = TableName::new("", "orders");
    let mut columns = vec![tidegate_core::Column::new("id", Type::Int { bits: 64 })];
    columns.push(tidegate_core::Column::new("note", Type::Text));
    columns.push(tidegate_core::Column::new("total", Type::Decimal { precision: Some(12), scale: Some(2) }));
    store.create_table(&orders, columns, &["id"]);
    for at in 0..40 {
        let rows = (0..100).map(|n| Write::insert(&orders, order(at * 100 + n, "first")));
        store.transact(&rows.collect::<Vec<_>>()).unwrap();
    }
    store.leave_out_unchanged(&orders, 1);
    (store, orders)
}

fn order(id: i64, note: &str) -> [Value<'static>; 3] {
    [Value::Int(id), Value::Text(note.to_owned().into()), Value::Decimal(format!("{id}.50").into())]
}

async fn write_orders(store: MemoryStore, orders: TableName, stop: CancellationToken) -> Result<()> {
    let mut random = Random(88_172_645_463_325_252);
    while !stop.is_cancelled() {
        let id = i64::try_from(random.below(6_000)).unwrap_or(0);
        let turn = random.below(1_000);
        // What is refused (a key that is there, or is not) is as good as not written.
        let _ = store.transact(&[match turn % 4 {
            0 => Write::insert(&orders, order(id, "later")),
            1 => Write::delete(&orders, [Value::Int(id)]),
            2 => Write::update(&orders, [Value::Int(id)], [(2, Value::Decimal(format!("{turn}.25").into()))]),
            _ => Write::update(&orders, [Value::Int(id)], [(1, Value::Text(format!("n{turn}").into()))]),
        }]);
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_and_changes_arrive_while_a_program_writes_and_runs_stop_and_go_on() {
    let Some(place) = Place::new("arriving").await else { return };
    let (memory, orders) = orders();
    let flow = flow_of(Arc::new(memory.clone()), Arc::clone(&place.store)).await;
    let writing = CancellationToken::new();
    let mut writers = Scope::new();
    writers.spawn(write_orders(memory.clone(), orders.clone(), writing.clone()));
    run_in_pieces(&flow).await;
    assert_eq!(run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap(), Ended::CaughtUp);
    writing.cancel();
    writers.join().await.unwrap();
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();

    let expected: Vec<Document> = memory.rows(&orders).into_iter().map(|row| match &row[..] {
        [Value::Int(id), Value::Text(note), Value::Decimal(total)] => {
            doc! { "_id": id, "note": note.as_ref(), "total": total.parse::<mongodb::bson::Decimal128>().unwrap() }
        }
        other => panic!("{other:?}"),
    }).collect();
    let found = place.all("orders").await;
    assert_eq!(found.len(), expected.len());
    let mut expected = expected;
    expected.sort_by_key(|one| one.get_i64("_id").unwrap());
    assert!(found == expected, "the rows differ");
    assert_eq!(verified(&flow).await, (0, 0, 0));
    let held = place.database.collection::<Document>("orders");
    held.update_one(doc! { "_id": found[3].get("_id") }, doc! { "$set": { "note": "odd" } }).await.unwrap();
    held.delete_one(doc! { "_id": found[5].get("_id") }).await.unwrap();
    held.insert_one(doc! { "_id": 1_000_000_i64, "note": "more", "total": null }).await.unwrap();
    assert_eq!(verified(&flow).await, (1, 1, 1));
    place.end().await;
}

fn document(id: mongodb::bson::Bson, turn: u64) -> Document {
    doc! { "_id": id, "turn": i64::try_from(turn).unwrap_or(0), "deep": { "list": [1_i32, "two", 3.5] }, "z": null }
}

/// Keys of several types, in a fixed set of places.
fn id(n: u64) -> mongodb::bson::Bson {
    let small = i32::try_from(n).unwrap_or(0);
    match n % 5 {
        0 => mongodb::bson::Bson::Int32(small),
        1 => mongodb::bson::Bson::String(format!("k{n:05}")),
        2 => mongodb::bson::Bson::Int64(i64::from(small)),
        3 => mongodb::bson::Bson::Document(doc! { "a": small, "b": "x" }),
        _ => {
            let mut bytes = [0; 12];
            bytes[4..].copy_from_slice(&n.to_be_bytes());
            mongodb::bson::Bson::ObjectId(mongodb::bson::oid::ObjectId::from_bytes(bytes))
        }
    }
}

async fn write_documents(database: mongodb::Database, seed: u64, stop: CancellationToken) -> Result<()> {
    let items = database.collection::<Document>("items");
    let other = database.collection::<Document>("other");
    let mut session = database.client().start_session().await.unwrap();
    let mut random = Random(seed);
    while !stop.is_cancelled() {
        let (a, b, turn) = (random.below(4_000), random.below(4_000), random.below(1_000));
        // What is refused (a key that is there, two writers at one document) is as good as not written.
        match turn % 6 {
            0 => drop(items.insert_one(document(id(a), turn)).await),
            1 => drop(items.delete_one(doc! { "_id": id(a) }).await),
            2 => drop(items.replace_one(doc! { "_id": id(a) }, document(id(a), turn)).upsert(true).await),
            3 => drop(
                items.update_many(doc! { "turn": { "$lt": 20 } }, doc! { "$inc": { "turn": 100_i64 } }).await,
            ),
            4 => {
                drop(items.update_one(doc! { "_id": id(a) }, doc! { "$set": { "new": b.to_string() } }).await)
            }
            _ => {
                session.start_transaction().await.unwrap();
                let moved = items.delete_one(doc! { "_id": id(a) }).session(&mut session).await.is_ok()
                    && items.insert_one(document(id(b), turn)).session(&mut session).await.is_ok()
                    && other.insert_one(doc! { "turn": 1_i32 }).session(&mut session).await.is_ok();
                if moved && turn % 4 != 1 {
                    drop(session.commit_transaction().await);
                } else {
                    drop(session.abort_transaction().await);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_and_their_changes_go_from_one_database_to_another() {
    let Some(source) = Place::new("from").await else { return };
    let Some(target) = Place::new("into").await else { return };
    let first = (0..3_000).map(|n| document(id(n), n));
    source.database.collection("items").insert_many(first).await.unwrap();
    source.database.collection("other").insert_one(doc! { "first": true }).await.unwrap();
    let flow = flow_of(Arc::clone(&source.store), Arc::clone(&target.store)).await;
    let writing = CancellationToken::new();
    let mut writers = Scope::new();
    for seed in [88_172_645_463_325_252, 11_400_714_819_323_198] {
        writers.spawn(write_documents(source.database.clone(), seed, writing.clone()));
    }
    run_in_pieces(&flow).await;
    assert_eq!(run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap(), Ended::CaughtUp);
    writing.cancel();
    writers.join().await.unwrap();
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
    for collection in ["items", "other"] {
        let (here, there) = (source.all(collection).await, target.all(collection).await);
        assert!(here.len() > 1 && here.len() == there.len(), "{collection}: {} {}", here.len(), there.len());
        assert!(here == there, "{collection} differs");
    }
    assert_eq!(verified(&flow).await, (0, 0, 0));
    target.database.collection::<Document>("items").delete_one(doc! {}).await.unwrap();
    assert_eq!(verified(&flow).await, (1, 0, 0));
    source.end().await;
    target.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_arrive_as_text_where_there_are_none() {
    let Some(source) = Place::new("leaving").await else { return };
    let items = source.database.collection::<Document>("items");
    items.insert_many((0..500).map(|n| document(id(n), n))).await.unwrap();
    let memory = MemoryStore::new("there");
    let flow = flow_of(Arc::clone(&source.store), Arc::new(memory.clone())).await;
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
    items.delete_one(doc! { "_id": id(1) }).await.unwrap();
    items.update_one(doc! { "_id": id(2) }, doc! { "$unset": { "z": 1 } }).await.unwrap();
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
    let rows = memory.rows(&TableName::new("", "items"));
    assert_eq!(rows.len(), 499);
    let found = |key: &Value<'_>| rows.iter().find(|row| row[0] == *key).map(|row| row[1].clone());
    let expected = r#"{"_id":{"$numberLong":"2"},"turn":{"$numberLong":"2"},"deep":{"list":[{"$numberInt":"1"},"two",{"$numberDouble":"3.5"}]}}"#;
    assert_eq!(found(&Value::Int(2)), Some(Value::Json(expected.into())));
    assert_eq!(found(&Value::Text("k00001".into())), None);
    assert!(found(&Value::Text("000000000000000000000004".into())).is_some());
    source.end().await;
}

/// Found by reading: an update whose document has a field that begins with `$` at its top was taken for operators, and
/// refused; the whole run ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_whose_names_have_dollars_and_dots_are_written() {
    let Some(source) = Place::new("dollars_from").await else { return };
    let Some(target) = Place::new("dollars_into").await else { return };
    let odd = |id: i32, turn: i32| {
        doc! {
            "_id": id, "$field": turn, "$set": { "turn": 1 }, "a.b": turn, "a": { "b": "x", "$c": turn, "d.e": turn },
            "": turn, "$literal": "$turn", "list": [{ "$ref": 1, "x.y": "$$ROOT" }],
        }
    };
    let plain = |id: i32, turn: i32| doc! { "_id": id, "a.b": turn, "a": { "$b": turn } };
    let items = source.database.collection::<Document>("items");
    items.insert_many((0..60).map(|id| odd(id, 1))).await.unwrap();
    items.insert_many((60..120).map(|id| plain(id, 1))).await.unwrap();
    let flow = flow_of(Arc::clone(&source.store), Arc::clone(&target.store)).await;
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
    for id in [3, 5, 61, 62] {
        items.delete_one(doc! { "_id": id }).await.unwrap();
    }
    // Rows that are there already, and one that is not.
    items.insert_many([odd(3, 2), plain(5, 2), odd(61, 2), plain(62, 2), odd(200, 2)]).await.unwrap();
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
    assert_eq!(source.all("items").await, target.all("items").await);
    assert_eq!(verified(&flow).await, (0, 0, 0));
    source.end().await;
    target.end().await;
}
