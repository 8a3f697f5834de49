//! The slow way, where rows are in each other's way.

use std::ops::Range;

use tidegate_core::{Key, Result};

use super::place::sent_columns;
use super::stage::numbers;
use super::{Part, PostgresSink, cut_keys};

/// So many updates of a group that are kept out are found one by one. If there are more, most are in each other's way:
/// they are read again, which is one statement and not one each.
const UPDATES_APART_MAX: usize = 100;

impl PostgresSink {
    /// Writes a part and gives the keys of its holes. What rows were before goes first, since all of it is in the batch.
    /// A row that is kept out even so is a hole; a row that is not in the batch stays.
    pub(super) async fn put_apart(&mut self, part: &Part<'_>) -> Result<Vec<Key>> {
        let (table, batch) = (part.batch.table, part.batch);
        self.check_cascades(table).await?;
        let all: Vec<usize> = (0..batch.upserts.len()).collect();
        self.remove_rows(table, &cut_keys(&self.places[table], &batch.upserts, &all)).await?;
        let mut holes = Vec::new();
        for (sent, rows) in &part.updates {
            self.stage_some(table, sent, &batch.updates, rows.clone()).await?;
            let is_of = |at: &usize| sent_columns(batch.updates.row(*at)).eq(sent.iter().copied());
            let group: Vec<usize> = (0..batch.updates.len()).filter(is_of).collect();
            let place = &self.places[table];
            let update = |which| place.update_some(sent, which);
            let (missed, kept_out) = self.by_halves(&group, UPDATES_APART_MAX, update).await?;
            let kept_out = cut_keys(place, &batch.updates, &kept_out);
            if !batch.crawling {
                holes.extend(cut_keys(place, &batch.updates, &missed));
            }
            self.remove_rows(table, &kept_out).await?;
            holes.extend(kept_out);
        }
        // All have the same columns, so that they are one group.
        for (sent, rows) in self.places[table].encode_updates(&batch.upserts)? {
            self.stage_some(table, &sent, &batch.upserts, rows).await?;
            let place = &self.places[table];
            let (_, kept_out) = self.by_halves(&all, usize::MAX, |which| place.insert_some(which)).await?;
            holes.extend(cut_keys(place, &batch.upserts, &kept_out));
        }
        Ok(holes)
    }

    /// Runs a statement on the staged rows of these numbers, by halves down to those that are kept out, or down to halves
    /// that hold one once there are more than `limit`. Gives the numbers that it answers, and of rows kept out.
    async fn by_halves(
        &self,
        staged: &[usize],
        limit: usize,
        statement: impl Fn(Range<usize>) -> String,
    ) -> Result<(Vec<usize>, Vec<usize>)> {
        let (mut answered, mut kept_out) = (Vec::new(), Vec::new());
        let mut pieces = vec![staged];
        while let Some(piece) = pieces.pop() {
            let (Some(first), Some(last)) = (piece.first(), piece.last()) else { continue };
            match self.attempt(&statement(*first..*last + 1)).await? {
                Some(answer) => answered.extend(numbers(&answer)),
                None if piece.len() > 1 && kept_out.len() < limit => {
                    let (start, end) = piece.split_at(piece.len() / 2);
                    pieces.extend([end, start]);
                }
                None => kept_out.extend(piece),
            }
        }
        Ok((answered, kept_out))
    }
}
