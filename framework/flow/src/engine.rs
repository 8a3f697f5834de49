//! One run of a flow: crawl and capture at once, merged, applied, checkpointed.
//!
//! ```text
//!   capture ──changes──▶ ┌───────────┐                ┌─────────┐
//!                        │ sequencer │ ──work, in──▶  │ applier │ ──▶ sink
//!   readers ──chunks───▶ │  window   │    one order   └─────────┘
//!      ▲                 └───────────┘ ◀──reports, durable─┘
//!      └──orders───────────────┘
//! ```
//!
//! The sequencer alone decides the order. Everything behind it may be lost at any moment: the target's checkpoint
//! says where to go on. A broken connection therefore ends the run, and [`crate::run`] starts another one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::{
    Batch, Catalog, ChangeFeed, Checkpoint, Commit, Crawler, Exclusion, Opened, Route, Side, Sink, Store,
};
use tidegate_core::{Clock, Error, FlowName, Position, Result, Scope, SystemClock, Table};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::apply::Applier;
use crate::capture::capture;
use crate::crawl::reader;
use crate::follow::check_described;
use crate::options::Options;
use crate::plan::Wanted;
use crate::plant::{self, Bug};
use crate::sequencer::{Lines, Sequencer};
use crate::status::Gauge;

/// What to run.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Its name.
    pub name: FlowName,
    /// Where rows and changes come from.
    pub source: Arc<dyn Store>,
    /// Where they go.
    pub target: Arc<dyn Store>,
    /// Which tables, and where to.
    pub routes: Vec<Route>,
    /// What the routes were made from, to be made anew when a table changes.
    pub wanted: Wanted,
    /// Tables that became what the flow cannot follow, by their place, and why. They take no part.
    pub refused: BTreeMap<usize, String>,
    /// Its limits.
    pub options: Options,
    /// Its clock.
    pub clock: Arc<dyn Clock>,
}

impl Flow {
    /// A flow with the usual limits, by the machine's clock. The tables of its routes have to be at the target
    /// ([`Catalog::create`]).
    pub fn new(
        name: FlowName,
        source: Arc<dyn Store>,
        target: Arc<dyn Store>,
        routes: Vec<Route>,
        wanted: Wanted,
    ) -> Self {
        let (options, clock) = (Options::default(), SystemClock::shared());
        Self { name, source, target, routes, wanted, refused: BTreeMap::new(), options, clock }
    }

    /// Which table an error of one side is about: its context names it as that side does.
    pub(crate) fn table_of(&self, side: Side, error: &Error) -> Option<usize> {
        let (_, named) = error.context().iter().find(|(fact, _)| *fact == "table")?;
        let name = |route: &Route| match side {
            Side::Source => route.shape.table.name.to_string(),
            Side::Target => route.target.name.to_string(),
        };
        self.routes.iter().position(|route| name(route) == *named)
    }

    /// Whether a look at both sides may explain an error: a table of the source is not what its route says, or is gone.
    pub(crate) fn is_of_a_changed_table(&self, error: &Error) -> bool {
        // A target's table that is gone is its applier's business, and does not get here.
        error.code() == code::SCHEMA_CHANGED
            || error.code() == code::TABLE_MISSING && self.table_of(Side::Source, error).is_some()
    }
}

/// How long to wait for the error of a part that others miss.
const CAUSE_WAIT: Duration = Duration::from_secs(1);

/// How long a source may be behind the target before it is taken for an older copy of itself, and how often that is looked at.
const BEHIND_FOR: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// When a run ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Never: only when it is told to stop.
    Stopped,
    /// When every table is crawled and what the source had then is in the target.
    CaughtUp,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop. What was in flight is durable.
    Stopped,
    /// It had caught up.
    CaughtUp,
    /// A table left, or came back: another run is to begin at once, from the checkpoint.
    Again,
}

/// How fast is crawled at most; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct MaxRate {
    /// Rows a second.
    pub rows: Option<u64>,
    /// Bytes of rows a second.
    pub bytes: Option<u64>,
}

