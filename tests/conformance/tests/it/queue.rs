//! The broker that stands on queues and acknowledgements, over queues in memory: every case, with connections that are cut and
//! answers that are lost.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod model;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_broker::queue::Queues as _;
use tidegate_conformance::numbered;
use tidegate_core::error::code;
use tidegate_core::port::{Broker, Consumer, Delivery, Sent, Settled, Settlement, Signal, StateStore};
use tidegate_core::{Apply, Channel, Message, Subscription, Topology};
use tidegate_memory::MemoryStore;
use tidegate_runtime::{Failure, Handlers, Running, Service};

use crate::every_case;
use model::{Model, Modelled};

#[test]
fn queues_and_acknowledgements_are_enough_for_a_broker() {
    every_case(|| Box::new(Modelled { model: Model::new() }));
}

async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut out = Vec::new();
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    while out.len() < count {
        assert!(tokio::time::Instant::now() < until, "{} of {count} came", out.len());
        consumer.receive(count - out.len(), Duration::from_secs(5), &mut out).await.unwrap();
    }
    out
}

/// The queue gives back what was put off as soon as another owner has it; the book says when it is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_put_off_is_so_for_the_next_owner_too() {
    let model = Model::new();
    let broker = model.broker();
    let channel = Channel::new("later").unwrap().with_lanes(1);
    let subscription = Subscription::new(&channel, "s").unwrap();
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
    let all: Vec<Message> = (0..3).map(|number| numbered("later", number * 10)).collect();
    assert!(broker.producer(&channel).await.unwrap().publish(&all).await.iter().all(Sent::is_stored));

    let mut first = broker.subscribe(&subscription).await.unwrap();
    let came = take(&mut *first, 1).await;
    let begin = tokio::time::Instant::now();
    let retry = Settlement::Retry { after: Duration::from_millis(700) };
    assert!(first.settler().settle(&[(came[0].token, retry)]).await[0].is_done());
    first.close(Duration::from_secs(1)).await.unwrap();
    let mut second = broker.subscribe(&subscription).await.unwrap();
    let came = take(&mut *second, 3).await;
    assert!(begin.elapsed() >= Duration::from_millis(700), "it came after {:?}", begin.elapsed());
    let ids: Vec<_> = came.iter().map(|delivery| &delivery.message.id).collect();
    assert_eq!(ids, all.iter().map(|message| &message.id).collect::<Vec<_>>());
    assert_eq!(came.iter().map(|d| d.attempt.number()).collect::<Vec<_>>(), [2, 1, 1]);
}

async fn apply(model: &Model, channel: &Channel, name: &str) -> Subscription {
    let subscription = Subscription::new(channel, name).unwrap();
    let topology = Topology::of(channel).and(&subscription);
    model.broker().apply(&topology, Apply::Create).await.unwrap();
    subscription
}

async fn publish(model: &Model, channel: &Channel, messages: &[Message]) {
    let sent = model.broker().producer(channel).await.unwrap().publish(messages).await;
    assert!(sent.iter().all(Sent::is_stored), "{sent:?}");
}

/// Which of so many subscriptions that as many programs make at once, with their channel, are known afterwards.
async fn made_at_once(model: &Model, name: &str, count: usize) -> usize {
    let channel = Channel::new(name).unwrap();
    let names: Vec<String> = (0..count).map(|number| format!("s{number}")).collect();
    let each = names.iter().map(async |name| {
        let subscription = Subscription::new(&channel, name).unwrap();
        let topology = Topology::of(&channel).and(&subscription);
        // Two at the head of one line stop each other at times.
        let _ = model.broker().apply(&topology, Apply::Create).await;
    });
    futures::future::join_all(each).await;
    model.data.has_no_lines.store(false, Ordering::Release);
    let all = names.iter().map(|name| Subscription::new(&channel, name).unwrap());
    let topology = all.fold(Topology::of(&channel), |topology, one| topology.and(&one));
    let missing = model.broker().apply(&topology, Apply::Verify).await.unwrap();
    count - missing.len()
}

