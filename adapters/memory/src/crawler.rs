//! Reads the rows that are seen.

use std::collections::HashSet;
use std::ops::Bound;

use async_trait::async_trait;
use tidegate_core::port::{Chunk, Crawler, KeyRange, Limit};
use tidegate_core::{AsOf, Key, Result, Row, Rows, Shape, Table};

use crate::inner::Inner;
use crate::store::MemoryStore;

#[derive(Debug)]
pub(crate) struct MemoryCrawler(pub(crate) MemoryStore);

impl Inner {
    fn as_of(&self) -> AsOf {
        AsOf {
            barrier: self.frontier(),
            upper: self.next_mark(),
            in_flight: self.hidden.keys().copied().collect(),
        }
    }
}

/// Appends a row as a reader sees it who asks for these columns, which are the first ones.
fn push(table: &Table, row: Row<'_>, out: &mut Rows) {
    if row.len() == table.columns.len() {
        return out.push(row);
    }
    out.push_with(|cut| row.cells().take(table.columns.len()).for_each(|cell| cut.cell(cell)));
}

fn identity(shape: &Shape, key: &Key) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    shape.key_of(key.row(), &mut out)?;
    Ok(out)
}

#[async_trait]
impl Crawler for MemoryCrawler {
    async fn split(&mut self, table: &Table, parts: usize) -> Result<Vec<KeyRange>> {
        let inner = self.0.lock();
        let held = inner.held(&table.name)?;
        let cut = |frame: &Vec<u8>| Row::parse(frame).map(|row| held.shape.cut_key(row));
        let Some(last) = held.rows.values().next_back().map(cut).transpose()? else {
            return Ok(vec![KeyRange::default()]);
        };
        let step = held.rows.len().div_ceil(parts.max(1));
        let mut ranges = Vec::new();
        let mut after = None;
        for frame in held.rows.values().skip(step).step_by(step) {
            let upto = Some(cut(frame)?);
            ranges.push(KeyRange { after: after.take(), upto: upto.clone() });
            after = upto;
        }
        ranges.push(KeyRange { after, upto: Some(last) });
        Ok(ranges)
    }

    async fn read(&mut self, table: &Table, range: &KeyRange, limit: Limit, out: &mut Rows) -> Result<Chunk> {
        let inner = self.0.lock();
        let held = inner.held(&table.name)?;
        let bound = |key: &Option<Key>| key.as_ref().map(|key| identity(&held.shape, key)).transpose();
        let low = bound(&range.after)?.map_or(Bound::Unbounded, Bound::Excluded);
        let high = bound(&range.upto)?.map_or(Bound::Unbounded, Bound::Included);
        let mut next = None;
        if let (Bound::Excluded(low), Bound::Included(high)) = (&low, &high)
            && low >= high
        {
            return Ok(Chunk { as_of: inner.as_of(), next, surplus: Vec::new() });
        }
        let bytes = out.bytes().len();
        for (at, frame) in held.rows.range((low, high)).map(|(_, frame)| frame).enumerate() {
            let row = Row::parse(frame)?;
            push(table, row, out);
            if at + 1 == limit.rows.max(1) || out.bytes().len() - bytes >= limit.bytes {
                next = Some(held.shape.cut_key(row));
                break;
            }
        }
        Ok(Chunk { as_of: inner.as_of(), next, surplus: Vec::new() })
    }

    async fn fetch(&mut self, table: &Table, keys: &[Key], out: &mut Rows) -> Result<AsOf> {
        let inner = self.0.lock();
        let held = inner.held(&table.name)?;
        if table.key == held.shape.table.key {
            for key in keys {
                if let Some(frame) = held.rows.get(&identity(&held.shape, key)?) {
                    push(table, Row::parse(frame)?, out);
                }
            }
        } else {
            let shape =
                Shape { table: table.clone().into(), codec: std::sync::Arc::clone(&held.shape.codec) };
            let wanted = keys.iter().map(|key| identity(&shape, key)).collect::<Result<HashSet<_>>>()?;
            for frame in held.rows.values() {
                let row = Row::parse(frame)?;
                if wanted.contains(&identity(&shape, &shape.cut_key(row))?) {
                    push(table, row, out);
                }
            }
        }
        Ok(inner.as_of())
    }

    async fn as_of(&mut self) -> Result<AsOf> {
        Ok(self.0.lock().as_of())
    }
}
