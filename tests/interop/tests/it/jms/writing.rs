//! What programs of JMS send is read.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value as Json, json};
use tidegate::core::error::code;
use tidegate::prelude::*;
use tidegate_services::Client;

use super::{ARTEMIS, CLASSIC, Java, QPID, QPID_ON_CLASSIC, is_classic, java, media_of_bytes, send, topic};
use crate::take;

/// A property of every type that JMS has.
fn properties() -> Json {
    json!([
        ["isPaid", "boolean", true],
        ["aByte", "byte", -128],
        ["aShort", "short", -32768],
        ["anInt", "int", 2147483647],
        ["aLong", "long", 9007199254740993_i64],
        ["aFloat", "float", 0.25],
        ["aDouble", "double", -1e-3],
        ["aText", "string", "größe 東京"],
        ["empty", "string", ""],
    ])
}

/// What they are here.
fn with_properties(message: Message) -> Message {
    let headers = [
        ("ispaid", "true"),
        ("abyte", "-128"),
        ("ashort", "-32768"),
        ("anint", "2147483647"),
        ("along", "9007199254740993"),
        ("afloat", "0.25"),
        ("adouble", "-0.001"),
        ("atext", "größe 東京"),
        ("empty", ""),
    ];
    headers.into_iter().fold(message, |message, (name, value)| message.with_header(name, value).unwrap())
}

async fn sends(with: Java) {
    let Some(ground) = with.ground().await else { return };
    let mut java = java(&ground, with).await;
    let mut right = Vec::new();
    for (kind, body, media, data) in [
        ("text", json!("größe"), Some("text/plain"), "größe".as_bytes()),
        ("bytes", json!(BASE64.encode([0, 255, 10])), media_of_bytes(with), &[0, 255, 10][..]),
    ] {
        let sent = java.ask(json!({
            "do": "send", "topic": topic(&ground), "kind": kind, "body": body, "properties": properties(),
            "correlation": "cart-9", "type": "order.placed.v1", "reply_queue": "answers",
        }));
        let sent = sent.await;
        let message = Message::with_id(sent["id"].as_str().unwrap(), "amqp", "order.placed.v1")
            .with_time(sent["time"].as_i64().unwrap() * 1_000)
            .with_header("reply_to", "answers")
            .unwrap();
        let mut message = with_properties(message);
        message.datacontenttype = media.map(Into::into);
        message.data = data.to_vec().into();
        message.correlation_id = Some("cart-9".into());
        right.push(message);
    }
    let sent = java.ask(json!({
        "do": "send", "topic": topic(&ground), "kind": "map", "body": null,
        "properties": [["JMSXGroupID", "string", "order-17"]],
    }));
    let sent = sent.await;
    let came = ground.take(3).await;
    let find = |id: &Json| came.iter().find(|message| *message.id == *id.as_str().unwrap()).unwrap().clone();
    for right in right {
        assert_eq!(find(&Json::from(&*right.id)), right);
    }
    let map = find(&sent["id"]);
    assert_eq!((&*map.kind, map.subject.as_deref()), ("amqp.message", Some("order-17")));
    assert_eq!(map.datacontenttype.as_deref(), Some("application/json"));
    let body: Json = serde_json::from_slice(&map.data).unwrap();
    let right = json!({
        "name": "größe", "count": -7, "total": 9007199254740992_i64, "weight": 0.5, "paid": true, "raw": "/wA=",
    });
    assert_eq!(body, right);
}

#[tokio::test]
async fn messages_of_qpid_jms_are_read() {
    sends(QPID).await;
}

