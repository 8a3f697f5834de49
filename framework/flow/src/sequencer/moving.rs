//! Completes updates that moved a row to another key and left columns out.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tidegate_core::{Change, Changes, Key, Mark, Op, Result, Row, Rows, Transaction};

use super::Sequencer;
use crate::cut::cut;
use crate::plant::{self, Bug};

/// How long to wait before looking again whether a logged commit is seen: as long as a commit may wait for a standby.
const SEEN_WAIT: Duration = Duration::from_millis(10);

/// Keys of one fetch.
const FETCH_KEYS: usize = 1_000;

/// Rows read by their keys, and where each key's identity stands.
#[derive(Default)]
struct Found {
    rows: Rows,
    places: HashMap<Vec<u8>, usize>,
}

/// An update that changed the key and left columns out.
fn is_partial_move(change: &Change<'_>) -> bool {
    change.op == Op::Update && change.old_key.is_some() && change.row.is_some_and(Row::is_partial)
}

impl Sequencer<'_> {
    /// Cuts changes where the rows that are read for them would be more than a chunk has.
    pub(super) fn cut(&self, changes: Changes) -> Vec<Changes> {
        cut(changes, self.flow.options.chunk_bytes, |change| {
            if is_partial_move(change) { self.row_bytes[change.table] } else { 0 }
        })
    }

    /// An update that changed the key and left columns out cannot be written where the new key has no row. The row
    /// is read from the source, at an instant that shows the change; what comes after it is delivered after it.
    pub(super) async fn complete_moves(&mut self, changes: Changes) -> Result<Changes> {
        // What the target has already, and is not merged either, is written nowhere.
        let skips_known = !self.keeps_changes();
        let resumed_at = self.resumed_at.clone();
        let is_known = |transaction: &Transaction| skips_known && transaction.position <= resumed_at;
        let mut wanted: BTreeMap<usize, Vec<Key>> = BTreeMap::new();
        let mut marks = Vec::new();
        for transaction in changes.transactions().iter().filter(|transaction| !is_known(transaction)) {
            for change in changes.of(transaction).filter(is_partial_move) {
                let Some(row) = change.row else { continue };
                wanted
                    .entry(change.table)
                    .or_default()
                    .push(self.flow.routes[change.table].shape.cut_key(row));
                if marks.last() != Some(&transaction.mark) {
                    marks.push(transaction.mark);
                }
            }
        }
        if wanted.is_empty() || plant::is(Bug::MovesNotCompleted) {
            return Ok(changes);
        }
        let mut found = BTreeMap::new();
        for (table, keys) in wanted {
            found.insert(table, self.read_rows(table, &keys, &marks).await?);
        }
        let mut out = Changes::new();
        let mut identity = Vec::new();
        for transaction in changes.transactions() {
            for change in changes.of(transaction) {
                match (change.row, found.get(&change.table)) {
                    (Some(row), Some(found)) if is_partial_move(&change) && !is_known(transaction) => {
                        identity.clear();
                        self.flow.routes[change.table].shape.identity_of_row(row, &mut identity)?;
                        self.gauge.moved();
                        match found.places.get(&identity) {
                            // It is gone by now; a later change says so.
                            None => out.push_rows(change.table, Op::Delete, None, change.old_key),
                            Some(place) => {
                                let row = found.rows.row(*place);
                                out.push_rows(change.table, Op::Update, Some(row), change.old_key);
                            }
                        }
                    }
                    (row, _) => out.push_rows(change.table, change.op, row, change.old_key),
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

    /// Reads the rows of these keys, at instants that show all of these changes.
    async fn read_rows(&mut self, table: usize, keys: &[Key], marks: &[Mark]) -> Result<Found> {
        let shape = &self.flow.routes[table].shape;
        let mut found = Found::default();
        for keys in keys.chunks(FETCH_KEYS) {
            let rows = loop {
                let mut rows = Rows::new();
                let as_of = self.asker.fetch(&shape.table, keys, &mut rows).await?;
                if marks.iter().all(|mark| as_of.shows(*mark)) {
                    break rows;
                }
                // It is in the log and not yet seen.
                self.flow.clock.sleep(SEEN_WAIT).await;
            };
            for row in rows.iter() {
                let mut identity = Vec::new();
                shape.identity_of_row(row, &mut identity)?;
                found.places.insert(identity, found.rows.len());
                found.rows.push(row);
            }
        }
        Ok(found)
    }
}
