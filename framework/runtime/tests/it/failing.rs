//! What fails comes again by the wall clock, which no test stops.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tidegate_core::port::Attempt;
use tidegate_runtime::{Failure, Handlers, Json, Policy, Service, State};

use super::watched::Watched;
use super::*;

/// Orders that fail, and what was seen.
#[derive(Clone, Default)]
struct Desk {
    seen: Seen,
    is_broken: Arc<AtomicBool>,
}

/// Fails for the order `bad` as long as the desk is broken.
async fn handle(State(desk): State<Desk>, Json(placed): Json<Placed>) -> Result<(), Failure> {
    if placed.order == "bad" && desk.is_broken.load(Ordering::Relaxed) {
        return Err(Failure::retry("the desk is broken"));
    }
    desk.seen.note(&placed);
    Ok(())
}

async fn start(world: &World, desk: &Desk, policy: Policy) -> Running {
    desk.is_broken.store(true, Ordering::Relaxed);
    let policy = policy.with_pauses(Duration::from_millis(10), Duration::from_millis(50));
    let handlers = Handlers::new().handle(handle).with_policy(policy);
    let service = Service::new("billing").with_state(desk.clone()).with_store(Arc::clone(&world.store));
    service.on(&world.orders, handlers).start(&world.broker).await.unwrap()
}

fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| &*message.id).collect()
}

#[tokio::test]
async fn what_fails_comes_again_later_and_only_its_subject_waits() {
    let world = World::new().await;
    let desk = Desk::default();
    let service = start(&world, &desk, Policy::block()).await;
    world.place(&["bad:1", "bad:2", "good:1", "bad:3", "good:2"]).await;
    eventually("the others, and many attempts", || {
        let counted = service.counted();
        counted.handled == 2 && counted.retried >= 20
    })
    .await;
    assert_eq!(desk.seen.all(), ["good:1", "good:2"]);
    desk.is_broken.store(false, Ordering::Relaxed);
    eventually("all of them", || service.counted().handled == 5).await;
    drain(service).await;
    assert_eq!(desk.seen.of("bad"), ["bad:1", "bad:2", "bad:3"]);
}

#[tokio::test]
async fn a_subject_is_parked_behind_its_dead_letter_and_replayed_in_order() {
    let world = World::new().await;
    let desk = Desk::default();
    let service = start(&world, &desk, Policy::park_key().with_attempts(3)).await;
    world.place(&["bad:1", "bad:2", "good:1", "bad:3"]).await;
    eventually("three dead letters", || service.counted().dead == 3).await;
    assert_eq!((service.counted().retried, desk.seen.all()), (2, vec!["good:1".to_owned()]));
    let dead = world.dead().await;
    assert_eq!(ids(&dead), ["bad:1", "bad:2", "bad:3"]);
    let header = |message: &Message, name| message.headers.get(name).unwrap().to_owned();
    let reasons: Vec<_> = dead.iter().map(|dead| header(dead, dead_letter::REASON)).collect();
    assert_eq!(reasons, ["exhausted", "behind", "behind"]);
    assert_eq!(header(&dead[0], dead_letter::ATTEMPTS), "3");
    assert_eq!(header(&dead[0], dead_letter::ERROR), "the desk is broken");
    assert_eq!(dead[0].data, placed("bad:1").data);
    drain(service).await;
    // The next owner of the lane knows it.
    let service = start(&world, &desk, Policy::park_key().with_attempts(3)).await;
    world.place(&["bad:4"]).await;
    eventually("it is parked too", || service.counted().dead == 1).await;
    // Replayed while it still fails: everything is parked again, in its order.
    world.replay(|_| true).await;
    eventually("all are parked again", || service.counted().dead == 5).await;
    assert_eq!(ids(&world.dead().await), ["bad:1", "bad:2", "bad:3", "bad:4"]);
    desk.is_broken.store(false, Ordering::Relaxed);
    // A later one alone does not overtake.
    world.replay(|message| *message.id == *"bad:2").await;
    eventually("it is parked again", || service.counted().dead == 6).await;
    assert_eq!(desk.seen.of("bad"), Vec::<String>::new());
    world.replay(|message| *message.id == *"bad:1").await;
    world.place(&["bad:5"]).await;
    eventually("the first is handled, the new one parked", || service.counted().dead == 7).await;
    assert_eq!(desk.seen.of("bad"), ["bad:1"]);
    assert_eq!(ids(&world.dead().await), ["bad:3", "bad:4", "bad:2", "bad:5"]);
    drain(service).await;
}

