//! Carries messages between programs: channels with lanes, and durable subscriptions to them.

use std::time::Duration;

use async_trait::async_trait;

use crate::capability::Capabilities;
use crate::channel::{Apply, Channel, Difference, Name, Start, Subscription, Topology};
use crate::error::Result;
use crate::port::{Browse, Consumer, Leftover, Producer};

/// What a live server is, beside what its adapter declares.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Effective {
    /// The server and its version.
    pub version: String,
    /// Settings of this server with which what was confirmed can be lost, as sentences.
    pub warnings: Vec<String>,
    /// What else of it is to be known: no encryption, a password that everybody knows, an alarm.
    pub notes: Vec<String>,
}

/// One broker: a server, a file, or a place in memory.
///
/// ```text
/// Producer::publish ──▶ channel ─┬─ lane 0 ──▶ Consumer::receive ──▶ the application
///                                ├─ lane 1       (one owner a lane       │
///                                └─ …             and subscription)      ▼
///                                                       Settle::settle: done with it, later, or back
/// ```
///
/// # Contract
/// 1. A message that was answered as stored reaches every subscription of its channel, once at least. (A1)
/// 2. Publishing to a channel that is not there fails with `channel-missing`; to one without subscriptions, that
///    keeps nothing for later ones, it is refused with `subscription-missing`; those who publish may take a second to
///    learn that the last one went. (A4, D34)
/// 3. What was stored survives the kill of the broker, unless its capabilities list that loss. (A10)
/// 4. Each subscription gets every message; the members of one share them. (B11, B12)
/// 5. A subscription keeps its place while nobody is there. (B13)
/// 6. Unregistering frees everything that was kept for the subscription alone; consumers of it get `Cancelled`;
///    registered again, it begins as a new one. It is repeatable. (B14)
/// 7. Channels are apart, whatever their names look like, and however many there are. A broker that cannot tell two names apart which differ only in
///    `.` and `_` refuses to make the second one, with `name-taken`. (B22, F51)
/// 8. A new subscription begins where it says: with the earliest message kept, with the next one published, or after
///    a position. (B23)
/// 9. The lane of a message is [`Message::lane`](crate::Message::lane), on every broker. (C30)
/// 10. `apply` never changes a channel that is there: verifying names what differs, creating refuses it with
///     `channel-differs`. It is repeatable. [`Broker::channel`] gives a channel as it was made, [`Broker::topology`] all of them. (A4, B63, G54)
/// 11. What a capability declares as missing is refused with `capability-missing`. (every case that requires one)
/// 12. What is open goes on behind a restart of the broker, and nothing stays of what was closed. (E40, F50)
/// 13. A network that is slow, cut, silent, or loses answers loses nothing and changes no order. A server that cannot be reached
///     is told soon as one that may be there later, and is asked for seldom until it is. Whom it refuses is told so with
///     `access-denied`. (E41, E42, E43, E45)
/// 14. If somebody removes what the messages of a channel are in, past the adapter, its consumers end with `channel-missing` or
///     `subscription-gone`, and what is published then is not said to be stored. (E44)
///
/// # Capabilities
/// [`Broker::capabilities`] is data that was there before the connection. [`Broker::probe`] compares it with the live
/// server.
///
/// # Concurrency
/// May be used from several tasks at once; producers and consumers are independent of each other.
///
/// # Cancel safety
/// Every call may be dropped; `apply` and `unregister` may then have happened, and can be repeated.
///
/// # Implementing
/// The crate `tidegate-memory` is the reference. The crate `tidegate-broker` makes a whole broker of a system that keeps messages in
/// order, and small documents that are compared and set, as `tidegate-redis` uses it; and of one that has queues and takes
/// acknowledgements, as `tidegate-rabbitmq` does. An adapter exports its
/// schemes as `BROKER_SCHEMES` and opens a broker with `open_broker`; the crate `tidegate-conformance` checks it.
///
/// # Example
/// ```
/// # use std::time::Duration;
/// use tidegate_core::port::{Broker, Sent, Settlement, Signal};
/// use tidegate_core::{Apply, Channel, Endpoint, Message, Subscription, SystemIds, Topology};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidegate_core::Result<()> {
/// let broker = tidegate_memory::open_broker(&Endpoint::parse("memory:")?)?;
/// let orders = Channel::new("orders")?;
/// let billing = Subscription::new(&orders, "billing")?;
/// broker.apply(&Topology::of(&orders).and(&billing), Apply::Create).await?;
///
/// let placed = Message::new(&SystemIds, "shop", "order.placed").with_subject("order-17");
/// let mut producer = broker.producer(&orders).await?;
/// assert!(matches!(producer.publish(&[placed.clone()]).await[..], [Sent::Stored { duplicate: false, .. }]));
///
/// let mut consumer = broker.subscribe(&billing).await?;
/// let settle = consumer.settler();
/// let mut deliveries = Vec::new();
/// while deliveries.is_empty() {
///     consumer.receive(10, Duration::from_secs(1), &mut deliveries).await?;
/// }
/// assert_eq!(*deliveries[0].message, placed);
/// let settled = settle.settle(&[(deliveries[0].token, Settlement::Ack)]).await;
/// assert!(settled[0].is_done());
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Broker: Send + Sync + std::fmt::Debug {
    /// Where it is, for people; without secrets.
    fn location(&self) -> String;

    /// What it can do, and how messages can be lost.
    fn capabilities(&self) -> &'static Capabilities;

    /// Looks at the live server: its version, and what of its settings is unsafe.
    async fn probe(&self) -> Result<Effective>;

    /// Compares a topology with what is there, or makes what is missing; returns what differed before.
    ///
    /// # Errors
    /// `channel-differs` if something is to be created that is there with other settings; nothing was changed then.
    async fn apply(&self, topology: &Topology, mode: Apply) -> Result<Vec<Difference>>;

    /// A channel as it is there, if it is.
    async fn channel(&self, name: &Name) -> Result<Option<Channel>>;

    /// All channels and subscriptions that are there, by name. Where a subscription began is not known any more.
    async fn topology(&self) -> Result<Topology>;

    /// Looks at the messages of a channel that are kept, from a start on, without taking part in it.
    ///
    /// # Errors
    /// `channel-missing`, or `position-gone` if messages behind the start are not kept any more.
    async fn browse(&self, channel: &Name, start: &Start) -> Result<Box<dyn Browse>>;

    /// A producer of a channel that is there.
    ///
    /// # Errors
    /// `channel-missing`, or `channel-differs` if it has another number of lanes.
    async fn producer(&self, channel: &Channel) -> Result<Box<dyn Producer>>;

    /// A new member of a subscription, which is registered if it is not.
    ///
    /// # Errors
    /// `channel-missing`, or `position-gone` if it is new and messages behind its start are not kept any more.
    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Consumer>>;

    /// Removes a subscription with everything that is kept for it alone.
    async fn unregister(&self, subscription: &Subscription) -> Result<()>;

    /// Ends this use of the broker: its consumers get `Drained`, its producers refuse. Waits until the consumers are
    /// closed; at the deadline they are cut off, and what they have in hand is released.
    async fn close(&self, deadline: Duration) -> Result<Leftover>;
}
