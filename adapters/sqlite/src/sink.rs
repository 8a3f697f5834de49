//! Takes rows and changes: one connection, one transaction for rows and checkpoint.

use std::path::Path;

use async_trait::async_trait;
use sqlx::{Connection, SqliteConnection};
use tidegate_core::error::code;
use tidegate_core::port::{Applied, Batch, Checkpoint, Commit, Opened, Route, Sink};
use tidegate_core::{Error, FlowName, Result};

use crate::error::During;
use crate::write::Writer;
use crate::{checkpoint, connect};

pub(crate) struct SqliteSink {
    connection: SqliteConnection,
    flow: FlowName,
    routes: Vec<Route>,
    writers: Vec<Writer>,
    fence: i64,
    /// A transaction goes on: a batch came without a commit.
    in_transaction: bool,
}

impl SqliteSink {
    pub(crate) async fn open(path: &Path, flow: &FlowName, routes: &[Route]) -> Result<Self> {
        let mut connection = connect::creator(path).await?;
        let mut writers = Vec::new();
        for route in routes {
            writers.push(Writer::open(&mut connection, route).await?);
        }
        Ok(Self {
            connection,
            flow: flow.clone(),
            routes: routes.to_vec(),
            writers,
            fence: 0,
            in_transaction: false,
        })
    }

    async fn run(&mut self, text: &'static str) -> Result<()> {
        sqlx::query(text).execute(&mut self.connection).await.during(text)?;
        Ok(())
    }

    async fn write(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        let mut applied = Applied::default();
        for part in &batch.tables {
            let writer = self
                .writers
                .get(part.table)
                .ok_or_else(|| Error::new(code::INTERNAL, format!("there is no route {}", part.table)))?;
            let holes = writer.write(&mut self.connection, part).await?;
            applied.holes.extend(holes.into_iter().map(|key| (part.table, key)));
        }
        if let Some(commit) = commit {
            checkpoint::advance(&mut self.connection, &self.flow, &self.routes, commit).await?;
        }
        checkpoint::note(&mut self.connection, &self.flow, &self.routes, &applied.holes).await?;
        Ok(applied)
    }
}

#[async_trait]
impl Sink for SqliteSink {
    async fn open(&mut self, first: &Checkpoint) -> Result<Opened> {
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await.during("begin to open")?;
        checkpoint::create(&mut tx).await?;
        let (fence, opened) = checkpoint::open(&mut tx, &self.flow, &self.routes, first).await?;
        tx.commit().await.during("commit the opening")?;
        self.fence = fence;
        Ok(opened)
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        let begins = !self.in_transaction;
        if begins {
            self.run("BEGIN IMMEDIATE").await?;
            // From here on nobody else can write, so nobody can take the flow over before the commit.
            if let Err(error) = checkpoint::check_fence(&mut self.connection, &self.flow, self.fence).await {
                self.run("ROLLBACK").await?;
                return Err(error);
            }
        } else {
            self.run("SAVEPOINT tidegate_batch").await?;
        }
        let written = match self.write(batch, commit).await {
            Ok(applied) if commit.is_some() => self.run("COMMIT").await.map(|()| applied),
            other => other,
        };
        match written {
            Ok(applied) => {
                if commit.is_none() && !begins {
                    self.run("RELEASE tidegate_batch").await?;
                }
                self.in_transaction = commit.is_none();
                Ok(applied)
            }
            Err(error) => {
                // Nothing of this batch stays; what came before it in the same transaction does.
                let undo = if begins { "ROLLBACK" } else { "ROLLBACK TO tidegate_batch" };
                if let Err(failed) = self.run(undo).await {
                    // SQLite has rolled back already, as it does when the disk is full.
                    tracing::debug!(error = %failed, "nothing left to roll back");
                    self.in_transaction = false;
                } else if !begins {
                    self.run("RELEASE tidegate_batch").await?;
                }
                Err(error)
            }
        }
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        if self.in_transaction {
            // Its end has not come; it comes again.
            self.run("ROLLBACK").await?;
        }
        self.connection.close().await.during("close")
    }
}
