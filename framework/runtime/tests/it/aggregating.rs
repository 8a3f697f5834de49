use std::sync::atomic::AtomicUsize;

use tidegate_core::error::code;
use tidegate_core::port::{Lease, Stored, Timer, Timers};
use tidegate_core::{Error, FlowName, Result};
use tidegate_runtime::{Aggregator, Failure, Handlers, Policy, Sender, Service};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

/// The ids of its messages, and the key.
fn whole(key: &str, parts: &[Message]) -> Result<Message, Failure> {
    let ids: Vec<_> = parts.iter().map(|part| &*part.id).collect();
    Ok(Message::with_id("", "shop", "whole.v1").with_subject(key).with_data("text/plain", ids.join(" ")))
}

/// What goes to where whole messages are seen.
async fn aggregator(
    world: &World,
    state: Arc<dyn StateStore>,
) -> (Aggregator, Running, Arc<Mutex<Vec<Message>>>) {
    let wholes = Channel::new("wholes").unwrap().with_lanes(1);
    let (service, seen) = collect(world, &wholes).await;
    let (clock, patience) = (Arc::clone(&world.clock), Duration::from_secs(5));
    let to = Sender::open(&*world.broker, &wholes).with_clock(clock).with_patience(patience).await.unwrap();
    (Aggregator::new("order-lines", state, to, whole).unwrap(), service, seen)
}

/// What was seen, as `key: ids`, in the order of keys.
fn groups(seen: &Mutex<Vec<Message>>) -> Vec<String> {
    let text = |message: &Message| {
        let ids = String::from_utf8(message.data.to_vec()).unwrap();
        format!("{}: {ids}", message.subject.as_deref().unwrap())
    };
    let mut groups: Vec<_> = seen.lock().unwrap().iter().map(text).collect();
    groups.sort();
    groups
}

#[tokio::test]
async fn a_group_is_sent_when_it_has_so_many() {
    let world = World::new().await;
    let (aggregator, collecting, seen) = aggregator(&world, Arc::clone(&world.store)).await;
    let handlers = Handlers::new().handle(aggregator.until_count(3).into_handler()).with_members(2);
    let service = Service::new("whole").on(&world.orders, handlers.with_policy(Policy::skip()));
    let service = service.start(&world.broker).await.unwrap();
    let orders: Vec<String> =
        (0..6).flat_map(|n| (0..20).map(move |order| format!("o{order:02}:{n}"))).collect();
    world.place(&orders.iter().map(String::as_str).collect::<Vec<_>>()).await;
    eventually("all of them", || seen.lock().unwrap().len() == 40).await;
    drain(service).await;
    drain(collecting).await;
    let expected: Vec<_> = (0..20)
        .flat_map(|o| [[0, 1, 2], [3, 4, 5]].map(|of| (o, of.map(|n| format!("o{o:02}:{n}")).join(" "))))
        .map(|(order, ids)| format!("o{order:02}: {ids}"))
        .collect();
    assert_eq!(groups(&seen), expected);
}

#[tokio::test]
async fn a_message_that_comes_again_is_once_in_its_group_also_when_that_was_sent() {
    let world = World::new().await;
    let (aggregator, collecting, seen) = aggregator(&world, Arc::clone(&world.store)).await;
    let is_last = |parts: &[Message]| parts.iter().any(|part| part.headers.get("last").is_some());
    let handle = aggregator.until(is_last).into_handler();
    let last = placed("a:3").with_header("last", "yes").unwrap();
    let all = [placed("a:1"), placed("a:1"), placed("b:1"), placed("a:2"), placed("a:1"), last.clone(), last];
    for message in all.into_iter().chain([placed("a:2"), placed("a:4")]) {
        handle(message).await.unwrap();
    }
    eventually("the group", || seen.lock().unwrap().len() == 1).await;
    let keyless = Message::with_id("1", "shop", "t");
    assert!(handle(keyless).await.unwrap_err().is_final());
    drain(collecting).await;
    assert_eq!(groups(&seen), ["a: a:1 a:2 a:3"]);
}

#[tokio::test]
async fn a_group_is_sent_when_its_time_is_over_as_it_is_then() {
    let world = World::new().await;
    let (timers, clock) = (Arc::new(MemoryStore::new("t")), Arc::new(HandClock::default()));
    let (aggregator, collecting, seen) = aggregator(&world, Arc::clone(&world.store)).await;
    let hand: Arc<dyn Clock> = Arc::<HandClock>::clone(&clock);
    let aggregator = aggregator.until_count(3).within(MINUTE, timers).with_clock(hand);
    let ending = [aggregator.start(), aggregator.start()];
    let handle = aggregator.into_handler();
    for id in ["a:1", "a:2", "b:1", "b:2", "b:3", "b:4"] {
        handle(placed(id)).await.unwrap();
    }
    clock.forward(MINUTE / 2);
    handle(placed("c:1")).await.unwrap();
    eventually("the one that is complete", || seen.lock().unwrap().len() == 1).await;
    clock.forward(MINUTE / 2 - Duration::from_micros(1));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(groups(&seen), ["b: b:1 b:2 b:3"], "the others are too early by a microsecond");
    clock.forward(Duration::from_micros(1));
    eventually("the first of a, and the second of b", || seen.lock().unwrap().len() == 3).await;
    handle(placed("a:3")).await.unwrap();
    clock.forward(MINUTE / 2);
    eventually("that of c", || seen.lock().unwrap().len() == 4).await;
    clock.forward(MINUTE / 2);
    eventually("the second of a", || seen.lock().unwrap().len() == 5).await;
    drop(ending);
    drain(collecting).await;
    assert_eq!(groups(&seen), ["a: a:1 a:2", "a: a:3", "b: b:1 b:2 b:3", "b: b:4", "c: c:1"]);
}

