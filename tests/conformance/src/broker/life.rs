//! Groups E to G: connections, what is left of them, and what is declared.

use std::time::Duration;

use tidegate_core::{Apply, Channel, Difference, Subscription, Topology};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::worker::{Crew, Manner};
use crate::case::{
    ARRIVAL, Check, Context, ack, ensure, message, messages, publish, publish_until_stored, take,
};

/// What was open before goes on behind a restart.
pub(crate) async fn restart(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("restarted")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut crew = Crew::new(&context.oracle);
    let slow = Manner { slow: Duration::from_millis(10), ..Manner::default() };
    crew.hire(context.broker.subscribe(&subscription).await?, "s", slow);
    let mut producer = context.broker.producer(&channel).await?;
    let all = messages(20, context.size.count(400));
    let (before, behind) = all.split_at(all.len() / 2);
    publish(&mut *producer, &context.oracle, before).await?;
    // The consumer has some of them in hand.
    let new = context.fixture.restart().await?;
    publish_until_stored(&mut *producer, &context.oracle, behind).await?;
    crew.finish(&["s"], ARRIVAL).await?;
    context.broker = new;
    Ok(())
}

/// What this process has: tasks that run, and open files.
fn held() -> (usize, usize) {
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    (Handle::current().metrics().num_alive_tasks(), files)
}

/// Everything is opened and closed again and again, and nothing of it stays.
pub(crate) async fn nothing_stays(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("opened")?.with_lanes(1);
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let rounds = context.size.count(12);
    let mut before = (0, 0);
    for round in 0..rounds + 3 {
        if round == 3 {
            // What is made once is there by now.
            before = held();
        }
        let broker = context.fixture.connect().await?;
        let mut producer = broker.producer(&channel).await?;
        publish(&mut *producer, &context.oracle, &[message("k", round)]).await?;
        let mut consumer = broker.subscribe(&subscription).await?;
        let came = take(&mut *consumer, 1, ARRIVAL).await?;
        ensure!(came.len() == 1, "round {round}: the message did not come");
        ack(&*consumer, &came).await?;
        consumer.close(ARRIVAL).await?;
        producer.close(ARRIVAL).await?;
        broker.close(ARRIVAL).await?;
    }
    // Connections end beside.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let (now, most) = (held(), rounds / 2);
        if now.0 < before.0 + most && now.1 < before.1 + most {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "behind {rounds} rounds there are {now:?} tasks and files, and there were {before:?}"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

/// Verifying names everything that is not as declared, and makes nothing of it.
pub(crate) async fn drift(context: &mut Context<'_>) -> Check {
    let (there, absent) = (Channel::new("drifted")?.with_lanes(2), Channel::new("absent")?);
    context.declare(&there, &["s"]).await?;
    let wanted = there.clone().with_lanes(3);
    let mut topology = Topology::of(&wanted)
        .and(&Subscription::new(&wanted, "s")?)
        .and(&Subscription::new(&wanted, "other")?)
        .and(&Subscription::new(&absent, "s")?);
    topology.channels.push(absent.clone());
    for _ in 0..2 {
        let found = context.broker.apply(&topology, Apply::Verify).await?;
        let has = |wanted: &Difference| found.contains(wanted);
        let lanes = Difference::ChannelDiffers {
            channel: there.name.clone(),
            setting: "lanes",
            wanted: "3".to_owned(),
            found: "2".to_owned(),
        };
        ensure!(has(&lanes), "two lanes instead of three are told as {found:?}");
        ensure!(
            has(&Difference::ChannelMissing(absent.name.clone())),
            "a channel that is not there: {found:?}"
        );
        let missing = |channel: &Channel, name: &str| {
            let name = tidegate_core::Name::new(name)?;
            Ok::<_, tidegate_core::Error>(Difference::SubscriptionMissing {
                channel: channel.name.clone(),
                name,
            })
        };
        ensure!(has(&missing(&there, "other")?), "a subscription that is not there: {found:?}");
        ensure!(!has(&missing(&there, "s")?), "a subscription that is there: {found:?}");
    }
    let found = context.broker.apply(&Topology::of(&there), Apply::Verify).await?;
    ensure!(found.is_empty(), "what is as declared differs: {found:?}");
    let refused = context.broker.apply(&Topology::of(&wanted), Apply::Create).await.err();
    ensure!(
        refused.as_ref().is_some_and(|error| error.code() == tidegate_core::error::code::CHANNEL_DIFFERS),
        "a channel that differs was made anew, or refused as {refused:?}"
    );
    Ok(())
}
