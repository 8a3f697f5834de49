//! What is left to crawl, and the tasks that read it.

use std::collections::VecDeque;
use std::sync::Arc;

use tidegate_core::port::{Chunk, Crawler, KeyRange, Limit, RangeProgress};
use tidegate_core::{Key, Result, Rows, Table};
use tokio::sync::{Mutex, mpsc};

/// One read: the next chunk of a range.
#[derive(Debug)]
pub(crate) struct Order {
    /// Its number in the window.
    pub(crate) read: u64,
    pub(crate) table: usize,
    pub(crate) range: u32,
    pub(crate) rest: KeyRange,
    pub(crate) limit: Limit,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct ReadDone {
    pub(crate) order: Order,
    pub(crate) chunk: Chunk,
    pub(crate) rows: Rows,
}

/// Reads chunks as they are ordered.
pub(crate) async fn reader(
    mut crawler: Box<dyn Crawler>,
    tables: Vec<Arc<Table>>,
    orders: Arc<Mutex<mpsc::Receiver<Order>>>,
    done: mpsc::UnboundedSender<ReadDone>,
) -> Result<()> {
    loop {
        // Whichever reader is free waits for the next order.
        let Some(order) = orders.lock().await.recv().await else { break };
        let mut rows = Rows::new();
        let chunk = crawler.read(&tables[order.table], &order.rest, order.limit, &mut rows).await?;
        if let Some((_, field)) = chunk.surplus.first() {
            return Err(tables[order.table].surplus(field));
        }
        if done.send(ReadDone { order, chunk, rows }).is_err() {
            break;
        }
    }
    Ok(())
}

/// How far the crawl of every range is: in the target (`durable`), and how far it has been read.
#[derive(Debug)]
pub(crate) struct Ledger {
    ranges: Vec<Entry>,
    next_range: u32,
    /// Ranges that may be read further, in turn.
    ready: VecDeque<usize>,
}

#[derive(Debug)]
struct Entry {
    durable: RangeProgress,
    /// What was merged and is on its way to the target.
    sent: RangeProgress,
    /// What is left to be read; `None` while it is being read, and when nothing is left.
    unread: Option<KeyRange>,
    /// Rows read so far.
    rows: u64,
}

impl Entry {
    fn new(durable: RangeProgress) -> Self {
        Self {
            unread: (!durable.done).then(|| durable.rest.clone()),
            rows: durable.rows,
            sent: durable.clone(),
            durable,
        }
    }
}

impl Ledger {
    pub(crate) fn new(ranges: Vec<RangeProgress>) -> Self {
        let ranges: Vec<Entry> = ranges.into_iter().map(Entry::new).collect();
        let ready = (0..ranges.len()).filter(|at| ranges[*at].unread.is_some()).collect();
        let next_range = ranges.iter().map(|entry| entry.durable.range + 1).max().unwrap_or(0);
        Self { ranges, next_range, ready }
    }

    /// Takes in the ranges of a table and numbers them. No number is used twice, so that what is still on its way
    /// for a range of an earlier crawl is not mistaken for this one's.
    pub(crate) fn add(&mut self, table: usize, ranges: Vec<KeyRange>) -> Vec<RangeProgress> {
        let mut added = Vec::new();
        for rest in ranges {
            let progress = RangeProgress { table, range: self.next_range, rest, rows: 0, done: false };
            self.next_range += 1;
            self.ready.push_back(self.ranges.len());
            self.ranges.push(Entry::new(progress.clone()));
            added.push(progress);
        }
        added
    }

    pub(crate) fn forget(&mut self, table: usize) {
        self.ranges.retain(|entry| entry.durable.table != table);
        self.ready = (0..self.ranges.len()).filter(|at| self.ranges[*at].unread.is_some()).collect();
    }

