//! The broker that stands on a log and documents, over a log in memory: every case, with answers that are lost and a log
//! that nobody reaches for a while.

mod model;

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_broker::log::Log;
use tidegate_core::error::code;
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

/// Waits for the lanes, and says whether they came in time.
async fn gains(consumer: &mut dyn Consumer, wait: Duration) -> bool {
    let until = tokio::time::Instant::now() + wait;
    while tokio::time::Instant::now() < until {
        let signal = consumer.receive(0, Duration::from_millis(50), &mut Vec::new()).await.unwrap();
        if let Signal::LanesGained(_) = signal {
            return true;
        }
    }
    false
}

/// A message in the hand of a consumer that reaches nobody any more.
async fn held_by_one_that_is_gone(model: &Model, name: &str) -> (Subscription, Box<dyn Consumer>) {
    let subscription = one_message(model, name).await;
    let mut consumer = model.broker().subscribe(&subscription).await.unwrap();
    assert!(first(&mut *consumer, Duration::from_secs(10)).await.is_some());
    // Until it is noted.
    tokio::time::sleep(Duration::from_millis(200)).await;
    model.link.is_cut.store(true, Ordering::Release);
    (subscription, consumer)
}

/// Found by reading: a server that has not got yet what another one of it stored answers that there is nothing, and the message
/// was forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsettled_message_that_cannot_be_read_yet_is_not_forgotten() {
    let model = Model::new();
    let (subscription, _gone) = held_by_one_that_is_gone(&model, "behind").await;
    let other = model.again();
    other.link.is_behind.store(true, Ordering::Release);
    let broker = other.broker();
    let mut heir = broker.subscribe(&subscription).await.unwrap();
    assert!(first(&mut *heir, Duration::from_millis(1_600)).await.is_none(), "it cannot be read");
    other.link.is_behind.store(false, Ordering::Release);
    let delivery = first(&mut *heir, Duration::from_secs(10)).await.expect("it comes when it can be read");
    assert!(delivery.attempt.number() > 1);
}

/// One that is gone for good keeps nobody from the lane.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsettled_message_that_somebody_removed_keeps_nobody_from_its_lane() {
    let model = Model::new();
    let (subscription, _gone) = held_by_one_that_is_gone(&model, "removed").await;
    let other = model.again();
    let channel = other.broker().channel(&subscription.channel).await.unwrap().unwrap();
    other.trim(&channel, tidegate_core::Lane(0), 1).await.unwrap();
    let broker = other.broker();
    let mut heir = broker.subscribe(&subscription).await.unwrap();
    assert!(gains(&mut *heir, Duration::from_secs(10)).await);
    let message = Message::with_id("2", "test", "numbered").with_subject("k");
    assert!(broker.producer(&channel).await.unwrap().publish(&[message]).await[0].is_stored());
    let next = first(&mut *heir, Duration::from_secs(10)).await.expect("what comes next");
    assert_eq!(&*next.message.id, "2");
}

/// Found by reading: a member that took long to read what was not settled of a lane did not say meanwhile that it lived, and
/// another one took all of its lanes, which then took as long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_takes_a_lane_over_says_that_it_lives() {
    let model = Model::new();
    let (subscription, _gone) = held_by_one_that_is_gone(&model, "long").await;
    let (slow, other) = (model.again(), model.again());
    slow.link.is_silent.store(true, Ordering::Release);
    let slow = slow.broker();
    let mut heir = slow.subscribe(&subscription).await.unwrap();
    // By now it has taken the seat of the one that is gone, and reads.
    assert!(!gains(&mut *heir, Duration::from_millis(1_800)).await);
    let other = other.broker();
    let mut late = other.subscribe(&subscription).await.unwrap();
    assert!(!gains(&mut *late, Duration::from_millis(2_500)).await, "the lane has a member");
    drop(heir);
    assert!(gains(&mut *late, Duration::from_secs(10)).await);
}

/// Found in the log of a server: a takeover that failed woke its member, which took the lane anew at once, and wrote the seats for it
/// as fast as it could.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_cannot_be_taken_over_is_tried_with_the_seats_and_not_at_once() {
    let model = Model::new();
    let subscription = one_message(&model, "unwritten").await;
    let taker = model.again();
    taker.link.has_no_lanes.store(true, Ordering::Release);
    let broker = taker.broker();
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    assert!(!gains(&mut *consumer, Duration::from_secs(1)).await);
    // Ten looks, and what the first look at a subscription writes.
    let written = taker.link.seats_written.load(Ordering::Relaxed);
    assert!((2..=20).contains(&written), "{written}");
    taker.link.has_no_lanes.store(false, Ordering::Release);
    assert!(first(&mut *consumer, Duration::from_secs(10)).await.is_some(), "it is taken when it can be");
}

