//! Group B: what is there is looked at, and left as it is.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_core::port::{Browse, Seen};
use tidegate_core::{Apply, Channel, Lane, Message, Start, Subscription, Topology};
use tokio::time::{Instant, sleep};

use crate::case::{ARRIVAL, Check, Context, QUIET, ack, ensure, messages, publish, take_exactly};

/// Looks until so many were seen, or nothing has come for a long time; then a while for more.
async fn look(browse: &mut dyn Browse, count: usize) -> Check<Vec<Seen>> {
    let (mut seen, until) = (Vec::new(), Instant::now() + ARRIVAL);
    while seen.len() < count && Instant::now() < until {
        let max = count - seen.len();
        browse.next(max, Duration::from_millis(100), &mut seen).await?;
    }
    ensure!(seen.len() == count, "{} of {count} messages were seen", seen.len());
    browse.next(1, QUIET, &mut seen).await?;
    ensure!(seen.len() == count, "{count} messages were seen, and then {:?}", seen[count].message);
    Ok(seen)
}

/// That these were seen, each lane in its order.
fn are(seen: &[Seen], published: &[Message], lanes: u32) -> Check {
    let mut by_lane: BTreeMap<Lane, Vec<&Message>> = BTreeMap::new();
    for seen in seen {
        by_lane.entry(seen.lane).or_default().push(&seen.message);
    }
    for lane in (0..lanes).map(Lane) {
        let wanted: Vec<_> = published.iter().filter(|message| message.lane(lanes) == lane).collect();
        let found = by_lane.remove(&lane).unwrap_or_default();
        ensure!(found == wanted, "in {lane:?} {found:?} were seen instead of {wanted:?}");
    }
    ensure!(by_lane.is_empty(), "these lanes are none: {by_lane:?}");
    Ok(())
}

pub(crate) async fn browse(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("looked-at")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    let all = messages(10, context.size.count(150));
    let (first, later) = all.split_at(all.len() * 2 / 3);
    publish(&mut *producer, &context.oracle, first).await?;

    let mut earliest = context.broker.browse(&channel.name, &Start::Earliest).await?;
    are(&look(&mut *earliest, first.len()).await?, first, channel.lanes)?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let deliveries = take_exactly(&mut *consumer, first.len()).await?;

    let mut latest = context.broker.browse(&channel.name, &Start::Latest).await?;
    publish(&mut *producer, &context.oracle, later).await?;
    are(&look(&mut *earliest, later.len()).await?, later, channel.lanes)?;
    are(&look(&mut *latest, later.len()).await?, later, channel.lanes)?;

    ack(&*consumer, &deliveries).await?;
    let rest = take_exactly(&mut *consumer, later.len()).await?;
    ack(&*consumer, &rest).await?;
    // What is settled goes, whoever is looking.
    let until = Instant::now() + ARRIVAL;
    while context.kept(&channel).await?.is_some_and(|kept| kept > 0) {
        ensure!(Instant::now() < until, "what is settled is kept while somebody looks");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

pub(crate) async fn list(context: &mut Context<'_>) -> Check {
    let mut wanted = Topology::default();
    for (name, lanes) in [("listed-a", 1), ("listed-b", 3), ("listed.c", 8)] {
        let channel = Channel::new(name)?.with_lanes(lanes).with_limits(1_000, 1 << 20);
        for subscription in ["one", "two"] {
            wanted.subscriptions.push(Subscription::new(&channel, subscription)?);
        }
        wanted.channels.push(channel);
    }
    context.broker.apply(&wanted, Apply::Create).await?;
    let found = context.broker.topology().await?;
    ensure!(found == wanted, "{found:?} is listed instead of {wanted:?}");
    let gone = wanted.subscriptions.remove(2);
    if context.capabilities().unregister.is_there() {
        context.broker.unregister(&gone).await?;
        let found = context.broker.topology().await?;
        ensure!(found == wanted, "behind unregistering {found:?} is listed instead of {wanted:?}");
    }
    Ok(())
}