impl MaxRate {
    /// How long these rows have to take.
    pub(crate) fn time(&self, rows: usize, bytes: usize) -> Duration {
        let time = |amount: usize, limit: Option<u64>| {
            limit.map_or(Duration::ZERO, |limit| Duration::from_secs_f64(amount as f64 / limit.max(1) as f64))
        };
        time(rows, self.rows).max(time(bytes, self.bytes))
    }
}

/// What a person asks of a run that is going on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// No new chunks are read from this table, or from any.
    Pause(Option<usize>),
    /// They are read again.
    Resume(Option<usize>),
    /// The table takes no part any more.
    Skip(usize),
    /// The table is crawled anew; it takes part again.
    Recopy(usize),
    /// How fast is crawled at most.
    MaxRate(MaxRate),
    /// Another run begins from the checkpoint, with options that changed.
    Again,
}

/// Runs a flow until it ends, is told to stop, or something breaks.
///
/// # Errors
/// The first error of any part. `schema-changed` or `table-missing` if a table of the source is not what its route says:
/// the flow is to be renewed ([`renew`](crate::renew)). With verdict retry or unknown another run may be started: it goes on from the
/// target's checkpoint.
pub async fn run_once(
    flow: &Flow,
    until: Until,
    gauge: &Gauge,
    requests: &mut mpsc::UnboundedReceiver<Request>,
    stop: &CancellationToken,
) -> Result<Ended> {
    let tables: Vec<Arc<Table>> = flow.routes.iter().map(|route| Arc::clone(&route.shape.table)).collect();
    let Some(ends) = stop.run_until_cancelled(Ends::open(flow, &tables)).await else {
        return Ok(Ended::Stopped);
    };
    let Ends { sink, checkpoint, captured, asker, feed, crawlers } = ends?;

    let mut scope = Scope::new();
    let (work, work_out) = mpsc::channel(4);
    let (orders, orders_out) = mpsc::channel(flow.options.workers.max(1));
    let (read_in, mut read_out) = mpsc::unbounded_channel();
    let (report_in, mut report_out) = mpsc::unbounded_channel();
    let (deliver_in, mut deliver_out) = mpsc::channel(2);
    let (want, want_out) = watch::channel(None);
    let (acknowledge, acknowledge_out) = watch::channel(None);
    let stop_capture = CancellationToken::new();

    let applier = Applier::new(sink, flow.clone(), &checkpoint, report_in);
    scope.spawn(applier.run(work_out));
    scope.spawn(capture(feed, captured.clone(), want_out, acknowledge_out, deliver_in, stop_capture.clone()));
    let orders_out = Arc::new(Mutex::new(orders_out));
    for crawler in crawlers {
        scope.spawn(reader(crawler, tables.clone(), Arc::clone(&orders_out), read_in.clone()));
    }
    drop((read_in, orders_out));

    let lines = Lines { work, orders, want, acknowledge };
    let mut sequencer = Sequencer::new(flow, gauge, asker, &checkpoint, captured, lines);
    let drive = async {
        sequencer.start(&checkpoint).await?;
        let mut tick_at = flow.clock.elapsed();
        loop {
            let wake_at = sequencer.reads_wait_until().map_or(tick_at, |reads_at| reads_at.min(tick_at));
            let pause = wake_at.saturating_sub(flow.clock.elapsed());
            tokio::select! {
                biased;
                // First, so that a run that could end at once does what was asked before it ends.
                Some(request) = requests.recv() => sequencer.heed(request).await?,
                Some(report) = report_out.recv() => sequencer.hear(report).await?,
                Some(done) = read_out.recv() => sequencer.chunk_read(done).await?,
                () = flow.clock.sleep(pause) => {
                    if flow.clock.elapsed() < tick_at {
                        sequencer.order_reads().await?;
                    } else {
                        tick_at = flow.clock.elapsed() + flow.options.acknowledge_every;
                        sequencer.tick().await?;
                    }
                }
                Some(delivered) = deliver_out.recv() => sequencer.deliver(delivered).await?,
            }
            if sequencer.wants_another_run() {
                return Ok(Ended::Again);
            }
            if until == Until::CaughtUp && requests.is_empty() && sequencer.has_caught_up().await? {
                return Ok(Ended::CaughtUp);
            }
        }
    };
    let outcome = tokio::select! {
        biased;
        // Whatever is waited for: what was not sent to the applier is as if it had never been read.
        () = stop.cancelled() => Ok(Ended::Stopped),
        // The error of a part is the cause; that others miss it is only what follows.
        Some(result) = scope.next() => Err(result.err().unwrap_or_else(|| {
            Error::new(code::INTERNAL, "a part of the flow ended before the flow")
        })),
        ended = drive => ended,
    };
    let outcome = match outcome {
        // A part that broke was missed before its own error arrived.
        Err(error) if error.code() == code::INTERNAL => tokio::select! {
            biased;
            Some(Err(cause)) = scope.next() => Err(cause),
            () = flow.clock.sleep(CAUSE_WAIT) => Err(error),
        },
        outcome => outcome,
    };
    let ended = match outcome {
        Ok(ended) => Ok(ended),
        // Perhaps the flow can follow: whoever runs it looks at the source anew.
        Err(error) if flow.is_of_a_changed_table(&error) => Err(error),
        // One table's trouble is its own: it is left out, durably, and the others go on.
        Err(error) => {
            sequencer.exclude_for(error).await?;
            Ok(Ended::Again)
        }
    };

    // Drain: nothing new is read; what is on its way arrives at the target and is checkpointed there.
    stop_capture.cancel();
    drop((deliver_out, read_out));
    drop(sequencer);
    while let Some(report) = report_out.recv().await {
        gauge.hear(&report);
    }
    scope.join().await?;
    ended
}

