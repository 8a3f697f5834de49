//! Group C: order of keys.

use std::time::Duration;

use tidegate_core::port::{Producer, Settlement};
use tidegate_core::{Channel, Lane, Message, Subscription};
use tokio::time::{Instant, sleep};

use super::worker::{Crew, Manner};
use crate::case::{
    ARRIVAL, Check, Context, Stop, ack, dropped_after, ensure, message, messages, publish,
    publish_until_stored, settle, take, take_exactly,
};

const SLOW: Manner = Manner { failing: 0, slow: Duration::from_millis(2), hasty: false };

/// A channel, its subscription, and messages for it.
async fn scene(
    context: &mut Context<'_>,
    name: &str,
    quick: usize,
) -> Check<(Channel, Subscription, Vec<Message>)> {
    let channel = Channel::new(name)?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let count = context.size.count(quick);
    Ok((channel, subscription, messages((count / 20).min(1_000), count)))
}

pub(crate) async fn plain(context: &mut Context<'_>) -> Check {
    let (channel, subscription, all) = scene(context, "plain", 2_000).await?;
    let mut crew = Crew::new(&context.oracle);
    for _ in 0..2 {
        crew.hire(context.broker.subscribe(&subscription).await?, "s", SLOW);
    }
    publish(&mut *context.broker.producer(&channel).await?, &context.oracle, &all).await?;
    crew.finish(&["s"], ARRIVAL).await
}

pub(crate) async fn failing(context: &mut Context<'_>) -> Check {
    let (channel, subscription, all) = scene(context, "failing", 1_000).await?;
    let mut crew = Crew::new(&context.oracle);
    let manner = Manner { failing: 5, hasty: true, ..Manner::default() };
    for _ in 0..2 {
        crew.hire(context.broker.subscribe(&subscription).await?, "s", manner);
    }
    publish(&mut *context.broker.producer(&channel).await?, &context.oracle, &all).await?;
    crew.finish(&["s"], ARRIVAL).await
}

pub(crate) async fn rebalance(context: &mut Context<'_>) -> Check {
    let (channel, subscription, all) = scene(context, "moving", 2_000).await?;
    let other = context.fixture.connect().await?;
    let mut crew = Crew::new(&context.oracle);
    let manner = Manner { failing: 2, ..SLOW };
    crew.hire(context.broker.subscribe(&subscription).await?, "s", manner);
    let mut producer = context.broker.producer(&channel).await?;
    let mut guests = std::collections::VecDeque::new();
    for (round, part) in all.chunks(all.len() / 10).enumerate() {
        publish(&mut *producer, &context.oracle, part).await?;
        let broker = if round % 2 == 0 { &other } else { &context.broker };
        guests.push_back(crew.hire(broker.subscribe(&subscription).await?, "s", manner));
        sleep(Duration::from_millis(100)).await;
        if guests.len() > 2
            && let Some(guest) = guests.pop_front()
        {
            guest.send_home();
        }
    }
    crew.finish(&["s"], ARRIVAL).await
}

pub(crate) async fn reconnect(context: &mut Context<'_>) -> Check {
    let (channel, subscription, all) = scene(context, "broken", 1_000).await?;
    let parts: Vec<&[Message]> = all.chunks(all.len().div_ceil(6)).collect();
    let mut crew = Crew::new(&context.oracle);
    crew.hire(context.broker.subscribe(&subscription).await?, "s", SLOW);
    let mut producer = context.broker.producer(&channel).await?;
    let mut can_cut = true;
    for part in &parts[..3] {
        publish_until_stored(&mut *producer, &context.oracle, part).await?;
        sleep(Duration::from_millis(30)).await;
        let hook = context.fixture.cut().await?;
        can_cut = can_cut && context.needs(hook);
    }
    producer.close(ARRIVAL).await?;
    context.broker.close(ARRIVAL).await?;
    context.broker = context.fixture.restart().await?;
    let mut producer = context.broker.producer(&channel).await?;
    crew.hire(context.broker.subscribe(&subscription).await?, "s", SLOW);
    for part in &parts[3..] {
        publish_until_stored(&mut *producer, &context.oracle, part).await?;
        if can_cut {
            context.fixture.cut().await?;
        }
        sleep(Duration::from_millis(30)).await;
    }
    crew.finish(&["s"], ARRIVAL).await
}

