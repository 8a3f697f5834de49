//! Rows that are turned on their way.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::port::{Join, Limit, Made, MadeColumn, Recipe, Record, Selection, Store, Transform};
use tidegate_core::{Changes, Column, Result, Rows, SystemClock, Table, TableName, Type, Value};
use tidegate_flow::{Ended, Flow, Gauge, Transformed, Until, run_once};
use tidegate_memory::{MemoryStore, Write};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{catch_up, text};

/// Orders with their lines; orders without a customer are left out.
#[derive(Debug)]
struct Fold;

impl Transform for Fold {
    fn make(&self, table: &Table) -> Result<Made> {
        if table.name.name == "lines" {
            return Ok(Made::LeftOut);
        }
        let carried = |at: usize| MadeColumn { column: table.columns[at].clone(), carries: Some(at) };
        let lines = Type::Array(Box::new(Type::Text));
        Ok(Made::Into(Recipe {
            columns: vec![
                MadeColumn { column: Column::new("lines", lines), carries: None },
                carried(0),
                carried(1),
            ],
            joins: vec![Join { table: TableName::new("", "lines"), on: vec!["order".to_owned()] }],
            filters: true,
        }))
    }

    fn row(
        &self,
        row: &Record<'_>,
        joined: &[Vec<Record<'_>>],
        out: &mut Vec<Value<'static>>,
    ) -> Result<bool> {
        let lines = joined[0].iter().map(|line| line.value("item").map(Value::into_owned));
        out.push(Value::Array(lines.collect::<Result<_>>()?));
        Ok(row.value("customer")? != Value::Null)
    }
}

fn shop() -> (MemoryStore, MemoryStore, TableName, TableName) {
    let (source, target) = (MemoryStore::new("a"), MemoryStore::new("b"));
    let (orders, lines) = (TableName::new("", "orders"), TableName::new("", "lines"));
    let id = || Type::Int { bits: 64 };
    source.create_table(&orders, vec![Column::new("id", id()), Column::new("customer", Type::Text)], &["id"]);
    let columns =
        vec![Column::new("order", id()), Column::new("line", id()), Column::new("item", Type::Text)];
    source.create_table(&lines, columns, &["order", "line"]);
    (source, target, orders, lines)
}

async fn flow(source: &MemoryStore, target: &MemoryStore) -> Flow {
    let turned: Arc<dyn Store> =
        Arc::new(Transformed::new(Arc::new(source.clone()), Arc::new(Fold), SystemClock::shared()));
    let catalog = turned.catalog().await.unwrap();
    let (tables, obstacles) = catalog.describe(&Selection::All).await.unwrap();
    assert!(obstacles.is_empty(), "{obstacles:?}");
    assert_eq!(tables.len(), 1, "lines do not travel by themselves");
    let flow = crate::flow(target, target, &[]).await;
    let route = crate::route(catalog.as_ref(), &Arc::new(tables[0].clone()));
    target.catalog().await.unwrap().create(&[Arc::clone(&route.target)]).await.unwrap();
    Flow { source: turned, routes: vec![route], ..flow }
}

fn order(id: i64, customer: &str, lines: &[&str]) -> Vec<Value<'static>> {
    let lines = lines.iter().map(|line| text(line)).collect();
    vec![Value::Array(lines), Value::Int(id), text(customer)]
}

