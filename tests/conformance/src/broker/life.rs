//! Groups E to G: connections, what is left of them, and what is declared.

use std::time::Duration;

use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Sent, Settlement, Signal};
use tidegate_core::{Apply, Channel, Difference, Subscription, Topology};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::worker::{Crew, Manner};
use crate::case::{
    ARRIVAL, Check, Context, QUIET, Stop, ack, ensure, message, messages, publish, publish_until_stored,
    take, take_exactly,
};
use crate::fixture::Hook;

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

/// How long those who publish may take to learn that there is nobody any more, and one look more.
const LEARNT: Duration = Duration::from_millis(1_500);

/// What the messages of a channel are in is removed behind everybody's back.
pub(crate) async fn removed(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("removed")?.with_lanes(2);
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &messages(10, 20)).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let came = take_exactly(&mut *consumer, 20).await?;
    let (settled, in_hand) = came.split_at(10);
    ack(&*consumer, settled).await?;
    let is_settled = |id: &str| settled.iter().any(|delivery| *delivery.message.id == *id);
    if let Hook::Cannot(why) = context.fixture.remove(&channel, &subscription).await? {
        return Err(Stop::NotApplicable(why.to_owned()));
    }
    let learnt = Instant::now() + LEARNT;
    let (mut more, until) = (Vec::new(), Instant::now() + ARRIVAL);
    let told = loop {
        match consumer.receive(10, QUIET, &mut more).await {
            Ok(Signal::Cancelled(error)) | Err(error) => break error,
            Ok(_) => ensure!(Instant::now() < until, "the consumer is not told within {ARRIVAL:?}"),
        }
    };
    let is_named = [code::CHANNEL_MISSING, code::SUBSCRIPTION_GONE].contains(&told.code());
    ensure!(is_named && told.verdict() == Verdict::Never, "the consumer is told {told:?}");
    let acks: Vec<_> = in_hand.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
    let ended = consumer.settler().settle(&acks).await;
    ensure!(!ended.iter().any(|ended| ended.is_done()), "what is gone is settled: {ended:?}");
    consumer.close(ARRIVAL).await?;

    tokio::time::sleep_until(learnt).await;
    let late = message("key-0", 100);
    let sent = producer.publish(std::slice::from_ref(&late)).await;
    let known = [code::CHANNEL_MISSING, code::SUBSCRIPTION_MISSING];
    match &sent[..] {
        [Sent::Refused(error)] => ensure!(known.contains(&error.code()), "it is refused with {error:?}"),
        [Sent::Unknown(_) | Sent::Stored { .. }] => {}
        other => ensure!(false, "{} answers to one message", other.len()),
    }
    // It may have been made anew. Then what is said to be stored is there, and what was settled is not.
    let is_there = match context.broker.subscribe(&subscription).await {
        Ok(mut heir) => {
            more.extend(take(&mut *heir, 20, 8 * QUIET).await.unwrap_or_default());
            heir.close(ARRIVAL).await?;
            more.iter().any(|delivery| delivery.message.id == late.id)
        }
        Err(_) => false,
    };
    ensure!(is_there || !sent[0].is_stored(), "what was published to nothing is said to be stored");
    let again = more.iter().find(|delivery| is_settled(&delivery.message.id));
    ensure!(again.is_none(), "what was settled came again: {again:?}");
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
