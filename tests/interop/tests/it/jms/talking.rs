//! Programs of JMS read and write.

use serde::{Deserialize, Serialize};
use serde_json::json;
use tidegate::core::{Apply, Topology};
use tidegate::prelude::*;
use tidegate_services::Client;

use super::{
    ARTEMIS, CLASSIC, Java, QPID, QPID_ON_CLASSIC, WAIT_MS, is_classic, java, media_of_bytes, send, topic,
    topic_of,
};
use crate::PATIENCE;

/// Each subject has its lane, whoever finds it, and each lane is a topic. A topic of all of them is on ActiveMQ Classic alone.
async fn finds_lanes(with: Java) {
    const LANES: u32 = 3;
    let Some(ground) = with.ground_of(LANES).await else { return };
    let mut java = java(&ground, with).await;
    if is_classic(&ground) {
        java.ask(json!({"do": "subscribe", "as": "all", "topic": topic_of(&ground, "*")})).await;
    } else if with.client == Client::QpidJms {
        for topic in [format!("tidegate.{}/*", ground.channel.name), "tidegate.*".to_owned()] {
            let why = java.refusal(json!({"do": "subscribe", "as": topic, "topic": topic})).await;
            assert!(why.contains("does not exist"), "{why}");
        }
    }
    for lane in 0..LANES {
        let topic = topic_of(&ground, &lane.to_string());
        java.ask(json!({"do": "subscribe", "as": topic, "topic": topic})).await;
    }
    let subjects = ["a", "bc", "def", "ghij", "größe", "order-17", "東京"];
    for number in 0..2 {
        for subject in subjects {
            let more = json!({"subject": subject, "kind": "text", "body": number.to_string(), "properties": [],
                    "topics": topic_of(&ground, "")});
            java.ask(ground.command("send", more)).await;
        }
    }
    let mut consumer = ground.consumer().await;
    let mut came = Vec::new();
    while came.len() < 2 * subjects.len() {
        let before = came.len();
        consumer.receive(100, PATIENCE, &mut came).await.unwrap();
        for delivery in &came[before..] {
            assert_eq!(delivery.token.lane, delivery.message.lane(LANES), "{:?}", delivery.message.subject);
        }
    }
    for subject in subjects {
        let of = came.iter().filter(|one| one.message.subject.as_deref() == Some(subject));
        let numbers: Vec<_> = of.map(|one| one.message.data.clone()).collect();
        assert_eq!(numbers, ["0", "1"], "{subject}");
    }
    let mut seen = 0;
    for lane in 0..LANES {
        let topic = topic_of(&ground, &lane.to_string());
        let all = java.ask(json!({"do": "receive", "as": topic, "count": 99, "wait_ms": 300})).await;
        seen += all.as_array().unwrap().len();
    }
    assert_eq!(seen, 2 * subjects.len());
    if is_classic(&ground) {
        let all = java.ask(json!({"do": "receive", "as": "all", "count": 99, "wait_ms": 300})).await;
        assert_eq!(all.as_array().unwrap().len(), seen, "a pattern reads all lanes");
    }
}

#[tokio::test]
async fn qpid_jms_finds_lanes() {
    finds_lanes(QPID).await;
}

