//! What a consumer over a log does as one over queues does: it says what there is to say, and has deliveries noted that are to
//! be noted before anybody sees them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::hand::Hand;
use crate::unsettled::End;
use tidegate_core::channel::Subscription;
use tidegate_core::clock::Clock;
use tidegate_core::error::{Error, Result, code};
use tidegate_core::lane::Lane;
use tidegate_core::port::{Delivery, Settled, Signal};

/// Looks again at least so often.
const LOOK: Duration = Duration::from_secs(1);

/// What a consumer shares with its settlers and its tasks.
pub(crate) trait Shared: Send + Sync {
    /// What its lock is for.
    type Memory: Memory;

    fn clock(&self) -> &dyn Clock;

    /// Something came, or changed.
    fn changed(&self) -> &Notify;

    fn lock(&self) -> MutexGuard<'_, Self::Memory>;

    /// Messages were given, and whether some of them are to be noted at once: wakes whoever has to do with that.
    fn given(&self, memory: &mut Self::Memory, is_urgent: bool);
}

/// Returns when nothing is in hand, at most after so long.
pub(crate) async fn settled<S: Shared>(shared: &S, deadline: Duration) {
    let until = shared.clock().elapsed() + deadline;
    loop {
        let left = until.saturating_sub(shared.clock().elapsed());
        if shared.lock().hand().in_hand() == 0 || left.is_zero() {
            return;
        }
        tokio::select! {
            () = shared.changed().notified() => {}
            () = shared.clock().sleep(left) => {}
        }
    }
}

/// The consumers of a broker, until it is closed.
#[derive(Debug)]
pub(crate) struct Consumers<S> {
    open: Mutex<Vec<Arc<S>>>,
    /// One left.
    left: Notify,
    is_closing: AtomicBool,
}

impl<S: Shared> Consumers<S> {
    pub(crate) fn new() -> Self {
        Self { open: Mutex::default(), left: Notify::new(), is_closing: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<S>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// `stopped` if the broker is being closed.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closing.load(Ordering::Acquire) {
            return Err(Error::new(code::STOPPED, "the broker is being closed"));
        }
        Ok(())
    }

    /// Begins with a consumer, unless the broker is being closed: nobody would end it.
    pub(crate) fn join(&self, shared: &Arc<S>) -> Result<()> {
        let mut open = self.lock();
        self.check_open()?;
        open.push(Arc::clone(shared));
        Ok(())
    }

    pub(crate) fn leave(&self, shared: &Arc<S>) {
        self.lock().retain(|known| !Arc::ptr_eq(known, shared));
        self.left.notify_waiters();
    }

    /// Closes: tells each that it is to end, and waits until all have left, at most until the deadline. Those that have not are to be
    /// cut off.
    pub(crate) async fn close(&self, clock: &dyn Clock, deadline: Duration) -> Vec<Arc<S>> {
        self.is_closing.store(true, Ordering::Release);
        let until = clock.elapsed() + deadline;
        for shared in &*self.lock() {
            shared.lock().finish().get_or_insert(Finish::Drained);
            shared.changed().notify_one();
        }
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            let rest = until.saturating_sub(clock.elapsed());
            if self.lock().is_empty() || rest.is_zero() {
                return std::mem::take(&mut *self.lock());
            }
            tokio::select! {
                () = left => {}
                () = clock.sleep(rest) => {}
            }
        }
    }
}

/// A consumer's memory.
pub(crate) trait Memory: Send {
    fn hand(&mut self) -> &mut Hand;

    /// How the consumer ended, if it did.
    fn finish(&mut self) -> &mut Option<Finish>;

    /// What a task met that will be so when it is tried again, once.
    fn failed(&mut self) -> Option<Error>;

    /// Says that a lane is not as it was written, and which writing will have what is now.
    fn touch(&mut self, lane: Lane) -> u64;

    /// How many deliveries of a lane are to be noted before they are given: behind an owner who died with the lane in its hand.
    fn careful(&mut self, lane: Lane) -> Option<&mut usize>;

    /// Waits for what is noted with a writing of a lane.
    fn wait_for_note(&mut self, lane: Lane, number: u64) -> oneshot::Receiver<Written>;
}

/// Why nothing more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The subscription is gone.
    Gone,
    /// The channel, or its messages, are gone.
    ChannelGone,
    /// The broker is being closed here.
    Drained,
}

/// How a writing ended that somebody waits for.
#[derive(Debug)]
pub(crate) enum Written {
    Done,
    /// It was not begun, or somebody else has the lane: the message comes again.
    Lost,
    Unknown(Error),
}

impl Written {
    /// What came of a writing, also when nobody is there any more to say so.
    pub(crate) fn told(told: Result<Self, oneshot::error::RecvError>) -> Self {
        told.unwrap_or_else(|_| Self::Unknown(Error::new(code::STOPPED, "the consumer was dropped")))
    }

    /// What a settlement is told that belongs to it.
    pub(crate) fn settled(&self) -> Settled {
        match self {
            Self::Done => Settled::Done,
            Self::Lost => Settled::Lost,
            Self::Unknown(error) => Settled::Unknown(error.again()),
        }
    }
}

/// What a consumer has begun that a later call goes on with, should one be dropped.
#[derive(Debug)]
pub(crate) struct Receiving {
    subscription: Subscription,
    noting: Option<Noting>,
    ready: VecDeque<Delivery>,
}

