//! What a consumer, its settlers and its tasks share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::Log;
use super::documents::LaneRecord;
use crate::hand::Hand;
use crate::receiving::{self, Finish, Memory, Written};
use crate::seats::Member;
use crate::settings::Settings;
use crate::unsettled::{End, Place};
use tidegate_core::channel::Channel;
use tidegate_core::clock::Clock;
use tidegate_core::error::{Error, Result, Verdict, code};
use tidegate_core::lane::Lane;
use tidegate_core::scope::Scope;

/// A consumer's memory, and what wakes its tasks.
#[derive(Debug)]
pub(super) struct Shared<L: ?Sized> {
    pub(super) channel: Channel,
    /// The number of the subscription.
    pub(super) subscription: u64,
    /// The consumer, as its subscription knows it.
    pub(super) me: Member,
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
    /// What the consumer does beside, until it ends.
    tasks: Mutex<Scope>,
    /// Something came, or changed: for whoever receives, or waits for the end.
    pub(super) changed: Notify,
    /// Other lanes are to be read, or there is room again.
    pub(super) reading: Notify,
    /// There is something to write, and somebody waits for it.
    pub(super) writing: Notify,
    pub(super) urgent: Notify,
    /// There is something to do about seats.
    pub(super) tending: Notify,
    pub(super) log: Arc<L>,
}

/// What the lock is for.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) hand: Hand,
    pub(super) lanes: BTreeMap<Lane, Kept>,
    /// Lanes that are being taken over, each under its epoch.
    pub(super) taking: BTreeMap<Lane, u64>,
    /// Since when a message that is not settled cannot be read where a lane is being taken over.
    pub(super) missing: BTreeMap<Lane, Duration>,
    /// Who waits for which writing.
    waiters: Vec<Waiter>,
    /// What is being written: its end is not known.
    writing: Vec<Writing>,
    /// Until when others take this member for alive, whatever it does.
    pub(super) valid_until: Duration,
    /// How the consumer ended, if it did.
    pub(super) end: Option<Finish>,
    /// What a task met that will be so when it is tried again: for whoever receives next.
    pub(super) failed: Option<Error>,
    /// A lane was passed over for lack of room when messages were fetched last.
    pub(super) is_starved: bool,
}

/// What is written of a lane.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) epoch: u64,
    /// The revision of its document.
    pub(super) revision: u64,
    /// The number of the last writing that is durable, and of the one that everything until now belongs to.
    pub(super) written: u64,
    pub(super) number: u64,
    /// Up to where everything is settled, durably; and up to where it was tidied.
    pub(super) low: Place,
    pub(super) tidied: Place,
    /// Until when the lane is to be kept.
    pub(super) held_until: Duration,
    /// How many deliveries are to be written before they are given: behind an owner who died with the lane in its hand.
    pub(super) careful: usize,
}

/// A writing of a lane, under one ownership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Writing {
    pub(super) lane: Lane,
    pub(super) epoch: u64,
    pub(super) number: u64,
}

impl Writing {
    /// Whether it is of the same lane under the same ownership.
    fn is_of(self, other: Writing) -> bool {
        (self.lane, self.epoch) == (other.lane, other.epoch)
    }
}

/// A writing that is to be done.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) writing: Writing,
    /// What is written.
    pub(super) record: LaneRecord,
    /// The revision before it.
    pub(super) revision: u64,
    /// An earlier one was dropped before its end.
    pub(super) is_in_doubt: bool,
}

/// Somebody who waits until a writing is durable.
#[derive(Debug)]
struct Waiter {
    what: Writing,
    tell: oneshot::Sender<Written>,
}

impl<L: Log + ?Sized> Shared<L> {
    pub(super) fn new(
        log: Arc<L>,
        channel: Channel,
        (subscription, me): (u64, Member),
        window: usize,
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let inner = Inner {
            hand: Hand::new(window),
            lanes: BTreeMap::new(),
            taking: BTreeMap::new(),
            missing: BTreeMap::new(),
            waiters: Vec::new(),
            writing: Vec::new(),
            valid_until: Duration::ZERO,
            end: None,
            failed: None,
            is_starved: false,
        };
        Self {
            channel,
            subscription,
            me,
            settings,
            clock,
            inner: Mutex::new(inner),
            tasks: Mutex::default(),
            changed: Notify::new(),
            reading: Notify::new(),
            writing: Notify::new(),
            urgent: Notify::new(),
            tending: Notify::new(),
            log,
        }
    }

    /// Does something beside, until the consumer ends.
    pub(super) fn spawn(&self, task: impl Future<Output = Result<()>> + Send + 'static) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }

    /// Ends what is done beside; whether there was something.
    pub(super) fn stop(&self) -> bool {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        !tasks.is_empty()
    }

    /// Takes an error of a task. One that may pass is only noted: the task goes on. Without its channel the consumer ends.
    pub(super) fn failed(&self, error: Error, what: &'static str) {
        if error.code() == code::CHANNEL_MISSING {
            let mut inner = self.lock();
            inner.abandon();
            inner.end = Some(Finish::ChannelGone);
            self.changed.notify_one();
        } else if error.verdict() == Verdict::Never {
            self.lock().failed = Some(error);
            self.changed.notify_one();
        } else {
            tracing::debug!(%error, "{what}");
        }
    }

    /// Whether the channel is gone, so that there is nothing to do any more.
    pub(super) fn is_over(&self) -> bool {
        self.lock().end == Some(Finish::ChannelGone)
    }

    /// Locks what is shared. If others may have the lanes by now, since nothing was heard of this member for a lease, they
    /// are let go first.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let has_lanes = !inner.lanes.is_empty() || !inner.taking.is_empty();
        if has_lanes && self.clock.elapsed() > inner.valid_until {
            let what =
                "the broker could not be reached for as long as a lease, so that others may have the lanes";
            tracing::warn!(channel = %self.channel.name, "{what}");
            inner.lose_all(|| Written::Unknown(Error::new(code::TIMED_OUT, what)));
            self.changed.notify_one();
        }
        inner
    }
}

