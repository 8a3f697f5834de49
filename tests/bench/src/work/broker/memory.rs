//! `publish-memory`: through lanes and settled, beside a channel of one process that has neither.

use std::time::Duration;

use tidegate_core::Message;
use tidegate_core::port::{Broker as _, Settlement};
use tidegate_memory::MemoryBroker;
use tidegate_runtime::Publisher;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{PATIENCE, channel, message};
use crate::Result;
use crate::ground::{Size, rate};
use crate::load::{Load, Seen, WINDOW};
use crate::report::{Row, Samples};

const MESSAGES: u64 = 1_000_000;
const BYTES: usize = 512;
const BAR: f64 = 0.3;
/// How long to wait for messages.
const WAIT: Duration = Duration::from_secs(1);

/// Both sides in turn, each with a task that sends and one that takes.
pub(super) async fn run(size: Size) -> Result<Vec<Row>> {
    let load = Load { count: size.messages_of(MESSAGES), bytes: BYTES };
    let (mut own, mut bare) = (Samples::default(), Samples::default());
    for (_, counts) in size.runs() {
        own.push_if(counts, of_ours(load).await?);
        bare.push_if(counts, of_bare(load).await?);
    }
    let row = Row::new("publish-memory", "messages/s", &own, "bounded channel of tokio", &bare, BAR);
    Ok(vec![row.with_note(format!(
        "{} messages of {}, from the first sent to the last settled",
        load.count,
        load.size()
    ))])
}

async fn of_ours(load: Load) -> Result<f64> {
    let broker = MemoryBroker::default();
    let (channel, subscription) = channel(&broker, "load").await?;
    let mut publisher = Publisher::open(&broker, &channel).with_patience(PATIENCE).await?;
    let mut consumer = broker.subscribe(&subscription).await?;
    let (settler, seen) = (consumer.settler(), Seen::nothing(load));
    let start = Instant::now();
    let sending = async {
        for window in load.windows() {
            let messages: Vec<Message> = window.map(|number| message(load, number, 0)).collect();
            publisher.publish(&messages).await?;
        }
        crate::Result::Ok(())
    };
    let taking = async {
        let (mut batch, mut done) = (Vec::new(), Vec::new());
        while !seen.is_whole() {
            consumer.receive(usize::try_from(WINDOW)?, WAIT, &mut batch).await?;
            for delivery in batch.drain(..) {
                seen.mark(&delivery.message.data)?;
                done.push((delivery.token, Settlement::Ack));
            }
            if !settler.settle(&done).await.iter().all(|settled| settled.is_done()) {
                return Err("a message was not settled".into());
            }
            done.clear();
        }
        Ok(())
    };
    let both = async { tokio::try_join!(sending, taking) };
    tokio::select! {
        biased;
        done = both => done.map(|_| rate(load.count, start)),
        silent = seen.silent() => silent.map(|()| 0.0),
    }
}

async fn of_bare(load: Load) -> Result<f64> {
    let (sender, mut receiver) = mpsc::channel(usize::try_from(WINDOW)?);
    let seen = Seen::nothing(load);
    let start = Instant::now();
    let sending = async move {
        for window in load.windows() {
            let messages: Vec<Message> = window.map(|number| message(load, number, 0)).collect();
            for message in messages {
                sender.send(message).await?;
            }
        }
        crate::Result::Ok(())
    };
    let taking = async {
        let mut batch = Vec::new();
        while receiver.recv_many(&mut batch, usize::try_from(WINDOW)?).await > 0 {
            batch.drain(..).try_for_each(|message: Message| seen.mark(&message.data))?;
        }
        Ok(())
    };
    tokio::try_join!(sending, taking)?;
    let rate = rate(load.count, start);
    if seen.is_whole() { Ok(rate) } else { Err(format!("{} messages came", seen.came()).into()) }
}
