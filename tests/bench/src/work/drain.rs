//! A backlog of changes, to nothing and applied to a second server.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_core::port::Checkpoint;
use tidegate_flow::Flow;
use tokio::time::Instant;

use crate::discard::Discard;
use crate::ground::{Ground, STEP, Size, connect, count, rate};
use crate::peers::debezium::{self, Debezium};
use crate::report::{Row, Samples};
use crate::work::equal;
use crate::{Result, ours, peers};

/// Transactions of one batch of the bare apply.
const BATCH_TRANSACTIONS: u64 = 200;
/// The database of the target that has every row from before the backlog.
const BASE: &str = "base";

/// Which of the works are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// `drain-null`.
    pub plain: bool,
    /// `drain-null-tls`.
    pub tls: bool,
    /// `drain-pg`.
    pub applied: bool,
}

/// Slots that all keep the same backlog.
struct Backlog {
    url: String,
    /// The end of the log when it was written.
    end: String,
}

fn over_tls(url: &str) -> String {
    url.replace("sslmode=disable", "sslmode=require")
}

/// Drains one backlog in every way that is wanted.
pub async fn run(ground: &Ground, wanted: Wanted) -> Result<Vec<Row>> {
    let url = ground.fill("drain").await?;
    let base = ground.empty(BASE, "int8").await?;
    if wanted.applied {
        peers::psql_pipe(&url, &base).await?;
        connect(&base).await?.batch_execute("VACUUM (ANALYZE) bench").await?;
    }
    let client = connect(&url).await?;
    client.batch_execute("CREATE PUBLICATION peers FOR TABLE bench").await?;
    let engine = ground.debezium().await;
    let mut flows = Vec::new();
    for (run, _) in ground.size.runs() {
        for (kind, wanted) in [("plain", wanted.plain), ("tls", wanted.tls), ("apply", wanted.applied)] {
            if !wanted {
                continue;
            }
            let name = format!("{kind}{run}");
            let source = ours::open(&if kind == "tls" { over_tls(&url) } else { url.clone() })?;
            let flow = ours::flow_to_nothing(&name, source, Arc::new(Discard::default())).await?;
            flows.push((name.clone(), ours::begin(&flow).await?, flow));
            ground.create_slot(&url, &format!("peer_{name}")).await?;
            if kind == "plain" && engine.is_ok() {
                ground.create_slot(&url, &format!("engine_{name}")).await?;
            }
        }
    }
    ground.write_backlog(&url).await?;
    let end = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await?.get(0);
    let backlog = Backlog { url, end };
    let mut taken = flows.into_iter();
    let mut rows = Vec::new();
    let (mut plain, mut tls, mut applied) = (Pair::default(), Pair::default(), Pair::default());
    let (mut bare, mut by_engine) = (Samples::default(), Samples::default());
    let batches = if wanted.applied { batches(ground, &backlog.url).await? } else { Vec::new() };
    for (run, counts) in ground.size.runs() {
        if wanted.plain {
            drain(ground, &backlog, taken.next(), counts, &backlog.url, &mut plain).await?;
            if let Ok(engine) = &engine {
                drain_by(engine, ground, &backlog, &format!("engine_plain{run}"), counts, &mut by_engine)
                    .await?;
            }
        }
        if wanted.tls {
            drain(ground, &backlog, taken.next(), counts, &over_tls(&backlog.url), &mut tls).await?;
        }
        if wanted.applied {
            apply(ground, &backlog, taken.next(), counts, &mut applied).await?;
            let target = copy_of(ground, BASE, &format!("bare{run}")).await?;
            let start = Instant::now();
            peers::bare_apply(&target, &batches).await?;
            bare.push_if(counts, rate(ground.size.changes(), start));
            drop_database(ground, &format!("bare{run}")).await?;
        }
    }
    let unit = "changes/s";
    if wanted.plain {
        rows.push(Row::new("drain-null", unit, &plain.own, "pg_recvlogical", &plain.theirs, 2.0));
        let against = format!("Debezium engine {}", debezium::VERSION);
        rows.push(Row::new("drain-null", unit, &plain.own, &against, &by_engine, 8.0).measured_or(&engine));
    }
    if wanted.tls {
        rows.push(Row::new("drain-null-tls", unit, &tls.own, "pg_recvlogical", &tls.theirs, 1.5));
    }
    if wanted.applied {
        let own = &applied.own;
        rows.push(Row::new("drain-pg", unit, own, "PostgreSQL's subscription", &applied.theirs, 1.15));
        let is_slower =
            |a: &Samples, b: &Samples| a.spread().zip(b.spread()).is_some_and(|(a, b)| a.median < b.median);
        let slower = if is_slower(&plain.own, &bare) { &plain.own } else { &bare };
        rows.push(Row::new("drain-pg", unit, own, "the slower of drain and bare apply", slower, 0.85));
    }
    Ok(rows)
}

#[derive(Default)]
struct Pair {
    own: Samples,
    theirs: Samples,
}

type Begun = (String, Checkpoint, Flow);

