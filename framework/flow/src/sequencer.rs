//! Decides the order in which everything reaches the target.

mod filling;
mod moving;
mod reading;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::{Kind, code};
use tidegate_core::port::{Checkpoint, Crawler, Exclusion, RangeProgress, Side};
use tidegate_core::{AsOf, Changes, Error, Key, Position, Result, Rows, Transaction};
use tokio::sync::{mpsc, watch};

use crate::apply::{Report, Work};
use crate::capture::Delivered;
use crate::crawl::{Ledger, Order};
use crate::engine::{Flow, MaxRate, Request};
use crate::holes::Holes;
use crate::plant::{self, Bug};
use crate::status::Gauge;
use crate::window::Window;

/// Where the sequencer sends to.
pub(crate) struct Lines {
    pub(crate) work: mpsc::Sender<Work>,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) want: watch::Sender<Option<Position>>,
    pub(crate) acknowledge: watch::Sender<Option<Position>>,
}

/// Rows that were read and wait for the feed to pass their barrier.
struct Waiting {
    read: u64,
    as_of: AsOf,
    table: usize,
    rows: Rows,
    what: What,
}

/// What was read.
enum What {
    /// The next rows of a range.
    Chunk(RangeProgress),
    /// Rows of these keys, which the target lacks.
    Holes(Vec<Key>),
}

pub(crate) struct Sequencer<'a> {
    flow: &'a Flow,
    gauge: &'a Gauge,
    lines: Lines,
    window: Window,
    ledger: Ledger,
    /// Reads what has to be asked for in between: rows whose key moved, the present instant.
    asker: Box<dyn Crawler>,
    /// Everything before this was delivered.
    delivered: Position,
    /// Changes up to here were in the target when the run began.
    resumed_at: Position,
    /// The last transaction that was delivered goes on.
    in_transaction: bool,
    /// Changes up to here are in the target.
    durable: Position,
    /// What was last sent to the target as reached, and to be replayed from.
    reached: (Position, Position),
    excluded: BTreeSet<usize>,
    /// Tables whose changes the feed delivers.
    captured: Vec<usize>,
    /// A table is to take part whose changes the feed does not deliver.
    again: bool,
    paused: BTreeSet<usize>,
    paused_all: bool,
    /// No read may begin until the source shows every change up to here: those are not in the window.
    hold: Option<Position>,
    /// The transaction that goes on is not wholly in the window either.
    hold_open: bool,
    /// Chunks in the order in which they were read.
    waiting: Vec<Waiting>,
    reads: usize,
    holes: Holes,
    /// Reads with a smaller number were given up while they were under way.
    given_up: u64,
    chunk_rows: usize,
    /// Bytes of a row, by table, as the last chunk had them.
    row_bytes: Vec<usize>,
    /// Where the target has to be for the flow to have caught up.
    goal: Option<Position>,
    max_rate: MaxRate,
    next_read_at: Duration,
}

impl<'a> Sequencer<'a> {
    pub(crate) fn new(
        flow: &'a Flow,
        gauge: &'a Gauge,
        asker: Box<dyn Crawler>,
        checkpoint: &Checkpoint,
        captured: Vec<usize>,
        lines: Lines,
    ) -> Self {
        gauge.begin(checkpoint, flow.options.workers);
        Self {
            flow,
            gauge,
            lines,
            window: Window::new(checkpoint.replay.clone()),
            ledger: Ledger::new(checkpoint.ranges.clone()),
            asker,
            delivered: checkpoint.replay.clone(),
            resumed_at: checkpoint.position.clone(),
            in_transaction: false,
            durable: checkpoint.position.clone(),
            reached: (checkpoint.position.clone(), checkpoint.replay.clone()),
            excluded: checkpoint.excluded.iter().map(|(table, _)| *table).collect(),
            captured,
            again: false,
            paused: BTreeSet::new(),
            paused_all: false,
            // What came before is in the target, or was truncated there since. It is not merged: it has to be seen.
            hold: (!plant::is(Bug::StaleWindowAfterCrash)).then(|| checkpoint.position.clone()),
            hold_open: false,
            waiting: Vec::new(),
            reads: 0,
            holes: Holes::default(),
            given_up: 0,
            chunk_rows: flow.options.chunk_rows.max(1),
            row_bytes: flow.routes.iter().map(|route| route.shape.table.row_bytes_estimated()).collect(),
            goal: None,
            max_rate: MaxRate::default(),
            next_read_at: Duration::ZERO,
        }
    }

