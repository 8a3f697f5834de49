//! A program of JMS on Artemis and a service on Redis, with bridges between.

use serde_json::json;
use tidegate::prelude::*;
use tidegate::runtime::Bridge;
use tidegate_services::broker::{Broker as Service, shared};

use super::{ARTEMIS, CLASSIC, Java, QPID, QPID_ON_CLASSIC, WAIT_MS, java, topic};
use crate::PATIENCE;

/// Answers every message, with all that it knew of it.
async fn answer(State(answers): State<Sender>, question: Message) -> Result<(), Failure> {
    let mut answer = Message::new(&SystemIds, "there", "answered")
        .caused_by(&question)
        .with_data("text/plain", question.data.clone());
    for name in ["atext", "along", "reply_to"] {
        let known = question.headers.get(name).unwrap_or("missing");
        answer.headers.set(name, known).map_err(Failure::never)?;
    }
    answer.subject.clone_from(&question.subject);
    answers.send(answer).await.map_err(Failure::retry)
}

async fn asks_over_bridges(with: Java) {
    let Some(redis) = shared(Service::Redis).await else { return };
    let Some(here) = with.ground().await else { return };
    let Some(answers) = with.ground().await else { return };
    let there = tidegate::open::broker(&redis.url()).unwrap();

    let back = Bridge::new(&answers.channel, "there", "here").unwrap();
    let back = back.start(&there, &*here.broker).await.unwrap().0;
    let sender = Sender::open(&*there, &answers.channel).with_patience(PATIENCE).await.unwrap();
    let service = tidegate::runtime::Service::new("answering").with_state(sender);
    let handlers = Handlers::new().handle(answer).with_policy(Policy::block());
    let service = service.on(&here.channel, handlers).start(&there).await.unwrap();
    let on = Bridge::new(&here.channel, "here", "there").unwrap();
    let on = on.start(&here.broker, &*there).await.unwrap().0;

    let mut java = java(&here, with).await;
    let selector = "JMSCorrelationID = 'cart-9'";
    java.ask(json!({"do": "subscribe", "as": "answers", "topic": topic(&answers), "selector": selector}))
        .await;
    java.ask(json!({
        "do": "send", "topic": topic(&here), "kind": "text", "body": "größe", "subject": "order-17",
        "correlation": "cart-9", "type": "asked", "reply_topic": topic(&answers),
        "properties": [["aText", "string", "東京"], ["aLong", "long", 9007199254740993_i64]],
    }))
    .await;
    let seen = java.ask(json!({"do": "receive", "as": "answers", "count": 1, "wait_ms": WAIT_MS})).await;
    let seen = &seen[0];
    assert_eq!(
        (&seen["kind"], &seen["body"], &seen["type"]),
        (&json!("text"), &json!("größe"), &json!("answered"))
    );
    let properties = &seen["properties"];
    assert_eq!((&properties["atext"], &properties["along"]), (&json!("東京"), &json!("9007199254740993")));
    assert_eq!((&properties["JMSXGroupID"], &properties["tg_via"]), (&json!("order-17"), &json!("there")));
    assert_eq!(seen["reply_topic"], topic(&answers));
    for running in [on, service, back] {
        running.drain(PATIENCE).await.unwrap();
    }
}

#[tokio::test]
async fn qpid_jms_asks_over_bridges() {
    asks_over_bridges(QPID).await;
}

#[tokio::test]
async fn qpid_jms_asks_over_bridges_on_classic() {
    asks_over_bridges(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn artemis_own_client_asks_over_bridges() {
    asks_over_bridges(ARTEMIS).await;
}

#[tokio::test]
async fn activemq_own_client_asks_over_bridges() {
    asks_over_bridges(CLASSIC).await;
}
