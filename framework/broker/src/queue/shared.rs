//! What a consumer, its settlers and its task share.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};

use super::record::{Book, System, Tried};
use super::{Link, Queues};
use crate::hand::Hand;
use crate::receiving::{self, Finish, Memory, Written};
use crate::unsettled::{End, Place};
use tidegate_core::channel::{Channel, Name, Subscription};
use tidegate_core::clock::Clock;
use tidegate_core::error::{Error, Verdict, code};
use tidegate_core::lane::Lane;

/// A consumer's memory, and what wakes its task.
#[derive(Debug)]
pub(super) struct Shared<Q: ?Sized> {
    pub(super) channel: Channel,
    pub(super) subscription: Name,
    /// The number of the subscription.
    pub(super) number: u64,
    inner: Mutex<Inner>,
    /// Something came, or changed: for whoever receives, or waits for the end.
    pub(super) changed: Notify,
    /// A lane was let go: for others that go as well.
    left: Notify,
    /// How the task is to end, once it is.
    pub(super) stop: watch::Sender<Option<Stop>>,
    /// Whether it has ended.
    pub(super) is_over: watch::Sender<bool>,
    pub(super) system: Arc<System<Q>>,
}

/// How a consumer's task ends. A writing that is under way is never given up for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Lanes are given up, with what was settled and tried written.
    Close,
    /// What was settled is written, and lanes are left as by a crash.
    Crash,
}

/// What the lock is for.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) hand: Hand,
    pub(super) lanes: BTreeMap<Lane, Kept>,
    waiters: Vec<Waiter>,
    /// The last ownership of each lane here.
    epochs: BTreeMap<Lane, u64>,
    /// How the consumer ended, if it did.
    pub(super) end: Option<Finish>,
    /// What the task met that will be so when it is tried again: for whoever receives next.
    pub(super) failed: Option<Error>,
}

/// A lane that this consumer has.
pub(super) struct Kept {
    pub(super) epoch: u64,
    /// Its queue, which whoever looks after the lane has.
    link: Weak<dyn Link>,
    /// The number of the last writing that is durable, of the one that is on its way, and of the one that everything until
    /// now belongs to.
    written: u64,
    writing: u64,
    number: u64,
    /// What is to be acknowledged with the next writing.
    acks: Vec<Place>,
    /// What an owner before noted of messages that have not come yet.
    pub(super) before: HashMap<u64, Tried>,
    /// Whether something stands in the book.
    is_noted: bool,
    /// When it goes, if another member is to have it; and until when it is to be kept.
    pub(super) revoked: Option<Duration>,
    pub(super) held_until: Duration,
    /// Whether a member that has too few stands in its line, and called lately.
    pub(super) is_called: bool,
    /// How many deliveries are to be noted before they are given: behind an owner who died with the lane in its hand.
    pub(super) careful: usize,
    pub(super) wakers: Arc<Wakers>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept")
            .field("epoch", &self.epoch)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// What wakes those who look after a lane.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    /// There is something to write, and somebody waits for it.
    pub(super) writing: Notify,
    pub(super) urgent: Notify,
    /// There is something to do about its going.
    pub(super) leaving: Notify,
}

/// A writing that is to be done.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) number: u64,
    pub(super) acks: Vec<Place>,
    /// What is to stand in the book, if that is something else.
    pub(super) book: Option<Book>,
}

/// Somebody who waits until a writing is durable.
#[derive(Debug)]
struct Waiter {
    lane: Lane,
    epoch: u64,
    number: u64,
    /// Whether it is about what is to be noted, and not about what is acknowledged.
    is_note: bool,
    tell: oneshot::Sender<Written>,
}

impl<Q: Queues + ?Sized> Shared<Q> {
    pub(super) fn new(
        system: Arc<System<Q>>,
        channel: Channel,
        subscription: &Subscription,
        number: u64,
    ) -> Self {
        let inner = Inner {
            hand: Hand::new(subscription.window),
            lanes: BTreeMap::new(),
            waiters: Vec::new(),
            epochs: BTreeMap::new(),
            end: None,
            failed: None,
        };
        Self {
            channel,
            subscription: subscription.name.clone(),
            number,
            inner: Mutex::new(inner),
            changed: Notify::new(),
            left: Notify::new(),
            stop: watch::Sender::default(),
            is_over: watch::Sender::default(),
            system,
        }
    }

    /// Has the task end, unless it is ending.
    pub(super) fn stop(&self, how: Stop) {
        self.stop.send_if_modified(|stop| stop.is_none() && stop.replace(how).is_none());
        let inner = self.lock();
        inner.lanes.values().for_each(|kept| kept.wakers.leaving.notify_one());
    }

