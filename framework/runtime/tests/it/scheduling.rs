use tidegate_core::FlowName;
use tidegate_core::error::code;
use tidegate_core::port::Timers;
use tidegate_runtime::Scheduler;

use super::watched::{Calls, Watched};
use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn scheduler(timers: &MemoryStore, clock: &Arc<HandClock>) -> Scheduler {
    let clock: Arc<dyn Clock> = Arc::<HandClock>::clone(clock);
    Scheduler::new(Arc::new(timers.clone()), "shop", clock).unwrap()
}

#[tokio::test]
async fn messages_are_sent_at_their_time_and_not_when_they_were_cancelled() {
    let (world, timers, clock) = (World::new().await, MemoryStore::new("t"), Arc::new(HandClock::default()));
    let (service, seen) = collect(&world, &world.orders).await;
    let later = scheduler(&timers, &clock);
    let sending = later.start(&world.broker);
    for (id, minutes) in [("one", 1), ("two", 2), ("cancelled", 1), ("moved", 1)] {
        let message = placed("a:1").with_header("timer", id).unwrap();
        later.after(id, minutes * MINUTE, &world.orders, message).await.unwrap();
    }
    assert!(later.cancel("cancelled").await.unwrap() && !later.cancel("cancelled").await.unwrap());
    later.after("moved", 3 * MINUTE, &world.orders, placed("b:2")).await.unwrap();
    clock.forward(MINUTE - Duration::from_micros(1));
    // Somebody looks a few times more, and finds nothing.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(sending.sent(), 0, "it is too early by a microsecond");
    for (count, wait) in [(1, Duration::from_micros(1)), (2, MINUTE), (3, MINUTE)] {
        clock.forward(wait);
        eventually("the next one", || seen.lock().unwrap().len() == count).await;
    }
    drop(sending);
    drain(service).await;
    let seen = seen.lock().unwrap();
    let ids: Vec<_> = seen.iter().map(|message| message.id.split_once('/').unwrap().0).collect();
    assert_eq!(ids, ["one", "two", "moved"]);
    assert_eq!((&seen[0].data, seen[0].subject.as_deref()), (&placed("a:1").data, Some("a")));
    assert_eq!(seen[2].data, placed("b:2").data, "the later one took its place");
}

#[tokio::test]
async fn several_send_each_once_and_what_one_died_over_is_sent_by_another() {
    let (world, timers, clock) = (World::new().await, MemoryStore::new("t"), Arc::new(HandClock::default()));
    let (service, seen) = collect(&world, &world.orders).await;
    let later = scheduler(&timers, &clock);
    for number in 0..300 {
        let message = placed(&format!("o{number}:1"));
        later.after(&format!("t{number}"), MINUTE, &world.orders, message).await.unwrap();
    }
    clock.forward(MINUTE);
    // One takes some of them and dies.
    let flow = FlowName::new("later_shop").unwrap();
    let taken = timers.due(&flow, clock.now(), 10, Duration::from_secs(30)).await.unwrap();
    assert_eq!(taken.len(), 10);
    let sending = [later.start(&world.broker), later.start(&world.broker), later.start(&world.broker)];
    let sent = || sending.iter().map(tidegate_runtime::Sending::sent).sum::<u64>();
    eventually("those that nobody has", || sent() == 290).await;
    clock.forward(Duration::from_secs(30));
    eventually("those of the dead", || sent() == 300).await;
    eventually("all of them are here", || seen.lock().unwrap().len() == 300).await;
    drop(sending);
    drain(service).await;
    let ids: std::collections::HashSet<_> =
        seen.lock().unwrap().iter().map(|message| Arc::clone(&message.id)).collect();
    assert_eq!(ids.len(), 300);
}

#[tokio::test]
async fn what_was_sent_and_not_noted_is_sent_as_the_same_message() {
    let (world, timers, clock) = (World::new().await, MemoryStore::new("t"), Arc::new(HandClock::default()));
    let (service, seen) = collect(&world, &world.orders).await;
    let later = scheduler(&timers, &clock);
    let sending = later.start(&world.broker);
    world.memory.lose_answers(3);
    later.after("one", MINUTE, &world.orders, placed("a:1")).await.unwrap();
    later.after("other", MINUTE, &Channel::new("nowhere").unwrap(), placed("a:1")).await.unwrap();
    clock.forward(MINUTE);
    eventually("one is sent", || sending.sent() == 1).await;
    eventually("the other cannot be", || sending.failed() >= 1).await;
    let nowhere = Channel::new("nowhere").unwrap();
    let (other, there) = collect(&world, &nowhere).await;
    clock.forward(MINUTE);
    eventually("its channel is there", || there.lock().unwrap().len() == 1).await;
    drop(sending);
    drain(service).await;
    drain(other).await;
    assert_eq!(seen.lock().unwrap().len(), 1, "the broker knows it by its id");
    let error = later.after("", MINUTE, &nowhere, placed("a:1")).await.unwrap_err();
    assert_eq!(error.code(), code::CONFIG_INVALID);
    let invalid = Message::with_id("", "shop", "t");
    let error = later.after("x", MINUTE, &nowhere, invalid).await.unwrap_err();
    assert_eq!(error.code(), code::MESSAGE_INVALID);
}

