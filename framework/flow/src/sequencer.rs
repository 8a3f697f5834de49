//! Decides the order in which everything reaches the target.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::{Kind, code};
use tidegate_core::port::{Checkpoint, Crawler, Exclusion, Limit, RangeProgress, Side};
use tidegate_core::{AsOf, Changes, Error, Key, Op, Position, Result, Row, Rows, Transaction};
use tokio::sync::{mpsc, watch};

use crate::apply::{Report, Work};
use crate::capture::Delivered;
use crate::crawl::{Ledger, Order, ReadDone};
use crate::engine::{Flow, MaxRate, Request};
use crate::holes::{Hole, Holes};
use crate::plant::{self, Bug};
use crate::status::Gauge;
use crate::window::Window;

/// A chunk is not made smaller than this when memory is short.
const CHUNK_ROWS_MIN: usize = 100;

/// How long to wait before looking again whether a logged commit is seen: as long as a commit may wait for a standby.
const SEEN_WAIT: Duration = Duration::from_millis(10);

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

    /// Cuts a table into ranges. Their bounds are what readers see: everything that the window will not have has to
    /// be seen by then.
    async fn split(&mut self, table: usize) -> Result<()> {
        let parts = self.flow.options.workers.max(1) * self.flow.options.ranges_per_worker.max(1);
        let ranges = self.asker.split(&self.flow.routes[table].shape.table, parts).await?;
        let ranges = self.ledger.add(table, ranges);
        self.gauge.split(table, ranges.iter().map(|range| range.range));
        self.send(Work::Ranges { ranges }).await
    }

    async fn send(&self, work: Work) -> Result<()> {
        self.lines.work.send(work).await.map_err(|_| Error::new(code::INTERNAL, "the applier has ended"))
    }

    fn is_crawling(&self) -> bool {
        (0..self.flow.routes.len())
            .any(|table| !self.excluded.contains(&table) && !self.ledger.is_done(table))
    }

    /// Orders as many reads as may be under way.
    async fn order_reads(&mut self) -> Result<()> {
        self.read_holes().await?;
        for table in 0..self.flow.routes.len() {
            if self.hold.is_none() && !self.ledger.is_split(table) && !self.excluded.contains(&table) {
                self.split(table).await?;
            }
        }
        // One chunk a worker is read while another one waits or is written.
        let limit = self.flow.options.workers.max(1) * 2;
        while self.reads + self.waiting.len() < limit
            && self.reads < self.flow.options.workers.max(1)
            && self.hold.is_none()
            && !self.paused_all
            && self.window.bytes() <= self.flow.options.window_bytes / 2
            && self.flow.clock.elapsed() >= self.next_read_at
        {
            let may = |table: usize| !self.excluded.contains(&table) && !self.paused.contains(&table);
            let Some((table, range, rest)) = self.ledger.next(may) else { break };
            let read = self.window.begin_read();
            let order = Order { read, table, range, rest, limit: self.limit(table) };
            self.reads += 1;
            if self.lines.orders.send(order).await.is_err() {
                return Err(Error::new(code::INTERNAL, "the readers have ended"));
            }
        }
        Ok(())
    }

    /// How much of a table is read at a time.
    fn limit(&self, table: usize) -> Limit {
        let bytes = self.flow.options.chunk_bytes.max(1);
        // Best reached by the rows: not every source can stop where the bytes do.
        let rows = self.chunk_rows.min(bytes / self.row_bytes[table].max(1)).max(1);
        Limit { rows, bytes }
    }

    /// A read came back.
    pub(crate) async fn chunk_read(&mut self, done: ReadDone) -> Result<()> {
        let ReadDone { order, chunk, rows } = done;
        self.reads -= 1;
        if !rows.is_empty() {
            self.row_bytes[order.table] = rows.bytes().len() / rows.len();
        }
        self.window.saw(&chunk.as_of);
        self.end_hold();
        if order.read < self.given_up || self.excluded.contains(&order.table) {
            self.window.end_read(order.read);
        } else if let Some(progress) = self.ledger.read(&order, chunk.next, rows.len()) {
            let pause = self.max_rate.time(rows.len(), rows.bytes().len());
            if !pause.is_zero() {
                self.next_read_at = self.flow.clock.elapsed().max(self.next_read_at) + pause;
            }
            let (read, table, what) = (order.read, order.table, What::Chunk(progress));
            self.waiting.push(Waiting { read, as_of: chunk.as_of, table, rows, what });
            self.merge_what_is_ready().await?;
        } else {
            self.window.end_read(order.read);
        }
        self.order_reads().await
    }

    /// Reads rows that the target lacks, if no read is to wait.
    async fn read_holes(&mut self) -> Result<()> {
        if self.hold.is_some() {
            return Ok(());
        }
        let Some((table, keys)) = self.holes.take(self.flow.clock.elapsed()) else { return Ok(()) };
        let read = self.window.begin_read();
        let mut rows = Rows::new();
        let as_of = self.asker.fetch(&self.flow.routes[table].shape.table, &keys, &mut rows).await?;
        self.window.saw(&as_of);
        self.waiting.push(Waiting { read, as_of, table, rows, what: What::Holes(keys) });
        self.merge_what_is_ready().await
    }

    /// Merges what was read as soon as the feed has passed its barrier, in the order in which it was read.
    async fn merge_what_is_ready(&mut self) -> Result<()> {
        while !self.in_transaction
            && self.waiting.first().is_some_and(|first| first.as_of.barrier <= self.delivered)
        {
            let Waiting { read, as_of, table, rows, what } = self.waiting.remove(0);
            let shape = &self.flow.routes[table].shape;
            let progress = match what {
                What::Chunk(progress) => progress,
                What::Holes(keys) => {
                    self.fill(table, keys, rows, &as_of).await?;
                    self.window.end_read(read);
                    continue;
                }
            };
            let merged = self.window.overlay(table, shape, rows, &as_of)?;
            self.gauge.merged(table, merged.overtaken, merged.completed);
            let fresh = merged.overtaken == 0 && merged.completed == 0;
            self.ledger.sent(&progress);
            // What was too many changes may have been one large transaction.
            self.chunk_rows =
                (self.chunk_rows + self.chunk_rows / 8 + 1).min(self.flow.options.chunk_rows.max(1));
            self.send(Work::Chunk { table, rows: merged.rows, progress, fresh }).await?;
            self.window.end_read(read);
        }
        let want =
            self.waiting.first().map(|first| first.as_of.barrier.clone()).or_else(|| self.goal.clone());
        self.lines.want.send_if_modified(|now| {
            let changed = *now != want;
            *now = want;
            changed
        });
        Ok(())
    }

    /// Sends what was read of rows that the target lacks. A newer change has said what becomes of some: whether the
    /// target could do it is not known here, so they are read again.
    async fn fill(&mut self, table: usize, keys: Vec<Key>, rows: Rows, as_of: &AsOf) -> Result<()> {
        let shape = &self.flow.routes[table].shape;
        let (fill, rows, again) = self.window.untouched(table, shape, keys, &rows, as_of)?;
        self.holes.again(table, again, self.flow.clock.elapsed());
        if fill.is_empty() {
            return Ok(());
        }
        self.send(Work::Fill { table, keys: fill, rows }).await
    }

    /// Whether changes are kept for reads that may not show them.
    fn keeps_changes(&self) -> bool {
        self.is_crawling() || !self.holes.is_empty()
    }

    /// The target lacks these rows.
    fn add_holes(&mut self, holes: Vec<Hole>) {
        let kept = self.keeps_changes();
        let now = self.flow.clock.elapsed();
        for hole in holes {
            if !self.excluded.contains(&hole.0) {
                self.holes.add(hole, now);
            }
        }
        if !kept && !self.holes.is_empty() {
            // What was delivered so far is not in the window: it has to be shown by what is read.
            self.hold_reads();
        }
        self.gauge.missing(self.holes.len());
    }

    /// Rows that the target lacked were sent: it has some now, and others are kept out by rows that it has.
    async fn filled(&mut self, table: usize, keys: Vec<Key>, kept_out: Vec<Key>) -> Result<()> {
        self.holes.filled(table, keys);
        self.gauge.missing(self.holes.len());
        let now = self.flow.clock.elapsed();
        let due = now + self.flow.options.acknowledge_every;
        let Some(key) = self.holes.kept_out(table, kept_out, now, due) else { return Ok(()) };
        let route = &self.flow.routes[table];
        let what = "a row cannot be written: another row of the target has what is unique there, and in the source both \
            are there";
        let error = Error::new(code::CONSTRAINT_VIOLATED, what)
            .with("table", &route.target.name)
            .with("key", route.shape.show_key(key.row()));
        self.exclude(table, error).await
    }

    /// The feed delivered something, or says how far it is.
    pub(crate) async fn deliver(&mut self, delivered: Delivered) -> Result<()> {
        let Delivered { changes, progress } = delivered;
        self.gauge.progress(&progress, &changes);
        if !changes.transactions().is_empty() {
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

    /// Too many changes came for the chunks being read: they are read again, smaller, when the source shows
    /// everything that was delivered.
    fn give_up_reads(&mut self) {
        tracing::info!(
            bytes = self.window.bytes(),
            "too many changes while reading; chunks are read again, smaller"
        );
        self.gauge.gave_up();
        if self.reads + self.waiting.len() > 0 {
            self.chunk_rows = (self.chunk_rows / 2).max(CHUNK_ROWS_MIN.min(self.chunk_rows));
        }
        self.given_up = self.window.next_read();
        for waiting in std::mem::take(&mut self.waiting) {
            self.end_unread(waiting);
        }
        for table in 0..self.flow.routes.len() {
            self.ledger.give_up(table);
        }
        self.window.clear();
        self.hold_reads();
    }

    /// What was read is not merged.
    fn end_unread(&mut self, waiting: Waiting) {
        self.window.end_read(waiting.read);
        if let What::Holes(keys) = waiting.what {
            self.holes.again(waiting.table, keys, self.flow.clock.elapsed());
        }
    }

    /// No read begins before the source shows everything delivered so far.
    fn hold_reads(&mut self) {
        self.hold = Some(self.delivered.clone().max(self.resumed_at.clone()));
        self.hold_open = self.in_transaction;
    }

    /// An update that changed the key and left columns out cannot be written where the new key has no row. The row
    /// is read from the source, at an instant that shows the change; what comes after it is delivered after it.
    async fn complete_moves(&mut self, changes: Changes) -> Result<Changes> {
        let is_partial_move = |at: usize| {
            let change = changes.change(at);
            change.op == Op::Update && change.old_key.is_some() && change.row.is_some_and(Row::is_partial)
        };
        if !(0..changes.count()).any(is_partial_move) || plant::is(Bug::MovesNotCompleted) {
            return Ok(changes);
        }
        let mut out = Changes::new();
        for transaction in changes.transactions() {
            for at in changes.places(transaction) {
                let change = changes.change(at);
                match change.row {
                    Some(row) if is_partial_move(at) => {
                        let key = self.flow.routes[change.table].shape.cut_key(row);
                        let rows = self.read_row(change.table, key, transaction).await?;
                        self.gauge.moved();
                        if rows.is_empty() {
                            // It is gone by now; a later change says so.
                            out.push_rows(change.table, Op::Delete, None, change.old_key);
                        } else {
                            out.push_rows(change.table, Op::Update, Some(rows.row(0)), change.old_key);
                        }
                    }
                    row => out.push_rows(change.table, change.op, row, change.old_key),
                }
            }
            out.end(
                transaction.mark,
                transaction.position.clone(),
                transaction.committed_at,
                transaction.ends,
            );
        }
        Ok(out)
    }

    async fn read_row(&mut self, table: usize, key: Key, transaction: &Transaction) -> Result<Rows> {
        loop {
            let mut rows = Rows::new();
            let keys = std::slice::from_ref(&key);
            let as_of = self.asker.fetch(&self.flow.routes[table].shape.table, keys, &mut rows).await?;
            if as_of.shows(transaction.mark) {
                return Ok(rows);
            }
            // It is in the log and not yet seen.
            self.flow.clock.sleep(SEEN_WAIT).await;
        }
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