#[tokio::test]
async fn a_replay_by_order_frees_the_subject_at_its_place() {
    let world = World::new().await;
    let desk = Desk::default();
    let service = start(&world, &desk, Policy::park_key().with_attempts(1)).await;
    world.place(&["bad:1", "bad:2"]).await;
    eventually("two dead letters", || service.counted().dead == 2).await;
    desk.is_broken.store(false, Ordering::Relaxed);
    world.replay(|_| true).await;
    eventually("both", || desk.seen.of("bad").len() == 2).await;
    world.place(&["bad:3"]).await;
    eventually("it is free", || desk.seen.of("bad").len() == 3).await;
    assert_eq!(desk.seen.of("bad"), ["bad:1", "bad:2", "bad:3"]);
    assert!(world.dead().await.is_empty());
    drain(service).await;
}

#[tokio::test]
async fn a_dead_letter_that_is_purged_frees_what_waits_behind_it() {
    let world = World::new().await;
    let desk = Desk::default();
    let service = start(&world, &desk, Policy::park_key().with_attempts(1)).await;
    world.place(&["bad:1", "bad:2"]).await;
    eventually("two dead letters", || service.counted().dead == 2).await;
    desk.is_broken.store(false, Ordering::Relaxed);
    let mut letters = world.letters().await;
    letters.read().await.unwrap().for_each(drop);
    assert_eq!(letters.purge(|message| *message.id == *"bad:1").await.unwrap(), 1);
    letters.close().await.unwrap();
    world.replay(|message| *message.id == *"bad:2").await;
    eventually("the second", || desk.seen.of("bad") == ["bad:2"]).await;
    world.place(&["bad:3"]).await;
    eventually("it is free", || desk.seen.of("bad") == ["bad:2", "bad:3"]).await;
    drain(service).await;
}

#[tokio::test]
async fn a_replayed_message_is_for_its_subscription_alone() {
    let world = World::new().await;
    let desk = Desk::default();
    let billing = start(&world, &desk, Policy::skip().with_attempts(1)).await;
    let shipped = Desk::default();
    let handlers = Handlers::new().handle(handle).with_policy(Policy::skip());
    let shipping = Service::new("shipping").with_state(shipped.clone()).on(&world.orders, handlers);
    let shipping = shipping.start(&world.broker).await.unwrap();
    world.place(&["bad:1", "bad:2"]).await;
    eventually("dead letters", || billing.counted().dead == 2 && shipping.counted().handled == 2).await;
    desk.is_broken.store(false, Ordering::Relaxed);
    world.replay(|_| true).await;
    eventually("handled and ignored", || billing.counted().handled == 2 && shipping.counted().ignored == 2)
        .await;
    assert_eq!(
        (desk.seen.all(), shipped.seen.all()),
        (vec!["bad:1".into(), "bad:2".into()], desk.seen.all())
    );
    drain(billing).await;
    drain(shipping).await;
}

#[tokio::test]
async fn every_way_to_fail_has_its_reason() {
    let world = World::new().await;
    async fn handle(attempt: Attempt, Json(placed): Json<Placed>) -> Result<(), Failure> {
        match &*placed.order {
            "panics" => panic!("oh"),
            "hangs" => std::future::pending().await,
            "never" => Err(Failure::never("it is not for us")),
            "later" if attempt.number() < 3 => Err(std::io::Error::other("not yet").into()),
            _ => Ok(()),
        }
    }
    let policy = Policy::skip().with_attempts(3).with_time_limit(Duration::from_millis(300));
    let handlers = Handlers::new().handle(handle).with_policy(policy);
    let service = Service::new("billing").on(&world.orders, handlers).start(&world.broker).await.unwrap();
    world.place(&["panics:1", "hangs:1", "never:1", "later:1"]).await;
    let strange = Message::with_id("strange", "shop", "order.exploded");
    let unreadable = Message::with_id("unreadable", "shop", Placed::KIND).with_data("text/plain", "{");
    send(&mut *world.broker.producer(&world.orders).await.unwrap(), &[strange, unreadable]).await;
    eventually("all of them", || service.counted().dead == 5 && service.counted().handled == 1).await;
    drain(service).await;
    let mut dead: Vec<_> = world
        .dead()
        .await
        .iter()
        .map(|dead| {
            let header = |name| dead.headers.get(name).unwrap();
            let (reason, error) = (header(dead_letter::REASON), header(dead_letter::ERROR));
            format!("{} {reason} {}: {error}", dead.id, header(dead_letter::ATTEMPTS))
        })
        .collect();
    dead.sort();
    assert_eq!(
        dead,
        [
            "hangs:1 exhausted 3: TG0014 timed-out: the handler took longer than 300ms",
            "never:1 refused 1: it is not for us",
            "panics:1 exhausted 3: TG0099 internal: the handler panicked",
            "strange unhandled 1: nothing handles the kind order.exploded",
            "unreadable undecodable 1: TG0056 message-invalid: the body is no order.placed.v1: it ends too early (line 1, column 1)",
        ]
    );
}

