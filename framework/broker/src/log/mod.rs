//! Brokers that keep messages in order and small documents beside them, and nothing else that we need.
//!
//! Such a system is a [`Log`]; [`LogBroker`] makes a [`Broker`](tidegate_core::port::Broker) of it. Subscriptions, who has which
//! lane, what is settled and what waits are kept here, in documents that are compared and set:
//!
//! ```text
//! messages    lane 0 ▸▸▸▸▸▸▸▸▸   lane 1 ▸▸▸▸▸ …          appended by producers, read by whoever has the lane
//! documents   channel            its settings and subscriptions
//!             seats.G            who is a member of the subscription G, and who has which lane
//!             lane.G.N           how far the subscription is in the lane N, and what is not settled of it
//!             removed.N          what of the lane N is not kept any more
//! ```
//!
//! Whoever has a lane writes its document alone: each write expects the one before it, so that an owner of before, who
//! does not know yet that it is one, can settle nothing. No clock of two machines is compared: a member is dead when others
//! have not seen it write for the time of a lease, measured by each with its own clock.
//!
//! - `documents`: what stands in them
//! - `seating`: who has which lane
//! - `broker`, `producer`, `consumer`, `settle`, `browse`: the ports
//! - `shared`, `member`, `keeper`, `fetch`: what a consumer's tasks do beside it
//! - `tidy`: what nobody needs any more goes

mod broker;
mod browse;
mod consumer;
mod documents;
mod fetch;
mod keeper;
mod member;
mod producer;
mod seating;
mod settle;
mod shared;
mod tidy;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use broker::LogBroker;

use crate::hand::Fetched;
use crate::unsettled::Place;
use tidegate_core::capability::Capabilities;
use tidegate_core::channel::{Channel, Difference, Name};
use tidegate_core::error::{Error, Result};
use tidegate_core::lane::Lane;
use tidegate_core::message::Message;
use tidegate_core::port::Effective;

/// A document as it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What stands in it.
    pub value: Bytes,
    /// Which writing it is: no two of a document are the same.
    pub revision: u64,
}

/// What became of a message that was to be appended.
#[derive(Debug)]
pub enum Appended {
    /// It is stored.
    Stored {
        /// Where.
        place: Place,
        /// It had been stored before.
        duplicate: bool,
    },
    /// The channel is full. Nothing behind it in the batch was stored.
    Full,
    /// It was not stored, and will not be.
    Refused(Error),
    /// It may be stored.
    Unknown(Error),
}

/// A system that keeps messages in order, and documents.
///
/// # Contract
/// 1. Places rise with every message of a lane; no two messages of a channel have the same one.
/// 2. `write` is compare-and-set, and durable as a message is.
/// 3. Whoever reads behind a place gets every message behind it that was stored before the call and not removed.
/// 4. An error whose verdict is not unknown means that nothing was done.
///
/// # Errors
/// Of every call: `unreachable`, `connection-lost` or `timed-out` where the server is not there or lost its answer, `access-denied`,
/// `limit-reached` where it has no room, `channel-missing` where what a channel is kept in is gone, `store-failed` for what has no name of
/// its own. An error whose verdict is `Never` ends the consumer that met it; others are tried again.
///
/// # Concurrency
/// Used by many tasks at once.
///
/// # Cancel safety
/// Every call may be dropped; one that writes may then have happened.
#[async_trait]
pub trait Log: Send + Sync + fmt::Debug + 'static {
    /// Where it is, for people; without secrets.
    fn location(&self) -> String;

    /// What it can do, with what is done here.
    fn capabilities(&self) -> &'static Capabilities;

    /// Looks at the live server.
    async fn probe(&self) -> Result<Effective>;

    /// Makes what messages of a channel are kept in. Repeatable.
    async fn create(&self, channel: &Channel) -> Result<()>;

    /// What of that is not as it was made, or not there, where somebody else can change it.
    async fn changed(&self, _channel: &Channel) -> Result<Option<Difference>> {
        Ok(None)
    }

    /// The channels that have the document `channel`, in any order.
    async fn channels(&self) -> Result<Vec<Name>>;

    /// A document of a channel.
    async fn document(&self, channel: &Name, name: &str) -> Result<Option<Document>>;

    /// Writes a document if it is still what is expected, `None` for one that is not there: its new revision, or `None` if
    /// it was not.
    async fn write(
        &self,
        channel: &Name,
        name: &str,
        value: Bytes,
        expected: Option<u64>,
    ) -> Result<Option<u64>>;

    /// Removes a document. Repeatable.
    async fn remove(&self, channel: &Name, name: &str) -> Result<()>;

    /// The place of the last message of each lane, or one behind it and before the next; 0 if there was none.
    async fn last(&self, channel: &Channel) -> Result<Vec<Place>>;

    /// Where each lane stands at the time when the message of this place was stored: what was stored later is behind it.
    /// `None` if there was no such message.
    async fn at(&self, channel: &Channel, place: Place) -> Result<Option<Vec<Place>>>;

    /// The last place, up to `upto`, of a message of a lane that was stored before this time (microseconds since 1970);
    /// 0 if there is none.
    async fn stored_before(&self, channel: &Channel, lane: Lane, upto: Place, time: i64) -> Result<Place>;

    /// Removes the messages of a lane up to this place. Repeatable.
    async fn trim(&self, channel: &Channel, lane: Lane, upto: Place) -> Result<()>;

    /// What appends for one producer.
    async fn appender(&self, channel: &Channel) -> Result<Box<dyn Appender>>;

    /// What reads for one consumer.
    async fn reader(&self, channel: &Channel) -> Result<Box<dyn Reader>>;
}

/// Appends messages to a channel, for one producer.
#[async_trait]
pub trait Appender: Send {
    /// Appends messages to their lanes, in their order; one answer a message. What comes behind one that was refused, full
    /// or unknown in a lane is not stored before it.
    async fn append(&mut self, batch: &[&Message]) -> Vec<Appended>;

    /// Returns when nothing of an earlier call can be stored any more.
    async fn finish(&mut self) -> Result<()>;
}

/// Reads messages, for one consumer.
#[async_trait]
pub trait Reader: Send {
    /// Appends to `out` what stands in each lane behind a place, at most so many messages of each. Waits until there is
    /// something, at most so long. Dropping it loses nothing.
    async fn read(
        &mut self,
        wanted: &[(Lane, Place, usize)],
        wait: Duration,
        out: &mut Vec<(Lane, Fetched)>,
    ) -> Result<()>;
}
