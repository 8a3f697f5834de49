//! Logins, certificates, and servers that are not as they should be.

use std::time::Duration;

use tidegate_core::error::{Verdict, code};
use tidegate_core::port::Sent;
use tidegate_core::{Apply, Channel, Error, Lane, Message, Subscription, Topology};
use tidegate_services::broker::Options;
use tokio::time::Instant;

use crate::{channel, messages, open, server, take};

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
    let probed = open(&server.url()).probe().await.unwrap();
    assert_eq!(probed.version, "NATS 2.12.1");
    for url in [
        format!("nats://user:guess@127.0.0.1:{}", server.port()),
        format!("nats://127.0.0.1:{}", server.port()),
    ] {
        let error = refused(&url).await;
        assert_eq!((error.code(), error.verdict()), (code::ACCESS_DENIED, Verdict::Never), "{error:?}");
        let said = "the server refuses the user, the password, the token or the key";
        assert_eq!(error.message(), said);
    }
}

#[tokio::test]
async fn a_token_and_a_seed_log_in() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let options = Options::default().with_setting("authorization", "{ token: secret }");
    let Some(by_token) = server(options).await else { return };
    let url = |file: String| format!("nats://127.0.0.1:{}?token-file={file}", by_token.port());
    open(&url(file("token", "secret\n"))).probe().await.unwrap();
    assert_eq!(refused(&url(file("other", "guess"))).await.code(), code::ACCESS_DENIED);

    let key = nkeys::KeyPair::new_user();
    let users = format!("{{ users: [ {{ nkey: {} }} ] }}", key.public_key());
    let by_seed = server(Options::default().with_setting("authorization", users)).await.unwrap();
    let url = |file: String| format!("nats://127.0.0.1:{}?nkey={file}", by_seed.port());
    open(&url(file("seed", &key.seed().unwrap()))).probe().await.unwrap();
    let stranger = nkeys::KeyPair::new_user().seed().unwrap();
    assert_eq!(refused(&url(file("stranger", &stranger))).await.code(), code::ACCESS_DENIED);
    assert_eq!(refused(&url(file("none", "guess"))).await.code(), code::ACCESS_DENIED);
}

#[tokio::test]
async fn tls_is_verified() {
    let Some(server) = server(Options::default().with_tls()).await else { return };
    let Some(other) = server_of_another_authority().await else { return };
    let url = |ca: &std::path::Path| format!("{}?ca={}", server.url(), ca.display());
    let broker = open(&url(&server.authority_certificate().unwrap()));
    let (channel, subscription) = channel(&*broker, "secure").await;
    let sent = broker.producer(&channel).await.unwrap().publish(&messages(0..3)).await;
    assert!(sent.iter().all(Sent::is_stored), "{sent:?}");
    take(&mut *broker.subscribe(&subscription).await.unwrap(), 3).await;

    for url in
        [url(&other.authority_certificate().unwrap()), server.url(), server.url().replace("tls:", "nats:")]
    {
        let error = refused(&url).await;
        assert_eq!((error.code(), error.verdict()), (code::TLS_FAILED, Verdict::Never), "{url}: {error:?}");
        assert_eq!(error.message(), "no trusted connection to the server");
        assert!(error.hint_text().unwrap().contains("?ca=FILE"));
    }
}

