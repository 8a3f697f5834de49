//! Group H: what goes from one channel to another, over this broker.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_core::port::Broker;
use tidegate_core::{Channel, Message, SystemClock};
use tidegate_memory::MemoryBroker;
use tidegate_runtime::{
    Bridge, Failure, Handlers, Info, Policy, Priority, Receiver, Sender, Service, State, Trace,
};
use tokio::time::sleep;

use super::service::{Scene, until};
use crate::case::{ARRIVAL, Check, Context, Stop, ensure, message, messages, publish};

/// How many messages of each level wait.
const WAITING: usize = 60;

/// Handles messages, or keeps them waiting.
#[derive(Clone, Default)]
struct Counter(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// The channels of what was handled, in its order.
    handled: Mutex<Vec<String>>,
    is_closed: AtomicBool,
}

impl Counter {
    fn handled(&self) -> Vec<String> {
        self.0.handled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn count(State(counter): State<Counter>, info: Info, _: Message) -> Result<(), Failure> {
    while counter.0.is_closed.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(1)).await;
    }
    counter.0.handled.lock().unwrap_or_else(PoisonError::into_inner).push(info.channel.to_string());
    // So that what waits is there before its turn is over.
    sleep(Duration::from_millis(1)).await;
    Ok(())
}

pub(crate) async fn priority(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("urgent")?.with_lanes(1);
    let mut producers = Vec::new();
    for level in Priority::ALL {
        let channel = level.channel(&channel)?;
        context.declare(&channel, &["s"]).await?;
        let mut producer = context.broker.producer(&channel).await?;
        publish(&mut *producer, &context.oracle, &messages(1, 1)).await?;
        producers.push(producer);
    }
    let counter = Counter::default();
    let handlers = Handlers::new().handle(count).with_priorities().with_concurrency(4);
    let handlers = handlers.with_policy(Policy::skip());
    let service = Service::new("s").with_state(counter.clone()).on(&channel, handlers);
    let service = service.start(&context.broker).await?;
    until("one of each", || counter.handled().len() == 3).await?;
    // The least urgent come first, and all of them are there before one is handled.
    counter.0.is_closed.store(true, Ordering::Relaxed);
    for producer in producers.iter_mut().rev() {
        publish(&mut **producer, &context.oracle, &messages(WAITING, WAITING)).await?;
    }
    sleep(Duration::from_millis(700)).await;
    counter.0.is_closed.store(false, Ordering::Relaxed);
    until("all of them", || counter.handled().len() == 3 + 3 * WAITING).await?;
    let order = counter.handled().split_off(3);
    let last = |name: &str| order.iter().rposition(|handled| handled == name).unwrap_or(0);
    let (high, low) = (last("urgent.high"), last("urgent.low"));
    ensure!(high < last("urgent") && high < low, "what is urgent was handled last: {order:?}");
    let first = order.iter().position(|handled| handled == "urgent.low").unwrap_or(usize::MAX);
    ensure!(first < high, "what is not urgent waited until nothing else was left: {order:?}");
    service.drain(ARRIVAL).await.map_err(Stop::from)
}

/// One channel of two sites, with a message at each and connections that are cut.
pub(crate) async fn bridge(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("both")?;
    let there: Arc<dyn Broker> = Arc::new(MemoryBroker::new(SystemClock::shared()));
    let subscription = context.declare(&channel, &["reader"]).await?.remove(0);
    let topology = tidegate_core::Topology::of(&channel).and(&subscription);
    there.apply(&topology, tidegate_core::Apply::Create).await?;
    let (out, carried) = Bridge::new(&channel, "here", "there")?.start(&context.broker, &*there).await?;
    let (back, returned) = Bridge::new(&channel, "there", "here")?.start(&there, &*context.broker).await?;

    let count = context.size.count(200);
    let (ours, theirs) = (messages(10, count), messages(10, count));
    let mut at_there = there.producer(&channel).await?;
    let mut at_here = context.broker.producer(&channel).await?;
    for (ours, theirs) in ours.chunks(count / 4).zip(theirs.chunks(count / 4)) {
        crate::case::publish_until_stored(&mut *at_here, &context.oracle, ours).await?;
        publish(&mut *at_there, &context.oracle, theirs).await?;
        let hook = context.fixture.cut().await?;
        if context.notes.is_empty() {
            context.needs(hook);
        }
    }
    let all: BTreeSet<_> = ours.iter().chain(&theirs).map(|message| Arc::clone(&message.id)).collect();
    for (site, broker) in [("here", &context.broker), ("there", &there)] {
        let mut receiver = Receiver::open(&**broker, &subscription, SystemClock::shared()).await?;
        let mut came = BTreeSet::new();
        while came.len() < all.len()
            && let Some(delivery) = receiver.next(ARRIVAL).await?
        {
            receiver.settle(&[delivery.token]).await.ok();
            came.insert(Arc::clone(&delivery.message.id));
        }
        ensure!(came == all, "{} of {} messages came to {site}", came.intersection(&all).count(), all.len());
    }
    // Each goes over once; what is repeated was in somebody's hand when connections were cut.
    until("what comes back", || {
        carried.turned_back() >= count as u64 && returned.turned_back() >= count as u64
    })
    .await?;
    let over = carried.carried().max(returned.carried());
    ensure!(over < 3 * count as u64, "{over} messages went over a bridge for {count}");
    out.drain(ARRIVAL).await?;
    back.drain(ARRIVAL).await.map_err(Stop::from)
}

async fn pass_on(State(next): State<Sender>, info: Info, message: Message) -> Result<(), Failure> {
    let name = format!("behind {}", info.channel);
    next.send(Message::with_id(name, "conformance", "tested").caused_by(&message))
        .await
        .map_err(Failure::retry)
}

pub(crate) async fn trace(context: &mut Context<'_>) -> Check {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (scene, last) = (Scene::new("traced").await?, Channel::new("traced-further")?);
    let subscription = context.declare(&last, &["s"]).await?.remove(0);
    let sender = |channel: Channel| {
        let (broker, clock) = (Arc::clone(&context.broker), Arc::clone(&scene.clock));
        async move { Sender::open(&*broker, &channel).with_clock(clock).with_patience(ARRIVAL).await }
    };
    let handlers = Handlers::new().handle(pass_on).with_policy(Policy::skip());
    let service = Service::new("s").with_state(sender(last).await?).on(&scene.channel, handlers);
    let service = service.start(&context.broker).await?;
    let mut first = message("k", 0);
    first.traceparent = Some(PARENT.into());
    sender(scene.channel.clone()).await?.send(first).await?;
    let mut receiver = Receiver::open(&*context.broker, &subscription, Arc::clone(&scene.clock)).await?;
    let Some(came) = receiver.next(ARRIVAL).await? else {
        return Err(Stop::Failed("what the handler sent did not come".to_owned()));
    };
    let found = Trace::of(&came.message).map(|trace| trace.to_string()).unwrap_or_default();
    let part = |text: &str, at: usize| text.split('-').nth(at).unwrap_or_default().to_owned();
    ensure!(part(&found, 1) == part(PARENT, 1), "the trace {PARENT} went on as {found:?}");
    ensure!(part(&found, 2) != part(PARENT, 2), "a hop has no span of its own: {found}");
    receiver.settle(&[came.token]).await?;
    service.drain(ARRIVAL).await.map_err(Stop::from)
}
