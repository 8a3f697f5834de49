//! The task that owns the sink: the one place where the target is written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_core::error::{Kind, Verdict, code};
use tidegate_core::port::{Batch, Checkpoint, Commit, Exclusion, RangeProgress, Side, Sink, TableBatch};
use tidegate_core::{Changes, Error, Key, Position, Result, Rows};
use tokio::sync::mpsc;

use crate::coalesce::Coalescer;
use crate::engine::Flow;
use crate::holes::Hole;
use crate::plant::{self, Bug};

/// Work, in the order in which it has to reach the target.
#[derive(Debug)]
pub(crate) enum Work {
    /// Transactions of the source from a place on; those before are in the target already.
    Changes { changes: Arc<Changes>, first: usize },
    /// A merged chunk.
    Chunk { table: usize, rows: Rows, progress: RangeProgress, fresh: bool },
    /// A table begins anew, with no rows and no ranges. It takes part again if it did not.
    Restart { table: usize },
    /// What is in the source of these keys, which the target lacks. Every change sent before is shown.
    Fill { table: usize, keys: Vec<Key>, rows: Rows },
    /// New ranges of a table, before any of its chunks.
    Ranges { ranges: Vec<RangeProgress> },
    /// There are no changes up to here, and a restart may replay from there.
    Reached { position: Position, replay: Position },
    /// This table is left out from now on.
    Exclude { table: usize, why: Exclusion },
}

/// What the target has.
#[derive(Debug)]
pub(crate) enum Report {
    /// Changes up to here, how many by table, and what a restart would replay from.
    Durable { position: Position, replay: Option<Position>, changes: Vec<u64> },
    /// A range's progress.
    Range(RangeProgress),
    /// A table is empty, to be crawled anew.
    Restarted { table: usize },
    /// Rows that the target lacks.
    Holes(Vec<Hole>),
    /// Of the rows that it lacked, those that it has now, and those that it could not take again.
    Filled { table: usize, keys: Vec<Key>, kept_out: Vec<Key> },
    /// A table cannot go on; it is left out.
    Failed { table: usize, error: Error },
}

pub(crate) struct Applier {
    sink: Box<dyn Sink>,
    flow: Flow,
    coalescer: Coalescer,
    excluded: BTreeSet<usize>,
    /// Of these, what the target does not know yet.
    excluded_since: Vec<(usize, Exclusion)>,
    /// Of which tables rows are still to come.
    crawling: Crawling,
    /// Where the last whole transaction taken by the coalescer ends.
    position: Option<Position>,
    /// How many changes were taken since a position was durable, by table.
    changes: Vec<u64>,
    /// The sink holds a piece of a transaction that has not ended.
    open: bool,
    /// Pieces of that transaction were applied without a commit.
    has_pieces: bool,
    reports: mpsc::UnboundedSender<Report>,
}

