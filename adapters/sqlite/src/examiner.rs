//! What the file's settings mean for a flow, and how large its journal has grown.

use async_trait::async_trait;
use sqlx::{Connection, SqliteConnection};
use tidegate_core::port::{Examiner, Finding, Side, Strain, Weight};
use tidegate_core::{FlowName, Position, Result};

use crate::connect;
use crate::error::During;
use crate::statement::sql;
use crate::store::SqliteStore;

/// Bytes of a journal entry, where the file cannot say how large the journal is.
const ENTRY_BYTES: u64 = 64;

async fn number(connection: &mut SqliteConnection, query: &str) -> Result<Option<i64>> {
    sqlx::query_scalar(sql(query.to_owned())).fetch_optional(connection).await.during("examine")
}

#[async_trait]
impl Examiner for SqliteStore {
    async fn examine(&self, side: Side) -> Result<Vec<Finding>> {
        if side == Side::Target && !self.path().exists() {
            return Ok(vec![Finding::new("file", "is made by the first run", true, Weight::Good, "")]);
        }
        let mut connection = connect::reader(self.path()).await?;
        let mode: String =
            sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut connection).await.during("examine")?;
        let advice = "readers and the application would wait for each other: PRAGMA journal_mode = WAL";
        let good = mode == "wal";
        let mut findings = vec![Finding::new("journal_mode", mode, good, Weight::Loss, advice)];
        let version: String = sqlx::query_scalar("SELECT sqlite_version()")
            .fetch_one(&mut connection)
            .await
            .during("examine")?;
        let advice = "an application with a library below 3.51.3 can corrupt a WAL file: upgrade it";
        findings.push(Finding::new("library of this program", version, true, Weight::Notice, advice));
        let damaged: String =
            sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await.during("examine")?;
        let good = damaged == "ok";
        findings.push(Finding::new(
            "quick_check",
            damaged,
            good,
            Weight::Loss,
            "the file is damaged: restore it",
        ));
        connection.close().await.during("close")?;
        Ok(findings)
    }

    async fn strain(&self, _: &FlowName, from: &Position) -> Result<Strain> {
        let mut connection = connect::reader(self.path()).await?;
        let there = "SELECT 1 FROM sqlite_schema WHERE name = 'tidegate_journal'";
        if number(&mut connection, there).await?.is_none() {
            return Ok(Strain::default());
        }
        let pages = "SELECT sum(pgsize) FROM dbstat WHERE name = 'tidegate_journal'";
        let held_bytes = match number(&mut connection, pages).await {
            Ok(bytes) => u64::try_from(bytes.unwrap_or(0)).unwrap_or(0),
            Err(_) => {
                let waiting = format!(
                    "SELECT count(*) FROM tidegate_journal WHERE seq > {}",
                    i64::try_from(from.to_u64().unwrap_or(0)).unwrap_or(0)
                );
                let entries = number(&mut connection, &waiting).await?.unwrap_or(0);
                u64::try_from(entries).unwrap_or(0) * ENTRY_BYTES
            }
        };
        connection.close().await.during("close")?;
        Ok(Strain { held_bytes, used: None })
    }

    fn grants(&self, side: Side, user: &str) -> String {
        let file = self.path().display();
        let folder = self.path().parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| std::path::Path::new(".")).display();
        let why = match side {
            Side::Source => "Triggers and a journal are made in the file",
            Side::Target => "The file and its tables are made",
        };
        format!(
            "# {why}; SQLite writes two more files beside it.\n\
             setfacl -m u:{user}:rw '{file}'\n\
             setfacl -m u:{user}:rwx '{folder}'\n"
        )
    }
}
