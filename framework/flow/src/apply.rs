//! The task that owns the sink: the one place where the target is written.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate_core::error::{Kind, code};
use tidegate_core::port::{Batch, Commit, RangeProgress, Sink, TableBatch};
use tidegate_core::{Changes, Error, Key, Position, Result, Rows};
use tokio::sync::mpsc;

use crate::coalesce::Coalescer;
use crate::engine::Flow;
use crate::plant::{self, Bug};

/// Why a table takes no part between the moment it is to be crawled anew and the moment it is empty.
pub(crate) const CRAWL_ANEW: &str = "to be crawled anew";

/// Why a table takes no part that somebody left out.
pub(crate) const SKIPPED: &str = "skipped on request";

/// Work, in the order in which it has to reach the target.
#[derive(Debug)]
pub(crate) enum Work {
    /// Transactions of the source from a place on; those before are in the target already.
    Changes { changes: Arc<Changes>, first: usize },
    /// A merged chunk.
    Chunk { table: usize, rows: Rows, progress: RangeProgress, fresh: bool },
    /// A table begins anew, with no rows and no ranges. It takes part again if it did not.
    Restart { table: usize },
    /// Full rows that were read at an instant that shows every change sent before.
    Rows { table: usize, rows: Rows },
    /// New ranges of a table, before any of its chunks.
    Ranges { ranges: Vec<RangeProgress> },
    /// There are no changes up to here, and a restart may replay from there.
    Reached { position: Position, replay: Position },
    /// This table is left out from now on.
    Exclude { table: usize, reason: String },
}

/// What the target has.
#[derive(Debug)]
pub(crate) enum Report {
    /// Changes up to here, and what a restart would replay from.
    Durable { position: Position, replay: Option<Position>, changes: u64 },
    /// A range's progress.
    Range(RangeProgress),
    /// A table is empty, to be crawled anew.
    Restarted { table: usize },
    /// Updates of these keys met no row.
    Holes(Vec<(usize, Key)>),
    /// A table cannot go on; it is left out.
    Failed { table: usize, error: Error },
}

pub(crate) struct Applier {
    sink: Box<dyn Sink>,
    flow: Flow,
    coalescer: Coalescer,
    excluded: BTreeSet<usize>,
    /// Where the last whole transaction taken by the coalescer ends.
    position: Option<Position>,
    /// The sink holds a piece of a transaction that has not ended.
    open: bool,
    reports: mpsc::UnboundedSender<Report>,
}

impl Applier {
    pub(crate) fn new(
        sink: Box<dyn Sink>,
        flow: Flow,
        excluded: BTreeSet<usize>,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Self {
        let coalescer = Coalescer::new(flow.routes.iter().map(|route| route.shape.clone()).collect());
        Self { sink, flow, coalescer, excluded, position: None, open: false, reports }
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
                    for change in changes.of(transaction).filter(|c| !self.excluded.contains(&c.table)) {
                        self.coalescer.take(change)?;
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
                self.apply(Batch { tables: vec![part] }, Some(commit)).await?;
                if !self.excluded.contains(&table) {
                    self.report(Report::Range(progress));
                }
                Ok(())
            }
            Work::Restart { table } => {
                self.flush(None).await?;
                self.excluded.remove(&table);
                // First the intention, durably: without transactions the target may be emptied and the rest lost.
                let exclude = vec![(table, CRAWL_ANEW.to_owned())];
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
            Work::Rows { table, rows } => {
                self.flush(None).await?;
                if self.excluded.contains(&table) {
                    return Ok(());
                }
                let part = TableBatch { table, upserts: rows, ..TableBatch::default() };
                self.apply(Batch { tables: vec![part] }, Some(Commit::default())).await
            }
            Work::Ranges { ranges } => {
                self.flush(None).await?;
                let commit = Commit { ranges, ..Commit::default() };
                self.apply(Batch::default(), Some(commit)).await
            }
            Work::Reached { position, replay } => {
                if !self.open {
                    self.position = Some(position);
                    self.flush(Some(replay)).await?;
                }
                Ok(())
            }
            Work::Exclude { table, reason } => {
                self.flush(None).await?;
                self.excluded.insert(table);
                let commit = Commit { exclude: vec![(table, reason)], ..Commit::default() };
                self.apply(Batch::default(), Some(commit)).await
            }
        }
    }

    fn is_full(&self) -> bool {
        self.coalescer.changes() >= self.flow.options.batch_changes
            || self.coalescer.bytes() >= self.flow.options.batch_bytes
    }

    /// Applies what was collected; durably unless it ends within a transaction of the source.
    async fn flush(&mut self, replay: Option<Position>) -> Result<()> {
        let changes = self.coalescer.changes() as u64;
        if changes == 0 && (self.position.is_none() || self.open) {
            return Ok(());
        }
        if self.open && !self.is_full() {
            return Ok(());
        }
        let batch = self.coalescer.finish()?;
        if self.open {
            return self.apply(batch, None).await;
        }
        let position = self.position.take();
        let commit = Commit { position: position.clone(), replay: replay.clone(), ..Commit::default() };
        self.apply(batch, Some(commit)).await?;
        if let Some(position) = position {
            self.report(Report::Durable { position, replay, changes });
        }
        Ok(())
    }

    /// Applies a batch. A table that the target refuses is left out, durably, and the rest is applied.
    async fn apply(&mut self, mut batch: Batch, mut commit: Option<Commit>) -> Result<()> {
        loop {
            let error = match self.sink.apply(&batch, commit.as_ref()).await {
                Ok(applied) if applied.holes.is_empty() => return Ok(()),
                Ok(applied) => {
                    self.report(Report::Holes(applied.holes));
                    return Ok(());
                }
                Err(error) if error.kind() == Kind::Data => error,
                Err(error) => return Err(error),
            };
            let Some(table) = self.flow.table_of(&error) else { return Err(error) };
            if !self.excluded.insert(table) {
                return Err(Error::new(code::INTERNAL, "a table that is left out was refused").because(error));
            }
            batch.tables.retain(|part| part.table != table);
            let commit = commit.get_or_insert_default();
            commit.ranges.retain(|range| range.table != table);
            commit.exclude.push((table, error.line()));
            self.report(Report::Failed { table, error });
        }
    }

    fn report(&self, report: Report) {
        // Nobody listens any more only when the flow is ending.
        let _ = self.reports.send(report);
    }
}