/// What a run is connected to.
struct Ends {
    sink: Box<dyn Sink>,
    checkpoint: Checkpoint,
    /// Tables whose changes the feed delivers.
    captured: Vec<usize>,
    asker: Box<dyn Crawler>,
    feed: Box<dyn ChangeFeed>,
    crawlers: Vec<Box<dyn Crawler>>,
}

impl Ends {
    async fn open(flow: &Flow, tables: &[Arc<Table>]) -> Result<Self> {
        let (mut sink, mut checkpoint) = open_sink(flow).await?;
        leave_out_refused(flow, sink.as_mut(), &mut checkpoint).await?;
        // A table that takes no part is not captured: what is wrong with it may be wrong with its changes.
        let takes_part = |table: &usize| !checkpoint.excluded.iter().any(|(excluded, _)| excluded == table);
        let captured: Vec<usize> = (0..tables.len()).filter(takes_part).collect();
        let captured_tables: Vec<_> = captured.iter().map(|table| Arc::clone(&tables[*table])).collect();
        let mut asker = flow.source.crawler().await?;
        check_source_reaches(flow.clock.as_ref(), asker.as_mut(), &checkpoint).await?;
        let from =
            if plant::is(Bug::StaleWindowAfterCrash) { &checkpoint.position } else { &checkpoint.replay };
        let feed = flow.source.change_feed(&flow.name, &captured_tables, &checkpoint.source, from).await?;
        let mut crawlers = Vec::new();
        for _ in 0..flow.options.workers.max(1) {
            crawlers.push(flow.source.crawler().await?);
        }
        Ok(Self { sink, checkpoint, captured, asker, feed, crawlers })
    }
}

/// Leaves out, durably, the tables that the flow cannot follow. Who was told to leave one out is not told again.
async fn leave_out_refused(flow: &Flow, sink: &mut dyn Sink, checkpoint: &mut Checkpoint) -> Result<()> {
    for (table, reason) in &flow.refused {
        let failed = Exclusion::Failed(reason.clone());
        let is_left_out = |why: &Exclusion| *why == failed || *why == Exclusion::Skipped;
        if checkpoint.excluded.iter().any(|(t, why)| t == table && is_left_out(why)) {
            continue;
        }
        let exclude = vec![(*table, failed)];
        let commit = Commit { forget: vec![*table], exclude: exclude.clone(), ..Commit::default() };
        sink.apply(&Batch::default(), Some(&commit)).await?;
        tracing::error!(table = %flow.routes[*table].shape.table.name, reason, "a table stopped");
        checkpoint.ranges.retain(|range| range.table != *table);
        checkpoint.excluded.retain(|(t, _)| t != table);
        checkpoint.excluded.extend(exclude);
        checkpoint.holes.retain(|(t, _)| t != table);
    }
    Ok(())
}

