//! Reads rows that the target lacks, and sends them to it, until it has them.

use tidegate_core::error::code;
use tidegate_core::{AsOf, Error, Key, Result, Rows};

use super::{Sequencer, Waiting, What};
use crate::apply::Work;
use crate::holes::Hole;

/// Rows that are read at a time, as long as it is not known what one has.
const KEYS_UNWEIGHED: usize = 16;

impl Sequencer<'_> {
    /// Reads rows that the target lacks, if no read is to wait, as many as a chunk has at a time.
    pub(super) async fn read_holes(&mut self) -> Result<()> {
        if self.hold.is_some() || self.waiting.iter().any(|waiting| matches!(waiting.what, What::Holes(_))) {
            return Ok(());
        }
        let (bytes, row_bytes) = (self.flow.options.chunk_bytes, &self.row_bytes);
        // Of a table whose rows nobody has weighed yet some are read first.
        let limit = |table: usize| bytes.checked_div(row_bytes[table]).unwrap_or(KEYS_UNWEIGHED);
        let Some((table, keys)) = self.holes.take(self.flow.clock.elapsed(), limit) else { return Ok(()) };
        let read = self.window.begin_read();
        let mut rows = Rows::new();
        let as_of = self.asker.fetch(&self.flow.routes[table].shape.table, &keys, &mut rows).await?;
        self.window.saw(&as_of);
        if !rows.is_empty() {
            self.row_bytes[table] = rows.bytes().len() / rows.len();
        }
        self.waiting.push(Waiting { read, as_of, table, rows, what: What::Holes(keys) });
        self.merge_what_is_ready().await
    }

    /// Sends what was read of rows that the target lacks. A newer change has said what becomes of some: whether the
    /// target could do it is not known here, so they are read again.
    pub(super) async fn fill(
        &mut self,
        table: usize,
        keys: Vec<Key>,
        rows: Rows,
        as_of: &AsOf,
    ) -> Result<()> {
        let shape = &self.flow.routes[table].shape;
        let (fill, rows, again) = self.window.untouched(table, shape, keys, &rows, as_of)?;
        self.holes.again(table, again, self.flow.clock.elapsed());
        if fill.is_empty() {
            return Ok(());
        }
        self.send(Work::Fill { table, keys: fill, rows }).await
    }

    /// Whether changes are kept for reads that may not show them.
    pub(super) fn keeps_changes(&self) -> bool {
        self.is_crawling() || !self.holes.is_empty()
    }

    /// The target lacks these rows.
    pub(super) fn add_holes(&mut self, holes: Vec<Hole>) {
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
    pub(super) async fn filled(&mut self, table: usize, keys: Vec<Key>, kept_out: Vec<Key>) -> Result<()> {
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
}
