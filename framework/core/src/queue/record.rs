//! What stands in registers and books.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Queues, Register};
use crate::channel::{Channel, Difference, Name};
use crate::error::{Error, Result, code};
use crate::hand::Hand;
use crate::lane::Lane;
use crate::message::Message;

/// A channel and its subscriptions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChannelRecord {
    pub(super) channel: Channel,
    /// Their numbers, by name. A subscription that is registered again has another one.
    pub(super) subscriptions: BTreeMap<Name, u64>,
    /// The next number.
    pub(super) next: u64,
}

impl ChannelRecord {
    pub(super) fn new(channel: &Channel) -> Self {
        Self { channel: channel.clone(), subscriptions: BTreeMap::new(), next: 1 }
    }
}

/// The record of a channel, held.
pub(super) struct Held {
    pub(super) record: ChannelRecord,
    register: Box<dyn Register>,
}

impl Held {
    /// Gives the record back as it was.
    pub(super) async fn give_back(self) -> Result<ChannelRecord> {
        self.register.give_back(None).await?;
        Ok(self.record)
    }

    /// Gives the record back as it is now.
    pub(super) async fn write(self) -> Result<ChannelRecord> {
        self.register.give_back(Some(bytes(&self.record)?)).await?;
        Ok(self.record)
    }
}

/// Takes the record of a channel, if there is such a channel.
pub(super) async fn hold(queues: &(impl Queues + ?Sized), name: &Name) -> Result<Option<Held>> {
    let Some(register) = queues.register(name).await? else { return Ok(None) };
    let record = serde_json::from_slice(register.value()).map_err(|error| {
        Error::new(code::STATE_NEWER, format!("the register of channel {name} cannot be read"))
            .hint("it was written by a newer version, or by somebody else")
            .because(error)
    })?;
    Ok(Some(Held { record, register }))
}

/// The record of a channel, if there is such a channel.
pub(super) async fn find(queues: &(impl Queues + ?Sized), name: &Name) -> Result<Option<ChannelRecord>> {
    match hold(queues, name).await? {
        Some(held) => held.give_back().await.map(Some),
        None => Ok(None),
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

/// A short name of a message (FNV-1a of its source and id). Messages that share one by chance share their attempts.
pub(super) fn name(message: &Message) -> u64 {
    let id = message.dedupe_id();
    let text = message.source.bytes().chain([0]).chain(id.bytes());
    text.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand::Fetched;
    use crate::port::Attempt;
    use crate::unsettled::{End, Unsettled};

    #[test]
    fn a_book_says_what_was_tried_and_what_is_in_hand() {
        let mut hand = Hand::new(10);
        hand.gain(Lane(0), 1, Unsettled::new(0), Vec::new());
        for place in 1..=3 {
            let message = Message::with_id(place.to_string(), "s", "t");
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
