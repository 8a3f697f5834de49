//! What is NATS's alone, on real servers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod failing;
mod reading;

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::port::{Broker, Consumer, Delivery, Settlement};
use tidegate_core::{Apply, Channel, Endpoint, Message, Subscription, Topology};
use tidegate_services::broker::{Broker as Service, Options, Server};
use tidegate_services::skipped;

/// A server of its own, unless NATS is skipped.
async fn server(options: Options) -> Option<Server> {
    if skipped(Service::Nats.service()) {
        return None;
    }
    Some(Server::start(Service::Nats, options).await.unwrap())
}

fn open(url: &str) -> Arc<dyn Broker> {
    tidegate_nats::open_broker(&Endpoint::parse(url).unwrap()).unwrap()
}

/// A channel of one lane with a subscription.
async fn channel(broker: &dyn Broker, name: &str) -> (Channel, Subscription) {
    let channel = Channel::new(name).unwrap().with_lanes(1);
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    (channel, subscription)
}

fn messages(numbers: std::ops::Range<u64>) -> Vec<Message> {
    let message = |number: u64| {
        Message::with_id(number.to_string(), "test", "numbered")
            .with_subject("k")
            .with_data("text/plain", "x".repeat(512))
    };
    numbers.map(message).collect()
}

/// Takes and acknowledges messages until so many came.
async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        let mut out = Vec::new();
        consumer.receive(count - all.len(), Duration::from_secs(10), &mut out).await.unwrap();
        let batch: Vec<_> = out.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
        let settled = consumer.settler().settle(&batch).await;
        assert!(settled.iter().all(|settled| settled.is_done()), "{settled:?}");
        all.append(&mut out);
    }
    all
}
