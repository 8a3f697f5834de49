//! Run after run, until one has caught up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{Lease, StateStore, Store, Stored};
use tidegate_core::{Column, Error, FlowName, Result, TableName, Type, Value};
use tidegate_flow::run::{STATUS, WISHES, Wishes, change, read, run};
use tidegate_flow::{Ended, Flow, Gauge, Status, Until};
use tidegate_memory::{MemoryStore, Write};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::hooked::Hooked;

/// A state that is away for a while: its wishes cannot be read, or nothing can be done.
struct Away {
    inner: Arc<dyn StateStore>,
    fails: AtomicU32,
    is_away: AtomicBool,
}

impl Away {
    fn check(&self) -> Result<()> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(Error::new(code::UNREACHABLE, "the server does not answer"));
        }
        Ok(())
    }
}

#[async_trait]
impl StateStore for Away {
    async fn get(&self, flow: &FlowName, key: &str) -> Result<Option<Stored>> {
        self.check()?;
        let left = |left: u32| left.checked_sub(1);
        if key == WISHES && self.fails.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok() {
            return Err(Error::new(code::UNREACHABLE, "the server does not answer"));
        }
        self.inner.get(flow, key).await
    }

    async fn put(&self, flow: &FlowName, key: &str, value: &str, expected: u64) -> Result<Option<u64>> {
        self.check()?;
        self.inner.put(flow, key, value, expected).await
    }

    async fn flows(&self) -> Result<Vec<FlowName>> {
        self.inner.flows().await
    }

    async fn forget(&self, flow: &FlowName) -> Result<()> {
        self.inner.forget(flow).await
    }

    async fn hold(&self, flow: &FlowName, holder: &str, time: Duration) -> Result<Lease> {
        self.check()?;
        self.inner.hold(flow, holder, time).await
    }

    async fn release(&self, flow: &FlowName, holder: &str) -> Result<()> {
        self.check()?;
        self.inner.release(flow, holder).await
    }
}

/// A flow of one table with one row, and what is needed to run it.
struct Place {
    source: MemoryStore,
    target: MemoryStore,
    orders: TableName,
    flow: Flow,
    gauge: Gauge,
    away: Arc<Away>,
    stop: CancellationToken,
}

impl Place {
    async fn open() -> Self {
        let (source, target) = (MemoryStore::new("a"), MemoryStore::new("b"));
        let orders = TableName::new("", "orders");
        source.create_table(&orders, vec![Column::new("id", Type::Int { bits: 64 })], &["id"]);
        source.transact(&[Write::insert(&orders, [Value::Int(1)])]).unwrap();
        let flow = crate::flow(&source, &target, std::slice::from_ref(&orders)).await;
        let gauge = Gauge::new(&flow.routes, &flow.options);
        let inner = target.state().await.unwrap();
        let away = Arc::new(Away { inner, fails: AtomicU32::new(0), is_away: AtomicBool::new(false) });
        Self { source, target, orders, flow, gauge, away, stop: CancellationToken::new() }
    }

    async fn run(&self, until: Until) -> Result<Ended> {
        let state: Arc<dyn StateStore> = Arc::clone(&self.away) as _;
        let (patience, day) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));
        let running = Box::pin(run(&self.flow, until, &self.gauge, &state, "me", patience, &self.stop));
        tokio::time::timeout(day, running).await.unwrap()
    }

    /// What an abort does.
    async fn remove(&self) {
        self.source.catalog().await.unwrap().clean(&self.flow.name).await.unwrap();
        self.away.inner.forget(&self.flow.name).await.unwrap();
    }

    async fn assert_removed(&self) {
        assert_eq!(self.away.inner.flows().await.unwrap(), []);
        let catalog = self.source.catalog().await.unwrap();
        assert_eq!(catalog.sealed(&self.flow.name).await.unwrap(), None);
    }
}

