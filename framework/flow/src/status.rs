//! What a run shows of itself: one record that status, metrics and the progress bar read.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tidegate_core::port::{Checkpoint, Exclusion, Progress, Route};
use tidegate_core::{Changes, Clock, Position};

use crate::apply::Report;
use crate::options::Options;

/// The state of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableState {
    /// Nothing was read yet.
    NotStarted,
    /// Its rows are being read while its changes are applied.
    Crawling,
    /// All its rows were read; its changes are applied.
    Live,
    /// It stopped; the error says why.
    Failed,
    /// It was left out on request.
    Skipped,
}

/// One table of a status.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TableStatus {
    /// Its name in the source.
    pub source: String,
    /// Its name in the target.
    pub target: String,
    /// Its state.
    pub state: TableState,
    /// Why it stopped.
    pub error: Option<String>,
    /// About how many rows it has in the source.
    pub rows_estimated: u64,
    /// How often it was emptied to be crawled anew.
    pub restarts: u64,
    /// Changes of it that were applied.
    pub changes: u64,
    /// Chunks of its crawl that are in the target.
    pub chunks_done: u64,
    /// About how many chunks it has.
    pub chunks_estimated: u64,
    /// Rows of its crawl that are in the target.
    pub rows_crawled: u64,
    /// Ranges whose rows are all in the target.
    pub ranges_done: u64,
    /// Ranges it was cut into.
    pub ranges_total: u64,
    /// Crawled rows that a newer change had overtaken, and were dropped.
    pub rows_overtaken: u64,
    /// Crawled rows that newer changes had left columns to, and were merged.
    pub rows_completed: u64,
}

/// A run, or a flow between runs, as its last run left it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// Whether a runner had it when this record was made.
    pub running: bool,
    /// Whether the run is connected to both sides.
    #[serde(default)]
    pub connected: bool,
    /// Reads of the crawl at the same time.
    #[serde(default)]
    pub workers: usize,
    /// What ended the last run; while a runner has the flow, what broke the run that it tries to begin again.
    pub error: Option<String>,
    /// The tables, in the order of the plan.
    pub tables: Vec<TableStatus>,
    /// Changes applied since the flow began, as far as this record knows.
    pub changes_applied: u64,
    /// The position up to which the target has all changes, as hexadecimal digits.
    pub position: String,
    /// Bytes, or journal entries, that the source has and the target has not.
    pub behind: u64,
    /// Bytes of log or journal that the source keeps for the flow.
    #[serde(default)]
    pub held_bytes: u64,
    /// How much of what the source can bear that is, from 0 to 1; 0 if it has no bound.
    #[serde(default)]
    pub held_used: f64,
    /// When the change was committed that the target has last, in microseconds since 1970; 0 if the source does not say.
    pub applied_until: i64,
    /// When the target was last known to have all that the source had, in microseconds since 1970; 0 if it never was.
    #[serde(default)]
    pub level_at: i64,
    /// Whether everything delivered is in the target.
    pub drained: bool,
    /// Rows whose key moved and that were read again for the columns left out.
    pub rows_moved: u64,
    /// Rows that the target lacks for now: an update met none, or another row of the target has what is unique there.
    #[serde(default)]
    pub rows_missing: u64,
    /// Such rows that were read again and written.
    pub rows_healed: u64,
    /// How often reads were given up because too many changes came meanwhile.
    pub reads_given_up: u64,
    /// Rows crawled by this run, for its rate.
    pub run_rows: u64,
    /// Microseconds since 1970 when this record was made.
    pub at: i64,
}

impl Status {
    /// Whether every table is live, failed or skipped.
    pub fn is_crawled(&self) -> bool {
        self.tables.iter().all(|table| !matches!(table.state, TableState::NotStarted | TableState::Crawling))
    }

    /// The position up to which the target has all changes; the first one if none is known.
    pub fn place(&self) -> Position {
        let digits = self.position.as_bytes().chunks(2);
        let bytes: Option<Vec<u8>> = digits
            .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
            .collect();
        Position::new(bytes.unwrap_or_default())
    }

