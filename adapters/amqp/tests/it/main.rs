//! What is a server's alone, on real servers: here of Artemis.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod classic;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Message as Amqp, MessageId, Properties, SerializableBody, Target,
};
use fe2o3_amqp::types::primitives::{Array, OrderedMap, SimpleValue, Symbol, Value};
use fe2o3_amqp::{Connection, Sender, Session};
use serde_json::Value as Json;
use tidegate_conformance::{Network as _, Proxy, Traffic};
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Broker, Consumer, Delivery, Sent, Settlement};
use tidegate_core::{Apply, Channel, Endpoint, Error, Message, Name, Subscription, Topology};
use tidegate_services::broker::{Broker as Service, Options, Server, shared};
use tidegate_services::skipped;
use tokio::time::Instant;

/// A server of its own, unless it is skipped.
async fn server_of(service: Service, options: Options) -> Option<Server> {
    if skipped(service.service()) {
        return None;
    }
    Some(Server::start(service, options).await.unwrap())
}

async fn server(options: Options) -> Option<Server> {
    server_of(Service::Artemis, options).await
}

fn open(url: &str) -> Arc<dyn Broker> {
    tidegate_amqp::open_broker(&Endpoint::parse(url).unwrap()).unwrap()
}

fn port(url: &str) -> u16 {
    Endpoint::parse(url).unwrap().url().unwrap().port().unwrap()
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

async fn publish(broker: &dyn Broker, channel: &Channel, numbers: std::ops::Range<u64>) {
    let sent = broker.producer(channel).await.unwrap().publish(&messages(numbers)).await;
    assert!(sent.iter().all(Sent::is_stored), "{sent:?}");
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

fn numbers(came: &[Delivery]) -> Vec<u64> {
    came.iter().map(|delivery| delivery.message.id.parse().unwrap()).collect()
}

/// Why a broker cannot be used, and that its text has no secret.
async fn refused(url: &str) -> Error {
    let error = match tidegate_amqp::open_broker(&Endpoint::parse(url).unwrap()) {
        Ok(broker) => broker.probe().await.unwrap_err(),
        Err(error) => error,
    };
    let shown = format!("{error:?} {}", error.line());
    assert!(!shown.contains("secret") && !shown.contains("guess"), "{shown}");
    error
}

#[tokio::test]
async fn who_may_not_come_in_is_told_why() {
    let Some(server) = server(Options::default().with_password("secret")).await else { return };
    let probed = open(&server.url()).probe().await.unwrap();
    assert!(probed.version.starts_with("Artemis 2.44.0") && probed.warnings.is_empty(), "{probed:?}");
    let begin = Instant::now();
    for user in ["user:guess@", "nobody:guess@", ""] {
        let error = refused(&format!("artemis://{user}127.0.0.1:{}", server.port())).await;
        assert_eq!((error.code(), error.verdict()), (code::ACCESS_DENIED, Verdict::Never), "{error:?}");
    }
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn who_may_not_manage_is_told_so() {
    let options = Options::default().with_setting("securityRoles.#.everything.manage", false);
    let Some(server) = server(options).await else { return };
    let error = refused(&server.url()).await;
    assert_eq!((error.code(), error.verdict()), (code::ACCESS_DENIED, Verdict::Never), "{error:?}");
    assert_eq!(error.message(), "the server takes no questions to its management from this user");
    assert!(error.hint_text().unwrap().contains("activemq.management"), "{error:?}");
}

#[tokio::test]
async fn tls_is_verified() {
    let Some(server) = server(Options::default().with_tls()).await else { return };
    let Some(other) = self::server(Options::default().with_tls()).await else { return };
    let url = |ca: &Path| format!("{}?ca={}", server.url(), ca.display());
    let authority = server.authority_certificate().unwrap();
    let broker = open(&url(&authority));
    assert!(broker.probe().await.unwrap().version.starts_with("Artemis 2.44.0"));
    let (channel, subscription) = channel(&*broker, "secure").await;
    publish(&*broker, &channel, 0..3).await;
    take(&mut *broker.subscribe(&subscription).await.unwrap(), 3).await;

    for url in [url(&other.authority_certificate().unwrap()), server.url()] {
        let error = refused(&url).await;
        assert_eq!((error.code(), error.verdict()), (code::TLS_FAILED, Verdict::Never), "{url}: {error:?}");
        assert_eq!(error.message(), "no trusted connection to the server");
        assert!(error.hint_text().unwrap().contains("?ca=FILE"));
    }
    let error = refused(&url(Path::new("/no/such"))).await;
    assert!(error.code() == code::TLS_FAILED && error.message().contains("/no/such"), "{error:?}");

    // The server's own certificate is by an authority that it trusts, and it knows whose it is.
    let own = server.data_folder();
    let certified = format!(
        "artemiss://127.0.0.1:{}?ca={}&cert={}&key={}",
        server.port(),
        authority.display(),
        own.with_file_name("server.crt").display(),
        own.with_file_name("server.key").display()
    );
    assert!(open(&certified).probe().await.unwrap().version.starts_with("Artemis 2.44.0"));
    let error = refused(&format!("artemiss://127.0.0.1:{}?ca={}", server.port(), authority.display())).await;
    assert_eq!(error.code(), code::ACCESS_DENIED, "{error:?}");
}

#[tokio::test]
async fn a_missing_server_is_told_soon() {
    let begin = Instant::now();
    let error = refused("artemis://127.0.0.1:1").await;
    assert_eq!((error.code(), error.verdict()), (code::UNREACHABLE, Verdict::Retry), "{error:?}");
    assert_eq!(error.message(), "the server does not answer");
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_server_that_does_not_wait_for_its_disk_is_warned_of() {
    let options = Options::default().with_setting("journalSyncNonTransactional", false);
    let Some(server) = server(options).await else { return };
    let warnings = open(&server.url()).probe().await.unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("journal-sync-non-transactional"), "{warnings:?}");
}

/// An owner goes without a word, with much in its hand and more behind it: the next one gets all of it, in its order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_owner_had_comes_first_and_in_order() {
    const IN_HAND: usize = 500;
    const ALL: u64 = 1_500;
    let Some(server) = shared(Service::Artemis).await else { return };
    let broker = open(&server.url());
    let (channel, subscription) = channel(&*broker, "hard").await;
    publish(&*broker, &channel, 0..ALL).await;
    let subscription = subscription.with_window(IN_HAND);
    for round in 0..8 {
        let proxy = Proxy::start(port(&server.url())).await.unwrap();
        let behind = open(&format!("artemis://user:password@127.0.0.1:{}", proxy.port()));
        let mut owner = behind.subscribe(&subscription).await.unwrap();
        let came = take(&mut *owner, IN_HAND).await;
        assert_eq!(numbers(&came), (0..IN_HAND as u64).collect::<Vec<_>>(), "round {round}");
        // Somebody is in line already every other time.
        let waiting =
            if round % 2 == 0 { Some(broker.subscribe(&subscription).await.unwrap()) } else { None };
        proxy.set(Traffic::Closed);
        drop(owner);
        if let Some(mut next) = waiting {
            let came = take(&mut *next, 1).await;
            assert_eq!(numbers(&came), [0], "round {round}");
            next.close(Duration::ZERO).await.unwrap();
        }
    }
    let mut last = broker.subscribe(&subscription.with_window(ALL as usize)).await.unwrap();
    let came = take(&mut *last, ALL as usize).await;
    assert_eq!(numbers(&came), (0..ALL).collect::<Vec<_>>());
    let done: Vec<_> = came.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
    assert!(last.settler().settle(&done).await.iter().all(|settled| settled.is_done()));
}

/// A consumer that is not heard of loses its lane when the server says so, and what it settles is not done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_hangs_loses_its_lanes() {
    let options =
        Options::default().with_setting("acceptorConfigurations.all.extraParams.amqpIdleTimeout", 2_000);
    let Some(server) = server(options).await else { return };
    let proxy = Proxy::start(server.port()).await.unwrap();
    let settings = "lease_ms=1000&timeout_ms=2000";
    let broker = open(&format!("{}?{settings}", server.url()));
    let (channel, subscription) = channel(&*broker, "hanging").await;
    publish(&*broker, &channel, 0..2).await;
    let hanging = open(&format!("artemis://user:password@127.0.0.1:{}?{settings}", proxy.port()));
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

/// The server wants more of its disk free than there is.
#[tokio::test]
async fn a_server_that_is_short_of_disk_is_told_so() {
    let Some(server) = server(Options::default().with_setting("maxDiskUsage", 1)).await else { return };
    let broker = open(&format!("{}?timeout_ms=1000", server.url()));
    // It looks every few seconds.
    let mut numbers = 0..60;
    let error = loop {
        let channel = Channel::new(format!("full-{}", numbers.next().unwrap())).unwrap().with_lanes(1);
        match broker.apply(&Topology::of(&channel), Apply::Create).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(300)).await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), code::LIMIT_REACHED, "{error:?}");
    assert_eq!(error.message(), "the server takes no messages: an address is full, or its disk is");
    assert!(broker.probe().await.is_ok());
}

