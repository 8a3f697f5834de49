//! Programs of JMS read what is published.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value as Json, json};
use tidegate::prelude::*;

use tidegate_services::Client;

use super::{ARTEMIS, CLASSIC, Java, QPID, QPID_ON_CLASSIC, WAIT_MS, is_classic, java, topic};

/// Attributes and headers are properties; the body is a text where the media type says so, else bytes.
async fn receives(with: Java) {
    let Some(ground) = with.ground().await else { return };
    let mut java = java(&ground, with).await;
    java.ask(json!({"do": "subscribe", "as": "all", "topic": topic(&ground)})).await;
    let mut published = with.samples();
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
    receives(QPID).await;
}

#[tokio::test]
async fn qpid_jms_reads_our_messages_on_classic() {
    receives(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn artemis_own_client_reads_our_messages() {
    receives(ARTEMIS).await;
}

#[tokio::test]
async fn activemq_own_client_reads_our_messages() {
    receives(CLASSIC).await;
}

/// The server chooses, by a header, an attribute and what JMS has itself.
async fn selects(with: Java) {
    let Some(ground) = with.ground().await else { return };
    let mut java = java(&ground, with).await;
    for (name, selector) in [
        ("header", "region = 'Österreich'"),
        ("attribute", "cloudEvents_type = 'b' AND cloudEvents_subject LIKE 'order-%'"),
        ("type", "JMSType = 'b' AND JMSCorrelationID = 'cart-9'"),
        ("nothing", "region IS NULL"),
        ("number", "size > 5"),
        ("text", "size = '7'"),
    ] {
        java.ask(json!({"do": "subscribe", "as": name, "topic": topic(&ground), "selector": selector})).await;
    }
    let message = |id: &str, kind: &str| Message::with_id(id, "/shop", kind).with_data("text/plain", "x");
    let mut last = message("3", "b");
    last.correlation_id = Some("cart-9".into());
    last.headers.set("size", "7").unwrap();
    let published = [
        message("1", "a").with_header("region", "Österreich").unwrap(),
        message("2", "b").with_subject("order-17").with_header("region", "east").unwrap(),
        last,
    ];
    ground.publish(&published).await;
    for (name, id) in [("header", "1"), ("attribute", "2"), ("type", "3"), ("nothing", "3"), ("text", "3")] {
        let seen = java.ask(json!({"do": "receive", "as": name, "count": 1, "wait_ms": WAIT_MS})).await;
        assert_eq!(seen[0]["properties"]["cloudEvents_id"], id, "{name}: {seen:#}");
        let more = java.ask(json!({"do": "receive", "as": name, "count": 1, "wait_ms": 100})).await;
        assert_eq!(more, json!([]), "{name}");
    }
    let seen = java.ask(json!({"do": "receive", "as": "number", "count": 1, "wait_ms": 100})).await;
    assert_eq!(seen, json!([]), "headers are text");
}

#[tokio::test]
async fn qpid_jms_selects() {
    selects(QPID).await;
}

#[tokio::test]
async fn qpid_jms_selects_on_classic() {
    selects(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn artemis_own_client_selects() {
    selects(ARTEMIS).await;
}

#[tokio::test]
async fn activemq_own_client_selects() {
    selects(CLASSIC).await;
}

/// A durable subscription gets what was published while nobody was there, however often it gives it back, and nothing once it
/// is unsubscribed. Our own subscription gets everything as well.
async fn subscribes_durably(with: Java) {
    let Some(ground) = with.ground().await else { return };
    let mut java = java(&ground, with).await;
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
    // More often than servers allow by default; ActiveMQ's own client itself gives up behind six times.
    let times = if with.client == Client::ActivemqJms { 5 } else { 15 };
    let often = json!({"do": "give_back", "as": "ledger", "topic": topic(&ground), "times": times, "wait_ms": WAIT_MS});
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
    subscribes_durably(QPID).await;
}

#[tokio::test]
async fn qpid_jms_subscribes_durably_on_classic() {
    subscribes_durably(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn artemis_own_client_subscribes_durably() {
    subscribes_durably(ARTEMIS).await;
}

#[tokio::test]
async fn activemq_own_client_subscribes_durably() {
    subscribes_durably(CLASSIC).await;
}

/// Readers share a durable subscription: each message comes to one of them, and all of a subject to the same one, in order.
async fn share(with: Java) {
    const READERS: [&str; 3] = ["one", "two", "three"];
    const SUBJECTS: u64 = 12;
    const EACH: u64 = 5;
    let Some(ground) = with.ground().await else { return };
    let mut java = java(&ground, with).await;
    let subscribe =
        |reader| json!({"do": "subscribe", "as": reader, "topic": topic(&ground), "shared": "ledger"});
    if is_classic(&ground) {
        let why = java.refusal(subscribe(READERS[0])).await;
        assert!(why.contains("not support"), "{why}");
        return;
    }
    for reader in READERS {
        java.ask(subscribe(reader)).await;
    }
    let message = |number: u64| {
        Message::with_id(number.to_string(), "/shop", "numbered")
            .with_subject(format!("order-{}", number % SUBJECTS))
            .with_data("text/plain", "x")
    };
    ground.publish(&(0..SUBJECTS * EACH).map(message).collect::<Vec<_>>()).await;
    let mut numbers: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for reader in READERS {
        let all = json!({"do": "receive", "as": reader, "count": SUBJECTS * EACH, "wait_ms": 500});
        let seen = java.ask(all).await;
        let seen = seen.as_array().unwrap();
        assert!(!seen.is_empty(), "{reader} has nothing");
        let mut own: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for one in seen {
            let properties = &one["properties"];
            let subject = properties["JMSXGroupID"].as_str().unwrap().to_owned();
            let number = properties["cloudEvents_id"].as_str().unwrap().parse().unwrap();
            own.entry(subject).or_default().push(number);
        }
        for (subject, own) in own {
            assert!(numbers.insert(subject.clone(), own).is_none(), "{subject} came to two readers");
        }
    }
    let right = |subject: u64| {
        let numbers = (0..EACH).map(|turn| turn * SUBJECTS + subject).collect();
        (format!("order-{subject}"), numbers)
    };
    assert_eq!(numbers, (0..SUBJECTS).map(right).collect());
    for reader in READERS {
        java.ask(json!({"do": "leave", "as": reader})).await;
    }
    java.ask(json!({"do": "unsubscribe", "as": "ledger"})).await;
}

#[tokio::test]
async fn readers_of_qpid_jms_share() {
    share(QPID).await;
}

#[tokio::test]
async fn readers_of_qpid_jms_share_on_classic() {
    share(QPID_ON_CLASSIC).await;
}

#[tokio::test]
async fn readers_of_artemis_own_client_share() {
    share(ARTEMIS).await;
}

#[tokio::test]
async fn readers_of_activemq_own_client_share() {
    share(CLASSIC).await;
}
