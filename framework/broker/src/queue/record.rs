//! What stands in the record of a channel, and in the book of a lane.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use xxhash_rust::xxh3::Xxh3Default;

use super::Queues;
use super::slot::Slot;
use crate::hand::Hand;
use crate::settings::Settings;
use tidegate_core::channel::{Channel, Difference, Name};
use tidegate_core::clock::Clock;
use tidegate_core::error::{Error, Result, code};
use tidegate_core::lane::Lane;
use tidegate_core::message::Message;

/// How long a record may be held by others. Whoever makes the queues of many lanes takes its time.
const HELD_MAX: Duration = Duration::from_secs(30);
/// How old a record may be where a little later is good enough.
const RECENT: Duration = Duration::from_secs(1);
/// Before a record is taken anew whose connection was lost: it was lost before, or another member of the process has lost it.
const TAKE_PAUSES: [Duration; 2] = [Duration::ZERO, Duration::from_millis(100)];

/// A channel and its subscriptions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChannelRecord {
    pub(super) channel: Channel,
    /// Their numbers, by name. A subscription that is registered again has another one.
    pub(super) subscriptions: BTreeMap<Name, u64>,
    /// Those that are being made or removed. Whoever finds some here is to remove what is there of them: the one who was at it
    /// is gone, since the record is held meanwhile.
    pub(super) half: BTreeSet<Name>,
    /// The next number.
    pub(super) next: u64,
    /// When a kill of the system leaves everything that was made until now, in microseconds since 1970.
    pub(super) ripe_at: i64,
}

impl ChannelRecord {
    fn new(channel: &Channel) -> Self {
        let (subscriptions, half) = (BTreeMap::new(), BTreeSet::new());
        Self { channel: channel.clone(), subscriptions, half, next: 1, ripe_at: 0 }
    }
}

/// A system of queues, and the records of the channels in it.
#[derive(Debug)]
pub(super) struct System<Q: ?Sized> {
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    /// Records as they were found last, and when.
    seen: Mutex<HashMap<Name, (Duration, ChannelRecord)>>,
    pub(super) queues: Arc<Q>,
}

/// The record of a channel, held.
pub(super) struct Held<'a, Q: Queues + ?Sized> {
    system: &'a System<Q>,
    pub(super) record: ChannelRecord,
    slot: Slot,
}

