//! Group A: what a producer promises.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::Verdict;
use tidegate_core::port::{Sent, Signal};
use tidegate_core::{Apply, Channel, Difference, LossEvent, Message, SystemIds, Topology, error::code};
use tokio::time::{Instant, sleep};

use super::worker::{Crew, Manner};
use crate::case::{
    ARRIVAL, Check, Context, QUIET, Stop, ack, dropped_after, ensure, message, messages, publish, take,
    take_exactly,
};
use crate::fixture::numbered;

const PRODUCERS: usize = 16;

pub(crate) async fn all_arrive(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("arrive")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let each = context.size.count(5_000) / PRODUCERS;
    let mut crew = Crew::new(&context.oracle);
    for _ in 0..2 {
        crew.hire(context.broker.subscribe(&subscription).await?, "s", Manner::default());
    }
    let mut producers = Crew::new(&context.oracle);
    for number in 0..PRODUCERS {
        let mut producer = context.broker.producer(&channel).await?;
        let oracle = Arc::clone(&context.oracle);
        producers.beside(async move {
            for version in 0..each.div_ceil(50) {
                let key = |at: usize| format!("p{number}-{}", at % 7);
                let batch: Vec<_> = (0..50).map(|at| message(&key(at), version * 50 + at)).collect();
                oracle.announce(&batch);
                let sent = producer.publish(&batch).await;
                oracle.answered(&batch, &sent)?;
            }
            producer.close(ARRIVAL).await
        });
    }
    producers.finish(&[], Duration::ZERO).await?;
    crew.finish(&["s"], ARRIVAL).await?;
    let acked = context.oracle.acked("s");
    ensure!(acked >= each * PRODUCERS, "only {acked} messages were confirmed at all");
    Ok(())
}

pub(crate) async fn answers_in_order(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("answers")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    let all = messages(20, 200);
    let sent = publish(&mut *producer, &context.oracle, &all).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let by_id: BTreeMap<_, _> = all.iter().zip(&sent).map(|(message, sent)| (&*message.id, sent)).collect();
    for delivery in take_exactly(&mut *consumer, all.len()).await? {
        let Some(Sent::Stored { position, .. }) = by_id.get(&*delivery.message.id) else {
            return Err(Stop::Failed(format!("{} came and was not published", delivery.message.id)));
        };
        ensure!(
            *position == delivery.position,
            "{}: the answer says position {position:?}, and it stands at {:?}",
            delivery.message.id,
            delivery.position
        );
    }
    Ok(())
}

pub(crate) async fn refusal_by_place(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("partly")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    let mut batch = messages(3, 12);
    for bad in [3, 7] {
        batch[bad].kind = "".into();
    }
    let sent = producer.publish(&batch).await;
    ensure!(sent.len() == batch.len(), "{} answers to {} messages", sent.len(), batch.len());
    for (at, sent) in sent.iter().enumerate() {
        let found = sent.error().map(|error| error.code());
        let right = if [3, 7].contains(&at) { Some(code::MESSAGE_INVALID) } else { None };
        ensure!(found == right, "the answer at {at} is {sent:?}");
        ensure!(!sent.is_unknown(), "the answer at {at} is unknown");
    }
    let mut consumer = context.broker.subscribe(&subscription).await?;
    take_exactly(&mut *consumer, 10).await?;
    Ok(())
}

pub(crate) async fn missing_target(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("there")?;
    let broker = &context.broker;
    let found = broker.producer(&channel).await.err().map(|error| error.code());
    ensure!(found == Some(code::CHANNEL_MISSING), "a producer of a channel that is not there: {found:?}");
    let verified = broker.apply(&Topology::of(&channel), Apply::Verify).await?;
    ensure!(verified == [Difference::ChannelMissing(channel.name.clone())], "verifying found {verified:?}");
    let found = broker.producer(&channel).await.err().map(|error| error.code());
    ensure!(found == Some(code::CHANNEL_MISSING), "verifying made the channel");
    let found = broker.channel(&channel.name).await?;
    ensure!(found.is_none(), "a channel that is not there is there as {found:?}");

    broker.apply(&Topology::of(&channel), Apply::Create).await?;
    let again = broker.apply(&Topology::of(&channel), Apply::Create).await?;
    ensure!(again.is_empty(), "creating again found {again:?}");
    let found = broker.channel(&channel.name).await?;
    ensure!(found.as_ref() == Some(&channel), "the channel is there as {found:?}");
    let other = channel.clone().with_lanes(channel.lanes + 1);
    let found = broker.apply(&Topology::of(&other), Apply::Create).await.err().map(|error| error.code());
    ensure!(found == Some(code::CHANNEL_DIFFERS), "creating with other lanes: {found:?}");
    let verified = broker.apply(&Topology::of(&other), Apply::Verify).await?;
    let is_named = matches!(&verified[..], [Difference::ChannelDiffers { setting: "lanes", .. }]);
    ensure!(is_named, "verifying other lanes found {verified:?}");
    let found = broker.producer(&other).await.err().map(|error| error.code());
    ensure!(found == Some(code::CHANNEL_DIFFERS), "a producer with other lanes: {found:?}");

    let sent = broker.producer(&channel).await?.publish(&messages(1, 2)).await;
    for sent in &sent {
        let refused = matches!(sent, Sent::Refused(error) if error.code() == code::SUBSCRIPTION_MISSING);
        ensure!(refused, "a message that nobody would get: {sent:?}");
    }
    Ok(())
}