/// Two makers read the record of a channel at once, and the second one wrote over what the first one had registered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_make_a_channel_at_once_lose_no_subscription() {
    assert_eq!(made_at_once(&Model::new(), "at-once", 8).await, 8);
    // Were it held by several, it would be seen here.
    let broken = Model::new();
    broken.data.has_no_lines.store(true, Ordering::Release);
    assert!(made_at_once(&broken, "at-once", 8).await < 8);
}

/// Whoever made the channel was killed before its record was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_was_made_by_half_is_made() {
    let model = Model::new();
    let channel = Channel::new("half").unwrap();
    model.create(&channel).await.unwrap();
    assert!(model.broker().channel(&channel.name).await.unwrap().is_none());
    let subscription = apply(&model, &channel, "s").await;
    publish(&model, &channel, &[numbered("half", 0)]).await;
    take(&mut *model.broker().subscribe(&subscription).await.unwrap(), 1).await;
}

/// Whoever made or removed a subscription was killed in the midst of it: queues filled that no record named, or it named some
/// that were not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_half_done_with_a_subscription_is_removed_by_the_next() {
    for steps in 0..2 {
        let model = Model::new();
        let channel = Channel::new("killed").unwrap();
        let other = apply(&model, &channel, "other").await;
        model.kill_after(steps);
        let subscription = Subscription::new(&channel, "s").unwrap();
        assert!(model.broker().subscribe(&subscription).await.is_err());
        model.revive();
        model.broker().subscribe(&other).await.unwrap();
        assert_eq!(model.subscriptions(&channel), ["other"], "made in {steps} steps");

        let mut consumer = model.broker().subscribe(&subscription).await.unwrap();
        publish(&model, &channel, &[numbered("killed", 0)]).await;
        take(&mut *consumer, 1).await;
        consumer.close(Duration::ZERO).await.unwrap();
        model.kill_after(steps);
        assert!(model.broker().unregister(&subscription).await.is_err());
        model.revive();
        let found = model.broker().apply(&Topology::of(&channel).and(&subscription), Apply::Verify).await;
        assert_eq!(found.unwrap().len(), 1, "it is gone for everybody, after {steps} steps");
        model.broker().subscribe(&other).await.unwrap();
        assert_eq!(model.subscriptions(&channel), ["other"], "removed in {steps} steps");
        // Registered again, it begins as a new one.
        let mut consumer = model.broker().subscribe(&subscription).await.unwrap();
        let mut out = Vec::new();
        consumer.receive(1, Duration::from_millis(300), &mut out).await.unwrap();
        consumer.receive(1, Duration::from_millis(300), &mut out).await.unwrap();
        assert!(out.is_empty(), "{out:?}");
    }
}

/// What a consumer that is closed settles meanwhile was cut short, said to be done, and came again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_settled_beside_a_close_is_done_or_not_told_so() {
    let model = Model::new();
    let channel = Channel::new("beside").unwrap().with_lanes(1);
    let subscription = apply(&model, &channel, "s").await;
    for round in 0..10 {
        publish(&model, &channel, &[numbered("beside", round)]).await;
        let mut consumer = model.broker().subscribe(&subscription).await.unwrap();
        let came = take(&mut *consumer, 1).await;
        model.settle_in(Duration::from_millis(30));
        let settler = consumer.settler();
        let ack = [(came[0].token, Settlement::Ack)];
        let settled = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            settler.settle(&ack).await
        };
        let closed = async {
            tokio::time::sleep(Duration::from_millis(5 * round)).await;
            consumer.close(Duration::ZERO).await.unwrap()
        };
        let (settled, _) = tokio::join!(settled, closed);
        model.settle_in(Duration::ZERO);
        assert!(settled[0].is_done() || settled[0].is_lost(), "nothing was cut: {settled:?}");
        let mut next = model.broker().subscribe(&subscription).await.unwrap();
        let mut out = Vec::new();
        while !settled[0].is_done() && out.is_empty() {
            next.receive(1, Duration::from_millis(100), &mut out).await.unwrap();
        }
        next.receive(1, Duration::from_millis(200), &mut out).await.unwrap();
        next.receive(1, Duration::from_millis(200), &mut out).await.unwrap();
        assert_eq!(out.is_empty(), settled[0].is_done(), "round {round}: {settled:?}");
        let rest: Vec<_> = out.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
        assert!(next.settler().settle(&rest).await.iter().all(|settled| settled.is_done()));
        next.close(Duration::ZERO).await.unwrap();
    }
}

