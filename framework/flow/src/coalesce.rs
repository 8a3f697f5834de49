//! Many changes become one row or deletion a key, so that a sink works on sets.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use tidegate_core::port::{Batch, TableBatch};
use tidegate_core::{Cell, Change, Op, Result, Row, RowWriter, Shape};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::plant::{self, Bug};

/// What is to become of a key, as ranges of the arena.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The row is gone; the key's frame.
    Gone(Span),
    /// The full row.
    Full(Span),
    /// Only the columns that were sent.
    Partial(Span),
    /// Not said yet.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
}

impl Span {
    fn of(self, arena: &[u8]) -> &[u8] {
        &arena[self.start..self.end]
    }
}

/// A key and what is to become of it.
#[derive(Clone, Copy, Debug)]
struct Kept {
    hash: u64,
    identity: Span,
    fate: Fate,
}

#[derive(Debug, Default)]
struct Part {
    truncate: bool,
    /// Places in `kept`, by the identity of the key.
    places: HashTable<usize>,
    /// In the order in which keys were met first: the order of the source, which is kind to indexes.
    kept: Vec<Kept>,
    /// Keys that were written anew as equal ones (1.0 as 1.00): not every target takes them for one.
    rewritten: Vec<Span>,
}

/// Collects changes into a batch.
#[derive(Debug)]
pub struct Coalescer {
    shapes: Vec<Shape>,
    parts: Vec<Part>,
    arena: Vec<u8>,
    changes: usize,
    /// Nobody outside knows it, so that no choice of keys makes the tables slow.
    seed: u64,
}

impl Coalescer {
    /// An empty collector for these tables.
    pub fn new(shapes: Vec<Shape>) -> Self {
        let parts = shapes.iter().map(|_| Part::default()).collect();
        Self { shapes, parts, arena: Vec::new(), changes: 0, seed: RandomState::new().hash_one(0) }
    }

    /// How many changes it took since it was empty.
    pub fn changes(&self) -> usize {
        self.changes
    }

    /// How many bytes of rows it holds.
    pub fn bytes(&self) -> usize {
        self.arena.len()
    }

    /// Takes a change, which comes after all taken before.
    ///
    /// # Errors
    /// As the codec's.
    pub fn take(&mut self, change: Change<'_>) -> Result<()> {
        self.changes += 1;
        let part = &mut self.parts[change.table];
        if change.op == Op::Truncate {
            part.clear();
            part.truncate = true;
            return Ok(());
        }
        if let Some(key) = change.old_key {
            let start = self.arena.len();
            self.shapes[change.table].key_of(key, &mut self.arena)?;
            let place = self.place(change.table, start);
            self.give_up(change.table, place, |gone| gone == key)?;
            let span = copy(&mut self.arena, key);
            self.parts[change.table].kept[place].fate = Fate::Gone(span);
        }
        if let Some(row) = change.row {
            let start = self.arena.len();
            self.shapes[change.table].identity_of_row(row, &mut self.arena)?;
            let place = self.place(change.table, start);
            let keyed = Arc::clone(&self.shapes[change.table].table);
            self.give_up(change.table, place, |gone| keyed.has_key(row, gone))?;
            let fate = &mut self.parts[change.table].kept[place].fate;
            *fate = match *fate {
                _ if !row.is_partial() => Fate::Full(copy(&mut self.arena, row)),
                Fate::Full(base) => Fate::Full(overlay(&mut self.arena, base, row)),
                Fate::Partial(base) => Fate::Partial(overlay(&mut self.arena, base, row)),
                Fate::Gone(_) | Fate::Unknown => Fate::Partial(copy(&mut self.arena, row)),
            };
        }
        Ok(())
    }