    /// Orders the first reads.
    pub(crate) async fn start(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        if !plant::is(Bug::HolesForgotten) {
            self.add_holes(checkpoint.holes.clone());
        }
        // A table that was to be crawled anew when the last run ended.
        for (table, _) in checkpoint.excluded.iter().filter(|(_, why)| *why == Exclusion::Restarting) {
            self.restart(*table).await?;
        }
        self.end_hold();
        self.order_reads().await
    }

    /// Crawls a table anew.
    async fn restart(&mut self, table: usize) -> Result<()> {
        self.leave_out(table);
        self.ledger.forget(table);
        self.excluded.remove(&table);
        // From here on its changes are kept; what was delivered before has to be shown by its first read.
        self.hold_reads();
        self.goal = None;
        self.gauge.split(table, std::iter::empty());
        self.again |= !self.captured.contains(&table);
        self.send(Work::Restart { table }).await
    }

    /// Whether another run has to begin, with another list of tables.
    pub(crate) fn wants_another_run(&self) -> bool {
        self.again
    }

    /// Leaves out the table that an error of the source is about.
    ///
    /// # Errors
    /// The error itself, if it is about more than one table of this flow.
    pub(crate) async fn exclude_for(&mut self, error: Error) -> Result<()> {
        let table = self.flow.table_of(Side::Source, &error).filter(|table| !self.excluded.contains(table));
        let Some(table) = table.filter(|_| error.kind() == Kind::Data) else { return Err(error) };
        self.exclude(table, error).await
    }

    async fn exclude(&mut self, table: usize, error: Error) -> Result<()> {
        self.leave_out(table);
        self.send(Work::Exclude { table, why: Exclusion::Failed(error.line()) }).await?;
        tracing::error!(table = %self.flow.routes[table].shape.table.name, %error, "a table stopped");
        self.gauge.hear(&Report::Failed { table, error });
        Ok(())
    }

    async fn send(&self, work: Work) -> Result<()> {
        self.lines.work.send(work).await.map_err(|_| Error::new(code::INTERNAL, "the applier has ended"))
    }

    fn is_crawling(&self) -> bool {
        (0..self.flow.routes.len())
            .any(|table| !self.excluded.contains(&table) && !self.ledger.is_done(table))
    }

    /// The feed delivered something, or says how far it is.
    pub(crate) async fn deliver(&mut self, delivered: Delivered) -> Result<()> {
        let Delivered { changes, progress } = delivered;
        self.gauge.progress(&progress, &changes);
        if !changes.transactions().is_empty() {
            for changes in self.cut(changes) {
                self.deliver_piece(changes).await?;
            }
        }
        self.delivered = progress.position;
        if plant::is(Bug::AcknowledgeDelivered) {
            self.lines.acknowledge.send_replace(Some(self.delivered.clone()));
        }
        if self.window.bytes() > self.flow.options.window_bytes {
            self.give_up_reads();
        }
        if self.goal.is_some() {
            self.send_reached().await?;
        }
        self.end_hold();
        self.merge_what_is_ready().await?;
        self.order_reads().await
    }

    async fn deliver_piece(&mut self, changes: Changes) -> Result<()> {
        let changes = Arc::new(self.complete_moves(changes).await?);
        self.window.deliver(&changes, self.keeps_changes());
        if let Some(transaction) = changes.transactions().iter().find(|transaction| transaction.ends)
            && std::mem::take(&mut self.hold_open)
        {
            self.hold = Some(transaction.position.clone());
        }
        self.in_transaction = changes.transactions().last().is_some_and(|transaction| !transaction.ends);
        // What the target has already is only for the window.
        let known = |transaction: &Transaction| transaction.position <= self.resumed_at;
        let first = changes.transactions().partition_point(known);
        if first < changes.transactions().len() {
            self.send(Work::Changes { changes, first }).await?;
        }
        Ok(())
    }

