//! Artemis: programs of JMS in Java, with Qpid JMS (AMQP 1.0) and with Artemis' own client (its own protocol). What holds is
//! the same for both.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value as Json, json};
use tidegate::core::error::code;
use tidegate::prelude::*;
use tidegate_services::Client;
use tidegate_services::broker::Broker as Service;
use url::Url;

use crate::events::samples;
use crate::program::Program;
use crate::{Ground, PATIENCE, ground, take};

/// How long a message may take to come.
pub(crate) const WAIT_MS: u32 = 10_000;

/// The topic of the first lane of a channel.
pub(crate) fn topic(ground: &Ground) -> String {
    format!("tidegate.{}/0", ground.channel.name)
}

pub(crate) async fn java(ground: &Ground, client: Client) -> Program {
    let url = Url::parse(&ground.url).unwrap();
    let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    let (class, address) = match client {
        Client::QpidJms => ("org.apache.qpid.jms.JmsConnectionFactory", format!("amqp://{server}")),
        _ => ("org.apache.activemq.artemis.jms.client.ActiveMQConnectionFactory", format!("tcp://{server}")),
    };
    let (user, password) = (url.username(), url.password().unwrap_or_default());
    // A client id is one program's at a time.
    let id = format!("java-{}", ground.channel.name);
    Program::start(client, "java/Jms.java", &[class, &address, user, password, &id]).await
}

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

/// What the media type of bytes is: the one client names it, the other one does not.
fn media_of_bytes(client: Client) -> Option<&'static str> {
    (client == Client::QpidJms).then_some("application/octet-stream")
}

