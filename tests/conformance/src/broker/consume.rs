//! Group B: what a consumer promises.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_core::port::{Consumer, Delivery, Sent, Settlement, Signal};
use tidegate_core::{Apply, Channel, Keep, Start, Subscription, Topology, error::code};
use tokio::time::Instant;

use super::refusal::dead_letter;
use super::worker::{Crew, Manner};
use crate::case::{
    ARRIVAL, Check, Context, QUIET, Stop, ack, dropped_after, ensure, message, messages, publish, settle,
    take, take_exactly,
};

pub(crate) async fn members_share(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("shared")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    let other = context.fixture.connect().await?;
    let mut crew = Crew::new(&context.oracle);
    let mut hands = Vec::new();
    for broker in [&context.broker, &context.broker, &other] {
        let consumer = broker.subscribe(&subscription).await?;
        hands.push(crew.hire(consumer, "s", Manner::default()));
    }
    let until = Instant::now() + ARRIVAL;
    let idle = |hands: &[super::worker::Hand]| hands.iter().any(|h| h.given.load(Ordering::Relaxed) == 0);
    while idle(&hands) && Instant::now() < until {
        publish(&mut *producer, &context.oracle, &messages(100, 100)).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    publish(&mut *producer, &context.oracle, &messages(100, context.size.count(300))).await?;
    crew.finish(&["s"], ARRIVAL).await?;
    let given: Vec<_> = hands.iter().map(|hand| hand.given.load(Ordering::Relaxed)).collect();
    ensure!(!given.contains(&0), "a member got nothing: {given:?}");
    Ok(())
}

pub(crate) async fn each_gets_all(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("fan")?;
    let names = ["a", "b", "c", "d", "e"];
    let subscriptions = context.declare(&channel, &names).await?;
    let mut crew = Crew::new(&context.oracle);
    for subscription in &subscriptions {
        let consumer = context.broker.subscribe(subscription).await?;
        crew.hire(consumer, subscription.name.as_str(), Manner::default());
    }
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &messages(50, context.size.count(500))).await?;
    crew.finish(&names, ARRIVAL).await
}

pub(crate) async fn offline(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("away")?;
    context.broker.apply(&Topology::of(&channel), Apply::Create).await?;
    let subscription = Subscription::new(&channel, "s")?;
    context.broker.subscribe(&subscription).await?.close(ARRIVAL).await?;
    let mut producer = context.broker.producer(&channel).await?;
    let all = messages(10, 100);
    publish(&mut *producer, &context.oracle, &all[..60]).await?;
    producer.close(ARRIVAL).await?;
    context.broker.close(ARRIVAL).await?;
    context.broker = context.fixture.restart().await?;
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &all[60..]).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let came = take_exactly(&mut *consumer, all.len()).await?;
    ensure!(
        came.iter().all(|delivery| !delivery.attempt.is_again()),
        "a message was never tried, and came again"
    );
    ack(&*consumer, &came).await
}

pub(crate) async fn unregister(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("kept")?;
    let subscriptions = context.declare(&channel, &["stays", "goes"]).await?;
    let [stays, goes] = &subscriptions[..] else { unreachable!("two were declared") };
    let mut producer = context.broker.producer(&channel).await?;
    let mut first = context.broker.subscribe(stays).await?;
    let mut gone = context.broker.subscribe(goes).await?;
    for _ in 0..2 {
        publish(&mut *producer, &context.oracle, &messages(5, 50)).await?;
        let came = take_exactly(&mut *first, 50).await?;
        ack(&*first, &came).await?;
    }
    let in_hand = take(&mut *gone, 10, ARRIVAL).await?;
    ensure!(in_hand.len() == 10, "the other one got nothing");
    kept(context, &channel, 100).await?;

    context.broker.unregister(goes).await?;
    kept(context, &channel, 0).await?;
    let until = Instant::now() + ARRIVAL;
    loop {
        match gone.receive(10, Duration::from_millis(100), &mut Vec::new()).await? {
            Signal::Cancelled(error) => {
                ensure!(error.code() == code::SUBSCRIPTION_GONE, "the consumer was told {error:?}");
                break;
            }
            signal => ensure!(Instant::now() < until, "the consumer goes on, and is told {signal:?}"),
        }
    }
    let settled = gone.settler().settle(&[(in_hand[0].token, Settlement::Ack)]).await;
    ensure!(settled[0].is_lost(), "settling what was unregistered gives {settled:?}");
    context.broker.unregister(goes).await?;

    publish(&mut *producer, &context.oracle, &messages(5, 50)).await?;
    let came = take_exactly(&mut *first, 50).await?;
    ack(&*first, &came).await?;
    kept(context, &channel, 0).await?;
    let mut again = context.broker.subscribe(goes).await?;
    let came = take(&mut *again, 1, QUIET).await?;
    ensure!(came.is_empty(), "registered again, it got {:?}", came[0].message);
    publish(&mut *producer, &context.oracle, &messages(5, 5)).await?;
    later(&in_hand, &take_exactly(&mut *again, 5).await?)
}

