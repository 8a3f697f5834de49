//! What is Redis's alone, on real servers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Broker, Consumer, Sent, Settlement};
use tidegate_core::{Apply, Channel, Endpoint, Error, Lane, Message, Subscription, Topology};
use tidegate_services::broker::{Broker as Service, Options, Server};
use tidegate_services::skipped;
use tokio::time::Instant;

/// A server of its own, unless Redis is skipped.
async fn server(options: Options) -> Option<Server> {
    if skipped(Service::Redis.service()) {
        return None;
    }
    Some(Server::start(Service::Redis, options).await.unwrap())
}

fn open(url: &str) -> Arc<dyn Broker> {
    tidegate_redis::open_broker(&Endpoint::parse(url).unwrap()).unwrap()
}

/// A channel of one lane with a subscription.
async fn channel(broker: &dyn Broker, name: &str) -> (Channel, Subscription) {
    let channel = Channel::new(name).unwrap().with_lanes(1);
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    (channel, subscription)
}

fn messages(numbers: std::ops::Range<u64>, bytes: usize) -> Vec<Message> {
    let message = |number: u64| {
        Message::with_id(number.to_string(), "test", "numbered")
            .with_subject("k")
            .with_data("text/plain", "x".repeat(bytes))
    };
    numbers.map(message).collect()
}

/// Takes and acknowledges messages until so many came.
async fn take(consumer: &mut dyn Consumer, count: usize) {
    let (mut left, until) = (count, Instant::now() + Duration::from_secs(20));
    while left > 0 {
        assert!(Instant::now() < until, "{left} of {count} did not come");
        let mut out = Vec::new();
        consumer.receive(left, Duration::from_secs(1), &mut out).await.unwrap();
        let batch: Vec<_> = out.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
        let settled = consumer.settler().settle(&batch).await;
        assert!(settled.iter().all(|settled| settled.is_done()), "{settled:?}");
        left -= out.len();
    }
}

/// Why a broker cannot be used, and that its text has no secret.
async fn refused(url: &str) -> Error {
    let error = open(url).probe().await.unwrap_err();
    let shown = format!("{error:?} {}", error.line());
    assert!(!shown.contains("secret") && !shown.contains("guess"), "{shown}");
    error
}

#[tokio::test]
async fn a_wrong_password_and_none_are_told_and_are_not_tried_again() {
    let Some(server) = server(Options::default().with_password("secret")).await else { return };
    let broker = open(&server.url());
    assert!(broker.probe().await.unwrap().version.starts_with("Redis "));
    assert!(!broker.location().contains("secret"));
    for login in [":guess@", ""] {
        let error = refused(&format!("redis://{login}127.0.0.1:{}", server.port())).await;
        assert_eq!((error.code(), error.verdict()), (code::ACCESS_DENIED, Verdict::Never), "{error:?}");
        assert_eq!(error.message(), "the server refuses the user or the password");
    }
}

#[tokio::test]
async fn tls_is_verified() {
    let Some(server_) = server(Options::default().with_tls()).await else { return };
    let other = server(Options::default().with_tls()).await.unwrap();
    let url = |ca: &Path| format!("{}?ca={}", server_.url(), ca.display());
    let broker = open(&url(&server_.authority_certificate().unwrap()));
    let (channel, subscription) = channel(&*broker, "secure").await;
    let sent = broker.producer(&channel).await.unwrap().publish(&messages(0..3, 10)).await;
    assert!(sent.iter().all(Sent::is_stored), "{sent:?}");
    take(&mut *broker.subscribe(&subscription).await.unwrap(), 3).await;

    for url in [url(&other.authority_certificate().unwrap()), server_.url()] {
        let error = refused(&url).await;
        assert_eq!((error.code(), error.verdict()), (code::TLS_FAILED, Verdict::Never), "{url}: {error:?}");
        assert_eq!(error.message(), "no trusted connection to the server");
        assert!(error.hint_text().unwrap().contains("?ca=FILE"));
    }
    // Where the server speaks one of the two and the client the other, neither understands.
    let plain = refused(&server_.url().replace("rediss:", "redis:")).await;
    assert_eq!(plain.code(), code::UNREACHABLE, "{plain:?}");
}

#[tokio::test]
async fn a_client_shows_its_certificate_to_a_server_that_asks_for_one() {
    let options = Options::default().with_tls().with_setting("tls-auth-clients", "yes");
    let Some(server) = server(options).await else { return };
    let url = format!("{}?ca={}", server.url(), server.authority_certificate().unwrap().display());
    // The server's own is by the authority that it trusts.
    let own = |name: &str| server.data_folder().with_file_name(name).display().to_string();
    let certified = format!("{url}&cert={}&key={}", own("server.crt"), own("server.key"));
    assert!(open(&certified).probe().await.unwrap().version.starts_with("Redis "));
    let error = refused(&url).await;
    assert_eq!((error.code(), error.verdict()), (code::TLS_FAILED, Verdict::Never), "{error:?}");
    assert!(error.hint_text().unwrap().contains("?cert=FILE&key=FILE"), "{error:?}");
}

