//! What other programs see and say, consumers that the server forgets, and how fast it goes.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream::Stream};
use futures::TryStreamExt as _;
use tidegate_conformance::{Network as _, Proxy, Traffic};
use tidegate_core::message::UNDECODABLE;
use tidegate_core::port::Sent;
use tidegate_core::{Apply, Channel, Keep, Start, Subscription, Topology};
use tidegate_services::broker::{Options, Server};
use tokio::time::Instant;

use crate::{channel, messages, open, server, take};

async fn beside(server: &Server, channel: &str) -> (jetstream::Context, Stream) {
    let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(format!("tidegate-{channel}")).await.unwrap();
    (jetstream, stream)
}

#[tokio::test]
async fn other_programs_read_and_write() {
    let Some(server) = server(Options::default()).await else { return };
    let broker = open(&server.url());
    let (channel, subscription) = channel(&*broker, "shared").await;
    let (jetstream, stream) = beside(&server, "shared").await;
    broker.producer(&channel).await.unwrap().publish(&messages(0..1)).await;
    let seen = stream.get_last_raw_message_by_subject("tidegate.shared.0").await.unwrap();
    let header = |name: &'static str| seen.headers.get(name).unwrap().as_str();
    assert_eq!(
        (header("ce-id"), header("ce-type"), header("ce-specversion"), seen.payload.len()),
        ("0", "numbered", "1.0", 512)
    );

    let mut headers = HeaderMap::new();
    for (name, value) in
        [("ce-specversion", "1.0"), ("ce-id", "a"), ("ce-source", "theirs"), ("ce-type", "t%20u")]
    {
        headers.insert(name, value);
    }
    let sent = jetstream.publish_with_headers("tidegate.shared.0", headers, "hello".into()).await.unwrap();
    sent.await.unwrap();
    jetstream.publish("tidegate.shared.0", "no event".into()).await.unwrap().await.unwrap();
    let came = take(&mut *broker.subscribe(&subscription).await.unwrap(), 3).await;
    assert_eq!((&*came[1].message.kind, &came[1].message.data[..]), ("t u", &b"hello"[..]));
    assert_eq!((&*came[2].message.kind, &came[2].message.data[..]), (UNDECODABLE, &b"no event"[..]));
    assert!(came.iter().all(|delivery| delivery.stored_at.is_some_and(|time| time > 1_700_000_000_000_000)));
}

#[tokio::test]
async fn a_consumer_that_the_server_forgot_is_made_anew() {
    let Some(server) = server(Options::default()).await else { return };
    let broker = open(&server.url());
    let (channel, subscription) = channel(&*broker, "forgotten").await;
    let (_, stream) = beside(&server, "forgotten").await;
    let mut producer = broker.producer(&channel).await.unwrap();
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    for round in 0..5 {
        producer.publish(&messages(round * 10..round * 10 + 10)).await;
        let came = take(&mut *consumer, 10).await;
        let ids: Vec<u64> = came.iter().map(|delivery| delivery.message.id.parse().unwrap()).collect();
        assert!(ids.iter().copied().eq(round * 10..round * 10 + 10), "round {round}: {ids:?}");
        let names: Vec<String> = stream.consumer_names().try_collect().await.unwrap();
        assert_eq!(names.len(), 1, "one a lane, and those of before are gone: {names:?}");
        stream.delete_consumer(&names[0]).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_kept_for_a_time_goes_behind_it_and_not_before() {
    let Some(server) = server(Options::default()).await else { return };
    let broker = open(&server.url());
    let channel =
        Channel::new("kept").unwrap().with_lanes(2).with_keep(Keep::AtLeast(Duration::from_secs(1)));
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    let (_, mut stream) = beside(&server, "kept").await;
    let mut producer = broker.producer(&channel).await.unwrap();
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    producer.publish(&messages(0..30)).await;
    take(&mut *consumer, 30).await;
    assert_eq!(stream.info().await.unwrap().state.messages, 30, "they are kept");
    let until = Instant::now() + Duration::from_secs(20);
    // What is new is kept whenever the old goes.
    let mut number = 30;
    while stream.info().await.unwrap().state.first_sequence <= 30 {
        assert!(Instant::now() < until, "what is old is still there");
        producer.publish(&messages(number..number + 1)).await;
        take(&mut *consumer, 1).await;
        number += 1;
    }
    let state = stream.info().await.unwrap().state.clone();
    assert_eq!(state.first_sequence + state.messages, state.last_sequence + 1, "nothing in between is gone");
    let late = Subscription::new(&channel, "late").unwrap().with_start(Start::Earliest);
    let mut late = broker.subscribe(&late).await.unwrap();
    producer.publish(&messages(number..number + 1)).await;
    let first = take(&mut *late, 1).await;
    assert!(first[0].position.as_ref().unwrap().to_u64().unwrap() > 30);
}

/// Messages are sent before the first one is answered: on a network on which everything takes a while, a window takes not
/// much longer than one of them.
#[tokio::test]
async fn a_window_does_not_wait_for_each_of_its_messages() {
    let Some(server) = server(Options::default()).await else { return };
    let proxy = Proxy::start(server.port()).await.unwrap();
    let broker = open(&format!("nats://127.0.0.1:{}", proxy.port()));
    let (channel, _) = channel(&*broker, "windows").await;
    let mut producer = broker.producer(&channel).await.unwrap();
    let all = messages(0..301);
    assert!(producer.publish(&all[..1]).await[0].is_stored());
    proxy.set(Traffic::Slow(Duration::from_millis(50)));
    let begin = Instant::now();
    assert!(producer.publish(&all[1..]).await.iter().all(Sent::is_stored));
    let took = begin.elapsed();
    assert!(
        took < Duration::from_millis(50 * 300 / 4),
        "300 messages, of which each would take 100 ms, took {took:?}"
    );
}