#[tokio::test(start_paused = true)]
async fn rows_of_another_table_are_folded_in_and_followed() {
    let (source, target, orders, lines) = shop();
    let line =
        |order, line, item: &str| Write::insert(&lines, [Value::Int(order), Value::Int(line), text(item)]);
    source
        .transact(&[
            Write::insert(&orders, [Value::Int(1), text("ann")]),
            Write::insert(&orders, [Value::Int(2), Value::Null]),
            Write::insert(&orders, [Value::Int(3), text("bob")]),
            line(1, 1, "pen"),
            line(1, 2, "ink"),
            line(2, 1, "cap"),
        ])
        .unwrap();
    let flow = flow(&source, &target).await;
    assert_eq!(catch_up(&flow).await, Ended::CaughtUp);
    assert_eq!(target.rows(&orders), [order(1, "ann", &["pen", "ink"]), order(3, "bob", &[])]);

    source
        .transact(&[
            // A line moves to another order, one is gone, one is new, and an order is no longer left out.
            Write::update(&lines, [Value::Int(1), Value::Int(2)], [(0, Value::Int(3))]),
            Write::delete(&lines, [Value::Int(1), Value::Int(1)]),
            line(3, 9, "nib"),
            Write::update(&orders, [Value::Int(2)], [(1, text("cas"))]),
        ])
        .unwrap();
    source.transact(&[Write::update(&orders, [Value::Int(1)], [(1, Value::Null)])]).unwrap();
    assert_eq!(catch_up(&flow).await, Ended::CaughtUp);
    assert_eq!(target.rows(&orders), [order(2, "cas", &["cap"]), order(3, "bob", &["ink", "nib"])]);
}

/// Found by reading: an order with all its lines was sent once for each line that a transaction wrote.
#[tokio::test(start_paused = true)]
async fn a_row_comes_once_for_all_that_a_transaction_folds_into_it() {
    let (source, target, orders, lines) = shop();
    source.transact(&[Write::insert(&orders, [Value::Int(1), text("ann")])]).unwrap();
    let flow = flow(&source, &target).await;
    catch_up(&flow).await;
    let catalog = flow.source.catalog().await.unwrap();
    let (tables, identity) = ([Arc::clone(&flow.routes[0].shape.table)], catalog.identity().await.unwrap());
    let from = catalog.capture(&flow.name, &tables).await.unwrap();
    for half in 0..2_i64 {
        let line = |n| Write::insert(&lines, [Value::Int(1), Value::Int(100 * half + n), text("pen")]);
        source.transact(&(0..100).map(line).collect::<Vec<_>>()).unwrap();
    }
    let mut feed = flow.source.change_feed(&flow.name, &tables, &identity, &from).await.unwrap();
    let mut changes = Changes::new();
    while changes.transactions().len() < 2 {
        feed.next(None, &mut changes).await.unwrap();
    }
    assert_eq!((changes.count(), changes.transactions().len()), (2, 2), "each transaction has its own");
    feed.close().await.unwrap();
}

/// Found by trying: all that a delivery changed was read again at once, and a chunk had all that was folded into its rows.
#[tokio::test(start_paused = true)]
async fn rows_are_folded_no_more_than_a_piece_at_a_time() {
    const WIDE: usize = 1 << 20;
    let (source, target, orders, lines) = shop();
    let wide = "x".repeat(WIDE);
    for id in 0..20 {
        let line = Write::insert(&lines, [Value::Int(id), Value::Int(1), text(&wide)]);
        source.transact(&[Write::insert(&orders, [Value::Int(id), text("ann")]), line]).unwrap();
    }
    let flow = flow(&source, &target).await;
    let table = Arc::clone(&flow.routes[0].shape.table);
    let mut crawler = flow.source.crawler().await.unwrap();
    let range = crawler.split(&table, 1).await.unwrap().remove(0);
    let (limit, mut chunk) = (Limit { rows: 10_000, bytes: 8 * WIDE }, Rows::new());
    for most in [20, 8] {
        chunk.clear();
        crawler.read(&table, &range, limit, &mut chunk).await.unwrap();
        assert!((1..=most).contains(&chunk.len()), "{} rows once it is known what they weigh", chunk.len());
    }

    let catalog = flow.source.catalog().await.unwrap();
    let (tables, identity) = ([table], catalog.identity().await.unwrap());
    let from = catalog.capture(&flow.name, &tables).await.unwrap();
    let mut feed = flow.source.change_feed(&flow.name, &tables, &identity, &from).await.unwrap();
    let rename = |id| Write::update(&orders, [Value::Int(id)], [(1, text("bob"))]);
    let (mut count, mut told) = (0, from);
    for ids in [0..1, 0..20] {
        source.transact(&ids.clone().map(rename).collect::<Vec<_>>()).unwrap();
        let mut whole = false;
        while !whole {
            let mut changes = Changes::new();
            let progress = feed.next(None, &mut changes).await.unwrap();
            assert!(changes.bytes() < 10 * WIDE, "{changes:?}");
            whole = changes.transactions().last().is_some_and(|transaction| transaction.ends);
            assert!(whole && progress.position > told || progress.position == told, "{changes:?}");
            told = progress.position;
            count += changes.count();
        }
    }
    assert_eq!(count, 1 + 20);
    feed.close().await.unwrap();
}

