//! `latency-B`: how long after its time a message is handled, where each is sent when its time has come, whatever became
//! of those before it.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use tidegate_runtime::Sender;
use tokio::time::{Instant, sleep, sleep_until};

use super::{PATIENCE, Stand, consume, message, service};
use crate::Result;
use crate::load::{Load, Seen};
use crate::report::Row;
use crate::work::latency::{COLD, Percentiles};

const A_SECOND: u64 = 1_000;
const BYTES: usize = 512;
/// A ratio is theirs by ours.
const MIDDLE: f64 = 1.0 / 1.3;
const HIGH: f64 = 1.0 / 1.5;
/// Whether the first message has come is looked for so often.
const LOOK: Duration = Duration::from_millis(5);

/// Both sides in turn.
pub(super) async fn run(stand: &Stand) -> Result<Vec<Row>> {
    let load = Load { count: stand.size.seconds * A_SECOND, bytes: BYTES };
    let (mut own, mut bare) = (Percentiles::default(), Percentiles::default());
    for (run, counts) in stand.size.runs() {
        own.take(counts, of_ours(stand, load, &format!("ours-latency-{run}")).await?);
        bare.take(counts, of_bare(stand, load, &format!("bare-latency-{run}")).await?);
    }
    let note = format!(
        "{A_SECOND} messages/s of {BYTES} B for {} s, from when each was to be sent, the first of {COLD} parts not counted",
        stand.size.seconds
    );
    let row = |percentile: &str, own, bare, bar| {
        let work = format!("latency-{} {percentile}", stand.name);
        Row::lower(&work, "ms", own, &stand.against, bare, bar).with_note(&*note)
    };
    Ok(vec![row("p50", &own.middle, &bare.middle, MIDDLE), row("p99", &own.high, &bare.high, HIGH)])
}

async fn of_ours(stand: &Stand, load: Load, name: &str) -> Result<Vec<i64>> {
    let (channel, subscription) = stand.channel(name).await?;
    let sender = Sender::open(&*stand.broker, &channel)
        .with_clock(Arc::clone(&stand.clock))
        .with_patience(PATIENCE)
        .await?;
    let seen = Arc::new(Seen::nothing(load).with_ages());
    let running = service(&stand.broker, &channel, &seen).await?;
    let send = async |number, at| Ok(sender.send(message(load, number, at)).await?);
    tokio::select! {
        biased;
        offered = offer(load, &seen, send) => offered?,
        silent = seen.silent() => silent?,
    }
    seen.whole().await?;
    running.drain(PATIENCE).await?;
    stand.clean(&channel, &subscription).await?;
    Ok(seen.ages())
}

async fn of_bare(stand: &Stand, load: Load, topic: &str) -> Result<Vec<i64>> {
    stand.client.create(topic).await?;
    let producer = stand.client.producer(topic).await?;
    let seen = Seen::nothing(load).with_ages();
    let send = async |number, at| producer.send(load.body(number, at)).await;
    tokio::try_join!(offer(load, &seen, send), consume(stand, topic, &seen))?;
    stand.client.remove(topic).await?;
    Ok(seen.ages())
}

/// Sends each message when its time has come, without waiting for those before it. The first goes ahead: when it has come,
/// whoever takes them is there.
async fn offer(load: Load, seen: &Seen, send: impl AsyncFn(u64, u64) -> Result<()>) -> Result<()> {
    send(0, seen.now()).await?;
    while seen.came() == 0 {
        sleep(LOOK).await;
    }
    let (begin, first) = (Instant::now(), seen.now());
    let mut under_way = FuturesUnordered::new();
    for number in 1..load.count {
        let after = Duration::from_secs(number) / u32::try_from(A_SECOND)?;
        loop {
            tokio::select! {
                biased;
                Some(sent) = under_way.next() => sent?,
                () = sleep_until(begin + after) => break,
            }
        }
        under_way.push(send(number, first + u64::try_from(after.as_micros())?));
    }
    while let Some(sent) = under_way.next().await {
        sent?;
    }
    Ok(())
}
