use tidegate_core::FlowName;
use tidegate_core::error::code;
use tidegate_core::port::Timers;
use tidegate_runtime::Scheduler;

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
