//! What has been done so far, for whoever watches it.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use tidegate_core::port::Delivery;

/// Counts of one channel of a service in this process, from its start. They only rise, but for the lag.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    received: AtomicU64,
    handled: AtomicU64,
    retried: AtomicU64,
    dead: AtomicU64,
    ignored: AtomicU64,
    released: AtomicU64,
    lost: AtomicU64,
    unknown: AtomicU64,
    lag_us: AtomicI64,
}

/// What a service has done in this process since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counted {
    /// Deliveries that came.
    pub received: u64,
    /// Messages whose handler succeeded.
    pub handled: u64,
    /// Deliveries whose message is tried again, later.
    pub retried: u64,
    /// Messages that became dead letters.
    pub dead: u64,
    /// Messages that are settled without a handler: replayed for others, or of a kind that is ignored.
    pub ignored: u64,
    /// Messages that were given back untried.
    pub released: u64,
    /// Deliveries whose lane went before they were settled: their messages come again, to whoever has it.
    pub lost: u64,
    /// Settlements whose answer was lost. They are made again.
    pub unknown: u64,
    /// How long before it came the last message was stored, in microseconds, by two clocks.
    pub lag_us: i64,
}

impl Counts {
    /// What they are now.
    pub(crate) fn read(&self) -> Counted {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counted {
            received: read(&self.received),
            handled: read(&self.handled),
            retried: read(&self.retried),
            dead: read(&self.dead),
            ignored: read(&self.ignored),
            released: read(&self.released),
            lost: read(&self.lost),
            unknown: read(&self.unknown),
            lag_us: self.lag_us.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn received(&self, delivery: &Delivery, now: i64) {
        add(&self.received, 1);
        if let Some(stored_at) = delivery.stored_at {
            self.lag_us.store(now.saturating_sub(stored_at).max(0), Ordering::Relaxed);
        }
    }

    pub(crate) fn handled(&self) {
        add(&self.handled, 1);
    }

    pub(crate) fn retried(&self) {
        add(&self.retried, 1);
    }

    pub(crate) fn dead(&self) {
        add(&self.dead, 1);
    }

    pub(crate) fn ignored(&self) {
        add(&self.ignored, 1);
    }

    pub(crate) fn released(&self, count: u64) {
        add(&self.released, count);
    }

    pub(crate) fn lost(&self, count: u64) {
        add(&self.lost, count);
    }

    pub(crate) fn unknown(&self) {
        add(&self.unknown, 1);
    }
}

impl Counted {
    /// That of several channels together: the lag is the longest.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            handled: self.handled + other.handled,
            retried: self.retried + other.retried,
            dead: self.dead + other.dead,
            ignored: self.ignored + other.ignored,
            released: self.released + other.released,
            lost: self.lost + other.lost,
            unknown: self.unknown + other.unknown,
            lag_us: self.lag_us.max(other.lag_us),
        }
    }
}

fn add(count: &AtomicU64, by: u64) {
    count.fetch_add(by, Ordering::Relaxed);
}
