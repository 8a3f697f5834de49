//! The engine with MongoDB at one end or both.

use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{Document, doc};
use tidegate_core::port::{Route, Selection, Store};
use tidegate_core::{Result, Scope, TableName, Type, Value};
use tidegate_flow::verify::{Kind, Report, Verification, verify};
use tidegate_flow::{Ended, Flow, Gauge, Options, Until, Wanted, plan, run_once};
use tidegate_memory::{MemoryStore, Write};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::place::{Place, flow, route, table};

async fn flow_of(source: Arc<dyn Store>, target: Arc<dyn Store>) -> Flow {
    flow_of_these(source, target, Selection::All).await
}

async fn flow_of_these(source: Arc<dyn Store>, target: Arc<dyn Store>, tables: Selection) -> Flow {
    let wanted = Wanted { tables, ..Wanted::default() };
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
    Flow { options, ..Flow::new(flow(), source, target, routes, wanted) }
}

async fn run(flow: &Flow, until: Until, stop: &CancellationToken) -> Result<Ended> {
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (_keep, mut requests) = mpsc::unbounded_channel();
    let running = Box::pin(run_once(flow, until, &gauge, &mut requests, stop));
    tokio::time::timeout(Duration::from_secs(60), running).await.expect("a run ends")
}

/// What a verification counts: missing, extra, different.
async fn verified(flow: &Flow) -> (u64, u64, u64) {
    let report = compared(flow).await;
    assert!(report.complete);
    (report.missing, report.extra, report.different)
}

async fn compared(flow: &Flow) -> Report {
    let state = flow.target.state().await.unwrap();
    let verification = Verification {
        run: None,
        name: &flow.name,
        source: flow.source.as_ref(),
        target: flow.target.as_ref(),
        routes: &flow.routes,
        patience: Duration::from_secs(5),
        clock: flow.clock.as_ref(),
        reading: Arc::default(),
    };
    Box::pin(verify(&verification, &state)).await.unwrap()
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

/// Found by reading: one document with another field, or a value that has no form in the model, ended the comparison of
/// its whole table with an error that named no key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_of_the_target_that_is_not_of_the_table_is_a_row_that_differs() {
    let Some(place) = Place::new("strange").await else { return };
    let memory = MemoryStore::new("shop");
    let (days, pairs) = (TableName::new("", "days"), TableName::new("", "pairs"));
    let columns = [("id", Type::Int { bits: 64 }), ("day", Type::Date), ("note", Type::Text)];
    let columns = columns.map(|(name, kind)| tidegate_core::Column::new(name, kind));
    memory.create_table(&days, columns.to_vec(), &["id"]);
    let columns = ["a", "b"].map(|name| tidegate_core::Column::new(name, Type::Int { bits: 64 }));
    memory.create_table(&pairs, columns.to_vec(), &["a", "b"]);
    for id in 1..10 {
        let day = [Value::Int(id), Value::Date(7), Value::Text("x".into())];
        memory.transact(&[Write::insert(&days, day)]).unwrap();
        memory.transact(&[Write::insert(&pairs, [Value::Int(id), Value::Int(id)])]).unwrap();
    }
    let flow = flow_of(Arc::new(memory.clone()), Arc::clone(&place.store)).await;
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
    assert!(compared(&flow).await.equal);

    let held = place.database.collection::<Document>("days");
    let far = mongodb::bson::DateTime::MAX;
    for (id, change) in [
        (2_i64, doc! { "$set": { "more": 1, "much": 2 } }),
        (3, doc! { "$set": { "day": far } }),
        (4, doc! { "$unset": { "note": 1 } }),
        (5, doc! { "$set": { "note": 5 } }),
        (9, doc! { "$set": { "note": "y", "more": null } }),
    ] {
        let updated = held.update_one(doc! { "_id": id }, change).await.unwrap();
        assert_eq!(updated.modified_count, 1);
    }
    let held = place.database.collection::<Document>("pairs");
    for id in [doc! { "a": 1_i64, "b": 2_i64, "c": 3_i64 }, doc! { "b": 1_i64, "a": 1_i64 }] {
        held.insert_one(doc! { "_id": id }).await.unwrap();
    }
    held.insert_one(doc! { "_id": 7_i64 }).await.unwrap();
    held.insert_one(doc! { "_id": "the last of all keys: documents are behind text" }).await.unwrap();
    held.update_one(doc! { "_id": { "a": 3_i64, "b": 3_i64 } }, doc! { "$set": { "z": 1 } }).await.unwrap();
    held.delete_one(doc! { "_id": { "a": 9_i64, "b": 9_i64 } }).await.unwrap();

    let report = compared(&flow).await;
    assert!(report.complete && !report.equal && report.unread.is_empty(), "{report:?}");
    let mut found: Vec<_> = report
        .rows
        .iter()
        .map(|row| {
            let key: Vec<_> = row.key.iter().map(|(name, value)| format!("{name}={value}")).collect();
            (row.table.as_str(), key.join(" "), row.kind, row.columns.join(" "))
        })
        .collect();
    found.sort();
    let row = |table: &'static str, key: &str, kind, columns: &str| {
        (table, key.to_owned(), kind, columns.to_owned())
    };
    assert_eq!(
        found,
        [
            row("days", "id=2", Kind::Different, "more much"),
            row("days", "id=3", Kind::Different, "day"),
            row("days", "id=4", Kind::Different, "note"),
            row("days", "id=5", Kind::Different, "note"),
            row("days", "id=9", Kind::Different, "note more"),
            row("pairs", "a=3 b=3", Kind::Different, "z"),
            row("pairs", "a=7 b=null", Kind::Extra, ""),
            row("pairs", "a=9 b=9", Kind::Missing, ""),
            row("pairs", "a=the last of all keys: documents are behind text b=null", Kind::Extra, ""),
            row("pairs", "a={\"a\":1,\"b\":2,\"c\":3} b=null", Kind::Extra, ""),
            row("pairs", "a={\"b\":1,\"a\":1} b=null", Kind::Extra, ""),
        ]
    );
    // As a source these are documents, and nothing of them is left behind.
    let flow = flow_of(Arc::clone(&place.store), Arc::new(MemoryStore::new("back"))).await;
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
    assert!(compared(&flow).await.equal);
    place.end().await;
}

