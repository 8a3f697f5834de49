//! What a broker declares that it cannot do, it refuses.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::port::{Settled, Settlement};
use tidegate_core::{Channel, Error, Position, Start, Subscription, error::code};

use crate::case::{ARRIVAL, Check, Context, ensure, message, publish, take};

/// Asks for a capability that is declared as missing.
pub(crate) async fn check(context: &mut Context<'_>, name: &str) -> Check {
    let channel = Channel::new("refused")?;
    let subscription = context.declare(&channel, &["s"]).await?.remove(0);
    match name {
        "dead_letter" => settle(context, &channel, &subscription, dead_letter()).await,
        "retry_later" => {
            let retry = Settlement::Retry { after: Duration::from_secs(1) };
            settle(context, &channel, &subscription, retry).await
        }
        "replay" => {
            let start = Start::After(Position::from_u64(1));
            let late = Subscription::new(&channel, "late")?.with_start(start);
            is_refusal(name, context.broker.subscribe(&late).await.err())
        }
        "listing" => is_refusal(name, context.broker.topology().await.err()),
        "browsing" => is_refusal(name, context.broker.browse(&channel.name, &Start::Earliest).await.err()),
        "unregister" => is_refusal(name, context.broker.unregister(&subscription).await.err()),
        "competing_consumers" => {
            let first = context.broker.subscribe(&subscription).await?;
            let second = context.broker.subscribe(&subscription).await.err();
            drop(first);
            is_refusal(name, second)
        }
        "lock_extend" => {
            let mut producer = context.broker.producer(&channel).await?;
            publish(&mut *producer, &context.oracle, &[message("k", 0)]).await?;
            let mut consumer = context.broker.subscribe(&subscription).await?;
            let deliveries = take(&mut *consumer, 1, ARRIVAL).await?;
            ensure!(deliveries.len() == 1, "the message did not come");
            let answer = consumer.settler().extend(&[deliveries[0].token], Duration::from_secs(1)).await;
            answered(name, answer.into_iter().next())
        }
        // The others say how something is, and cannot be asked for.
        _ => Ok(()),
    }
}

pub(crate) fn dead_letter() -> Settlement {
    Settlement::DeadLetter { reason: Arc::from("not to be handled") }
}

/// Settling is refused, and the delivery stays in hand.
async fn settle(
    context: &mut Context<'_>,
    channel: &Channel,
    subscription: &Subscription,
    settlement: Settlement,
) -> Check {
    let mut producer = context.broker.producer(channel).await?;
    publish(&mut *producer, &context.oracle, &[message("k", 0)]).await?;
    let mut consumer = context.broker.subscribe(subscription).await?;
    let deliveries = take(&mut *consumer, 1, ARRIVAL).await?;
    ensure!(deliveries.len() == 1, "the message did not come");
    let settler = consumer.settler();
    let name = format!("{settlement:?}");
    answered(&name, settler.settle(&[(deliveries[0].token, settlement)]).await.into_iter().next())?;
    let acked = settler.settle(&[(deliveries[0].token, Settlement::Ack)]).await;
    ensure!(
        acked[0].is_done(),
        "after the refusal of {name} the delivery is not in hand any more: {acked:?}"
    );
    Ok(())
}

fn answered(name: &str, answer: Option<Settled>) -> Check {
    match answer {
        Some(Settled::Refused(error)) => is_refusal(name, Some(error)),
        answer => is_refusal(name, answer.and(None)),
    }
}

fn is_refusal(name: &str, error: Option<Error>) -> Check {
    let found = error.as_ref().map(Error::code);
    ensure!(
        found == Some(code::CAPABILITY_MISSING),
        "{name} is declared as missing, and asking gives {error:?}"
    );
    Ok(())
}
