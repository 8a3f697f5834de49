//! Exchanges and quorum queues of one server as queues.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel as Amqp, Connection, ExchangeKind};
use tidegate_broker::queue::{Line, Member, NO_BROWSING, NO_LISTING, Number, Queues, Sender};
use tidegate_core::port::Effective;
use tidegate_core::{Capabilities, Channel, How, Lane, Name, Result};

use crate::config::Config;
use crate::connect::{Own, Shared, within};
use crate::error::{from_driver, is_missing};
use crate::line::{self, RabbitLine};
use crate::member::RabbitMember;
use crate::probe::probe;
use crate::send::RabbitSender;

pub(crate) static CAPABILITIES: Capabilities = Capabilities {
    confirm: "in the log of a quorum queue of every subscription, flushed by a majority of its members",
    order_by_key: How::Emulated("a quorum queue a lane, with a single active consumer"),
    competing_consumers: How::Emulated("members share the lanes; the server lets one at a time into each"),
    durable_subscriptions: How::Native,
    unregister: How::Native,
    replay: How::No("a queue forgets what is settled"),
    dedupe: How::No("queues know no message again; an inbox at the consumer does"),
    retry_later: How::Emulated("the owner of the lane keeps the message, and notes its time"),
    dead_letter: How::No("publish to a channel of dead letters, then settle"),
    delivery_count: How::Emulated(
        "counted and noted by the owner of the lane: the server counts what was handed over",
    ),
    lock_extend: How::Native,
    listing: How::No(NO_LISTING),
    browsing: How::No(NO_BROWSING),
    processes: How::Native,
    message_bytes_max: 16 << 20,
    consumers_per_lane_max: 1,
    loss: &[],
};

/// How often a message may come again before the server drops it: never reached. Left out, newer servers have a limit of 20.
const DELIVERY_LIMIT: i64 = 1_000_000_000;
/// On how many channels of AMQP queues are made at once: each takes the server its time.
const DECLARING: u32 = 4;

/// What messages of a channel are published to; the queue of its record has the same name.
pub(crate) fn exchange(channel: &Name) -> ShortString {
    format!("tidegate/{channel}").into()
}

/// The queue whose consumers are the members of a subscription.
pub(crate) fn members(channel: &Name, subscription: &Name) -> ShortString {
    format!("tidegate/{channel}/{subscription}").into()
}

/// The queue of a lane.
pub(crate) fn queue(channel: &Name, subscription: &Name, lane: Lane) -> ShortString {
    format!("tidegate/{channel}/{subscription}/{}", lane.0).into()
}

/// The queue in which the book of a lane is.
pub(crate) fn book(channel: &Name, subscription: &Name, lane: Lane) -> ShortString {
    format!("tidegate/{channel}/{subscription}/{}/book", lane.0).into()
}

/// A passive declaration asks whether a queue is there, and how it stands.
pub(crate) fn passive() -> QueueDeclareOptions {
    QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() }
}

/// Declares a durable quorum queue.
pub(crate) async fn declare(amqp: &Amqp, name: ShortString, is_line: bool) -> lapin::Result<()> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    if is_line {
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    amqp.queue_declare(name, options, arguments).await.map(drop)
}

/// Publishes a message to one queue, and returns when it is stored there.
pub(crate) async fn publish_to(
    amqp: &Amqp,
    queue: ShortString,
    body: &[u8],
    properties: BasicProperties,
) -> lapin::Result<bool> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = amqp.basic_publish("".into(), queue, options, body, properties).await?.await?;
    Ok(sent.is_ack() && sent.take_message().is_none())
}

/// A channel of AMQP on which what is published is confirmed, and the connection that it is on.
#[derive(Clone)]
pub(crate) struct Publishing {
    pub(crate) connection: Arc<Connection>,
    pub(crate) amqp: Arc<Own>,
}

#[derive(Debug)]
pub(crate) struct RabbitQueues {
    config: Arc<Config>,
    /// What publishes has a connection of its own: the server stops those that publish when it is short of memory or disk.
    publishing: Arc<Shared>,
}

impl RabbitQueues {
    pub(crate) fn new(config: Config) -> Self {
        Self { config: Arc::new(config), publishing: Arc::default() }
    }

    async fn confirming(&self) -> Result<Publishing> {
        let (connection, amqp) = self.publishing.channel(&self.config).await?;
        let select = amqp.confirm_select(ConfirmSelectOptions::default());
        within(self.config.access.timeout, "ask for confirmations", select).await?;
        Ok(Publishing { connection, amqp: Arc::new(Own(amqp)) })
    }

    /// Makes the books and queues of some lanes.
    async fn make(&self, channel: &Name, subscription: &Name, lanes: Range<u32>) -> Result<()> {
        let amqp = self.confirming().await?.amqp;
        for lane in lanes.map(Lane) {
            let (queue, book) = (queue(channel, subscription, lane), book(channel, subscription, lane));
            let made = async {
                declare(&amqp, book.clone(), true).await?;
                publish_to(&amqp, book, b"", line::properties(Number::default())).await?;
                declare(&amqp, queue.clone(), true).await?;
                let (key, options) = (lane.0.to_string().into(), QueueBindOptions::default());
                amqp.queue_bind(queue, exchange(channel), key, options, FieldTable::default()).await
            };
            within(self.config.access.timeout, "make a queue", made).await?;
        }
        Ok(())
    }