    /// The target says what it has.
    pub(crate) async fn hear(&mut self, report: Report) -> Result<()> {
        self.gauge.hear(&report);
        match report {
            Report::Durable { position, replay, .. } => {
                self.durable = position;
                if let Some(replay) = replay {
                    self.lines.acknowledge.send_replace(Some(replay));
                }
            }
            Report::Restarted { .. } => {}
            Report::Range(progress) => self.ledger.durable(&progress),
            Report::Failed { table, error } => {
                tracing::error!(table = %self.flow.routes[table].shape.table.name, %error, "a table stopped");
                self.leave_out(table);
            }
            Report::Holes(holes) => {
                self.add_holes(holes);
                self.look().await?;
            }
            Report::Filled { table, keys, kept_out } => self.filled(table, keys, kept_out).await?,
        }
        self.order_reads().await
    }

    fn leave_out(&mut self, table: usize) {
        self.excluded.insert(table);
        self.holes.forget(table);
        self.gauge.missing(self.holes.len());
        let (gone, kept) = std::mem::take(&mut self.waiting).into_iter().partition(|w| w.table == table);
        self.waiting = kept;
        let gone: Vec<Waiting> = gone;
        gone.into_iter().for_each(|waiting| self.end_unread(waiting));
    }

    /// Somebody asks for something.
    pub(crate) async fn heed(&mut self, request: Request) -> Result<()> {
        match request {
            Request::Pause(None) => self.paused_all = true,
            Request::Resume(None) => self.paused_all = false,
            Request::Pause(Some(table)) => drop(self.paused.insert(table)),
            Request::Resume(Some(table)) => drop(self.paused.remove(&table)),
            Request::MaxRate(rate) => {
                self.max_rate = rate;
                self.next_read_at = Duration::ZERO;
            }
            Request::Again => self.again = true,
            Request::Skip(table) => {
                self.leave_out(table);
                self.gauge.skipped(table);
                self.send(Work::Exclude { table, why: Exclusion::Skipped }).await?;
            }
            Request::Recopy(table) => self.restart(table).await?,
        }
        self.order_reads().await
    }

    /// Regularly: looks at the present instant, checkpoints progress without changes, lets the source forget.
    pub(crate) async fn tick(&mut self) -> Result<()> {
        self.look().await?;
        self.send_reached().await?;
        self.order_reads().await
    }

    /// No read begins before the source shows everything delivered so far.
    fn hold_reads(&mut self) {
        self.hold = Some(self.delivered.clone().max(self.resumed_at.clone()));
        self.hold_open = self.in_transaction;
    }

    /// Looks at the present instant, if something waits to be seen.
    async fn look(&mut self) -> Result<()> {
        if !self.window.is_seen() || self.window.bytes() > 0 {
            let as_of = self.asker.as_of().await?;
            self.window.saw(&as_of);
        }
        self.end_hold();
        Ok(())
    }

    fn end_hold(&mut self) {
        let seen = |upto: &Position| self.delivered >= *upto && self.window.is_seen_to(upto);
        if !self.hold_open && self.hold.as_ref().is_some_and(seen) {
            self.hold = None;
        }
    }

    /// Checkpoints how far the feed is although there were no changes, and where a restart would replay from.
    async fn send_reached(&mut self) -> Result<()> {
        if self.in_transaction || self.delivered < self.resumed_at {
            return Ok(());
        }
        let reached = (self.delivered.clone(), self.window.replay(&self.delivered));
        if reached != self.reached {
            self.reached = reached.clone();
            self.send(Work::Reached { position: reached.0, replay: reached.1 }).await?;
        }
        Ok(())
    }

    /// Whether all tables are crawled, and what the source had when they were is in the target.
    pub(crate) async fn has_caught_up(&mut self) -> Result<bool> {
        if self.is_crawling() || self.in_transaction || !self.holes.is_empty() {
            return Ok(false);
        }
        if self.goal.is_none() {
            self.goal = Some(self.asker.as_of().await?.barrier);
            self.merge_what_is_ready().await?;
            self.send_reached().await?;
        }
        // At once where nothing has changed since: no event would come before the next tick.
        Ok(self.goal.as_ref().is_some_and(|goal| self.durable >= *goal))
    }
}
