//! A member of a subscription: a connection of its own, so that everything it has is free when it is gone.

use std::sync::Arc;

use async_trait::async_trait;
use lapin::Consumer;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tidegate_broker::queue::{Line, Link, Member, held_max};
use tidegate_core::{Channel, Lane, Name, Result};

use crate::config::Config;
use crate::connect::{Own, OwnConnection, open, within};
use crate::lane::RabbitLane;
use crate::line::RabbitLine;
use crate::queues::{Publishing, book, members, passive};

pub(crate) struct RabbitMember {
    config: Arc<Config>,
    connection: Arc<OwnConnection>,
    channel: Channel,
    subscription: Name,
    amqp: Own,
    /// On which books are written: what publishes is on another connection.
    books: Publishing,
    /// The consumer that is counted. Nothing comes.
    _counted: Consumer,
}

impl RabbitMember {
    pub(crate) async fn open(
        config: Arc<Config>,
        books: Publishing,
        channel: &Channel,
        subscription: &Name,
    ) -> Result<Self> {
        let connection = OwnConnection(open(&config, "consuming").await?);
        let amqp =
            within(config.access.timeout, "open a channel of AMQP", connection.create_channel()).await?;
        let amqp = Own(amqp);
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let counted =
            amqp.basic_consume(members(&channel.name, subscription), "member".into(), options, arguments);
        let counted = within(config.access.timeout, "become a member", counted).await?;
        let (channel, subscription) = (channel.clone(), subscription.clone());
        let connection = Arc::new(connection);
        Ok(Self { config, connection, channel, subscription, amqp, books, _counted: counted })
    }
}

impl RabbitMember {
    async fn channel_of_amqp(&self) -> Result<Own> {
        let opening = self.connection.create_channel();
        within(self.config.access.timeout, "open a channel of AMQP", opening).await.map(Own)
    }
}

#[async_trait]
impl Member for RabbitMember {
    async fn count(&self) -> Result<usize> {
        let name = members(&self.channel.name, &self.subscription);
        let asked = self.amqp.queue_declare(name, passive(), FieldTable::default());
        let found = within(self.config.access.timeout, "count members", asked).await?;
        Ok(found.consumer_count() as usize)
    }

    async fn line(&self, lane: Lane) -> Result<Box<dyn Line>> {
        let book = book(&self.channel.name, &self.subscription, lane);
        let amqp = Arc::new(self.channel_of_amqp().await?);
        Ok(Box::new(RabbitLine::stand(amqp, self.books.clone(), book, self.config.access.timeout).await?))
    }

    async fn lane(&self, lane: Lane) -> Result<Box<dyn Link>> {
        let amqp = self.channel_of_amqp().await?;
        let limited = amqp.basic_qos(held_max(&self.channel), BasicQosOptions::default());
        within(self.config.access.timeout, "limit what is in hand", limited).await?;
        let (connection, timeout) = (Arc::clone(&self.connection), self.config.access.timeout);
        let (channel, subscription) = (&self.channel.name, &self.subscription);
        Ok(Box::new(RabbitLane::open(connection, amqp, channel, subscription, lane, timeout).await?))
    }
}