/// What came later of a lane came under a later ownership of it: what is noted elsewhere goes by that.
pub(crate) fn later(before: &[Delivery], behind: &[Delivery]) -> Check {
    for new in behind {
        let is_so = |old: &&Delivery| old.token.lane == new.token.lane && old.token.epoch >= new.token.epoch;
        if let Some(old) = before.iter().find(is_so) {
            let [old, new] = [old.token, new.token];
            ensure!(false, "the ownership of a lane is {} behind {}", new.epoch, old.epoch);
        }
    }
    Ok(())
}

/// How many messages are kept, as far as that can be seen. Brokers may take a moment to tidy up.
async fn kept(context: &mut Context<'_>, channel: &Channel, right: u64) -> Check {
    let until = Instant::now() + ARRIVAL;
    loop {
        match context.kept(channel).await? {
            Some(found) if found == right => return Ok(()),
            Some(found) => {
                ensure!(Instant::now() < until, "{found} messages are kept, and {right} are needed");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            None => {
                context.notes.push("not shown: what is kept cannot be seen".to_owned());
                return Ok(());
            }
        }
    }
}

pub(crate) async fn crash(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("crash")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    let all = messages(5, 30);
    publish(&mut *producer, &context.oracle, &all).await?;
    for attempt in 1..=3 {
        let mut consumer = context.broker.subscribe(&subscription).await?;
        let came = take(&mut *consumer, all.len(), ARRIVAL).await?;
        ensure!(came.len() == all.len(), "attempt {attempt}: {} of {} came", came.len(), all.len());
        for delivery in &came {
            let found = delivery.attempt;
            ensure!(
                found.number() == attempt.min(if counts(found) { 3 } else { 2 }),
                "attempt {attempt} is {found:?}"
            );
        }
        // Dropped, and not closed.
    }
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let came = take_exactly(&mut *consumer, all.len()).await?;
    ack(&*consumer, &came).await
}

fn counts(attempt: tidegate_core::port::Attempt) -> bool {
    !matches!(attempt, tidegate_core::port::Attempt::Flag(_))
}

pub(crate) async fn settle_twice(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("twice")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &messages(1, 2)).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let settler = consumer.settler();
    let came = take_exactly(&mut *consumer, 2).await?;
    let ack = |delivery: &Delivery| (delivery.token, Settlement::Ack);
    let answers = settler.settle(&[ack(&came[0]), ack(&came[0]), ack(&came[1])]).await;
    ensure!(answers.len() == 3, "{} answers to 3 settlements", answers.len());
    ensure!(answers[0].is_done() && answers[2].is_done(), "settling gave {answers:?}");
    let mut later = vec![];
    for how in [Settlement::Ack, Settlement::Release, Settlement::Retry { after: Duration::ZERO }] {
        later.extend(settler.settle(&[(came[0].token, how)]).await);
    }
    for answer in answers.iter().skip(1).chain(&later) {
        let can_not = matches!(answer, tidegate_core::port::Settled::Refused(_));
        ensure!(answer.is_done() || answer.is_lost() || can_not, "settling again gave {answer:?}");
    }
    let more = take(&mut *consumer, 1, QUIET).await?;
    ensure!(more.is_empty(), "settling again made a message come again");
    Ok(())
}

pub(crate) async fn reconnect(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("cut")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &messages(3, 9)).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let old = take_exactly(&mut *consumer, 9).await?;
    let hook = context.fixture.cut().await?;
    if !context.needs(hook) {
        return Err(Stop::NotRun(context.notes.join("; ")));
    }
    let batch: Vec<_> = old.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
    for (at, settled) in consumer.settler().settle(&batch).await.iter().enumerate() {
        ensure!(settled.is_lost(), "after the cut settling delivery {at} gives {settled:?}");
    }
    let new = take_exactly(&mut *consumer, 9).await?;
    let ids = |all: &[Delivery]| all.iter().map(|d| Arc::clone(&d.message.id)).collect::<BTreeSet<_>>();
    ensure!(ids(&old) == ids(&new), "other messages came again than were in hand");
    for settled in consumer.settler().settle(&batch).await {
        ensure!(settled.is_lost(), "a token of before the cut settles what came after it: {settled:?}");
    }
    ack(&*consumer, &new).await
}