/// Found by reading: a collection that a migration had made was described as documents where all were asked for, and as the
/// table's columns where it was named. The next run named what the first had found, and found another table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_was_made_for_a_table_is_one_source_however_it_is_selected() {
    let Some(place) = Place::new("selected").await else { return };
    let (memory, orders) = orders();
    let flow = flow_of(Arc::new(memory), Arc::clone(&place.store)).await;
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
    assert_eq!(verified(&flow).await, (0, 0, 0));

    let these = Selection::These(vec![orders.clone()]);
    for (first, then) in [(Selection::All, these.clone()), (these, Selection::All)] {
        let back = MemoryStore::new("back");
        let mut flow = flow_of_these(Arc::clone(&place.store), Arc::new(back.clone()), first).await;
        run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
        flow.wanted.tables = then.clone();
        let source = place.store.catalog().await.unwrap();
        let (found, obstacles) = source.describe(&then).await.unwrap();
        assert!(obstacles.is_empty(), "{obstacles:?}");
        let names: Vec<_> = found[0].columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["_id", "document"]);
        assert_eq!(found[0], *flow.routes[0].shape.table, "it is the table that the flow knows");
        assert_eq!(run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap(), Ended::CaughtUp);
        assert_eq!(verified(&flow).await, (0, 0, 0));
    }
    place.end().await;
}

/// Found by trying: what an earlier collection of the name had been created for stayed noted, and a migration of documents into a
/// new one was refused by it from its second run on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dropped_collection_was_made_for_is_not_in_the_way_of_documents() {
    let Some(source) = Place::new("noted_from").await else { return };
    let Some(target) = Place::new("noted_into").await else { return };
    let columns = [("id", Type::Int { bits: 64 }), ("v", Type::Text)];
    route(&target.store, &table("items", &columns, &[0])).await;
    target.database.collection::<Document>("items").drop().await.unwrap();

    source.database.collection("items").insert_one(doc! { "_id": 1, "v": "a" }).await.unwrap();
    let flow = flow_of(Arc::clone(&source.store), Arc::clone(&target.store)).await;
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
    assert_eq!(verified(&flow).await, (0, 0, 0));
    // As the next run looks at it.
    let targets = [Arc::clone(&flow.routes[0].target)];
    let in_the_way = target.store.catalog().await.unwrap().inspect(&targets, true).await.unwrap();
    assert!(in_the_way.is_empty(), "{in_the_way:?}");
    source.end().await;
    target.end().await;
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