#[tokio::test]
async fn settings_that_lose_messages_are_named() {
    let risky = Options::default()
        .with_setting("appendonly", "no")
        .with_setting("appendfsync", "everysec")
        .with_setting("maxmemory-policy", "allkeys-lru");
    let Some(server) = server(risky).await else { return };
    let warnings = open(&server.url()).probe().await.unwrap().warnings;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (warning, start) in warnings.iter().zip([
        "appendonly is not yes: what was confirmed is lost when the server ends without a snapshot (it is \"no\")",
        "appendfsync is not always: what was confirmed in the last second is lost with the power",
        "maxmemory-policy is not noeviction: the server may remove what nobody has settled",
    ]) {
        assert!(warning.starts_with(start), "{warning}");
    }
}

/// It refuses, and those who make room go on.
#[tokio::test]
async fn a_server_that_is_short_of_memory_is_told_so() {
    let Some(server) = server(Options::default().with_setting("maxmemory", "20mb")).await else { return };
    let broker = open(&format!("{}?patience_ms=500", server.url()));
    let (channel, subscription) = channel(&*broker, "full").await;
    let mut producer = broker.producer(&channel).await.unwrap();
    let (mut stored, mut refused) = (0, None);
    for message in messages(0..100, 1 << 20) {
        match producer.publish(&[message]).await.remove(0) {
            Sent::Stored { .. } => stored += 1,
            Sent::Refused(error) => {
                refused = Some(error);
                break;
            }
            Sent::Unknown(error) => panic!("{error:?}"),
        }
    }
    let error = refused.expect("a server of 20 MB took 100");
    assert_eq!((error.code(), error.verdict()), (code::LIMIT_REACHED, Verdict::Retry), "{error:?}");
    assert_eq!(error.message(), "the server has no memory left");
    assert!(stored > 0, "nothing had room");
    // More than is left has no room, be it ever so small: what notes that something is settled has to have some.
    let rest = messages(100..2_000, 4 << 10);
    for message in rest {
        match producer.publish(&[message]).await.remove(0) {
            Sent::Stored { .. } => stored += 1,
            _ => break,
        }
    }
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    take(&mut *consumer, stored).await;
    let more = messages(2_000..2_001, 1 << 20);
    let until = Instant::now() + Duration::from_secs(10);
    while let Some(error) = producer.publish(&more).await[0].error() {
        assert!(Instant::now() < until, "there is room, and nothing is taken: {error:?}");
    }
}

/// The first message of a lane, of which there is no stream yet, on a server that others have filled.
#[tokio::test]
async fn a_lane_that_has_nothing_is_refused_for_want_of_memory() {
    let Some(server) = server(Options::default().with_setting("maxmemory", "20mb")).await else { return };
    let broker = open(&format!("{}?patience_ms=500", server.url()));
    let (channel, _) = channel(&*broker, "empty").await;
    let mut producer = broker.producer(&channel).await.unwrap();
    let beside = redis::Client::open(server.url()).unwrap();
    let mut beside = beside.get_multiplexed_async_connection().await.unwrap();
    let mut bytes = 1 << 20;
    // Down to the least: whatever was freed meanwhile has no room for a message then.
    for number in 0..10_000 {
        let set = redis::cmd("SET").arg(format!("others:{number}")).arg("x".repeat(bytes)).to_owned();
        if set.exec_async(&mut beside).await.is_err() {
            if bytes == 1 {
                break;
            }
            bytes /= 2;
        }
    }
    let sent = producer.publish(&messages(0..1, 10)).await;
    let Sent::Refused(error) = &sent[0] else { panic!("{sent:?}") };
    assert_eq!((error.code(), error.verdict()), (code::LIMIT_REACHED, Verdict::Retry), "{error:?}");
    assert_eq!(error.message(), "the server has no memory left");
    redis::cmd("FLUSHALL").exec_async(&mut beside).await.unwrap();
}

/// What is stored of a batch is known to be, whatever becomes of the rest. Here somebody has used up the places of a lane.
#[tokio::test]
async fn a_lane_that_takes_nothing_leaves_the_others_as_they_are() {
    let Some(server) = server(Options::default()).await else { return };
    let broker = open(&format!("{}?patience_ms=500", server.url()));
    let channel = Channel::new("half").unwrap().with_lanes(2);
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    let beside = redis::Client::open(server.url()).unwrap();
    let mut beside = beside.get_multiplexed_async_connection().await.unwrap();
    let last = format!("{0}-{0}", u64::MAX);
    let add = redis::cmd("XADD").arg("tidegate:{half}:lane:1").arg(last).arg("a").arg("b").to_owned();
    add.exec_async(&mut beside).await.unwrap();
    let message_to = |lane: u32| {
        let message =
            |number: u64| messages(number..number + 1, 1).remove(0).with_subject(number.to_string());
        (0..).map(message).find(|message| message.lane(2) == Lane(lane)).unwrap()
    };
    let batch = [message_to(0), message_to(1)];
    let sent = broker.producer(&channel).await.unwrap().publish(&batch).await;
    assert!(sent[0].is_stored() && !sent[1].is_stored(), "{sent:?}");
    let sent = broker.producer(&channel).await.unwrap().publish(&batch[..1]).await;
    assert!(matches!(sent[0], Sent::Stored { duplicate: true, .. }), "{sent:?}");
}