pub(crate) async fn too_large(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("large")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    let mut batch = messages(1, 5);
    batch[2].data = vec![b'x'; context.capabilities().message_bytes_max + 1].into();
    let sent = producer.publish(&batch).await;
    ensure!(sent.len() == 5, "{} answers to 5 messages", sent.len());
    for (at, sent) in sent.iter().enumerate() {
        let found = sent.error().map(|error| error.code());
        let right = (at == 2).then_some(code::BODY_TOO_LARGE);
        ensure!(found == right, "the answer at {at} is {sent:?}");
    }
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let came = take_exactly(&mut *consumer, 4).await?;
    ensure!(came.iter().all(|delivery| delivery.message.id != batch[2].id), "the refused message came");
    Ok(())
}

pub(crate) async fn lost_answer(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("answer")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    let mut expected = 0;
    let hook = context.fixture.lose_answers(1).await?;
    if context.needs(hook) {
        let batch = messages(2, 6);
        expected += batch.len();
        let sent = producer.publish(&batch).await;
        for (at, sent) in sent.iter().enumerate() {
            ensure!(sent.is_unknown(), "the answer at {at} was lost, and it says {sent:?}");
        }
        for (at, sent) in producer.publish(&batch).await.iter().enumerate() {
            let known = matches!(sent, Sent::Stored { duplicate: true, .. });
            ensure!(known, "the message at {at} was stored, and publishing it again says {sent:?}");
        }
    }
    // The same without the system's help: a caller that goes away does not know either.
    let mut random = fastrand::Rng::with_seed(6);
    for _ in 0..context.size.count(60) {
        let batch: Vec<Message> = (0..5).map(|at| message("dropped", at)).collect();
        expected += batch.len();
        dropped_after(1 << random.u32(0..15), producer.publish(&batch)).await;
        for sent in producer.publish(&batch).await {
            ensure!(sent.is_stored(), "publishing again says {sent:?}");
        }
    }
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let mut came = 0;
    while came < expected {
        let batch = take(&mut *consumer, 100.min(expected - came), ARRIVAL).await?;
        ensure!(!batch.is_empty(), "{came} of {expected} messages came");
        ack(&*consumer, &batch).await?;
        came += batch.len();
    }
    let more = take(&mut *consumer, 1, QUIET).await?;
    ensure!(more.is_empty(), "{} was stored twice", more[0].message.id);
    Ok(())
}

pub(crate) async fn close_flushes(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("closing")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..context.size.count(5) {
        let mut producer = context.broker.producer(&channel).await?;
        let batch: Vec<Message> = (0..50).map(|at| message("k", round * 50 + at)).collect();
        let answered = dropped_after(1 << random.u32(0..15), producer.publish(&batch)).await;
        producer.close(ARRIVAL).await?;
        let first = take(&mut *consumer, batch.len(), QUIET).await?;
        ack(&*consumer, &first).await?;
        if let Some(sent) = answered {
            let stored = sent.iter().filter(|sent| sent.is_stored()).count();
            ensure!(first.len() >= stored, "{stored} messages were stored, and {} came", first.len());
        }
        if first.len() < batch.len() {
            let later = take(&mut *consumer, 1, QUIET).await?;
            ensure!(later.is_empty(), "a message was stored after the producer had been closed");
        }
    }
    Ok(())
}

