//! Temporary tables that rows and keys are copied into, and what is done from there.

use bytes::Bytes;
use tidegate_core::port::Batch;
use tidegate_core::{Key, Result, Rows};
use tokio_postgres::SimpleQueryMessage;

use super::PostgresSink;
use super::place::sent_columns;

/// A temporary table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    Rows,
    Keys,
}

impl PostgresSink {
    /// Makes the stage of a table, or empties it if the transaction has used it.
    pub(super) async fn stage(&mut self, table: usize, stage: Stage) -> Result<()> {
        let is_new = self.make_stage(table).await?;
        let place = &self.places[table];
        if !is_new && self.filled.contains(&(table, stage)) {
            self.run(&match stage {
                Stage::Rows => place.clear_rows(),
                Stage::Keys => place.clear_keys(),
            })
            .await?;
        }
        self.filled.insert((table, stage));
        Ok(())
    }

    /// Makes the stage of a table if it is not there; whether it made it.
    async fn make_stage(&mut self, table: usize) -> Result<bool> {
        if self.staged.contains(&table) {
            return Ok(false);
        }
        self.run(&self.places[table].create_stage()).await?;
        Ok(self.staged.insert(table))
    }

    /// Makes the stages that a batch needs while no transaction is open, so that they stay whatever becomes of it.
    pub(super) async fn prepare(&mut self, batch: &Batch) -> Result<()> {
        for part in &batch.tables {
            let needs = !part.fresh || !part.deletes.is_empty() || !part.updates.is_empty();
            if needs && !part.is_empty() {
                let made = self.make_stage(part.table).await;
                made.map_err(|error| error.with("table", &self.places[part.table].name))?;
            }
        }
        Ok(())
    }

    /// Writes rows that have these columns, and gives the numbers of those that met none; `None` if one is kept out.
    pub(super) async fn update(
        &mut self,
        table: usize,
        sent: &[usize],
        rows: &Rows,
        data: Bytes,
    ) -> Result<Option<Vec<usize>>> {
        self.stage_some(table, sent, rows, data).await?;
        let missed = self.attempt(&self.places[table].update(sent)).await?;
        Ok(missed.map(|missed| numbers(&missed)))
    }

    /// Stages those of the rows that have these columns, with their numbers; `data` is them as a copy.
    pub(super) async fn stage_some(
        &mut self,
        table: usize,
        sent: &[usize],
        rows: &Rows,
        data: Bytes,
    ) -> Result<()> {
        self.stage(table, Stage::Rows).await?;
        let copy = self.places[table].copy_updates(sent);
        self.copy(copy, data).await.map_err(|e| {
            let group = rows.iter().filter(|row| sent_columns(*row).eq(sent.iter().copied()));
            self.places[table].refused(e, "stage", group)
        })
    }

    /// Removes the rows of these keys.
    pub(super) async fn remove_rows(&mut self, table: usize, keys: &[Key]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut rows = Rows::new();
        keys.iter().for_each(|key| rows.push(key.row()));
        let data = self.places[table].encode_keys(&rows)?;
        self.remove_keys(table, &rows, data).await
    }

    /// The same, with the keys as a copy.
    pub(super) async fn remove_keys(&mut self, table: usize, keys: &Rows, data: Bytes) -> Result<()> {
        self.stage(table, Stage::Keys).await?;
        let place = &self.places[table];
        let (copy, delete) = (place.copy_keys(), place.delete_keys());
        let copied = self.copy(copy, data).await;
        copied.map_err(|e| self.places[table].refused(e, "stage", keys.iter()))?;
        self.run(&delete).await
    }
}

/// The numbers that a statement gives.
pub(super) fn numbers(messages: &[SimpleQueryMessage]) -> Vec<usize> {
    let number = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    };
    messages.iter().filter_map(number).collect()
}
