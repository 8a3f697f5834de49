//! Which table stops when one of them cannot go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::{StateStore, Store};
use tidegate_core::{Column, Error, Table, TableName, Type, Value};
use tidegate_flow::run::run;
use tidegate_flow::{Ended, Gauge, TableState, Until};
use tidegate_memory::{MemoryStore, Write};
use tokio_util::sync::CancellationToken;

use crate::hooked::Hooked;

/// What is wrong with the table `one`.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    SourceGivesNoRow,
    TargetTakesNoRow,
    TargetKeepsRowsOut,
}

/// Runs a flow of `one` into `two` and of `two` into `one`, and gives the names in the source of those that stopped.
async fn stopped(trouble: Trouble, order: [&str; 2]) -> Vec<String> {
    let tables = order.map(|name| TableName::new("", name));
    let (source, target) = (MemoryStore::new("source"), MemoryStore::new("target"));
    let columns =
        || vec![Column::new("id", Type::Int { bits: 64 }), Column::new("v", Type::Int { bits: 64 })];
    for table in &tables {
        source.create_table(table, columns(), &["id"]);
        for id in 0..2 {
            source.transact(&[Write::insert(table, [Value::Int(id), Value::Int(7)])]).unwrap();
        }
    }
    let mut flow = crate::flow(&source, &target, &tables).await;
    for (route, name) in flow.routes.iter_mut().zip(tables.iter().rev()) {
        flow.wanted.names.insert(route.target.name.to_string(), name.clone());
        route.target = Arc::new(Table { name: name.clone(), ..route.target.as_ref().clone() });
    }
    let one = TableName::new("", "one");
    let refused = one.clone();
    let check = move |table: &TableName| {
        if *table != refused {
            return Ok(());
        }
        Err(Error::new(code::VALUE_UNFIT, "it is refused").with("table", table))
    };
    match trouble {
        Trouble::SourceGivesNoRow => {
            flow.source = Arc::new(Hooked::new(&source).on_read(move |table, _| check(table)));
        }
        Trouble::TargetTakesNoRow => flow.target = Arc::new(Hooked::new(&target).on_write(check)),
        Trouble::TargetKeepsRowsOut => target.create_unique(&one, &["v"]),
    }
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let state: Arc<dyn StateStore> = target.state().await.unwrap();
    let (patience, stop) = (Duration::from_secs(60), CancellationToken::new());
    let ended = Box::pin(run(&flow, Until::CaughtUp, &gauge, &state, "me", patience, &stop)).await;
    assert_eq!(ended.unwrap(), Ended::CaughtUp, "{trouble:?} {order:?}");
    let (failed, others): (Vec<_>, Vec<_>) = gauge
        .read(flow.clock.as_ref())
        .tables
        .into_iter()
        .partition(|table| table.state == TableState::Failed);
    for table in others {
        let (from, to) = (TableName::new("", &table.source), TableName::new("", &table.target));
        assert_eq!(target.rows(&to), source.rows(&from), "{trouble:?} {order:?}");
    }
    failed.into_iter().map(|table| table.source).collect()
}

/// Found by reading: a table was looked for by its name on either side, so that the name of another table's other end
/// stopped that one.
#[tokio::test(start_paused = true)]
async fn only_the_table_that_an_error_is_about_stops() {
    for order in [["one", "two"], ["two", "one"]] {
        assert_eq!(stopped(Trouble::SourceGivesNoRow, order).await, ["one"], "{order:?}");
        assert_eq!(stopped(Trouble::TargetTakesNoRow, order).await, ["two"], "{order:?}");
        assert_eq!(stopped(Trouble::TargetKeepsRowsOut, order).await, ["two"], "{order:?}");
    }
}

/// Found by reading: the target took back a transaction of several pieces because of one table, and only the last piece
/// was applied again, with the position.
#[tokio::test(start_paused = true)]
async fn no_piece_is_lost_with_a_table_that_is_refused_at_the_end() {
    let tables = ["good", "bad"].map(|name| TableName::new("", name));
    let (source, target) = (MemoryStore::new("source"), MemoryStore::new("target"));
    for table in &tables {
        source.create_table(table, vec![Column::new("id", Type::Int { bits: 64 })], &["id"]);
    }
    let mut flow = crate::flow(&source, &target, &tables).await;
    flow.options.batch_changes = 5;
    flow.source = Arc::new(Hooked::new(&source).cutting());
    let refuses = Arc::new(AtomicBool::new(false));
    let (bad, is_refused) = (tables[1].clone(), Arc::clone(&refuses));
    flow.target = Arc::new(Hooked::new(&target).holding().on_write(move |table| {
        if *table == bad && is_refused.load(Ordering::Relaxed) {
            return Err(Error::new(code::CONSTRAINT_VIOLATED, "it is refused").with("table", table));
        }
        Ok(())
    }));
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let state: Arc<dyn StateStore> = target.state().await.unwrap();
    let (patience, stop) = (Duration::from_secs(60), CancellationToken::new());
    for round in 0..2 {
        let ended = Box::pin(run(&flow, Until::CaughtUp, &gauge, &state, "me", patience, &stop)).await;
        assert_eq!(ended.unwrap(), Ended::CaughtUp);
        if round == 0 {
            let insert = |id| Write::insert(&tables[usize::from(id % 7 == 0)], [Value::Int(id)]);
            source.transact(&(0..33).map(insert).collect::<Vec<_>>()).unwrap();
            refuses.store(true, Ordering::Relaxed);
        }
    }
    assert_eq!(target.rows(&tables[0]), source.rows(&tables[0]));
    let status = gauge.read(flow.clock.as_ref());
    assert_eq!(status.tables[1].state, TableState::Failed);
    // Found by trying: changes of a table that had stopped were counted, and those of all pieces but the last were not.
    let applied = (status.changes_applied, status.tables[0].changes, status.tables[1].changes);
    assert_eq!(applied, (28, 28, 0));
}
