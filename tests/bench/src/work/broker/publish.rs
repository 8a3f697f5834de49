//! `publish-B` and `consume-B`: a load is stored in windows, and then taken by one subscription.

use std::sync::Arc;

use tidegate_core::Message;
use tokio::time::Instant;

use super::{PATIENCE, Stand, consume, message, service};
use crate::Result;
use crate::ground::rate;
use crate::load::{Load, Seen};
use crate::peers::watermill::{Doing, Watermill};
use crate::report::{Row, Samples};

const BESIDE_BARE: f64 = 0.85;
const BESIDE_WATERMILL: f64 = 2.0;

/// Figures of one side.
#[derive(Default)]
struct Pair {
    publish: Samples,
    consume: Samples,
}

impl Pair {
    fn push_if(&mut self, counts: bool, (publish, consume): (f64, f64)) {
        self.publish.push_if(counts, publish);
        self.consume.push_if(counts, consume);
    }
}

/// Bodies of both sizes. What was published has to be consumed, or a run fails.
pub(super) async fn run(stand: &Stand) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for load in stand.loads() {
        let (mut own, mut bare, mut watermill) = (Pair::default(), Pair::default(), Pair::default());
        let mut failed = None;
        for (run, counts) in stand.size.runs() {
            let name = |side: &str| format!("{side}-{}-{run}", load.bytes);
            own.push_if(counts, of_ours(stand, load, &name("ours")).await?);
            bare.push_if(counts, of_bare(stand, load, &name("bare")).await?);
            if let Some(Ok(program)) = &stand.watermill {
                // A peer that cannot do it now and then is measured by its other runs.
                match of_watermill(stand, program, load, &name("watermill")).await {
                    Ok(pair) => watermill.push_if(counts, pair),
                    Err(error) => failed = Some(error),
                }
            }
        }
        for (work, own, bare, watermill) in [
            ("publish", &own.publish, &bare.publish, &watermill.publish),
            ("consume", &own.consume, &bare.consume, &watermill.consume),
        ] {
            let (work, unit) = (format!("{work}-{}, {}", stand.name, load.size()), "messages/s");
            let note = format!("{} messages", load.count);
            let row = Row::new(&work, unit, own, &stand.against, bare, BESIDE_BARE);
            rows.push(row.with_note(&*note));
            if let Some(found) = &stand.watermill {
                let row = Row::new(&work, unit, own, "Watermill", watermill, BESIDE_WATERMILL);
                let row = row.measured_or(found).with_note(&*note);
                rows.push(match &failed {
                    Some(error) => row.with_note(format!("a run of Watermill failed: {error}")),
                    None => row,
                });
            }
        }
    }
    Ok(rows)
}

async fn of_ours(stand: &Stand, load: Load, name: &str) -> Result<(f64, f64)> {
    let (channel, subscription) = stand.channel(name).await?;
    let mut publisher = stand.publisher(&channel).await?;
    let start = Instant::now();
    for window in load.windows() {
        let messages: Vec<Message> = window.map(|number| message(load, number, 0)).collect();
        publisher.publish(&messages).await?;
    }
    let publish = rate(load.count, start);
    publisher.close(PATIENCE).await?;
    let seen = Arc::new(Seen::nothing(load));
    let running = service(&stand.broker, &channel, &seen).await?;
    seen.whole().await?;
    running.drain(PATIENCE).await?;
    stand.clean(&channel, &subscription).await?;
    Ok((publish, seen.rate()))
}

async fn of_bare(stand: &Stand, load: Load, topic: &str) -> Result<(f64, f64)> {
    stand.client.create(topic).await?;
    let producer = stand.client.producer(topic).await?;
    let start = Instant::now();
    for window in load.windows() {
        let bodies: Vec<_> = window.map(|number| load.body(number, 0)).collect();
        producer.window(&bodies).await?;
    }
    let publish = rate(load.count, start);
    let seen = Seen::nothing(load);
    consume(stand, topic, &seen).await?;
    stand.client.remove(topic).await?;
    Ok((publish, seen.rate()))
}

async fn of_watermill(stand: &Stand, program: &Watermill, load: Load, topic: &str) -> Result<(f64, f64)> {
    let url = stand.server.url();
    stand.client.create(topic).await?;
    let publish = program.run(&url, Doing::Publish, topic, load).await;
    let consume = match &publish {
        Ok(_) => program.run(&url, Doing::Consume, topic, load).await,
        Err(_) => Ok(0.0),
    };
    stand.client.remove(topic).await?;
    Ok((publish?, consume?))
}
