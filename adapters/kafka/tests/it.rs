//! What is particular to Kafka: users and certificates, unsafe settings, what others do to topics, and what they write.

#![allow(clippy::unwrap_used, reason = "a test ends with what it did not expect")]

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Broker, Consumer, Delivery, Sent, Settlement, Signal};
use tidegate_core::{
    Apply, Channel, Endpoint, Error, LossEvent, Message, Result, Subscription, SystemIds, Topology,
};
use tidegate_services::broker::{self, Options, Server, Shared};
use tidegate_services::skipped;

const SERVICE: broker::Broker = broker::Broker::Kafka;
const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(15);

fn open(url: &str) -> Result<std::sync::Arc<dyn Broker>> {
    tidegate_kafka::open_broker(&Endpoint::parse(url)?)
}

async fn shared() -> Option<&'static Shared> {
    broker::shared(SERVICE).await
}

fn plain(server: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", server.trim_start_matches("kafka://"));
    config
}

fn admin(server: &str) -> AdminClient<DefaultClientContext> {
    plain(server).create().unwrap()
}

fn message(subject: &str) -> Message {
    Message::new(&SystemIds, "shop", "order.placed")
        .with_subject(subject)
        .with_data("text/plain", subject.to_owned())
}

/// The first signal that is not of messages or of lanes that come and go, or an error.
async fn told(consumer: &mut dyn Consumer) -> Result<Signal> {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        match consumer.receive(10, SECOND, &mut Vec::new()).await? {
            Signal::Messages | Signal::LanesGained(_) | Signal::LanesLost(_) => {}
            signal => return Ok(signal),
        }
        assert!(tokio::time::Instant::now() < until, "the consumer is told nothing");
    }
}

async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let until = tokio::time::Instant::now() + PATIENCE;
    let mut out = Vec::new();
    while out.len() < count && tokio::time::Instant::now() < until {
        consumer.receive(count - out.len(), SECOND, &mut out).await.unwrap();
    }
    assert_eq!(out.len(), count);
    out
}

