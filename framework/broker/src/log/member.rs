//! Keeps a consumer a member of its subscription: says that it lives, takes lanes and gives them up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use super::documents::{self, LaneRecord, Open, Read, micros};
use super::seating::{Mine, Seating, Taken, Tended, Watch};
use super::shared::{Kept, Shared};
use super::{Log, Reader};
use crate::hand::Fetched;
use crate::receiving::{Finish, Written};
use crate::unsettled::{Place, Unsettled};
use tidegate_core::error::{Error, Result, Verdict, code};
use tidegate_core::lane::Lane;

/// How often to look at the seats.
const LOOK: Duration = Duration::from_millis(100);
/// How many messages of a lane are read at once when it is taken.
const PIECE: usize = 1_000;
/// How many lanes are taken over at once.
const TAKEN_AT_ONCE: usize = 16;

/// One member, with what it has seen of the others.
pub(super) struct Membership<L: Log + ?Sized> {
    shared: Arc<Shared<L>>,
    watch: Watch,
    /// When the seats were written last.
    beat: Option<Duration>,
    /// Lanes are taken over beside: however much there is to be read, others are to see that this member lives.
    takings: JoinSet<(Taken, Result<()>)>,
    takeover: Arc<Takeover<L>>,
}

impl<L: Log + ?Sized> Membership<L> {
    pub(super) fn new(shared: Arc<Shared<L>>) -> Self {
        let takeover = Arc::new(Takeover {
            shared: Arc::clone(&shared),
            room: Semaphore::new(TAKEN_AT_ONCE),
            reader: tokio::sync::Mutex::default(),
        });
        Self { shared, watch: Watch::default(), beat: None, takings: JoinSet::new(), takeover }
    }

