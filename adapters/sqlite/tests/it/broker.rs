//! The broker where its file matters. What every broker has to do is in the conformance suite.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
use tempfile::TempDir;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Attempt, Broker, Consumer, Delivery, Sent, Settlement};
use tidegate_core::{Apply, Channel, Endpoint, Message, Subscription, SystemIds, Topology};
use tokio::time::Instant;

fn open(path: &Path, parameters: &str) -> Arc<dyn Broker> {
    let url = format!("sqlite:{}?{parameters}", path.display());
    tidegate_sqlite::open_broker(&Endpoint::parse(&url).unwrap()).unwrap()
}

async fn file(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

/// A channel of one lane and its subscription, in a new file.
async fn scene(folder: &TempDir) -> (std::path::PathBuf, Arc<dyn Broker>, Channel, Subscription) {
    let path = folder.path().join("broker.db");
    let broker = open(&path, "lease_ms=500&grace_ms=200");
    let channel = Channel::new("orders").unwrap().with_lanes(1);
    let subscription = Subscription::new(&channel, "billing").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    (path, broker, channel, subscription)
}

async fn publish(broker: &dyn Broker, channel: &Channel, count: usize) -> Vec<Message> {
    let messages: Vec<_> =
        (0..count).map(|_| Message::new(&SystemIds, "test", "tested").with_subject("k")).collect();
    let sent = broker.producer(channel).await.unwrap().publish(&messages).await;
    assert!(sent.iter().all(Sent::is_stored), "{sent:?}");
    messages
}

async fn take(consumer: &mut dyn Consumer, count: usize, most: Duration) -> Vec<Delivery> {
    let (mut out, until) = (Vec::new(), Instant::now() + most);
    while out.len() < count && Instant::now() < until {
        consumer.receive(count - out.len(), Duration::from_millis(100), &mut out).await.unwrap();
    }
    out
}

const LONG: Duration = Duration::from_secs(20);

/// The runtime of the dead one is stopped in the midst of things, and nothing of it is dropped: nobody renews its lease
/// and nobody says goodbye, as after a kill.
#[tokio::test(flavor = "multi_thread")]
async fn the_lanes_of_a_dead_process_are_taken_when_its_lease_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let (path, broker, channel, subscription) = scene(&folder).await;
    let messages = publish(&*broker, &channel, 10).await;
    let (other, wanted) = (path.clone(), subscription.clone());
    let dead = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (broker, consumer, settle, deliveries) = runtime.block_on(async {
            let broker = open(&other, "lease_ms=500");
            let mut consumer = broker.subscribe(&wanted).await.unwrap();
            let deliveries = take(&mut *consumer, 10, LONG).await;
            let settle = consumer.settler();
            settle.settle(&[(deliveries[0].token, Settlement::Ack)]).await;
            (broker, consumer, settle, deliveries)
        });
        runtime.shutdown_background();
        std::mem::forget((broker, consumer, settle));
        deliveries.len()
    });
    assert_eq!(tokio::task::spawn_blocking(|| dead.join().unwrap()).await.unwrap(), 10);
    let begin = Instant::now();
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    let came = take(&mut *consumer, 9, LONG).await;
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let ids: Vec<_> = came.iter().map(|delivery| &delivery.message.id).collect();
    assert_eq!(ids, messages[1..].iter().map(|message| &message.id).collect::<Vec<_>>());
    assert!(came.iter().all(|delivery| delivery.attempt == Attempt::Exact(2)), "{:?}", came[0].attempt);
}

/// Nothing but the file tells the other one.
#[tokio::test(flavor = "multi_thread")]
async fn another_process_is_woken_by_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, broker, channel, subscription) = scene(&folder).await;
    let other = open(&path, "");
    let mut consumer = other.subscribe(&subscription).await.unwrap();
    assert!(take(&mut *consumer, 1, Duration::from_millis(300)).await.is_empty());
    let mut times = Vec::new();
    for _ in 0..20 {
        let begin = Instant::now();
        publish(&*broker, &channel, 1).await;
        let mut out = Vec::new();
        // One call: a poll of the caller would hide that nobody woke it.
        consumer.receive(1, LONG, &mut out).await.unwrap();
        assert_eq!(out.len(), 1);
        times.push(begin.elapsed());
        consumer.settler().settle(&[(out[0].token, Settlement::Ack)]).await;
    }
    times.sort();
    assert!(times[10] < Duration::from_millis(500), "{times:?}");
}

