//! Takes messages from a subscription.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_broker::seats::Member;
use tidegate_broker::unsettled::End;
use tidegate_core::error::code;
use tidegate_core::port::{Consumer, Delivery, Leftover, Settle, Signal};
use tidegate_core::{Error, Result, Subscription};
use tokio::sync::Notify;

use crate::broker::MemoryBroker;
use crate::channel::{SubscriptionState, micros};
use crate::settle::MemorySettle;

#[derive(Debug)]
pub(crate) struct MemoryConsumer {
    broker: MemoryBroker,
    subscription: Subscription,
    /// The number of this member, and the generation of the subscription that it belongs to.
    who: (Member, u64),
    changed: Arc<Notify>,
    is_closed: bool,
}

/// What one look gives.
enum Look {
    Signal(Signal),
    /// Nothing, until something changes or this time comes.
    Wait(Option<i64>),
}

impl MemoryConsumer {
    pub(crate) fn new(
        broker: MemoryBroker,
        subscription: &Subscription,
        who: (Member, u64),
        changed: Arc<Notify>,
    ) -> Self {
        Self { broker, subscription: subscription.clone(), who, changed, is_closed: false }
    }

    /// Everything that a call may return, in one piece: a caller that goes away while it waits loses nothing.
    fn look(&self, max: usize, out: &mut Vec<Delivery>) -> Look {
        let now = self.broker.data.clock.now();
        let mut channels = self.broker.data.lock();
        let gone = || {
            let text = format!("{} of {} is gone", self.subscription.name, self.subscription.channel);
            Look::Signal(Signal::Cancelled(Error::new(code::SUBSCRIPTION_GONE, text)))
        };
        let Some(channel) = channels.get_mut(&self.subscription.channel) else { return gone() };
        let Some(state) = channel.subscriptions.get_mut(&self.subscription.name) else { return gone() };
        if state.generation != self.who.1 {
            return gone();
        }
        if self.broker.connection.is_closing.load(Ordering::Acquire) {
            return Look::Signal(Signal::Drained);
        }
        if state.rebalance(self.who.0, now, micros(self.broker.grace)) {
            self.changed.notify_waiters();
        }
        if let Some(signal) = news(state, self.who.0) {
            return Look::Signal(signal);
        }
        let before = out.len();
        channel.give(&self.subscription.name, self.who.0, max, self.subscription.window, now, out);
        if out.len() > before {
            return Look::Signal(Signal::Messages);
        }
        let state = channel.subscriptions.get(&self.subscription.name);
        Look::Wait(state.and_then(|state| state.next_time(self.who.0)))
    }

    fn leave(&mut self, end: End) -> usize {
        self.is_closed = true;
        let mut channels = self.broker.data.lock();
        let channel = channels.get_mut(&self.subscription.channel);
        let state = channel.and_then(|channel| channel.subscriptions.get_mut(&self.subscription.name));
        let left = match state {
            Some(state) if state.generation == self.who.1 => state.leave(self.who.0, end),
            _ => 0,
        };
        self.changed.notify_waiters();
        left
    }

    fn in_hand(&self) -> usize {
        let channels = self.broker.data.lock();
        let channel = channels.get(&self.subscription.channel);
        let state = channel.and_then(|channel| channel.subscriptions.get(&self.subscription.name));
        state.filter(|state| state.generation == self.who.1).map_or(0, |state| state.in_hand(self.who.0))
    }
}

/// The first thing that a member has not been told.
fn news(state: &mut SubscriptionState, member: Member) -> Option<Signal> {
    let news = state.members.get_mut(&member)?;
    if std::mem::take(&mut news.reconnected) {
        return Some(Signal::Reconnected);
    }
    if !news.lost.is_empty() {
        return Some(Signal::LanesLost(std::mem::take(&mut news.lost)));
    }
    if !news.revoked.is_empty() {
        let revoked = std::mem::take(&mut news.revoked);
        let until = revoked.iter().map(|(_, until)| *until).min().unwrap_or_default();
        return Some(Signal::LanesRevoked { lanes: revoked.iter().map(|(lane, _)| *lane).collect(), until });
    }
    (!news.gained.is_empty()).then(|| Signal::LanesGained(std::mem::take(&mut news.gained)))
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn receive(&mut self, max: usize, wait: Duration, out: &mut Vec<Delivery>) -> Result<Signal> {
        let clock = &self.broker.data.clock;
        let until = clock.elapsed() + wait;
        loop {
            // Listens before it looks, so that what comes in between is not missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let next = match self.look(max, out) {
                Look::Signal(signal) => return Ok(signal),
                Look::Wait(next) => next,
            };
            let Some(left) = until.checked_sub(clock.elapsed()).filter(|left| !left.is_zero()) else {
                return Ok(Signal::Messages);
            };
            let next = next.map(|next| u64::try_from(next - clock.now()).unwrap_or(0).max(1));
            let left = next.map_or(left, |next| left.min(Duration::from_micros(next)));
            tokio::select! {
                () = changed => {}
                () = clock.sleep(left) => {}
            }
        }
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::new(MemorySettle::new(
            self.broker.clone(),
            &self.subscription,
            self.who,
            Arc::clone(&self.changed),
        ))
    }

    async fn close(mut self: Box<Self>, deadline: Duration) -> Result<Leftover> {
        let clock = Arc::clone(&self.broker.data.clock);
        let until = clock.elapsed() + deadline;
        loop {
            let changed = Arc::clone(&self.changed);
            let mut changed = std::pin::pin!(changed.notified());
            changed.as_mut().enable();
            let left = until.saturating_sub(clock.elapsed());
            if self.in_hand() == 0 || left.is_zero() {
                return Ok(Leftover { released: self.leave(End::Untried) });
            }
            tokio::select! {
                () = changed => {}
                () = clock.sleep(left) => {}
            }
        }
    }
}

impl Drop for MemoryConsumer {
    /// A consumer that was not closed has crashed: what it had in hand was tried.
    fn drop(&mut self) {
        if !self.is_closed {
            self.leave(End::Failed { due: 0 });
        }
    }
}