pub(crate) async fn settled_stays(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("settled")?;
    let all = messages(40, context.size.count(200));
    let subscription = context.declare(&channel, &["s"]).await?.remove(0).with_window(all.len() + 1);
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &all).await?;
    let mut random = fastrand::Rng::with_seed(18);
    let mut open: BTreeSet<_> = all.iter().map(|message| Arc::clone(&message.id)).collect();
    for round in 0..4 {
        let mut consumer = context.broker.subscribe(&subscription).await?;
        let mut came = take_exactly(&mut *consumer, open.len()).await?;
        for delivery in &came {
            ensure!(open.contains(&delivery.message.id), "round {round}: a settled message came again");
            ensure!(
                !delivery.attempt.is_again(),
                "round {round}: what was released counts as {:?}",
                delivery.attempt
            );
        }
        random.shuffle(&mut came);
        came.truncate(came.len() / 2);
        ack(&*consumer, &came).await?;
        came.iter().for_each(|delivery| _ = open.remove(&delivery.message.id));
        let leftover = consumer.close(Duration::ZERO).await?;
        ensure!(
            leftover.released == open.len(),
            "{} were released, and {} in hand",
            leftover.released,
            open.len()
        );
        if round % 2 == 1 {
            context.broker.close(ARRIVAL).await?;
            context.broker = context.fixture.restart().await?;
        }
    }
    Ok(())
}

pub(crate) async fn release_is_free(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("release")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &messages(1, 1)).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    for round in 0..5 {
        let came = take_exactly(&mut *consumer, 1).await?;
        ensure!(!came[0].attempt.is_again(), "after {round} releases it is {:?}", came[0].attempt);
        settle(&*consumer, &came, &Settlement::Release).await?;
    }
    let came = take_exactly(&mut *consumer, 1).await?;
    settle(&*consumer, &came, &Settlement::Retry { after: Duration::ZERO }).await?;
    let came = take_exactly(&mut *consumer, 1).await?;
    ensure!(came[0].attempt.is_again(), "after a failure it is {:?}", came[0].attempt);
    Ok(())
}

pub(crate) async fn cancelled_receive(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("dropped")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let mut random = fastrand::Rng::with_seed(20);
    let (mut came, mut out) = (BTreeSet::new(), Vec::new());
    let rounds = context.size.count(500);
    // On a busy machine every call may be dropped too early for a while.
    let mut round = 0;
    while round < rounds || came.is_empty() && round < rounds * 20 {
        publish(&mut *producer, &context.oracle, &[message("k", round)]).await?;
        round += 1;
        // Its answer, if there is one, tells of what is in `out`.
        let polls = 1 << random.u32(0..17);
        if let Some(answer) = dropped_after(polls, consumer.receive(10, ARRIVAL, &mut out)).await {
            answer?;
        }
        ack(&*consumer, &out).await?;
        for delivery in out.drain(..) {
            ensure!(came.insert(Arc::clone(&delivery.message.id)), "a message came twice");
        }
    }
    ensure!(!came.is_empty(), "every call was dropped before it gave anything, so nothing was shown");
    while came.len() < round {
        let rest = take(&mut *consumer, (round - came.len()).min(100), ARRIVAL).await?;
        ensure!(!rest.is_empty(), "{} of {round} messages came", came.len());
        ack(&*consumer, &rest).await?;
        for delivery in rest {
            ensure!(came.insert(Arc::clone(&delivery.message.id)), "a message came twice");
        }
    }
    take_exactly(&mut *consumer, 0).await?;
    Ok(())
}

pub(crate) async fn window(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("window")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0).with_window(10);
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &messages(50, 100)).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let came = take(&mut *consumer, 100, QUIET * 3).await?;
    ensure!(came.len() == 10, "{} are in hand where the window is 10", came.len());
    ack(&*consumer, &came[..4]).await?;
    let came = take(&mut *consumer, 100, QUIET * 2).await?;
    ensure!(came.len() == 4, "4 were settled, and {} came", came.len());
    Ok(())
}

pub(crate) async fn names_apart(context: &mut Context<'_>) -> Check {
    for name in ["a.*", "a.>", "#", "a.#", "%", "a/b", "A", "a b"] {
        let found = Channel::new(name).err().map(|error| error.code());
        ensure!(found == Some(code::CONFIG_INVALID), "the channel name {name:?}: {found:?}");
    }
    let names = ["a", "a.b", "a_b", "a-b", "a.b.c", "axb", "ab", "a.bc"];
    let mut consumers: Vec<(&str, _)> = Vec::new();
    for name in names {
        // One lane, so that a message of another channel could not hide in a lane that nobody reads.
        let channel = Channel::new(name)?.with_lanes(1);
        let topology = Topology::of(&channel).and(&Subscription::new(&channel, "s")?);
        match context.broker.apply(&topology, Apply::Create).await {
            Err(error) if error.code() == code::NAME_TAKEN => {
                let dotted = |name: &str| name.replace('_', ".");
                let other = consumers.iter().find(|(other, _)| dotted(other) == dotted(name));
                ensure!(other.is_some(), "the name {name} is refused, and none is like it: {error:?}");
                context.notes.push(format!("refused by name: {name}"));
                continue;
            }
            applied => applied?,
        };
        consumers.push((name, context.broker.subscribe(&topology.subscriptions[0]).await?));
        let mut producer = context.broker.producer(&channel).await?;
        publish(&mut *producer, &context.oracle, &[message(name, 0)]).await?;
    }
    for (name, consumer) in &mut consumers {
        let came = take_exactly(&mut **consumer, 1).await?;
        ensure!(
            came[0].message.subject.as_deref() == Some(name),
            "channel {name} has {:?}",
            came[0].message.subject
        );
    }
    Ok(())
}

