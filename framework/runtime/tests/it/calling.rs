use futures::future::join_all;
use tidegate_core::SystemIds;
use tidegate_core::error::code;
use tidegate_runtime::{Caller, Failure, Handlers, Json, Policy, Service};

use super::watched::Watched;
use super::*;

#[derive(Debug, Serialize, Deserialize)]
struct Priced {
    total: u32,
}

impl Typed for Priced {
    const KIND: &str = "order.priced.v1";
}

async fn price(Json(placed): Json<Placed>) -> Result<Json<Priced>, Failure> {
    match &*placed.order {
        "slow" => tokio::time::sleep(Duration::from_secs(3)).await,
        "bad" => return Err(Failure::never("no such order")),
        _ => {}
    }
    Ok(Json(Priced { total: placed.number * 2 }))
}

#[tokio::test(start_paused = true)]
async fn a_thousand_questions_at_once_get_their_own_replies_and_late_ones_are_counted() {
    let world = World::new().await;
    let handlers = Handlers::new().handle(price).with_policy(Policy::skip().with_attempts(1));
    let service = Service::new("pricing").on(&world.orders, handlers).start(&world.broker).await.unwrap();
    let caller =
        Caller::open(&*world.broker, &world.orders, "shop-1", Arc::new(SystemIds), Arc::clone(&world.clock))
            .await
            .unwrap();
    let ask = |order: &str, number| {
        let (caller, order) = (caller.clone(), order.to_owned());
        async move { caller.call::<_, Priced>(Placed { order, number }, Duration::from_secs(2)).await }
    };
    let replies = join_all((0..1_000).map(|number| ask("some", number))).await;
    for (number, reply) in replies.into_iter().enumerate() {
        assert_eq!(reply.unwrap().total as usize, number * 2);
    }
    let error = ask("slow", 1).await.unwrap_err();
    assert_eq!(error.code(), code::TIMED_OUT);
    assert!(error.to_string().contains("no reply came within 2s"), "{error}");
    eventually("the late reply", || caller.late() == 1).await;
    let error = ask("bad", 1).await.unwrap_err();
    assert_eq!(error.to_string(), "TG0058 call-failed: no such order");
    drain(service).await;
}

/// The next one of the name has the replies at once, and does not wait until a lease is over.
#[tokio::test(start_paused = true)]
async fn a_caller_that_is_closed_tells_who_waits_and_leaves_its_replies() {
    let world = World::new().await;
    let handlers = Handlers::new().handle(price).with_policy(Policy::skip().with_attempts(1));
    let service = Service::new("pricing").on(&world.orders, handlers).start(&world.broker).await.unwrap();
    let open = || {
        let (ids, clock) = (Arc::new(SystemIds), Arc::clone(&world.clock));
        Caller::open(&*world.broker, &world.orders, "shop-1", ids, clock)
    };
    let limit = Duration::from_secs(60);
    let caller = open().await.unwrap();
    let waiting = {
        let caller = caller.clone();
        async move { caller.call::<_, Priced>(Placed { order: "slow".to_owned(), number: 1 }, limit).await }
    };
    let closing = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        caller.close(limit).await
    };
    let begin = tokio::time::Instant::now();
    let (waited, closed) = futures::join!(waiting, closing);
    closed.unwrap();
    assert_eq!(waited.unwrap_err().code(), code::STOPPED);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    caller.close(limit).await.unwrap();
    let next = open().await.unwrap();
    let ask = |caller: Caller| async move {
        caller.call::<_, Priced>(Placed { order: "some".to_owned(), number: 2 }, limit).await
    };
    assert_eq!(ask(caller).await.unwrap_err().code(), code::STOPPED);
    let begin = tokio::time::Instant::now();
    assert_eq!(ask(next.clone()).await.unwrap().total, 4);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    next.close(limit).await.unwrap();
    drain(service).await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_twice_at_once_does_not_take_the_reply_from_the_first() {
    let world = World::new().await;
    let handlers = Handlers::new().handle(price).with_policy(Policy::skip().with_attempts(1));
    let service = Service::new("pricing").on(&world.orders, handlers).start(&world.broker).await.unwrap();
    let (ids, clock) = (Arc::new(SystemIds), Arc::clone(&world.clock));
    let caller = Caller::open(&*world.broker, &world.orders, "shop-1", ids, clock).await.unwrap();
    let ask = || caller.call_message(placed("some:1"), Duration::from_secs(2));
    let (first, second) = futures::join!(ask(), ask());
    assert_eq!(&*first.unwrap().kind, Priced::KIND);
    assert_eq!(second.unwrap_err().code(), code::CONFIG_INVALID);
    drain(service).await;
}

#[tokio::test(start_paused = true)]
async fn replies_that_come_together_are_settled_together() {
    let (world, calls) = Watched::world().await;
    let handlers = Handlers::new().handle(price).with_policy(Policy::skip().with_attempts(1));
    let service = Service::new("pricing").on(&world.orders, handlers).start(&world.broker).await.unwrap();
    let (ids, clock) = (Arc::new(SystemIds), Arc::clone(&world.clock));
    let caller = Caller::open(&*world.broker, &world.orders, "shop-1", ids, clock).await.unwrap();
    let ask = |number| {
        let question = Placed { order: format!("o{number}"), number };
        caller.call::<_, Priced>(question, Duration::from_secs(60))
    };
    let replies = join_all((0..1_000).map(ask)).await;
    assert!(replies.iter().all(Result::is_ok));
    let settles = calls.count("settle replies.shop-1");
    assert!(settles <= 200, "{settles}");
    drain(service).await;
    assert_eq!(calls.count("close replies.shop-1"), 1, "the service ends what it replies with");
    assert_eq!(calls.count("close orders.dead"), 1);
}
