//! Services over a broker in memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod aggregating;
mod calling;
mod carrying;
mod claiming;
mod failing;
mod handling;
mod prioritizing;
mod scheduling;
#[cfg(feature = "otlp")]
mod telling;
mod watched;
mod watching;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_core::port::{Broker, Producer, StateStore, Store as _};
use tidegate_core::{Apply, Channel, Clock, Message, Subscription, SystemClock, Topology};
use tidegate_memory::{MemoryBroker, MemoryStore};
use tidegate_runtime::dead_letter::DeadLetters;
use tidegate_runtime::{Handlers, Policy, Publisher, Running, Service, Typed, dead_letter};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Placed {
    order: String,
    number: u32,
}

impl Typed for Placed {
    const KIND: &str = "order.placed.v1";

    fn subject(&self) -> Option<String> {
        Some(self.order.clone())
    }
}

/// A broker, a store and a channel of two lanes.
struct World {
    memory: MemoryBroker,
    broker: Arc<dyn Broker>,
    store: Arc<dyn StateStore>,
    orders: Channel,
    clock: Arc<dyn Clock>,
}

impl World {
    async fn new() -> Self {
        let memory = MemoryBroker::default();
        let broker: Arc<dyn Broker> = Arc::new(memory.clone());
        let store = MemoryStore::new("s").state().await.unwrap();
        let orders = Channel::new("orders").unwrap().with_lanes(2);
        Self { memory, broker, store, orders, clock: SystemClock::shared() }
    }

    /// Registers a subscription before anybody is there.
    async fn subscribe(&self, name: &str) {
        let subscription = Subscription::new(&self.orders, name).unwrap();
        let topology = Topology::of(&self.orders).and(&subscription);
        self.broker.apply(&topology, Apply::Create).await.unwrap();
    }

    /// Publishes orders with these numbers, as `order:number`.
    async fn place(&self, orders: &[&str]) {
        let (clock, patience) = (Arc::clone(&self.clock), Duration::from_secs(5));
        let mut publisher = Publisher::open(&*self.broker, &self.orders)
            .with_clock(clock)
            .with_patience(patience)
            .await
            .unwrap();
        let messages: Vec<_> = orders.iter().map(|text| placed(text)).collect();
        publisher.publish(&messages).await.unwrap();
    }

    async fn letters(&self) -> DeadLetters {
        DeadLetters::open(&*self.broker, &self.orders.name, 1_000, Arc::clone(&self.clock)).await.unwrap()
    }

    /// The dead letters; they stay where they are.
    async fn dead(&self) -> Vec<Message> {
        let mut letters = self.letters().await;
        let dead = letters.read().await.unwrap().cloned().collect();
        letters.close().await.unwrap();
        dead
    }

    /// Replays dead letters, in their order.
    async fn replay(&self, which: impl Fn(&Message) -> bool) {
        let mut letters = self.letters().await;
        letters.read().await.unwrap().for_each(drop);
        letters.replay(which).await.unwrap();
        letters.close().await.unwrap();
    }
}

async fn send(producer: &mut dyn Producer, messages: &[Message]) {
    for sent in producer.publish(messages).await {
        assert!(sent.is_stored(), "{sent:?}");
    }
}

fn placed(text: &str) -> Message {
    let (order, number) = text.split_once(':').unwrap();
    let body = serde_json::to_vec(&Placed { order: order.into(), number: number.parse().unwrap() }).unwrap();
    Message::with_id(text, "shop", Placed::KIND).with_subject(order).with_data("application/json", body)
}

/// What handlers saw, as `order:number`.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn note(&self, placed: &Placed) {
        self.0.lock().unwrap().push(format!("{}:{}", placed.order, placed.number));
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn of(&self, order: &str) -> Vec<String> {
        self.all().into_iter().filter(|seen| seen.starts_with(&format!("{order}:"))).collect()
    }
}

/// Waits until it is so.
async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not come about");
}

/// A clock that is set by hand. Who sleeps looks at it again soon.
#[derive(Debug, Default)]
struct HandClock(AtomicI64);

impl HandClock {
    fn forward(&self, time: Duration) {
        self.0.fetch_add(i64::try_from(time.as_micros()).unwrap(), Ordering::Relaxed);
    }
}

#[async_trait::async_trait]
impl Clock for HandClock {
    fn now(&self) -> i64 {
        1_700_000_000_000_000 + self.0.load(Ordering::Relaxed)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed).unsigned_abs())
    }

    async fn sleep(&self, _: Duration) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Keeps what comes on a channel.
async fn collect(world: &World, channel: &Channel) -> (Running, Arc<Mutex<Vec<Message>>>) {
    collect_as(world, channel, Service::new("collecting")).await
}

/// Keeps what a service sees of a channel.
async fn collect_as(
    world: &World,
    channel: &Channel,
    service: Service,
) -> (Running, Arc<Mutex<Vec<Message>>>) {
    let seen: Arc<Mutex<Vec<Message>>> = Arc::default();
    let see = {
        let seen = Arc::clone(&seen);
        move |message: Message| {
            let seen = Arc::clone(&seen);
            async move { seen.lock().unwrap().push(message) }
        }
    };
    let service = service.on(channel, Handlers::new().handle(see).with_policy(Policy::skip()));
    (service.start(&world.broker).await.unwrap(), seen)
}

async fn drain(service: Running) {
    service.drain(Duration::from_secs(5)).await.unwrap();
}
