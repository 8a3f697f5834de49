//! The window: captured changes that a chunk may have been read without.
//!
//! A chunk is read at one instant while changes go on. When the feed has passed the chunk's barrier, every change
//! is either shown by the chunk's rows or stands in this window, and then (`overlay`) the chunk is merged:
//!
//! ```text
//!   feed   ──c1──c2──c3──c4──c5──▶          changes go to the target at once, in order
//!              │    └── chunk read here: shows c1, c2 and not c3 (logged, but not yet seen)
//!              └─ window keeps what some read under way may not show
//!   merge  = chunk rows, less keys that c3, c4 … settled, plus the columns that they left out
//! ```
//!
//! A newer change has already reached the target when its chunk is merged, so a chunk row whose key it settled is
//! dropped: it would be a lost update or a resurrected delete. A newer update that did not send all columns found
//! no row in the target; its columns are laid over the chunk's row, which has the others.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::plant::{self, Bug};

use tidegate_core::{AsOf, Cell, Changes, Key, Mark, Op, Position, Result, Row, Rows, Shape};

/// What a chunk has become.
#[derive(Debug)]
pub struct Merged {
    /// The rows that are to be written.
    pub rows: Rows,
    /// How many rows newer changes had overtaken. They were dropped.
    pub overtaken: u64,
    /// How many rows newer changes had left columns to. They were merged.
    pub completed: u64,
}

/// Changes kept until no read can miss them any more.
#[derive(Debug, Default)]
pub struct Window {
    segments: VecDeque<Arc<Changes>>,
    bytes: usize,
    /// Transactions that no read is known to show, in order.
    unseen: VecDeque<(Mark, Position)>,
    /// Every transaction up to here is shown by whoever reads the source now.
    replay: Position,
    /// Reads under way or not yet merged, by their number in the order in which they began.
    reads: VecDeque<u64>,
    next_read: u64,
    /// Instants with the number of the first read that began after each.
    horizons: VecDeque<(AsOf, u64)>,
}

impl Window {
    /// A window after which a restart would replay from `replay`.
    pub fn new(replay: Position) -> Self {
        Self { replay, ..Self::default() }
    }

    /// Takes in what the feed delivered. `keep` if any table is being crawled.
    pub fn deliver(&mut self, changes: &Arc<Changes>, keep: bool) {
        for transaction in changes.transactions() {
            match self.unseen.back_mut() {
                // Another piece of the same transaction.
                Some((mark, position)) if *mark == transaction.mark => {
                    *position = transaction.position.clone()
                }
                _ => self.unseen.push_back((transaction.mark, transaction.position.clone())),
            }
        }
        if keep && changes.count() > 0 {
            self.bytes += changes.bytes();
            self.segments.push_back(Arc::clone(changes));
        }
    }

    /// A read begins: whatever it may not show is kept from now on. Returns its number.
    pub fn begin_read(&mut self) -> u64 {
        let read = self.next_read;
        self.next_read += 1;
        self.reads.push_back(read);
        read
    }

    /// The number that the next read will have.
    pub fn next_read(&self) -> u64 {
        self.next_read
    }

    /// A read is merged, or given up.
    pub fn end_read(&mut self, read: u64) {
        self.reads.retain(|r| *r != read);
        self.trim();
    }

    /// Somebody read the source at this instant: later reads show what it shows.
    pub fn saw(&mut self, as_of: &AsOf) {
        while let Some((mark, position)) = self.unseen.front() {
            if !as_of.shows(*mark) {
                break;
            }
            if *position > self.replay {
                self.replay = position.clone();
            }
            self.unseen.pop_front();
        }
        self.horizons.push_back((as_of.clone(), self.next_read));
        self.trim();
    }

    /// Where a feed would have to be opened if this process ended now. While everything delivered is seen this is
    /// `delivered`, the feed's own position. It never goes back: the source may have forgotten what is before.
    pub fn replay(&mut self, delivered: &Position) -> Position {
        if self.unseen.is_empty() && *delivered > self.replay {
            self.replay = delivered.clone();
        }
        self.replay.clone()
    }

    /// Whether every transaction delivered so far is shown by whoever reads the source now.
    pub fn is_seen(&self) -> bool {
        self.unseen.is_empty()
    }

    /// Whether every transaction up to there is shown by whoever reads the source now.
    pub fn is_seen_to(&self, upto: &Position) -> bool {
        self.unseen.front().is_none_or(|(_, position)| position > upto)
    }

