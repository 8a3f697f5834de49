//! NATS: a program in Python with nats-py.

use serde_json::json;
use tidegate_services::Client;
use tidegate_services::broker::Broker as Service;

use crate::events::{by_id, samples, told, told_with_lane};
use crate::ground;
use crate::program::Program;

const LANES: u32 = 4;

#[tokio::test]
async fn python_reads_our_events_over_nats() {
    let Some(ground) = ground(Service::Nats, LANES).await else { return };
    let mut python = Program::start(Client::Python, "python/nats_client.py", &[&ground.url]).await;
    ground.publish(&samples()).await;
    let seen = python.ask(ground.command("read", json!({"count": 3}))).await;
    let right: Vec<_> = samples().iter().map(|message| told_with_lane(message, LANES)).collect();
    assert_eq!(by_id(seen), right);
}

#[tokio::test]
async fn python_writes_events_for_us_over_nats() {
    let Some(ground) = ground(Service::Nats, LANES).await else { return };
    let mut python = Program::start(Client::Python, "python/nats_client.py", &[&ground.url]).await;
    for mode in ["binary", "structured"] {
        let messages: Vec<_> = samples().iter().map(told).collect();
        python.ask(ground.command("write", json!({"mode": mode, "messages": messages}))).await;
        assert_eq!(ground.take(3).await, samples(), "{mode}");
    }
}
