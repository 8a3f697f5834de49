//! Kafka: a program in Java with Kafka's own client and the SDK of CloudEvents.

use serde_json::{Value as Json, json};
use tidegate::prelude::*;
use tidegate_services::Client;
use tidegate_services::broker::Broker as Service;
use url::Url;

use crate::events::{by_id, samples, told, told_with_lane};
use crate::program::Program;
use crate::{Ground, ground};

const LANES: u32 = 4;

async fn java(ground: &Ground) -> Program {
    let url = Url::parse(&ground.url).unwrap();
    let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    Program::start(Client::Kafka, "java/Kafka.java", &[&server]).await
}

#[tokio::test]
async fn java_reads_our_events_over_kafka() {
    let Some(ground) = ground(Service::Kafka, LANES).await else { return };
    let mut java = java(&ground).await;
    ground.publish(&samples()).await;
    let seen = java.ask(json!({"do": "read", "from": ground.channel.name.as_str(), "count": 3})).await;
    let right = |message: &Message| {
        let mut right = told_with_lane(message, LANES);
        right["key"] = message.subject.as_deref().map_or(Json::Null, Json::from);
        right
    };
    assert_eq!(by_id(seen), samples().iter().map(right).collect::<Vec<_>>());
}

/// The partition is the choice of Kafka's own partitioner, and is the lane.
#[tokio::test]
async fn java_writes_events_for_us_over_kafka() {
    let Some(ground) = ground(Service::Kafka, LANES).await else { return };
    let mut java = java(&ground).await;
    for is_structured in [false, true] {
        let messages: Vec<_> = samples().iter().map(told).collect();
        let to = ground.channel.name.as_str();
        let write = json!({"do": "write", "to": to, "structured": is_structured, "messages": messages});
        let lanes = java.ask(write).await;
        for (number, message) in samples().iter().enumerate().filter(|(_, message)| message.subject.is_some())
        {
            assert_eq!(lanes[number], message.lane(LANES).0, "{message:?}");
        }
        assert_eq!(ground.take(3).await, samples(), "structured: {is_structured}");
    }
}
