//! Keeps a consumer a member of its subscription: says that it lives, takes lanes and gives them up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::documents::{self, LaneRecord, Read, micros};
use super::seating::{Mine, Seating, Taken, Tended, Watch};
use super::shared::{Finish, Kept, Shared, Written};
use super::{Log, Reader};
use crate::error::{Error, Result, Verdict, code};
use crate::hand::Fetched;
use crate::lane::Lane;
use crate::seats::Member;
use crate::unsettled::Unsettled;

/// How often to look at the seats.
const LOOK: Duration = Duration::from_millis(100);
/// How many messages of a lane are read at once when it is taken.
const PIECE: usize = 1_000;

/// One member, with what it has seen of the others.
pub(super) struct Membership<L: Log + ?Sized> {
    shared: Arc<Shared<L>>,
    me: Member,
    watch: Watch,
    reader: Option<Box<dyn Reader>>,
    /// When the seats were written last.
    beat: Option<Duration>,
}

impl<L: Log + ?Sized> Membership<L> {
    pub(super) fn new(shared: Arc<Shared<L>>, me: Member) -> Self {
        Self { shared, me, watch: Watch::default(), reader: None, beat: None }
    }

    /// Tends for ever, until the subscription is gone.
    pub(super) async fn keep(mut self) -> Result<()> {
        loop {
            match self.tend().await {
                Ok(true) => {}
                Ok(false) => {
                    let mut inner = self.shared.lock();
                    inner.abandon();
                    inner.end = Some(Finish::Gone);
                    self.shared.changed.notify_one();
                    return Ok(());
                }
                Err(error) => self.shared.failed(error, "the seats cannot be looked at now"),
            }
            if self.shared.is_over() {
                return Ok(());
            }
            tokio::select! {
                () = self.shared.clock.sleep(LOOK) => {}
                () = self.shared.tending.notified() => {}
            }
        }
    }

