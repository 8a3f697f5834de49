//! Takes messages from a subscription, lane by lane.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::{Error, Result};
use crate::lane::Lane;
use crate::message::Message;
use crate::port::Settle;
use crate::position::Position;

/// Names one delivery, to settle it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// The lane it came from.
    pub lane: Lane,
    /// The ownership of the lane under which it came. A later one is higher, whoever has it, also of a subscription that was
    /// registered again; it makes the token worthless. (B14, D39)
    pub epoch: u64,
    /// Which delivery of that ownership.
    pub number: u64,
}

/// How often a message has been tried, this delivery included: the first one is 1. A delivery that was released was
/// no attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Exactly so often.
    Exact(u32),
    /// So often or more.
    AtLeast(u32),
    /// All that is known is whether it was tried before.
    Flag(bool),
}

impl Attempt {
    /// Whether it was tried before.
    pub fn is_again(self) -> bool {
        match self {
            Attempt::Exact(number) | Attempt::AtLeast(number) => number > 1,
            Attempt::Flag(again) => again,
        }
    }

    /// The same message after so many more attempts that failed.
    #[must_use]
    pub fn and(self, failed: u32) -> Self {
        match self {
            Attempt::Exact(number) => Attempt::Exact(number.saturating_add(failed)),
            Attempt::AtLeast(number) => Attempt::AtLeast(number.saturating_add(failed)),
            Attempt::Flag(again) if failed == 0 => Attempt::Flag(again),
            Attempt::Flag(_) => Attempt::AtLeast(self.number().saturating_add(failed)),
        }
    }

    /// The number, as far as it is known.
    pub fn number(self) -> u32 {
        match self {
            Attempt::Exact(number) | Attempt::AtLeast(number) => number,
            Attempt::Flag(again) => 1 + u32::from(again),
        }
    }
}

/// A message in hand. It stays so until it is settled, or its lane is lost.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The message, which everybody who has the delivery shares.
    pub message: Arc<Message>,
    /// What to settle it with.
    pub token: Token,
    /// How often it was tried.
    pub attempt: Attempt,
    /// Where it is stored, on brokers that have positions.
    pub position: Option<Position>,
    /// When it was stored, by the broker's clock, in microseconds since 1970.
    pub stored_at: Option<i64>,
}

/// What a consumer is told.
#[derive(Debug)]
pub enum Signal {
    /// What has come was appended; nothing if the wait is over.
    Messages,
    /// These lanes are this consumer's from now on.
    LanesGained(Vec<Lane>),
    /// Another member is to have these lanes. No more of them comes; settle what is in hand of them. They go when
    /// that is done, or at `until` (microseconds since 1970) whatever is left.
    LanesRevoked {
        /// Which.
        lanes: Vec<Lane>,
        /// When they go at the latest.
        until: i64,
    },
    /// These lanes are somebody else's. What is in hand of them comes again there; settling it gives `Lost`.
    LanesLost(Vec<Lane>),
    /// The connection was lost and is there again; everything in hand comes again.
    Reconnected,
    /// The broker took the subscription away: it was unregistered, or its channel is gone. Nothing more comes.
    Cancelled(Error),
    /// The broker is being closed here. Nothing more comes; settle what is in hand, then close.
    Drained,
}

/// How a consumer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Leftover {
    /// Deliveries that nobody had settled in time, and that were released.
    pub released: usize,
}

/// A member of a subscription.
///
/// # Contract
/// 1. Each lane of a subscription has one owner at a time, and every lane that has messages gets one as long as there
///    is a member that receives; members that are there long enough share the lanes evenly. (B11)
/// 2. Messages of one subject come in the order in which they were stored. While an earlier one of the subject waits
///    to come again, later ones do not come; those of other subjects do. (C24, C25, C28)
/// 3. Messages whose lane was taken over, or that were in hand when a consumer was dropped, come again in their order,
///    with a higher attempt. (B15, C26, C27)
/// 4. At most `window` deliveries of a consumer are in hand. (B21)
/// 5. A settled message does not come again, after a clean close of the broker least of all. (B18)
/// 6. `receive` waits at most `wait`, and returns at once when something has come or changed. (B20)
/// 7. `close` stops the delivery, waits until what is in hand is settled, and at the deadline releases the rest, which
///    is no attempt. (B18, B19, F48)
/// 8. A consumer that is dropped without `close` is a crash: nothing is settled. (B15)
///
/// # Capabilities
/// `competing_consumers`, `order_by_key`, `delivery_count`, `consumers_per_lane_max`.
///
/// # Concurrency
/// One task receives; settlers may be used from any others.
///
/// # Cancel safety
/// A dropped `receive` loses nothing: what it had taken comes with the next call. (B20) After an error whose verdict is
/// retry the consumer is usable as well; after another one, close it.
///
/// # Implementing
/// What was taken from the broker is kept in the consumer until a call returns it. Connections are mended inside;
/// the caller learns of it by `Reconnected` alone.
///
/// # Example
/// ```
/// # use std::time::Duration;
/// use tidegate_core::port::{Broker, Consumer, Settlement, Signal};
/// use tidegate_core::{Apply, Channel, Endpoint, Result, Subscription, Topology};
///
/// /// Handles what is there, until nothing has come for a second.
/// async fn drain(consumer: &mut dyn Consumer) -> Result<usize> {
///     let (settle, mut count) = (consumer.settler(), 0);
///     let mut batch = Vec::new();
///     loop {
///         match consumer.receive(100, Duration::from_secs(1), &mut batch).await? {
///             Signal::Messages if batch.is_empty() => return Ok(count),
///             Signal::Messages => {
///                 count += batch.len();
///                 let done: Vec<_> = batch.drain(..).map(|d| (d.token, Settlement::Ack)).collect();
///                 settle.settle(&done).await;
///             }
///             Signal::Cancelled(error) => return Err(error),
///             Signal::Drained => return Ok(count),
///             // Lanes come and go; nothing has to be done here, since nothing is kept by lane.
///             _ => {}
///         }
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// # let broker = tidegate_memory::open_broker(&Endpoint::parse("memory:")?)?;
/// # let orders = Channel::new("orders")?;
/// # let billing = Subscription::new(&orders, "billing")?;
/// # broker.apply(&Topology::of(&orders).and(&billing), Apply::Create).await?;
/// # let messages = [1, 2].map(|_| tidegate_core::Message::new(&tidegate_core::SystemIds, "shop", "placed"));
/// # broker.producer(&orders).await?.publish(&messages).await;
/// let mut consumer = broker.subscribe(&billing).await?;
/// assert_eq!(drain(&mut *consumer).await?, 2);
/// consumer.close(Duration::from_secs(1)).await?;
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Consumer: Send {
    /// Appends at most `max` deliveries to `out`, or says what has changed.
    async fn receive(&mut self, max: usize, wait: Duration, out: &mut Vec<Delivery>) -> Result<Signal>;

    /// What settles the deliveries of this consumer.
    fn settler(&self) -> Arc<dyn Settle>;

    /// Ends the consumer, with what is in hand settled or released.
    async fn close(self: Box<Self>, deadline: Duration) -> Result<Leftover>;
}
