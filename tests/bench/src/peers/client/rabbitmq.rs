//! lapin, with a quorum queue.

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, PublisherConfirm};

use super::{Client, Consumer, Producer, Take};
use crate::Result;
use crate::load::WINDOW;

struct Rabbit(String);

/// A client of the server of a URL.
pub fn client(url: &str) -> Result<Box<dyn Client>> {
    Ok(Box::new(Rabbit(url.to_owned())))
}

impl Rabbit {
    async fn connect(&self) -> Result<Open> {
        let connection = Connection::connect(&self.0, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        Ok(Open { channel, _connection: connection })
    }
}

/// A channel, and the connection that it is on.
struct Open {
    channel: Channel,
    _connection: Connection,
}

#[async_trait]
impl Client for Rabbit {
    async fn create(&self, topic: &str) -> Result<()> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.connect().await?.channel.queue_declare(topic.into(), options, arguments).await?;
        Ok(())
    }

    async fn remove(&self, topic: &str) -> Result<()> {
        self.connect().await?.channel.queue_delete(topic.into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }

    async fn producer(&self, topic: &str) -> Result<Box<dyn Producer>> {
        let open = self.connect().await?;
        open.channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Box::new(RabbitProducer { topic: topic.to_owned(), open }))
    }

    async fn consumer(&self, topic: &str) -> Result<Box<dyn Consumer>> {
        let open = self.connect().await?;
        open.channel.basic_qos(u16::try_from(4 * WINDOW)?, BasicQosOptions::default()).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let messages = open.channel.basic_consume(topic.into(), "bench".into(), options, arguments).await?;
        Ok(Box::new(RabbitConsumer { messages, _open: open }))
    }
}

struct RabbitProducer {
    topic: String,
    open: Open,
}

impl RabbitProducer {
    async fn publish(&self, body: &[u8]) -> Result<PublisherConfirm> {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let (queue, options) = (self.topic.as_str().into(), BasicPublishOptions::default());
        Ok(self.open.channel.basic_publish("".into(), queue, options, body, properties).await?)
    }
}

fn stored(confirm: &lapin::Confirmation) -> Result<()> {
    if confirm.is_ack() { Ok(()) } else { Err("the server did not take a message".into()) }
}

#[async_trait]
impl Producer for RabbitProducer {
    async fn window(&self, bodies: &[Bytes]) -> Result<()> {
        let mut sent = Vec::with_capacity(bodies.len());
        for body in bodies {
            sent.push(self.publish(body).await?);
        }
        for sent in sent {
            stored(&sent.await?)?;
        }
        Ok(())
    }

    async fn send(&self, body: Bytes) -> Result<()> {
        stored(&self.publish(&body).await?.await?)
    }
}

struct RabbitConsumer {
    messages: lapin::Consumer,
    _open: Open,
}

#[async_trait]
impl Consumer for RabbitConsumer {
    async fn batch(&mut self, take: &mut Take<'_>) -> Result<()> {
        let ended = "the messages have ended";
        let mut last = self.messages.next().await.ok_or(ended)??;
        take(&last.data)?;
        for _ in 1..WINDOW {
            let Some(more) = self.messages.next().now_or_never() else { break };
            last = more.ok_or(ended)??;
            take(&last.data)?;
        }
        // It stands for all before it: one answer a window.
        last.acker.ack(BasicAckOptions { multiple: true }).await?;
        Ok(())
    }
}
