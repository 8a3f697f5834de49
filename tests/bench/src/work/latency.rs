//! `latency`: how long after its writing a row is applied, at a steady rate of small transactions.
//!
//! A row says itself when it was written: just before its transaction was committed. Ours ends when the target has
//! acknowledged the commit that holds the row; the peer's when its handler is given the row, which it then drops.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::port::{
    Applied, Batch, Catalog, ChangeFeed, Checkpoint, Commit, Crawler, Examiner, Identity, Opened, Route,
    Sink, StateStore, Store,
};
use tidegate_core::{Clock, FlowName, Position, Result as CoreResult, Table, Value};
use tidegate_flow::{Flow, Gauge, Until, run_once};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::ground::{Ground, connect, count_of};
use crate::peers::debezium;
use crate::report::{Row, Samples};
use crate::work::equal;
use crate::{Result, ours};

const ROWS_A_COMMIT: u64 = 20;
const COMMITS_A_SECOND: u64 = 100;
/// The column that says when a row was written.
const WRITTEN_AT: &str = "at_us";
/// This part of what comes, the first of it, finds both sides still cold and is not counted.
pub(super) const COLD: u64 = 4;
/// After the last row was written.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(60);

/// Both sides in turn, each beside its own writing.
pub async fn run(ground: &Ground) -> Result<Vec<Row>> {
    let table = format!("CREATE TABLE paced (id int8 PRIMARY KEY, {WRITTEN_AT} int8 NOT NULL, s text)");
    let url = ground.create_at_source("latency").await?;
    let target = ground.target.create_database("latency").await?;
    let client = connect(&url).await?;
    client.batch_execute(&format!("{table}; CREATE PUBLICATION peers FOR TABLE paced")).await?;
    let peer = ground.debezium().await;
    let (mut own, mut theirs) = (Percentiles::default(), Percentiles::default());
    for (run, counts) in ground.size.runs() {
        client.batch_execute("TRUNCATE paced").await?;
        let flow = ours::flow(&format!("latency{run}"), ours::open(&url)?, ours::open(&target)?).await?;
        connect(&target).await?.batch_execute("TRUNCATE paced").await?;
        ground.settle().await?;
        let ages = of_ours(ground, &url, &flow).await?;
        own.take(counts, ages);
        ours::clean(&flow).await?;
        equal(count_of(&target, "paced").await?, ground.size.paced_rows())?;

        if let Ok(peer) = &peer {
            client.batch_execute("TRUNCATE paced").await?;
            let slot = format!("peer_latency{run}");
            ground.create_slot(&url, &slot).await?;
            ground.settle().await?;
            let wanted = ground.size.paced_rows();
            let mut running = peer.start(&url, &slot, wanted, Some(WRITTEN_AT)).await?;
            running.connected().await?;
            write(ground, &url).await?;
            let ages = running.finish(wanted).await?;
            theirs.take(counts, ages);
            ground.drop_slot(&url, &slot).await?;
        }
    }
    let against = format!("Debezium engine {}, to its handler", debezium::VERSION);
    let rows = [
        Row::lower("latency p50", "ms", &own.middle, &against, &theirs.middle, 1.0),
        Row::lower("latency p99", "ms", &own.high, &against, &theirs.high, 2.0),
    ];
    let load = format!(
        "{} rows/s in commits of {ROWS_A_COMMIT} for {} s, the first of {COLD} parts not counted",
        ROWS_A_COMMIT * COMMITS_A_SECOND,
        ground.size.seconds
    );
    Ok(rows.map(|row| row.measured_or(&peer).with_note(load.clone())).into())
}

/// Percentiles of every run, in milliseconds.
#[derive(Default)]
pub(super) struct Percentiles {
    /// The 50th.
    pub(super) middle: Samples,
    /// The 99th.
    pub(super) high: Samples,
}

impl Percentiles {
    /// Takes the ages of what came in a run, in the order in which it came and in microseconds.
    pub(super) fn take(&mut self, counts: bool, mut ages: Vec<i64>) {
        ages.drain(..ages.len() / usize::try_from(COLD).unwrap_or(1));
        ages.sort_unstable();
        let at = |percent: usize| {
            let place = (ages.len() * percent).div_ceil(100).saturating_sub(1);
            ages.get(place).copied().unwrap_or_default() as f64 / 1_000.0
        };
        self.middle.push_if(counts, at(50));
        self.high.push_if(counts, at(99));
    }
}