/// What is in the way, in words.
async fn refused(url: &str) -> Error {
    let error = open(url).unwrap().probe().await.unwrap_err();
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_named() {
    // Nobody listens there.
    let error = refused("kafka://127.0.0.1:1?timeout_ms=1500").await;
    assert_eq!((error.code(), error.verdict()), (code::UNREACHABLE, Verdict::Retry));
    assert!(format!("{error:?}").contains("Connection refused"), "{error:?}");
    let error = open("kafkas://127.0.0.1:1?ca=/no/such/file").unwrap_err();
    assert_eq!(error.code(), code::TLS_FAILED, "{error:?}");
    assert!(format!("{error:?}").contains("/no/such/file"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_certificates_are_checked() {
    if skipped(SERVICE.service()) {
        return;
    }
    let server = Server::start(SERVICE, Options::default().with_tls().with_password("s3cret")).await.unwrap();
    let (port, authority) = (server.port(), server.authority_certificate().unwrap());
    let url = |scheme: &str, login: &str, more: &str| {
        format!("{scheme}://{login}127.0.0.1:{port}?timeout_ms=6000{more}")
    };
    let ca = format!("&ca={}", authority.display());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "s3cret\n").unwrap();
    let from_file = format!("{ca}&password-file={}", file.path().display());
    for (login, more) in [
        ("user:s3cret@", ca.clone()),
        ("user:s3cret@", format!("{ca}&sasl=scram-sha-512")),
        ("user:s3cret@", format!("{ca}&sasl=plain")),
        ("user@", from_file),
    ] {
        let broker = open(&url("kafkas", login, &more)).unwrap();
        assert!(broker.probe().await.unwrap().version.starts_with("Kafka, cluster "), "{login} {more}");
        assert!(!broker.location().contains("s3cret"));
    }
    // Messages go that way, not only questions.
    let broker = open(&url("kafkas", "user:s3cret@", &ca)).unwrap();
    let channel = Channel::new("secret").unwrap();
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    let sent = broker.producer(&channel).await.unwrap().publish(&[message("k")]).await;
    assert!(sent[0].is_stored(), "{sent:?}");
    take(&mut *broker.subscribe(&subscription).await.unwrap(), 1).await;

    for (url, code, said) in [
        (url("kafkas", "user:s3cret-not@", &ca), code::ACCESS_DENIED, "uthentication"),
        (
            url("kafkas", "user:s3cret-not@", &format!("{ca}&sasl=plain")),
            code::ACCESS_DENIED,
            "uthentication",
        ),
        (url("kafkas", "user:s3cret@", ""), code::TLS_FAILED, "certificate verify failed"),
    ] {
        let error = refused(&url).await;
        assert!(error.code() == code && format!("{error:?}").contains(said), "{url}: {error:?}");
        assert_eq!(error.verdict(), Verdict::Never);
    }
    // In plain text to where TLS is spoken: the server hangs up and says nothing.
    let error = refused(&url("kafka", "", "").replace("6000", "2000")).await;
    assert_eq!(error.code(), code::UNREACHABLE);
    assert_eq!(error.hint_text(), Some("a server that speaks TLS is kafkas://"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_where_it_is_not_spoken_is_named() {
    let Some(server) = shared().await else { return };
    let url = server.url().replace("kafka://", "kafkas://");
    let error = refused(&format!("{url}?timeout_ms=2000")).await;
    assert_eq!(error.code(), code::UNREACHABLE, "{error:?}");
    assert!(format!("{error:?}").contains("SSL handshake failed"), "{error:?}");
    assert_eq!(error.hint_text(), Some("a server without TLS is kafka://"));
}

#[tokio::test(flavor = "multi_thread")]
async fn unsafe_settings_are_named() {
    if skipped(SERVICE.service()) {
        return;
    }
    let warnings = async |options: Options, more: &str| {
        let server = Server::start(SERVICE, options).await.unwrap();
        open(&format!("{}{more}", server.url())).unwrap().probe().await.unwrap().warnings
    };
    let lonely = "default.replication.factor is 1: ";
    let flushed = warnings(Options::default(), "").await;
    assert!(flushed.len() == 1 && flushed[0].starts_with(lonely), "{flushed:?}");
    let options = Options::default()
        .with_setting("log.flush.interval.messages", 9_223_372_036_854_775_807_i64)
        .with_setting("unclean.leader.election.enable", true)
        .with_setting("auto.create.topics.enable", true);
    let unsafe_ones = warnings(options, "").await;
    assert_eq!(unsafe_ones.len(), 4, "{unsafe_ones:?}");
    let starts = [
        lonely,
        "log.flush.interval.messages is 9223372036854775807: ",
        "unclean.leader.election.enable is true: ",
        "auto.create.topics.enable is true: ",
    ];
    assert!(
        unsafe_ones.iter().zip(starts).all(|(warning, start)| warning.starts_with(start)),
        "{unsafe_ones:?}"
    );
    let replicated = warnings(Options::default(), "?replicas=3").await;
    assert!(
        replicated.len() == 1 && replicated[0].starts_with("min.insync.replicas is 1: "),
        "{replicated:?}"
    );
    let broker = open("kafka://h").unwrap();
    assert!(broker.capabilities().loses_when(LossEvent::PowerLost));
    assert!(!broker.capabilities().loses_when(LossEvent::BrokerKilled));
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_somebody_adds_stop_it_by_name() {
    let Some(server) = shared().await else { return };
    let broker = open(&server.url()).unwrap();
    let channel = Channel::new(server.name("grown")).unwrap().with_lanes(2);
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    let mut producer = broker.producer(&channel).await.unwrap();
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    assert!(producer.publish(&[message("k")]).await[0].is_stored());
    take(&mut *consumer, 1).await;
    let more = NewPartitions::new(channel.name.as_str(), 3);
    admin(&server.url()).create_partitions([&more], &AdminOptions::new()).await.unwrap();
    let error = told(&mut *consumer).await.unwrap_err();
    assert_eq!((error.code(), error.verdict()), (code::CHANNEL_DIFFERS, Verdict::Never));
    assert_eq!(error.message(), format!("channel {} has lanes 3, and 2 is asked for", channel.name));
    let sent = producer.publish(&[message("k")]).await;
    assert!(matches!(&sent[0], Sent::Refused(error) if error.code() == code::CHANNEL_DIFFERS), "{sent:?}");
    let error = broker.producer(&channel).await.err().unwrap();
    assert_eq!(error.code(), code::CHANNEL_DIFFERS);
    let differences = broker.apply(&Topology::of(&channel), Apply::Verify).await.unwrap();
    assert_eq!(
        differences.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("channel {} has lanes 3, and 2 is asked for", channel.name)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_whose_topics_somebody_deletes_is_missing() {
    let Some(server) = shared().await else { return };
    let broker = open(&server.url()).unwrap();
    let channel = Channel::new(server.name("gone")).unwrap();
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    let topics = [channel.name.as_str(), &format!("_tidegate.{}", channel.name)];
    admin(&server.url()).delete_topics(&topics, &AdminOptions::new()).await.unwrap();
    let until = tokio::time::Instant::now() + PATIENCE;
    while broker.producer(&channel).await.err().map(|error| error.code()) != Some(code::CHANNEL_MISSING) {
        assert!(tokio::time::Instant::now() < until);
    }
}

/// What becomes of a producer and a consumer whose topics somebody deletes: what each of them is told, for the topic of
/// messages, that of documents, and both.
async fn told_without_topics(server: &str, mark: &str) -> Vec<(String, String, String)> {
    let broker = open(&format!("{server}?timeout_ms=2000&lease_ms=1500&grace_ms=200")).unwrap();
    let deleting = admin(server);
    let asker: BaseConsumer = plain(server).create().unwrap();
    let there = |topic: &String| {
        let all = tokio::task::block_in_place(|| asker.fetch_metadata(None, PATIENCE).unwrap());
        all.topics().iter().any(|known| known.name() == topic)
    };
    let mut told = Vec::new();
    for (name, gone) in
        [("messages", &[""][..]), ("documents", &["_tidegate."]), ("both", &["", "_tidegate."])]
    {
        let channel = Channel::new(format!("{name}-{mark}")).unwrap().with_lanes(1);
        let subscription = Subscription::new(&channel, "s").unwrap();
        broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
        let mut producer = broker.producer(&channel).await.unwrap();
        let mut consumer = broker.subscribe(&subscription).await.unwrap();
        assert!(producer.publish(&[message("k")]).await[0].is_stored());
        take(&mut *consumer, 1).await;
        // It is believed now that everything is as it was made.
        assert!(producer.publish(&[message("k")]).await[0].is_stored());
        let gone: Vec<String> = gone.iter().map(|before| format!("{before}{}", channel.name)).collect();
        let names: Vec<&str> = gone.iter().map(String::as_str).collect();
        deleting.delete_topics(&names, &AdminOptions::new()).await.unwrap();
        while gone.iter().any(there) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // For longer than a lease, so that both write.
        let until = tokio::time::Instant::now() + 6 * SECOND;
        let (mut published, mut received) = (String::new(), String::new());
        while tokio::time::Instant::now() < until {
            let sent = producer.publish(&[message("k")]).await.remove(0);
            assert!(name == "documents" || !sent.is_stored(), "{name}: there is no topic, and {sent:?}");
            published = match sent {
                Sent::Stored { .. } => "stored".to_owned(),
                Sent::Refused(error) | Sent::Unknown(error) => error.code().to_string(),
            };
            match consumer.receive(10, SECOND / 5, &mut Vec::new()).await {
                Ok(Signal::Cancelled(error)) => received = format!("cancelled: {}", error.code()),
                Err(error) if received.is_empty() => received = error.code().to_string(),
                _ => {}
            }
            let again: Vec<&String> = gone.iter().filter(|topic| there(topic)).collect();
            assert!(again.is_empty(), "{name}: made again: {again:?}");
        }
        told.push((name.to_owned(), published, received));
    }
    told
}

/// A server makes topics by itself, as it comes, with its own retention: for whoever asks for one and says that it may.
#[tokio::test(flavor = "multi_thread")]
async fn topics_that_somebody_deletes_are_not_made_again() {
    let Some(shared) = shared().await else { return };
    let options = Options::default().with_setting("auto.create.topics.enable", true);
    let server = Server::start(SERVICE, options).await.unwrap();
    let told = told_without_topics(&server.url(), "by-itself").await;
    for (name, published, received) in &told {
        assert!(*published == code::CHANNEL_MISSING.to_string() && !received.is_empty(), "{name}: {told:?}");
    }
    assert_eq!(told, told_without_topics(&shared.url(), &shared.name("x")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_kept_in_no_topic_that_loses_them() {
    let Some(server) = shared().await else { return };
    let broker = open(&format!("{}?timeout_ms=2000", server.url())).unwrap();
    for (name, partitions, retention, said) in [
        ("wide", 3, "-1", "has partitions 3, and 1 is asked for"),
        ("forgetful", 1, "86400000", "retention.ms 86400000"),
    ] {
        let channel = Channel::new(server.name(name)).unwrap();
        let documents = format!("_tidegate.{}", channel.name);
        let topic =
            NewTopic::new(&documents, partitions, TopicReplication::Fixed(1)).set("retention.ms", retention);
        admin(&server.url()).create_topics([&topic], &AdminOptions::new()).await.unwrap()[0]
            .as_ref()
            .unwrap();
        let topology = Topology::of(&channel);
        let applied = tokio::time::timeout(PATIENCE, broker.apply(&topology, Apply::Create));
        let error = applied.await.expect("it is looked for without an end").unwrap_err();
        assert_eq!((error.code(), error.verdict()), (code::CHANNEL_DIFFERS, Verdict::Never), "{error:?}");
        assert!(error.message().contains(&documents) && error.message().contains(said), "{error:?}");
        assert!(error.hint_text().is_some(), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_others_are_taken_if_they_lose_nothing() {
    let Some(server) = shared().await else { return };
    let (broker, admin) = (open(&server.url()).unwrap(), admin(&server.url()));
    let make = async |name: &str, partitions, retention| {
        let topic =
            NewTopic::new(name, partitions, TopicReplication::Fixed(1)).set("retention.ms", retention);
        admin.create_topics(&[topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    };
    let apply = async |channel: &Channel| broker.apply(&Topology::of(channel), Apply::Create).await;
    let [fits, narrow, short] =
        ["fits", "narrow", "short"].map(|name| Channel::new(server.name(name)).unwrap());
    make(fits.name.as_str(), 8, "-1").await;
    make(narrow.name.as_str(), 3, "-1").await;
    make(short.name.as_str(), 8, "86400000").await;
    apply(&fits).await.unwrap();
    for (channel, text) in [
        (&narrow, format!("channel {} has lanes 3, and 8 is asked for", narrow.name)),
        (&short, format!("channel {} has retention.ms 86400000, and -1 is asked for", short.name)),
    ] {
        let error = apply(channel).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (code::CHANNEL_DIFFERS, &*text));
        assert_eq!(broker.producer(channel).await.err().unwrap().code(), code::CHANNEL_MISSING);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_read_what_is_written_and_write_what_is_read() {
    let Some(server) = shared().await else { return };
    let broker = open(&server.url()).unwrap();
    let channel = Channel::new(server.name("both")).unwrap().with_lanes(1);
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    let sent = broker.producer(&channel).await.unwrap().publish(&[message("order-1")]).await;
    assert!(sent[0].is_stored());

    let topic = channel.name.to_string();
    let reader: BaseConsumer = plain(&server.url())
        .set("group.id", topic.clone())
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    reader.subscribe(&[&topic]).unwrap();
    let read = tokio::task::block_in_place(|| {
        let until = std::iter::repeat_with(|| reader.poll(PATIENCE)).take(20);
        until.flatten().next().unwrap().unwrap().detach()
    });
    assert_eq!((read.key(), read.payload()), (Some(&b"order-1"[..]), Some(&b"order-1"[..])));
    let names: Vec<_> = read.headers().unwrap().iter().map(|header| header.key.to_owned()).collect();
    assert_eq!(names, ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_subject", "content-type"]);

    let writer: FutureProducer = plain(&server.url()).create().unwrap();
    let mut headers = OwnedHeaders::new();
    for (key, value) in [("ce_specversion", "1.0"), ("ce_id", "7"), ("ce_source", "/java"), ("ce_type", "t")]
    {
        headers = headers.insert(Header { key, value: Some(value.as_bytes()) });
    }
    headers = headers.insert::<[u8]>(Header { key: "nothing", value: None });
    let event = FutureRecord::<[u8], [u8]>::to(&topic).headers(headers).payload(&[1, 2]);
    writer.send(event, PATIENCE).await.unwrap();
    // A tombstone: a key and no value.
    writer.send(FutureRecord::<[u8], [u8]>::to(&topic).key(b"k"), PATIENCE).await.unwrap();

    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    let came = take(&mut *consumer, 3).await;
    assert_eq!((&*came[1].message.id, &came[1].message.data[..]), ("7", &[1, 2][..]));
    assert_eq!(came[1].message.headers.get("nothing"), Some(""));
    assert_eq!(&*came[2].message.kind, tidegate_core::message::UNDECODABLE);
    assert!(came[2].message.data.is_empty() && came[2].message.headers.get("tg_error").is_some());
    let batch: Vec<_> = came.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
    assert!(consumer.settler().settle(&batch).await.iter().all(|settled| settled.is_done()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_the_topics_own_limit_is_refused_alone() {
    let Some(server) = shared().await else { return };
    let (broker, admin) = (open(&server.url()).unwrap(), admin(&server.url()));
    let channel = Channel::new(server.name("small")).unwrap().with_lanes(1);
    let subscription = Subscription::new(&channel, "s").unwrap();
    let topic = NewTopic::new(channel.name.as_str(), 1, TopicReplication::Fixed(1))
        .set("retention.ms", "-1")
        .set("max.message.bytes", "10000");
    admin.create_topics(&[topic], &AdminOptions::new()).await.unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    let mut batch = [message("k"), message("k"), message("k")];
    batch[1].data = vec![7; 20_000].into();
    let sent = broker.producer(&channel).await.unwrap().publish(&batch).await;
    assert!(sent[0].is_stored() && sent[2].is_stored(), "{sent:?}");
    assert!(matches!(&sent[1], Sent::Refused(error) if error.code() == code::BODY_TOO_LARGE), "{sent:?}");
}
