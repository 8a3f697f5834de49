//! Orders chunks to be read, and merges what was read with the changes that came meanwhile.

use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::Limit;
use tidegate_core::{Error, Result};

use super::{Sequencer, Waiting, What};
use crate::apply::Work;
use crate::crawl::{Order, ReadDone};

/// A chunk is not made smaller than this when memory is short.
const CHUNK_ROWS_MIN: usize = 100;

impl Sequencer<'_> {
    /// Until when reads wait because of the limit of how fast is crawled.
    pub(crate) fn reads_wait_until(&self) -> Option<Duration> {
        (self.is_crawling() && self.flow.clock.elapsed() < self.next_read_at).then_some(self.next_read_at)
    }

    /// Orders as many reads as may be under way.
    pub(crate) async fn order_reads(&mut self) -> Result<()> {
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

    /// Cuts a table into ranges. Their bounds are what readers see: everything that the window will not have has to
    /// be seen by then.
    async fn split(&mut self, table: usize) -> Result<()> {
        let parts = self.flow.options.workers.max(1) * self.flow.options.ranges_per_worker.max(1);
        let ranges = self.asker.split(&self.flow.routes[table].shape.table, parts).await?;
        let ranges = self.ledger.add(table, ranges);
        self.gauge.split(table, ranges.iter().map(|range| range.range));
        self.send(Work::Ranges { ranges }).await
    }

    /// How much of a table is read at a time.
    fn limit(&self, table: usize) -> Limit {
        let most = Limit { rows: self.chunk_rows, bytes: self.flow.options.chunk_bytes.max(1) };
        most.of_rows(self.row_bytes[table])
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

    /// Merges what was read as soon as the feed has passed its barrier, in the order in which it was read.
    pub(super) async fn merge_what_is_ready(&mut self) -> Result<()> {
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

    /// Too many changes came for the chunks being read: they are read again, smaller, when the source shows
    /// everything that was delivered.
    pub(super) fn give_up_reads(&mut self) {
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
    pub(super) fn end_unread(&mut self, waiting: Waiting) {
        self.window.end_read(waiting.read);
        if let What::Holes(keys) = waiting.what {
            self.holes.again(waiting.table, keys, self.flow.clock.elapsed());
        }
    }
}