impl<Q: Queues + ?Sized> Held<'_, Q> {
    /// Registers a subscription if it is not: its number.
    pub(super) async fn subscribe(&mut self, name: &Name) -> Result<u64> {
        self.tidy().await?;
        if let Some(number) = self.record.subscriptions.get(name) {
            return Ok(*number);
        }
        self.record.half.insert(name.clone());
        self.write().await?;
        self.system.queues.subscribe(&self.record.channel, name).await?;
        let number = self.record.next;
        self.record.next += 1;
        self.record.half.remove(name);
        self.record.subscriptions.insert(name.clone(), number);
        self.young();
        self.write().await?;
        Ok(number)
    }

    /// Removes a subscription, if it is there.
    pub(super) async fn unsubscribe(&mut self, name: &Name) -> Result<()> {
        if self.record.subscriptions.remove(name).is_some() {
            self.record.half.insert(name.clone());
            self.write().await?;
        }
        self.tidy().await
    }

    /// Removes what is half done.
    async fn tidy(&mut self) -> Result<()> {
        if self.record.half.is_empty() {
            return Ok(());
        }
        for name in &self.record.half {
            self.system.queues.unsubscribe(&self.record.channel, name).await?;
        }
        self.record.half.clear();
        self.write().await
    }

    /// Something was made just now.
    fn young(&mut self) {
        self.record.ripe_at =
            self.system.clock.now().saturating_add(micros(self.system.queues.ripens_after()));
    }

    async fn write(&mut self) -> Result<()> {
        self.slot.write(bytes(&self.record)?).await
    }

    /// Gives the record back.
    pub(super) async fn leave(self) -> Result<ChannelRecord> {
        self.slot.leave().await?;
        self.system.saw(&self.record);
        Ok(self.record)
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

impl<Q: Queues + ?Sized> System<Q> {
    pub(super) fn new(queues: Arc<Q>, settings: Settings, clock: Arc<dyn Clock>) -> Self {
        Self { settings, clock, seen: Mutex::default(), queues }
    }

    fn saw(&self, record: &ChannelRecord) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(record.channel.name.clone(), (self.clock.elapsed(), record.clone()));
    }

    /// The slot of a channel's record, held; `None` if there is no such channel. Who takes it does nothing by that: a connection
    /// of which nobody knew that it is lost is no reason to fail.
    async fn slot(&self, name: &Name) -> Result<Option<Slot>> {
        let mut pauses = TAKE_PAUSES.iter();
        let taken = loop {
            match self.take(name).await {
                Err(error) if error.code() == code::CONNECTION_LOST => match pauses.next() {
                    Some(pause) => self.clock.sleep(*pause).await,
                    None => break Err(error),
                },
                taken => break taken,
            }
        };
        taken.map_err(|error| error.with("channel", name))
    }

    async fn take(&self, name: &Name) -> Result<Option<Slot>> {
        let Some(line) = self.queues.line(name).await? else { return Ok(None) };
        Slot::take(line, Arc::clone(&self.clock), Some(HELD_MAX), &Notify::new()).await.map(Some)
    }

    /// Takes the record of a channel. A slot in which nothing was ever written is no channel: whoever made it went away in the
    /// midst of it.
    pub(super) async fn hold(&self, name: &Name) -> Result<Option<Held<'_, Q>>> {
        let Some(slot) = self.slot(name).await? else { return Ok(None) };
        if slot.value().is_empty() {
            slot.leave().await?;
            return Ok(None);
        }
        let record = serde_json::from_slice(slot.value()).map_err(|error| {
            Error::new(code::STATE_NEWER, format!("the record of channel {name} cannot be read"))
                .hint("it was written by a newer version, or by somebody else")
                .because(error)
        })?;
        Ok(Some(Held { system: self, record, slot }))
    }

    /// Makes a channel, unless somebody else has made it by now: its record.
    pub(super) async fn create(&self, channel: &Channel) -> Result<ChannelRecord> {
        self.queues.create(channel).await?;
        let slot = self.slot(&channel.name).await?.ok_or_else(|| missing(&channel.name))?;
        if !slot.value().is_empty() {
            slot.leave().await?;
            return self.find(&channel.name).await?.ok_or_else(|| missing(&channel.name));
        }
        let mut held = Held { system: self, record: ChannelRecord::new(channel), slot };
        held.young();
        held.write().await?;
        held.leave().await
    }

    /// The record of a channel, if there is such a channel.
    pub(super) async fn find(&self, name: &Name) -> Result<Option<ChannelRecord>> {
        match self.hold(name).await? {
            Some(held) => held.leave().await.map(Some),
            None => Ok(None),
        }
    }

    /// The same as it was a moment ago: nobody has to hold it for that.
    pub(super) async fn find_recent(&self, name: &Name) -> Result<Option<ChannelRecord>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        match seen {
            Some((when, record)) if self.clock.elapsed().saturating_sub(when) < RECENT => Ok(Some(record)),
            _ => self.find(name).await,
        }
    }

    /// Returns when a kill of the system leaves what a record names, whoever made it.
    pub(super) async fn ripen(&self, record: &ChannelRecord) {
        let rest = record.ripe_at.saturating_sub(self.clock.now());
        let rest = Duration::from_micros(u64::try_from(rest).unwrap_or(0));
        // The clock of whoever made it may be another one.
        let rest = rest.min(self.queues.ripens_after());
        if !rest.is_zero() {
            self.clock.sleep(rest).await;
        }
    }
}

pub(super) fn missing(name: &Name) -> Error {
    Difference::ChannelMissing(name.clone()).error()
}

pub(super) fn bytes(record: &impl Serialize) -> Result<Bytes> {
    let text = serde_json::to_vec(record);
    Ok(text.map_err(|error| Error::new(code::INTERNAL, "a record cannot be written").because(error))?.into())
}

