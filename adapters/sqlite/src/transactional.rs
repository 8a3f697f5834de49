//! Transactions of an application, with notes of what was handled.

use std::ops::{Deref, DerefMut};

use sqlx::{Connection, SqliteConnection};
use tidegate_core::port::Transactional;
use tidegate_core::{FlowName, Result};

use crate::connect;
use crate::error::During;
use crate::state::NOW;
use crate::statement::sql;
use crate::store::SqliteStore;

/// A transaction on a connection of its own, which is what it derefs to. Dropping it undoes it.
#[derive(Debug)]
pub struct SqliteTx(SqliteConnection);

impl Deref for SqliteTx {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.0
    }
}

impl DerefMut for SqliteTx {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.0
    }
}

const TABLE: &str = "CREATE TABLE IF NOT EXISTS tidegate_inbox(
    flow TEXT NOT NULL, id TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (flow, id)) WITHOUT ROWID";

impl Transactional for SqliteStore {
    type Tx = SqliteTx;

    /// It has the file's lock from the start, so that it does not fail in its midst because of another one.
    async fn begin(&self) -> Result<SqliteTx> {
        let mut connection = connect::creator(self.path()).await?;
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await.during("begin a transaction")?;
        Ok(SqliteTx(connection))
    }

    async fn note(&self, tx: &mut SqliteTx, flow: &FlowName, id: &str) -> Result<bool> {
        sqlx::raw_sql(TABLE).execute(&mut tx.0).await.during("create the table of what was handled")?;
        let note =
            format!("INSERT INTO tidegate_inbox(flow, id, at) VALUES (?, ?, {NOW}) ON CONFLICT DO NOTHING");
        let noted = sqlx::query(sql(note))
            .bind(flow.as_str())
            .bind(id)
            .execute(&mut tx.0)
            .await
            .during("note what is handled")?;
        Ok(noted.rows_affected() > 0)
    }

    async fn commit(&self, tx: SqliteTx) -> Result<()> {
        let mut connection = tx.0;
        sqlx::raw_sql("COMMIT").execute(&mut connection).await.during("commit a transaction")?;
        connection.close().await.during("close")
    }

    async fn forget(&self, flow: &FlowName, older_than: i64) -> Result<u64> {
        let mut connection = connect::creator(self.path()).await?;
        sqlx::raw_sql(TABLE).execute(&mut connection).await.during("create the table of what was handled")?;
        let forget = format!("DELETE FROM tidegate_inbox WHERE flow = ? AND at < {NOW} - ?");
        let forgotten = sqlx::query(sql(forget))
            .bind(flow.as_str())
            .bind(older_than)
            .execute(&mut connection)
            .await
            .during("forget what was handled")?;
        connection.close().await.during("close")?;
        Ok(forgotten.rows_affected())
    }
}
