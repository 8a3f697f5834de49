//! async-nats, with JetStream.

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, Message, stream};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};

use super::{Client, Consumer, Producer, Take};
use crate::Result;
use crate::load::WINDOW;

/// The name of the only subscription.
const DURABLE: &str = "all";

struct Nats(String);

/// A client of the server of a URL.
pub fn client(url: &str) -> Result<Box<dyn Client>> {
    Ok(Box::new(Nats(url.to_owned())))
}

impl Nats {
    async fn connect(&self) -> Result<jetstream::Context> {
        Ok(jetstream::new(async_nats::connect(&self.0).await?))
    }
}

#[async_trait]
impl Client for Nats {
    async fn create(&self, topic: &str) -> Result<()> {
        let config =
            stream::Config { name: topic.into(), subjects: vec![topic.into()], ..stream::Config::default() };
        let stream = self.connect().await?.create_stream(config).await?;
        let config = pull::Config {
            durable_name: Some(DURABLE.into()),
            // What is acknowledged stands for all before it: one answer a window.
            ack_policy: AckPolicy::All,
            max_ack_pending: 64 * WINDOW.cast_signed(),
            ..pull::Config::default()
        };
        stream.create_consumer(config).await?;
        Ok(())
    }

    async fn remove(&self, topic: &str) -> Result<()> {
        self.connect().await?.delete_stream(topic).await?;
        Ok(())
    }

    async fn producer(&self, topic: &str) -> Result<Box<dyn Producer>> {
        Ok(Box::new(NatsProducer { topic: topic.to_owned(), context: self.connect().await? }))
    }

    async fn consumer(&self, topic: &str) -> Result<Box<dyn Consumer>> {
        let consumer: jetstream::consumer::PullConsumer =
            self.connect().await?.get_stream(topic).await?.get_consumer(DURABLE).await?;
        let window = usize::try_from(WINDOW)?;
        Ok(Box::new(NatsConsumer(consumer.stream().max_messages_per_batch(window).messages().await?)))
    }
}

struct NatsProducer {
    topic: String,
    context: jetstream::Context,
}

#[async_trait]
impl Producer for NatsProducer {
    async fn window(&self, bodies: &[Bytes]) -> Result<()> {
        let mut sent = Vec::with_capacity(bodies.len());
        for body in bodies {
            sent.push(self.context.publish(self.topic.clone(), body.clone()).await?);
        }
        for sent in sent {
            sent.await?;
        }
        Ok(())
    }

    async fn send(&self, body: Bytes) -> Result<()> {
        self.context.publish(self.topic.clone(), body).await?.await?;
        Ok(())
    }
}

struct NatsConsumer(pull::Stream);

#[async_trait]
impl Consumer for NatsConsumer {
    async fn batch(&mut self, take: &mut Take<'_>) -> Result<()> {
        let mut next = self.0.next().await;
        let mut last: Option<Message> = None;
        for _ in 0..WINDOW {
            let message = next.ok_or("the messages have ended")??;
            take(&message.payload)?;
            last = Some(message);
            match self.0.next().now_or_never() {
                Some(more) => next = more,
                None => break,
            }
        }
        match last {
            Some(last) => last.ack().await,
            None => Ok(()),
        }
    }
}