    /// Tends for ever, until the subscription is gone.
    pub(super) async fn keep(mut self) -> Result<()> {
        loop {
            while let Some(ended) = self.takings.try_join_next() {
                self.taken(ended);
            }
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

    /// A lane was taken over, or could not be: it is taken anew then, under another epoch.
    fn taken(&mut self, ended: std::result::Result<(Taken, Result<()>), JoinError>) {
        let Ok((taken, ended)) = ended else {
            // Which one that was nobody knows.
            return self.shared.lock().taking.clear();
        };
        let mut inner = self.shared.lock();
        if inner.taking.get(&taken.lane) == Some(&taken.epoch) {
            inner.taking.remove(&taken.lane);
        }
        drop(inner);
        if let Err(error) = ended {
            self.shared.failed(error, "a lane cannot be taken over now");
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
            let tended = seating.tend(shared.me, &mine, &mut self.watch, time, &shared.settings);
            self.tell(&tended, elapsed);
            let is_due =
                self.beat.is_none_or(|beat| elapsed.saturating_sub(beat) >= shared.settings.lease / 4);
            if !tended.is_changed && !is_due {
                return Ok(true);
            }
            seating.beat(shared.me);
            let value = documents::bytes(&seating)?;
            if shared.log.write(&shared.channel.name, &name, value, Some(revision)).await?.is_none() {
                continue;
            }
            self.beat = Some(begin);
            {
                let mut inner = shared.lock();
                inner.valid_until = begin + shared.settings.lease;
                inner.lose(tended.given_up, || Written::Lost);
                inner.taking.extend(tended.taken.iter().map(|taken| (taken.lane, taken.epoch)));
            }
            for taken in tended.taken {
                let takeover = Arc::clone(&self.takeover);
                self.takings.spawn(async move { (taken, takeover.take(taken).await) });
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
        // Of one that is being taken over nothing is in hand yet.
        let taking = |(lane, epoch): (&Lane, &u64)| {
            (*lane, Mine { epoch: *epoch, is_free: true, held_until: Duration::ZERO })
        };
        inner.taking.iter().map(taking).chain(inner.lanes.iter().map(mine)).collect()
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
}

/// Takes lanes over.
struct Takeover<L: Log + ?Sized> {
    shared: Arc<Shared<L>>,
    room: Semaphore,
    reader: tokio::sync::Mutex<Option<Box<dyn Reader>>>,
}

impl<L: Log + ?Sized> Takeover<L> {
    /// Takes a lane over, as it stands in its document.
    async fn take(&self, taken: Taken) -> Result<()> {
        let _room = self.room.acquire().await;
        let shared = &self.shared;
        let name = documents::lane(shared.subscription, taken.lane);
        let found: Option<Read<LaneRecord>> =
            documents::read(&*shared.log, &shared.channel.name, &name).await?;
        let Some(Read { record, revision }) = found.filter(|found| found.record.epoch < taken.epoch) else {
            return Ok(());
        };
        let messages = self.open_messages(taken.lane, &record).await?;
        let entry = |open: &Open| {
            let found = messages.binary_search_by_key(&open.place(), |fetched| fetched.place).ok()?;
            Some((open.place(), open.entry(messages[found].message.subject.clone())))
        };
        let unsettled = Unsettled::restore(record.read_to, record.open.iter().filter_map(entry));
        let value = documents::bytes(&LaneRecord::of(taken.epoch, 1, &unsettled))?;
        let low = record.low();
        let Some(revision) = shared.log.write(&shared.channel.name, &name, value, Some(revision)).await?
        else {
            return Ok(());
        };
        let mut inner = shared.lock();
        // It may be another one's by now.
        if inner.taking.get(&taken.lane) != Some(&taken.epoch) {
            return Ok(());
        }
        inner.taking.remove(&taken.lane);
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
    ///
    /// # Errors
    /// One that was not read may come still: a server that has it not yet from another one does not say so. Only one that does
    /// not come for as long as a lease, or behind which another one was read, is gone.
    async fn open_messages(&self, lane: Lane, record: &LaneRecord) -> Result<Vec<Fetched>> {
        let (messages, read_to) = self.read(lane, record).await?;
        let is_read =
            |place| messages.binary_search_by_key(&place, |fetched: &Fetched| fetched.place).is_ok();
        let missing: Vec<Place> =
            record.open.iter().map(Open::place).filter(|place| !is_read(*place)).collect();
        let channel = &self.shared.channel.name;
        let since = {
            let elapsed = self.shared.clock.elapsed();
            let mut inner = self.shared.lock();
            match missing.iter().find(|place| **place > read_to) {
                Some(place) => Some((*place, elapsed - *inner.missing.entry(lane).or_insert(elapsed))),
                None => inner.missing.remove(&lane).and(None),
            }
        };
        if let Some((place, since)) = since
            && since < self.shared.settings.lease
        {
            let text =
                format!("the message {place} of lane {} is not settled, and cannot be read now", lane.0);
            return Err(Error::new(code::UNREACHABLE, text).with("channel", channel));
        }
        for place in missing {
            tracing::error!(
                %channel,
                lane = lane.0,
                place,
                "a message that was not settled is not there any more: somebody else removed it, or the broker lost it"
            );
        }
        Ok(messages)
    }

    /// What can be read of them, and up to where there is nothing else.
    async fn read(&self, lane: Lane, record: &LaneRecord) -> Result<(Vec<Fetched>, Place)> {
        let (mut messages, mut out, mut read_to) = (Vec::new(), Vec::new(), 0);
        // What stands between those that are open need not be read.
        while let Some(next) = record.open.iter().map(Open::place).find(|place| *place > read_to) {
            let mut reader = self.reader.lock().await;
            let open = match &mut *reader {
                Some(open) => open,
                none => none.insert(self.shared.log.reader(&self.shared.channel).await?),
            };
            if let Err(error) = open.read(&[(lane, next - 1, PIECE)], Duration::ZERO, &mut out).await {
                *reader = None;
                return Err(error);
            }
            drop(reader);
            let Some((_, last)) = out.last() else { break };
            read_to = last.place;
            let is_open = |place| record.open.binary_search_by_key(&place, Open::place).is_ok();
            messages.extend(out.drain(..).map(|(_, fetched)| fetched).filter(|f| is_open(f.place)));
        }
        Ok((messages, read_to))
    }
}

/// Ends a membership: its seats are free. Repeatable.
///
/// # Errors
/// What kept it from being ended for as long as a lease: its seats are free by now all the same.
pub(super) async fn leave<L: Log + ?Sized>(shared: &Shared<L>) -> Result<()> {
    let name = documents::seats(shared.subscription);
    let until = shared.clock.elapsed() + shared.settings.lease;
    let mut last = None;
    while shared.clock.elapsed() < until {
        match leave_once(shared, &name).await {
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
async fn leave_once<L: Log + ?Sized>(shared: &Shared<L>, name: &str) -> Result<bool> {
    let found: Option<Read<Seating>> = documents::read(&*shared.log, &shared.channel.name, name).await?;
    let Some(Read { record: mut seating, revision }) = found else { return Ok(true) };
    seating.leave(shared.me);
    let value = documents::bytes(&seating)?;
    Ok(shared.log.write(&shared.channel.name, name, value, Some(revision)).await?.is_some())
}