#[tokio::test]
async fn messages_of_qpid_jms_are_read_on_classic() {
    sends(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn messages_of_artemis_own_client_are_read() {
    sends(ARTEMIS).await;
}

#[tokio::test]
async fn messages_of_activemq_own_client_are_read() {
    sends(CLASSIC).await;
}

/// What has no text and no bytes, and what is never read.
async fn sends_other_kinds(with: Java) {
    let Some(ground) = with.ground().await else { return };
    let mut java = java(&ground, with).await;
    let mut consumer = ground.consumer().await;
    for (kind, media, data) in
        [("stream", Some("application/json"), &br#"["a",-5]"#[..]), ("nothing", None, b"")]
    {
        java.ask(send(&ground, kind)).await;
        let message = &take(&mut *consumer, 1).await[0];
        assert_eq!((message.datacontenttype.as_deref(), &message.data[..]), (media, data), "{kind}");
    }
    java.ask(send(&ground, "object")).await;
    let message = &take(&mut *consumer, 1).await[0];
    assert_eq!(&*message.kind, "tidegate.undecodable.v1");
    let why = message.headers.get("tg_error").unwrap();
    assert!(why.contains("the message is an object of Java: it is never read"), "{why}");
    assert_eq!(message.data[..2], [0xac, 0xed], "as it was: that is how Java's objects begin");
}

#[tokio::test]
async fn streams_and_objects_of_qpid_jms_are_what_they_are() {
    sends_other_kinds(QPID).await;
}

#[tokio::test]
async fn streams_and_objects_of_qpid_jms_are_what_they_are_on_classic() {
    sends_other_kinds(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn streams_and_objects_of_artemis_own_client_are_what_they_are() {
    sends_other_kinds(ARTEMIS).await;
}

#[tokio::test]
async fn streams_and_objects_of_activemq_own_client_are_what_they_are() {
    sends_other_kinds(CLASSIC).await;
}

/// An event that a program of JMS writes by itself: attributes as properties, and what it has to be answered at in its own way.
async fn writes_events(with: Java) {
    let Some(ground) = with.ground().await else { return };
    let mut java = java(&ground, with).await;
    let mut event = send(&ground, "text");
    event["reply_queue"] = "answers".into();
    event["properties"] = json!([
        ["cloudEvents_specversion", "string", "1.0"],
        ["cloudEvents_id", "string", "7"],
        ["cloudEvents_source", "string", "/shop"],
        ["cloudEvents_type", "string", "order.placed.v1"],
        ["cloudEvents_subject", "string", "Käse"],
        ["cloudEvents_partitionkey", "string", "köln"],
        ["region", "string", "east"],
    ]);
    java.ask(event.clone()).await;
    // A name that no other broker could carry.
    event["properties"].as_array_mut().unwrap().push(json!(["orderId", "int", 7]));
    java.ask(event).await;
    let came = take(&mut *ground.consumer().await, 2).await;
    let mut right = Message::with_id("7", "/shop", "order.placed.v1")
        .with_subject("Käse")
        .with_data("text/plain", "x")
        .with_header("region", "east")
        .unwrap()
        .with_header("reply_to", "answers")
        .unwrap();
    right.extensions.set("partitionkey", "köln").unwrap();
    assert_eq!(came[0], right);
    assert_eq!((&*came[1].kind, &came[1].data[..]), ("tidegate.undecodable.v1", &b"x"[..]));
    assert!(came[1].headers.get("tg_error").unwrap().contains("orderId"));
}

#[tokio::test]
async fn qpid_jms_writes_events() {
    writes_events(QPID).await;
}

#[tokio::test]
async fn qpid_jms_writes_events_on_classic() {
    writes_events(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn artemis_own_client_writes_events() {
    writes_events(ARTEMIS).await;
}

#[tokio::test]
async fn activemq_own_client_writes_events() {
    writes_events(CLASSIC).await;
}

/// What JMS has and a lane has not: time that is over removes nothing. But the server hands out first what is urgent. ActiveMQ
/// Classic does neither: it moves away what is late, and keeps the order unless it is told otherwise.
async fn hurries(with: Java) {
    let Some(ground) = with.ground().await else { return };
    let mut java = java(&ground, with).await;
    for (id, priority) in [("1", 4), ("2", 9)] {
        let mut hurried = send(&ground, "text");
        hurried["type"] = id.into();
        hurried["priority"] = priority.into();
        hurried["expires_ms"] = if is_classic(&ground) { 0 } else { 1 }.into();
        java.ask(hurried).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let came = take(&mut *ground.consumer().await, 2).await;
    let right = if is_classic(&ground) { ["1", "2"] } else { ["2", "1"] };
    assert_eq!([&*came[0].kind, &*came[1].kind], right);
}

#[tokio::test]
async fn qpid_jms_hurries() {
    hurries(QPID).await;
}

#[tokio::test]
async fn qpid_jms_hurries_on_classic() {
    hurries(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn artemis_own_client_hurries() {
    hurries(ARTEMIS).await;
}

#[tokio::test]
async fn activemq_own_client_hurries() {
    hurries(CLASSIC).await;
}

/// Nothing is published to a channel that nobody has subscribed to, whoever read it before. A program of JMS is told so by
/// Qpid JMS; what Artemis' own client sends there, the server drops without a word.
async fn has_nobody_to_send_to(with: Java) {
    let Some(ground) = with.ground().await else { return };
    let mut producer = ground.broker.producer(&ground.channel).await.unwrap();
    let mut java = java(&ground, with).await;
    java.ask(json!({"do": "subscribe", "as": "ledger", "topic": topic(&ground), "durable": true})).await;
    ground.broker.unregister(&ground.subscription).await.unwrap();
    let message = [Message::with_id("1", "/shop", "numbered")];
    let sent = producer.publish(&message).await;
    // On ActiveMQ Classic nobody sees whether there are readers but ours: they have it, and may get it again.
    assert_eq!(sent[0].is_stored(), !is_classic(&ground), "it still has a reader");
    java.ask(json!({"do": "leave", "as": "ledger"})).await;
    java.ask(json!({"do": "unsubscribe", "as": "ledger"})).await;
    if with.client == Client::QpidJms && !is_classic(&ground) {
        let why = java.refusal(send(&ground, "text")).await;
        assert!(why.contains("InvalidDestinationException") && why.contains("does not exist"), "{why}");
    } else {
        java.ask(send(&ground, "text")).await;
    }
    let sent = producer.publish(&message).await;
    assert_eq!(sent[0].error().map(Error::code), Some(code::SUBSCRIPTION_MISSING), "{sent:?}");
    // Whoever subscribes again has nothing of it.
    let mut consumer = ground.consumer().await;
    assert!(producer.publish(&message).await[0].is_stored());
    assert_eq!(take(&mut *consumer, 1).await, message);
}

#[tokio::test]
async fn qpid_jms_has_nobody_to_send_to() {
    has_nobody_to_send_to(QPID).await;
}

#[tokio::test]
async fn qpid_jms_has_nobody_to_send_to_on_classic() {
    has_nobody_to_send_to(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn artemis_own_client_has_nobody_to_send_to() {
    has_nobody_to_send_to(ARTEMIS).await;
}

#[tokio::test]
async fn activemq_own_client_has_nobody_to_send_to() {
    has_nobody_to_send_to(CLASSIC).await;
}