pub(crate) async fn starts(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("replayed")?.with_lanes(1).with_keep(Keep::AtLeast(Duration::from_secs(600)));
    context.broker.apply(&Topology::of(&channel), Apply::Create).await?;
    let mut producer = context.broker.producer(&channel).await?;
    let all = messages(1, 11);
    let sent = publish(&mut *producer, &context.oracle, &all[..10]).await?;
    let Sent::Stored { position: Some(fifth), .. } = &sent[4] else {
        return Err(Stop::Failed("replay is declared, and the broker has no positions".to_owned()));
    };
    let starting = |name: &str, start| Ok::<_, Stop>(Subscription::new(&channel, name)?.with_start(start));
    let mut latest = context.broker.subscribe(&starting("latest", Start::Latest)?).await?;
    let early = take(&mut *latest, 1, QUIET).await?;
    ensure!(early.is_empty(), "the latest start got an earlier message");
    publish(&mut *producer, &context.oracle, &all[10..]).await?;
    let begins = async |consumer: &mut Box<dyn Consumer>, from: usize| {
        let came = take_exactly(&mut **consumer, all.len() - from).await?;
        let ids: Vec<_> = came.iter().map(|delivery| &delivery.message.id).collect();
        let right: Vec<_> = all[from..].iter().map(|message| &message.id).collect();
        ensure!(ids == right, "a start at message {from} gave other messages");
        ack(&**consumer, &came).await
    };
    begins(&mut latest, 10).await?;
    let mut earliest = context.broker.subscribe(&starting("earliest", Start::Earliest)?).await?;
    begins(&mut earliest, 0).await?;
    let mut after = context.broker.subscribe(&starting("after", Start::After(fifth.clone()))?).await?;
    begins(&mut after, 5).await?;

    // What is gone is not passed over.
    let channel = Channel::new("passed")?.with_lanes(1);
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    let sent = publish(&mut *producer, &context.oracle, &messages(1, 5)).await?;
    let Sent::Stored { position: Some(first), .. } = &sent[0] else { return Ok(()) };
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let came = take_exactly(&mut *consumer, 5).await?;
    ack(&*consumer, &came).await?;
    let late = Subscription::new(&channel, "late")?.with_start(Start::After(first.clone()));
    let found = context.broker.subscribe(&late).await.err().map(|error| error.code());
    ensure!(found == Some(code::POSITION_GONE), "a start at what is gone: {found:?}");
    Ok(())
}

pub(crate) async fn extend(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("longer")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &messages(16, 16)).await?;
    let mut slow = context.broker.subscribe(&subscription).await?;
    let in_hand = take_exactly(&mut *slow, 16).await?;
    let tokens: Vec<_> = in_hand.iter().map(|delivery| delivery.token).collect();
    for extended in slow.settler().extend(&tokens, Duration::from_secs(120)).await {
        ensure!(extended.is_done(), "keeping a delivery for longer gives {extended:?}");
    }
    // Another member comes and wants its share: not before the slow one is done.
    let other = context.fixture.connect().await?;
    let mut second = other.subscribe(&subscription).await?;
    let early = take(&mut *second, 1, QUIET * 4).await?;
    ensure!(early.is_empty(), "{:?} was kept for longer, and came to another member", early[0].message);
    ack(&*slow, &in_hand).await?;
    let settled = slow.settler().extend(&tokens[..1], Duration::from_secs(1)).await;
    ensure!(settled[0].is_lost(), "keeping what was settled for longer gives {settled:?}");
    Ok(())
}

pub(crate) async fn dead_letter_away(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("letters")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &messages(1, 1)).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let came = take_exactly(&mut *consumer, 1).await?;
    settle(&*consumer, &came, &dead_letter()).await?;
    let more = take(&mut *consumer, 1, QUIET).await?;
    ensure!(more.is_empty(), "a dead letter came again");
    Ok(())
}
