//! Groups D and E: a network that fails.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Broker, Settlement};
use tidegate_core::{Channel, Error, Message, Subscription};
use tokio::time::{Instant, sleep, timeout};

use super::consume::later;
use super::worker::{Crew, Manner};
use crate::case::{
    ARRIVAL, Check, Context, QUIET, Stop, ack, ensure, message, messages, publish, publish_until_stored,
    take, take_exactly,
};
use crate::proxy::Traffic;

/// How soon something has to be told.
const SOON: Duration = Duration::from_secs(10);

/// What a member had in hand that is not heard of any more comes to another one, and is that one's alone.
pub(crate) async fn hung(context: &mut Context<'_>) -> Check {
    let network = context.network()?;
    let channel = Channel::new("hung")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &messages(10, 30)).await?;
    producer.close(ARRIVAL).await?;
    let mut hung = context.broker.subscribe(&subscription).await?;
    let old = take_exactly(&mut *hung, 30).await?;
    network.hang();
    let other = context.fixture.connect().await?;
    let mut heir = other.subscribe(&subscription).await?;
    // All of it comes again: to the other one, or to this one when it has found a new connection and joins anew.
    let mut again = BTreeSet::new();
    let (mut to_heir, until) = (0, Instant::now() + 2 * ARRIVAL);
    while again.len() < old.len() {
        ensure!(Instant::now() < until, "{} of {} messages came again", again.len(), old.len());
        for (consumer, is_heir) in [(&mut heir, true), (&mut hung, false)] {
            let came = take(&mut **consumer, old.len(), QUIET).await?;
            later(&old, &came)?;
            let batch: Vec<_> = came.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
            for (delivery, settled) in came.iter().zip(consumer.settler().settle(&batch).await) {
                ensure!(
                    !settled.is_done() || again.insert(Arc::clone(&delivery.message.id)),
                    "what was settled came again: {:?}",
                    delivery.message
                );
                to_heir += usize::from(is_heir && settled.is_done());
            }
        }
    }
    ensure!(to_heir > 0, "nothing came to the other member");
    // It is heard again, and knows nothing of what was.
    network.set(Traffic::Open);
    let batch: Vec<_> = old.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
    for (at, settled) in hung.settler().settle(&batch).await.iter().enumerate() {
        ensure!(!settled.is_done(), "delivery {at} was settled by whoever had lost it");
    }
    for consumer in [&mut heir, &mut hung] {
        let more = take(&mut **consumer, 1, QUIET).await?;
        ensure!(more.is_empty(), "what was settled came again: {:?}", more[0].message);
    }
    heir.close(SOON).await?;
    other.close(SOON).await?;
    // What comes now is for whoever is there.
    let mut producer = context.broker.producer(&channel).await?;
    publish_until_stored(&mut *producer, &context.oracle, &[message("key-0", 9)]).await?;
    let came = take(&mut *hung, 1, 2 * ARRIVAL).await?;
    ensure!(came.len() == 1, "who was not heard of for some time gets nothing any more");
    ack(&*hung, &came).await
}

/// While messages go through it, the network is slow, is cut, says nothing, is not there, and loses answers.
pub(crate) async fn fails(context: &mut Context<'_>) -> Check {
    let network = context.network()?;
    let channel = Channel::new("stormy")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut crew = Crew::new(&context.oracle);
    let slow = Manner { slow: Duration::from_millis(2), ..Manner::default() };
    let other = context.fixture.connect().await?;
    for broker in [&context.broker, &other] {
        crew.hire(broker.subscribe(&subscription).await?, "s", slow);
    }
    let mut producer = context.broker.producer(&channel).await?;
    let all = messages(20, context.size.count(500));
    let parts: Vec<&[Message]> = all.chunks(all.len().div_ceil(5)).collect();
    for (at, part) in parts.into_iter().enumerate() {
        if at == 4 {
            let hook = context.fixture.lose_answers(2).await?;
            context.needs(hook);
        }
        let trouble = async {
            match at {
                0 => network.set(Traffic::Slow(Duration::from_millis(20))),
                1 => {
                    for _ in 0..5 {
                        network.cut();
                        sleep(Duration::from_millis(100)).await;
                    }
                }
                2 => network.set(Traffic::Silent),
                3 => network.set(Traffic::Closed),
                _ => {}
            }
            sleep(Duration::from_millis(1_500)).await;
            network.set(Traffic::Open);
        };
        // The trouble is there first.
        let ((), stored) = join(trouble, publish_until_stored(&mut *producer, &context.oracle, part)).await;
        stored?;
    }
    crew.finish(&["s"], 2 * ARRIVAL).await
}