    /// Looks at the seats and does what is to be done; false if the subscription is gone.
    async fn tend(&mut self) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        let name = documents::seats(shared.subscription);
        loop {
            let begin = shared.clock.elapsed();
            let found: Option<Read<Seating>> =
                documents::read(&*shared.log, &shared.channel.name, &name).await?;
            let Some(Read { record: mut seating, revision }) = found else { return Ok(false) };
            let mine = self.mine();
            let elapsed = shared.clock.elapsed();
            let time = (elapsed, shared.clock.now());
            let tended = seating.tend(self.me, &mine, &mut self.watch, time, &shared.settings);
            self.tell(&tended, elapsed);
            let is_due =
                self.beat.is_none_or(|beat| elapsed.saturating_sub(beat) >= shared.settings.lease / 4);
            if !tended.is_changed && !is_due {
                return Ok(true);
            }
            seating.beat(self.me);
            let value = documents::bytes(&seating)?;
            if shared.log.write(&shared.channel.name, &name, value, Some(revision)).await?.is_none() {
                continue;
            }
            self.beat = Some(begin);
            {
                let mut inner = shared.lock();
                inner.valid_until = begin + shared.settings.lease;
                inner.lose(tended.given_up, || Written::Lost);
            }
            for taken in tended.taken {
                self.take(taken).await?;
            }
            return Ok(true);
        }
    }

    fn mine(&self) -> BTreeMap<Lane, Mine> {
        let inner = self.shared.lock();
        let mine = |(lane, kept): (&Lane, &Kept)| {
            let in_hand = inner.hand.unsettled(*lane).map_or(0, Unsettled::in_hand);
            let is_free = in_hand == 0 && inner.is_written(*lane);
            (*lane, Mine { epoch: kept.epoch, is_free, held_until: kept.held_until })
        };
        inner.lanes.iter().map(mine).collect()
    }

    /// What is so whether this member writes or not.
    fn tell(&self, tended: &Tended, elapsed: Duration) {
        if tended.lost.is_empty() && tended.revoked.is_empty() {
            return;
        }
        let mut inner = self.shared.lock();
        inner.lose(tended.lost.iter().copied(), || Written::Lost);
        if let Some(until) = tended.revoked.iter().map(|(_, until)| *until).min() {
            let until = self.shared.clock.now() + micros(until.saturating_sub(elapsed));
            inner.hand.revoke(tended.revoked.iter().map(|(lane, _)| *lane), until);
        }
        drop(inner);
        self.shared.changed.notify_one();
    }

    /// Takes a lane over, as it stands in its document.
    async fn take(&mut self, taken: Taken) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let name = documents::lane(shared.subscription, taken.lane);
        let found: Option<Read<LaneRecord>> =
            documents::read(&*shared.log, &shared.channel.name, &name).await?;
        let Some(Read { record, revision }) = found.filter(|found| found.record.epoch < taken.epoch) else {
            return Ok(());
        };
        let messages = self.open_messages(taken.lane, &record).await?;
        let mut entries = Vec::new();
        for open in &record.open {
            match messages
                .binary_search_by_key(&open.place(), |fetched| fetched.place)
                .map(|at| &messages[at])
            {
                Ok(fetched) => entries.push((open.place(), open.entry(fetched.message.subject.clone()))),
                Err(_) => tracing::error!(
                    channel = %shared.channel.name,
                    lane = taken.lane.0,
                    place = open.place(),
                    "a message that was not settled is not there any more: somebody else removed it, or the broker lost it"
                ),
            }
        }
        let unsettled = Unsettled::restore(record.read_to, entries);
        let value = documents::bytes(&LaneRecord::of(taken.epoch, 1, &unsettled))?;
        let low = record.low();
        let Some(revision) = shared.log.write(&shared.channel.name, &name, value, Some(revision)).await?
        else {
            return Ok(());
        };
        let mut inner = shared.lock();
        inner.hand.gain(taken.lane, taken.epoch, unsettled, messages);
        let careful = if taken.by_force { inner.hand.window() } else { 0 };
        let kept = Kept {
            epoch: taken.epoch,
            revision,
            written: 1,
            number: 1,
            low,
            tidied: 0,
            held_until: Duration::ZERO,
            careful,
        };
        inner.lanes.insert(taken.lane, kept);
        drop(inner);
        shared.reading.notify_one();
        shared.changed.notify_one();
        Ok(())
    }

    /// The messages of a lane that were given and are not settled.
    async fn open_messages(&mut self, lane: Lane, record: &LaneRecord) -> Result<Vec<Fetched>> {
        let mut messages = Vec::new();
        let Some(mut after) = record.open.first().map(|open| open.place() - 1) else { return Ok(messages) };
        let last = record.open.last().map_or(after, |open| open.place());
        let mut out = Vec::new();
        while after < last {
            let reader = match &mut self.reader {
                Some(reader) => reader,
                none => none.insert(self.shared.log.reader(&self.shared.channel).await?),
            };
            if let Err(error) = reader.read(&[(lane, after, PIECE)], Duration::ZERO, &mut out).await {
                self.reader = None;
                return Err(error);
            }
            let Some((_, end)) = out.last() else { break };
            after = end.place;
            let is_open = |place| record.open.binary_search_by_key(&place, |open| open.place()).is_ok();
            messages.extend(out.drain(..).map(|(_, fetched)| fetched).filter(|f| is_open(f.place)));
        }
        Ok(messages)
    }
}

/// Ends a membership: its seats are free. Repeatable.
///
/// # Errors
/// What kept it from being ended for as long as a lease: its seats are free by now all the same.
pub(super) async fn leave<L: Log + ?Sized>(shared: &Shared<L>, me: Member) -> Result<()> {
    let name = documents::seats(shared.subscription);
    let until = shared.clock.elapsed() + shared.settings.lease;
    let mut last = None;
    while shared.clock.elapsed() < until {
        match leave_once(shared, me, &name).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if error.verdict() == Verdict::Never => return Err(error),
            Err(error) => {
                last = Some(error);
                shared.clock.sleep(LOOK).await;
            }
        }
    }
    let text = "the membership could not be ended in time";
    Err(last.unwrap_or_else(|| Error::new(code::TIMED_OUT, text)))
}

/// False if somebody else wrote meanwhile.
async fn leave_once<L: Log + ?Sized>(shared: &Shared<L>, me: Member, name: &str) -> Result<bool> {
    let found: Option<Read<Seating>> = documents::read(&*shared.log, &shared.channel.name, name).await?;
    let Some(Read { record: mut seating, revision }) = found else { return Ok(true) };
    seating.leave(me);
    let value = documents::bytes(&seating)?;
    Ok(shared.log.write(&shared.channel.name, name, value, Some(revision)).await?.is_some())
}