#[tokio::test]
async fn a_removal_that_was_cut_off_is_ended_by_whoever_comes_next() {
    let folder = tempfile::tempdir().unwrap();
    let (path, broker, channel, subscription) = scene(&folder).await;
    publish(&*broker, &channel, 5).await;
    // What the first half of `unregister` leaves.
    let mut file = file(&path).await;
    sqlx::raw_sql("DELETE FROM tidegate_seat").execute(&mut file).await.unwrap();
    let kept = async |file: &mut SqliteConnection| -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM tidegate_message").fetch_one(file).await.unwrap()
    };
    assert_eq!(kept(&mut file).await, 5);
    let sent = broker.producer(&channel).await.unwrap().publish(&[Message::new(&SystemIds, "s", "t")]).await;
    assert_eq!(sent[0].error().unwrap().code(), code::SUBSCRIPTION_MISSING);
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    assert_eq!(kept(&mut file).await, 0);
    let sent = publish(&*broker, &channel, 1).await;
    assert_eq!(take(&mut *consumer, 1, LONG).await[0].message.id, sent[0].id);
    file.close().await.unwrap();
}

/// A lock of somebody else is no reason to believe that anything was stored.
#[tokio::test]
async fn a_file_that_others_lock_refuses_and_may_be_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let (path, broker, channel, _) = scene(&folder).await;
    let mut file = file(&path).await;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut file).await.unwrap();
    let messages = [Message::new(&SystemIds, "test", "tested")];
    let mut producer = broker.producer(&channel).await.unwrap();
    match &producer.publish(&messages).await[..] {
        [Sent::Refused(error)] => assert_eq!(error.verdict(), Verdict::Retry, "{error:?}"),
        sent => panic!("{sent:?}"),
    }
    sqlx::raw_sql("ROLLBACK").execute(&mut file).await.unwrap();
    assert!(matches!(producer.publish(&messages).await[..], [Sent::Stored { duplicate: false, .. }]));
    file.close().await.unwrap();
}

/// Found by trying: who had it open went on with a file that nobody else could see.
#[tokio::test]
async fn a_file_that_was_removed_is_noticed_by_all() {
    let folder = tempfile::tempdir().unwrap();
    let (path, broker, channel, subscription) = scene(&folder).await;
    let mut producer = broker.producer(&channel).await.unwrap();
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    match &producer.publish(&[Message::new(&SystemIds, "test", "tested")]).await[..] {
        [Sent::Refused(error)] => assert_eq!(error.code(), code::BROKER_REPLACED, "{error:?}"),
        sent => panic!("{sent:?}"),
    }
    let received = consumer.receive(1, LONG, &mut Vec::new()).await;
    assert_eq!(received.unwrap_err().code(), code::BROKER_REPLACED);
}

#[tokio::test]
async fn tables_of_a_newer_program_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (path, broker, channel, _) = scene(&folder).await;
    broker.close(LONG).await.unwrap();
    let mut file = file(&path).await;
    sqlx::raw_sql("UPDATE tidegate_broker SET version = 99").execute(&mut file).await.unwrap();
    let error = open(&path, "").apply(&Topology::of(&channel), Apply::Verify).await.unwrap_err();
    assert_eq!(error.code(), code::STATE_NEWER);
    file.close().await.unwrap();
}

#[tokio::test]
async fn close_cuts_off_who_does_not_leave_and_frees_the_lanes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (path, broker, channel, subscription) = scene(&folder).await;
    publish(&*broker, &channel, 3).await;
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    let in_hand = take(&mut *consumer, 3, LONG).await;
    assert_eq!(broker.close(Duration::from_millis(50)).await.unwrap().released, 3);
    let settled = consumer.settler().settle(&[(in_hand[0].token, Settlement::Ack)]).await;
    assert!(settled[0].is_lost(), "{settled:?}");
    assert_eq!(broker.producer(&channel).await.err().unwrap().code(), code::STOPPED);
    // Far longer than the test may take: only a seat that was given up can be had at once.
    let other = open(&path, "lease_ms=3600000");
    let mut consumer = other.subscribe(&subscription).await.unwrap();
    let came = take(&mut *consumer, 3, LONG).await;
    assert_eq!(came.len(), 3);
    assert!(came.iter().all(|delivery| delivery.attempt == Attempt::Exact(1)), "released is not tried");
}
