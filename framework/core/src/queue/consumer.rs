//! A member of a subscription.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::Queues;
use super::broker::Link;
use super::settle::QueueSettle;
use super::shared::{Finish, Inner, Shared, Stop, Written};
use crate::channel::Subscription;
use crate::error::{Error, Result, code};
use crate::lane::Lane;
use crate::port::{Consumer, Delivery, Leftover, Settle, Signal};
use crate::unsettled::End;

/// Looks again at least so often.
const LOOK: Duration = Duration::from_secs(1);
/// How long a consumer that is closed waits for what it has settled to be written.
pub(super) const LAST_WRITE: Duration = Duration::from_secs(5);

pub(super) struct QueueConsumer<Q: Queues> {
    link: Arc<Link<Q>>,
    shared: Arc<Shared<Q>>,
    subscription: Subscription,
    // What a call has begun and a later one goes on with, should it be dropped.
    noting: Option<Noting>,
    ready: VecDeque<Delivery>,
}

/// Deliveries that are being noted as in hand, before anybody sees them.
struct Noting {
    deliveries: Vec<Delivery>,
    waits: VecDeque<oneshot::Receiver<Written>>,
}

impl<Q: Queues> QueueConsumer<Q> {
    pub(super) fn new(link: Arc<Link<Q>>, shared: Arc<Shared<Q>>, subscription: &Subscription) -> Self {
        let subscription = subscription.clone();
        Self { link, shared, subscription, noting: None, ready: VecDeque::new() }
    }

    /// What there is to say now, or when to look again.
    async fn step(&mut self, max: usize, out: &mut Vec<Delivery>) -> Result<Step> {
        if let Some(noting) = &mut self.noting {
            while let Some(wait) = noting.waits.front_mut() {
                // Whatever came of it: what is still this consumer's is given.
                let _ = wait.await;
                noting.waits.pop_front();
            }
        }
        if let Some(noting) = self.noting.take() {
            self.ready.extend(noting.deliveries);
        }
        let now = self.shared.system.clock.now();
        let mut inner = self.shared.lock();
        let before = out.len();
        while out.len() - before < max
            && let Some(delivery) = self.ready.pop_front()
        {
            if inner.hand.confirm(delivery.token) {
                out.push(delivery);
            }
        }
        if out.len() > before {
            return Ok(Step::Say(Signal::Messages));
        }
        if let Some(signal) = inner.hand.news() {
            return Ok(Step::Say(signal));
        }
        if let Some(error) = inner.failed.take() {
            return Err(error);
        }
        match inner.end {
            Some(Finish::Gone) => {
                let text = format!("{} of {} is gone", self.subscription.name, self.subscription.channel);
                return Ok(Step::Say(Signal::Cancelled(Error::new(code::SUBSCRIPTION_GONE, text))));
            }
            Some(Finish::ChannelGone) => {
                let text = format!("channel {} is gone", self.subscription.channel);
                return Ok(Step::Say(Signal::Cancelled(Error::new(code::CHANNEL_MISSING, text))));
            }
            Some(Finish::Drained) => return Ok(Step::Say(Signal::Drained)),
            None => {}
        }
        inner.hand.give(now, max, out);
        if out.len() == before {
            let due = inner.hand.next_due().map(|due| u64::try_from(due - now).unwrap_or(0));
            return Ok(Step::Wait(due.map_or(LOOK, Duration::from_micros).min(LOOK)));
        }
        self.noting = note(&mut inner, before, out);
        Ok(if out.len() > before { Step::Say(Signal::Messages) } else { Step::Again })
    }

    /// Gives back what no call has returned: nobody has seen it.
    fn give_back(&mut self) {
        let noted = self.noting.take().map(|noting| noting.deliveries).unwrap_or_default();
        let mut inner = self.shared.lock();
        for delivery in self.ready.drain(..).chain(noted) {
            if inner.hand.end(delivery.token, End::Untried).is_some() {
                inner.touch(delivery.token.lane);
            }
        }
    }
}