/// What is said, soon, of everything that can be asked of a broker first.
async fn refused(broker: &dyn Broker, channel: &Channel, subscription: &Subscription) -> Check<Vec<Error>> {
    let asked = [
        ("probe", timeout(SOON, broker.probe()).await.map(Result::err)),
        ("producer", timeout(SOON, broker.producer(channel)).await.map(Result::err)),
        ("subscribe", timeout(SOON, broker.subscribe(subscription)).await.map(Result::err)),
    ];
    let mut errors = Vec::new();
    for (what, answer) in asked {
        match answer {
            Err(_) => ensure!(false, "{what}: nothing is told within {SOON:?}"),
            Ok(None) => ensure!(false, "{what}: it is done"),
            Ok(Some(error)) => errors.push(error),
        }
    }
    Ok(errors)
}

/// How often somebody with a wrong password may have asked for a connection, having asked for three things.
const STRANGERS: u64 = 6;

/// A wrong password is told as that, and does not become another one by trying.
pub(crate) async fn stranger(context: &mut Context<'_>) -> Check {
    let Some(broker) = context.fixture.stranger().await? else {
        return Err(Stop::NotApplicable("nobody is asked for a password".to_owned()));
    };
    let network = context.network()?;
    let channel = Channel::new("strange")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let before = network.attempts();
    for error in refused(&*broker, &channel, &subscription).await? {
        let is_told = error.code() == code::ACCESS_DENIED && error.verdict() == Verdict::Never;
        ensure!(is_told, "it is told as {error:?}");
    }
    sleep(CLOSED / 5).await;
    let attempts = network.attempts() - before;
    ensure!(attempts <= STRANGERS, "a wrong password was tried {attempts} times");
    Ok(())
}

/// A server that cannot be reached is told as that, soon; what was asked of it is done once it is there.
pub(crate) async fn absent(context: &mut Context<'_>) -> Check {
    let network = context.network()?;
    let channel = Channel::new("unreached")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    network.set(Traffic::Closed);
    let broker = context.fixture.connect().await?;
    for error in refused(&*broker, &channel, &subscription).await? {
        ensure!(error.verdict() == Verdict::Retry, "it is told as {error:?}");
    }
    network.set(Traffic::Open);
    let until = Instant::now() + ARRIVAL;
    while let Err(error) = broker.probe().await {
        ensure!(Instant::now() < until, "the server is there, and {error:?}");
        sleep(Duration::from_millis(100)).await;
    }
    let mut consumer = broker.subscribe(&subscription).await?;
    let mut producer = broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &[message("k", 0)]).await?;
    let came = take_exactly(&mut *consumer, 1).await?;
    ack(&*consumer, &came).await
}

/// How long nobody can connect, and how often each connection that was lost may be asked for meanwhile: twice a second.
const CLOSED: Duration = Duration::from_secs(5);
const ATTEMPTS: u64 = 10;

/// Everybody has lost the connection at once, and nobody lets them in: they wait between two attempts.
pub(crate) async fn storm(context: &mut Context<'_>) -> Check {
    let network = context.network()?;
    let channel = Channel::new("storm")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    let mut crew = Crew::new(&context.oracle);
    for _ in 0..2 {
        crew.hire(context.broker.subscribe(&subscription).await?, "s", Manner::default());
    }
    let mut producer = context.broker.producer(&channel).await?;
    publish(&mut *producer, &context.oracle, &messages(10, 50)).await?;
    let (lost, before) = (network.connections(), network.attempts());
    network.set(Traffic::Closed);
    sleep(CLOSED).await;
    let attempts = network.attempts() - before;
    ensure!(
        attempts <= lost * ATTEMPTS,
        "{lost} connections were lost, and {attempts} were asked for within {CLOSED:?}"
    );
    network.set(Traffic::Open);
    publish_until_stored(&mut *producer, &context.oracle, &messages(10, 50)).await?;
    crew.finish(&["s"], 2 * ARRIVAL).await
}