#[tokio::test]
async fn settings_that_lose_messages_and_cannot_be_changed_are_named() {
    let options = Options::default().with_setting("addressSettings.\"tidegate.*\".maxDeliveryAttempts", 3);
    let Some(server) = server(options).await else { return };
    let error = refused(&server.url()).await;
    assert_eq!((error.code(), error.verdict()), (code::CONFIG_INVALID, Verdict::Never), "{error:?}");
    assert!(error.message().contains("maxDeliveryAttempts = -1"), "{error:?}");
}

/// Whatever the server drops, limits or counts by default, it does not do to our addresses.
#[tokio::test]
async fn a_server_that_drops_and_counts_is_set_right() {
    let options = Options::default()
        .with_setting("addressSettings.#.maxDeliveryAttempts", 1)
        .with_setting("addressSettings.#.addressFullMessagePolicy", "DROP")
        .with_setting("addressSettings.#.maxSizeBytes", 40_000)
        .with_setting("addressSettings.#.pageLimitMessages", 10)
        .with_setting("addressSettings.#.pageFullMessagePolicy", "DROP")
        .with_setting("addressSettings.#.defaultRingSize", 1);
    let Some(server) = server(options).await else { return };
    let broker = open(&server.url());
    let (channel, subscription) = channel(&*broker, "kept").await;
    publish(&*broker, &channel, 0..300).await;
    for _ in 0..3 {
        // A connection that is closed with messages in hand is a delivery that failed.
        let proxy = Proxy::start(server.port()).await.unwrap();
        let behind = open(&format!("artemis://user:password@127.0.0.1:{}", proxy.port()));
        let mut consumer = behind.subscribe(&subscription).await.unwrap();
        assert_eq!(numbers(&take(&mut *consumer, 300).await), (0..300).collect::<Vec<_>>());
        proxy.set(Traffic::Closed);
    }
}

