use std::sync::atomic::{AtomicUsize, Ordering};

use tidegate_core::Headers;
use tidegate_core::error::code;
use tidegate_core::port::Attempt;
use tidegate_runtime::{Failure, Handle, Handlers, Info, Json, Policy, Service, State};

use super::*;

async fn note(State(seen): State<Seen>, Json(placed): Json<Placed>) {
    seen.note(&placed);
}

#[tokio::test(start_paused = true)]
async fn a_handler_gets_what_it_asks_for() {
    let world = World::new().await;
    async fn handle(
        State(seen): State<Seen>,
        headers: Headers,
        attempt: Attempt,
        info: Info,
        Json(placed): Json<Placed>,
    ) -> Result<(), Failure> {
        assert_eq!((headers.get("region"), attempt), (Some("eu"), Attempt::Exact(1)));
        assert_eq!((info.channel.as_str(), info.subscription.as_str()), ("orders", "billing"));
        assert!(info.stored_at.is_some() && info.position.is_some());
        seen.note(&placed);
        Ok(())
    }
    let seen = Seen::default();
    let handlers = Handlers::new().handle(handle).with_policy(Policy::skip());
    let service = Service::new("billing").with_state(seen.clone()).on(&world.orders, handlers);
    let service = service.start(&world.broker).await.unwrap();
    let message = placed("a:1").with_header("region", "eu").unwrap();
    send(&mut *world.broker.producer(&world.orders).await.unwrap(), &[message]).await;
    eventually("handling", || service.counted().handled == 1).await;
    drain(service).await;
    assert_eq!(seen.all(), ["a:1"]);
}

