//! Groups D, F and H: what services of the runtime promise, over this broker.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tidegate_core::port::{Attempt, Settlement, StateStore, Store as _};
use tidegate_core::{
    Apply, Channel, Clock, Message, Subscription, SystemClock, SystemIds, Topology, error::code,
};
use tidegate_memory::MemoryStore;
use tidegate_runtime::{
    Caller, Failure, Handlers, Json, Policy, Receiver, Running, Service, State, Typed, dead_letter,
};
use tokio::time::{Instant, sleep};

use crate::case::{ARRIVAL, Check, Context, Stop, ensure, message, messages, publish, settle, take};

/// What a handler of the suite does, and has done.
#[derive(Clone, Default)]
pub(super) struct Desk(Arc<Inner>);

#[derive(Default)]
pub(super) struct Inner {
    /// The subjects that fail.
    broken: Mutex<Vec<String>>,
    /// What succeeded: the versions of each subject, in their order.
    done: Mutex<BTreeMap<String, Vec<String>>>,
    tried: AtomicU32,
    hangs: AtomicBool,
}

impl Desk {
    pub(super) fn breaks(&self, subjects: &[&str]) {
        let subjects = subjects.iter().map(|subject| (*subject).to_owned()).collect();
        *self.0.broken.lock().unwrap_or_else(PoisonError::into_inner) = subjects;
    }

