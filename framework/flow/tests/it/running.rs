//! Run after run, until one has caught up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{Lease, StateStore, Store, Stored};
use tidegate_core::{Column, Error, FlowName, Result, TableName, Type, Value};
use tidegate_flow::run::{WISHES, run};
use tidegate_flow::{Ended, Gauge, Until};
use tidegate_memory::{MemoryStore, Write};
use tokio_util::sync::CancellationToken;

/// A state whose wishes cannot be read for a while.
struct Away {
    inner: Arc<dyn StateStore>,
    fails: AtomicU32,
}

#[async_trait]
impl StateStore for Away {
    async fn get(&self, flow: &FlowName, key: &str) -> Result<Option<Stored>> {
        let left = |left: u32| left.checked_sub(1);
        if key == WISHES && self.fails.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok() {
            return Err(Error::new(code::UNREACHABLE, "the server does not answer"));
        }
        self.inner.get(flow, key).await
    }

    async fn put(&self, flow: &FlowName, key: &str, value: &str, expected: u64) -> Result<Option<u64>> {
        self.inner.put(flow, key, value, expected).await
    }

    async fn flows(&self) -> Result<Vec<FlowName>> {
        self.inner.flows().await
    }

    async fn forget(&self, flow: &FlowName) -> Result<()> {
        self.inner.forget(flow).await
    }

    async fn hold(&self, flow: &FlowName, holder: &str, time: Duration) -> Result<Lease> {
        self.inner.hold(flow, holder, time).await
    }

    async fn release(&self, flow: &FlowName, holder: &str) -> Result<()> {
        self.inner.release(flow, holder).await
    }
}

/// Found by reading: what people want was read outside of what is tried again, so that a state that was away for a
/// moment between two runs ended the program.
#[tokio::test(start_paused = true)]
async fn a_state_that_is_away_between_two_runs_is_waited_for() {
    let (source, target) = (MemoryStore::new("a"), MemoryStore::new("b"));
    let orders = TableName::new("", "orders");
    source.create_table(&orders, vec![Column::new("id", Type::Int { bits: 64 })], &["id"]);
    source.transact(&[Write::insert(&orders, [Value::Int(1)])]).unwrap();
    let flow = crate::flow(&source, &target, std::slice::from_ref(&orders)).await;
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let state: Arc<dyn StateStore> =
        Arc::new(Away { inner: target.state().await.unwrap(), fails: AtomicU32::new(3) });
    let (patience, stop) = (Duration::from_secs(60), CancellationToken::new());
    let ended = Box::pin(run(&flow, Until::CaughtUp, &gauge, &state, "me", patience, &stop)).await;
    assert_eq!(ended.unwrap(), Ended::CaughtUp);
    assert_eq!(target.rows(&orders), source.rows(&orders));
}
