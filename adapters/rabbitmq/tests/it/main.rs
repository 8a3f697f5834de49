//! What is RabbitMQ's alone, on real servers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use tidegate_conformance::{Network as _, Proxy, Traffic};
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Broker, Consumer, Delivery, Sent, Settled, Settlement};
use tidegate_core::{Apply, Channel, Endpoint, Error, Message, Name, Subscription, Topology};
use tidegate_services::broker::{Broker as Service, Options, Server, shared};
use tidegate_services::skipped;
use tokio::time::Instant;

/// A server of its own, unless RabbitMQ is skipped.
async fn server(options: Options) -> Option<Server> {
    if skipped(Service::Rabbitmq.service()) {
        return None;
    }
    Some(Server::start(Service::Rabbitmq, options).await.unwrap())
}

fn open(url: &str) -> Arc<dyn Broker> {
    tidegate_rabbitmq::open_broker(&Endpoint::parse(url).unwrap()).unwrap()
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
            .with_data("text/plain", "x")
    };
    numbers.map(message).collect()
}

/// Takes messages until so many came.
async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    let until = Instant::now() + Duration::from_secs(30);
    while all.len() < count {
        assert!(Instant::now() < until, "{} of {count} came", all.len());
        consumer.receive(count - all.len(), Duration::from_secs(10), &mut all).await.unwrap();
    }
    all
}

/// Why a broker cannot be used, and that its text has no secret.
async fn refused(url: &str) -> Error {
    let error = open(url).probe().await.unwrap_err();
    let shown = format!("{error:?} {}", error.line());
    assert!(!shown.contains("secret") && !shown.contains("guess"), "{shown}");
    error
}

#[tokio::test]
async fn who_may_not_come_in_is_told_why() {
    let Some(server) = server(Options::default().with_password("secret")).await else { return };
    let probed = open(&server.url()).probe().await.unwrap();
    assert_eq!(probed.version, "RabbitMQ 3.10.8");
    assert!(!probed.notes.iter().any(|warning| warning.contains("everybody knows")), "{probed:?}");
    assert!(probed.notes.iter().any(|warning| warning.contains("not maintained")), "{probed:?}");

    let error = refused(&format!("amqp://guest:guess@127.0.0.1:{}", server.port())).await;
    assert_eq!((error.code(), error.verdict()), (code::ACCESS_DENIED, Verdict::Never), "{error:?}");
    assert_eq!(error.message(), "the server refuses the user or the password");
    let error = refused(&format!("{}/nowhere", server.url())).await;
    assert_eq!((error.code(), error.verdict()), (code::CONFIG_INVALID, Verdict::Never), "{error:?}");
    assert_eq!(error.message(), "the server has no virtual host of this name, or the user may not use it");
    assert!(error.hint_text().unwrap().contains("amqp://host/name"));
}

#[tokio::test]
async fn tls_is_verified() {
    let Some(server) = server(Options::default().with_tls()).await else { return };
    let Some(other) = self::server(Options::default().with_tls()).await else { return };
    let url = |ca: &Path| format!("{}?ca={}", server.url(), ca.display());
    let broker = open(&url(&server.authority_certificate().unwrap()));
    assert_eq!(broker.probe().await.unwrap().version, "RabbitMQ 3.10.8");
    let (channel, subscription) = channel(&*broker, "secure").await;
    let sent = broker.producer(&channel).await.unwrap().publish(&messages(0..3)).await;
    assert!(sent.iter().all(Sent::is_stored), "{sent:?}");
    take(&mut *broker.subscribe(&subscription).await.unwrap(), 3).await;

    for url in [url(&other.authority_certificate().unwrap()), server.url()] {
        let error = refused(&url).await;
        assert_eq!((error.code(), error.verdict()), (code::TLS_FAILED, Verdict::Never), "{url}: {error:?}");
        assert_eq!(error.message(), "no trusted connection to the server");
        assert!(error.hint_text().unwrap().contains("?ca=FILE"));
    }
}

#[tokio::test]
async fn a_client_shows_its_certificate_to_a_server_that_asks_for_one() {
    let options = Options::default()
        .with_tls()
        .with_setting("ssl_options.verify", "verify_peer")
        .with_setting("ssl_options.fail_if_no_peer_cert", true);
    let Some(server) = server(options).await else { return };
    let url = format!("{}?ca={}", server.url(), server.authority_certificate().unwrap().display());
    // The server's own is by the authority that it trusts.
    let own = |name: &str| server.data_folder().with_file_name(name).display().to_string();
    let certified = format!("{url}&cert={}&key={}", own("server.crt"), own("server.key"));
    assert_eq!(open(&certified).probe().await.unwrap().version, "RabbitMQ 3.10.8");
    assert!(open(&url).probe().await.is_err(), "it shows none");
}

