//! The slow way, where rows are in each other's way.

use tidegate_core::{Key, Result};

use super::place::sent_columns;
use super::stage::Stage;
use super::{Part, PostgresSink, cut_keys};
use crate::error::from_driver;

impl PostgresSink {
    /// Writes a part and gives the keys of its holes. What rows were before goes first, since all of it is in the batch.
    /// A row that is kept out even so is a hole; a row that is not in the batch stays.
    pub(super) async fn put_apart(&mut self, part: &Part<'_>) -> Result<Vec<Key>> {
        let (table, batch) = (part.batch.table, part.batch);
        self.places[table].check_cascades(self.fires)?;
        let all: Vec<usize> = (0..batch.upserts.len()).collect();
        self.remove_rows(table, &cut_keys(&self.places[table], &batch.upserts, &all)).await?;
        let mut holes = Vec::new();
        for (sent, rows) in &part.updates {
            if let Some(missed) = self.update(table, sent, rows.clone()).await? {
                if !batch.crawling {
                    holes.extend(cut_keys(&self.places[table], &batch.updates, &missed));
                }
                continue;
            }
            // One of them at least is kept out: they are read again together.
            let is_of = |at: &usize| sent_columns(batch.updates.row(*at)).eq(sent.iter().copied());
            let group: Vec<usize> = (0..batch.updates.len()).filter(is_of).collect();
            let keys = cut_keys(&self.places[table], &batch.updates, &group);
            self.remove_rows(table, &keys).await?;
            holes.extend(keys);
        }
        // All have the same columns, so that they are one group.
        for (sent, rows) in self.places[table].encode_updates(&batch.upserts)? {
            self.stage(table, Stage::Rows).await?;
            let copy = self.places[table].copy_updates(&sent);
            self.copy(copy, rows).await.map_err(|e| from_driver(e, "stage"))?;
            let mut pieces = vec![(0, batch.upserts.len())];
            while let Some((start, end)) = pieces.pop() {
                let insert = self.places[table].insert_some(start, end);
                if self.attempt(&insert).await?.is_some() {
                    continue;
                }
                // Halves, down to the rows that are kept out.
                if end - start == 1 {
                    holes.push(self.places[table].shape.cut_key(batch.upserts.row(start)));
                } else {
                    let middle = start.midpoint(end);
                    pieces.extend([(middle, end), (start, middle)]);
                }
            }
        }
        Ok(holes)
    }
}