    /// Returns when the task is to end.
    pub(super) async fn stopped(&self) {
        // The sender is here.
        let _ = self.stop.subscribe().wait_for(Option::is_some).await;
    }

    /// Lets a lane go that was had under this epoch, if it still is.
    pub(super) fn let_go(&self, lane: Lane, epoch: u64, why: &Error) {
        let mut inner = self.lock();
        if inner.kept(lane, epoch).is_some() {
            inner.lose([lane], why);
        }
        drop(inner);
        self.left.notify_waiters();
        self.changed.notify_one();
    }

    /// Returns when all lanes were let go.
    pub(super) async fn all_let_go(&self) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if self.lock().lanes.is_empty() {
                return;
            }
            left.await;
        }
    }

    /// Locks what is shared. Lanes whose connection is known to be lost are let go first.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let is_lost = |(_, kept): &(&Lane, &Kept)| !kept.link.upgrade().is_some_and(|link| link.is_open());
        let lost: Vec<Lane> = inner.lanes.iter().filter(is_lost).map(|(lane, _)| *lane).collect();
        if !lost.is_empty() {
            inner.lose(lost, &Error::new(code::CONNECTION_LOST, "the connection was lost"));
            self.changed.notify_one();
        }
        inner
    }

    /// Ends the consumer.
    pub(super) fn finish(&self, how: Finish) {
        let mut inner = self.lock();
        inner.abandon();
        inner.end = Some(how);
        self.changed.notify_one();
    }

    /// Takes an error of the task. One that may pass is only noted: the task goes on.
    pub(super) fn failed(&self, error: Error) {
        if error.verdict() == Verdict::Never {
            self.lock().failed = Some(error);
            self.changed.notify_one();
        } else {
            tracing::debug!(%error, channel = %self.channel.name, "the lanes cannot be had now");
        }
    }
}

impl<Q: Queues + ?Sized> receiving::Shared for Shared<Q> {
    type Memory = Inner;

    fn clock(&self) -> &dyn Clock {
        &*self.system.clock
    }

    fn changed(&self) -> &Notify {
        &self.changed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        Self::lock(self)
    }

    /// Whoever looks after a lane is woken by what is said of it.
    fn given(&self, _: &mut Inner, _: bool) {}
}

impl Memory for Inner {
    fn hand(&mut self) -> &mut Hand {
        &mut self.hand
    }

    fn finish(&mut self) -> &mut Option<Finish> {
        &mut self.end
    }

    fn failed(&mut self) -> Option<Error> {
        self.failed.take()
    }

    fn touch(&mut self, lane: Lane) -> u64 {
        Self::touch(self, lane)
    }

    fn careful(&mut self, lane: Lane) -> Option<&mut usize> {
        self.lanes.get_mut(&lane).map(|kept| &mut kept.careful)
    }

    fn wait_for_note(&mut self, lane: Lane, number: u64) -> oneshot::Receiver<Written> {
        if let Some(kept) = self.lanes.get(&lane) {
            kept.wakers.urgent.notify_one();
        }
        self.wait(lane, number, true)
    }
}

impl Inner {
    /// A lane is this consumer's from now on, with what was noted of it.
    pub(super) fn gain(
        &mut self,
        lane: Lane,
        holder: u64,
        link: &Arc<dyn Link>,
        book: Book,
    ) -> (u64, Arc<Wakers>) {
        let last = self.epochs.entry(lane).or_default();
        // The same again if nothing could be written.
        let epoch = holder.max(*last + 1);
        *last = epoch;
        self.hand.gain(lane, epoch, crate::unsettled::Unsettled::new(0), Vec::new());
        let careful = if book.is_closed { 0 } else { self.hand.window() };
        let wakers = Arc::<Wakers>::default();
        let kept = Kept {
            epoch,
            link: Arc::downgrade(link),
            written: 0,
            writing: 0,
            number: 0,
            acks: Vec::new(),
            is_noted: !book.is_empty() || !book.is_closed,
            before: book.tried(),
            revoked: None,
            held_until: Duration::ZERO,
            is_called: false,
            careful,
            wakers: Arc::clone(&wakers),
        };
        self.lanes.insert(lane, kept);
        (epoch, wakers)
    }

    /// A lane as it is under this ownership.
    pub(super) fn kept(&mut self, lane: Lane, epoch: u64) -> Option<&mut Kept> {
        self.lanes.get_mut(&lane).filter(|kept| kept.epoch == epoch)
    }