/// Found by reading: what people want was read outside of what is tried again, so that a state that was away for a
/// moment between two runs ended the program.
#[tokio::test(start_paused = true)]
async fn a_state_that_is_away_between_two_runs_is_waited_for() {
    let place = Place::open().await;
    place.away.fails.store(3, Ordering::Relaxed);
    assert_eq!(place.run(Until::CaughtUp).await.unwrap(), Ended::CaughtUp);
    assert_eq!(place.target.rows(&place.orders), place.source.rows(&place.orders));
}

/// Found by reading: an abort during an outage was undone by the runner, which began anew when the outage was over.
#[tokio::test(start_paused = true)]
async fn a_runner_whose_flow_was_removed_meanwhile_does_not_begin_anew() {
    let place = Place::open().await;
    let script = async {
        sleep(Duration::from_secs(3)).await;
        place.away.is_away.store(true, Ordering::Relaxed);
        sleep(Duration::from_secs(20)).await;
        place.away.inner.hold(&place.flow.name, "abort", Duration::from_secs(60)).await.unwrap();
        place.remove().await;
        place.away.is_away.store(false, Ordering::Relaxed);
    };
    let (ended, ()) = tokio::join!(place.run(Until::Stopped), script);
    assert_eq!(ended.unwrap_err().code(), code::LEASE_LOST);
    place.assert_removed().await;
}

/// Found by reading: so was one that the runner had waited for.
#[tokio::test(start_paused = true)]
async fn a_runner_that_waited_for_an_abort_does_not_begin_anew() {
    let place = Place::open().await;
    assert_eq!(place.run(Until::CaughtUp).await.unwrap(), Ended::CaughtUp);
    place.away.inner.hold(&place.flow.name, "abort", Duration::from_secs(60)).await.unwrap();
    let script = async {
        sleep(Duration::from_secs(2)).await;
        place.remove().await;
    };
    let (ended, ()) = tokio::join!(place.run(Until::Stopped), script);
    assert_eq!(ended.unwrap_err().code(), code::LEASE_LOST);
    place.assert_removed().await;
}

/// Found by reading: the lease was renewed only while a run went on, and not in the pauses between runs that broke.
#[tokio::test(start_paused = true)]
async fn the_lease_is_kept_while_runs_break() {
    let mut place = Place::open().await;
    let is_down = |_: &TableName, _| Err(Error::new(code::UNREACHABLE, "the server does not answer"));
    place.flow.source = Arc::new(Hooked::new(&place.source).on_read(is_down));
    let script = async {
        for _ in 0..50 {
            sleep(Duration::from_secs(1)).await;
            let held = place.away.inner.hold(&place.flow.name, "you", Duration::from_secs(1)).await;
            assert_eq!(held.unwrap_err().code(), code::LEASE_HELD);
            let (status, _) =
                read::<Status>(place.away.inner.as_ref(), &place.flow.name, STATUS).await.unwrap();
            assert!(status.running && !status.connected);
            // Found by trying: nobody was told why.
            assert_eq!(status.error.as_deref(), Some("TG0010 unreachable: the server does not answer"));
        }
        place.stop.cancel();
    };
    let (ended, ()) = tokio::join!(place.run(Until::Stopped), script);
    assert_eq!(ended.unwrap(), Ended::Stopped);
}

/// Found by reading: how long runs had broken was counted from the first one that ever broke, unless a run that broke had
/// lived for a while.
#[tokio::test(start_paused = true)]
async fn what_broke_long_ago_is_over_when_a_run_ended_well() {
    let place = Place::open().await;
    place.away.fails.store(1, Ordering::Relaxed);
    let script = async {
        sleep(Duration::from_secs(3 * 3600)).await;
        let wish = |wishes: &mut Wishes| wishes.looks += 1;
        change(place.away.inner.as_ref(), &place.flow.name, WISHES, wish).await.unwrap();
        sleep(Duration::from_secs(2)).await;
        place.away.fails.store(8, Ordering::Relaxed);
        sleep(Duration::from_secs(50)).await;
        assert_eq!(place.away.fails.load(Ordering::Relaxed), 0);
        place.stop.cancel();
    };
    let (ended, ()) = tokio::join!(place.run(Until::Stopped), script);
    assert_eq!(ended.unwrap(), Ended::Stopped);
}