    /// Removes them: first what is published to, then what its owner stands in line for.
    async fn remove(&self, channel: &Name, subscription: &Name, lanes: Range<u32>) -> Result<()> {
        let amqp = self.confirming().await?.amqp;
        for lane in lanes.map(Lane) {
            for queue in [queue(channel, subscription, lane), book(channel, subscription, lane)] {
                let removed = amqp.queue_delete(queue, QueueDeleteOptions::default());
                within(self.config.access.timeout, "remove a queue", removed).await?;
            }
        }
        Ok(())
    }
}

/// The lanes of a channel in some parts.
fn parts(channel: &Channel) -> impl Iterator<Item = Range<u32>> {
    let (lanes, size) = (channel.lanes, channel.lanes.div_ceil(DECLARING).max(1));
    (0..lanes).step_by(size as usize).map(move |first| first..(first + size).min(lanes))
}

#[async_trait]
impl Queues for RabbitQueues {
    fn location(&self) -> String {
        self.config.access.location.clone()
    }

    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    async fn probe(&self) -> Result<Effective> {
        let connection = self.publishing.get(&self.config).await?;
        probe(&self.config, &connection).await
    }

    async fn create(&self, channel: &Channel) -> Result<()> {
        let (amqp, name) = (self.confirming().await?.amqp, exchange(&channel.name));
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let made = amqp.exchange_declare(name.clone(), ExchangeKind::Direct, durable, FieldTable::default());
        within(self.config.access.timeout, "make an exchange", made).await?;
        within(self.config.access.timeout, "make the queue of a record", declare(&amqp, name, true)).await
    }

    async fn line(&self, channel: &Name) -> Result<Option<Box<dyn Line>>> {
        let publishing = self.confirming().await?;
        let amqp = Arc::clone(&publishing.amqp);
        match RabbitLine::stand(amqp, publishing, exchange(channel), self.config.access.timeout).await {
            Ok(line) => Ok(Some(Box::new(line))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn subscribe(&self, channel: &Channel, subscription: &Name) -> Result<()> {
        let name = &channel.name;
        let amqp = self.confirming().await?.amqp;
        let made = declare(&amqp, members(name, subscription), false);
        within(self.config.access.timeout, "make a queue", made).await?;
        try_join_all(parts(channel).map(|lanes| self.make(name, subscription, lanes))).await.map(drop)
    }

    async fn unsubscribe(&self, channel: &Channel, subscription: &Name) -> Result<()> {
        let name = &channel.name;
        try_join_all(parts(channel).map(|lanes| self.remove(name, subscription, lanes))).await?;
        let amqp = self.confirming().await?.amqp;
        let gone = amqp.queue_delete(members(name, subscription), QueueDeleteOptions::default());
        within(self.config.access.timeout, "remove a queue", gone).await.map(drop)
    }

    fn ripens_after(&self) -> Duration {
        self.config.ripe
    }

    async fn waiting(&self, channel: &Channel, subscription: &Name) -> Result<u64> {
        let amqp = self.confirming().await?.amqp;
        let asked = (0..channel.lanes).map(|lane| {
            let queue = queue(&channel.name, subscription, Lane(lane));
            amqp.queue_declare(queue, passive(), FieldTable::default())
        });
        let answers = tokio::time::timeout(self.config.access.timeout, try_join_all(asked)).await;
        let answers = answers.map_err(|_| crate::error::timed_out("count messages"))?;
        match answers.map_err(|error| from_driver(&error, "count messages")) {
            Ok(found) => Ok(found.iter().map(|queue| u64::from(queue.message_count())).sum()),
            // It is being removed.
            Err(error) if is_missing(&error) => Ok(0),
            Err(error) => Err(error),
        }
    }

    async fn sender(&self, channel: &Channel) -> Result<Box<dyn Sender>> {
        let sender = RabbitSender::open(&self.config, &self.publishing, channel).await?;
        Ok(Box::new(sender))
    }

    async fn member(&self, channel: &Channel, subscription: &Name) -> Result<Arc<dyn Member>> {
        let books = self.confirming().await?;
        Ok(Arc::new(RabbitMember::open(Arc::clone(&self.config), books, channel, subscription).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_lanes() {
        for lanes in [1, 3, 4, 8, 9, 1_024] {
            let channel = Channel::new("a").unwrap().with_lanes(lanes);
            let all: Vec<u32> = parts(&channel).flatten().collect();
            assert_eq!(all, (0..lanes).collect::<Vec<_>>());
        }
    }

    #[test]
    fn names_are_apart_and_fit() {
        let long = Name::new("a".repeat(100)).unwrap();
        assert!(book(&long, &long, Lane(1_023)).as_str().len() <= 255);
        // Names have no slash.
        let [channel, subscription] = ["a", "b"].map(|name| Name::new(name).unwrap());
        assert_eq!(queue(&channel, &subscription, Lane(3)).as_str(), "tidegate/a/b/3");
    }
}
