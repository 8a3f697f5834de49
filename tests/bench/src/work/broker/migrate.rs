//! `migrate-B`: a backlog of changes goes from one PostgreSQL to another by way of a broker.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use tidegate_core::port::Store;
use tidegate_core::{FlowName, SystemIds};
use tidegate_flow::Flow;
use tidegate_flow::via::{Carried, Via, serve};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Stand;
use crate::discard::Discard;
use crate::ground::{Ground, connect, count, rate};
use crate::peers::{self, Stage};
use crate::report::{Row, Samples};
use crate::work::drain::{copy_of, drop_database, queries};
use crate::work::equal;
use crate::{Result, ours};

const AGAINST: &str = "bare loop: COPY out, produce, consume, staged apply";
const BAR: f64 = 0.8;
/// What the bare loop sends at once: half of what the brokers take.
const PART_BYTES: usize = 1 << 19;

/// Both sides in turn, of the same backlog.
pub(super) async fn run(ground: &Ground, stand: &Stand) -> Result<Vec<Row>> {
    let name = stand.name;
    let work = format!("migrate-{name}");
    let url = ground.fill(&format!("migrate_{name}")).await?;
    let base = format!("base_{name}");
    let target = ground.empty(&base, "int8").await?;
    peers::psql_pipe(&url, &target).await?;
    connect(&target).await?.batch_execute("VACUUM (ANALYZE) bench").await?;
    let mut begun = Vec::new();
    for (run, counts) in ground.size.runs() {
        let flow = format!("{name}{run}");
        let flow = ours::flow_to_nothing(&flow, ours::open(&url)?, Arc::new(Discard::default())).await?;
        begun.push((ours::begin(&flow).await?, flow.name, counts));
    }
    ground.write_backlog(&url).await?;
    let wanted = count(&url).await?;
    let changes = ground.size.changes();
    let (mut own, mut bare) = (Samples::default(), Samples::default());
    for (checkpoint, name, counts) in begun {
        let database = name.to_string();
        let target = copy_of(ground, &base, &database).await?;
        let flow = ours::flow(&database, ours::open(&url)?, ours::open(&target)?).await?;
        ours::hand_over(&flow, &checkpoint).await?;
        ground.settle().await?;
        own.push_if(counts, carry(stand, &name, flow, changes).await?);
        equal(count(&target).await?, wanted)?;
        drop_database(ground, &database).await?;

        let database = format!("bare_{name}");
        let target = copy_of(ground, &base, &database).await?;
        ground.settle().await?;
        let topic = format!("bare-migrate-{name}");
        stand.client.create(&topic).await?;
        let start = Instant::now();
        let queries: Vec<String> = queries(ground.size).collect();
        let (sent, applied) =
            tokio::join!(send(stand, &topic, &url, &queries), apply(stand, &topic, &target, queries.len()));
        sent?;
        applied?;
        bare.push_if(counts, rate(changes, start));
        stand.client.remove(&topic).await?;
        // All but the row at the end, which is of no batch.
        equal(count(&target).await? + 1, wanted)?;
        drop_database(ground, &database).await?;
    }
    Ok(vec![Row::new(&work, "changes/s", &own, AGAINST, &bare, BAR)])
}

/// Both halves of a flow in this process.
async fn carry(stand: &Stand, name: &FlowName, flow: Flow, changes: u64) -> Result<f64> {
    let via = Via {
        broker: Arc::clone(&stand.broker),
        codecs: vec![tidegate_postgres::codec()],
        clock: Arc::clone(&stand.clock),
        ids: Arc::new(SystemIds),
    };
    let target: Arc<dyn Store> = Arc::clone(&flow.target);
    let flow = Flow { target: Arc::new(Carried::new(Arc::clone(&target), via.clone())), ..flow };
    let stop = CancellationToken::new();
    let running = async {
        let start = Instant::now();
        let ran = ours::run(&flow).await;
        stop.cancel();
        ran.map(|()| rate(changes, start))
    };
    let (ran, served) = tokio::join!(running, Box::pin(serve(name, &target, &via, &stop)));
    served?;
    let rate = ran?;
    ours::clean(&flow).await?;
    via.forget(name).await?;
    Ok(rate)
}

/// Reads each batch and sends it in parts.
async fn send(stand: &Stand, topic: &str, url: &str, queries: &[String]) -> Result<()> {
    let producer = stand.client.producer(topic).await?;
    for (batch, query) in queries.iter().enumerate() {
        let rows = peers::copied(url, query).await?;
        let parts = rows.len().div_ceil(PART_BYTES);
        let part = |(at, rows): (usize, &[u8])| {
            let mut body = BytesMut::with_capacity(HEAD + rows.len());
            for word in [batch, at, parts] {
                body.put_u64_le(word as u64);
            }
            body.put_slice(rows);
            body.freeze()
        };
        let parts: Vec<Bytes> = rows.chunks(PART_BYTES).enumerate().map(part).collect();
        producer.window(&parts).await?;
    }
    Ok(())
}

/// Three words: which batch, which part of it, and of how many.
const HEAD: usize = 24;

/// Puts parts together, and applies each batch that is whole.
async fn apply(stand: &Stand, topic: &str, url: &str, batches: usize) -> Result<()> {
    let (stage, mut consumer) = (Stage::open(url).await?, stand.client.consumer(topic).await?);
    let mut open: BTreeMap<u64, BTreeMap<u64, Bytes>> = BTreeMap::new();
    let mut applied = 0;
    while applied < batches {
        let mut whole = Vec::new();
        let mut take = |body: &[u8]| {
            let (head, rows) = body.split_at_checked(HEAD).ok_or("a part has no head")?;
            let mut words = head.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
            let mut word = || words.next().unwrap_or_default();
            let (batch, part, parts) = (word(), word(), word());
            let of = open.entry(batch).or_default();
            of.insert(part, Bytes::copy_from_slice(rows));
            if of.len() as u64 == parts {
                whole.extend(open.remove(&batch));
            }
            Ok(())
        };
        consumer.batch(&mut take).await?;
        for parts in whole {
            let parts: Vec<Bytes> = parts.into_values().collect();
            stage.apply(parts.concat().into()).await?;
            applied += 1;
        }
    }
    Ok(())
}