impl Applier {
    pub(crate) fn new(
        sink: Box<dyn Sink>,
        flow: Flow,
        checkpoint: &Checkpoint,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Self {
        let excluded = checkpoint.excluded.iter().map(|(table, _)| *table).collect();
        let crawling = Crawling::new(&checkpoint.ranges);
        let changes = vec![0; flow.routes.len()];
        let coalescer = Coalescer::new(flow.routes.iter().map(|route| route.shape.clone()).collect());
        Self {
            sink,
            flow,
            coalescer,
            excluded,
            excluded_since: Vec::new(),
            crawling,
            position: None,
            changes,
            open: false,
            has_pieces: false,
            reports,
        }
    }

    pub(crate) async fn run(mut self, mut work: mpsc::Receiver<Work>) -> Result<()> {
        while let Some(next) = work.recv().await {
            self.take(next).await?;
            // What has come meanwhile joins the batch; when nothing has, there is no reason to wait.
            while let Ok(next) = work.try_recv() {
                self.take(next).await?;
            }
            self.flush(None).await?;
        }
        self.sink.close().await
    }

    async fn take(&mut self, work: Work) -> Result<()> {
        match work {
            Work::Changes { changes, first } => {
                for transaction in &changes.transactions()[first..] {
                    for change in changes.of(transaction) {
                        if self.excluded.contains(&change.table) {
                            continue;
                        }
                        match self.coalescer.take(change) {
                            Ok(()) => self.changes[change.table] += 1,
                            Err(error) => self.exclude(change.table, error)?,
                        }
                    }
                    self.open = !transaction.ends;
                    if transaction.ends {
                        self.position = Some(transaction.position.clone());
                    }
                    if self.is_full() {
                        self.flush(None).await?;
                    }
                }
                Ok(())
            }
            Work::Chunk { table, rows, progress, fresh } => {
                self.flush(None).await?;
                if self.excluded.contains(&table) {
                    return Ok(());
                }
                let part = TableBatch { table, upserts: rows, fresh, ..TableBatch::default() };
                let commit = Commit { ranges: vec![progress.clone()], ..Commit::default() };
                let holes = self.apply(Batch { tables: vec![part] }, Some(commit)).await?;
                self.report_holes(holes);
                if !self.excluded.contains(&table) {
                    self.crawling.read(&progress);
                    self.report(Report::Range(progress));
                }
                Ok(())
            }
            Work::Restart { table } => {
                self.flush(None).await?;
                self.excluded.remove(&table);
                self.crawling.begin(table);
                // First the intention, durably: without transactions the target may be emptied and the rest lost.
                let exclude = vec![(table, Exclusion::Restarting)];
                let intention = Commit { forget: vec![table], exclude, ..Commit::default() };
                self.apply(Batch::default(), Some(intention)).await?;
                // What an earlier crawl wrote may be gone from the source by now.
                let truncate = !plant::is(Bug::RecopyKeepsRows);
                let part = TableBatch { table, truncate, ..TableBatch::default() };
                let commit = Commit { forget: vec![table], ..Commit::default() };
                self.apply(Batch { tables: vec![part] }, Some(commit)).await?;
                self.report(Report::Restarted { table });
                Ok(())
            }
            Work::Fill { table, keys, rows } => {
                self.flush(None).await?;
                if self.excluded.contains(&table) {
                    return Ok(());
                }
                let part = TableBatch { table, upserts: rows, ..TableBatch::default() };
                let filled = keys.iter().map(|key| (table, key.clone())).collect();
                let commit = Commit { filled, ..Commit::default() };
                let holes = self.apply(Batch { tables: vec![part] }, Some(commit)).await?;
                let kept_out: Vec<Key> = holes.into_iter().map(|(_, key)| key).collect();
                let keys = keys.into_iter().filter(|key| !kept_out.contains(key)).collect();
                self.report(Report::Filled { table, keys, kept_out });
                Ok(())
            }
            Work::Ranges { ranges } => {
                self.flush(None).await?;
                self.crawling.split(&ranges);
                let commit = Commit { ranges, ..Commit::default() };
                self.apply(Batch::default(), Some(commit)).await.map(drop)
            }
            Work::Reached { position, replay } => {
                if !self.open {
                    self.position = Some(position);
                    self.flush(Some(replay)).await?;
                }
                Ok(())
            }
            Work::Exclude { table, why } => {
                self.flush(None).await?;
                self.excluded.insert(table);
                let commit = Commit { exclude: vec![(table, why)], ..Commit::default() };
                self.apply(Batch::default(), Some(commit)).await.map(drop)
            }
        }
    }

    fn is_full(&self) -> bool {
        self.coalescer.changes() >= self.flow.options.batch_changes
            || self.coalescer.bytes() >= self.flow.options.batch_bytes
    }

    /// Applies what was collected; durably unless it ends within a transaction of the source.
    async fn flush(&mut self, replay: Option<Position>) -> Result<()> {
        if self.coalescer.changes() == 0 && (self.position.is_none() || self.open) {
            return Ok(());
        }
        if self.open && !self.is_full() {
            return Ok(());
        }
        let mut batch = self.coalescer.finish()?;
        batch.tables.iter_mut().for_each(|part| part.crawling = self.crawling.has(part.table));
        if self.open {
            let holes = self.apply(batch, None).await?;
            self.report_holes(holes);
            return Ok(());
        }
        let position = self.position.take();
        let commit = Commit { position: position.clone(), replay: replay.clone(), ..Commit::default() };
        let holes = self.apply(batch, Some(commit)).await?;
        self.report_holes(holes);
        if let Some(position) = position {
            let none = vec![0; self.changes.len()];
            let mut changes = std::mem::replace(&mut self.changes, none);
            self.excluded.iter().for_each(|table| changes[*table] = 0);
            self.report(Report::Durable { position, replay, changes });
        }
        Ok(())
    }

    /// Applies a batch and gives what it could not write. A table that the target refuses is left out, durably, and the
    /// rest is applied.
    async fn apply(&mut self, mut batch: Batch, mut commit: Option<Commit>) -> Result<Vec<Hole>> {
        loop {
            // Also what was collected before a table was left out.
            let takes_part = |table: usize| !self.excluded.contains(&table);
            batch.tables.retain(|part| takes_part(part.table));
            if !self.excluded_since.is_empty() {
                let commit = commit.get_or_insert_default();
                commit.ranges.retain(|range| takes_part(range.table));
                commit.filled.retain(|(table, _)| takes_part(*table));
                commit.exclude.append(&mut self.excluded_since);
            }
            let error = match self.sink.apply(&batch, commit.as_ref()).await {
                Ok(applied) => {
                    self.has_pieces = commit.is_none();
                    return Ok(applied.holes);
                }
                Err(error) => error,
            };
            let Some(table) = self.flow.table_of(Side::Target, &error) else { return Err(error) };
            self.exclude(table, error)?;
            if self.has_pieces {
                return Err(self.begin_again().await?);
            }
        }
    }

    /// Leaves tables out durably, and gives the error that ends the run: what the target had of the transaction may be
    /// gone with the piece that it refused.
    async fn begin_again(&mut self) -> Result<Error> {
        let commit = Commit { exclude: std::mem::take(&mut self.excluded_since), ..Commit::default() };
        self.sink.apply(&Batch::default(), Some(&commit)).await?;
        let what = "a table was left out within a transaction of the source; the transaction is read again";
        Ok(Error::new(code::STORE_FAILED, what).verdict_is(Verdict::Retry))
    }

    /// A table cannot go on: it is left out, durably with what is applied next.
    ///
    /// # Errors
    /// The error itself, if it is about more than one table.
    fn exclude(&mut self, table: usize, error: Error) -> Result<()> {
        // Before a run a table that is missing or differs is refused; within one it is the trouble of that table.
        let is_of_table = [code::TABLE_MISSING, code::TARGET_DIFFERS].contains(&error.code());
        if error.kind() != Kind::Data && !is_of_table {
            return Err(error);
        }
        if !self.excluded.insert(table) {
            return Err(Error::new(code::INTERNAL, "a table that is left out was refused").because(error));
        }
        self.excluded_since.push((table, Exclusion::Failed(error.line())));
        self.report(Report::Failed { table, error });
        Ok(())
    }

    fn report_holes(&self, holes: Vec<Hole>) {
        if !holes.is_empty() {
            self.report(Report::Holes(holes));
        }
    }

    fn report(&self, report: Report) {
        // Nobody listens any more only when the flow is ending.
        let _ = self.reports.send(report);
    }
}

/// Ranges whose rows are not all in the target, by table; a table that was not cut into ranges has no entry.
struct Crawling(BTreeMap<usize, BTreeSet<u32>>);

impl Crawling {
    fn new(ranges: &[RangeProgress]) -> Self {
        let mut crawling = Self(BTreeMap::new());
        crawling.split(ranges);
        crawling
    }

    fn split(&mut self, ranges: &[RangeProgress]) {
        for range in ranges {
            let open = self.0.entry(range.table).or_default();
            if !range.done {
                open.insert(range.range);
            }
        }
    }

    /// A table is to be crawled anew.
    fn begin(&mut self, table: usize) {
        self.0.remove(&table);
    }

    fn read(&mut self, progress: &RangeProgress) {
        if let Some(open) = self.0.get_mut(&progress.table).filter(|_| progress.done) {
            open.remove(&progress.range);
        }
    }

    /// Whether rows of a table are still to come.
    fn has(&self, table: usize) -> bool {
        self.0.get(&table).is_none_or(|open| !open.is_empty())
    }
}