/// Deliveries that are being noted as in hand, before anybody sees them.
#[derive(Debug)]
struct Noting {
    deliveries: Vec<Delivery>,
    waits: VecDeque<oneshot::Receiver<Written>>,
}

impl Noting {
    /// Returns when all are noted. Whatever came of it: what is still this consumer's is given then.
    async fn noted(&mut self) {
        while let Some(wait) = self.waits.front_mut() {
            let _ = wait.await;
            self.waits.pop_front();
        }
    }
}

enum Step {
    Say(Signal),
    Wait(Duration),
}

impl Receiving {
    pub(crate) fn new(subscription: &Subscription) -> Self {
        Self { subscription: subscription.clone(), noting: None, ready: VecDeque::new() }
    }

    pub(crate) async fn receive<S: Shared>(
        &mut self,
        shared: &S,
        max: usize,
        wait: Duration,
        out: &mut Vec<Delivery>,
    ) -> Result<Signal> {
        let until = shared.clock().elapsed() + wait;
        loop {
            let pause = match self.step(shared, max, out)? {
                Step::Say(signal) => return Ok(signal),
                Step::Wait(pause) => pause,
            };
            let left = until.saturating_sub(shared.clock().elapsed());
            if left.is_zero() {
                return Ok(Signal::Messages);
            }
            let noted = async {
                match &mut self.noting {
                    Some(noting) => noting.noted().await,
                    None => std::future::pending().await,
                }
            };
            // What changed since the look is kept for whoever waits.
            let is_noted = tokio::select! {
                () = noted => true,
                () = shared.changed().notified() => false,
                () = shared.clock().sleep(pause.min(left)) => false,
            };
            if is_noted && let Some(noting) = self.noting.take() {
                self.ready.extend(noting.deliveries);
            }
        }
    }

    /// What there is to say now, or when to look again.
    fn step<S: Shared>(&mut self, shared: &S, max: usize, out: &mut Vec<Delivery>) -> Result<Step> {
        let now = shared.clock().now();
        let mut memory = shared.lock();
        let before = out.len();
        while out.len() - before < max
            && let Some(delivery) = self.ready.pop_front()
        {
            if memory.hand().confirm(delivery.token) {
                out.push(delivery);
            }
        }
        if out.len() > before {
            return Ok(Step::Say(Signal::Messages));
        }
        if let Some(signal) = memory.hand().news() {
            return Ok(Step::Say(signal));
        }
        if let Some(error) = memory.failed() {
            return Err(error);
        }
        if let Some(finish) = *memory.finish() {
            return Ok(Step::Say(self.last(finish)));
        }
        // One noting at a time: what is given in the meantime could overtake it.
        if self.noting.is_some() {
            return Ok(Step::Wait(LOOK));
        }
        memory.hand().give(now, max, out);
        if out.len() > before {
            self.noting = note(&mut *memory, before, out);
            shared.given(&mut memory, self.noting.is_some());
        }
        if out.len() > before {
            return Ok(Step::Say(Signal::Messages));
        }
        let due = memory.hand().next_due().map(|due| u64::try_from(due - now).unwrap_or(0));
        Ok(Step::Wait(due.map_or(LOOK, Duration::from_micros).min(LOOK)))
    }

    fn last(&self, finish: Finish) -> Signal {
        let Subscription { name, channel, .. } = &self.subscription;
        match finish {
            Finish::Gone => {
                let text = format!("{name} of {channel} is gone");
                Signal::Cancelled(Error::new(code::SUBSCRIPTION_GONE, text))
            }
            Finish::ChannelGone => {
                let text = format!("channel {channel} is gone");
                Signal::Cancelled(Error::new(code::CHANNEL_MISSING, text))
            }
            Finish::Drained => Signal::Drained,
        }
    }

    /// Gives back what no call has returned: nobody has seen it.
    pub(crate) fn give_back(&mut self, memory: &mut impl Memory) {
        let noted = self.noting.take().map(|noting| noting.deliveries).unwrap_or_default();
        for delivery in self.ready.drain(..).chain(noted) {
            if memory.hand().end(delivery.token, End::Untried).is_some() {
                memory.touch(delivery.token.lane);
            }
        }
    }
}

/// Says what was given of which lane. Of a lane whose owner died, what is given first is noted before anybody sees it, so
/// that a message that kills whoever handles it is found.
fn note(memory: &mut impl Memory, before: usize, out: &mut Vec<Delivery>) -> Option<Noting> {
    let lanes: BTreeSet<Lane> = out[before..].iter().map(|delivery| delivery.token.lane).collect();
    let mut waits = VecDeque::new();
    let mut careful = BTreeSet::new();
    for lane in lanes {
        let number = memory.touch(lane);
        let Some(left) = memory.careful(lane).filter(|left| **left > 0) else { continue };
        let given = out[before..].iter().filter(|delivery| delivery.token.lane == lane).count();
        *left = left.saturating_sub(given);
        careful.insert(lane);
        waits.push_back(memory.wait_for_note(lane, number));
    }
    if careful.is_empty() {
        return None;
    }
    let given = out.split_off(before);
    let (deliveries, now) = given.into_iter().partition(|d| careful.contains(&d.token.lane));
    out.extend::<Vec<Delivery>>(now);
    Some(Noting { deliveries, waits })
}