/// The lanes of a consumer whose closing was dropped were nobody's from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_is_dropped_gives_the_lanes_up() {
    let model = Model::new();
    let channel = Channel::new("dropped").unwrap().with_lanes(2);
    let subscription = apply(&model, &channel, "s").await;
    let broker = model.broker();
    publish(&model, &channel, &(0..4).map(|number| numbered("dropped", number)).collect::<Vec<_>>()).await;
    let mut first = broker.subscribe(&subscription).await.unwrap();
    take(&mut *first, 4).await;
    let closing = first.close(Duration::from_secs(60));
    assert!(tokio::time::timeout(Duration::from_millis(50), closing).await.is_err());
    let mut second = broker.subscribe(&subscription).await.unwrap();
    take(&mut *second, 4).await;
}

/// Found by a whole run with ActiveMQ Classic: what it still sent to a lane that had ended was an error of the connection, and nothing
/// could be written of the other lanes any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_that_end_the_connection_with_them_are_all_written_before() {
    let model = Model::new();
    model.data.is_brittle.store(true, Ordering::Release);
    let channel = Channel::new("brittle").unwrap().with_lanes(4);
    let subscription = apply(&model, &channel, "s").await;
    let broker = model.broker();
    publish(&model, &channel, &(0..20).map(|number| numbered("brittle", number)).collect::<Vec<_>>()).await;
    let mut first = broker.subscribe(&subscription).await.unwrap();
    take(&mut *first, 20).await;
    assert_eq!(first.close(Duration::ZERO).await.unwrap().released, 20);
    let mut second = broker.subscribe(&subscription).await.unwrap();
    let came = take(&mut *second, 20).await;
    assert!(came.iter().all(|delivery| delivery.attempt.number() == 1), "a release is no attempt");
}

/// A broker that was closed took the lanes of its consumers again, which were there still and asked for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_closed_has_no_lane() {
    let model = Model::new();
    let channel = Channel::new("broker").unwrap().with_lanes(2);
    let subscription = apply(&model, &channel, "s").await;
    let broker = model.broker();
    publish(&model, &channel, &(0..4).map(|number| numbered("broker", number)).collect::<Vec<_>>()).await;
    let mut first = broker.subscribe(&subscription).await.unwrap();
    take(&mut *first, 4).await;
    assert_eq!(broker.close(Duration::from_millis(50)).await.unwrap().released, 4);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut second = model.broker().subscribe(&subscription).await.unwrap();
    take(&mut *second, 4).await;
    drop(first);
}

#[test]
fn a_consumer_is_dropped_where_no_runtime_is() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let consumer = runtime.block_on(async {
        let model = Model::new();
        let channel = Channel::new("outside").unwrap();
        let subscription = apply(&model, &channel, "s").await;
        model.broker().subscribe(&subscription).await.unwrap()
    });
    drop(consumer);
}

/// Two members of five had as many lanes as the three others, and one had none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_members_share_eight_lanes_evenly() {
    let model = Model::new();
    let channel = Channel::new("fair").unwrap().with_lanes(8);
    let subscription = apply(&model, &channel, "s").await;
    let mut members = Vec::new();
    for _ in 0..5 {
        members.push(model.broker().subscribe(&subscription).await.unwrap());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut had: Vec<std::collections::BTreeSet<_>> = vec![Default::default(); 5];
    let (mut even, mut moved) = (0, 0);
    // Even, and then nothing moves.
    while even < 10 {
        assert!(tokio::time::Instant::now() < until, "{had:?}");
        for (member, had) in members.iter_mut().zip(&mut had) {
            match member.receive(1, Duration::from_millis(20), &mut Vec::new()).await.unwrap() {
                Signal::LanesGained(lanes) => had.extend(lanes),
                Signal::LanesRevoked { lanes, .. } | Signal::LanesLost(lanes) => {
                    had.retain(|lane| !lanes.contains(lane));
                }
                _ => continue,
            }
            moved += 1;
        }
        let mut counts: Vec<_> = had.iter().map(|had| had.len()).collect();
        counts.sort_unstable();
        even = if counts == [1, 1, 2, 2, 2] { even + 1 } else { 0 };
    }
    assert!(moved < 60, "{moved} lanes went from one to another");
}

