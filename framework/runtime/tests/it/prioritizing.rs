use tidegate_core::error::code;
use tidegate_runtime::{Handlers, Info, Policy, Priority, Service, State};

use super::*;

/// What is handled, by the first letters of the levels.
type Order = Arc<Mutex<Vec<char>>>;

async fn handle(State(order): State<Order>, info: Info, _: Message) {
    tokio::time::sleep(Duration::from_millis(1)).await;
    let level = match info.channel.as_str() {
        "orders.high" => 'h',
        "orders.low" => 'l',
        _ => 'n',
    };
    order.lock().unwrap().push(level);
}

/// Starts a service, with so many messages of each level that are there already.
async fn start(world: &World, order: &Order, counts: [usize; 3], handlers: Handlers<Order>) -> Running {
    for (priority, count) in Priority::ALL.into_iter().zip(counts) {
        let channel = priority.channel(&world.orders).unwrap();
        let subscription = Subscription::new(&channel, "billing").unwrap();
        world.broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
        let messages: Vec<_> =
            (0..count).map(|number| Message::with_id(format!("{priority:?}{number}"), "shop", "t")).collect();
        send(&mut *world.broker.producer(&channel).await.unwrap(), &messages).await;
    }
    let handlers = handlers.handle(handle).with_priorities().with_policy(Policy::skip());
    let service = Service::new("billing").with_state(Arc::clone(order)).on(&world.orders, handlers);
    service.start(&world.broker).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn levels_have_their_shares_as_long_as_all_have_messages() {
    let world = World::new().await;
    let order = Order::default();
    let handlers = Handlers::new().with_concurrency(4);
    let service = start(&world, &order, [200, 200, 200], handlers).await;
    let began = world.clock.elapsed();
    eventually("all of them", || service.counted().handled == 600).await;
    let took = world.clock.elapsed() - began;
    // 600 by 4 at once, of a millisecond each: nobody waits for a level that has none.
    assert!(took < Duration::from_millis(200), "{took:?}");
    drain(service).await;
    let order = order.lock().unwrap();
    let count = |level: char, of: &[char]| of.iter().filter(|handled| **handled == level).count();
    let all = &order[..168];
    let (high, normal, low) = (count('h', all), count('n', all), count('l', all));
    assert!((120..=136).contains(&high), "128 of 168 are high: {high}");
    assert!((26..=38).contains(&normal), "32 are normal: {normal}");
    assert!((6..=10).contains(&low), "8 are low: {low}");
    // When there are no more of the first, four of five are normal.
    let last = order.iter().rposition(|level| *level == 'h').unwrap();
    let normal = count('n', &order[last + 10..last + 110]);
    assert!((74..=86).contains(&normal), "80 of 100 are normal: {normal}");
}

#[tokio::test(start_paused = true)]
async fn one_level_alone_has_everything_and_all_of_them_keep_to_one_rate() {
    let world = World::new().await;
    let order = Order::default();
    let service = start(&world, &order, [0, 0, 100], Handlers::new().with_concurrency(4)).await;
    let began = world.clock.elapsed();
    eventually("all of them", || service.counted().handled == 100).await;
    assert!(world.clock.elapsed() - began < Duration::from_millis(60));
    drain(service).await;

    let world = World::new().await;
    let service = start(&world, &order, [11, 10, 10], Handlers::new().with_rate(10)).await;
    let began = world.clock.elapsed();
    eventually("all of them", || service.counted().handled == 31).await;
    let took = world.clock.elapsed() - began;
    assert!(took >= Duration::from_millis(2_900) && took < Duration::from_millis(3_300), "{took:?}");
    drain(service).await;
}

#[tokio::test]
async fn a_level_is_no_other_input() {
    let world = World::new().await;
    let high = Priority::High.channel(&world.orders).unwrap();
    let handlers = || Handlers::new().handle(|_: Message| async {}).with_policy(Policy::skip());
    let service =
        Service::new("billing").on(&world.orders, handlers().with_priorities()).on(&high, handlers());
    let error = service.start(&world.broker).await.unwrap_err();
    assert!(
        error.code() == code::CONFIG_INVALID && error.to_string().contains("orders.high stands twice"),
        "{error}"
    );
}