/// Found by reading: what a broker's closing cut off had its lanes still, and served them no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_closed_leaves_the_lanes_of_consumers_that_nobody_closed() {
    let model = Model::new();
    let subscription = one_message(&model, "cut-off").await;
    let broker = model.broker();
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    let delivery = first(&mut *consumer, Duration::from_secs(10)).await.unwrap();
    let left = broker.close(Duration::ZERO).await.unwrap();
    assert_eq!(left.released, 1);
    let other = model.again().broker();
    let mut heir = other.subscribe(&subscription).await.unwrap();
    let again = first(&mut *heir, Duration::from_millis(700)).await.expect("at once, and not behind a lease");
    assert_eq!(again.message.id, delivery.message.id);
    let stays = gains(&mut *heir, Duration::from_millis(1_500)).await;
    assert!(!stays, "nobody took the lane meanwhile, so that it was not gained again");
    let settled = heir.settler().settle(&[(again.token, Settlement::Ack)]).await;
    assert!(matches!(settled[..], [Settled::Done]), "{settled:?}");
    let late = consumer.settler().settle(&[(delivery.token, Settlement::Ack)]).await;
    assert!(matches!(late[..], [Settled::Lost]), "{late:?}");
}

/// Found by reading: one that subscribed beside the closing was ended by nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_subscribes_to_a_broker_that_is_being_closed() {
    let model = Model::new();
    let subscription = one_message(&model, "closing").await;
    let broker = model.broker();
    model.link.slow.store(50, Ordering::Release);
    let late = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        broker.close(Duration::ZERO).await.unwrap();
    };
    let (subscribed, ()) = tokio::join!(broker.subscribe(&subscription), late);
    assert_eq!(subscribed.err().map(|error| error.code()), Some(code::STOPPED));
}

/// Found by reading: a producer forgot what it had sent without an answer, and said that nothing of it could be stored.
#[tokio::test]
async fn a_producer_that_does_not_know_says_so_when_it_is_closed() {
    let model = Model::new();
    let subscription = one_message(&model, "unknown").await;
    let broker = model.broker();
    let channel = broker.channel(&subscription.channel).await.unwrap().unwrap();
    let message = |id: &str| [Message::with_id(id, "test", "numbered").with_subject("k")];
    for (is_in_doubt, is_known) in [(true, false), (false, true)] {
        let mut producer = broker.producer(&channel).await.unwrap();
        model.data.is_in_doubt.store(is_in_doubt, Ordering::Release);
        model.data.to_lose.store(1, Ordering::Release);
        let sent = producer.publish(&message("2")).await;
        assert!(matches!(sent[..], [tidegate_core::port::Sent::Unknown(_)]), "{sent:?}");
        // What is published then goes over another connection, and tells nothing of the first.
        assert!(producer.publish(&message("3")).await[0].is_stored());
        model.data.is_in_doubt.store(false, Ordering::Release);
        assert_eq!(producer.close(Duration::from_secs(1)).await.is_ok(), is_known);
    }
    // It is known again, and not stored twice: so there is no doubt any more.
    let mut producer = broker.producer(&channel).await.unwrap();
    model.data.is_in_doubt.store(true, Ordering::Release);
    model.data.to_lose.store(1, Ordering::Release);
    assert!(matches!(producer.publish(&message("4")).await[..], [tidegate_core::port::Sent::Unknown(_)]));
    assert!(producer.publish(&message("4")).await[0].is_stored());
    model.data.is_in_doubt.store(false, Ordering::Release);
    producer.close(Duration::from_secs(1)).await.unwrap();
}

/// Found by reading: behind an owner who died, a call waited for what was to be noted, however long that took.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_ends_in_its_time_also_when_nothing_can_be_noted() {
    let model = Model::new();
    let (subscription, _gone) = held_by_one_that_is_gone(&model, "noted").await;
    let other = model.again();
    let broker = other.broker();
    let mut heir = broker.subscribe(&subscription).await.unwrap();
    assert!(gains(&mut *heir, Duration::from_secs(10)).await);
    other.link.has_no_lanes.store(true, Ordering::Release);
    let (begin, mut out) = (tokio::time::Instant::now(), Vec::new());
    for _ in 0..4 {
        heir.receive(1, Duration::from_millis(50), &mut out).await.unwrap();
    }
    assert!(begin.elapsed() < Duration::from_millis(700) && out.is_empty(), "{:?}, {out:?}", begin.elapsed());
    other.link.has_no_lanes.store(false, Ordering::Release);
    assert!(first(&mut *heir, Duration::from_secs(10)).await.is_some());
}
