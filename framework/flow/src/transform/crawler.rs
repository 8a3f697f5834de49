//! Reads rows and makes others of them.

use std::collections::HashMap;

use async_trait::async_trait;
use tidegate_core::port::{Chunk, Crawler, KeyRange, Limit};
use tidegate_core::{AsOf, Key, Result, Rows, Table, TableName};

use super::Transformed;

pub(super) struct MadeCrawler {
    store: Transformed,
    inner: Box<dyn Crawler>,
    raw: Rows,
    /// Bytes of a row that was made, by table, as the last chunk had them.
    row_bytes: HashMap<TableName, usize>,
}

/// Rows that others are folded into, read at a time as long as nobody knows how much that is.
const ROWS_UNWEIGHED: usize = 500;

impl MadeCrawler {
    pub(super) fn new(store: Transformed, inner: Box<dyn Crawler>) -> Self {
        Self { store, inner, raw: Rows::new(), row_bytes: HashMap::new() }
    }
}

#[async_trait]
impl Crawler for MadeCrawler {
    async fn split(&mut self, table: &Table, parts: usize) -> Result<Vec<KeyRange>> {
        let making = self.store.making(table).await?;
        self.inner.split(&making.source.table, parts).await
    }

    async fn read(&mut self, table: &Table, range: &KeyRange, limit: Limit, out: &mut Rows) -> Result<Chunk> {
        let making = self.store.making(table).await?;
        if making.is_plain() {
            return self.inner.read(&making.source.table, range, limit, out).await;
        }
        self.raw.clear();
        // What is folded into the rows has to be within the limit, too.
        let row_bytes = self.row_bytes.get(&table.name).copied().unwrap_or(making.row_bytes_estimated());
        let limit = match row_bytes {
            0 if making.folds() => Limit { rows: limit.rows.min(ROWS_UNWEIGHED), ..limit },
            _ => limit.of_rows(row_bytes),
        };
        let mut chunk = self.inner.read(&making.source.table, range, limit, &mut self.raw).await?;
        let before = out.bytes().len();
        let later = making.make_all(self.inner.as_mut(), &self.raw, out).await?;
        if let Some(bytes) = (out.bytes().len() - before).checked_div(self.raw.len()) {
            self.row_bytes.insert(table.name.clone(), bytes);
        }
        // What was folded in was read later and may show more: it has to be delivered before the chunk counts.
        if let Some(later) = later
            && later.barrier > chunk.as_of.barrier
        {
            chunk.as_of.barrier = later.barrier;
        }
        Ok(chunk)
    }

    async fn fetch(&mut self, table: &Table, keys: &[Key], out: &mut Rows) -> Result<AsOf> {
        let making = self.store.making(table).await?;
        making.fetch(self.inner.as_mut(), keys, out).await
    }

    async fn as_of(&mut self) -> Result<AsOf> {
        self.inner.as_of().await
    }
}
