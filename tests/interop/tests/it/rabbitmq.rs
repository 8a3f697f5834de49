//! RabbitMQ: a program in Python with pika.

use serde_json::json;
use tidegate_services::Client;
use tidegate_services::broker::Broker as Service;

use crate::events::{by_id, samples, told, told_with_lane};
use crate::ground;
use crate::program::Program;

const LANES: u32 = 4;

#[tokio::test]
async fn python_reads_our_events_over_rabbitmq() {
    let Some(ground) = ground(Service::Rabbitmq, LANES).await else { return };
    let mut python = Program::start(Client::Python, "python/rabbitmq_client.py", &[&ground.url]).await;
    python.ask(ground.command("listen", json!({}))).await;
    ground.publish(&samples()).await;
    let seen = python.ask(ground.command("read", json!({"count": 3}))).await;
    let right: Vec<_> = samples().iter().map(|message| told_with_lane(message, LANES)).collect();
    assert_eq!(by_id(seen), right);
}

/// Names with the underscore that JMS asks for, with the colon of the binding, and in one piece.
#[tokio::test]
async fn python_writes_events_for_us_over_rabbitmq() {
    let Some(ground) = ground(Service::Rabbitmq, LANES).await else { return };
    let mut python = Program::start(Client::Python, "python/rabbitmq_client.py", &[&ground.url]).await;
    for mode in ["binary", "letter", "structured"] {
        let messages: Vec<_> = samples().iter().map(told).collect();
        python.ask(ground.command("write", json!({"mode": mode, "messages": messages}))).await;
        assert_eq!(ground.take(3).await, samples(), "{mode}");
    }
}
