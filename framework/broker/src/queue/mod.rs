//! Brokers that keep messages in queues and take acknowledgements, and nothing else that we need.
//!
//! Such a system is a [`Queues`]; [`QueueBroker`] makes a [`Broker`](tidegate_core::port::Broker) of it:
//!
//! ```text
//! channel ──▶ lane 0 ──▶ queue of (billing, 0)   the system copies what is published to a lane
//!         │          └─▶ queue of (search, 0)    to the queue of every subscription
//!         └─▶ lane 1 ──▶ …
//!             record                             a slot: the channel's settings and its subscriptions
//!             book of (billing, 0)               a slot: what the owner of the lane noted of attempts
//! ```
//!
//! A *slot* is a queue with one message in it, which is held by whoever stands at the head of its line. The channel's record is
//! held while it is changed. Each lane of a subscription has one owner, who holds its book: members stand in the line of the book,
//! and the system lets the next one in when the one before is gone; it then has the queue, when what the one before had in hand
//! is back there, in its order. A member that has more than its share of the lanes finishes what it has in hand of one and leaves
//! its line; one that has less than any other may have calls in the line of a lane.
//!
//! What waits or failed stays unacknowledged at the owner, so that messages behind it of other subjects flow, and the order
//! of the queue is never changed. How often something was tried only the owner knows: systems count what they handed over,
//! which is more. So the owner notes it in the book of the lane, where the next owner finds it.
//!
//! - `slot`: a value that one at a time holds
//! - `record`: what stands in the record of a channel and in a book
//! - `broker`, `producer`, `consumer`, `settle`: the ports
//! - `shared`, `member`, `owner`: what a consumer's task does beside it

mod broker;
mod consumer;
mod member;
mod owner;
mod producer;
mod record;
mod settle;
mod shared;
mod slot;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use broker::QueueBroker;
pub use record::place_of_undecodable;
pub use slot::{Copy, Line, Number};

use crate::hand::{BYTES_MAX, Fetched, UNSETTLED_MAX};
use crate::unsettled::Place;
use tidegate_core::capability::Capabilities;
use tidegate_core::channel::{Channel, Name};
use tidegate_core::error::{Error, Result};
use tidegate_core::lane::Lane;
use tidegate_core::message::Message;
use tidegate_core::port::Effective;

/// Why channels cannot be listed.
pub const NO_LISTING: &str = "whoever uses queues cannot list them";
/// Why messages cannot be looked at.
pub const NO_BROWSING: &str = "a queue shows its messages to those alone who take them";

/// How few messages of a lane an owner has room for, however large they may be.
const HELD_MIN: u64 = 64;

/// How many messages of a lane its owner has unacknowledged at most. All owners of a channel have to agree: what one of them
/// had in hand is in its order again only if the next one takes all of it. So it follows from the channel alone: what fits in
/// a consumer's memory, of the size that the channel's limits suppose.
pub fn held_max(channel: &Channel) -> u16 {
    let size = (channel.bytes_max / channel.messages_max.max(1)).max(1);
    let fits = BYTES_MAX as u64 / size / u64::from(channel.lanes.max(1));
    let most = channel.messages_max.min(UNSETTLED_MAX as u64).max(HELD_MIN);
    u16::try_from(fits.clamp(HELD_MIN, most)).unwrap_or(u16::MAX)
}

/// What became of a message that was to be sent.
#[derive(Debug)]
pub enum Taken {
    /// It is stored in the queue of every subscription.
    Stored,
    /// There is no queue for it, and it was not stored.
    Unwanted,
    /// The system takes nothing for now, and why. It was not sent, and nothing behind it was.
    Blocked(Error),
    /// It was not stored, and will not be.
    Refused(Error),
    /// It may be stored.
    Unknown(Error),
}