/// Programs that make one channel at the same moment lost what others of them had registered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_make_a_channel_at_once_lose_no_subscription() {
    let Some(server) = shared(Service::Artemis).await else { return };
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
    let Some(server) = shared(Service::Artemis).await else { return };
    let broker = open(&server.url());
    assert!(broker.probe().await.is_ok());
    let wanted =
        r#"{"name":"tidegate.half","address":"tidegate.half","routing-type":"ANYCAST","exclusive":true}"#;
    manage(&server.url(), "createQueue", &[wanted.into()]).await;
    assert!(broker.channel(&Name::new("half").unwrap()).await.unwrap().is_none());
    let (channel, subscription) = channel(&*broker, "half").await;
    publish(&*broker, &channel, 0..1).await;
    take(&mut *broker.subscribe(&subscription).await.unwrap(), 1).await;
}

/// Has the server do something.
async fn manage(url: &str, operation: &str, arguments: &[Json]) {
    let properties = Properties {
        to: Some("activemq.management".to_owned()),
        reply_to: Some("tidegate.nobody".to_owned()),
        ..Properties::default()
    };
    let named = [("_AMQ_ResourceName", "broker".to_owned()), ("_AMQ_OperationName", operation.to_owned())];
    let arguments = Json::from(arguments).to_string();
    send(url, "queue", properties, &named, AmqpValue(Value::String(arguments))).await;
}

