//! The engine over stores in memory.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod following;
mod holes;
mod hooked;
mod missing;
mod running;
mod sealing;
mod stopping;
mod transforming;

use std::sync::{Arc, Mutex};

use tidegate_core::port::{Catalog, Route, Store};
use tidegate_core::{Column, FlowName, Shape, Table, TableName, Type, Value};
use tidegate_flow::{Ended, Flow, Gauge, MaxRate, Options, Request, Until, Wanted, run_once};
use tidegate_memory::{MemoryStore, Write};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

fn text(value: &str) -> Value<'static> {
    Value::Text(value.to_owned().into())
}

async fn flow(source: &MemoryStore, target: &MemoryStore, tables: &[TableName]) -> Flow {
    let catalog = source.catalog().await.unwrap();
    let which = tidegate_core::port::Selection::These(tables.to_vec());
    let (tables, obstacles) = catalog.describe(&which).await.unwrap();
    assert!(obstacles.is_empty());
    let tables: Vec<Arc<_>> = tables.into_iter().map(Arc::new).collect();
    target.catalog().await.unwrap().create(&tables).await.unwrap();
    let mut options = Options::default();
    options.chunk_rows = 10;
    let routes = tables.iter().map(|table| route(catalog.as_ref(), table)).collect();
    let (from, to) = (Arc::new(source.clone()), Arc::new(target.clone()));
    Flow { options, ..Flow::new(FlowName::new("shop").unwrap(), from, to, routes, Wanted::default()) }
}

fn route(catalog: &dyn Catalog, table: &Arc<Table>) -> Route {
    Route {
        shape: Shape { table: Arc::clone(table), codec: catalog.codec(table) },
        target: Arc::clone(table),
    }
}