    /// Forgets the changes it keeps. Reads under way must be given up, and none may begin until what was delivered
    /// so far [is seen](Window::is_seen_to).
    pub fn clear(&mut self) {
        self.segments.clear();
        self.bytes = 0;
    }

    /// How many bytes of changes it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops what every read under way, and every later one, shows.
    fn trim(&mut self) {
        let oldest = self.reads.front().copied().unwrap_or(self.next_read);
        // The latest instant before which no read is under way.
        let mut usable = None;
        while self.horizons.front().is_some_and(|(_, first)| *first <= oldest) {
            usable = self.horizons.pop_front();
        }
        let Some((as_of, first)) = usable else { return };
        while let Some(segment) = self.segments.front() {
            if !segment.transactions().iter().all(|transaction| as_of.shows(transaction.mark)) {
                break;
            }
            self.bytes -= segment.bytes();
            self.segments.pop_front();
        }
        if self.horizons.is_empty() {
            // It stays usable: a segment that it does not show yet may be shown by a later one only, but one
            // delivered late (a feed behind the reads) may be dropped by this one.
            self.horizons.push_front((as_of, first));
        }
    }

    /// Merges a chunk of a table with every newer change. To be called when the feed has passed the barrier.
    ///
    /// # Errors
    /// As the codec's.
    pub fn overlay(&self, table: usize, shape: &Shape, rows: Rows, as_of: &AsOf) -> Result<Merged> {
        let fates = self.fates(table, shape, as_of)?;
        let mut merged = Merged { rows, overtaken: 0, completed: 0 };
        if fates.keys.is_empty() && !fates.truncated || plant::is(Bug::NoOverlay) {
            return Ok(merged);
        }
        let chunk = std::mem::take(&mut merged.rows);
        let mut identity = Vec::new();
        for row in chunk.iter() {
            identity.clear();
            shape.identity_of_row(row, &mut identity)?;
            match fates.keys.get(&identity) {
                Some(Fate::Settled) => merged.overtaken += 1,
                Some(Fate::Patched(_)) | None if fates.truncated => merged.overtaken += 1,
                Some(Fate::Patched(patches)) => {
                    merged.completed += 1;
                    merged.rows.push_with(|out| {
                        for (at, cell) in row.cells().enumerate() {
                            let newest = patches.iter().rev().map(|patch| patch.cell(at));
                            let cell =
                                newest.into_iter().find(|cell| *cell != Cell::Unchanged).unwrap_or(cell);
                            out.cell(cell);
                        }
                    });
                }
                None => merged.rows.push(row),
            }
        }
        Ok(merged)
    }

    /// Parts keys and what was read of them: those that no change touched which the instant does not show, with
    /// their rows, and the others.
    ///
    /// # Errors
    /// As the codec's.
    pub(crate) fn untouched(
        &self,
        table: usize,
        shape: &Shape,
        keys: Vec<Key>,
        rows: &Rows,
        as_of: &AsOf,
    ) -> Result<(Vec<Key>, Rows, Vec<Key>)> {
        let fates = self.fates(table, shape, as_of)?;
        let is_touched = |identity: &Vec<u8>| {
            (fates.truncated || fates.keys.contains_key(identity)) && !plant::is(Bug::HolesFilledStale)
        };
        let (mut untouched, mut kept, mut touched) = (Vec::new(), Rows::new(), Vec::new());
        let mut identity = Vec::new();
        for key in keys {
            identity.clear();
            shape.key_of(key.row(), &mut identity)?;
            if is_touched(&identity) { &mut touched } else { &mut untouched }.push(key);
        }
        for row in rows.iter() {
            identity.clear();
            shape.identity_of_row(row, &mut identity)?;
            if !is_touched(&identity) {
                kept.push(row);
            }
        }
        Ok((untouched, kept, touched))
    }

    fn fates(&self, table: usize, shape: &Shape, as_of: &AsOf) -> Result<Fates<'_>> {
        let mut fates = Fates::default();
        let newer = self.segments.iter().flat_map(|segment| {
            let newer = segment.transactions().iter().filter(|transaction| !as_of.shows(transaction.mark));
            newer.flat_map(|transaction| segment.of(transaction))
        });
        for change in newer.filter(|change| change.table == table) {
            if change.op == Op::Delete && plant::is(Bug::WindowForgetsDeletes) {
                continue;
            }
            if change.op == Op::Truncate {
                fates.keys.clear();
                fates.truncated = true;
                continue;
            }
            if let Some(old) = change.old_key {
                let mut identity = Vec::new();
                shape.key_of(old, &mut identity)?;
                fates.keys.insert(identity, Fate::Settled);
            }
            if let Some(row) = change.row {
                let mut identity = Vec::new();
                shape.identity_of_row(row, &mut identity)?;
                let fate = fates.keys.entry(identity).or_insert_with(|| Fate::Patched(Vec::new()));
                match fate {
                    Fate::Patched(patches) if row.is_partial() => patches.push(row),
                    _ => *fate = Fate::Settled,
                }
            }
        }
        Ok(fates)
    }
}

