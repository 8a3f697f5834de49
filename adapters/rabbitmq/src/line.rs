//! A place in the line of a slot's queue, which has a single active consumer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Consumer};
use tidegate_broker::queue::{Copy, Line, Number};
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::connect::{Own, blocked, published, within};
use crate::error::came;
use crate::queues::{Publishing, passive, publish_to};

pub(crate) struct RabbitLine {
    /// Closed, and its consumer never cancelled: what a cancelled one has in hand does not go back.
    amqp: Arc<Own>,
    consumer: Consumer,
    queue: ShortString,
    publishing: Publishing,
    timeout: Duration,
}

impl RabbitLine {
    /// Stands in the line of a queue, over a channel of AMQP of its own.
    pub(crate) async fn stand(
        amqp: Arc<Own>,
        publishing: Publishing,
        queue: ShortString,
        timeout: Duration,
    ) -> Result<Self> {
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consuming = amqp.basic_consume(queue.clone(), "holder".into(), options, arguments);
        let consumer = within(timeout, "stand in line", consuming).await?;
        Ok(Self { amqp, consumer, queue, publishing, timeout })
    }
}

/// Those of a copy.
pub(crate) fn properties(number: Number) -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2).with_message_id(number.to_string().into())
}

#[async_trait]
impl Line for RabbitLine {
    async fn next(&mut self) -> Result<Copy> {
        let delivery = came(self.consumer.next().await)?;
        let id = delivery.properties.message_id().as_ref();
        let number = id.and_then(|id| id.as_str().parse().ok()).unwrap_or_default();
        Ok(Copy { number, value: delivery.data.into(), tag: delivery.delivery_tag })
    }

    async fn left(&mut self) -> Result<u64> {
        // The server may answer before it hands over what it has given to this consumer; the second answer comes behind it.
        let mut left = 0;
        for _ in 0..2 {
            let asked = self.amqp.queue_declare(self.queue.clone(), passive(), FieldTable::default());
            let found = published(&self.publishing.connection, self.timeout, "count copies", asked).await?;
            left = found.message_count().into();
        }
        Ok(left)
    }

    async fn store(&mut self, number: Number, value: &[u8]) -> Result<()> {
        const OPERATION: &str = "write a copy";
        let Publishing { connection, amqp } = &self.publishing;
        if connection.status().blocked() {
            return Err(blocked().with("operation", OPERATION));
        }
        let stored = publish_to(amqp, self.queue.clone(), value, properties(number));
        match published(connection, self.timeout, OPERATION, stored).await? {
            true => Ok(()),
            false => {
                Err(Error::new(code::STORE_FAILED, "the server did not take a copy of what was written")
                    .with("operation", OPERATION))
            }
        }
    }

    async fn remove(&mut self, tags: &[u64]) -> Result<()> {
        for tag in tags {
            let acked = self.amqp.basic_ack(*tag, BasicAckOptions::default());
            within(self.timeout, "remove a copy", acked).await?;
        }
        Ok(())
    }

    async fn leave(self: Box<Self>) -> Result<()> {
        let left = self.amqp.close(200, "the line is left".into());
        published(&self.publishing.connection, self.timeout, "leave a line", left).await
    }
}