pub(crate) async fn back_pressure(context: &mut Context<'_>) -> Check {
    const ROOM: u64 = 100;
    let channel = Channel::new("narrow")?.with_limits(ROOM, 1 << 20);
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    let batch = messages(5, 300);
    let (mut stored, mut refused) = (0, Vec::new());
    for (message, sent) in batch.iter().zip(producer.publish(&batch).await) {
        match sent {
            Sent::Stored { .. } => stored += 1,
            Sent::Refused(error) if error.code() == code::LIMIT_REACHED => {
                ensure!(
                    error.verdict() == Verdict::Retry,
                    "a full channel is not to be tried again: {error:?}"
                );
                refused.push(message.clone());
            }
            sent => return Err(Stop::Failed(format!("a full channel answers {sent:?}"))),
        }
    }
    ensure!(stored == ROOM, "{stored} messages were stored where {ROOM} have room");
    ensure!(refused.len() as u64 == batch.len() as u64 - ROOM, "{} messages were refused", refused.len());
    if let Some(kept) = context.kept(&channel).await? {
        ensure!(kept == ROOM, "{kept} messages are kept where {ROOM} have room");
    }
    // With somebody who settles, all find room, and the producer waits meanwhile.
    let mut crew = Crew::new(&context.oracle);
    context.oracle.announce(&batch);
    crew.hire(context.broker.subscribe(&subscription).await?, "s", Manner::default());
    // Only what was refused: what is stored twice comes twice where the broker knows no message again.
    publish(&mut *producer, &context.oracle, &refused).await?;
    publish(&mut *producer, &context.oracle, &messages(5, 300)).await?;
    crew.finish(&["s"], ARRIVAL).await
}

pub(crate) async fn round_trip(context: &mut Context<'_>) -> Check {
    let channel = Channel::new("round")?.with_lanes(1);
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let new = || Message::new(&SystemIds, "urn:a/b?c#d", "käse.gemacht");
    let mut full = new().caused_by(&message("cause", 0)).with_time(1_700_000_000_000_001);
    full.dataschema = Some("https://example.org/schema/7".into());
    full.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    full.tenant = Some("acme".into());
    full.extensions.set("partitionkey", "ß")?;
    let mut many = new().with_subject("many");
    for number in 0..64 {
        many = many.with_header(&format!("h{number}"), number.to_string())?;
    }
    // As large as it may be, with what stands beside it.
    let size = context.capabilities().message_bytes_max.saturating_sub(1 << 10).min(8 << 20);
    let big: Vec<u8> = (0..size as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let all = [
        new(),
        full.with_subject("σ/☃").with_data("application/octet-stream", (0..=255).collect::<Vec<u8>>()),
        many,
        new().with_header("empty", "")?.with_header("text", "naïve ☃ \"quoted\" 'n' \\ back")?,
        new().with_subject("big").with_data("application/octet-stream", big),
    ];
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &all).await?;
    let mut consumer = context.broker.subscribe(&subscription).await?;
    let came = take_exactly(&mut *consumer, all.len()).await?;
    for sent in &all {
        let found = came.iter().find(|delivery| delivery.message.id == sent.id).map(|d| &*d.message);
        let is_same = found == Some(sent);
        ensure!(is_same, "{sent:?} came as {found:?}");
    }
    ack(&*consumer, &came).await
}

pub(crate) async fn survives_kill(context: &mut Context<'_>) -> Check {
    let capabilities = context.capabilities();
    if let Some(case) = capabilities.loss.iter().find(|case| case.when == LossEvent::BrokerKilled) {
        return Err(Stop::Declared(format!("{}: {}", case.text, case.avoid)));
    }
    let channel = Channel::new("killed")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut confirmed_in_all = 0;
    let mut came = std::collections::BTreeSet::new();
    for round in 0..context.size.count(2).min(50) {
        let prefix = format!("r{round}");
        let killed = context.fixture.kill(&channel, &prefix).await?;
        context.broker = killed.broker;
        confirmed_in_all += killed.confirmed.len();
        let mut consumer = context.broker.subscribe(&subscription).await?;
        let mut out = Vec::new();
        let until = Instant::now() + ARRIVAL;
        let is_there = |came: &std::collections::BTreeSet<Arc<str>>| {
            killed.confirmed.iter().all(|number| came.contains(&numbered(&prefix, *number).id))
        };
        while !is_there(&came) && Instant::now() < until {
            let signal = consumer.receive(1_000, Duration::from_millis(200), &mut out).await?;
            ensure!(!matches!(signal, Signal::Cancelled(_)), "the subscription did not survive: {signal:?}");
            ack(&*consumer, &out).await?;
            came.extend(out.drain(..).map(|delivery| Arc::clone(&delivery.message.id)));
        }
        let lost = killed.confirmed.iter().filter(|n| !came.contains(&numbered(&prefix, **n).id)).count();
        ensure!(
            lost == 0,
            "{lost} of {} messages that were confirmed did not survive",
            killed.confirmed.len()
        );
        consumer.close(ARRIVAL).await?;
        sleep(Duration::from_millis(10)).await;
    }
    ensure!(confirmed_in_all > 0, "nothing was confirmed before the kill, so nothing was shown");
    context.notes.push(format!("{confirmed_in_all} messages were confirmed before kills"));
    Ok(())
}