/// The clock of tokio, whose time no test has to wait for.
#[derive(Debug)]
struct PausedClock(tokio::time::Instant);

#[async_trait::async_trait]
impl Clock for PausedClock {
    fn now(&self) -> i64 {
        1_700_000_000_000_000 + i64::try_from(self.elapsed().as_micros()).unwrap()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

/// What a scheduler sends later over a watched broker, and where that comes to.
async fn watched() -> (World, Calls, Scheduler, Running, Arc<Mutex<Vec<Message>>>) {
    let (mut world, calls) = Watched::world().await;
    world.clock = Arc::new(PausedClock(tokio::time::Instant::now()));
    let (service, seen) = collect(&world, &world.orders).await;
    let later = Scheduler::new(Arc::new(MemoryStore::new("t")), "shop", Arc::clone(&world.clock)).unwrap();
    (world, calls, later, service, seen)
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_does_not_answer_holds_up_its_own_messages_alone() {
    let (world, calls, later, service, seen) = watched().await;
    let silent = Channel::new("silent").unwrap();
    calls.delay("channel silent", 1_000 * MINUTE);
    later.after("first", Duration::ZERO, &silent, placed("a:0")).await.unwrap();
    let sending = later.start(&world.broker);
    for number in 1..=20 {
        let id = format!("a:{number}");
        later.after(&id, Duration::from_secs(number), &world.orders, placed(&id)).await.unwrap();
        // More than are taken at once.
        for more in 0..20 {
            later.after(&format!("{number}-{more}"), Duration::ZERO, &silent, placed("a:0")).await.unwrap();
        }
    }
    let began = world.clock.elapsed();
    eventually("the others", || seen.lock().unwrap().len() == 20).await;
    assert!(world.clock.elapsed() - began < Duration::from_secs(22), "{:?}", world.clock.elapsed() - began);
    assert!(sending.sent() >= 19);
    drop(sending);
    drain(service).await;
}

#[tokio::test(start_paused = true)]
async fn what_takes_longer_to_be_opened_than_it_is_hidden_is_sent_by_whoever_is_next() {
    let (world, calls, later, service, seen) = watched().await;
    calls.delay("producer orders", 10 * MINUTE);
    later.after("one", Duration::ZERO, &world.orders, placed("a:1")).await.unwrap();
    let sending = later.start(&world.broker);
    let began = world.clock.elapsed();
    eventually("it is sent", || sending.sent() == 1).await;
    let took = (world.clock.elapsed() - began).as_secs();
    assert!((30..33).contains(&took), "{took}");
    // Nobody sends it once more.
    tokio::time::sleep(20 * MINUTE).await;
    assert_eq!((sending.sent(), calls.count("publish orders")), (1, 1));
    assert_eq!(seen.lock().unwrap().len(), 1);
    drop(sending);
    drain(service).await;
}

#[tokio::test(start_paused = true)]
async fn one_channel_that_fails_closes_the_sender_of_no_other() {
    let (world, calls, later, service, seen) = watched().await;
    let sending = later.start(&world.broker);
    let nowhere = Channel::new("nowhere").unwrap();
    later.after("other", Duration::ZERO, &nowhere, placed("a:1")).await.unwrap();
    eventually("it fails", || sending.failed() == 1).await;
    for number in 1..=5 {
        let id = format!("a:{number}");
        later.after(&id, Duration::from_secs(number), &world.orders, placed(&id)).await.unwrap();
        eventually("it is sent", || seen.lock().unwrap().len() == usize::try_from(number).unwrap()).await;
        later.after("other", Duration::ZERO, &nowhere, placed("a:1")).await.unwrap();
        eventually("the other one fails", || sending.failed() > number).await;
    }
    assert_eq!(calls.count("producer orders"), 1);
    drop(sending);
    drain(service).await;
}

#[tokio::test(start_paused = true)]
async fn a_scheduler_that_is_drained_ends_what_it_sends_and_takes_nothing_more() {
    let (world, calls, later, service, seen) = watched().await;
    let sending = later.start(&world.broker);
    calls.delay("publish orders", Duration::from_secs(3));
    later.after("one", Duration::ZERO, &world.orders, placed("a:1")).await.unwrap();
    eventually("it is being sent", || calls.count("publish orders") == 1).await;
    let began = world.clock.elapsed();
    sending.drain(Duration::from_secs(10)).await;
    let took = world.clock.elapsed() - began;
    assert!(took > Duration::from_secs(2) && took <= Duration::from_secs(3), "{took:?}");
    assert_eq!(calls.count("close orders"), 1);
    eventually("it is here", || seen.lock().unwrap().len() == 1).await;
    later.after("two", Duration::ZERO, &world.orders, placed("a:2")).await.unwrap();
    tokio::time::sleep(MINUTE).await;
    assert_eq!(calls.count("publish orders"), 1, "what was sent is noted, and the other one is left");
    // One that does not answer does not keep it from its end.
    let sending = later.start(&world.broker);
    calls.delay("publish orders", 10 * MINUTE);
    eventually("it is being sent", || calls.count("publish orders") == 2).await;
    let began = world.clock.elapsed();
    sending.drain(Duration::from_secs(10)).await;
    assert_eq!((world.clock.elapsed() - began).as_secs(), 10);
    drain(service).await;
}
