//! Puts messages on a channel, and says of each what became of it.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::{Error, Result};
use crate::message::Message;
use crate::position::Position;

/// What became of one message.
#[derive(Debug)]
pub enum Sent {
    /// It is stored, in the broker's sense ([`Capabilities::confirm`](crate::Capabilities::confirm)).
    Stored {
        /// Where, on brokers that have positions.
        position: Option<Position>,
        /// It had been stored before: this call added nothing.
        duplicate: bool,
    },
    /// It is not stored and never will be by this call. The error's verdict says whether it may be tried again.
    Refused(Error),
    /// It may be stored. Publish it again as it is, before newer ones of its subject: its id keeps it one message.
    Unknown(Error),
}

impl Sent {
    /// Whether it is stored.
    pub fn is_stored(&self) -> bool {
        matches!(self, Sent::Stored { .. })
    }

    /// Whether it may be stored.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Sent::Unknown(_))
    }

    /// Why it is not known to be stored.
    pub fn error(&self) -> Option<&Error> {
        match self {
            Sent::Stored { .. } => None,
            Sent::Refused(error) | Sent::Unknown(error) => Some(error),
        }
    }
}

/// Puts messages on one channel.
///
/// # Contract
/// 1. There is one answer a message, in the order of the messages. (A2)
/// 2. One message that is refused does not keep its neighbours from being stored. (A3, A5)
/// 3. A message that breaks [`Message::check`] is refused with `message-invalid`, one that is larger than
///    [`Capabilities::message_bytes_max`](crate::Capabilities::message_bytes_max) with `body-too-large`. (A3, A5)
/// 4. Refused means: not stored, then or later. Whatever may have been stored is unknown. (A6)
/// 5. The same message (id and source) published again is stored once, on brokers that declare `dedupe`; the second
///    answer says that it is a duplicate. (A6)
/// 6. A channel that is full makes `publish` wait a bounded time and then refuse with `limit-reached`; memory is
///    bounded whatever is published. (A8)
/// 7. Every message that passes the check arrives byte for byte as it was. (A9)
/// 8. Messages of one lane are stored in the order in which they are published, within a batch and from one call to
///    the next; publishing again what was refused or unknown, before newer ones, keeps it. (C24, C29)
/// 9. When `close` has returned without an error, no message of an earlier call, a dropped one included, will be stored
///    later. (A7)
///
/// # Capabilities
/// `dedupe`, `message_bytes_max`, `confirm`.
///
/// # Concurrency
/// One task; several producers of a channel may publish at once. To be fast, publish in batches.
///
/// # Cancel safety
/// A dropped `publish` leaves each of its messages unknown, and the producer usable.
///
/// # Implementing
/// Give the messages to the broker together and wait for all answers once; never one by one.
///
/// # Example
/// ```
/// use tidegate_core::port::{Broker, Sent};
/// use tidegate_core::{Apply, Channel, Endpoint, Keep, Message, SystemIds, Topology, error::code};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidegate_core::Result<()> {
/// let broker = tidegate_memory::open_broker(&Endpoint::parse("memory:")?)?;
/// let orders = Channel::new("orders")?.with_keep(Keep::AtLeast(std::time::Duration::from_secs(60)));
/// broker.apply(&Topology::of(&orders), Apply::Create).await?;
/// let mut producer = broker.producer(&orders).await?;
///
/// let good = Message::new(&SystemIds, "shop", "order.placed");
/// let bad = Message::new(&SystemIds, "shop", "");
/// let sent = producer.publish(&[bad, good.clone(), good]).await;
/// assert_eq!(sent[0].error().unwrap().code(), code::MESSAGE_INVALID);
/// assert!(matches!(sent[1], Sent::Stored { duplicate: false, .. }));
/// assert!(matches!(sent[2], Sent::Stored { duplicate: true, .. }));
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Producer: Send {
    /// Publishes messages; the answer at a place is that of the message there.
    async fn publish(&mut self, batch: &[Message]) -> Vec<Sent>;

    /// Ends the producer.
    ///
    /// # Errors
    /// `timed-out` if what was published could not be brought to an end in time.
    async fn close(self: Box<Self>, deadline: Duration) -> Result<()>;
}