    /// Notes the key that is gone from this place, if what comes now is not of the same bytes: a target may have a row of
    /// each.
    fn give_up(&mut self, table: usize, place: usize, is_same: impl Fn(Row<'_>) -> bool) -> Result<()> {
        let Part { kept, rewritten, .. } = &mut self.parts[table];
        if let Fate::Gone(span) = kept[place].fate
            && !is_same(Row::parse(span.of(&self.arena))?)
            && !plant::is(Bug::EqualKeyKept)
        {
            rewritten.push(span);
        }
        Ok(())
    }

    /// The place of the key whose identity was just written to the arena from `start` on.
    fn place(&mut self, table: usize, start: usize) -> usize {
        let Part { places, kept, .. } = &mut self.parts[table];
        let arena = &self.arena;
        let identity = Span { start, end: arena.len() };
        let hash = xxh3_64_with_seed(identity.of(arena), self.seed);
        let is_same =
            |at: &usize| kept[*at].hash == hash && kept[*at].identity.of(arena) == identity.of(arena);
        if let Some(at) = places.find(hash, is_same) {
            // It is there already; the arena need not have it twice.
            self.arena.truncate(start);
            return *at;
        }
        let at = kept.len();
        kept.push(Kept { hash, identity, fate: Fate::Unknown });
        places.insert_unique(hash, at, |at| kept[*at].hash);
        at
    }

    /// Gives what was collected and is empty again.
    ///
    /// # Errors
    /// `internal` if a row that was taken is none.
    pub fn finish(&mut self) -> Result<Batch> {
        let mut batch = Batch::default();
        for (table, part) in self.parts.iter_mut().enumerate() {
            let mut out = TableBatch { table, truncate: part.truncate, ..TableBatch::default() };
            for span in &part.rewritten {
                out.deletes.push(Row::parse(span.of(&self.arena))?);
            }
            for Kept { fate, .. } in &part.kept {
                let (rows, span) = match fate {
                    Fate::Gone(span) => (&mut out.deletes, span),
                    Fate::Full(span) => (&mut out.upserts, span),
                    Fate::Partial(span) => (&mut out.updates, span),
                    Fate::Unknown => continue,
                };
                rows.push(Row::parse(span.of(&self.arena))?);
            }
            if !out.is_empty() {
                batch.tables.push(out);
            }
            part.clear();
        }
        self.arena.clear();
        self.changes = 0;
        Ok(batch)
    }
}

impl Part {
    fn clear(&mut self) {
        self.truncate = false;
        self.places.clear();
        self.kept.clear();
        self.rewritten.clear();
    }
}

fn copy(arena: &mut Vec<u8>, row: Row<'_>) -> Span {
    let start = arena.len();
    arena.extend_from_slice(row.frame());
    Span { start, end: arena.len() }
}

/// Writes the base with the cells that the patch sent.
fn overlay(arena: &mut Vec<u8>, base: Span, patch: Row<'_>) -> Span {
    let base = base.of(arena).to_vec();
    let start = arena.len();
    let mut out = RowWriter::new(arena);
    for (old, new) in Row::parse(&base).into_iter().flat_map(Row::cells).zip(patch.cells()) {
        out.cell(if new == Cell::Unchanged { old } else { new });
    }
    out.finish();
    Span { start, end: arena.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::{Changes, Codec, Column, Encoding, Position, Table, TableName, Type, Value};

    /// Keys whose letters are the same are equal, as those of a numeric are whose digits are.
    #[derive(Debug)]
    struct Folding;

    impl Codec for Folding {
        fn encoding(&self) -> Encoding {
            Encoding::CANONICAL
        }

        fn value<'a>(&self, _: &Column, cell: &'a [u8]) -> Result<Value<'a>> {
            Value::decode(cell)
        }

        fn key(&self, _: &Column, cell: &[u8], out: &mut Vec<u8>) -> Result<()> {
            out.extend(cell.to_ascii_lowercase());
            Ok(())
        }
    }

    fn coalescer() -> Coalescer {
        let table = Table {
            name: TableName::new("", "t"),
            native_id: 0,
            columns: vec![Column::new("id", Type::Text), Column::new("v", Type::Text)],
            key: vec![0],
            rows_estimated: 0,
            bytes_estimated: 0,
        };
        Coalescer::new(vec![Shape { table: Arc::new(table), codec: Arc::new(Folding) }])
    }

    /// `+xa` inserts or updates key x with "a", `?x` updates key x leaving the value out, `-x` deletes, `xya` moves
    /// key x to y, `!` truncates. The keys x and X are equal.
    fn take(all: &str) -> Batch {
        let mut out = coalescer();
        for word in all.split(' ') {
            let bytes = word.as_bytes();
            let id = |at: usize| Value::Text(word[at..=at].to_owned().into());
            let text = |at: usize| Value::Text(word[at..].to_owned().into());
            let mut changes = Changes::new();
            match bytes[0] {
                b'!' => changes.push(0, Op::Truncate, None, None),
                b'-' => changes.push(0, Op::Delete, None, Some(&mut |k| k.value(&id(1)))),
                b'+' => changes.push(
                    0,
                    Op::Update,
                    Some(&mut |r| {
                        r.value(&id(1));
                        r.value(&text(2));
                    }),
                    None,
                ),
                b'?' => changes.push(
                    0,
                    Op::Update,
                    Some(&mut |r| {
                        r.value(&id(1));
                        r.cell(Cell::Unchanged);
                    }),
                    None,
                ),
                _ => changes.push(
                    0,
                    Op::Update,
                    Some(&mut |r| {
                        r.value(&id(1));
                        r.value(&text(2));
                    }),
                    Some(&mut |k| k.value(&id(0))),
                ),
            }
            changes.end(1, Position::default(), 0, true);
            out.take(changes.change(0)).unwrap();
        }
        out.finish().unwrap()
    }

    #[test]
    fn one_row_or_deletion_a_key_is_left() {
        for (changes, deletes, upserts, updates, truncate) in [
            ("+xa +xb", 0, 1, 0, false),
            ("+xa ?x", 0, 1, 0, false),
            ("?x ?x", 0, 0, 1, false),
            ("+xa -x", 1, 0, 0, false),
            ("-x +xb", 0, 1, 0, false),
            ("xya", 1, 1, 0, false),
            ("xya -y", 2, 0, 0, false),
            ("+xa ! +yb", 0, 1, 0, true),
            // The key as an equal one: what it was goes, whatever it is to the target.
            ("xXa", 1, 1, 0, false),
            ("+xa xXb Xxc", 2, 1, 0, false),
            ("xXa -X", 2, 0, 0, false),
            ("-x +Xb", 1, 1, 0, false),
            ("-x +Xb -X +xc", 2, 1, 0, false),
            ("-x +Xb -X", 2, 0, 0, false),
            ("-x ?X", 1, 0, 1, false),
            // A move that was not completed, for the row is gone by then.
            ("-x -X", 2, 0, 0, false),
        ] {
            let batch = take(changes);
            let part = &batch.tables[0];
            let found = (part.deletes.len(), part.upserts.len(), part.updates.len(), part.truncate);
            assert_eq!(found, (deletes, upserts, updates, truncate), "{changes}");
        }
    }
}
