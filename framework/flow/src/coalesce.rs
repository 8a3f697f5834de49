//! Many changes become one row or deletion a key, so that a sink works on sets.

use std::collections::HashMap;

use tidegate_core::port::{Batch, TableBatch};
use tidegate_core::{Cell, Change, Op, Result, Row, RowWriter, Shape};

/// What is to become of a key, as ranges of the arena.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The row is gone; the key's frame.
    Gone(Span),
    /// The full row.
    Full(Span),
    /// Only the columns that were sent.
    Partial(Span),
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
}

#[derive(Debug, Default)]
struct Part {
    truncate: bool,
    places: HashMap<Vec<u8>, usize>,
    /// In the order in which keys were met first: the order of the source, which is kind to indexes.
    fates: Vec<Fate>,
}

/// Collects changes into a batch.
#[derive(Debug)]
pub struct Coalescer {
    shapes: Vec<Shape>,
    parts: Vec<Part>,
    arena: Vec<u8>,
    changes: usize,
}

impl Coalescer {
    /// An empty collector for these tables.
    pub fn new(shapes: Vec<Shape>) -> Self {
        let parts = shapes.iter().map(|_| Part::default()).collect();
        Self { shapes, parts, arena: Vec::new(), changes: 0 }
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
        let shape = &self.shapes[change.table];
        let part = &mut self.parts[change.table];
        if change.op == Op::Truncate {
            part.truncate = true;
            part.places.clear();
            part.fates.clear();
            return Ok(());
        }
        if let Some(key) = change.old_key {
            let mut identity = Vec::new();
            shape.key_of(key, &mut identity)?;
            let span = copy(&mut self.arena, key);
            part.set(identity, Fate::Gone(span));
        }
        if let Some(row) = change.row {
            let mut identity = Vec::new();
            shape.identity_of_row(row, &mut identity)?;
            let fate = if !row.is_partial() {
                Fate::Full(copy(&mut self.arena, row))
            } else {
                match part.places.get(&identity).map(|at| part.fates[*at]) {
                    Some(Fate::Full(base)) => Fate::Full(overlay(&mut self.arena, base, row)),
                    Some(Fate::Partial(base)) => Fate::Partial(overlay(&mut self.arena, base, row)),
                    Some(Fate::Gone(_)) | None => Fate::Partial(copy(&mut self.arena, row)),
                }
            };
            part.set(identity, fate);
        }
        Ok(())
    }

    /// Gives what was collected and is empty again.
    pub fn finish(&mut self) -> Batch {
        let mut batch = Batch::default();
        for (table, part) in self.parts.iter_mut().enumerate() {
            let mut out = TableBatch { table, truncate: part.truncate, ..TableBatch::default() };
            for fate in &part.fates {
                let (rows, span) = match fate {
                    Fate::Gone(span) => (&mut out.deletes, span),
                    Fate::Full(span) => (&mut out.upserts, span),
                    Fate::Partial(span) => (&mut out.updates, span),
                };
                if let Ok(row) = Row::parse(&self.arena[span.start..span.end]) {
                    rows.push(row);
                }
            }
            if !out.is_empty() {
                batch.tables.push(out);
            }
            part.truncate = false;
            part.places.clear();
            part.fates.clear();
        }
        self.arena.clear();
        self.changes = 0;
        batch
    }
}

impl Part {
    fn set(&mut self, identity: Vec<u8>, fate: Fate) {
        match self.places.get(&identity) {
            Some(at) => self.fates[*at] = fate,
            None => {
                self.places.insert(identity, self.fates.len());
                self.fates.push(fate);
            }
        }
    }
}

fn copy(arena: &mut Vec<u8>, row: Row<'_>) -> Span {
    let start = arena.len();
    arena.extend_from_slice(row.frame());
    Span { start, end: arena.len() }
}

/// Writes the base with the cells that the patch sent.
fn overlay(arena: &mut Vec<u8>, base: Span, patch: Row<'_>) -> Span {
    let base = arena[base.start..base.end].to_vec();
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
    use std::sync::Arc;

    use super::*;
    use tidegate_core::{Canonical, Changes, Column, Position, Table, TableName, Type, Value};

    fn coalescer() -> Coalescer {
        let table = Table {
            name: TableName::new("", "t"),
            native_id: 0,
            columns: vec![Column::new("id", Type::Int { bits: 64 }), Column::new("v", Type::Text)],
            key: vec![0],
            rows_estimated: 0,
            bytes_estimated: 0,
        };
        Coalescer::new(vec![Shape { table: Arc::new(table), codec: Arc::new(Canonical) }])
    }

    /// `+1a` inserts or updates key 1 with "a", `?1` updates key 1 leaving the value out, `-1` deletes, `12a` moves
    /// key 1 to 2, `!` truncates.
    fn take(all: &str) -> Batch {
        let mut out = coalescer();
        for word in all.split(' ') {
            let bytes = word.as_bytes();
            let id = |at: usize| Value::Int(i64::from(bytes[at] - b'0'));
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
        out.finish()
    }

    #[test]
    fn one_row_or_deletion_a_key_is_left() {
        for (changes, deletes, upserts, updates, truncate) in [
            ("+1a +1b", 0, 1, 0, false),
            ("+1a ?1", 0, 1, 0, false),
            ("?1 ?1", 0, 0, 1, false),
            ("+1a -1", 1, 0, 0, false),
            ("-1 +1b", 0, 1, 0, false),
            ("12a", 1, 1, 0, false),
            ("12a -2", 2, 0, 0, false),
            ("+1a ! +2b", 0, 1, 0, true),
        ] {
            let batch = take(changes);
            let part = &batch.tables[0];
            let found = (part.deletes.len(), part.upserts.len(), part.updates.len(), part.truncate);
            assert_eq!(found, (deletes, upserts, updates, truncate), "{changes}");
        }
    }
}