/// Sends a message as another program does; its properties say where to.
async fn send<B: SerializableBody + Send + Sync + 'static>(
    url: &str,
    node: &str,
    properties: Properties,
    named: &[(&str, String)],
    body: B,
) {
    let url = url.replace("artemis://", "amqp://");
    let mut connection = Connection::open("another program", &*url).await.unwrap();
    let mut session = Session::begin(&mut connection).await.unwrap();
    let mut target = Target::builder().capabilities(Array(vec![Symbol::from(node)])).build();
    target.address.clone_from(&properties.to);
    let mut sender = Sender::builder().name("s").target(target).attach(&mut session).await.unwrap();
    let named = named.iter().map(|(name, value)| ((*name).to_owned(), SimpleValue::String(value.clone())));
    let message = Amqp {
        header: None,
        delivery_annotations: None,
        message_annotations: None,
        properties: Some(properties),
        application_properties: Some(ApplicationProperties(OrderedMap::from_iter(named))),
        body,
        footer: None,
    };
    sender.send(message).await.unwrap().accepted_or("it was not taken").unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn other_programs_publish_and_what_is_no_message_is_given_as_it_was() {
    let Some(server) = shared(Service::Artemis).await else { return };
    let broker = open(&server.url());
    let (_, subscription) = channel(&*broker, "others").await;
    let to = |id: Option<&str>| Properties {
        to: Some("tidegate.others/0".to_owned()),
        message_id: id.map(|id| MessageId::String(id.to_owned())),
        content_type: Some(Symbol::from("text/plain")),
        subject: Some("placed".to_owned()),
        group_id: Some("k".to_owned()),
        ..Properties::default()
    };
    let event = ["id", "source", "type"].map(|name| format!("cloudEvents:{name}"));
    let event: Vec<_> =
        event.iter().map(|name| &**name).zip(["7", "/shop", "placed"].map(str::to_owned)).collect();
    let text = || AmqpValue(Value::String("order".to_owned()));
    send(&server.url(), "topic", to(None), &event, text()).await;
    send(&server.url(), "topic", to(Some("ID:1")), &[("orderId", "5".to_owned())], text()).await;
    send(&server.url(), "topic", to(None), &[], text()).await;
    let came = take(&mut *broker.subscribe(&subscription).await.unwrap(), 3).await;
    let right = Message::with_id("7", "/shop", "placed").with_data("text/plain", "order");
    assert_eq!(*came[0].message, right);
    let right = Message::with_id("ID:1", "amqp", "placed")
        .with_subject("k")
        .with_data("text/plain", "order")
        .with_header("orderid", "5")
        .unwrap();
    assert_eq!(*came[1].message, right);
    let odd = &came[2].message;
    assert_eq!((&*odd.kind, &odd.data[..]), ("tidegate.undecodable.v1", &b"order"[..]));
}

/// One that goes away in the midst of something takes no connection along that others use.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_leaves_everybody_else_alone() {
    for service in [Service::Artemis, Service::Activemq] {
        let Some(server) = server_of(service, Options::default()).await else { return };
        let broker = open(&server.url());
        let (channel, _subscription) = channel(&*broker, "dropped").await;
        let mut producer = broker.producer(&channel).await.unwrap();
        for number in 0..150 {
            let wait = Duration::from_micros(number * 331 % 20_000);
            let _dropped = tokio::time::timeout(wait, broker.channel(&channel.name)).await;
            let sent = producer.publish(&messages(number..number + 1)).await;
            assert!(sent.iter().all(Sent::is_stored), "{service:?}, {number}: {sent:?}");
        }
    }
}
