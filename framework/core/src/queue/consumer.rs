//! A member of a subscription.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::sync::oneshot;

use super::broker::Link;
use super::settle::QueueSettle;
use super::shared::{Finish, Inner, Shared, Written};
use super::{Queues, member, owner};
use crate::channel::Subscription;
use crate::error::{Error, Result, code};
use crate::lane::Lane;
use crate::port::{Consumer, Delivery, Leftover, Settle, Signal};
use crate::scope::Scope;
use crate::unsettled::End;

/// Looks again at least so often.
const LOOK: Duration = Duration::from_secs(1);
/// How long a consumer that is closed waits for what it has settled to be written.
const LAST_WRITE: Duration = Duration::from_secs(5);

pub(super) struct QueueConsumer<Q: Queues> {
    link: Arc<Link<Q>>,
    shared: Arc<Shared<Q>>,
    subscription: Subscription,
    task: Option<Scope>,
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
        let mut task = Scope::new();
        task.spawn(member::keep(Arc::clone(&shared)));
        let subscription = subscription.clone();
        Self { link, shared, subscription, task: Some(task), noting: None, ready: VecDeque::new() }
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
        let now = self.shared.clock.now();
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
        waits.push_back(inner.wait(lane, number));
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
        let until = shared.clock.elapsed() + wait;
        loop {
            let pause = match self.step(max, out).await? {
                Step::Say(signal) => return Ok(signal),
                Step::Again => continue,
                Step::Wait(pause) => pause,
            };
            let left = until.saturating_sub(shared.clock.elapsed());
            if left.is_zero() {
                return Ok(Signal::Messages);
            }
            // What changed since the look is kept for whoever waits.
            tokio::select! {
                () = shared.changed.notified() => {}
                () = shared.clock.sleep(pause.min(left)) => {}
            }
        }
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::new(QueueSettle::new(Arc::clone(&self.shared)))
    }

    async fn close(mut self: Box<Self>, deadline: Duration) -> Result<Leftover> {
        let shared = Arc::clone(&self.shared);
        self.give_back();
        let until = shared.clock.elapsed() + deadline;
        loop {
            let left = until.saturating_sub(shared.clock.elapsed());
            if shared.lock().hand.in_hand() == 0 || left.is_zero() {
                break;
            }
            tokio::select! {
                () = shared.changed.notified() => {}
                () = shared.clock.sleep(left) => {}
            }
        }
        let released = end(&shared, self.task.take()).await;
        self.link.leave(&self.shared);
        released.map(|released| Leftover { released })
    }
}

/// Ends a consumer: what is in its hand is released, and its lanes are given up, with what was settled written.
pub(super) async fn end<Q: Queues>(shared: &Shared<Q>, task: Option<Scope>) -> Result<usize> {
    let released = shared.lock().release();
    // Nothing stands in a line or writes from here on.
    drop(task);
    let lanes: Vec<_> = {
        let inner = shared.lock();
        inner.lanes.iter().map(|(lane, kept)| (*lane, kept.epoch, Arc::clone(&kept.link))).collect()
    };
    let closing = lanes.iter().map(|(lane, epoch, link)| owner::close(shared, *lane, *epoch, &**link));
    let closed = tokio::select! {
        closed = join_all(closing) => closed.into_iter().collect::<Result<()>>(),
        () = shared.clock.sleep(LAST_WRITE) => {
            Err(Error::new(code::TIMED_OUT, "what was settled last could not be written in time"))
        }
    };
    shared.lock().abandon();
    closed.map(|()| released)
}

impl<Q: Queues> Drop for QueueConsumer<Q> {
    /// A consumer that was not closed has crashed: the system gives what it had to others. What it has in hand is noted once
    /// more, as it would have been.
    fn drop(&mut self) {
        let Some(task) = self.task.take() else { return };
        let shared = Arc::clone(&self.shared);
        self.link.leave(&self.shared);
        self.link.spawn(async move {
            drop(task);
            let lanes: Vec<_> = {
                let inner = shared.lock();
                inner.lanes.iter().map(|(lane, kept)| (*lane, kept.epoch, Arc::clone(&kept.link))).collect()
            };
            let writing =
                lanes.iter().map(|(lane, epoch, link)| owner::write(&shared, *lane, *epoch, &**link));
            let _ = join_all(writing).await;
            shared.lock().abandon();
            Ok(())
        });
    }
}