#[tokio::test]
async fn a_missing_server_is_told_soon() {
    let begin = Instant::now();
    let error = refused("amqp://127.0.0.1:1").await;
    assert_eq!((error.code(), error.verdict()), (code::UNREACHABLE, Verdict::Retry), "{error:?}");
    assert_eq!(error.message(), "the server does not answer");
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn the_password_that_everybody_knows_is_warned_of() {
    let Some(server) = shared(Service::Rabbitmq).await else { return };
    let probed = open(&server.url()).probe().await.unwrap();
    assert!(probed.notes.iter().any(|warning| warning.contains("everybody knows")), "{probed:?}");
}

/// An alarm is there from the start: the server wants more of its disk free than there is.
#[tokio::test]
async fn a_server_that_is_short_of_disk_is_told_so() {
    let options = Options::default().with_setting("disk_free_limit.absolute", "1000000GB");
    let Some(server) = server(options).await else { return };
    let broker = open(&format!("{}?timeout_ms=1000", server.url()));
    let channel = Channel::new("full").unwrap().with_lanes(1);
    let error = broker.apply(&Topology::of(&channel), Apply::Create).await.unwrap_err();
    assert_eq!((error.code(), error.verdict()), (code::LIMIT_REACHED, Verdict::Unknown), "{error:?}");
    assert_eq!(error.message(), "the server takes no messages: it is short of memory or disk");
    let probed = broker.probe().await.unwrap();
    assert!(probed.notes.iter().any(|warning| warning.contains("takes no messages now")), "{probed:?}");
}

/// Found by the suite on a busy machine: the server notes a new queue on its disk seconds behind its answer, and one that was
/// killed before found an empty queue without a leader.
#[tokio::test]
async fn queues_that_were_just_made_survive_a_kill() {
    let Some(server) = server(Options::default()).await else { return };
    let broker = open(&server.url());
    let (channel, subscription) = channel(&*broker, "young").await;
    let sent = broker.producer(&channel).await.unwrap().publish(&messages(0..10)).await;
    assert!(sent.iter().all(Sent::is_stored), "{sent:?}");
    server.kill().await;
    server.restart().await.unwrap();
    let broker = open(&server.url());
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    assert_eq!(take(&mut *consumer, 10).await.len(), 10);
}

/// Programs that make one channel at the same moment lost what others of them had registered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_make_a_channel_at_once_lose_no_subscription() {
    let Some(server) = shared(Service::Rabbitmq).await else { return };
    let channel = Channel::new("at-once").unwrap().with_lanes(1);
    let subscriptions = ["a", "b", "c", "d", "e", "f"].map(|name| Subscription::new(&channel, name).unwrap());
    let makers = subscriptions.each_ref().map(|subscription| async {
        let topology = Topology::of(&channel).and(subscription);
        open(&server.url()).apply(&topology, Apply::Create).await.unwrap();
    });
    futures::future::join_all(makers).await;
    let topology = subscriptions.iter().fold(Topology::of(&channel), |topology, one| topology.and(one));
    let differences = open(&server.url()).apply(&topology, Apply::Verify).await.unwrap();
    assert!(differences.is_empty(), "{differences:?}");
}

/// Whoever made the channel was killed before its record was written.
#[tokio::test]
async fn a_channel_that_was_made_by_half_is_made() {
    let Some(server) = shared(Service::Rabbitmq).await else { return };
    let connection = Connection::connect(&server.url(), ConnectionProperties::default()).await.unwrap();
    let amqp = connection.create_channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(1_000_000_000));
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    amqp.queue_declare("tidegate/half".into(), durable, arguments).await.unwrap();
    let broker = open(&server.url());
    assert!(broker.channel(&Name::new("half").unwrap()).await.unwrap().is_none());
    let (channel, subscription) = channel(&*broker, "half").await;
    assert!(broker.producer(&channel).await.unwrap().publish(&messages(0..1)).await[0].is_stored());
    take(&mut *broker.subscribe(&subscription).await.unwrap(), 1).await;
}

#[tokio::test]
async fn a_queue_that_is_somebody_elses_is_named() {
    let Some(server) = shared(Service::Rabbitmq).await else { return };
    let connection = Connection::connect(&server.url(), ConnectionProperties::default()).await.unwrap();
    let amqp = connection.create_channel().await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    amqp.queue_declare("tidegate/taken".into(), durable, FieldTable::default()).await.unwrap();
    let topology = Topology::of(&Channel::new("taken").unwrap());
    let error = open(&server.url()).apply(&topology, Apply::Create).await.unwrap_err();
    assert_eq!((error.code(), error.verdict()), (code::CHANNEL_DIFFERS, Verdict::Never), "{error:?}");
    assert_eq!(error.message(), "an exchange or a queue of the channel was made with other settings");
}

