//! Captured changes: whole transactions in commit order, in one contiguous buffer.

use std::fmt;
use std::ops::Range;

use crate::position::{Mark, Position};
use crate::rows::{Row, RowWriter};

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A row that was not there.
    Insert,
    /// A row that was there; a cell may be unchanged and not sent.
    Update,
    /// A row that is gone.
    Delete,
    /// All rows are gone.
    Truncate,
}

#[derive(Clone, Debug)]
struct Entry {
    table: u32,
    op: Op,
    row: Range<usize>,
    key: Range<usize>,
}

/// One change: a view into [`Changes`].
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The table, by its place in the list the feed was opened with.
    pub table: usize,
    /// What it does.
    pub op: Op,
    /// The new row, all its cells in the table's order (insert, update).
    pub row: Option<Row<'a>>,
    /// The key of the row as it was before: for a delete always, for an update if the key changed.
    pub old_key: Option<Row<'a>>,
}

/// A transaction, or a piece of one that is too large to be held in memory.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// What tells it from others in an [`AsOf`](crate::AsOf).
    pub mark: Mark,
    /// Where the source stands after it. For a piece that is not the last one: any position behind the transaction
    /// before and not behind the end of this one.
    pub position: Position,
    /// When it was committed, in microseconds since 1970, by the source's clock; 0 if the source does not say.
    pub committed_at: i64,
    /// Whether it is complete with this piece. A position counts only then.
    pub ends: bool,
    changes: Range<usize>,
}

/// Transactions in the order in which they were committed, in one contiguous buffer.
#[derive(Clone, Default)]
pub struct Changes {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    transactions: Vec<Transaction>,
    open: usize,
}

impl Changes {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many changes.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is neither a change nor a transaction.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.transactions.is_empty()
    }

    /// How many bytes the rows have.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a change to the transaction that the next [`Changes::end`] closes.
    pub fn push(
        &mut self,
        table: usize,
        op: Op,
        row: Option<&mut dyn FnMut(&mut RowWriter<'_>)>,
        old_key: Option<&mut dyn FnMut(&mut RowWriter<'_>)>,
    ) {
        let row = self.write(row);
        let key = self.write(old_key);
        self.entries.push(Entry { table: u32::try_from(table).unwrap_or(u32::MAX), op, row, key });
    }

    /// Appends a change whose frames stand elsewhere.
    pub fn push_rows(&mut self, table: usize, op: Op, row: Option<Row<'_>>, old_key: Option<Row<'_>>) {
        let mut copy = |frame: Option<Row<'_>>| {
            let start = self.bytes.len();
            if let Some(frame) = frame {
                self.bytes.extend_from_slice(frame.frame());
            }
            start..self.bytes.len()
        };
        let row = copy(row);
        let key = copy(old_key);
        self.entries.push(Entry { table: u32::try_from(table).unwrap_or(u32::MAX), op, row, key });
    }

    fn write(&mut self, write: Option<&mut dyn FnMut(&mut RowWriter<'_>)>) -> Range<usize> {
        let start = self.bytes.len();
        if let Some(write) = write {
            let mut writer = RowWriter::new(&mut self.bytes);
            write(&mut writer);
            writer.finish();
        }
        start..self.bytes.len()
    }

    /// Closes the transaction of the changes pushed since the last one.
    pub fn end(&mut self, mark: Mark, position: Position, committed_at: i64, ends: bool) {
        let changes = self.open..self.entries.len();
        self.open = self.entries.len();
        self.transactions.push(Transaction { mark, position, committed_at, ends, changes });
    }

    /// Gives each table the number that stands at its place: from a feed's list of tables to another one.
    pub fn renumber(&mut self, numbers: &[usize]) {
        for entry in &mut self.entries {
            let number = numbers.get(entry.table as usize).copied().unwrap_or(usize::MAX);
            entry.table = u32::try_from(number).unwrap_or(u32::MAX);
        }
    }

    /// The transactions, in order.
    pub fn transactions(&self) -> &[Transaction] {
        &self.transactions
    }

    /// The changes of a transaction of this buffer, in order.
    pub fn of(&self, transaction: &Transaction) -> impl ExactSizeIterator<Item = Change<'_>> {
        self.entries[transaction.changes.clone()].iter().map(|entry| self.view(entry))
    }

    /// The places of a transaction's changes, for [`Changes::change`].
    pub fn places(&self, transaction: &Transaction) -> Range<usize> {
        transaction.changes.clone()
    }

    /// The change at a place.
    ///
    /// # Panics
    /// If there is none.
    pub fn change(&self, at: usize) -> Change<'_> {
        self.view(&self.entries[at])
    }

    fn view(&self, entry: &Entry) -> Change<'_> {
        let frame = |range: &Range<usize>| {
            let frame = &self.bytes[range.clone()];
            (!frame.is_empty()).then(|| Row::written(frame))
        };
        Change {
            table: entry.table as usize,
            op: entry.op,
            row: frame(&entry.row),
            old_key: frame(&entry.key),
        }
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Changes({} in {} transactions, {} bytes)",
            self.count(),
            self.transactions.len(),
            self.bytes.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Cell;

    #[test]
    fn changes_belong_to_the_transaction_that_closes_them() {
        let mut changes = Changes::new();
        changes.push(0, Op::Insert, Some(&mut |row| row.cell(Cell::Bytes(b"1"))), None);
        changes.push(1, Op::Delete, None, Some(&mut |key| key.cell(Cell::Bytes(b"2"))));
        changes.end(5, Position::from_u64(10), 0, true);
        changes.push(0, Op::Truncate, None, None);
        changes.end(6, Position::from_u64(11), 0, true);
        let [first, second] = changes.transactions() else { panic!("two transactions") };
        let ops: Vec<_> =
            changes.of(first).map(|c| (c.table, c.op, c.row.is_some(), c.old_key.is_some())).collect();
        assert_eq!(ops, [(0, Op::Insert, true, false), (1, Op::Delete, false, true)]);
        assert_eq!(changes.of(second).next().map(|c| c.op), Some(Op::Truncate));
    }
}