async fn catch_up(flow: &Flow) -> Ended {
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (_keep, mut requests) = mpsc::unbounded_channel();
    run_once(flow, Until::CaughtUp, &gauge, &mut requests, &CancellationToken::new()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn rows_and_changes_arrive_and_a_second_run_goes_on() {
    let (source, target) = (MemoryStore::new("a"), MemoryStore::new("b"));
    let orders = TableName::new("", "orders");
    source.create_table(
        &orders,
        vec![Column::new("id", Type::Int { bits: 64 }), Column::new("v", Type::Text)],
        &["id"],
    );
    for id in 0..95 {
        source.transact(&[Write::insert(&orders, [Value::Int(id), text("old")])]).unwrap();
    }
    let flow = flow(&source, &target, std::slice::from_ref(&orders)).await;
    assert_eq!(catch_up(&flow).await, Ended::CaughtUp);
    assert_eq!(target.rows(&orders), source.rows(&orders));

    source
        .transact(&[
            Write::update(&orders, [Value::Int(3)], [(1, text("new"))]),
            Write::update(&orders, [Value::Int(4)], [(0, Value::Int(400))]),
            Write::delete(&orders, [Value::Int(5)]),
            Write::insert(&orders, [Value::Int(500), text("new")]),
        ])
        .unwrap();
    assert_eq!(catch_up(&flow).await, Ended::CaughtUp);
    assert_eq!(target.rows(&orders), source.rows(&orders));
    assert_eq!(source.rows(&orders).len(), 95);
}

#[tokio::test(start_paused = true)]
async fn another_source_is_refused() {
    let (source, target) = (MemoryStore::new("a"), MemoryStore::new("b"));
    let orders = TableName::new("", "orders");
    source.create_table(&orders, vec![Column::new("id", Type::Int { bits: 64 })], &["id"]);
    let flow = flow(&source, &target, std::slice::from_ref(&orders)).await;
    catch_up(&flow).await;
    source.replace_identity("restored");
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (_keep, mut requests) = mpsc::unbounded_channel();
    let error =
        run_once(&flow, Until::CaughtUp, &gauge, &mut requests, &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.code().name(), "source-replaced");
}

/// What was too many changes may have been one large transaction.
#[tokio::test(start_paused = true)]
async fn chunks_that_were_made_smaller_grow_again() {
    let (source, target) = (MemoryStore::new("a"), MemoryStore::new("b"));
    let orders = TableName::new("", "orders");
    let columns = vec![Column::new("id", Type::Int { bits: 64 }), Column::new("v", Type::Text)];
    source.create_table(&orders, columns, &["id"]);
    let rows = (0..5_000).map(|id| Write::insert(&orders, [Value::Int(id), text("old")]));
    source.transact(&rows.collect::<Vec<_>>()).unwrap();
    let mut flow = flow(&source, &target, std::slice::from_ref(&orders)).await;
    (flow.options.chunk_rows, flow.options.window_bytes) = (400, 10_000);
    let limits = Arc::new(Mutex::new(Vec::new()));
    let (seen, store) = (Arc::clone(&limits), source.clone());
    flow.source = Arc::new(hooked::Hooked::new(&source).on_read(move |table, limit| {
        let mut seen = seen.lock().unwrap();
        seen.push(limit.rows);
        if seen.len() == 2 {
            let new = |id| Write::update(table, [Value::Int(id)], [(1, text(&"new".repeat(30)))]);
            store.transact(&(0..200).map(new).collect::<Vec<_>>())?;
        }
        Ok(())
    }));
    assert_eq!(catch_up(&flow).await, Ended::CaughtUp);
    assert_eq!(target.rows(&orders), source.rows(&orders));
    let mut limits = limits.lock().unwrap().clone();
    limits.dedup();
    assert_eq!(limits, [400, 200, 226, 255, 287, 323, 364, 400]);
}

/// Found by reading: the limit was looked at once a second.
#[tokio::test(start_paused = true)]
async fn the_limit_of_the_crawl_is_reached() {
    let (source, target) = (MemoryStore::new("a"), MemoryStore::new("b"));
    let orders = TableName::new("", "orders");
    source.create_table(&orders, vec![Column::new("id", Type::Int { bits: 64 })], &["id"]);
    source
        .transact(&(0..400).map(|id| Write::insert(&orders, [Value::Int(id)])).collect::<Vec<_>>())
        .unwrap();
    let mut flow = flow(&source, &target, std::slice::from_ref(&orders)).await;
    flow.source = Arc::new(hooked::Hooked::new(&source).quiet());
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (ask, mut requests) = mpsc::unbounded_channel();
    ask.send(Request::MaxRate(MaxRate { rows: Some(100), bytes: None })).unwrap();
    let began = tokio::time::Instant::now();
    run_once(&flow, Until::CaughtUp, &gauge, &mut requests, &CancellationToken::new()).await.unwrap();
    let seconds = began.elapsed().as_secs_f64();
    assert!((3.5..5.5).contains(&seconds), "400 rows at 100 a second took {seconds} s");
}

/// A server that is stopped where the bytes are costs a session: about every other chunk of rows of much the same size did.
#[tokio::test(start_paused = true)]
async fn chunks_of_similar_rows_end_by_their_rows_and_not_by_their_bytes() {
    let (source, target) = (MemoryStore::new("a"), MemoryStore::new("b"));
    let orders = TableName::new("", "orders");
    let columns = vec![Column::new("id", Type::Int { bits: 64 }), Column::new("v", Type::Text)];
    source.create_table(&orders, columns, &["id"]);
    let size = |id: i64| 950 + usize::try_from(id * 37 % 100).unwrap();
    let rows = (0..1_000).map(|id| Write::insert(&orders, [Value::Int(id), text(&"v".repeat(size(id)))]));
    source.transact(&rows.collect::<Vec<_>>()).unwrap();
    let mut flow = flow(&source, &target, std::slice::from_ref(&orders)).await;
    (flow.options.chunk_rows, flow.options.chunk_bytes) = (10_000, 50_000);
    let limits = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&limits);
    flow.source = Arc::new(hooked::Hooked::new(&source).on_read(move |_, limit| {
        seen.lock().unwrap().push(limit);
        Ok(())
    }));
    assert_eq!(catch_up(&flow).await, Ended::CaughtUp);
    assert_eq!(target.rows(&orders), source.rows(&orders));
    let limits = limits.lock().unwrap();
    assert!(limits.len() > 20, "{limits:?}");
    for limit in limits.iter().filter(|limit| limit.rows < 10_000) {
        assert!((limit.bytes * 3 / 4..limit.bytes * 9 / 10).contains(&(limit.rows * 1_020)), "{limit:?}");
    }
}

/// Found by simulation: a table crawled anew took its last bound while a commit was logged and not yet seen, so that
/// the row of that commit, already applied and then truncated away, lay behind the bound and was never read.
#[tokio::test(start_paused = true)]
async fn a_table_is_cut_anew_only_when_what_was_delivered_is_seen() {
    let (source, target) = (MemoryStore::new("a"), MemoryStore::new("b"));
    let orders = TableName::new("", "orders");
    source.create_table(&orders, vec![Column::new("id", Type::Int { bits: 64 })], &["id"]);
    source.transact(&[Write::insert(&orders, [Value::Int(1)])]).unwrap();
    let flow = flow(&source, &target, std::slice::from_ref(&orders)).await;
    catch_up(&flow).await;

    let unseen = source.log_unseen(&[Write::insert(&orders, [Value::Int(1_000)])]).unwrap();
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (ask, mut requests) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let running = run_once(&flow, Until::Stopped, &gauge, &mut requests, &stop);
    let others = async {
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        assert_eq!(
            target.rows(&orders).len(),
            2,
            "the change reached the target although readers do not see it"
        );
        ask.send(Request::Recopy(0)).unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(30)).await;
        assert!(target.rows(&orders).is_empty(), "no read may begin before it is seen");
        source.reveal(unseen);
        tokio::time::sleep(std::time::Duration::from_secs(30)).await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(running, others);
    assert_eq!(ended.unwrap(), Ended::Stopped);
    assert_eq!(target.rows(&orders), source.rows(&orders));
    assert_eq!(source.rows(&orders).len(), 2);
}

/// Found by trying: what was known of one was taken for the other's, and rows were neither moved nor compared.
#[tokio::test]
async fn two_tables_that_are_written_alike_are_refused() {
    let (source, target) = (MemoryStore::new("a"), MemoryStore::new("b"));
    for (schema, name) in [("a.b", "c"), ("a", "b.c")] {
        let columns = vec![Column::new("id", Type::Int { bits: 64 })];
        source.create_table(&TableName::new(schema, name), columns, &["id"]);
    }
    let (from, to) = (source.catalog().await.unwrap(), target.catalog().await.unwrap());
    let plan = tidegate_flow::plan(from.as_ref(), to.as_ref(), &Wanted::default()).await.unwrap();
    let [obstacle] = plan.obstacles.as_slice() else { panic!("{:?}", plan.obstacles) };
    assert_eq!(
        obstacle.error.message(),
        "two tables are both written a.b.c: their schemas and names have dots"
    );
}
