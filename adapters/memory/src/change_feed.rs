//! Delivers the log.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{ChangeFeed, Identity, Progress};
use tidegate_core::{Cell, Changes, Error, Position, Result, Row, Rows, Table};

use crate::inner::Inner;
use crate::store::MemoryStore;

/// How many transactions one call delivers at most.
const TRANSACTIONS_LIMIT: usize = 100;

#[derive(Debug)]
pub(crate) struct MemoryFeed {
    store: MemoryStore,
    tables: Vec<Arc<Table>>,
    at: usize,
}

impl MemoryFeed {
    pub(crate) fn open(
        store: MemoryStore,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Self> {
        let inner = store.lock();
        if inner.identity != *source {
            return Err(Error::new(
                code::SOURCE_REPLACED,
                "the source is another store than the flow began with",
            ));
        }
        let at = usize::try_from(from.to_u64().unwrap_or(0)).unwrap_or(usize::MAX);
        if at < inner.log_start {
            return Err(Error::new(code::JOURNAL_LOST, "the log was cut behind the checkpoint"));
        }
        if at > inner.log.len() {
            return Err(Error::new(code::SOURCE_REPLACED, "the checkpoint is ahead of the source"));
        }
        drop(inner);
        Ok(Self { store, tables: tables.to_vec(), at })
    }

    fn take(&mut self, out: &mut Changes) -> Result<Progress> {
        let inner = self.store.lock();
        if self.at < inner.log_start {
            return Err(Error::new(code::JOURNAL_LOST, "the log was cut while it was being read"));
        }
        for logged in inner.log[self.at..].iter().take(TRANSACTIONS_LIMIT) {
            // A transaction with a row of another shape is not begun: the feed stays where it is, and says so.
            let mut rows = Rows::new();
            let mut whole = Changes::new();
            for change in &logged.changes {
                let Some(table) = self.tables.iter().position(|t| t.name == change.table) else { continue };
                let old_key = change.old_key.as_deref().map(Row::parse).transpose()?;
                rows.clear();
                if let Some(frame) = &change.row
                    && let Err(error) = fill(&self.tables[table], Row::parse(frame)?, &mut rows)
                {
                    // What came before is delivered first.
                    return if out.is_empty() { Err(error) } else { Ok(self.progress(&inner)) };
                }
                whole.push_rows(table, change.op, rows.iter().next(), old_key);
            }
            self.at += 1;
            for at in 0..whole.count() {
                let change = whole.change(at);
                out.push_rows(change.table, change.op, change.row, change.old_key);
            }
            let Some(mark) = logged.mark else { continue };
            out.end(mark, Position::from_u64(self.at as u64), 0, true);
        }
        Ok(self.progress(&inner))
    }

    fn progress(&self, inner: &Inner) -> Progress {
        Progress { position: Position::from_u64(self.at as u64), behind: (inner.log.len() - self.at) as u64 }
    }
}

/// A logged row in the shape of a table that may have got columns since: they were null.
fn fill(table: &Table, row: Row<'_>, out: &mut Rows) -> Result<()> {
    let changed = |what: &'static str, at: usize| {
        Err(Error::new(code::SCHEMA_CHANGED, what)
            .with("table", &table.name)
            .with("column", table.columns.get(at).map_or_else(String::new, |column| column.name.clone())))
    };
    if row.len() > table.columns.len() {
        return changed("a column is new", row.len());
    }
    if let Some(at) = (row.len()..table.columns.len()).find(|at| !table.columns[*at].is_null_before()) {
        return changed("a column is gone", at);
    }
    out.push_with(|filled| {
        row.cells().for_each(|cell| filled.cell(cell));
        (row.len()..table.columns.len()).for_each(|_| filled.cell(Cell::Null));
    });
    Ok(())
}

#[async_trait]
impl ChangeFeed for MemoryFeed {
    async fn next(&mut self, _: Option<&Position>, out: &mut Changes) -> Result<Progress> {
        let changed = Arc::clone(&self.store.changed);
        let woken = changed.notified();
        let progress = self.take(out)?;
        if !out.is_empty() {
            return Ok(progress);
        }
        // Nothing there: wait a bounded time, so that the caller sees the position also of an idle source.
        let _ = tokio::time::timeout(Duration::from_millis(100), woken).await;
        self.take(out)
    }

    async fn acknowledge(&mut self, upto: &Position) -> Result<()> {
        let mut inner = self.store.lock();
        let upto = usize::try_from(upto.to_u64().unwrap_or(0)).unwrap_or(usize::MAX);
        inner.log_start = inner.log_start.max(upto.min(self.at));
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