fn missing() -> crate::Error {
    "a run has no flow".into()
}

async fn drain(
    ground: &Ground,
    backlog: &Backlog,
    begun: Option<Begun>,
    counts: bool,
    url: &str,
    pair: &mut Pair,
) -> Result<()> {
    let (name, checkpoint, mut flow) = begun.ok_or_else(missing)?;
    let nothing = Discard { resume: Some(checkpoint), ..Discard::default() };
    flow.target = Arc::new(nothing.clone());
    ground.settle().await?;
    let start = Instant::now();
    ours::run(&flow).await?;
    pair.own.push_if(counts, rate(ground.size.changes(), start));
    ours::clean(&flow).await?;
    // As many as were written, since none is to a row of another one, and the row at the end.
    if ground.size.has_distinct_changes() {
        equal(nothing.taken(), ground.size.changes() + 1)?;
    }
    let slot = format!("peer_{name}");
    let start = Instant::now();
    peers::recvlogical(url, &slot, &backlog.end).await?;
    pair.theirs.push_if(counts, rate(ground.size.changes(), start));
    ground.drop_slot(&backlog.url, &slot).await
}

/// From when the engine is told to run, as ours is: that Java starts first does not count.
async fn drain_by(
    engine: &Debezium,
    ground: &Ground,
    backlog: &Backlog,
    slot: &str,
    counts: bool,
    theirs: &mut Samples,
) -> Result<()> {
    ground.settle().await?;
    let wanted = ground.size.changes() + 1;
    let running = engine.start(&backlog.url, slot, wanted, None).await?;
    let start = Instant::now();
    running.finish(wanted).await?;
    theirs.push_if(counts, rate(ground.size.changes(), start));
    ground.drop_slot(&backlog.url, slot).await
}

async fn apply(
    ground: &Ground,
    backlog: &Backlog,
    begun: Option<Begun>,
    counts: bool,
    pair: &mut Pair,
) -> Result<()> {
    let (name, checkpoint, _) = begun.ok_or_else(missing)?;
    let wanted = count(&backlog.url).await?;
    let target = copy_of(ground, BASE, &name).await?;
    let flow = ours::flow(&name, ours::open(&backlog.url)?, ours::open(&target)?).await?;
    ours::hand_over(&flow, &checkpoint).await?;
    let start = Instant::now();
    ours::run(&flow).await?;
    pair.own.push_if(counts, rate(ground.size.changes(), start));
    ours::clean(&flow).await?;
    let found = count(&target).await?;
    drop_database(ground, &name).await?;

    let slot = format!("peer_{name}");
    let target = copy_of(ground, BASE, &slot).await?;
    let start = Instant::now();
    peers::subscription(&backlog.url, &target, &slot).await?;
    pair.theirs.push_if(counts, rate(ground.size.changes(), start));
    peers::end_subscription(&target, &slot).await?;
    let theirs = count(&target).await?;
    drop_database(ground, &slot).await?;
    ground.drop_slot(&backlog.url, &slot).await?;
    if (found, theirs) == (wanted, wanted) {
        Ok(())
    } else {
        Err(format!("{found} and {theirs} rows are there of {wanted}").into())
    }
}

/// A database of the target that is a copy of another one.
pub(super) async fn copy_of(ground: &Ground, base: &str, name: &str) -> Result<String> {
    let sql = format!("CREATE DATABASE {name} TEMPLATE {base} STRATEGY file_copy");
    ground.target.sql(&sql).await?;
    ground.settle().await?;
    let url = ground.target.database_url(name);
    // Both sides find the same pages in memory.
    connect(&url).await?.batch_execute("SELECT count(*), sum(id), max(upd) FROM bench").await?;
    Ok(url)
}

/// Removes a database of the target.
pub(super) async fn drop_database(ground: &Ground, name: &str) -> Result<()> {
    ground.target.sql(&format!("DROP DATABASE {name} WITH (FORCE)")).await?;
    Ok(())
}

/// The rows of the backlog as they are at its end, in batches in the order of the backlog.
async fn batches(ground: &Ground, url: &str) -> Result<Vec<Bytes>> {
    let mut batches = Vec::new();
    for query in queries(ground.size) {
        batches.push(peers::copied(url, &query).await?);
    }
    Ok(batches)
}

/// What gives the rows of each batch.
pub(super) fn queries(size: Size) -> impl Iterator<Item = String> {
    let (rows, transactions) = (size.rows, size.transactions);
    (0..transactions.div_ceil(BATCH_TRANSACTIONS)).map(move |batch| {
        let from = batch * BATCH_TRANSACTIONS;
        let upto = (from + BATCH_TRANSACTIONS).min(transactions);
        format!(
            "SELECT b.* FROM bench b WHERE b.id > {rows} + {from} * 50 AND b.id <= {rows} + {upto} * 50
            UNION ALL SELECT b.* FROM generate_series({from} * 50 + 1, {upto} * 50) u
            JOIN bench b ON b.id = u * {STEP}::int8 % {rows} + 1"
        )
    })
}
