//! Records of flows.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection, Row as _, SqliteConnection};
use tidegate_core::port::{Lease, StateStore, Stored};
use tidegate_core::{FlowName, Result};

use crate::error::During;
use crate::store::SqliteStore;
use crate::{connect, journal, timers};

/// The file's clock, in microseconds: the machine's that holds the file.
pub(crate) const NOW: &str = "CAST(unixepoch('subsec') * 1000000 AS INTEGER)";

async fn create(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS tidegate_state(
             flow TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, value TEXT NOT NULL,
             PRIMARY KEY (flow, key));
         CREATE TABLE IF NOT EXISTS tidegate_lease(
             flow TEXT PRIMARY KEY, holder TEXT NOT NULL, until INTEGER NOT NULL);",
    )
    .execute(connection)
    .await
    .during("create the state's tables")?;
    Ok(())
}

/// A connection with the state's tables, if they are there.
async fn look(store: &SqliteStore) -> Result<Option<SqliteConnection>> {
    if !store.path().exists() {
        return Ok(None);
    }
    let mut connection = connect::reader(store.path()).await?;
    let is_there = journal::exists(&mut connection, "tidegate_state").await?;
    Ok(is_there.then_some(connection))
}

#[async_trait]
impl StateStore for SqliteStore {
    async fn get(&self, flow: &FlowName, key: &str) -> Result<Option<Stored>> {
        let Some(mut connection) = look(self).await? else { return Ok(None) };
        let row = sqlx::query("SELECT version, value FROM tidegate_state WHERE flow = ? AND key = ?")
            .bind(flow.as_str())
            .bind(key)
            .fetch_optional(&mut connection)
            .await
            .during("read a record")?;
        connection.close().await.during("close")?;
        Ok(row.map(|row| Stored {
            version: u64::try_from(row.get::<i64, _>(0)).unwrap_or(0),
            value: row.get(1),
        }))
    }

    async fn put(&self, flow: &FlowName, key: &str, value: &str, expected: u64) -> Result<Option<u64>> {
        let mut connection = connect::creator(self.path()).await?;
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.during("begin to write a record")?;
        create(&mut tx).await?;
        let now: Option<i64> =
            sqlx::query_scalar("SELECT version FROM tidegate_state WHERE flow = ? AND key = ?")
                .bind(flow.as_str())
                .bind(key)
                .fetch_optional(&mut *tx)
                .await
                .during("read a record's version")?;
        if u64::try_from(now.unwrap_or(0)).unwrap_or(0) != expected {
            return Ok(None);
        }
        let version = expected + 1;
        sqlx::query("INSERT OR REPLACE INTO tidegate_state(flow, key, version, value) VALUES (?, ?, ?, ?)")
            .bind(flow.as_str())
            .bind(key)
            .bind(i64::try_from(version).unwrap_or(i64::MAX))
            .bind(value)
            .execute(&mut *tx)
            .await
            .during("write a record")?;
        tx.commit().await.during("commit a record")?;
        connection.close().await.during("close")?;
        Ok(Some(version))
    }

    async fn flows(&self) -> Result<Vec<FlowName>> {
        let Some(mut connection) = look(self).await? else { return Ok(Vec::new()) };
        let names: Vec<String> = sqlx::query_scalar("SELECT DISTINCT flow FROM tidegate_state ORDER BY flow")
            .fetch_all(&mut connection)
            .await
            .during("list flows")?;
        connection.close().await.during("close")?;
        names.into_iter().map(FlowName::new).collect()
    }

    async fn forget(&self, flow: &FlowName) -> Result<()> {
        if !self.path().exists() {
            return Ok(());
        }
        let mut connection = connect::writer(self.path()).await?;
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.during("begin to forget")?;
        for (table, text) in [
            ("tidegate_state", "DELETE FROM tidegate_state WHERE flow = ?"),
            ("tidegate_lease", "DELETE FROM tidegate_lease WHERE flow = ?"),
            ("tidegate_checkpoint", "DELETE FROM tidegate_checkpoint WHERE flow = ?"),
            ("tidegate_ranges", "DELETE FROM tidegate_ranges WHERE flow = ?"),
            ("tidegate_excluded", "DELETE FROM tidegate_excluded WHERE flow = ?"),
            (timers::TABLE, "DELETE FROM tidegate_timers WHERE flow = ?"),
            ("tidegate_holes", "DELETE FROM tidegate_holes WHERE flow = ?"),
        ] {
            if journal::exists(&mut tx, table).await? {
                sqlx::query(text).bind(flow.as_str()).execute(&mut *tx).await.during("forget a flow")?;
            }
        }
        tx.commit().await.during("commit what is forgotten")?;
        connection.close().await.during("close")
    }

    async fn hold(&self, flow: &FlowName, holder: &str, time: Duration) -> Result<Lease> {
        let mut connection = connect::creator(self.path()).await?;
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.during("begin to take the lease")?;
        create(&mut tx).await?;
        let renew = format!("UPDATE tidegate_lease SET until = {NOW} + ?3 WHERE flow = ?1 AND holder = ?2");
        let take = format!(
            "INSERT INTO tidegate_lease(flow, holder, until) VALUES (?1, ?2, {NOW} + ?3)
             ON CONFLICT (flow) DO UPDATE SET holder = excluded.holder, until = excluded.until
             WHERE tidegate_lease.until <= {NOW}"
        );
        let mut written = Vec::new();
        for text in [renew, take] {
            let query = sqlx::query(crate::statement::sql(text))
                .bind(flow.as_str())
                .bind(holder)
                .bind(i64::try_from(time.as_micros()).unwrap_or(i64::MAX / 4));
            written.push(query.execute(&mut *tx).await.during("take the lease")?.rows_affected() > 0);
            if written == [true] {
                break;
            }
        }
        if !written.contains(&true) {
            let other: String = sqlx::query_scalar("SELECT holder FROM tidegate_lease WHERE flow = ?")
                .bind(flow.as_str())
                .fetch_one(&mut *tx)
                .await
                .during("look who holds the lease")?;
            return Err(Lease::held_by(other));
        }
        tx.commit().await.during("commit the lease")?;
        connection.close().await.during("close")?;
        Ok(Lease { holder: holder.to_owned(), time, renewed: written == [true] })
    }

    async fn release(&self, flow: &FlowName, holder: &str) -> Result<()> {
        let Some(connection) = look(self).await? else { return Ok(()) };
        connection.close().await.during("close")?;
        let mut connection = connect::writer(self.path()).await?;
        sqlx::query("DELETE FROM tidegate_lease WHERE flow = ? AND holder = ?")
            .bind(flow.as_str())
            .bind(holder)
            .execute(&mut connection)
            .await
            .during("give the lease up")?;
        connection.close().await.during("close")
    }
}