/// A source that has not got as far as the target is an older copy of itself, unless it gets there soon: a member that has
/// just become primary may still read at an earlier time.
async fn check_source_reaches(
    clock: &dyn Clock,
    asker: &mut dyn Crawler,
    checkpoint: &Checkpoint,
) -> Result<()> {
    let until = clock.elapsed() + BEHIND_FOR;
    let frontier = loop {
        let frontier = asker.as_of().await?.barrier;
        if frontier >= checkpoint.position {
            return Ok(());
        }
        if clock.elapsed() >= until {
            break frontier;
        }
        clock.sleep(LOOK_AGAIN).await;
    };
    Err(Error::new(
        code::SOURCE_REPLACED,
        "the source is behind what the target has from it: it was restored or replaced",
    )
    .with("source_is_at", frontier)
    .with("target_is_at", &checkpoint.position))
}

/// Captures the tables, but for those that take no part: what is wrong with one is nobody's trouble.
pub(crate) async fn begin_capture(flow: &Flow, source: &dyn Catalog) -> Result<Position> {
    let takes_part = |(at, _): &(usize, &Route)| !flow.refused.contains_key(at);
    let tables = flow.routes.iter().enumerate().filter(takes_part);
    let tables: Vec<_> = tables.map(|(_, route)| Arc::clone(&route.shape.table)).collect();
    source.capture(&flow.name, &tables).await
}

/// Opens the target. A flow that is new there starts to be captured first, so that nothing is missed between.
async fn open_sink(flow: &Flow) -> Result<(Box<dyn Sink>, Checkpoint)> {
    let source = flow.source.catalog().await?;
    let start = begin_capture(flow, source.as_ref()).await?;
    // What became of a table after it was described and before it was captured is told by no change.
    check_described(flow, source.as_ref()).await?;
    // A capture may be what gives a source its identity.
    let identity = source.identity().await?;
    let first = Checkpoint::first(identity.clone(), start);
    let mut sink = flow.target.sink(&flow.name, &flow.routes).await?;
    let checkpoint = match sink.open(&first).await? {
        Opened::New => first,
        Opened::Resumed(checkpoint) => checkpoint,
    };
    if checkpoint.source != identity {
        return Err(Error::new(
            code::SOURCE_REPLACED,
            "the source is not the database that this migration began with",
        )
        .with("began_with", &checkpoint.source.0)
        .with("found", &identity.0));
    }
    Ok((sink, checkpoint))
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tidegate_core::port::{Chunk, Identity, KeyRange, Limit};
    use tidegate_core::{AsOf, Key, Rows, SystemClock};

    use super::*;

    /// A source that is behind so often.
    struct Behind(u32);

    #[async_trait]
    impl Crawler for Behind {
        async fn split(&mut self, _: &Table, _: usize) -> Result<Vec<KeyRange>> {
            Ok(Vec::new())
        }

        async fn read(&mut self, _: &Table, _: &KeyRange, _: Limit, _: &mut Rows) -> Result<Chunk> {
            Err(Error::new(code::INTERNAL, "not asked for"))
        }

        async fn fetch(&mut self, _: &Table, _: &[Key], _: &mut Rows) -> Result<AsOf> {
            self.as_of().await
        }

        async fn as_of(&mut self) -> Result<AsOf> {
            let at = if self.0 == 0 { 7 } else { 6 };
            self.0 = self.0.saturating_sub(1);
            Ok(AsOf { upper: at, barrier: Position::from_u64(at), in_flight: Vec::new() })
        }
    }

    /// Found by reading: a member that had just become primary was taken for an older copy of the source.
    #[tokio::test(start_paused = true)]
    async fn a_source_that_is_behind_for_a_moment_is_no_older_copy() {
        let mut checkpoint = Checkpoint::first(Identity("shop".to_owned()), Position::from_u64(7));
        checkpoint.position = Position::from_u64(7);
        let reaches = async |times| {
            check_source_reaches(SystemClock::shared().as_ref(), &mut Behind(times), &checkpoint).await
        };
        reaches(0).await.unwrap();
        reaches(3).await.unwrap();
        assert_eq!(reaches(u32::MAX).await.unwrap_err().code(), code::SOURCE_REPLACED);
    }
}