    /// Seconds between the newest change in the source and the newest in the target. While a side is away nobody knows
    /// what the source has got: then it is the time since both were level.
    pub fn lag_seconds(&self) -> f64 {
        let since = self.applied_until.max(self.level_at);
        if self.is_level() || since == 0 { 0.0 } else { (self.at - since).max(0) as f64 / 1e6 }
    }

    /// Whether the target has all that the source has, as far as the last look says.
    pub fn is_level(&self) -> bool {
        self.connected && self.drained && self.behind == 0 && self.rows_missing == 0
    }
}

/// Keeps the status of a run up to date.
#[derive(Debug, Default)]
pub struct Gauge {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    status: Status,
    /// Transactions delivered and not yet durable: position and time of commit.
    delivered: std::collections::VecDeque<(Position, i64)>,
    replay: Position,
    ranges: std::collections::BTreeMap<(usize, u32), (u64, bool)>,
}

impl Gauge {
    /// A gauge for these tables.
    pub fn new(routes: &[Route], options: &Options) -> Self {
        let tables = routes
            .iter()
            .map(|route| TableStatus {
                source: route.shape.table.name.to_string(),
                target: route.target.name.to_string(),
                state: TableState::NotStarted,
                error: None,
                rows_estimated: route.shape.table.rows_estimated,
                rows_crawled: 0,
                restarts: 0,
                changes: 0,
                chunks_done: 0,
                chunks_estimated: route.shape.table.rows_estimated.div_ceil(options.chunk_rows.max(1) as u64),
                ranges_done: 0,
                ranges_total: 0,
                rows_overtaken: 0,
                rows_completed: 0,
            })
            .collect();
        let gauge = Self::default();
        gauge.lock().status.tables = tables;
        gauge
    }

    /// The status as of now.
    pub fn read(&self, clock: &dyn Clock) -> Status {
        let mut inner = self.lock();
        inner.status.at = clock.now();
        // One that was never level is behind since it was looked at first.
        if inner.status.is_level() || inner.status.level_at == 0 {
            inner.status.level_at = inner.status.at;
        }
        inner.status.clone()
    }

