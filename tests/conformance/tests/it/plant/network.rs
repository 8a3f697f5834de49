//! What is between a broker in memory and those who use it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tidegate_conformance::{Network, Traffic};
use tidegate_core::error::code;
use tidegate_core::port::Consumer;
use tidegate_core::{Error, Result};
use tidegate_memory::MemoryBroker;
use tokio::time::sleep;

use super::{Bug, lock};

/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_millis(100);

/// A consumer, as long as its connection is heard of.
pub(super) type Inner = tokio::sync::Mutex<Option<Box<dyn Consumer>>>;

/// All connections to one broker.
#[derive(Default)]
pub(crate) struct MemoryNetwork {
    now: Mutex<Now>,
    connections: Mutex<Vec<MemoryBroker>>,
    consumers: Mutex<Vec<Weak<Inner>>>,
    attempts: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Now {
    traffic: Traffic,
    /// So many connections hang.
    hung: usize,
}

impl Default for Now {
    fn default() -> Self {
        Self { traffic: Traffic::Open, hung: 0 }
    }
}

impl Network for MemoryNetwork {
    /// Leases do not outlast a time in which nothing was heard.
    fn set(&self, traffic: Traffic) {
        let before = std::mem::replace(&mut *lock(&self.now), Now { traffic, hung: 0 });
        if [before.traffic, traffic].iter().any(|one| matches!(one, Traffic::Silent | Traffic::Closed)) {
            self.cut();
        }
    }

    fn cut(&self) {
        lock(&self.connections).iter().for_each(MemoryBroker::cut);
    }

    /// Their leases are over at once.
    fn hang(&self) {
        for consumer in lock(&self.consumers).drain(..).filter_map(|consumer| consumer.upgrade()) {
            // One that is asked right now does not hang: no case asks one then.
            drop(consumer.try_lock().map(|mut consumer| consumer.take()));
        }
        lock(&self.now).hung = lock(&self.connections).len();
    }

    fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    fn connections(&self) -> u64 {
        lock(&self.connections).len() as u64
    }
}

/// The way of one connection through it.
#[derive(Clone)]
pub(super) struct Way {
    network: Arc<MemoryNetwork>,
    number: usize,
    bug: Bug,
    pub(super) is_stranger: bool,
    has_failed: Arc<AtomicBool>,
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Way").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Way {
    pub(super) fn new(network: &Arc<MemoryNetwork>, bug: Bug, broker: &MemoryBroker) -> Self {
        let mut connections = lock(&network.connections);
        connections.push(broker.clone());
        let (network, number) = (Arc::clone(network), connections.len());
        Self { network, number, bug, is_stranger: false, has_failed: Arc::default() }
    }

    /// A consumer of this connection.
    pub(super) fn consumer(&self, consumer: Box<dyn Consumer>) -> Arc<Inner> {
        let consumer = Arc::new(Inner::new(Some(consumer)));
        lock(&self.network.consumers).push(Arc::downgrade(&consumer));
        consumer
    }

    /// Returns when something is through, or will not be.
    pub(super) async fn pass(&self) -> Result<()> {
        let now = *lock(&self.network.now);
        let hangs = self.number <= now.hung;
        match now.traffic {
            Traffic::Closed => {
                let more = if self.bug == Bug::ReconnectsHastily { 100 } else { 0 };
                self.network.attempts.fetch_add(more, Ordering::Relaxed);
                self.has_failed.store(true, Ordering::Relaxed);
                sleep(Duration::from_millis(10)).await;
                Err(Error::new(code::UNREACHABLE, "nothing is there"))
            }
            _ if self.bug == Bug::RemembersAbsence && self.has_failed.load(Ordering::Relaxed) => {
                Err(Error::new(code::UNREACHABLE, "nothing was there"))
            }
            _ if self.is_stranger && self.bug == Bug::StrangersFindNothing => {
                Err(Error::new(code::UNREACHABLE, "nothing is there for you"))
            }
            _ if self.is_stranger => Err(Error::new(code::ACCESS_DENIED, "the password is wrong")),
            Traffic::Silent => Err(self.nothing().await),
            _ if hangs => Err(self.nothing().await),
            Traffic::Slow(time) => {
                sleep(time).await;
                Ok(())
            }
            Traffic::Open => Ok(()),
        }
    }

    async fn nothing(&self) -> Error {
        sleep(TIMEOUT).await;
        Error::new(code::TIMED_OUT, "nothing is heard")
    }
}
