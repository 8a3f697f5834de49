//! Messages between Tidegate and programs that are not in Rust, over real servers: each reads what the other wrote.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod events;
mod jms;
mod kafka;
mod nats;
mod program;
mod rabbitmq;
mod redis;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tidegate::core::port::{Consumer, Delivery, Sent, Settlement};
use tidegate::core::{Apply, Topology};
use tidegate::prelude::*;
use tidegate_services::broker::{Broker as Service, shared};
use tokio::time::Instant;

/// How long messages may take to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A channel of a server that tests share, by a name that no other one has, with a subscription.
struct Ground {
    url: String,
    broker: Arc<dyn Broker>,
    channel: Channel,
    subscription: Subscription,
}

/// Nothing if the service is skipped.
async fn ground(service: Service, lanes: u32) -> Option<Ground> {
    let server = shared(service).await?;
    let broker = tidegate::open::broker(&server.url()).unwrap();
    let channel = Channel::new(server.name("interop")).unwrap().with_lanes(lanes);
    let subscription = Subscription::new(&channel, "ours").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    Some(Ground { url: server.url(), broker, channel, subscription })
}

impl Ground {
    async fn publish(&self, messages: &[Message]) {
        let sent = self.broker.producer(&self.channel).await.unwrap().publish(messages).await;
        assert!(sent.iter().all(Sent::is_stored), "{sent:?}");
    }

    async fn consumer(&self) -> Box<dyn Consumer> {
        self.broker.subscribe(&self.subscription).await.unwrap()
    }

    /// What is published now, until so many came, by their ids; each is settled.
    async fn take(&self, count: usize) -> Vec<Message> {
        let mut consumer = self.consumer().await;
        let mut all = take(&mut *consumer, count).await;
        consumer.close(Duration::from_secs(5)).await.unwrap();
        all.sort_by(|one, other| one.id.cmp(&other.id));
        all
    }

    /// A command about the channel, for the other program.
    fn command(&self, what: &str, more: Json) -> Json {
        let mut command =
            json!({"do": what, "channel": self.channel.name.as_str(), "lanes": self.channel.lanes});
        command.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        command
    }
}

/// Takes and settles messages until so many came.
async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Message> {
    let mut all: Vec<Delivery> = Vec::new();
    let until = Instant::now() + PATIENCE;
    while all.len() < count {
        let before = all.len();
        // It returns when something is to be told of lanes, too.
        consumer.receive(count - before, PATIENCE, &mut all).await.unwrap();
        assert!(all.len() > before || Instant::now() < until, "{before} of {count} messages came");
        let done: Vec<_> = all[before..].iter().map(|one| (one.token, Settlement::Ack)).collect();
        let settled = consumer.settler().settle(&done).await;
        assert!(settled.iter().all(|settled| settled.is_done()), "{settled:?}");
    }
    all.into_iter().map(|delivery| Arc::unwrap_or_clone(delivery.message)).collect()
}