/// A store one of whose calls fails, before or behind its effect.
struct Flaky {
    inner: Arc<dyn StateStore>,
    calls: AtomicUsize,
    fails_at: usize,
    has_effect: bool,
}

impl Flaky {
    /// Whether this call is the one.
    fn fails(&self) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed) == self.fails_at
    }
}

#[async_trait::async_trait]
impl StateStore for Flaky {
    async fn get(&self, flow: &FlowName, key: &str) -> Result<Option<Stored>> {
        if self.fails() {
            return Err(Error::new(code::CONNECTION_LOST, "planted"));
        }
        self.inner.get(flow, key).await
    }

    async fn put(&self, flow: &FlowName, key: &str, value: &str, expected: u64) -> Result<Option<u64>> {
        if !self.fails() {
            return self.inner.put(flow, key, value, expected).await;
        }
        if self.has_effect {
            self.inner.put(flow, key, value, expected).await?;
        }
        Err(Error::new(code::CONNECTION_LOST, "planted"))
    }

    async fn flows(&self) -> Result<Vec<FlowName>> {
        self.inner.flows().await
    }

    async fn forget(&self, flow: &FlowName) -> Result<()> {
        self.inner.forget(flow).await
    }

    async fn hold(&self, flow: &FlowName, holder: &str, time: Duration) -> Result<Lease> {
        self.inner.hold(flow, holder, time).await
    }

    async fn release(&self, flow: &FlowName, holder: &str) -> Result<()> {
        self.inner.release(flow, holder).await
    }
}

#[tokio::test]
async fn no_call_that_fails_loses_a_message_or_counts_one_twice() {
    // A message is at most six calls, and so are all of them at most twice as many as these.
    for (fails_at, has_effect) in (0..40).flat_map(|at| [(at, false), (at, true)]) {
        let world = World::new().await;
        let flaky =
            Flaky { inner: Arc::clone(&world.store), calls: AtomicUsize::new(0), fails_at, has_effect };
        let (aggregator, collecting, seen) = aggregator(&world, Arc::new(flaky)).await;
        let handle = aggregator.until_count(2).into_handler();
        for id in ["a:1", "b:1", "a:2", "b:2", "a:3", "a:4"] {
            // What fails comes again, until it does not.
            while handle(placed(id)).await.is_err() {}
        }
        eventually("all of them", || seen.lock().unwrap().len() == 3).await;
        drain(collecting).await;
        assert_eq!(groups(&seen), ["a: a:1 a:2", "a: a:3 a:4", "b: b:1 b:2"], "{fails_at} {has_effect}");
    }
}

#[tokio::test]
async fn a_timer_that_cannot_be_read_holds_up_no_other_group() {
    let world = World::new().await;
    let (timers, clock) = (Arc::new(MemoryStore::new("t")), Arc::new(HandClock::default()));
    let (aggregator, collecting, seen) = aggregator(&world, Arc::clone(&world.store)).await;
    let hand: Arc<dyn Clock> = Arc::<HandClock>::clone(&clock);
    let aggregator = aggregator.within(MINUTE, Arc::<MemoryStore>::clone(&timers)).with_clock(hand);
    let handle = aggregator.clone().into_handler();
    for id in ["a:1", "b:1"] {
        handle(placed(id)).await.unwrap();
    }
    let flow = world.store.flows().await.unwrap().remove(0);
    // The first of those that are taken.
    let at = clock.now();
    let strange = Timer { id: "strange".into(), at, value: "written by a later version".into() };
    Timers::put(&*timers, &flow, &strange).await.unwrap();
    let ending = aggregator.start();
    clock.forward(MINUTE);
    eventually("the groups", || seen.lock().unwrap().len() == 2).await;
    drop(ending);
    drain(collecting).await;
    assert_eq!(groups(&seen), ["a: a:1", "b: b:1"]);
    clock.forward(MINUTE);
    let left = timers.due(&flow, clock.now(), 10, MINUTE).await.unwrap();
    assert_eq!(left.iter().map(|due| &*due.timer.id).collect::<Vec<_>>(), ["strange"], "it is kept");
}