/// A system of queues.
///
/// # Contract
/// 1. What is sent to a lane is in the queue of every subscription, or the answer is not [`Taken::Stored`].
/// 2. A slot is held by one at a time; whoever holds it and is gone gives it back ([`Line`]).
/// 3. A lane is one member's at a time. The next one gets it when everything that the one before had not settled is back in
///    its queue, before what nobody has had.
/// 4. An error whose verdict is not unknown means that nothing was done.
///
/// # Errors
/// Of every call: `unreachable`, `connection-lost` or `timed-out` where the server is not there or lost its answer, `access-denied`,
/// `limit-reached` where it has no room, `subscription-gone` where a queue is gone, `store-failed` for what has no name of its own. An
/// error whose verdict is `Never` ends the consumer that met it; others are tried again.
///
/// # Concurrency
/// Used by many tasks at once.
///
/// # Cancel safety
/// Every call may be dropped; one that changes something may then have happened, or half of it, and can be repeated. What is
/// half done stands in the record of the channel, and whoever changes that next removes it.
#[async_trait]
pub trait Queues: Send + Sync + fmt::Debug + 'static {
    /// Where it is, for people; without secrets.
    fn location(&self) -> String;

    /// What it can do, with what is done here.
    fn capabilities(&self) -> &'static Capabilities;

    /// Looks at the live server.
    async fn probe(&self) -> Result<Effective>;

    /// Makes what a channel is sent to, and the slot of its record, unless they are there. Repeatable.
    async fn create(&self, channel: &Channel) -> Result<()>;

    /// Stands in the line of the record of a channel; `None` if there is none.
    async fn line(&self, channel: &Name) -> Result<Option<Box<dyn Line>>>;

    /// Makes the queues and the books of a subscription, with an empty copy in each book ([`Number::default`]): who comes when the
    /// system takes nothing can have the lanes, and make room. Repeatable.
    async fn subscribe(&self, channel: &Channel, subscription: &Name) -> Result<()>;

    /// Removes them, with everything in them. Repeatable.
    async fn unsubscribe(&self, channel: &Channel, subscription: &Name) -> Result<()>;

    /// How long after a queue was made a kill of the system leaves it.
    fn ripens_after(&self) -> Duration {
        Duration::ZERO
    }

    /// How many messages wait in the queues of a subscription, and are in nobody's hand.
    async fn waiting(&self, channel: &Channel, subscription: &Name) -> Result<u64>;

    /// What sends for one producer.
    async fn sender(&self, channel: &Channel) -> Result<Box<dyn Sender>>;

    /// A member of a subscription that is there. It is one as long as it is not dropped.
    async fn member(&self, channel: &Channel, subscription: &Name) -> Result<Arc<dyn Member>>;
}

/// Sends messages to a channel, for one producer.
#[async_trait]
pub trait Sender: Send {
    /// Whether it is of use still, as far as is known.
    fn is_open(&self) -> bool;

    /// Sends messages to their lanes, in their order; one answer a message. A sender of which an answer is unknown, or a call
    /// was dropped, is finished and not used again.
    async fn send(&mut self, batch: &[&Message]) -> Vec<Taken>;

    /// Returns when nothing of an earlier call can be stored any more.
    async fn finish(&mut self) -> Result<()>;
}

/// A member of a subscription, over one connection. An error of a call means that the connection is of no use any more.
#[async_trait]
pub trait Member: Send + Sync {
    /// How many members the subscription has, with this one.
    async fn count(&self) -> Result<usize>;

    /// Stands in the line of the book of a lane.
    async fn line(&self, lane: Lane) -> Result<Box<dyn Line>>;

    /// Takes over the queue of a lane whose book this member holds.
    async fn lane(&self, lane: Lane) -> Result<Box<dyn Link>>;
}

/// The queue of a lane that a member has, for as long as this is not dropped: what is not settled goes back then, before anybody
/// else has it. The first error means that it is of no use any more.
#[async_trait]
pub trait Link: Send + Sync {
    /// Whether the connection is there, as far as is known.
    fn is_open(&self) -> bool;

    /// Appends what has come, in the order of the queue; waits until there is something. The place of a message is its number
    /// among what has come over this link, and its attempt says with [`Attempt::Flag`](tidegate_core::port::Attempt::Flag) whether an
    /// owner before had it. Dropping the call loses nothing.
    async fn next(&self, out: &mut Vec<Fetched>) -> Result<()>;

    /// Acknowledges messages, and returns when that is as durable as they were. One call at a time, beside
    /// [`next`](Self::next); it is dropped only with the link.
    async fn settle(&self, places: &[Place]) -> Result<()>;

    /// Gives the lane up: what is not settled goes back to its queue.
    async fn close(&self) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_owner_holds_follows_from_the_channel() {
        let channel = Channel::new("orders").unwrap();
        assert_eq!(held_max(&channel), 3_908);
        assert_eq!(held_max(&channel.clone().with_lanes(1_024)), 64);
        assert_eq!(held_max(&channel.clone().with_lanes(1)), 10_000);
        assert_eq!(held_max(&channel.clone().with_limits(100, 1 << 20)), 100);
        assert_eq!(held_max(&channel.with_limits(1, u64::MAX)), 64);
    }
}