    pub(super) fn done(&self) -> BTreeMap<String, Vec<String>> {
        self.0.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn tried(&self) -> u32 {
        self.0.tried.load(Ordering::Relaxed)
    }
}

async fn handle(State(desk): State<Desk>, message: Message) -> Result<(), Failure> {
    desk.0.tried.fetch_add(1, Ordering::Relaxed);
    let subject = message.subject.as_deref().unwrap_or_default().to_owned();
    if desk.0.hangs.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
    if desk.0.broken.lock().unwrap_or_else(PoisonError::into_inner).contains(&subject) {
        return Err(Failure::retry("it is broken"));
    }
    let version = message.headers.get("version").unwrap_or_default().to_owned();
    desk.0.done.lock().unwrap_or_else(PoisonError::into_inner).entry(subject).or_default().push(version);
    Ok(())
}

/// A channel, with a store for what is parked.
pub(super) struct Scene {
    pub(super) channel: Channel,
    store: Arc<dyn StateStore>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Scene {
    pub(super) async fn new(name: &str) -> Check<Self> {
        let store = MemoryStore::new("parked").state().await?;
        Ok(Self { channel: Channel::new(name)?.with_lanes(2), store, clock: SystemClock::shared() })
    }

    pub(super) async fn start(&self, context: &Context<'_>, desk: &Desk, policy: Policy) -> Check<Running> {
        let policy = policy.with_pauses(Duration::from_millis(10), Duration::from_millis(50));
        let handlers = Handlers::new().handle(handle).with_policy(policy);
        let service = Service::new("s").with_state(desk.clone()).with_store(Arc::clone(&self.store));
        Ok(service.on(&self.channel, handlers).start(&context.broker).await?)
    }

    pub(super) async fn publish(&self, context: &Context<'_>, all: &[Message]) -> Check {
        publish(&mut *context.broker.producer(&self.channel).await?, &context.oracle, all).await.map(drop)
    }

    /// So many dead letters, in their order; they are taken away and replayed, or stay.
    async fn dead(&self, context: &Context<'_>, count: usize, replay: bool) -> Check<Vec<Message>> {
        let subscription = dead_letter::subscription(&self.channel.name)?;
        let mut receiver = Receiver::open(&*context.broker, &subscription, Arc::clone(&self.clock)).await?;
        let mut dead = Vec::new();
        while dead.len() < count {
            match receiver.next(ARRIVAL).await? {
                Some(delivery) => dead.push(delivery),
                None => break,
            }
        }
        ensure!(dead.len() == count, "{} dead letters of {count} came", dead.len());
        if replay {
            let mut producer = context.broker.producer(&self.channel).await?;
            for delivery in &dead {
                let (_, again) = dead_letter::replay(&delivery.message)?;
                let sent = producer.publish(&[again]).await;
                ensure!(sent[0].is_stored(), "a replayed message was not stored: {sent:?}");
                receiver.settle(&[delivery.token]).await?;
            }
        }
        // What is in hand goes back at once.
        receiver.close(Duration::ZERO).await?;
        Ok(dead.into_iter().map(|delivery| Arc::unwrap_or_clone(delivery.message)).collect())
    }
}

/// Waits until it is so.
pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Check {
    let end = Instant::now() + ARRIVAL;
    while !is_so() {
        ensure!(Instant::now() < end, "{what}: not within {ARRIVAL:?}");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

pub(super) fn header<'m>(message: &'m Message, name: &str) -> &'m str {
    message.headers.get(name).unwrap_or_default()
}

/// Many at once, and again and again.
pub(crate) async fn retries(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("retries")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let all = messages(10, 10);
    publish(&mut *context.broker.producer(&channel).await?, &context.oracle, &all).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let mut came = take(&mut *consumer, all.len(), ARRIVAL).await?;
    ensure!(came.len() == all.len(), "{} of {} messages came", came.len(), all.len());
    let after = Duration::from_millis(400);
    for _ in 0..3 {
        let begin = Instant::now();
        settle(&*consumer, &came, &Settlement::Retry { after }).await?;
        let settled = Instant::now();
        came.clear();
        while came.len() < all.len() {
            let next = take(&mut *consumer, 1, ARRIVAL).await?;
            ensure!(next.len() == 1, "{} of {} messages came again", came.len(), all.len());
            // It was put off at some time of the call; brokers count in milliseconds.
            let (least, most) = (settled.elapsed(), begin.elapsed());
            ensure!(
                most + Duration::from_millis(2) >= after,
                "one came {most:?} after it was put off for {after:?}"
            );
            let late = Duration::from_secs(1);
            ensure!(least <= after + late, "one came {least:?} after it was put off for {after:?}");
            came.extend(next);
        }
    }
    settle(&*consumer, &came, &Settlement::Ack).await
}

/// Messages that are asked for again come at their own times, whatever waits before them.
pub(crate) async fn delays(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("delays")?.with_lanes(1);
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let delays = [600_000_u64, 1_500, 0, 600];
    let all: Vec<_> = (0..delays.len()).map(|at| message(&format!("k{at}"), 0)).collect();
    publish(&mut *context.broker.producer(&channel).await?, &context.oracle, &all).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let first = take(&mut *consumer, all.len(), ARRIVAL).await?;
    ensure!(first.len() == all.len(), "{} of {} messages came", first.len(), all.len());
    let begin = Instant::now();
    let mut due = BTreeMap::new();
    for (delivery, delay) in first.iter().zip(delays) {
        let after = Duration::from_millis(delay);
        settle(&*consumer, std::slice::from_ref(delivery), &Settlement::Retry { after }).await?;
        due.insert(Arc::clone(&delivery.message.id), after);
    }
    for _ in 0..3 {
        let came = take(&mut *consumer, 1, ARRIVAL).await?;
        ensure!(came.len() == 1, "a message that was to come later did not come");
        let (took, after) = (begin.elapsed(), due[&came[0].message.id]);
        // Brokers count time in milliseconds.
        ensure!(took + Duration::from_millis(2) >= after, "it came after {took:?}, and {after:?} were asked");
        ensure!(took <= after + Duration::from_secs(1), "it came after {took:?}, and {after:?} were asked");
        settle(&*consumer, &came, &Settlement::Ack).await?;
    }
    Ok(())
}

pub(crate) async fn dead_once(context: &mut Context<'_>) -> Check {
    let (scene, desk) = (Scene::new("dying").await?, Desk::default());
    desk.breaks(&["bad"]);
    let service = scene.start(context, &desk, Policy::park_key().with_attempts(3)).await?;
    let mut all: Vec<_> = (0..3).map(|version| message("bad", version)).collect();
    all.extend((0..20).map(|version| message("good", version)));
    scene.publish(context, &all).await?;
    until("the dead letters", || service.counted().dead == 3).await?;
    until("the others", || service.counted().handled == 20).await?;
    ensure!(desk.tried() == 23, "there were {} attempts, and 3 and 20 were due", desk.tried());
    let dead = scene.dead(context, 3, false).await?;
    for (at, dead) in dead.iter().enumerate() {
        ensure!(dead.id == all[at].id && dead.data == all[at].data, "the dead letter is {dead:?}");
        let reason = if at == 0 { "exhausted" } else { "behind" };
        ensure!(header(dead, dead_letter::REASON) == reason, "{dead:?} is dead as {reason}");
    }
    let (error, attempts) = (header(&dead[0], dead_letter::ERROR), header(&dead[0], dead_letter::ATTEMPTS));
    ensure!(error == "it is broken" && attempts == "3", "the cause is {error:?} after {attempts}");
    let good: Vec<_> = (0..20).map(|version| version.to_string()).collect();
    ensure!(desk.done().get("good") == Some(&good), "others were handled as {:?}", desk.done());
    service.drain(ARRIVAL).await.map_err(Stop::from)
}

/// What its kind does not say is put away as it came, at once, and stops nobody else.
pub(crate) async fn undecodable(context: &mut Context<'_>) -> Check {
    let scene = Scene::new("garbled").await?;
    let policy = Policy::skip().with_attempts(3);
    let handlers = Handlers::new().handle(answer).with_policy(policy);
    let service = Service::new("s").with_store(Arc::clone(&scene.store)).on(&scene.channel, handlers);
    let service = service.start(&context.broker).await?;
    let typed = |id: &str, body: &'static [u8]| {
        Message::with_id(id, "conformance", Question::KIND).with_data("application/json", body)
    };
    let garbled: &[u8] = b"{\"no\xff end\0";
    scene.publish(context, &[typed("garbled", garbled), typed("well", b"3"), message("k", 0)]).await?;
    until("the dead letters", || service.counted().dead == 2).await?;
    until("the other one", || service.counted().handled == 1).await?;
    ensure!(service.counted().retried == 0, "what can never be read was tried again");
    let dead = scene.dead(context, 2, false).await?;
    let dead = |id: &str| dead.iter().find(|dead| &*dead.id == id);
    let Some(raw) = dead("garbled") else {
        return Err(Stop::Failed("what cannot be read is not among the dead letters".to_owned()));
    };
    ensure!(header(raw, dead_letter::REASON) == "undecodable", "it is dead as {raw:?}");
    ensure!(raw.data == garbled, "its body was {garbled:?}, and is {:?}", raw.data);
    service.drain(ARRIVAL).await.map_err(Stop::from)
}

pub(crate) async fn no_grave(context: &mut Context<'_>) -> Check {
    let (scene, desk) = (Scene::new("graveless").await?, Desk::default());
    desk.breaks(&["bad"]);
    let service = scene.start(context, &desk, Policy::park_key().with_attempts(1)).await?;
    let reader = dead_letter::subscription(&scene.channel.name)?;
    context.broker.unregister(&reader).await?;
    // Those who publish may take a second to learn of it.
    sleep(Duration::from_millis(1_200)).await;
    scene.publish(context, &[message("bad", 0), message("bad", 1), message("good", 0)]).await?;
    until("attempts", || service.counted().retried >= 1 && service.counted().handled == 1).await?;
    sleep(Duration::from_millis(300)).await;
    ensure!(service.counted().dead == 0, "a message became a dead letter that nobody keeps");
    let topology = Topology { channels: Vec::new(), subscriptions: vec![reader] };
    context.broker.apply(&topology, Apply::Create).await?;
    until("the dead letters", || service.counted().dead == 2).await?;
    scene.dead(context, 2, false).await?;
    service.drain(ARRIVAL).await.map_err(Stop::from)
}

pub(crate) async fn killer(context: &mut Context<'_>) -> Check {
    let (scene, desk) = (Scene::new("killer").await?, Desk::default());
    context.declare(&scene.channel, &["s"]).await?;
    desk.0.hangs.store(true, Ordering::Relaxed);
    scene.publish(context, &[message("bad", 0)]).await?;
    // An attempt that is not counted costs one process more.
    for round in 1..=8 {
        let before = desk.tried();
        let service = scene.start(context, &desk, Policy::skip().with_attempts(3)).await?;
        until("an attempt or an end", || desk.tried() > before || service.counted().dead == 1).await?;
        if service.counted().dead == 1 {
            let dead = scene.dead(context, 1, false).await?.remove(0);
            ensure!(header(&dead, dead_letter::REASON) == "exhausted", "it is dead as {dead:?}");
            ensure!(round >= 3, "it was given up after {} attempts", desk.tried());
            return service.drain(ARRIVAL).await.map_err(Stop::from);
        }
        // What was given is noted within moments.
        sleep(Duration::from_millis(50)).await;
        drop(service);
    }
    Err(Stop::Failed(format!("a message that kills was tried {} times", desk.tried())))
}

pub(crate) async fn replay(context: &mut Context<'_>) -> Check {
    let (scene, desk) = (Scene::new("replayed").await?, Desk::default());
    desk.breaks(&["bad"]);
    let service = scene.start(context, &desk, Policy::park_key().with_attempts(1)).await?;
    let all: Vec<_> = (0..3).map(|version| message("bad", version)).collect();
    scene.publish(context, &all).await?;
    until("the dead letters", || service.counted().dead == 3).await?;
    // It still fails: all of them are dead letters once more.
    let dead = scene.dead(context, 3, true).await?;
    until("the dead letters again", || service.counted().dead == 6).await?;
    desk.breaks(&[]);
    scene.publish(context, &[message("bad", 3)]).await?;
    until("a new one parked behind them", || service.counted().dead == 7).await?;
    let again = scene.dead(context, 4, true).await?;
    for (dead, again) in dead.iter().zip(&again) {
        ensure!(dead.id == again.id, "{} was replayed and is {}", dead.id, again.id);
    }
    until("all of them", || service.counted().handled == 4).await?;
    ensure!(
        desk.done().get("bad").is_some_and(|done| *done == ["0", "1", "2", "3"]),
        "they were handled as {:?}",
        desk.done()
    );
    service.drain(ARRIVAL).await.map_err(Stop::from)
}

pub(crate) async fn drain(context: &mut Context<'_>) -> Check {
    let scene = Scene::new("drained").await?;
    let count = context.size.count(300);
    let all = messages(30, count);
    let done = Desk::default();
    context.declare(&scene.channel, &["s"]).await?;
    scene.publish(context, &all).await?;
    let mut rounds = 0;
    while done.done().values().map(Vec::len).sum::<usize>() < count {
        ensure!(rounds < 200, "there is no end to it");
        rounds += 1;
        let slow = |State(desk): State<Desk>, attempt: Attempt, message: Message| async move {
            sleep(Duration::from_millis(1)).await;
            if attempt.is_again() {
                return Err(Failure::never("what a drained service gave back was counted as an attempt"));
            }
            handle(State(desk), message).await
        };
        let handlers = Handlers::new().handle(slow).with_concurrency(4).with_policy(Policy::skip());
        let service = Service::new("s").with_state(done.clone()).on(&scene.channel, handlers);
        let service = service.start(&context.broker).await?;
        until("the first", || service.counted().received > 0).await?;
        sleep(Duration::from_millis(20)).await;
        let begin = Instant::now();
        service.drain(Duration::from_secs(5)).await?;
        ensure!(begin.elapsed() < Duration::from_secs(7), "draining took {:?}", begin.elapsed());
    }
    for (key, versions) in done.done() {
        let right: Vec<_> = (0..versions.len()).map(|version| version.to_string()).collect();
        ensure!(versions == right, "{key} was handled as {versions:?}");
    }
    Ok(())
}

/// A service that is dropped is a crash: what it was at is not settled, and whoever comes does it.
pub(crate) async fn dropped(context: &mut Context<'_>) -> Check {
    let (scene, desk) = (Scene::new("crashed").await?, Desk::default());
    context.declare(&scene.channel, &["s"]).await?;
    desk.0.hangs.store(true, Ordering::Relaxed);
    scene.publish(context, &messages(10, 20)).await?;
    let service = scene.start(context, &desk, Policy::skip()).await?;
    until("the first", || desk.tried() >= 1).await?;
    drop(service);
    desk.0.hangs.store(false, Ordering::Relaxed);
    let service = scene.start(context, &desk, Policy::skip()).await?;
    let handled = || desk.done().values().map(Vec::len).sum::<usize>();
    until("all of them", || handled() == 20).await?;
    service.drain(ARRIVAL).await.map_err(Stop::from)
}

pub(crate) async fn close_at_once(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("crowd")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    publish(&mut *context.broker.producer(&channel).await?, &context.oracle, &messages(50, 100)).await?;
    let mut consumers = Vec::new();
    for _ in 0..10 {
        consumers.push(context.broker.subscribe(&subscription).await?);
    }
    let (mut in_hand, end) = (Vec::new(), Instant::now() + ARRIVAL);
    while in_hand.len() < 20 && Instant::now() < end {
        for consumer in &mut consumers {
            consumer.receive(5, Duration::from_millis(20), &mut in_hand).await?;
        }
    }
    for ended in
        join_all(consumers.into_iter().map(|consumer| consumer.close(Duration::from_millis(200)))).await
    {
        ended?;
    }
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let came = take(&mut *consumer, 100, ARRIVAL).await?;
    ensure!(came.len() == 100, "{} of 100 messages came behind ten that were closed at once", came.len());
    Ok(())
}

pub(crate) async fn many_channels(context: &mut Context<'_>) -> Check {
    let count = context.size.count(20);
    let mut topology = Topology::default();
    for number in 0..count {
        let channel = Channel::new(format!("one-of-many-{number}"))?.with_lanes(1);
        topology.subscriptions.push(Subscription::new(&channel, "s")?);
        topology.channels.push(channel);
    }
    context.broker.apply(&topology, Apply::Create).await?;
    for (number, channel) in topology.channels.iter().enumerate() {
        let mut producer = context.broker.producer(channel).await?;
        publish(&mut *producer, &context.oracle, &[message("k", number)]).await?;
    }
    // The other way round: were they one channel, these would not be the messages of their turns.
    for (number, subscription) in topology.subscriptions.iter().enumerate().rev() {
        let mut consumer = context.broker.subscribe(subscription).await?;
        let came = take(&mut *consumer, 1, ARRIVAL).await?;
        ensure!(came.len() == 1, "the message of channel {number} did not come");
        ensure!(header(&came[0].message, "version") == number.to_string(), "{number} has another's message");
        settle(&*consumer, &came, &Settlement::Ack).await?;
        consumer.close(ARRIVAL).await?;
    }
    Ok(())
}

#[derive(Debug, Serialize, Deserialize)]
struct Question(u64);

impl Typed for Question {
    const KIND: &str = "conformance.question.v1";
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer(u64);

impl Typed for Answer {
    const KIND: &str = "conformance.answer.v1";
}

async fn answer(Json(Question(number)): Json<Question>) -> Result<Json<Answer>, Failure> {
    match number {
        7 => Err(Failure::never("seven is not answered")),
        9 => {
            sleep(Duration::from_millis(1_500)).await;
            Ok(Json(Answer(9)))
        }
        number => Ok(Json(Answer(number * 2))),
    }
}

pub(crate) async fn calls(context: &mut Context<'_>) -> Check {
    let scene = Scene::new("questions").await?;
    let handlers = Handlers::new().handle(answer).with_policy(Policy::skip().with_attempts(1));
    let service = Service::new("s").on(&scene.channel, handlers).start(&context.broker).await?;
    let ids = Arc::new(SystemIds);
    let caller =
        Caller::open(&*context.broker, &scene.channel, "suite", ids, Arc::clone(&scene.clock)).await?;
    let ask = |number: u64, time: Duration| {
        let caller = caller.clone();
        async move { caller.call::<_, Answer>(Question(number), time).await }
    };
    let count = context.size.count(50) as u64;
    for (number, reply) in (10..).zip(join_all((10..10 + count).map(|number| ask(number, ARRIVAL))).await) {
        let Answer(reply) = reply?;
        ensure!(reply == number * 2, "{number} was answered with {reply}");
    }
    let error = ask(7, ARRIVAL).await.err();
    ensure!(
        error.as_ref().is_some_and(|error| error.code() == code::CALL_FAILED),
        "what became a dead letter was answered with {error:?}"
    );
    let error = ask(9, Duration::from_millis(500)).await.err();
    ensure!(
        error.as_ref().is_some_and(|error| error.code() == code::TIMED_OUT),
        "a question that takes longer was answered with {error:?}"
    );
    until("the late reply", || caller.late() == 1).await?;
    service.drain(ARRIVAL).await.map_err(Stop::from)
}

pub(crate) async fn balance(context: &mut Context<'_>) -> Check {
    let (scene, desk) = (Scene::new("counted").await?, Desk::default());
    desk.breaks(&["key-3"]);
    let count = context.size.count(100);
    let service = scene.start(context, &desk, Policy::park_key().with_attempts(2)).await?;
    scene.publish(context, &messages(10, count)).await?;
    until("everything", || service.counted().handled + service.counted().dead == count as u64).await?;
    let counted = service.counted();
    ensure!(counted.dead == count as u64 / 10, "{} of {count} are dead letters", counted.dead);
    ensure!(
        counted.received == counted.handled + counted.dead + counted.retried + counted.released,
        "the counts do not add up: {counted:?}"
    );
    service.drain(ARRIVAL).await.map_err(Stop::from)
}
