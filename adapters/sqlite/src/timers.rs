//! Timers, in the file.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection, Row as _, SqliteConnection};
use tidegate_core::port::{Due, Timer, Timers};
use tidegate_core::{FlowName, Result};

use crate::error::During;
use crate::store::SqliteStore;
use crate::{connect, journal};

/// Where they are. The numbers of `AUTOINCREMENT` never come again.
pub(crate) const TABLE: &str = "tidegate_timers";

async fn create(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS tidegate_timers(
             number INTEGER PRIMARY KEY AUTOINCREMENT, flow TEXT NOT NULL, id TEXT NOT NULL, at INTEGER NOT NULL,
             hidden_until INTEGER NOT NULL, value TEXT NOT NULL, UNIQUE (flow, id));
         CREATE INDEX IF NOT EXISTS tidegate_timers_at ON tidegate_timers(flow, at);",
    )
    .execute(connection)
    .await
    .during("create the table of timers")?;
    Ok(())
}

/// A connection that writes, if there is a table of timers.
async fn look(store: &SqliteStore) -> Result<Option<SqliteConnection>> {
    if !store.path().exists() {
        return Ok(None);
    }
    let mut connection = connect::writer(store.path()).await?;
    let is_there = journal::exists(&mut connection, TABLE).await?;
    Ok(is_there.then_some(connection))
}

#[async_trait]
impl Timers for SqliteStore {
    async fn put(&self, flow: &FlowName, timer: &Timer) -> Result<()> {
        let mut connection = connect::creator(self.path()).await?;
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.during("begin to set a timer")?;
        create(&mut tx).await?;
        sqlx::query("DELETE FROM tidegate_timers WHERE flow = ? AND id = ?")
            .bind(flow.as_str())
            .bind(&timer.id)
            .execute(&mut *tx)
            .await
            .during("take the timer of before away")?;
        sqlx::query("INSERT INTO tidegate_timers(flow, id, at, hidden_until, value) VALUES (?, ?, ?, ?, ?)")
            .bind(flow.as_str())
            .bind(&timer.id)
            .bind(timer.at)
            .bind(i64::MIN)
            .bind(&timer.value)
            .execute(&mut *tx)
            .await
            .during("set a timer")?;
        tx.commit().await.during("commit a timer")?;
        connection.close().await.during("close")
    }

    async fn cancel(&self, flow: &FlowName, id: &str) -> Result<bool> {
        let Some(mut connection) = look(self).await? else { return Ok(false) };
        let cancelled = sqlx::query("DELETE FROM tidegate_timers WHERE flow = ? AND id = ?")
            .bind(flow.as_str())
            .bind(id)
            .execute(&mut connection)
            .await
            .during("cancel a timer")?;
        connection.close().await.during("close")?;
        Ok(cancelled.rows_affected() > 0)
    }

    async fn due(&self, flow: &FlowName, upto: i64, limit: usize, hide: Duration) -> Result<Vec<Due>> {
        let Some(mut connection) = look(self).await? else { return Ok(Vec::new()) };
        let hide = i64::try_from(hide.as_micros()).unwrap_or(i64::MAX);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = sqlx::query(
            "UPDATE tidegate_timers SET hidden_until = ?1 WHERE number IN (
                 SELECT number FROM tidegate_timers WHERE flow = ?2 AND at <= ?3 AND hidden_until <= ?3
                 ORDER BY at, number LIMIT ?4)
             RETURNING number, id, at, value",
        )
        .bind(upto.saturating_add(hide))
        .bind(flow.as_str())
        .bind(upto)
        .bind(limit)
        .fetch_all(&mut connection)
        .await
        .during("take timers that are due")?;
        connection.close().await.during("close")?;
        let mut due: Vec<Due> = rows
            .into_iter()
            .map(|row| Due {
                number: u64::try_from(row.get::<i64, _>(0)).unwrap_or(0),
                timer: Timer { id: row.get(1), at: row.get(2), value: row.get(3) },
            })
            .collect();
        // The rows come in the order in which they were written.
        due.sort_by_key(|due| (due.timer.at, due.number));
        Ok(due)
    }

    async fn done(&self, flow: &FlowName, number: u64) -> Result<bool> {
        let Some(mut connection) = look(self).await? else { return Ok(false) };
        let done = sqlx::query("DELETE FROM tidegate_timers WHERE flow = ? AND number = ?")
            .bind(flow.as_str())
            .bind(i64::try_from(number).unwrap_or(i64::MAX))
            .execute(&mut connection)
            .await
            .during("end a timer")?;
        connection.close().await.during("close")?;
        Ok(done.rows_affected() > 0)
    }
}