    /// Goes on from what an earlier process counted.
    pub fn restore(&self, earlier: &Status) {
        let mut inner = self.lock();
        inner.status.changes_applied = earlier.changes_applied;
        inner.status.level_at = earlier.level_at;
        inner.status.rows_moved = earlier.rows_moved;
        for table in &mut inner.status.tables {
            if let Some(known) = earlier.tables.iter().find(|known| known.source == table.source) {
                table.changes = known.changes;
                table.restarts = known.restarts;
                table.chunks_done = known.chunks_done;
                // Until the target says it itself.
                table.rows_crawled = known.rows_crawled;
                table.rows_overtaken = known.rows_overtaken;
                table.rows_completed = known.rows_completed;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn strained(&self, held_bytes: u64, used: f64) {
        let mut inner = self.lock();
        inner.status.held_bytes = held_bytes;
        inner.status.held_used = used;
    }

    /// Where a restart would begin to read, as far as this run knows.
    pub(crate) fn replay(&self) -> Position {
        self.lock().replay.clone()
    }

    pub(crate) fn broke(&self, error: &tidegate_core::Error) {
        let status = &mut self.lock().status;
        (status.connected, status.error) = (false, Some(error.line()));
    }

    pub(crate) fn begin(&self, checkpoint: &Checkpoint, workers: usize) {
        let mut inner = self.lock();
        inner.status.workers = workers;
        (inner.status.connected, inner.status.error) = (true, None);
        inner.ranges = checkpoint.ranges.iter().map(|r| ((r.table, r.range), (r.rows, r.done))).collect();
        inner.delivered.clear();
        inner.replay = checkpoint.replay.clone();
        inner.status.position = hex(checkpoint.position.bytes());
        inner.status.drained = false;
        for table in 0..inner.status.tables.len() {
            inner.count(table);
        }
        for (table, why) in &checkpoint.excluded {
            let status = &mut inner.status.tables[*table];
            (status.state, status.error) = match why {
                Exclusion::Skipped => (TableState::Skipped, None),
                Exclusion::Failed(error) => (TableState::Failed, Some(error.clone())),
                Exclusion::Restarting => (TableState::NotStarted, None),
            };
        }
    }

    pub(crate) fn split(&self, table: usize, ranges: impl Iterator<Item = u32>) {
        let mut inner = self.lock();
        inner.ranges.retain(|(t, _), _| *t != table);
        inner.ranges.extend(ranges.map(|range| ((table, range), (0, false))));
        inner.status.tables[table].error = None;
        inner.count(table);
    }

    pub(crate) fn merged(&self, table: usize, overtaken: u64, completed: u64) {
        let mut inner = self.lock();
        inner.status.tables[table].rows_overtaken += overtaken;
        inner.status.tables[table].rows_completed += completed;
    }

    pub(crate) fn moved(&self) {
        self.lock().status.rows_moved += 1;
    }

    pub(crate) fn gave_up(&self) {
        self.lock().status.reads_given_up += 1;
    }

    pub(crate) fn missing(&self, rows: usize) {
        self.lock().status.rows_missing = rows as u64;
    }

    pub(crate) fn skipped(&self, table: usize) {
        self.lock().status.tables[table].state = TableState::Skipped;
    }

    pub(crate) fn progress(&self, progress: &Progress, changes: &Changes) {
        let mut inner = self.lock();
        inner.status.behind = progress.behind;
        if changes.transactions().is_empty() {
            inner.status.drained = inner.delivered.is_empty();
        }
        if let Some(last) = changes.transactions().last() {
            inner.delivered.push_back((last.position.clone(), last.committed_at));
            inner.status.drained = false;
        }
    }

    pub(crate) fn hear(&self, report: &Report) {
        let mut inner = self.lock();
        match report {
            Report::Durable { position, replay, changes } => {
                if let Some(replay) = replay {
                    inner.replay = replay.clone();
                }
                for (table, changes) in changes.iter().enumerate() {
                    inner.status.changes_applied += changes;
                    inner.status.tables[table].changes += changes;
                }
                inner.status.position = hex(position.bytes());
                while inner.delivered.front().is_some_and(|(delivered, _)| delivered <= position) {
                    if let Some((_, at)) = inner.delivered.pop_front() {
                        inner.status.applied_until = at;
                    }
                }
                inner.status.drained = inner.delivered.is_empty();
            }
            Report::Range(progress) => {
                let known =
                    inner.ranges.insert((progress.table, progress.range), (progress.rows, progress.done));
                inner.status.run_rows += progress.rows.saturating_sub(known.map_or(0, |(rows, _)| rows));
                inner.status.tables[progress.table].chunks_done += 1;
                inner.count(progress.table);
            }
            Report::Restarted { table } => {
                inner.status.tables[*table].restarts += 1;
                inner.status.tables[*table].chunks_done = 0;
            }
            Report::Holes(_) => {}
            Report::Filled { keys, .. } => inner.status.rows_healed += keys.len() as u64,
            Report::Failed { table, error } => {
                inner.status.tables[*table].state = TableState::Failed;
                inner.status.tables[*table].error = Some(error.line());
            }
        }
    }
}

/// Bytes as hexadecimal digits: their text compares as they do.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Inner {
    fn count(&mut self, table: usize) {
        let (mut total, mut done, mut rows) = (0, 0, 0);
        for (_, (range_rows, range_done)) in self.ranges.range((table, 0)..(table + 1, 0)) {
            total += 1;
            done += u64::from(*range_done);
            rows += range_rows;
        }
        let status = &mut self.status.tables[table];
        status.ranges_total = total;
        status.ranges_done = done;
        status.rows_crawled = rows;
        status.state = match (total, done) {
            (0, _) => TableState::NotStarted,
            (total, done) if total == done => TableState::Live,
            _ => TableState::Crawling,
        };
    }
}