#[derive(Default)]
struct Fates<'a> {
    keys: HashMap<Vec<u8>, Fate<'a>>,
    truncated: bool,
}

/// What newer changes did to a key.
enum Fate<'a> {
    /// The target has its newest row, or none if it was deleted.
    Settled,
    /// These left columns out: the chunk's row has them.
    Patched(Vec<Row<'a>>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::{Canonical, Column, Table, TableName, Type, Value};

    fn shape() -> Shape {
        let table = Table {
            name: TableName::new("", "t"),
            native_id: 0,
            columns: vec![Column::new("id", Type::Int { bits: 64 }), Column::new("v", Type::Text)],
            key: vec![0],
            rows_estimated: 0,
            bytes_estimated: 0,
        };
        Shape { table: Arc::new(table), codec: Arc::new(Canonical) }
    }

    fn chunk(ids: std::ops::Range<i64>) -> Rows {
        let mut rows = Rows::new();
        ids.for_each(|id| rows.push_values([Value::Int(id), Value::Text("chunk".into())]));
        rows
    }

    fn update(mark: Mark, id: i64, value: Option<&str>) -> Arc<Changes> {
        let mut changes = Changes::new();
        changes.push(
            0,
            Op::Update,
            Some(&mut |row| {
                row.value(&Value::Int(id));
                match value {
                    Some(value) => row.value(&Value::Text(value.into())),
                    None => row.cell(Cell::Unchanged),
                }
            }),
            None,
        );
        changes.end(mark, Position::from_u64(mark), 0, true);
        Arc::new(changes)
    }

    fn as_of(upper: Mark, in_flight: &[Mark]) -> AsOf {
        AsOf { barrier: Position::default(), upper, in_flight: in_flight.to_vec() }
    }

    #[test]
    fn a_row_that_a_logged_but_unseen_change_overtook_is_dropped() {
        let mut window = Window::default();
        window.begin_read();
        window.deliver(&update(5, 1, Some("new")), true);
        let merged = window.overlay(0, &shape(), chunk(0..3), &as_of(9, &[5])).unwrap();
        assert_eq!((merged.rows.len(), merged.overtaken), (2, 1));
        let merged = window.overlay(0, &shape(), chunk(0..3), &as_of(9, &[])).unwrap();
        assert_eq!((merged.rows.len(), merged.overtaken), (3, 0), "what the chunk shows is not newer");
    }

    #[test]
    fn a_column_left_out_keeps_the_chunks_value() {
        let mut window = Window::default();
        window.deliver(&update(5, 1, None), true);
        let merged = window.overlay(0, &shape(), chunk(1..2), &as_of(5, &[])).unwrap();
        assert_eq!((merged.rows.len(), merged.completed), (1, 1));
        assert!(!merged.rows.row(0).is_partial());
    }

    #[test]
    fn it_keeps_a_change_until_no_read_can_miss_it() {
        let mut window = Window::default();
        let first = window.begin_read();
        window.deliver(&update(5, 1, Some("new")), true);
        window.saw(&as_of(9, &[]));
        assert!(window.bytes() > 0, "the read that began before may not show it");
        window.end_read(first);
        assert_eq!(window.bytes(), 0);
    }

    #[test]
    fn a_restart_replays_what_was_not_seen() {
        let mut window = Window::new(Position::from_u64(1));
        window.deliver(&update(5, 1, None), false);
        window.deliver(&update(6, 1, None), false);
        let delivered = Position::from_u64(8);
        window.saw(&as_of(9, &[6]));
        assert_eq!(window.replay(&delivered), Position::from_u64(5));
        window.saw(&as_of(9, &[]));
        assert_eq!(window.replay(&delivered), delivered);
        window.deliver(&update(10, 1, None), false);
        assert_eq!(
            window.replay(&Position::from_u64(10)),
            delivered,
            "the source may have forgotten what is before"
        );
    }
}