    /// Lanes are not this consumer's any more, or nobody knows. What is on its way is unknown; the rest was not begun.
    pub(super) fn lose(&mut self, lanes: impl IntoIterator<Item = Lane>, error: &Error) {
        for lane in lanes {
            let Some(kept) = self.lanes.remove(&lane) else { continue };
            self.answer(lane, kept.epoch, |waiter| {
                let is_begun = waiter.number <= kept.writing;
                Some(if is_begun { Written::Unknown(error.again()) } else { Written::Lost })
            });
            kept.wakers.leaving.notify_one();
            self.hand.lose([lane]);
        }
    }

    /// The connection of all lanes is lost; whether it had any.
    pub(super) fn lose_all(&mut self, error: &Error) {
        let lanes: Vec<Lane> = self.lanes.keys().copied().collect();
        self.lose(lanes, error);
    }

    /// Forgets everything: nobody writes any more.
    pub(super) fn abandon(&mut self) {
        self.lose_all(&Error::new(code::STOPPED, "the consumer was dropped"));
    }

    /// Says that a lane is not as it was noted, and which writing will have what is now.
    pub(super) fn touch(&mut self, lane: Lane) -> u64 {
        self.lanes.get_mut(&lane).map_or(0, |kept| {
            kept.number += 1;
            kept.wakers.writing.notify_one();
            kept.number
        })
    }

    /// Acknowledges a message with the next writing.
    pub(super) fn ack(&mut self, lane: Lane, place: Place) {
        if let Some(kept) = self.lanes.get_mut(&lane) {
            kept.acks.push(place);
        }
    }

    /// Whether everything of a lane is durable.
    pub(super) fn is_written(&self, lane: Lane) -> bool {
        self.lanes.get(&lane).is_none_or(|kept| kept.written == kept.number)
    }

    /// Begins to write what there is to write of a lane. A book in which nothing stands and nothing is to stand is left.
    pub(super) fn begin(&mut self, lane: Lane, epoch: u64, is_closing: bool) -> Option<Begun> {
        let kept = self.lanes.get_mut(&lane).filter(|kept| kept.epoch == epoch)?;
        if kept.written == kept.number && !is_closing {
            return None;
        }
        let book = Book::of(&self.hand, lane, &kept.before, is_closing);
        let book = (kept.is_noted || !book.is_empty()).then_some(book);
        kept.is_noted |= book.is_some();
        kept.writing = kept.number;
        Some(Begun { number: kept.number, acks: std::mem::take(&mut kept.acks), book })
    }

    /// A writing is durable; but for what is in the book, if the system took nothing then. What was noted before may stand
    /// there then.
    pub(super) fn end(&mut self, lane: Lane, epoch: u64, begun: &Begun, refused: Option<&Error>) {
        if let Some(kept) = self.kept(lane, epoch) {
            kept.written = begun.number;
            if let Some(book) = begun.book.as_ref().filter(|_| refused.is_none()) {
                kept.is_noted = !book.is_empty();
            }
            kept.wakers.leaving.notify_one();
        }
        self.answer(lane, epoch, |waiter| {
            (waiter.number <= begun.number).then(|| match refused {
                Some(error) if waiter.is_note => Written::Unknown(error.again()),
                _ => Written::Done,
            })
        });
    }

    /// Waits for a writing of a lane: for what is noted with it, or for what is acknowledged.
    pub(super) fn wait(&mut self, lane: Lane, number: u64, is_note: bool) -> oneshot::Receiver<Written> {
        let (tell, told) = oneshot::channel();
        match self.lanes.get(&lane) {
            Some(kept) => self.waiters.push(Waiter { lane, epoch: kept.epoch, number, is_note, tell }),
            None => _ = tell.send(Written::Lost),
        }
        told
    }

    /// Releases everything that is in hand, to be noted; how much it was.
    pub(super) fn release(&mut self) -> usize {
        let released = self.hand.end_all(End::Untried);
        let lanes: Vec<Lane> = self.lanes.keys().copied().collect();
        lanes.into_iter().for_each(|lane| _ = self.touch(lane));
        released
    }

    fn answer(&mut self, lane: Lane, epoch: u64, answer: impl Fn(&Waiter) -> Option<Written>) {
        let mut at = 0;
        while let Some(waiter) = self.waiters.get(at) {
            let is_of_it = (waiter.lane, waiter.epoch) == (lane, epoch);
            match is_of_it.then(|| answer(waiter)).flatten() {
                Some(written) => _ = self.waiters.swap_remove(at).tell.send(written),
                None => at += 1,
            }
        }
    }
}
