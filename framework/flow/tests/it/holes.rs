//! Rows that the target cannot take, and waits that a stop ends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::{StateStore, Store};
use tidegate_core::{Column, Table, TableName, Type, Value};
use tidegate_flow::run::run;
use tidegate_flow::{Ended, Flow, Gauge, TableState, Until};
use tidegate_memory::{MemoryStore, Write};
use tokio_util::sync::CancellationToken;

use crate::hooked::Hooked;

const PATIENCE: Duration = Duration::from_secs(60);

fn store(name: &str, table: &TableName) -> MemoryStore {
    let store = MemoryStore::new(name);
    let columns = vec![
        Column::new("id", Type::Int { bits: 64 }),
        Column::new("code", Type::Int { bits: 64 }),
        Column::new("note", Type::Text),
    ];
    store.create_table(table, columns, &["id"]);
    store.leave_out_unchanged(table, 2);
    store
}

fn row(table: &TableName, id: i64, code: i64) -> Write {
    Write::insert(table, [Value::Int(id), Value::Int(code), Value::Text(format!("note {id}").into())])
}

/// How many keys each fetch from the source is of, from now on.
fn count_fetches(flow: &mut Flow, source: &MemoryStore) -> Arc<Mutex<Vec<usize>>> {
    let fetched = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&fetched);
    flow.source = Arc::new(Hooked::new(source).on_fetch(move |_, keys| {
        seen.lock().unwrap().push(keys);
        Ok(())
    }));
    fetched
}

#[tokio::test(start_paused = true)]
async fn values_that_are_unique_in_the_target_alone_stop_the_table_by_name() {
    let parts = TableName::new("", "parts");
    let (source, target) = (store("a", &parts), store("b", &parts));
    source.transact(&[row(&parts, 1, 7), row(&parts, 2, 8), row(&parts, 3, 7)]).unwrap();
    target.create_unique(&parts, &["code"]);
    let flow = crate::flow(&source, &target, std::slice::from_ref(&parts)).await;
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let state: Arc<dyn StateStore> = target.state().await.unwrap();
    let stop = CancellationToken::new();
    let ended = Box::pin(run(&flow, Until::CaughtUp, &gauge, &state, "me", PATIENCE, &stop)).await;
    assert_eq!(ended.unwrap(), Ended::CaughtUp);
    let status = gauge.read(flow.clock.as_ref());
    assert_eq!(status.tables[0].state, TableState::Failed);
    let error = status.tables[0].error.clone().unwrap();
    assert!(error.starts_with(&code::CONSTRAINT_VIOLATED.to_string()), "{error}");
    assert!(error.contains("another row of the target has what is unique there"), "{error}");
    assert!(error.contains("id=3"), "{error}");
    assert_eq!(status.rows_missing, 0, "the table takes no part any more");
}

/// Found by reading: a run that waited for a commit to be seen did not hear that it was to stop.
#[tokio::test(start_paused = true)]
async fn a_stop_is_heard_while_a_commit_is_waited_for() {
    let parts = TableName::new("", "parts");
    let (source, target) = (store("a", &parts), store("b", &parts));
    source.transact(&[row(&parts, 1, 7)]).unwrap();
    let mut flow = crate::flow(&source, &target, std::slice::from_ref(&parts)).await;
    let fetches = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&fetches);
    flow.source = Arc::new(Hooked::new(&source).on_fetch(move |_, _| {
        seen.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }));
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let state: Arc<dyn StateStore> = target.state().await.unwrap();
    let stop = CancellationToken::new();
    let running = run(&flow, Until::Stopped, &gauge, &state, "me", PATIENCE, &stop);
    let stopping = async {
        while !gauge.read(flow.clock.as_ref()).is_crawled() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The key moves and the note is left out: the row has to be read, and nobody sees it.
        source.log_unseen(&[Write::update(&parts, [Value::Int(1)], [(0, Value::Int(2))])]).unwrap();
        while fetches.load(Ordering::Relaxed) < 10 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
    };
    let both = async { tokio::join!(Box::pin(running), stopping).0 };
    let ended = tokio::time::timeout(Duration::from_secs(60), both).await;
    assert_eq!(ended.expect("it ends").unwrap(), Ended::Stopped);
}

/// Found by reading: each of them was a round trip, and all were made again for changes that the target had.
#[tokio::test(start_paused = true)]
async fn rows_whose_key_moved_are_read_many_at_a_time() {
    let parts = TableName::new("", "parts");
    let (source, target) = (store("a", &parts), store("b", &parts));
    let rows = (0..2_500).map(|id| row(&parts, id, id));
    source.transact(&rows.collect::<Vec<_>>()).unwrap();
    let mut flow = crate::flow(&source, &target, std::slice::from_ref(&parts)).await;
    flow.options.chunk_rows = 10_000;
    crate::catch_up(&flow).await;
    let fetched = count_fetches(&mut flow, &source);
    let moved = |id| Write::update(&parts, [Value::Int(id)], [(0, Value::Int(id + 10_000))]);
    source.transact(&(0..2_500).map(moved).collect::<Vec<_>>()).unwrap();
    crate::catch_up(&flow).await;
    assert_eq!(target.rows(&parts), source.rows(&parts));
    assert_eq!(*fetched.lock().unwrap(), [1_000, 1_000, 500]);
    crate::catch_up(&flow).await;
    assert_eq!(fetched.lock().unwrap().len(), 3, "what the target has is not read again");
}

/// Found by reading: however wide they are, the rows of 20,000 changes were read before the first was sent on.
#[tokio::test(start_paused = true)]
async fn rows_whose_key_moved_are_read_no_more_than_a_chunk_at_a_time() {
    let parts = TableName::new("", "parts");
    let (source, target) = (store("a", &parts), store("b", &parts));
    source.transact(&(0..25).map(|id| row(&parts, id, id)).collect::<Vec<_>>()).unwrap();
    let mut flow = crate::flow(&source, &target, std::slice::from_ref(&parts)).await;
    crate::catch_up(&flow).await;
    let wide = Table {
        rows_estimated: 10,
        bytes_estimated: flow.options.chunk_bytes as u64,
        ..Table::clone(&flow.routes[0].shape.table)
    };
    flow.routes[0].shape.table = Arc::new(wide);
    let fetched = count_fetches(&mut flow, &source);
    let moved = |id| Write::update(&parts, [Value::Int(id)], [(0, Value::Int(id + 100))]);
    let mut changes: Vec<_> = (0..25).map(moved).collect();
    changes.insert(10, row(&parts, 50, 50));
    source.transact(&changes).unwrap();
    crate::catch_up(&flow).await;
    assert_eq!(target.rows(&parts), source.rows(&parts));
    assert_eq!(*fetched.lock().unwrap(), [10, 10, 5]);
}