pub(crate) async fn blocked_key(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("blocked")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    // Warm, so that the first time is not measured.
    latencies(context, &mut *producer, &mut *consumer).await?;
    let before = latencies(context, &mut *producer, &mut *consumer).await?;
    publish(&mut *producer, &context.oracle, &[message("stuck", 0)]).await?;
    let stuck = take_exactly(&mut *consumer, 1).await?;
    settle(&*consumer, &stuck, &Settlement::Retry { after: Duration::from_secs(600) }).await?;
    // Behind it many of its own key.
    let behind: Vec<_> = (1..50).map(|version| message("stuck", version)).collect();
    publish(&mut *producer, &context.oracle, &behind).await?;
    // The machine is shared: what is meant is another order of magnitude, as of a lane that waits, every time.
    let most = before * 2 + Duration::from_millis(100);
    let mut least = Duration::MAX;
    for _ in 0..3 {
        least = least.min(latencies(context, &mut *producer, &mut *consumer).await?);
        if least <= most {
            return Ok(());
        }
    }
    ensure!(least <= most, "other keys took {least:?} while one was blocked, and {before:?} before");
    Ok(())
}

/// The time from publishing to delivery, for 99 of 100 messages.
async fn latencies(
    context: &Context<'_>,
    producer: &mut dyn Producer,
    consumer: &mut dyn tidegate_core::port::Consumer,
) -> Check<Duration> {
    let mut times = Vec::new();
    for round in 0..context.size.count(100) {
        let sent = [message(&format!("free-{}", round % 16), round)];
        publish(producer, &context.oracle, &sent).await?;
        let begin = Instant::now();
        let came = take(consumer, 1, ARRIVAL).await?;
        ensure!(came.len() == 1, "a message of another key did not come while one was blocked");
        ensure!(came[0].message.id == sent[0].id, "{:?} came out of its turn", came[0].message);
        times.push(begin.elapsed());
        ack(consumer, &came).await?;
    }
    times.sort_unstable();
    Ok(times[times.len() * 99 / 100])
}

pub(crate) async fn publish_again(context: &mut Context<'_>) -> Check {
    // Narrow, so that publishing is refused in the midst of a batch too.
    let channel = Channel::new("again")?.with_limits(10, 1 << 20);
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut crew = Crew::new(&context.oracle);
    crew.hire(context.broker.subscribe(&subscription).await?, "s", SLOW);
    let mut producer = context.broker.producer(&channel).await?;
    let mut random = fastrand::Rng::with_seed(29);
    let all = messages(5, context.size.count(600));
    for (round, batch) in all.chunks(30).enumerate() {
        if round % 3 == 0 {
            context.fixture.lose_answers(1).await?;
        }
        let until = Instant::now() + ARRIVAL;
        let mut open: Vec<Message> = batch.to_vec();
        while !open.is_empty() {
            ensure!(Instant::now() < until, "messages could not be stored: {:?}", open[0]);
            context.oracle.announce(&open);
            let polls = 1 << random.u32(0..15);
            let Some(sent) = dropped_after(polls, producer.publish(&open)).await else { continue };
            context.oracle.answered(&open, &sent)?;
            // In order, before newer ones: from the first that is not known to be stored.
            let first = sent.iter().position(|sent| !sent.is_stored()).unwrap_or(open.len());
            open.drain(..first);
        }
    }
    crew.finish(&["s"], ARRIVAL).await
}

pub(crate) async fn lane_map(context: &mut Context<'_>) -> Check {
    // As Kafka's own client hashes them; the rest is arithmetic.
    const HASHES: &[(&str, i32)] = &[
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ];
    for lanes in [1, 3, 8, 32] {
        let channel = Channel::new(format!("lanes-{lanes}"))?.with_lanes(lanes);
        let subscription = context.declare(&channel, &["s"]).await?.remove(0);
        let mut producer = context.broker.producer(&channel).await?;
        let all: Vec<_> = HASHES.iter().map(|(key, _)| message(key, 0)).collect();
        publish(&mut *producer, &context.oracle, &all).await?;
        let mut consumer = context.broker.subscribe(&subscription).await?;
        for delivery in take_exactly(&mut *consumer, all.len()).await? {
            let key = delivery.message.subject.as_deref().unwrap_or_default();
            let Some((_, hash)) = HASHES.iter().find(|(known, _)| *known == key) else {
                return Err(Stop::Failed(format!("{key} came and was not published")));
            };
            let right = Lane((hash & 0x7fff_ffff).cast_unsigned() % lanes);
            ensure!(
                delivery.token.lane == right,
                "of {lanes} lanes {key} is in {:?}, and belongs to {right:?}",
                delivery.token.lane
            );
        }
    }
    Ok(())
}