/// What the owner of a lane noted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Book {
    /// Whether the owner gave the lane up, and did not just go away.
    pub(super) is_closed: bool,
    /// What of the lane was tried and is not settled.
    tried: Vec<(u64, Tried)>,
}

/// What is known of a message that was tried: how often in vain, until when it is put off (microseconds since 1970), and
/// whether it is in hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tried(pub(super) u32, pub(super) i64, pub(super) bool);

impl Tried {
    /// How often it was tried in vain, for the next owner: what is in hand of one who is gone was tried.
    pub(super) fn attempts(self) -> u32 {
        self.0.saturating_add(u32::from(self.2))
    }
}

impl Book {
    /// What is to be noted of a lane; with what an owner before noted of messages that have not come yet.
    pub(super) fn of(hand: &Hand, lane: Lane, before: &HashMap<u64, Tried>, is_closed: bool) -> Self {
        let tried = hand
            .tried(lane)
            .map(|(message, attempts, due, is_in_hand)| (name(message), Tried(attempts, due, is_in_hand)));
        let before = before.iter().map(|(name, tried)| (*name, *tried));
        Self { is_closed, tried: tried.chain(before).collect() }
    }

    pub(super) fn read(value: &[u8]) -> Result<Self> {
        if value.is_empty() {
            return Ok(Self { is_closed: true, tried: Vec::new() });
        }
        serde_json::from_slice(value).map_err(|error| {
            Error::new(code::STATE_NEWER, "the book of a lane cannot be read")
                .hint("it was written by a newer version, or by somebody else")
                .because(error)
        })
    }

    pub(super) fn tried(self) -> HashMap<u64, Tried> {
        self.tried.into_iter().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tried.is_empty()
    }
}

/// A short name of a message. Messages that share one by chance share their attempts.
pub(super) fn name(message: &Message) -> u64 {
    hash(&message.source, message.dedupe_id().as_bytes())
}

/// A number in the place of a message's place ([`Message::undecodable`]), where queues have none that lasts: the same for the same
/// message, whoever reads it. Two that have one id, or none, and the same body share it.
pub fn place_of_undecodable(id: &str, body: &[u8]) -> u64 {
    hash(id, body)
}

fn hash(first: &str, second: &[u8]) -> u64 {
    let mut hash = Xxh3Default::new();
    hash.update(&(first.len() as u64).to_le_bytes());
    hash.update(first.as_bytes());
    hash.update(second);
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand::Fetched;
    use crate::unsettled::{End, Unsettled};
    use tidegate_core::port::Attempt;

    #[test]
    fn a_book_says_what_was_tried_and_what_is_in_hand() {
        let mut hand = Hand::new(10);
        hand.gain(Lane(0), 1, Unsettled::new(0), Vec::new());
        for place in 1..=3 {
            let message = Arc::new(Message::with_id(place.to_string(), "s", "t"));
            let attempt = Attempt::AtLeast(1);
            hand.arrive(
                Lane(0),
                1,
                Fetched { place, message, stored_at: None, attempt, has_position: false },
            );
        }
        let mut out = Vec::new();
        hand.give(0, 2, &mut out);
        hand.end(out[0].token, End::Failed { due: 70 });
        let book = Book::of(&hand, Lane(0), &HashMap::from([(7, Tried(4, 0, false))]), false);
        let found = Book::read(&bytes(&book).unwrap()).unwrap();
        assert_eq!(found, book);
        let tried = found.tried();
        let of = |id: &str| tried.get(&name(&Message::with_id(id, "s", "t"))).copied();
        assert_eq!((of("1"), of("2"), of("3")), (Some(Tried(1, 70, false)), Some(Tried(0, 0, true)), None));
        assert_eq!(of("2").map(Tried::attempts), Some(1), "it was in the hand of somebody who is gone");
        assert_eq!(tried.get(&7), Some(&Tried(4, 0, false)));
        assert!(Book::read(b"").unwrap().is_closed && Book::read(b"x").is_err());
    }
}