/// Says what was given of which lane. Of a lane whose owner died, what is given first is noted before anybody sees it, so
/// that a message that kills whoever handles it is found.
fn note(inner: &mut Inner, before: usize, out: &mut Vec<Delivery>) -> Option<Noting> {
    let mut lanes: Vec<Lane> = out[before..].iter().map(|delivery| delivery.token.lane).collect();
    lanes.sort_unstable();
    lanes.dedup();
    let mut waits = VecDeque::new();
    let mut careful = Vec::new();
    for lane in lanes {
        let number = inner.touch(lane);
        let Some(kept) = inner.lanes.get_mut(&lane).filter(|kept| kept.careful > 0) else { continue };
        let given = out[before..].iter().filter(|delivery| delivery.token.lane == lane).count();
        kept.careful = kept.careful.saturating_sub(given);
        kept.wakers.urgent.notify_one();
        careful.push(lane);
        waits.push_back(inner.wait(lane, number, true));
    }
    if careful.is_empty() {
        return None;
    }
    let given = out.split_off(before);
    let (deliveries, now) = given.into_iter().partition(|d| careful.contains(&d.token.lane));
    out.extend::<Vec<Delivery>>(now);
    Some(Noting { deliveries, waits })
}

enum Step {
    Say(Signal),
    Again,
    Wait(Duration),
}

#[async_trait]
impl<Q: Queues> Consumer for QueueConsumer<Q> {
    async fn receive(&mut self, max: usize, wait: Duration, out: &mut Vec<Delivery>) -> Result<Signal> {
        let shared = Arc::clone(&self.shared);
        let until = shared.system.clock.elapsed() + wait;
        loop {
            let pause = match self.step(max, out).await? {
                Step::Say(signal) => return Ok(signal),
                Step::Again => continue,
                Step::Wait(pause) => pause,
            };
            let left = until.saturating_sub(shared.system.clock.elapsed());
            if left.is_zero() {
                return Ok(Signal::Messages);
            }
            // What changed since the look is kept for whoever waits.
            tokio::select! {
                () = shared.changed.notified() => {}
                () = shared.system.clock.sleep(pause.min(left)) => {}
            }
        }
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::new(QueueSettle::new(Arc::clone(&self.shared)))
    }

    async fn close(mut self: Box<Self>, deadline: Duration) -> Result<Leftover> {
        let shared = Arc::clone(&self.shared);
        self.give_back();
        let until = shared.system.clock.elapsed() + deadline;
        loop {
            let left = until.saturating_sub(shared.system.clock.elapsed());
            if shared.lock().hand.in_hand() == 0 || left.is_zero() {
                break;
            }
            tokio::select! {
                () = shared.changed.notified() => {}
                () = shared.system.clock.sleep(left) => {}
            }
        }
        let (released, ended) = end(&shared).await;
        ended.map(|()| Leftover { released })
    }
}

/// Ends a consumer: what is in its hand is released, and its lanes are given up, with what was settled written. How much was
/// released.
pub(super) async fn end<Q: Queues>(shared: &Shared<Q>) -> (usize, Result<()>) {
    let released = {
        let mut inner = shared.lock();
        inner.failed = None;
        inner.release()
    };
    shared.stop(Stop::Close);
    let mut is_over = shared.is_over.subscribe();
    let ended = tokio::select! {
        _ = is_over.wait_for(|is_over| *is_over) => shared.lock().failed.take().map_or(Ok(()), Err),
        () = shared.system.clock.sleep(LAST_WRITE) => {
            shared.lock().abandon();
            Err(Error::new(code::TIMED_OUT, "what was settled last could not be written in time"))
        }
    };
    (released, ended)
}

impl<Q: Queues> Drop for QueueConsumer<Q> {
    /// A consumer that was not closed has crashed: the system gives what it had to others. What it has in hand is noted once
    /// more, as it would have been. One whose closing was dropped goes on to end as it was about to.
    fn drop(&mut self) {
        self.shared.stop(Stop::Crash);
        self.link.leave(&self.shared);
    }
}
