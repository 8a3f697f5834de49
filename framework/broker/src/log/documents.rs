//! What stands in the documents of a channel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Document, Log};
use crate::unsettled::{Entry, Place, Unsettled};
use tidegate_core::channel::{Channel, Difference, Keep, Name};
use tidegate_core::error::{Error, Result, code};
use tidegate_core::lane::Lane;

/// The document of a channel.
pub(super) const CHANNEL: &str = "channel";

/// The document of who has which lane of a subscription.
pub(super) fn seats(subscription: u64) -> String {
    format!("seats.{subscription}")
}

/// The document of a lane of a subscription.
pub(super) fn lane(subscription: u64, lane: Lane) -> String {
    format!("lane.{subscription}.{}", lane.0)
}

/// The document of what is not kept any more of a lane.
pub(super) fn removed(lane: Lane) -> String {
    format!("removed.{}", lane.0)
}

/// A channel and its subscriptions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChannelRecord {
    pub(super) channel: Channel,
    /// Their numbers, by name. A subscription that is registered again has another one.
    pub(super) subscriptions: BTreeMap<Name, u64>,
    /// Numbers whose documents are to be removed.
    pub(super) leaving: BTreeSet<u64>,
    /// The next number.
    pub(super) next: u64,
}

impl ChannelRecord {
    pub(super) fn new(channel: &Channel) -> Self {
        Self { channel: channel.clone(), subscriptions: BTreeMap::new(), leaving: BTreeSet::new(), next: 1 }
    }

    /// Since when messages are kept that everybody has settled, if they are.
    pub(super) fn kept_since(&self, now: i64) -> Option<i64> {
        match self.channel.keep {
            Keep::UntilSettled => None,
            Keep::AtLeast(time) => Some(now.saturating_sub(micros(time))),
        }
    }
}

/// A record and its revision.
#[derive(Clone, Debug)]
pub(super) struct Read<T> {
    pub(super) record: T,
    pub(super) revision: u64,
}

/// Reads a document. A connection that was lost since it was used last is noticed by whoever uses it next: reading is tried
/// once more.
pub(super) async fn read<T: DeserializeOwned>(
    log: &(impl Log + ?Sized),
    channel: &Name,
    name: &str,
) -> Result<Option<Read<T>>> {
    let found = match log.document(channel, name).await {
        Err(error) if error.code() == code::CONNECTION_LOST => log.document(channel, name).await,
        found => found,
    };
    let Some(Document { value, revision }) = found? else { return Ok(None) };
    let record = serde_json::from_slice(&value).map_err(|error| {
        Error::new(code::STATE_NEWER, format!("the document {name} of channel {channel} cannot be read"))
            .hint("it was written by a newer version, or by somebody else")
            .because(error)
    })?;
    Ok(Some(Read { record, revision }))
}

/// The record of a channel that has to be there.
pub(super) async fn channel(log: &(impl Log + ?Sized), name: &Name) -> Result<Read<ChannelRecord>> {
    let found = read(log, name, CHANNEL).await?;
    found.ok_or_else(|| Difference::ChannelMissing(name.clone()).error())
}

pub(super) fn bytes(record: &impl Serialize) -> Result<Bytes> {
    let text = serde_json::to_vec(record);
    Ok(text.map_err(|error| Error::new(code::INTERNAL, "a record cannot be written").because(error))?.into())
}

/// How far a subscription is in a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LaneRecord {
    /// The ownership under which it was written.
    pub(super) epoch: u64,
    /// Which writing of that ownership it is.
    pub(super) number: u64,
    /// Everything up to here was given.
    pub(super) read_to: Place,
    /// What of that is not settled.
    pub(super) open: Vec<Open>,
}

/// A message that is not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Open {
    /// In hand, for the first time.
    First(Place),
    /// The place, how often it was tried in vain, when it is due, and whether it is in hand.
    Again(Place, u32, i64, bool),
}

impl Open {
    pub(super) fn place(&self) -> Place {
        match self {
            Open::First(place) | Open::Again(place, ..) => *place,
        }
    }

    /// The entry, for an owner who takes the lane over: what is in hand of one who is gone was tried.
    pub(super) fn entry(self, key: Option<Arc<str>>) -> Entry {
        let (attempts, due) = match self {
            Open::First(_) => (1, 0),
            Open::Again(_, attempts, _, true) => (attempts.saturating_add(1), 0),
            Open::Again(_, attempts, due, false) => (attempts, due),
        };
        Entry { key, attempts, due, delivery: None }
    }
}

impl LaneRecord {
    pub(super) fn of(epoch: u64, number: u64, unsettled: &Unsettled) -> Self {
        let open = |(place, entry): (Place, &Entry)| match entry.delivery {
            Some(_) if entry.attempts == 0 => Open::First(place),
            delivery => Open::Again(place, entry.attempts, entry.due, delivery.is_some()),
        };
        Self { epoch, number, read_to: unsettled.read_to(), open: unsettled.entries().map(open).collect() }
    }

    /// The last place up to which everything is settled.
    pub(super) fn low(&self) -> Place {
        self.open.iter().map(|open| open.place()).min().map_or(self.read_to, |first| first - 1)
    }
}

pub(super) fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unsettled::End;

    #[test]
    fn a_lane_is_read_back_as_it_was() {
        let mut lane = Unsettled::new(5);
        let given: Vec<_> = (6..10).filter_map(|place| lane.admit(place, None)).collect();
        lane.end(given[0].number, End::Done);
        lane.end(given[1].number, End::Failed { due: 70 });
        lane.end(given[3].number, End::Untried);
        let record = LaneRecord::of(3, 1, &lane);
        assert_eq!(record.low(), 6);
        assert_eq!(record.open, [Open::Again(7, 1, 70, false), Open::First(8), Open::Again(9, 0, 0, false)]);
        let text = bytes(&record).unwrap();
        assert_eq!(text, r#"{"epoch":3,"number":1,"read_to":9,"open":[[7,1,70,false],8,[9,0,0,false]]}"#);
        assert_eq!(serde_json::from_slice::<LaneRecord>(&text).unwrap(), record);
        let tried = Open::First(8).entry(None);
        assert_eq!((tried.attempts, tried.due), (1, 0), "it was in the hand of somebody who is gone");
        assert_eq!(LaneRecord { read_to: 9, ..LaneRecord::default() }.low(), 9);
    }
}
