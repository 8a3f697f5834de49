//! The broker that stands on queues and acknowledgements, over queues in memory: every case, with connections that are cut and
//! answers that are lost.

mod model;

use std::sync::Arc;
use std::time::Duration;

use tidegate_conformance::numbered;
use tidegate_core::port::{Broker, Consumer, Delivery, Sent, Settlement, StateStore};
use tidegate_core::{Apply, Channel, Message, Subscription, Topology};
use tidegate_memory::MemoryStore;
use tidegate_runtime::{Failure, Handlers, Running, Service};

use crate::every_case;
use model::{Model, Modelled};

#[test]
fn queues_and_acknowledgements_are_enough_for_a_broker() {
    every_case(|| Box::new(Modelled { model: Model::new() }));
}

#[allow(clippy::unwrap_used, reason = "a test may panic")]
async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut out = Vec::new();
    while out.len() < count {
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
#[ignore = "a finding: each member of a subscription counts the epochs of its lanes for itself, from 1"]
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
        assert!(is_handled(&first, &broker, &channel, number).await);
        model.cut();
    }
    first.drain(Duration::from_secs(5)).await.unwrap();
    let broker = model.broker();
    let second = start(&broker).await;
    assert!(is_handled(&second, &broker, &channel, 3).await, "it came, and was not handled");
    second.drain(Duration::from_secs(5)).await.unwrap();
}
