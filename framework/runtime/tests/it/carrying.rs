use std::collections::BTreeMap;

use tidegate_core::error::code;
use tidegate_runtime::{Bridge, Filter, Handlers, Policy, Router, Sender, Service};

use super::watched::Watched;
use super::*;

/// Everything that comes to a subscription until nothing has come for a while: the numbers of each order.
async fn drained(broker: &dyn Broker, subscription: &Subscription) -> BTreeMap<String, Vec<u32>> {
    let mut receiver =
        tidegate_runtime::Receiver::open(broker, subscription, SystemClock::shared()).await.unwrap();
    let mut seen: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    while let Some(delivery) = receiver.next(Duration::from_millis(300)).await.unwrap() {
        let placed: Placed = serde_json::from_slice(&delivery.message.data).unwrap();
        seen.entry(placed.order).or_default().push(placed.number);
        receiver.settle(&[delivery.token]).await.unwrap();
    }
    seen
}

#[tokio::test]
async fn two_sites_have_equal_messages_and_none_goes_in_a_ring() {
    let (here, there) = (World::new().await, World::new().await);
    let subscription = Subscription::new(&here.orders, "all").unwrap();
    for world in [&here, &there] {
        world.subscribe("all").await;
    }
    let bridge = |from, to| Bridge::new(&here.orders, from, to).unwrap();
    let (east, eastward) = bridge("west", "east").start(&here.broker, &*there.broker).await.unwrap();
    let (west, westward) = bridge("east", "west").start(&there.broker, &*here.broker).await.unwrap();
    for number in 0..50 {
        here.place(&[&format!("a:{number}"), &format!("b:{number}")]).await;
        there.place(&[&format!("c:{number}"), &format!("d:{number}")]).await;
        if number == 20 {
            here.memory.cut();
            there.memory.lose_answers(3);
        }
    }
    eventually("all are carried", || eastward.carried() >= 100 && westward.carried() >= 100).await;
    eventually("none goes back", || eastward.turned_back() >= 100 && westward.turned_back() >= 100).await;
    drain(east).await;
    drain(west).await;
    let (mut west, east) =
        (drained(&*here.broker, &subscription).await, drained(&*there.broker, &subscription).await);
    assert_eq!(west, east);
    assert_eq!(west.remove("a").unwrap(), (0..50).collect::<Vec<_>>());
    assert_eq!(west.len(), 3);
    assert_eq!(Bridge::new(&here.orders, "west", "west").unwrap_err().code(), code::CONFIG_INVALID);
}

#[tokio::test]
async fn messages_are_sent_where_they_belong_and_others_become_dead_letters() {
    let world = World::new().await;
    let (large, small) = (Channel::new("large").unwrap(), Channel::new("small").unwrap());
    let mut senders = Vec::new();
    for channel in [&large, &small] {
        let subscription = Subscription::new(channel, "all").unwrap();
        world.broker.apply(&Topology::of(channel).and(&subscription), Apply::Create).await.unwrap();
        let clock = Arc::clone(&world.clock);
        senders.push(
            Sender::open(&*world.broker, channel)
                .with_clock(clock)
                .with_patience(Duration::from_secs(5))
                .await
                .unwrap(),
        );
    }
    let router = Router::new()
        .route(Filter::new("message.data.number >= 10").unwrap(), senders[0].clone())
        .route(Filter::new("message.subject != 'odd'").unwrap(), senders[1].clone());
    let handlers = Handlers::new().handle(router.into_handler()).with_policy(Policy::skip());
    let service = Service::new("router").on(&world.orders, handlers).start(&world.broker).await.unwrap();
    world.place(&["a:1", "a:10", "odd:2", "b:30", "a:3"]).await;
    let strange = Message::with_id("strange", "shop", "t").with_data("text/plain", "no JSON");
    send(&mut *world.broker.producer(&world.orders).await.unwrap(), &[strange]).await;
    eventually("all of them", || service.counted().handled == 4 && service.counted().dead == 2).await;
    drain(service).await;
    let of = |channel: &Channel| Subscription::new(channel, "all").unwrap();
    let large = drained(&*world.broker, &of(&large)).await;
    assert_eq!(large, BTreeMap::from([("a".into(), vec![10]), ("b".into(), vec![30])]));
    assert_eq!(drained(&*world.broker, &of(&small)).await, BTreeMap::from([("a".into(), vec![1, 3])]));
    let dead: BTreeMap<_, _> = world
        .dead()
        .await
        .into_iter()
        .map(|dead| (dead.id.to_string(), dead.headers.get(dead_letter::ERROR).unwrap().to_owned()))
        .collect();
    assert!(dead["odd:2"].contains("no route takes messages of the kind order.placed.v1"), "{dead:?}");
    assert!(dead["strange"].contains("message.data.number >= 10"), "{dead:?}");
}

#[tokio::test(start_paused = true)]
async fn a_bridge_that_is_drained_ends_what_it_carries_with() {
    let (here, (there, calls)) = (World::new().await, Watched::world().await);
    let bridge = Bridge::new(&here.orders, "west", "east").unwrap();
    let (bridge, carried) = bridge.start(&here.broker, &*there.broker).await.unwrap();
    there.subscribe("all").await;
    calls.delay("publish orders", Duration::from_secs(3));
    here.place(&["a:1"]).await;
    eventually("it is on its way", || calls.count("publish orders") == 1).await;
    drain(bridge).await;
    assert_eq!((carried.carried(), calls.count("close orders")), (1, 1));
}

/// Found by a reading that tried to break it: one that was larger than the other side takes was tried for ever, and nobody was told.
#[tokio::test(start_paused = true)]
async fn what_can_never_be_carried_is_a_dead_letter_and_the_others_are_carried() {
    let (here, (there, calls)) = (World::new().await, Watched::world().await);
    let bridge = Bridge::new(&here.orders, "west", "east").unwrap();
    let (bridge, carried) = bridge.start(&here.broker, &*there.broker).await.unwrap();
    there.subscribe("all").await;
    calls.refuse("a:1");
    here.place(&["a:1", "a:2", "b:1"]).await;
    eventually("the others", || carried.carried() == 2).await;
    eventually("the one", || bridge.counted().dead == 1).await;
    drain(bridge).await;
    let dead = here.dead().await;
    assert_eq!(dead.iter().map(|letter| &*letter.id).collect::<Vec<_>>(), ["a:1"]);
    assert_eq!(dead[0].headers.get(tidegate_runtime::dead_letter::REASON), Some("refused"));
}
