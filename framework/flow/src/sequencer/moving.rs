//! Completes updates that moved a row to another key and left columns out.

use std::time::Duration;

use tidegate_core::{Changes, Key, Op, Result, Row, Rows, Transaction};

use super::Sequencer;
use crate::plant::{self, Bug};

/// How long to wait before looking again whether a logged commit is seen: as long as a commit may wait for a standby.
const SEEN_WAIT: Duration = Duration::from_millis(10);

impl Sequencer<'_> {
    /// An update that changed the key and left columns out cannot be written where the new key has no row. The row
    /// is read from the source, at an instant that shows the change; what comes after it is delivered after it.
    pub(super) async fn complete_moves(&mut self, changes: Changes) -> Result<Changes> {
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
}
