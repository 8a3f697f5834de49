//! The engine with MongoDB at one end or both.

use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{Document, doc};
use tidegate_core::port::{Conversions, Route, Selection, Store};
use tidegate_core::{Result, Scope, SystemClock, TableName, Type, Value};
use tidegate_flow::{Ended, Flow, Gauge, Options, Until, Wanted, plan, run_once};
use tidegate_memory::{MemoryStore, Write};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::place::{Place, flow};

async fn flow_of(source: Arc<dyn Store>, target: Arc<dyn Store>) -> Flow {
    let wanted = Wanted { tables: Selection::All, conversions: Conversions::new(), allow_non_empty: false };
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
    Flow { name: flow(), source, target, routes, options, clock: SystemClock::shared() }
}

async fn run(flow: &Flow, until: Until, stop: &CancellationToken) -> Result<Ended> {
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (_keep, mut requests) = mpsc::unbounded_channel();
    let running = Box::pin(run_once(flow, until, &gauge, &mut requests, stop));
    tokio::time::timeout(Duration::from_secs(60), running).await.expect("a run ends")
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
    place.end().await;
}