/// Writes at the steady rate.
async fn write(ground: &Ground, url: &str) -> Result<()> {
    let client = connect(url).await?;
    let sql = format!(
        "INSERT INTO paced SELECT $1 + g, (extract(epoch FROM clock_timestamp()) * 1000000)::int8, md5(g::text)
        FROM generate_series(1, {ROWS_A_COMMIT}) g"
    );
    let statement = client.prepare_typed(&sql, &[tokio_postgres::types::Type::INT8]).await?;
    let mut next = interval(Duration::from_secs(1) / u32::try_from(COMMITS_A_SECOND)?);
    // What was missed is made up for: the rate is what it is said to be.
    next.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for commit in 0..ground.size.paced_rows() / ROWS_A_COMMIT {
        next.tick().await;
        client.execute(&statement, &[&i64::try_from(commit * ROWS_A_COMMIT)?]).await?;
    }
    Ok(())
}

/// How many rows are written in a time.
pub fn rows_in(seconds: u64) -> u64 {
    seconds * COMMITS_A_SECOND * ROWS_A_COMMIT
}

async fn of_ours(ground: &Ground, url: &str, flow: &Flow) -> Result<Vec<i64>> {
    let timed =
        Timed { inner: Arc::clone(&flow.target), clock: Arc::clone(&flow.clock), ages: Arc::default() };
    let ages = Arc::clone(&timed.ages);
    let flow = Flow { target: Arc::new(timed), ..flow.clone() };
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (_nobody_asks, mut requests) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let taken = || ages.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
    let writing = async {
        while !gauge.read(flow.clock.as_ref()).is_crawled() {
            flow.clock.sleep(Duration::from_millis(10)).await;
        }
        let written = write(ground, url).await;
        let until = flow.clock.elapsed() + ARRIVAL_LIMIT;
        while written.is_ok() && taken() < ground.size.paced_rows() && flow.clock.elapsed() < until {
            flow.clock.sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
        written
    };
    let running = Box::pin(run_once(&flow, Until::Stopped, &gauge, &mut requests, &stop));
    // A run that breaks is not waited for by the writing: it would be without end.
    let (ended, written) = tokio::join!(
        async {
            let ended = running.await;
            stop.cancel();
            ended
        },
        async {
            tokio::select! {
                biased;
                written = writing => written,
                () = stop.cancelled() => Ok(()),
            }
        }
    );
    ended?;
    written?;
    let ages = std::mem::take(&mut *ages.lock().unwrap_or_else(PoisonError::into_inner));
    equal(ages.len() as u64, ground.size.paced_rows())?;
    Ok(ages)
}

/// A target that notes how old every row is when its commit is acknowledged.
#[derive(Clone, Debug)]
struct Timed {
    inner: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    ages: Arc<Mutex<Vec<i64>>>,
}

struct TimedSink {
    inner: Box<dyn Sink>,
    routes: Vec<Route>,
    timed: Timed,
    /// When the rows were written that wait for a commit.
    open: Vec<i64>,
}

#[async_trait]
impl Store for Timed {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn catalog(&self) -> CoreResult<Arc<dyn Catalog>> {
        self.inner.catalog().await
    }

    async fn crawler(&self) -> CoreResult<Box<dyn Crawler>> {
        self.inner.crawler().await
    }

    async fn change_feed(
        &self,
        flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> CoreResult<Box<dyn ChangeFeed>> {
        self.inner.change_feed(flow, tables, source, from).await
    }

    async fn sink(&self, flow: &FlowName, routes: &[Route]) -> CoreResult<Box<dyn Sink>> {
        let inner = self.inner.sink(flow, routes).await?;
        Ok(Box::new(TimedSink { inner, routes: routes.to_vec(), timed: self.clone(), open: Vec::new() }))
    }

    async fn examiner(&self) -> CoreResult<Arc<dyn Examiner>> {
        self.inner.examiner().await
    }

    async fn state(&self) -> CoreResult<Arc<dyn StateStore>> {
        self.inner.state().await
    }
}

#[async_trait]
impl Sink for TimedSink {
    async fn open(&mut self, first: &Checkpoint) -> CoreResult<Opened> {
        self.inner.open(first).await
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> CoreResult<Applied> {
        let applied = self.inner.apply(batch, commit).await?;
        let now = self.timed.clock.now();
        for part in &batch.tables {
            let shape = &self.routes[part.table].shape;
            let Some(place) = shape.table.position(WRITTEN_AT) else { continue };
            for row in part.upserts.iter() {
                if let Some(Value::Int(written)) = shape.value(place, row.cell(place))? {
                    self.open.push(written);
                }
            }
        }
        if commit.is_some() {
            let mut ages = self.timed.ages.lock().unwrap_or_else(PoisonError::into_inner);
            ages.extend(self.open.drain(..).map(|written| now - written));
        }
        Ok(applied)
    }

    async fn close(self: Box<Self>) -> CoreResult<()> {
        self.inner.close().await
    }
}
