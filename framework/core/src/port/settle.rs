//! Says what is to become of messages in hand.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::Error;
use crate::port::Token;

/// What is to become of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It is handled.
    Ack,
    /// It failed: it is to come again, not before this time has passed. Later ones of its subject wait.
    Retry {
        /// How long to wait.
        after: Duration,
    },
    /// It was not tried: it is to come again, to anybody, at once and without an attempt being counted.
    Release,
    /// It cannot be handled: put it where the broker keeps such messages.
    DeadLetter {
        /// Why.
        reason: Arc<str>,
    },
}

/// What became of a settlement.
#[derive(Debug)]
pub enum Settled {
    /// It is done and stays so.
    Done,
    /// The delivery is not in this consumer's hand any more, or was settled before: nothing was done.
    Lost,
    /// The broker declares that it cannot do what was asked. The delivery is still in hand.
    Refused(Error),
    /// It may be done. Settling it again is safe.
    Unknown(Error),
}

impl Settled {
    /// Whether it is done.
    pub fn is_done(&self) -> bool {
        matches!(self, Settled::Done)
    }

    /// Whether the delivery was not in hand any more.
    pub fn is_lost(&self) -> bool {
        matches!(self, Settled::Lost)
    }
}

/// Settles the deliveries of one consumer.
///
/// # Contract
/// 1. There is one answer a token, in the order of the tokens. (B16)
/// 2. A delivery that was settled may be settled again: the answer is done or lost and nothing happens. (B16)
/// 3. A token of an earlier ownership of its lane is lost, also after the lane has come back. (B17, C26)
/// 4. `Ack` done means that the message does not come to this subscription again. (B18)
/// 5. `Retry` counts as an attempt, and the message does not come before its time; later ones of its subject wait for
///    it. (C25, D31, D32)
/// 6. `Release` does not count as an attempt. (B19)
/// 7. What a capability declares as missing is refused, and the delivery stays in hand. (G52)
/// 8. `extend` done means that the lane is not taken away for that time, as long as the process lives. (D38)
/// 9. Who is not heard of for longer than its lease has lost its lanes, and settles nothing of them. (D39)
///
/// # Capabilities
/// `retry_later`, `dead_letter`, `lock_extend`.
///
/// # Concurrency
/// May be used from several tasks at once, also while the consumer receives.
///
/// # Cancel safety
/// A dropped call leaves each of its settlements unknown; settling again is safe.
///
/// # Implementing
/// A token of an old epoch is answered without asking the broker.
///
/// # Example
/// ```
/// # use std::time::Duration;
/// use tidegate_core::port::{Attempt, Broker, Settlement};
/// # use tidegate_core::{Apply, Channel, Endpoint, Message, Subscription, SystemIds, Topology};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidegate_core::Result<()> {
/// # let broker = tidegate_memory::open_broker(&Endpoint::parse("memory:")?)?;
/// # let orders = Channel::new("orders")?;
/// # let billing = Subscription::new(&orders, "billing")?;
/// # broker.apply(&Topology::of(&orders).and(&billing), Apply::Create).await?;
/// # let message = Message::new(&SystemIds, "shop", "order.placed");
/// # broker.producer(&orders).await?.publish(&[message]).await;
/// let mut consumer = broker.subscribe(&billing).await?;
/// let settle = consumer.settler();
/// for attempt in 1..=3 {
///     let mut batch = Vec::new();
///     while batch.is_empty() {
///         consumer.receive(1, Duration::from_secs(1), &mut batch).await?;
///     }
///     assert_eq!(batch[0].attempt, Attempt::Exact(attempt));
///     let settlement = match attempt {
///         3 => Settlement::Ack,
///         _ => Settlement::Retry { after: Duration::from_millis(10) },
///     };
///     assert!(settle.settle(&[(batch[0].token, settlement)]).await[0].is_done());
/// }
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Settle: Send + Sync {
    /// Settles deliveries; the answer at a place is that of the token there.
    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Settled>;

    /// Keeps deliveries in hand for at least `by` from now.
    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Settled>;
}