/// The server takes nothing for a while: what could not be noted is not done, and what is acknowledged is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_noted_is_not_done() {
    let model = Model::new();
    let channel = Channel::new("full").unwrap().with_lanes(1);
    let subscription = apply(&model, &channel, "s").await;
    publish(&model, &channel, &[numbered("full", 0), numbered("full", 10)]).await;
    let mut consumer = model.broker().subscribe(&subscription).await.unwrap();
    let came = take(&mut *consumer, 2).await;
    model.data.is_full.store(true, Ordering::Release);
    let settler = consumer.settler();
    let retry = Settlement::Retry { after: Duration::from_secs(60) };
    let settled = settler.settle(&[(came[0].token, Settlement::Ack), (came[1].token, retry)]).await;
    assert!(settled[0].is_done(), "{settled:?}");
    assert!(
        matches!(&settled[1], Settled::Unknown(error) if error.code() == code::LIMIT_REACHED),
        "{settled:?}"
    );
}

/// Found on ActiveMQ Classic: whoever came first to a subscription when the server was full could not have its lanes, so that
/// nothing ever made room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_when_nothing_is_taken_makes_room() {
    let model = Model::new();
    let channel = Channel::new("room").unwrap();
    let subscription = apply(&model, &channel, "s").await;
    let all: Vec<Message> = (0..20).map(|number| numbered("room", number)).collect();
    publish(&model, &channel, &all).await;
    model.data.is_full.store(true, Ordering::Release);
    let mut consumer = model.broker().subscribe(&subscription).await.unwrap();
    let came = take(&mut *consumer, 20).await;
    let acks: Vec<_> = came.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
    assert!(consumer.settler().settle(&acks).await.iter().all(Settled::is_done));
}

async fn handle(_: Message) -> Result<(), Failure> {
    Ok(())
}

/// Publishes one message more, and says whether the service has handled it within some seconds.
async fn is_handled(service: &Running, broker: &Arc<dyn Broker>, channel: &Channel, number: u64) -> bool {
    let before = service.counted().handled;
    let message = numbered("parked", number);
    assert!(broker.producer(channel).await.unwrap().publish(&[message]).await[0].is_stored());
    for _ in 0..50 {
        if service.counted().handled > before {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}

/// What is parked of a lane is written by its owner, under the epoch of the ownership: that of whoever has the lane later has to be
/// higher, or what comes to it is taken for somebody else's and nobody handles it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_parks_goes_on_in_another_process() {
    let model = Model::new();
    let channel = Channel::new("parked").unwrap().with_lanes(1);
    let store: Arc<dyn StateStore> = Arc::new(MemoryStore::new("parked"));
    let start = async |broker: &Arc<dyn Broker>| {
        let service = Service::new("s").with_store(Arc::clone(&store));
        service.on(&channel, Handlers::new().handle(handle)).start(broker).await.unwrap()
    };
    let broker = model.broker();
    let first = start(&broker).await;
    for number in 0..3 {
        // Before, and not behind: whoever is cut off while it is drained may say so.
        model.cut();
        assert!(is_handled(&first, &broker, &channel, number).await);
    }
    first.drain(Duration::from_secs(5)).await.unwrap();
    let broker = model.broker();
    let second = start(&broker).await;
    assert!(is_handled(&second, &broker, &channel, 3).await, "it came, and was not handled");
    second.drain(Duration::from_secs(5)).await.unwrap();
}
