//! The fast way: a chunk that is expected to meet no row is copied into its table, by two sessions if it is large.

use bytes::Bytes;
use tidegate_core::{Result, Rows};
use tokio_postgres::error::SqlState;

use super::helper::{Helper, LOCK_TIMEOUT};
use super::{PostgresSink, copy_into, is_kept_out};
use crate::error::unsure;

impl PostgresSink {
    /// Copies into the table itself; false, with nothing done, if a row was there. `first` is the rows as a copy, or with
    /// `shared` the first half of them.
    pub(super) async fn copy_direct(
        &mut self,
        table: usize,
        rows: &Rows,
        first: &Bytes,
        shared: Option<&Bytes>,
    ) -> Result<bool> {
        let sql = self.places[table].copy_direct();
        if let Some(second) = shared
            && let Some(mut helper) = self.helper().await
        {
            let done = self.copy_shared(&mut helper, table, rows, first, second).await;
            // After an error nobody knows what its session holds.
            self.helper = done.is_ok().then_some(helper);
            return done;
        }
        self.run("SAVEPOINT copying").await?;
        let mut half = 0;
        let mut copied = self.copy(sql.clone(), first.clone()).await;
        if let (Ok(()), Some(second)) = (&copied, shared) {
            half = rows.len() / 2;
            copied = self.copy(sql, second.clone()).await;
        }
        match copied {
            Ok(()) => Ok(true),
            Err(error) if is_kept_out(&error) => {
                self.run("ROLLBACK TO copying").await?;
                Ok(false)
            }
            Err(error) => Err(self.places[table].refused(error, "copy", rows.iter().skip(half))),
        }
    }

    /// The second session; none if the server has none for us.
    async fn helper(&mut self) -> Option<Helper> {
        if let Some(helper) = self.helper.take() {
            return Some(helper);
        }
        match Helper::open(&self.store).await {
            Ok(helper) => Some(helper),
            Err(error) => {
                tracing::debug!(%error, "no second session to the target; one does all");
                None
            }
        }
    }

    /// Copies two halves at once. The second is committed when both are there, and this session's transaction follows.
    async fn copy_shared(
        &mut self,
        helper: &mut Helper,
        table: usize,
        rows: &Rows,
        first: &Bytes,
        second: &Bytes,
    ) -> Result<bool> {
        self.run(&format!("SAVEPOINT copying; {LOCK_TIMEOUT}")).await?;
        helper.begin(&self.flow, self.fence).await?;
        let sql = self.places[table].copy_direct();
        let (first, second) = futures::join!(
            copy_into(&self.session, &mut self.statements, sql.clone(), first.clone()),
            helper.copy(sql, second.clone()),
        );
        let half = if first.is_ok() { rows.len() / 2 } else { 0 };
        // A row was there; or the halves wait for each other, which unique keys of the target alone can bring about.
        let is_met = |error: &tokio_postgres::Error| {
            let waits = [&SqlState::LOCK_NOT_AVAILABLE, &SqlState::T_R_DEADLOCK_DETECTED].map(Some);
            is_kept_out(error) || waits.contains(&error.code())
        };
        match first.and(second) {
            Ok(()) => {
                self.run("SET LOCAL lock_timeout TO DEFAULT").await?;
                helper.run("COMMIT").await.map_err(unsure)?;
                Ok(true)
            }
            Err(error) if is_met(&error) => {
                helper.run("ROLLBACK").await?;
                self.run("ROLLBACK TO copying").await?;
                Ok(false)
            }
            Err(error) => Err(self.places[table].refused(error, "copy", rows.iter().skip(half))),
        }
    }
}