#[tokio::test(start_paused = true)]
async fn kinds_have_their_handlers_and_what_is_left_goes_to_the_last() {
    struct Last(AtomicUsize);
    #[async_trait::async_trait]
    impl Handle<Message> for Last {
        async fn handle(&self, message: Message, _: Info) -> Result<(), Failure> {
            assert_eq!(&*message.kind, "order.cancelled.v1");
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }
    let world = World::new().await;
    let (seen, last) = (Seen::default(), Arc::new(Last(AtomicUsize::new(0))));
    let handlers = Handlers::new().handle(note).handle(Arc::clone(&last)).with_policy(Policy::skip());
    let service = Service::new("billing").with_state(seen.clone()).on(&world.orders, handlers);
    let service = service.start(&world.broker).await.unwrap();
    world.place(&["a:1"]).await;
    let cancelled = Message::with_id("c", "shop", "order.cancelled.v1");
    send(&mut *world.broker.producer(&world.orders).await.unwrap(), &[cancelled]).await;
    eventually("both", || service.counted().handled == 2).await;
    drain(service).await;
    assert_eq!((seen.all(), last.0.load(Ordering::Relaxed)), (vec!["a:1".to_owned()], 1));
}

#[tokio::test(start_paused = true)]
async fn subjects_are_handled_in_order_and_beside_each_other() {
    let world = World::new().await;
    let seen = Seen::default();
    let busy = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let handler = {
        let (busy, most) = (Arc::clone(&busy), Arc::clone(&most));
        move |State(seen): State<Seen>, Json(placed): Json<Placed>| {
            let (busy, most) = (Arc::clone(&busy), Arc::clone(&most));
            async move {
                most.fetch_max(busy.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(u64::from(10 - placed.number))).await;
                busy.fetch_sub(1, Ordering::Relaxed);
                seen.note(&placed);
            }
        }
    };
    let handlers = Handlers::new().handle(handler).with_concurrency(3).with_policy(Policy::skip());
    let service = Service::new("billing").with_state(seen.clone()).on(&world.orders, handlers);
    let service = service.start(&world.broker).await.unwrap();
    let orders: Vec<String> = (0..10)
        .flat_map(|number| ["a", "b", "c", "d", "e"].map(|order| format!("{order}:{number}")))
        .collect();
    world.place(&orders.iter().map(String::as_str).collect::<Vec<_>>()).await;
    eventually("all of them", || service.counted().handled == 50).await;
    drain(service).await;
    for order in ["a", "b", "c", "d", "e"] {
        assert_eq!(seen.of(order), (0..10).map(|n| format!("{order}:{n}")).collect::<Vec<_>>());
    }
    assert_eq!(most.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn no_more_are_started_than_the_rate_says() {
    let world = World::new().await;
    let seen = Seen::default();
    let handlers = Handlers::new().handle(note).with_rate(10).with_policy(Policy::skip());
    let service = Service::new("billing").with_state(seen).on(&world.orders, handlers);
    let service = service.start(&world.broker).await.unwrap();
    let began = world.clock.elapsed();
    let orders: Vec<String> = (0..31).map(|number| format!("o{number}:0")).collect();
    world.place(&orders.iter().map(String::as_str).collect::<Vec<_>>()).await;
    eventually("all of them", || service.counted().handled == 31).await;
    let took = world.clock.elapsed() - began;
    assert!(took >= Duration::from_millis(2_900) && took < Duration::from_millis(3_300), "{took:?}");
    drain(service).await;
}

#[tokio::test(start_paused = true)]
async fn members_share_the_lanes_and_what_a_crash_left_comes_again() {
    let world = World::new().await;
    let (crashing, seen) = (Seen::default(), Seen::default());
    let hang = |State(seen): State<Seen>, Json(placed): Json<Placed>| async move {
        seen.note(&placed);
        std::future::pending::<()>().await;
    };
    let service = |seen: &Seen| Service::new("billing").with_state(seen.clone());
    let handlers = Handlers::new().handle(hang).with_policy(Policy::skip());
    let crashed = service(&crashing).on(&world.orders, handlers).start(&world.broker).await.unwrap();
    world.place(&["a:1", "b:1", "a:2"]).await;
    eventually("both are in hand", || crashing.all().len() == 2).await;
    drop(crashed);
    let handlers = Handlers::new().handle(note).with_members(2).with_policy(Policy::skip());
    let service = service(&seen).on(&world.orders, handlers).start(&world.broker).await.unwrap();
    eventually("all three", || service.counted().handled == 3).await;
    drain(service).await;
    assert_eq!((seen.of("a"), seen.of("b")), (vec!["a:1".into(), "a:2".into()], vec!["b:1".into()]));
}

#[tokio::test(start_paused = true)]
async fn draining_ends_what_runs_and_gives_back_what_waits() {
    let world = World::new().await;
    let seen = Seen::default();
    let slow = |State(seen): State<Seen>, Json(placed): Json<Placed>| async move {
        let time = if placed.order == "b" { 60 } else { 2 };
        tokio::time::sleep(Duration::from_secs(time)).await;
        seen.note(&placed);
    };
    let handlers = Handlers::new().handle(slow).with_policy(Policy::skip());
    let service = Service::new("billing").with_state(seen.clone()).on(&world.orders, handlers);
    let service = service.start(&world.broker).await.unwrap();
    world.place(&["a:1", "a:2", "b:1"]).await;
    eventually("they are in hand", || service.counted().received == 3).await;
    let began = world.clock.elapsed();
    drain(service).await;
    assert!(world.clock.elapsed() - began <= Duration::from_secs(5));
    assert_eq!(seen.all(), ["a:1"]);
    // What was released was not tried.
    let handlers = Handlers::new()
        .handle(|State(seen): State<Seen>, attempt: Attempt, Json(placed): Json<Placed>| async move {
            assert_eq!(attempt, Attempt::Exact(1));
            seen.note(&placed);
        })
        .with_policy(Policy::skip());
    let service = Service::new("billing").with_state(seen.clone()).on(&world.orders, handlers);
    let service = service.start(&world.broker).await.unwrap();
    eventually("the others", || service.counted().handled == 2).await;
    drain(service).await;
    assert_eq!((seen.of("a"), seen.of("b")), (vec!["a:1".into(), "a:2".into()], vec!["b:1".into()]));
}

#[tokio::test]
async fn what_is_missing_is_said_before_anything_is_made() {
    let world = World::new().await;
    let check = async |service: Service<Seen, tidegate_runtime::Ready>, words: &str| {
        let error = service.start(&world.broker).await.unwrap_err();
        assert_eq!(error.code(), code::CONFIG_INVALID);
        assert!(error.to_string().contains(words), "{error}");
    };
    let service = || Service::new("billing").with_state(Seen::default());
    check(service().on(&world.orders, Handlers::new().handle(note)), "the service has no store").await;
    check(service().on(&world.orders, Handlers::new()), "there is no handler").await;
    let twice = Handlers::new().handle(note).handle(note).with_policy(Policy::skip());
    check(service().on(&world.orders, twice), "two handlers want messages of the kind order.placed.v1").await;
    let once = || Handlers::new().handle(note).with_policy(Policy::skip());
    check(service().on(&world.orders, once()).on(&world.orders, once()), "stands twice").await;
    let named = Service::new("Billing!").with_state(Seen::default()).on(&world.orders, once());
    check(named, "Billing!").await;
    let verified = service().with_topology(Apply::Verify).on(&world.orders, once());
    let error = verified.start(&world.broker).await.unwrap_err();
    assert_eq!(error.code(), code::CHANNEL_DIFFERS);
    assert!(error.to_string().contains("orders"), "{error}");
}
