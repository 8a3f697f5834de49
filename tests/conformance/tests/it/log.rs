//! The broker that stands on a log and documents, over a log in memory: every case, with answers that are lost and a log
//! that nobody reaches for a while.

mod model;

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::log::Log;
use tidegate_core::port::{Consumer, Delivery, Settled, Settlement, Signal};
use tidegate_core::{Apply, Channel, Message, Subscription, Topology};

use crate::every_case;
use model::{Model, Modelled};

#[test]
fn a_log_and_documents_are_enough_for_a_broker() {
    every_case(|| Box::new(Modelled { model: Model::new() }));
}

/// Found by reading: a consumer that could not understand what it read waited in silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_told_to_whoever_receives() {
    let model = Model::new();
    let broker = model.broker();
    let channel = Channel::new("malformed").unwrap();
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    model.data.is_malformed.store(true, Ordering::Release);
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    let mut out = Vec::new();
    let told = async {
        loop {
            if let Err(error) = consumer.receive(1, Duration::from_secs(1), &mut out).await {
                return error;
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(10), told).await;
    assert_eq!(told.expect("it is told in time").code(), code::STREAM_MALFORMED);
}

/// A batch goes in pieces. What stands behind one that was refused for now must not be stored before it is tried again.
#[tokio::test]
async fn a_piece_behind_one_that_was_refused_is_not_stored() {
    let model = Model::new();
    let broker = model.broker();
    let channel = Channel::new("pieces").unwrap();
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    let message = |number: u32| Message::with_id(number.to_string(), "test", "numbered").with_subject("k");
    let batch: Vec<Message> = (0..2_500).map(message).collect();
    let mut producer = broker.producer(&channel).await.unwrap();
    model.data.to_refuse.store(1, Ordering::Release);
    let sent = producer.publish(&batch).await;
    let refused = sent.iter().filter(|sent| sent.error().is_some_and(|e| e.code() == code::LIMIT_REACHED));
    assert_eq!((sent.len(), refused.count()), (2_500, 2_500));
    assert!(model.last(&channel).await.unwrap().iter().all(|place| *place == 0));
    assert!(producer.publish(&batch).await.iter().all(tidegate_core::port::Sent::is_stored));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_is_gone_ends_its_consumers() {
    let model = Model::new();
    let broker = model.broker();
    let channel = Channel::new("gone").unwrap();
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    model.data.is_gone.store(true, Ordering::Release);
    let told = async {
        loop {
            let signal = consumer.receive(1, Duration::from_secs(1), &mut Vec::new()).await.unwrap();
            if let Signal::Cancelled(error) = signal {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
    assert_eq!(error.code(), code::CHANNEL_MISSING);
}

/// A channel of one lane with one message in it, and its subscription.
async fn one_message(model: &Model, name: &str) -> Subscription {
    let broker = model.broker();
    let channel = Channel::new(name).unwrap().with_lanes(1);
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    let message = Message::with_id("1", "test", "numbered").with_subject("k");
    let sent = broker.producer(&channel).await.unwrap().publish(&[message]).await;
    assert!(sent[0].is_stored());
    subscription
}

async fn first(consumer: &mut dyn Consumer, wait: Duration) -> Option<Delivery> {
    let (mut out, until) = (Vec::new(), tokio::time::Instant::now() + wait);
    while out.is_empty() && tokio::time::Instant::now() < until {
        consumer.receive(1, Duration::from_millis(50), &mut out).await.unwrap();
    }
    out.pop()
}

/// A red C27 on Redis: what was settled was written, its answer was lost, and another member had the lane by the time one
/// could look. It was told to be lost, and never came again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_owner_may_have_found_settled_is_unknown() {
    let model = Model::new();
    let subscription = one_message(&model, "doubt").await;
    let mut consumer = model.broker().subscribe(&subscription).await.unwrap();
    let delivery = first(&mut *consumer, Duration::from_secs(10)).await.unwrap();
    let other = model.again().broker();
    let mut heir = other.subscribe(&subscription).await.unwrap();

    // Some time before it settles others heard of it last.
    model.link.has_no_seats.store(true, Ordering::Release);
    tokio::time::sleep(Duration::from_millis(400)).await;
    model.link.is_cut_by_writing.store(true, Ordering::Release);
    let settler = consumer.settler();
    let ack = [(delivery.token, Settlement::Ack)];
    let settled = settler.settle(&ack);
    let taken_over = async {
        while !matches!(
            heir.receive(1, Duration::from_secs(1), &mut Vec::new()).await.unwrap(),
            Signal::LanesGained(_)
        ) {}
        model.link.is_cut.store(false, Ordering::Release);
        assert!(first(&mut *heir, Duration::from_millis(300)).await.is_none(), "it is settled");
    };
    let both = async { tokio::join!(settled, taken_over) };
    let (settled, ()) = tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
    assert!(matches!(settled[..], [Settled::Unknown(_)]), "{settled:?}");
}

/// A connection that was cut just before a consumer is closed keeps its lanes from nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_is_closed_over_a_connection_that_comes_back() {
    let model = Model::new();
    let subscription = one_message(&model, "closed").await;
    let mut consumer = model.broker().subscribe(&subscription).await.unwrap();
    let delivery = first(&mut *consumer, Duration::from_secs(10)).await.unwrap();
    let settler = consumer.settler();
    let ack = [(delivery.token, Settlement::Ack)];
    let settled = settler.settle(&ack);
    model.link.is_cut.store(true, Ordering::Release);
    let back = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        model.link.is_cut.store(false, Ordering::Release);
    };
    let (settled, closed, ()) = tokio::join!(settled, consumer.close(Duration::from_secs(5)), back);
    assert_eq!(closed.unwrap().released, 0);
    assert!(matches!(settled[..], [Settled::Done]), "{settled:?}");
    let mut next = model.broker().subscribe(&subscription).await.unwrap();
    assert!(first(&mut *next, Duration::from_millis(500)).await.is_none(), "it is settled");
}