#[tokio::test]
async fn qpid_jms_finds_lanes_on_classic() {
    finds_lanes(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn artemis_own_client_finds_lanes() {
    finds_lanes(ARTEMIS).await;
}

#[tokio::test]
async fn activemq_own_client_finds_lanes() {
    finds_lanes(CLASSIC).await;
}

/// A program of JMS asks, and says which topic it waits at: that of a lane of another channel.
async fn asks(with: Java) {
    let Some(ground) = with.ground().await else { return };
    let Some(answers) = with.ground().await else { return };
    let mut java = java(&ground, with).await;
    let selector = "JMSCorrelationID = 'question-7'";
    java.ask(json!({"do": "subscribe", "as": "answers", "topic": topic(&answers), "selector": selector}))
        .await;
    let mut question = send(&ground, "text");
    question["correlation"] = "question-7".into();
    question["reply_topic"] = topic(&answers).into();
    java.ask(question).await;
    let question = &ground.take(1).await[0];
    let reply_to = question.headers.get("reply_to").unwrap();
    assert_eq!(reply_to, format!("topic://{}", topic(&answers)));
    let answer = Message::with_id("1", "/shop", "answered").caused_by(question).with_data("text/plain", "42");
    answers.publish(&[Message::with_id("0", "/shop", "other"), answer]).await;
    let seen = java.ask(json!({"do": "receive", "as": "answers", "count": 1, "wait_ms": WAIT_MS})).await;
    assert_eq!((&seen[0]["body"], &seen[0]["correlation"]), (&json!("42"), &json!("question-7")), "{seen:#}");
}

#[tokio::test]
async fn qpid_jms_asks_and_is_answered() {
    asks(QPID).await;
}

#[tokio::test]
async fn qpid_jms_asks_and_is_answered_on_classic() {
    asks(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn artemis_own_client_asks_and_is_answered() {
    asks(ARTEMIS).await;
}

#[tokio::test]
async fn activemq_own_client_asks_and_is_answered() {
    asks(CLASSIC).await;
}

#[derive(Deserialize)]
struct Asked {
    item: String,
}

impl Typed for Asked {
    const KIND: &str = "price.asked.v1";
}

#[derive(Serialize)]
struct Price {
    cents: u32,
}

impl Typed for Price {
    const KIND: &str = "price.v1";
}

async fn price(Json(asked): Json<Asked>) -> Result<Json<Price>, Failure> {
    if asked.item == "pen" {
        Ok(Json(Price { cents: 250 }))
    } else {
        Err(Failure::never(format!("nobody sells {}", asked.item)))
    }
}

/// A program of JMS asks a service that knows nothing of it, as a caller of our own does. It alone reads the replies: our
/// subscription has gone when its own is there.
async fn asks_a_service(with: Java) {
    let Some(ground) = with.ground().await else { return };
    let replies = Channel::new(format!("replies.{}", ground.channel.name)).unwrap().with_lanes(1);
    let first = Subscription::new(&replies, "first").unwrap();
    ground.broker.apply(&Topology::of(&replies).and(&first), Apply::Create).await.unwrap();
    let mut java = java(&ground, with).await;
    let topic_of_replies = match is_classic(&ground) {
        true => format!("VirtualTopic.tidegate.{}.0", replies.name),
        false => format!("tidegate.{}/0", replies.name),
    };
    java.ask(json!({"do": "subscribe", "as": "replies", "topic": topic_of_replies, "durable": true})).await;
    // ActiveMQ Classic does not say whether anybody reads a topic but our own subscriptions.
    if !is_classic(&ground) {
        ground.broker.unregister(&first).await.unwrap();
    }

    let handlers = Handlers::new().handle(price).with_policy(Policy::skip());
    let shop = tidegate::runtime::Service::new("shop").on(&ground.channel, handlers);
    let shop = shop.start(&ground.broker).await.unwrap();
    for (item, kind, reply) in
        [("pen", "price.v1", r#"{"cents":250}"#), ("moon", "tidegate.failed.v1", "nobody sells moon")]
    {
        let asked = java.ask(json!({
            "do": "send", "topic": topic(&ground), "kind": "text", "body": json!({"item": item}).to_string(),
            "type": "price.asked.v1", "properties": [["tg_reply_to", "string", replies.name.as_str()]],
        }));
        let asked = asked.await;
        let seen = java.ask(json!({"do": "receive", "as": "replies", "count": 1, "wait_ms": WAIT_MS})).await;
        assert_eq!((&seen[0]["type"], &seen[0]["properties"]["tg_call"]), (&json!(kind), &asked["id"]));
        assert_eq!(seen[0]["body"], reply, "{seen:#}");
    }
    shop.drain(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn qpid_jms_asks_a_service() {
    asks_a_service(QPID).await;
}

#[tokio::test]
async fn qpid_jms_asks_a_service_on_classic() {
    asks_a_service(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn artemis_own_client_asks_a_service() {
    asks_a_service(ARTEMIS).await;
}

#[tokio::test]
async fn activemq_own_client_asks_a_service() {
    asks_a_service(CLASSIC).await;
}

/// A program of JMS takes a message of a channel and sends it, as it is, to another one: nothing of it is lost.
async fn forwards(with: Java) {
    let Some(ground) = with.ground().await else { return };
    let Some(there) = with.ground().await else { return };
    let mut java = java(&ground, with).await;
    java.ask(json!({"do": "subscribe", "as": "all", "topic": topic(&ground)})).await;
    let mut published = with.samples();
    published[0].headers.set("reply_to", "answers").unwrap();
    ground.publish(&published).await;
    for _ in &published {
        java.ask(json!({"do": "forward", "as": "all", "topic": topic(&there), "wait_ms": WAIT_MS})).await;
    }
    // It was sent with a body of no bytes, and no media type.
    published[1].datacontenttype = media_of_bytes(with).map(Into::into);
    assert_eq!(there.take(3).await, published);
}

#[tokio::test]
async fn what_qpid_jms_sends_on_is_what_it_was() {
    forwards(QPID).await;
}

#[tokio::test]
async fn what_qpid_jms_sends_on_is_what_it_was_on_classic() {
    forwards(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn what_artemis_own_client_sends_on_is_what_it_was() {
    forwards(ARTEMIS).await;
}

#[tokio::test]
async fn what_activemq_own_client_sends_on_is_what_it_was() {
    forwards(CLASSIC).await;
}