/// More than the server takes at once without keeping some back, each apart from the next.
#[tokio::test]
async fn what_is_acknowledged_one_by_one_is_done() {
    let Some(server) = shared(Service::Rabbitmq).await else { return };
    let broker = open(&server.url());
    let (channel, subscription) = channel(&*broker, "one-by-one").await;
    let sent = broker.producer(&channel).await.unwrap().publish(&messages(0..200)).await;
    assert!(sent.iter().all(Sent::is_stored));
    let mut consumer = broker.subscribe(&subscription.clone().with_window(200)).await.unwrap();
    let came = take(&mut *consumer, 200).await;
    let odd = came.iter().skip(1).step_by(2).map(|delivery| (delivery.token, Settlement::Ack));
    let settled = consumer.settler().settle(&odd.collect::<Vec<_>>()).await;
    assert!(settled.iter().all(Settled::is_done), "{settled:?}");
    drop(consumer);
    let mut next = broker.subscribe(&subscription.with_window(200)).await.unwrap();
    let mut again = take(&mut *next, 100).await;
    next.receive(1, Duration::from_millis(500), &mut again).await.unwrap();
    let ids: Vec<u64> = again.iter().map(|delivery| delivery.message.id.parse().unwrap()).collect();
    assert_eq!(ids, (0..200).step_by(2).collect::<Vec<_>>());
}

/// A consumer that is not heard of for two heartbeats: its lane goes to another one, and what it settles is not done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_hangs_loses_its_lanes() {
    let Some(server) = shared(Service::Rabbitmq).await else { return };
    let port = Endpoint::parse(&server.url()).unwrap().url().unwrap().port().unwrap();
    let proxy = Proxy::start(port).await.unwrap();
    let settings = "lease_ms=1000&timeout_ms=2000";
    let broker = open(&format!("{}?{settings}", server.url()));
    let (channel, subscription) = channel(&*broker, "hanging").await;
    assert!(
        broker.producer(&channel).await.unwrap().publish(&messages(0..2)).await.iter().all(Sent::is_stored)
    );
    let hanging = open(&format!("amqp://guest:guest@127.0.0.1:{}?{settings}", proxy.port()));
    let mut first = hanging.subscribe(&subscription).await.unwrap();
    let in_hand = take(&mut *first, 2).await;
    proxy.set(Traffic::Silent);
    let begin = Instant::now();
    let mut second = broker.subscribe(&subscription).await.unwrap();
    let came = take(&mut *second, 2).await;
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    // It is heard of again: nobody but the server knows that it has lost its lane.
    proxy.set(Traffic::Open);
    let settled = first.settler().settle(&[(in_hand[0].token, Settlement::Ack)]).await;
    assert!(!settled[0].is_done(), "{settled:?}");
    let done: Vec<_> = came.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
    assert!(second.settler().settle(&done).await.iter().all(|settled| settled.is_done()));
}

#[tokio::test]
async fn other_programs_publish_and_what_is_no_message_is_given_as_it_was() {
    let Some(server) = shared(Service::Rabbitmq).await else { return };
    let broker = open(&server.url());
    let (_, subscription) = channel(&*broker, "others").await;
    let connection = Connection::connect(&server.url(), ConnectionProperties::default()).await.unwrap();
    let amqp = connection.create_channel().await.unwrap();
    let publish = async |properties: BasicProperties, body: &[u8]| {
        let (exchange, key) = ("tidegate/others".into(), "0".into());
        let options = BasicPublishOptions::default();
        amqp.basic_publish(exchange, key, options, body, properties).await.unwrap().await.unwrap();
    };
    let mut headers = FieldTable::default();
    for (name, value) in
        [("cloudEvents:id", "7"), ("cloudEvents:source", "/shop"), ("cloudEvents:type", "placed")]
    {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    publish(
        BasicProperties::default().with_headers(headers).with_content_type("text/plain".into()),
        b"order",
    )
    .await;
    publish(BasicProperties::default(), b"\xff?").await;
    publish(BasicProperties::default(), b"\xff!").await;
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    let came = take(&mut *consumer, 3).await;
    let right = Message::with_id("7", "/shop", "placed").with_data("text/plain", "order");
    assert_eq!(*came[0].message, right);
    assert_eq!(
        (&*came[1].message.kind, &came[1].message.data[..]),
        ("tidegate.undecodable.v1", &b"\xff?"[..])
    );
    // Their ids are the same whoever reads them, and not those of others.
    let settled = consumer.settler().settle(&[(came[0].token, Settlement::Ack)]).await;
    assert!(settled[0].is_done());
    consumer.close(Duration::ZERO).await.unwrap();
    let again = take(&mut *broker.subscribe(&subscription).await.unwrap(), 2).await;
    let ids =
        |came: &[Delivery]| came.iter().map(|delivery| Arc::clone(&delivery.message.id)).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&came[1..]));
    assert_ne!(again[0].message.id, again[1].message.id);
}