async fn sends(client: Client) {
    let Some(ground) = ground(Service::Artemis, 1).await else { return };
    let mut java = java(&ground, client).await;
    let mut right = Vec::new();
    for (kind, body, media, data) in [
        ("text", json!("größe"), Some("text/plain"), "größe".as_bytes()),
        ("bytes", json!(BASE64.encode([0, 255, 10])), media_of_bytes(client), &[0, 255, 10][..]),
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
    sends(Client::QpidJms).await;
}

#[tokio::test]
async fn messages_of_artemis_own_client_are_read() {
    sends(Client::ArtemisJms).await;
}

/// What has no text and no bytes, and what is never read.
async fn sends_other_kinds(client: Client) {
    let Some(ground) = ground(Service::Artemis, 1).await else { return };
    let mut java = java(&ground, client).await;
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
    sends_other_kinds(Client::QpidJms).await;
}

#[tokio::test]
async fn streams_and_objects_of_artemis_own_client_are_what_they_are() {
    sends_other_kinds(Client::ArtemisJms).await;
}

fn send(ground: &Ground, kind: &str) -> Json {
    json!({"do": "send", "topic": topic(ground), "kind": kind, "body": "x", "properties": []})
}

/// Attributes and headers are properties; the body is a text where the media type says so, else bytes.
async fn receives(client: Client) {
    let Some(ground) = ground(Service::Artemis, 1).await else { return };
    let mut java = java(&ground, client).await;
    java.ask(json!({"do": "subscribe", "as": "all", "topic": topic(&ground)})).await;
    let mut published = samples();
    published[0].headers.set("reply_to", "answers").unwrap();
    published[2].headers.set("reply_to", format!("topic://{}", topic(&ground))).unwrap();
    ground.publish(&published).await;
    let seen = java.ask(json!({"do": "receive", "as": "all", "count": 3, "wait_ms": WAIT_MS})).await;
    for ((seen, message), (kind, body)) in seen.as_array().unwrap().iter().zip(&published).zip([
        ("bytes", BASE64.encode(&published[0].data)),
        ("bytes", String::new()),
        ("text", r#"{"größe":1}"#.to_owned()),
    ]) {
        assert_eq!((&seen["kind"], &seen["body"]), (&json!(kind), &json!(body)));
        assert_eq!(seen["type"], *message.kind);
        assert_eq!(seen["persistent"], true);
        assert_eq!(seen["correlation"], json!(message.correlation_id.as_deref()));
        let properties = &seen["properties"];
        assert_eq!(properties["JMSXGroupID"], json!(message.subject.as_deref()));
        for (name, value) in message.attributes() {
            if name != "datacontenttype" {
                assert_eq!(properties[format!("cloudEvents_{name}")], *value, "{name}: {properties:#}");
            }
        }
        for (name, value) in message.headers.iter() {
            assert_eq!(properties[name], value, "{name}: {properties:#}");
        }
    }
    assert_eq!(
        (&seen[0]["reply_queue"], &seen[2]["reply_topic"]),
        (&json!("answers"), &json!(topic(&ground)))
    );
    assert!(seen[1].get("reply_queue").is_none() && seen[1].get("reply_topic").is_none());
}

#[tokio::test]
async fn qpid_jms_reads_our_messages() {
    receives(Client::QpidJms).await;
}

#[tokio::test]
async fn artemis_own_client_reads_our_messages() {
    receives(Client::ArtemisJms).await;
}

/// A program of JMS takes a message of a channel and sends it, as it is, to another one: nothing of it is lost.
async fn forwards(client: Client) {
    let Some(ground) = ground(Service::Artemis, 1).await else { return };
    let Some(there) = self::ground(Service::Artemis, 1).await else { return };
    let mut java = java(&ground, client).await;
    java.ask(json!({"do": "subscribe", "as": "all", "topic": topic(&ground)})).await;
    let mut published = samples();
    published[0].headers.set("reply_to", "answers").unwrap();
    ground.publish(&published).await;
    for _ in &published {
        java.ask(json!({"do": "forward", "as": "all", "topic": topic(&there), "wait_ms": WAIT_MS})).await;
    }
    // It was sent with a body of no bytes, and no media type.
    published[1].datacontenttype = media_of_bytes(client).map(Into::into);
    assert_eq!(there.take(3).await, published);
}

#[tokio::test]
async fn what_qpid_jms_sends_on_is_what_it_was() {
    forwards(Client::QpidJms).await;
}

#[tokio::test]
async fn what_artemis_own_client_sends_on_is_what_it_was() {
    forwards(Client::ArtemisJms).await;
}

/// The server chooses, by a header, an attribute and what JMS has itself.
async fn selects(client: Client) {
    let Some(ground) = ground(Service::Artemis, 1).await else { return };
    let mut java = java(&ground, client).await;
    for (name, selector) in [
        ("header", "region = 'Österreich'"),
        ("attribute", "cloudEvents_type = 'b' AND cloudEvents_subject LIKE 'order-%'"),
        ("type", "JMSType = 'b' AND JMSCorrelationID = 'cart-9'"),
        ("number", "region IS NULL"),
    ] {
        java.ask(json!({"do": "subscribe", "as": name, "topic": topic(&ground), "selector": selector})).await;
    }
    let message = |id: &str, kind: &str| Message::with_id(id, "/shop", kind).with_data("text/plain", "x");
    let mut last = message("3", "b");
    last.correlation_id = Some("cart-9".into());
    let published = [
        message("1", "a").with_header("region", "Österreich").unwrap(),
        message("2", "b").with_subject("order-17").with_header("region", "east").unwrap(),
        last,
    ];
    ground.publish(&published).await;
    for (name, id) in [("header", "1"), ("attribute", "2"), ("type", "3"), ("number", "3")] {
        let seen = java.ask(json!({"do": "receive", "as": name, "count": 1, "wait_ms": WAIT_MS})).await;
        assert_eq!(seen[0]["properties"]["cloudEvents_id"], id, "{name}: {seen:#}");
        let more = java.ask(json!({"do": "receive", "as": name, "count": 1, "wait_ms": 100})).await;
        assert_eq!(more, json!([]), "{name}");
    }
}

#[tokio::test]
async fn qpid_jms_selects() {
    selects(Client::QpidJms).await;
}

#[tokio::test]
async fn artemis_own_client_selects() {
    selects(Client::ArtemisJms).await;
}

/// A durable subscription gets what was published while nobody was there, however often it gives it back, and nothing once it
/// is unsubscribed. Our own subscription gets everything as well.
async fn subscribes_durably(client: Client) {
    let Some(ground) = ground(Service::Artemis, 1).await else { return };
    let mut java = java(&ground, client).await;
    let subscribe = json!({"do": "subscribe", "as": "ledger", "topic": topic(&ground), "durable": true});
    let receive = json!({"do": "receive", "as": "ledger", "count": 2, "wait_ms": 500});
    let leave = json!({"do": "leave", "as": "ledger"});
    let publish = async |id: &str| ground.publish(&[Message::with_id(id, "/shop", "numbered")]).await;
    let ids = |seen: &Json| -> Vec<Json> {
        let seen = seen.as_array().unwrap();
        seen.iter().map(|one| one["properties"]["cloudEvents_id"].clone()).collect()
    };
    java.ask(subscribe.clone()).await;
    publish("1").await;
    assert_eq!(ids(&java.ask(receive.clone()).await), ["1"]);
    java.ask(leave.clone()).await;
    publish("2").await;
    // More often than servers allow by default.
    let often =
        json!({"do": "give_back", "as": "ledger", "topic": topic(&ground), "times": 15, "wait_ms": WAIT_MS});
    java.ask(often).await;
    java.ask(subscribe.clone()).await;
    assert_eq!(ids(&java.ask(receive.clone()).await), ["2"]);
    java.ask(leave).await;
    java.ask(json!({"do": "unsubscribe", "as": "ledger"})).await;
    publish("3").await;
    java.ask(subscribe).await;
    assert_eq!(ids(&java.ask(receive).await), [] as [&str; 0]);
    let ours: Vec<_> = ground.take(3).await.iter().map(|message| message.id.to_string()).collect();
    assert_eq!(ours, ["1", "2", "3"]);
}

#[tokio::test]
async fn qpid_jms_subscribes_durably() {
    subscribes_durably(Client::QpidJms).await;
}

#[tokio::test]
async fn artemis_own_client_subscribes_durably() {
    subscribes_durably(Client::ArtemisJms).await;
}

/// Nothing is published to a channel that nobody has subscribed to, whoever read it before. A program of JMS is told so by
/// Qpid JMS; what Artemis' own client sends there, the server drops without a word.
async fn has_nobody_to_send_to(client: Client) {
    let Some(ground) = ground(Service::Artemis, 1).await else { return };
    let mut producer = ground.broker.producer(&ground.channel).await.unwrap();
    let mut java = java(&ground, client).await;
    java.ask(json!({"do": "subscribe", "as": "ledger", "topic": topic(&ground), "durable": true})).await;
    ground.broker.unregister(&ground.subscription).await.unwrap();
    let message = [Message::with_id("1", "/shop", "numbered")];
    assert!(producer.publish(&message).await[0].is_stored(), "it still has a reader");
    java.ask(json!({"do": "leave", "as": "ledger"})).await;
    java.ask(json!({"do": "unsubscribe", "as": "ledger"})).await;
    if client == Client::QpidJms {
        let why = java.refusal(send(&ground, "text")).await;
        assert!(why.contains("InvalidDestinationException") && why.contains("does not exist"), "{why}");
    } else {
        java.ask(send(&ground, "text")).await;
    }
    let sent = producer.publish(&message).await;
    assert_eq!(sent[0].error().map(Error::code), Some(code::SUBSCRIPTION_MISSING), "{sent:?}");
}

#[tokio::test]
async fn qpid_jms_has_nobody_to_send_to() {
    has_nobody_to_send_to(Client::QpidJms).await;
}

#[tokio::test]
async fn artemis_own_client_has_nobody_to_send_to() {
    has_nobody_to_send_to(Client::ArtemisJms).await;
}

/// Each subject has its lane, whoever finds it, and each lane is a topic. There is no topic of all of them.
async fn finds_lanes(client: Client) {
    const LANES: u32 = 3;
    let Some(ground) = ground(Service::Artemis, LANES).await else { return };
    let mut java = java(&ground, client).await;
    if client == Client::QpidJms {
        for topic in [format!("tidegate.{}/*", ground.channel.name), "tidegate.*".to_owned()] {
            let why = java.refusal(json!({"do": "subscribe", "as": topic, "topic": topic})).await;
            assert!(why.contains("does not exist"), "{why}");
        }
    }
    for lane in 0..LANES {
        let topic = format!("tidegate.{}/{lane}", ground.channel.name);
        java.ask(json!({"do": "subscribe", "as": topic, "topic": topic})).await;
    }
    let subjects = ["a", "bc", "def", "ghij", "größe", "order-17", "東京"];
    for number in 0..2 {
        for subject in subjects {
            let more =
                json!({"subject": subject, "kind": "text", "body": number.to_string(), "properties": []});
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
        let topic = format!("tidegate.{}/{lane}", ground.channel.name);
        let all = java.ask(json!({"do": "receive", "as": topic, "count": 99, "wait_ms": 300})).await;
        seen += all.as_array().unwrap().len();
    }
    assert_eq!(seen, 2 * subjects.len());
}

#[tokio::test]
async fn qpid_jms_finds_lanes() {
    finds_lanes(Client::QpidJms).await;
}

#[tokio::test]
async fn artemis_own_client_finds_lanes() {
    finds_lanes(Client::ArtemisJms).await;
}

/// A program of JMS asks, and says which topic it waits at: that of a lane of another channel.
async fn asks(client: Client) {
    let Some(ground) = ground(Service::Artemis, 1).await else { return };
    let Some(answers) = self::ground(Service::Artemis, 1).await else { return };
    let mut java = java(&ground, client).await;
    let selector = "JMSCorrelationID = 'question-7'";
    java.ask(json!({"do": "subscribe", "as": "answers", "topic": topic(&answers), "selector": selector}))
        .await;
    let mut question = send(&ground, "text");
    question["correlation"] = "question-7".into();
    question["reply_topic"] = topic(&answers).into();
    java.ask(question).await;
    let question = &ground.take(1).await[0];
    let reply_to = question.headers.get("reply_to").unwrap();
    assert_eq!(reply_to, format!("topic://tidegate.{}/0", answers.channel.name));
    let answer = Message::with_id("1", "/shop", "answered").caused_by(question).with_data("text/plain", "42");
    answers.publish(&[Message::with_id("0", "/shop", "other"), answer]).await;
    let seen = java.ask(json!({"do": "receive", "as": "answers", "count": 1, "wait_ms": WAIT_MS})).await;
    assert_eq!((&seen[0]["body"], &seen[0]["correlation"]), (&json!("42"), &json!("question-7")), "{seen:#}");
}

#[tokio::test]
async fn qpid_jms_asks_and_is_answered() {
    asks(Client::QpidJms).await;
}

#[tokio::test]
async fn artemis_own_client_asks_and_is_answered() {
    asks(Client::ArtemisJms).await;
}

/// What JMS has and a lane has not: time that is over removes nothing. But the server hands out first what is urgent.
async fn hurries(client: Client) {
    let Some(ground) = ground(Service::Artemis, 1).await else { return };
    let mut java = java(&ground, client).await;
    for (id, priority) in [("1", 4), ("2", 9)] {
        let mut hurried = send(&ground, "text");
        hurried["type"] = id.into();
        hurried["priority"] = priority.into();
        hurried["expires_ms"] = 1.into();
        java.ask(hurried).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let came = take(&mut *ground.consumer().await, 2).await;
    assert_eq!([&*came[0].kind, &*came[1].kind], ["2", "1"]);
}

#[tokio::test]
async fn qpid_jms_hurries() {
    hurries(Client::QpidJms).await;
}

#[tokio::test]
async fn artemis_own_client_hurries() {
    hurries(Client::ArtemisJms).await;
}

/// An event that a program of JMS writes by itself: attributes as properties, and what it has to be answered at in its own way.
async fn writes_events(client: Client) {
    let Some(ground) = ground(Service::Artemis, 1).await else { return };
    let mut java = java(&ground, client).await;
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
    writes_events(Client::QpidJms).await;
}

#[tokio::test]
async fn artemis_own_client_writes_events() {
    writes_events(Client::ArtemisJms).await;
}
