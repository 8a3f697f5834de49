//! Delivers the log.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{ChangeFeed, Identity, Progress};
use tidegate_core::{Changes, Error, Position, Result, Row, Table, TableName};

use crate::store::MemoryStore;

/// How many transactions one call delivers at most.
const TRANSACTIONS_LIMIT: usize = 100;

#[derive(Debug)]
pub(crate) struct MemoryFeed {
    store: MemoryStore,
    tables: Vec<TableName>,
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
        Ok(Self { store, tables: tables.iter().map(|table| table.name.clone()).collect(), at })
    }

    fn take(&mut self, out: &mut Changes) -> Result<Progress> {
        let inner = self.store.lock();
        if self.at < inner.log_start {
            return Err(Error::new(code::JOURNAL_LOST, "the log was cut while it was being read"));
        }
        for logged in inner.log[self.at..].iter().take(TRANSACTIONS_LIMIT) {
            self.at += 1;
            for change in &logged.changes {
                let Some(table) = self.tables.iter().position(|name| *name == change.table) else { continue };
                let row = change.row.as_deref().map(Row::parse).transpose()?;
                let old_key = change.old_key.as_deref().map(Row::parse).transpose()?;
                out.push_rows(table, change.op, row, old_key);
            }
            let Some(mark) = logged.mark else { continue };
            out.end(mark, Position::from_u64(self.at as u64), 0, true);
        }
        Ok(Progress {
            position: Position::from_u64(self.at as u64),
            behind: (inner.log.len() - self.at) as u64,
        })
    }
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