impl<L: Log + ?Sized> receiving::Shared for Shared<L> {
    type Memory = Inner;

    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    fn changed(&self) -> &Notify {
        &self.changed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        Self::lock(self)
    }

    fn given(&self, memory: &mut Inner, is_urgent: bool) {
        self.writing.notify_one();
        if is_urgent {
            self.urgent.notify_one();
        }
        if std::mem::take(&mut memory.is_starved) {
            self.reading.notify_one();
        }
    }
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
        self.wait(lane, number)
    }
}

impl Inner {
    /// Forgets lanes that are somebody else's.
    pub(super) fn lose(&mut self, lanes: impl IntoIterator<Item = Lane>, answer: impl Fn() -> Written) {
        let lanes: Vec<Lane> = lanes
            .into_iter()
            .inspect(|lane| _ = self.taking.remove(lane))
            .filter(|lane| self.lanes.remove(lane).is_some())
            .collect();
        self.hand.lose(lanes.iter().copied());
        for lane in lanes {
            // Of what is being written the end will tell.
            let writing = self.writing.iter().find(|writing| writing.lane == lane).copied();
            let is_open = |what: Writing| {
                writing.is_some_and(|writing| writing.epoch == what.epoch && what.number <= writing.number)
            };
            self.answer(|what| (what.lane == lane && !is_open(what)).then(&answer));
        }
    }

    /// Forgets all lanes.
    fn lose_all(&mut self, answer: impl Fn() -> Written) {
        let lanes: Vec<Lane> = self.lanes.keys().chain(self.taking.keys()).copied().collect();
        self.lose(lanes, answer);
    }

    /// Says that a lane is not as it was written, and which writing will have what is now.
    pub(super) fn touch(&mut self, lane: Lane) -> u64 {
        self.lanes.get_mut(&lane).map_or(0, |kept| {
            kept.number += 1;
            kept.number
        })
    }

    /// Whether everything of a lane is durable.
    pub(super) fn is_written(&self, lane: Lane) -> bool {
        self.lanes.get(&lane).is_none_or(|kept| kept.written == kept.number)
    }

    /// Begins to write every lane that is not as it was written.
    pub(super) fn begin(&mut self) -> Vec<Begun> {
        let mut begun = Vec::new();
        for (lane, kept) in self.lanes.iter().filter(|(_, kept)| kept.written != kept.number) {
            let Some(unsettled) = self.hand.unsettled(*lane) else { continue };
            let writing = Writing { lane: *lane, epoch: kept.epoch, number: kept.number };
            begun.push(Begun {
                writing,
                record: LaneRecord::of(kept.epoch, kept.number, unsettled),
                revision: kept.revision,
                is_in_doubt: self.writing.iter().any(|left| left.is_of(writing)),
            });
        }
        self.writing.extend(begun.iter().map(|begun| begun.writing));
        begun
    }

    /// Ends a writing, and with it what was left of those before; with what those are told who wait for it, `None` if it
    /// is to be tried again.
    pub(super) fn end(&mut self, writing: Writing, answer: Option<impl Fn() -> Written>) {
        let is_of_it = |what: Writing| what.is_of(writing) && what.number <= writing.number;
        self.writing.retain(|known| !is_of_it(*known));
        let Some(answer) = answer else { return };
        self.answer(|what| is_of_it(what).then(&answer));
    }

    /// Waits for a writing of a lane.
    pub(super) fn wait(&mut self, lane: Lane, number: u64) -> oneshot::Receiver<Written> {
        let (tell, told) = oneshot::channel();
        match self.lanes.get(&lane) {
            Some(kept) => {
                let what = Writing { lane, epoch: kept.epoch, number };
                self.waiters.push(Waiter { what, tell });
            }
            None => _ = tell.send(Written::Lost),
        }
        told
    }

    /// Releases everything that is in hand, to be written; how much it was.
    pub(super) fn release(&mut self) -> usize {
        let released = self.hand.end_all(End::Untried);
        self.lanes.values_mut().for_each(|kept| kept.number += 1);
        released
    }

    /// Forgets everything: nobody writes any more.
    pub(super) fn abandon(&mut self) {
        self.writing.clear();
        self.answer(|_| Some(Written::Unknown(Error::new(code::STOPPED, "the consumer was dropped"))));
        self.lose_all(|| Written::Lost);
    }

    /// Tells those who wait for what there is an answer for.
    fn answer(&mut self, answer: impl Fn(Writing) -> Option<Written>) {
        let mut at = 0;
        while let Some(waiter) = self.waiters.get(at) {
            match answer(waiter.what) {
                Some(written) => _ = self.waiters.swap_remove(at).tell.send(written),
                None => at += 1,
            }
        }
    }
}