/// Found by simulation: an order was deleted by a commit that was logged and not yet seen; a later change of one of
/// its lines was seen already, so that the order was read again and came back for ever.
#[tokio::test(start_paused = true)]
async fn what_an_earlier_change_took_away_is_not_brought_back() {
    let (source, target, orders, lines) = shop();
    source
        .transact(&[
            Write::insert(&orders, [Value::Int(1), text("ann")]),
            Write::insert(&lines, [Value::Int(1), Value::Int(1), text("pen")]),
        ])
        .unwrap();
    let flow = flow(&source, &target).await;
    catch_up(&flow).await;
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (_keep, mut requests) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let running = run_once(&flow, Until::Stopped, &gauge, &mut requests, &stop);
    let others = async {
        let unseen = source.log_unseen(&[Write::delete(&orders, [Value::Int(1)])]).unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let key = [Value::Int(1), Value::Int(1)];
        source.transact(&[Write::update(&lines, key, [(2, text("ink"))])]).unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        source.reveal(unseen);
        tokio::time::sleep(Duration::from_secs(5)).await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(running, others);
    assert_eq!(ended.unwrap(), Ended::Stopped);
    assert!(target.rows(&orders).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_folded_table_that_is_truncated_stops_the_other_by_name() {
    let (source, target, orders, lines) = shop();
    source.transact(&[Write::insert(&orders, [Value::Int(1), text("ann")])]).unwrap();
    let flow = flow(&source, &target).await;
    catch_up(&flow).await;
    source.transact(&[Write::truncate(&lines)]).unwrap();
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (_keep, mut requests) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    assert_eq!(run_once(&flow, Until::CaughtUp, &gauge, &mut requests, &stop).await.unwrap(), Ended::Again);
    let error = gauge.read(flow.clock.as_ref()).tables[0].error.clone().unwrap();
    assert!(error.contains("transform-failed"), "{error}");
    assert_eq!(target.rows(&orders).len(), 1, "what was there stays");
}

#[tokio::test]
async fn a_recipe_that_loses_the_key_is_refused() {
    #[derive(Debug)]
    struct Keyless;
    impl Transform for Keyless {
        fn make(&self, table: &Table) -> Result<Made> {
            let column = MadeColumn { column: table.columns[1].clone(), carries: Some(1) };
            Ok(Made::Into(Recipe { columns: vec![column], ..Recipe::default() }))
        }
        fn row(&self, _: &Record<'_>, _: &[Vec<Record<'_>>], _: &mut Vec<Value<'static>>) -> Result<bool> {
            Ok(true)
        }
    }
    let (source, ..) = shop();
    let turned = Transformed::new(Arc::new(source), Arc::new(Keyless), SystemClock::shared());
    let (_, obstacles) = turned.catalog().await.unwrap().describe(&Selection::All).await.unwrap();
    let obstacle = obstacles.last().unwrap();
    assert_eq!(obstacle.error.code().name(), "mapping-invalid");
    assert!(obstacle.to_string().contains("column id of the key is not carried"), "{obstacle}");
}