async fn server_of_another_authority() -> Option<tidegate_services::broker::Server> {
    server(Options::default().with_tls()).await
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_not_spoken_to_in_plain_text() {
    let Some(server) = server(Options::default()).await else { return };
    let error = refused(&server.url().replace("nats:", "tls:")).await;
    assert_eq!(error.code(), code::TLS_FAILED, "{error:?}");
}

#[tokio::test]
async fn a_missing_server_is_told_soon() {
    let begin = Instant::now();
    let error = refused("nats://127.0.0.1:1").await;
    assert_eq!((error.code(), error.verdict()), (code::UNREACHABLE, Verdict::Retry), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_server_without_jetstream_is_named() {
    let Some(server) = server(Options::default().with_setting("jetstream", "false")).await else { return };
    let error = refused(&server.url()).await;
    assert_eq!((error.code(), error.verdict()), (code::CAPABILITY_MISSING, Verdict::Never), "{error:?}");
    assert!(
        error.message().contains("has no JetStream") && error.hint_text().unwrap().contains("jetstream {")
    );
    let channel = Channel::new("c").unwrap();
    let error = open(&server.url()).apply(&Topology::of(&channel), Apply::Create).await.unwrap_err();
    assert_eq!(error.code(), code::CAPABILITY_MISSING, "{error:?}");
}

#[tokio::test]
async fn what_is_larger_than_the_server_takes_is_refused_alone() {
    let Some(server) = server(Options::default().with_setting("max_payload", 10_000)).await else { return };
    let broker = open(&server.url());
    let (channel, subscription) = channel(&*broker, "large").await;
    let mut batch = messages(0..5);
    batch[2].data = vec![b'x'; 10_000].into();
    let sent = broker.producer(&channel).await.unwrap().publish(&batch).await;
    for (at, sent) in sent.iter().enumerate() {
        match (at, sent.error()) {
            (2, Some(error)) => {
                assert_eq!((error.code(), error.verdict()), (code::BODY_TOO_LARGE, Verdict::Never));
                assert!(error.message().contains("max_payload"), "{error:?}");
            }
            _ => assert!(sent.is_stored(), "{at}: {sent:?}"),
        }
    }
    take(&mut *broker.subscribe(&subscription).await.unwrap(), 4).await;
}

#[tokio::test]
async fn what_a_user_may_not_do_is_told() {
    let users = r#"{ users: [ { user: user, password: secret, permissions: { publish: { deny: "tidegate.>" } } } ] }"#;
    let Some(server) = server(Options::default().with_setting("authorization", users)).await else { return };
    let broker = open(&format!("nats://user:secret@127.0.0.1:{}?timeout_ms=500", server.port()));
    let (channel, _) = channel(&*broker, "denied").await;
    let sent = broker.producer(&channel).await.unwrap().publish(&messages(0..1)).await;
    let error = sent[0].error().unwrap();
    assert_eq!(error.code(), code::ACCESS_DENIED, "{error:?}");
}

/// Of two messages one is stored, and the answer to it does not come, while the other one may not be published.
#[tokio::test]
async fn what_may_not_be_done_with_one_message_is_not_said_of_another() {
    let users = r#"{ users: [ { user: user, password: secret, permissions: { publish: { deny: "tidegate.half.1" } } } ] }"#;
    let Some(server) = server(Options::default().with_setting("authorization", users)).await else { return };
    let login = async_nats::ConnectOptions::with_user_and_password("user".to_owned(), "secret".to_owned());
    let beside = login.connect(format!("127.0.0.1:{}", server.port())).await.unwrap();
    let beside = async_nats::jetstream::new(beside);
    let silent = async_nats::jetstream::stream::Config {
        name: "tidegate-half".to_owned(),
        subjects: vec!["tidegate.half.*".to_owned()],
        no_ack: true,
        ..Default::default()
    };
    let mut stream = beside.create_stream(silent).await.unwrap();
    let broker = open(&format!("nats://user:secret@127.0.0.1:{}?timeout_ms=1000", server.port()));
    let channel = Channel::new("half").unwrap().with_lanes(2);
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    let message_to = |lane: u32| {
        let message = |number: u64| messages(0..1).remove(0).with_subject(number.to_string());
        (0..).map(message).find(|message| message.lane(2) == Lane(lane)).unwrap()
    };
    let mut producer = broker.producer(&channel).await.unwrap();
    let sent = producer.publish(&[message_to(0), message_to(1)]).await;
    assert_eq!(stream.info().await.unwrap().state.messages, 1);
    assert!(matches!(&sent[0], Sent::Unknown(error) if error.code() == code::TIMED_OUT), "{sent:?}");
    assert!(format!("{:?}", sent[0]).contains("tidegate.half.1"), "what was said is not kept back: {sent:?}");
    assert!(matches!(&sent[1], Sent::Refused(error) if error.code() == code::ACCESS_DENIED), "{sent:?}");
    // Whatever was said before is of no later message.
    let sent = broker.producer(&channel).await.unwrap().publish(&[message_to(0)]).await;
    assert!(matches!(&sent[0], Sent::Unknown(error) if error.code() == code::TIMED_OUT), "{sent:?}");
}

#[tokio::test]
async fn a_limit_of_the_stream_refuses_and_what_is_behind_waits() {
    let Some(server) = server(Options::default()).await else { return };
    let broker = open(&format!("{}?patience_ms=0", server.url()));
    let (channel, _) = channel(&*broker, "narrow").await;
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let mut stream = jetstream.get_stream("tidegate-narrow").await.unwrap();
    let config = async_nats::jetstream::stream::Config {
        max_messages: 10,
        ..stream.info().await.unwrap().config.clone()
    };
    jetstream.update_stream(config).await.unwrap();
    let mut producer = broker.producer(&channel).await.unwrap();
    let sent = producer.publish(&messages(0..20)).await;
    assert!(sent[..10].iter().all(Sent::is_stored), "{sent:?}");
    for sent in &sent[10..] {
        let error = sent.error().unwrap();
        assert_eq!((error.code(), error.verdict()), (code::LIMIT_REACHED, Verdict::Retry), "{error:?}");
    }
    let probed = broker.probe().await.unwrap();
    assert!(probed.warnings.iter().any(|text| text.contains("tidegate-narrow: it has limits")), "{probed:?}");
    // One by one until there is room, and then in one go.
    let sent = producer.publish(&messages(10..20)).await;
    assert!(
        sent.iter().all(|sent| sent.error().is_some_and(|error| error.code() == code::LIMIT_REACHED)),
        "{sent:?}"
    );
    stream.purge().await.unwrap();
    let sent = producer.publish(&messages(10..20)).await;
    assert!(sent.iter().all(Sent::is_stored), "{sent:?}");
}

#[tokio::test]
async fn what_loses_messages_is_named() {
    let Some(server) = server(Options::default()).await else { return };
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let in_memory = async_nats::jetstream::stream::Config {
        name: "tidegate-mine".to_owned(),
        subjects: vec!["tidegate.mine.*".to_owned()],
        storage: async_nats::jetstream::stream::StorageType::Memory,
        duplicate_window: Duration::from_secs(1),
        ..Default::default()
    };
    jetstream.create_stream(in_memory).await.unwrap();
    let probed = open(&server.url()).probe().await.unwrap();
    for named in
        ["sync_interval", "in no cluster", "tidegate-mine: its storage is memory", "known for 1s, and 120s"]
    {
        let mut texts = probed.warnings.iter().chain(&probed.notes);
        assert!(texts.any(|text| text.contains(named)), "{named}: {probed:?}");
    }
    // It is somebody's: it stays as it is.
    let broker = open(&server.url());
    channel(&*broker, "mine").await;
    let mut mine = jetstream.get_stream("tidegate-mine").await.unwrap();
    assert_eq!(mine.info().await.unwrap().config.storage, async_nats::jetstream::stream::StorageType::Memory);

    let all = async_nats::jetstream::stream::Config {
        name: "all".to_owned(),
        subjects: vec!["tidegate.other.>".to_owned()],
        ..Default::default()
    };
    jetstream.create_stream(all).await.unwrap();
    let other = Channel::new("other").unwrap();
    let error = broker.apply(&Topology::of(&other), Apply::Create).await.unwrap_err();
    assert!(error.code() == code::NAME_TAKEN && error.hint_text().is_some(), "{error:?}");
}

/// JetStream refuses every write then, also those that note what is settled: it is told so, nothing is lost, and everything goes on
/// when there is room.
#[tokio::test]
async fn a_server_that_is_short_of_disk_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let jetstream = format!(
        "{{ store_dir: \"{}\", sync_interval: always, max_file_store: 4MB }}",
        folder.path().display()
    );
    let Some(server) = server(Options::default().with_setting("jetstream", jetstream)).await else { return };
    let beside = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let others = async_nats::jetstream::stream::Config {
        name: "others".to_owned(),
        subjects: vec!["others".to_owned()],
        ..Default::default()
    };
    beside.create_stream(others).await.unwrap();
    for _ in 0..10 {
        beside.publish("others", "x".repeat(100_000).into()).await.unwrap().await.unwrap();
    }
    let broker = open(&format!("{}?patience_ms=500", server.url()));
    let (channel, subscription) = channel(&*broker, "full").await;
    let mut producer = broker.producer(&channel).await.unwrap();
    let (mut stored, mut refused) = (0, None);
    // Large ones first, until the least has no room.
    for message in large(0..100).chain(messages(100..20_000)) {
        match producer.publish(&[message]).await.remove(0) {
            Sent::Stored { .. } => stored += 1,
            Sent::Refused(error) if refused.is_none() => refused = Some(error),
            Sent::Refused(_) => break,
            Sent::Unknown(error) => panic!("{error:?}"),
        }
    }
    let full = |error: &Error| {
        assert_eq!((error.code(), error.verdict()), (code::LIMIT_REACHED, Verdict::Retry), "{error:?}");
        assert_eq!(error.message(), "a limit of the account or of the server is reached");
    };
    full(&refused.expect("a server of 4 MB took more"));
    let error = broker.subscribe(&subscription).await.err().unwrap();
    full(&error);
    assert!(error.hint_text().unwrap().contains("max_file_store"), "{error:?}");
    beside.delete_stream("others").await.unwrap();
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    assert_eq!(take(&mut *consumer, stored).await.len(), stored);
    let sent = producer.publish(&messages(30_000..30_001)).await;
    assert!(sent[0].is_stored(), "{sent:?}");
}

fn large(numbers: std::ops::Range<u64>) -> impl Iterator<Item = Message> {
    numbers.map(|number| {
        Message::with_id(number.to_string(), "test", "numbered")
            .with_subject("k")
            .with_data("text/plain", "x".repeat(100_000))
    })
}