#[tokio::test]
async fn a_message_that_kills_its_process_is_found() {
    let world = World::new().await;
    static TRIED: AtomicU32 = AtomicU32::new(0);
    // A crash: nothing is settled, nothing is said.
    let killing = |Json(_): Json<Placed>| async {
        TRIED.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<()>().await;
    };
    world.subscribe("billing").await;
    world.place(&["bad:1"]).await;
    for round in 1..=5 {
        let policy = Policy::skip().with_attempts(3);
        let handlers = Handlers::new().handle(killing).with_policy(policy);
        let service = Service::new("billing").on(&world.orders, handlers).start(&world.broker).await.unwrap();
        if round < 5 {
            eventually("it is tried", || TRIED.load(Ordering::Relaxed) == round).await;
            drop(service);
        } else {
            eventually("it is given up", || service.counted().dead == 1).await;
            drain(service).await;
        }
    }
    let dead = world.dead().await;
    assert_eq!(dead[0].headers.get(dead_letter::REASON), Some("exhausted"));
    // The last time alone, so that nothing beside it is taken for it.
    assert_eq!(TRIED.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn what_was_only_in_hand_beside_a_killer_is_handled() {
    let world = World::new().await;
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let killing = |Json(placed): Json<Placed>| async move {
        if placed.order == "bad" {
            TRIED.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
    };
    world.subscribe("billing").await;
    world.place(&["bad:1", "a:1", "b:1", "c:1", "d:1", "bad:2"]).await;
    let (mut handled, mut dead) = (0, 0);
    for _ in 0..6 {
        let policy = Policy::skip().with_attempts(2);
        let handlers = Handlers::new().handle(killing).with_concurrency(1).with_policy(policy);
        let service = Service::new("billing").on(&world.orders, handlers).start(&world.broker).await.unwrap();
        let before = TRIED.load(Ordering::Relaxed);
        eventually("an attempt of the killer, or the end", || {
            let counted = service.counted();
            TRIED.load(Ordering::Relaxed) > before || handled + counted.handled + dead + counted.dead == 6
        })
        .await;
        // A crash.
        handled += service.counted().handled;
        dead += service.counted().dead;
        drop(service);
    }
    assert_eq!((handled, dead), (4, 2));
    assert_eq!(ids(&world.dead().await), ["bad:1", "bad:2"]);
}

#[tokio::test]
async fn what_a_handler_passes_on_is_for_everybody() {
    let world = World::new().await;
    let desk = Desk::default();
    let passing = |State(desk): State<Desk>, message: Message| async move {
        if desk.is_broken.load(Ordering::Relaxed) {
            return Err(Failure::never("it is broken"));
        }
        assert_eq!(message.headers.len(), 0, "{message:?}");
        Ok(())
    };
    desk.is_broken.store(true, Ordering::Relaxed);
    let handlers = Handlers::new().handle(passing).with_policy(Policy::skip());
    let service = Service::new("billing").with_state(desk.clone()).on(&world.orders, handlers);
    let service = service.start(&world.broker).await.unwrap();
    world.place(&["bad:1"]).await;
    eventually("a dead letter", || service.counted().dead == 1).await;
    desk.is_broken.store(false, Ordering::Relaxed);
    world.replay(|_| true).await;
    eventually("it is handled", || service.counted().handled == 1).await;
    drain(service).await;
}

#[tokio::test]
async fn a_message_stays_as_long_as_dead_letters_cannot_be_stored() {
    let world = World::new().await;
    let desk = Desk::default();
    let service = start(&world, &desk, Policy::park_key().with_attempts(1)).await;
    let reader = dead_letter::subscription(&world.orders.name).unwrap();
    world.broker.unregister(&reader).await.unwrap();
    world.place(&["bad:1", "bad:2", "good:1"]).await;
    eventually("attempts", || service.counted().received >= 5 && service.counted().handled == 1).await;
    assert_eq!(service.counted().dead, 0);
    let topology = Topology { channels: Vec::new(), subscriptions: vec![reader] };
    world.broker.apply(&topology, Apply::Create).await.unwrap();
    eventually("both are dead letters", || service.counted().dead == 2).await;
    assert_eq!(ids(&world.dead().await), ["bad:1", "bad:2"]);
    drain(service).await;
}

#[tokio::test(start_paused = true)]
async fn who_looks_at_dead_letters_beside_another_is_told_so_and_has_them_behind_that_one() {
    let world = World::new().await;
    let desk = Desk::default();
    let service = start(&world, &desk, Policy::skip().with_attempts(1)).await;
    world.place(&["bad:1", "bad:2"]).await;
    eventually("two dead letters", || service.counted().dead == 2).await;
    drain(service).await;
    let mut first = world.letters().await;
    assert_eq!(first.read().await.unwrap().count(), 2);
    let began = world.clock.elapsed();
    let mut second = world.letters().await;
    let error = second.read().await.map(drop).unwrap_err();
    let text = "TG0033 lease-held: somebody else has the dead letters of channel orders in hand";
    assert_eq!(error.to_string(), text);
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("another `tidegate dlq`") && hint.contains("until its lease is over"), "{hint}");
    assert!(world.clock.elapsed() - began >= Duration::from_secs(10), "as long as a lease");
    let (letters, ()) = futures::join!(second.read(), async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        first.close().await.unwrap();
    });
    assert_eq!(letters.unwrap().count(), 2);
    let began = world.clock.elapsed();
    second.replay(|_| true).await.unwrap();
    assert_eq!(second.read().await.unwrap().count(), 0, "there are none");
    assert!(world.clock.elapsed() - began < Duration::from_secs(3), "who has the lane knows that soon");
    second.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_came_before_a_reconnection_is_a_dead_letter_once() {
    let world = World::new().await;
    let desk = Desk::default();
    let service = start(&world, &desk, Policy::skip().with_attempts(1)).await;
    world.place(&["bad:1", "bad:2"]).await;
    eventually("two dead letters", || service.counted().dead == 2).await;
    drain(service).await;
    let mut letters = world.letters().await;
    assert_eq!(letters.read().await.unwrap().count(), 2);
    world.memory.cut();
    assert_eq!(ids(&letters.read().await.unwrap().cloned().collect::<Vec<_>>()), ["bad:1", "bad:2"]);
    assert_eq!(letters.purge(|_| true).await.unwrap(), 2);
    letters.close().await.unwrap();
    assert!(world.dead().await.is_empty(), "they were settled as they are in hand now");
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_replayed_in_their_order_and_many_at_once() {
    let (world, calls) = Watched::world().await;
    let desk = Desk::default();
    let service = start(&world, &desk, Policy::skip().with_attempts(1)).await;
    let orders: Vec<String> = (0..600).map(|number| format!("bad:{number}")).collect();
    world.place(&orders.iter().map(String::as_str).collect::<Vec<_>>()).await;
    eventually("they are dead letters", || service.counted().dead == 600).await;
    desk.is_broken.store(false, Ordering::Relaxed);
    let counts = || (calls.count("publish orders"), calls.count("settle orders.dead"));
    let mut letters = world.letters().await;
    let dead = ids(&letters.read().await.unwrap().cloned().collect::<Vec<_>>()).len();
    let before = counts();
    assert_eq!((dead, letters.replay(|letter| *letter.id != *"bad:7").await.unwrap()), (600, 599));
    let (published, settled) = (counts().0 - before.0, counts().1 - before.1);
    assert!(published <= 3 && settled <= 3, "{published} calls of publish and {settled} of settle");
    assert_eq!(ids(&letters.read().await.unwrap().cloned().collect::<Vec<_>>()), ["bad:7"]);
    letters.close().await.unwrap();
    eventually("they are handled", || service.counted().handled == 599).await;
    let expected: Vec<_> = orders.iter().filter(|order| **order != "bad:7").cloned().collect();
    assert_eq!(desk.seen.all(), expected);
    drain(service).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_replayed_stays_and_the_others_are_not_replayed_twice() {
    let (world, calls) = Watched::world().await;
    let desk = Desk::default();
    let service = start(&world, &desk, Policy::skip().with_attempts(1)).await;
    world.place(&["bad:1", "bad:2", "bad:3"]).await;
    eventually("they are dead letters", || service.counted().dead == 3).await;
    desk.is_broken.store(false, Ordering::Relaxed);
    let mut letters = world.letters().await;
    letters.read().await.unwrap().for_each(drop);
    calls.refuse("bad:2");
    let error = letters.replay(|_| true).await.unwrap_err();
    assert_eq!(error.code(), tidegate_core::error::code::MESSAGE_INVALID);
    assert_eq!(ids(&letters.read().await.unwrap().cloned().collect::<Vec<_>>()), ["bad:2"]);
    letters.close().await.unwrap();
    eventually("the others are handled", || service.counted().handled == 2).await;
    drain(service).await;
    assert_eq!(desk.seen.all(), ["bad:1", "bad:3"]);
    assert_eq!(ids(&world.dead().await), ["bad:2"]);
}
