//! librdkafka, through rdkafka.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};

use super::{Client, Consumer, Producer, Take};
use crate::Result;
use crate::load::{SUBJECTS, WINDOW};

/// As many as our channel has lanes.
const PARTITIONS: i32 = tidegate_core::channel::LANES.cast_signed();
const LIMIT: Duration = Duration::from_secs(30);

struct Kafka(ClientConfig);

/// A client of the server of a URL.
pub fn client(url: &str) -> Result<Box<dyn Client>> {
    let hosts = url.strip_prefix("kafka://").ok_or("this is no URL of Kafka")?;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", hosts);
    Ok(Box::new(Kafka(config)))
}

impl Kafka {
    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(self.0.create()?)
    }
}

#[async_trait]
impl Client for Kafka {
    async fn create(&self, topic: &str) -> Result<()> {
        let wanted = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
        for made in self.admin()?.create_topics([&wanted], &AdminOptions::new()).await? {
            made.map_err(|(topic, error)| format!("{topic}: {error}"))?;
        }
        Ok(())
    }

    async fn remove(&self, topic: &str) -> Result<()> {
        for gone in self.admin()?.delete_topics(&[topic], &AdminOptions::new()).await? {
            gone.map_err(|(topic, error)| format!("{topic}: {error}"))?;
        }
        Ok(())
    }

    async fn producer(&self, topic: &str) -> Result<Box<dyn Producer>> {
        let mut config = self.0.clone();
        config.set("enable.idempotence", "true").set("acks", "all").set("linger.ms", "0");
        let producer: FutureProducer = config.create()?;
        let (topic, asked) = (topic.to_owned(), topic.to_owned());
        // Knows the topic's partitions before the first message.
        let producer = tokio::task::spawn_blocking(move || {
            producer.client().fetch_metadata(Some(&asked), LIMIT).map(|_| producer)
        });
        Ok(Box::new(KafkaProducer { topic, producer: producer.await?? }))
    }

    async fn consumer(&self, topic: &str) -> Result<Box<dyn Consumer>> {
        let mut config = self.0.clone();
        config
            .set("group.id", topic)
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            // A topic that was just made is known at once.
            .set("topic.metadata.refresh.interval.ms", "1000");
        let consumer: StreamConsumer = config.create()?;
        consumer.subscribe(&[topic])?;
        Ok(Box::new(KafkaConsumer { topic: topic.to_owned(), consumer }))
    }
}

struct KafkaProducer {
    topic: String,
    producer: FutureProducer,
}

impl KafkaProducer {
    fn begin(&self, body: &[u8]) -> Result<DeliveryFuture> {
        // The number of the message says what it is about.
        let number = body.first_chunk::<8>().map(|number| u64::from_le_bytes(*number)).unwrap_or_default();
        let key = (number % SUBJECTS).to_string();
        let record = FutureRecord::to(&self.topic).key(&key).payload(body);
        Ok(self.producer.send_result(record).map_err(|(error, _)| error)?)
    }
}

#[async_trait]
impl Producer for KafkaProducer {
    async fn window(&self, bodies: &[Bytes]) -> Result<()> {
        let sent = bodies.iter().map(|body| self.begin(body)).collect::<Result<Vec<_>>>()?;
        for sent in sent {
            sent.await?.map_err(|(error, _)| error)?;
        }
        Ok(())
    }

    async fn send(&self, body: Bytes) -> Result<()> {
        self.begin(&body)?.await?.map_err(|(error, _)| error)?;
        Ok(())
    }
}

struct KafkaConsumer {
    topic: String,
    consumer: StreamConsumer,
}

#[async_trait]
impl Consumer for KafkaConsumer {
    async fn batch(&mut self, take: &mut Take<'_>) -> Result<()> {
        let mut ends = [None; PARTITIONS.cast_unsigned() as usize];
        let mut one = |message: &BorrowedMessage<'_>| {
            take(message.payload().unwrap_or_default())?;
            let end = usize::try_from(message.partition()).ok().and_then(|at| ends.get_mut(at));
            *end.ok_or("a message came of another partition")? = Some(message.offset() + 1);
            crate::Result::Ok(())
        };
        one(&self.consumer.recv().await?)?;
        for _ in 1..WINDOW {
            let Some(message) = self.consumer.recv().now_or_never() else { break };
            one(&message?)?;
        }
        let mut offsets = TopicPartitionList::new();
        for (partition, end) in (0..).zip(ends) {
            if let Some(end) = end {
                offsets.add_partition_offset(&self.topic, partition, Offset::Offset(end))?;
            }
        }
        Ok(self.consumer.commit(&offsets, CommitMode::Async)?)
    }
}