    /// The next range to read from, of a table that `may` be read.
    pub(crate) fn next(&mut self, may: impl Fn(usize) -> bool) -> Option<(usize, u32, KeyRange)> {
        let at = self.ready.iter().position(|at| may(self.ranges[*at].durable.table))?;
        let entry = &mut self.ranges[self.ready.remove(at)?];
        let rest = entry.unread.take()?;
        Some((entry.durable.table, entry.durable.range, rest))
    }

    /// A chunk of so many rows was read: what follows it may be read. Returns the range's progress once the chunk
    /// is in the target.
    pub(crate) fn read(&mut self, order: &Order, next: Option<Key>, rows: usize) -> Option<RangeProgress> {
        let at = self.place(order.table, order.range)?;
        let entry = &mut self.ranges[at];
        entry.rows += rows as u64;
        let done = next.is_none();
        let rest = KeyRange { after: next, upto: order.rest.upto.clone() };
        if !done {
            entry.unread = Some(rest.clone());
            self.ready.push_front(at);
        }
        Some(RangeProgress { table: order.table, range: order.range, rest, rows: entry.rows, done })
    }

    /// Reads of a table were given up: it is read again from what was sent.
    pub(crate) fn give_up(&mut self, table: usize) {
        for at in 0..self.ranges.len() {
            let entry = &mut self.ranges[at];
            if entry.durable.table != table {
                continue;
            }
            *entry = Entry { durable: entry.durable.clone(), ..Entry::new(entry.sent.clone()) };
            self.ready.retain(|ready| *ready != at);
            if entry.unread.is_some() {
                self.ready.push_back(at);
            }
        }
    }

    /// A merged chunk is on its way.
    pub(crate) fn sent(&mut self, progress: &RangeProgress) {
        if let Some(at) = self.place(progress.table, progress.range) {
            self.ranges[at].sent = progress.clone();
        }
    }

    /// A merged chunk is in the target.
    pub(crate) fn durable(&mut self, progress: &RangeProgress) {
        if let Some(at) = self.place(progress.table, progress.range) {
            self.ranges[at].durable = progress.clone();
        }
    }

    fn place(&self, table: usize, range: u32) -> Option<usize> {
        self.ranges.iter().position(|e| e.durable.table == table && e.durable.range == range)
    }

    /// Whether a table was cut into ranges.
    pub(crate) fn is_split(&self, table: usize) -> bool {
        self.ranges.iter().any(|entry| entry.durable.table == table)
    }

    /// Whether a table was cut into ranges and all of them are in the target.
    pub(crate) fn is_done(&self, table: usize) -> bool {
        self.is_split(table)
            && self.ranges.iter().filter(|entry| entry.durable.table == table).all(|entry| entry.durable.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::Key;

    fn key(byte: u8) -> Option<Key> {
        Some(Key([byte].into()))
    }

    #[test]
    fn a_range_given_up_is_read_again_from_what_was_sent() {
        let rest = KeyRange { after: None, upto: key(9) };
        let mut ledger =
            Ledger::new(vec![RangeProgress { table: 0, range: 0, rest: rest.clone(), rows: 0, done: false }]);
        assert!(ledger.next(|_| false).is_none());
        assert_eq!(ledger.next(|_| true), Some((0, 0, rest)));
        assert!(ledger.next(|_| true).is_none(), "one read of a range at a time");
        let order = Order {
            read: 0,
            table: 0,
            range: 0,
            rest: KeyRange { after: None, upto: key(9) },
            limit: Limit::rows(2),
        };
        let progress = ledger.read(&order, key(4), 2).unwrap();
        assert_eq!((progress.rows, progress.done, progress.rest.after), (2, false, key(4)));
        assert!(ledger.next(|_| true).is_some());
        let sent = KeyRange { after: key(2), upto: key(9) };
        ledger.sent(&RangeProgress { table: 0, range: 0, rest: sent.clone(), rows: 1, done: false });
        ledger.give_up(0);
        assert_eq!(ledger.next(|_| true), Some((0, 0, sent)));
        assert!(!ledger.is_done(0));
    }
}
