//! Takes rows and changes: one connection, one transaction for rows and checkpoint.
//!
//! Pieces of a transaction that goes on are committed alone: others write to this file meanwhile, whoever renews the
//! lease among them. The position says that they come again if the rest does not follow.
//!
//! Tables have no identity here: one that is gone is noticed, and one that was made anew is not.

use std::path::Path;

use async_trait::async_trait;
use sqlx::{Connection, SqliteConnection};
use tidegate_core::error::code;
use tidegate_core::port::{Applied, Batch, Checkpoint, Commit, Exclusion, Opened, Route, Sink};
use tidegate_core::{Error, FlowName, Result};

use crate::error::During;
use crate::write::Writer;
use crate::{checkpoint, connect};

pub(crate) struct SqliteSink {
    connection: SqliteConnection,
    flow: FlowName,
    routes: Vec<Route>,
    /// One a route; none where the table is not there.
    writers: Vec<Option<Writer>>,
    fence: i64,
}

impl SqliteSink {
    pub(crate) async fn open(path: &Path, flow: &FlowName, routes: &[Route]) -> Result<Self> {
        let mut connection = connect::creator(path).await?;
        let mut writers = Vec::new();
        for route in routes {
            writers.push(match Writer::open(&mut connection, route).await {
                Err(error) if error.code() == code::TABLE_MISSING => None,
                writer => Some(writer?),
            });
        }
        Ok(Self { connection, flow: flow.clone(), routes: routes.to_vec(), writers, fence: 0 })
    }

    async fn run(&mut self, text: &'static str) -> Result<()> {
        sqlx::query(text).execute(&mut self.connection).await.during(text)?;
        Ok(())
    }

    async fn write(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        let mut applied = Applied::default();
        for part in &batch.tables {
            let (Some(route), Some(writer)) = (self.routes.get(part.table), self.writers.get(part.table))
            else {
                return Err(Error::new(code::INTERNAL, format!("there is no route {}", part.table)));
            };
            let writer = is_there(route, writer.as_ref())?;
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

/// The writer of a table that is there as it is to be written to.
fn is_there<'a>(route: &Route, writer: Option<&'a Writer>) -> Result<&'a Writer> {
    let writer = writer.ok_or_else(|| route.table_missing())?;
    writer.lacks.as_ref().map_or(Ok(writer), |column| Err(route.target_differs(column)))
}

#[async_trait]
impl Sink for SqliteSink {
    async fn open(&mut self, first: &Checkpoint) -> Result<Opened> {
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await.during("begin to open")?;
        checkpoint::create(&mut tx).await?;
        let (fence, mut opened) = checkpoint::open(&mut tx, &self.flow, &self.routes, first).await?;
        if let Opened::Resumed(checkpoint) = &mut opened {
            let is_excluded = |at: &usize| checkpoint.excluded.iter().any(|(excluded, _)| excluded == at);
            let why = |at: usize| is_there(&self.routes[at], self.writers[at].as_ref()).err();
            let gone = (0..self.routes.len()).filter(|at| !is_excluded(at));
            let exclude: Vec<_> =
                gone.filter_map(|at| Some((at, Exclusion::Failed(why(at)?.line())))).collect();
            checkpoint.excluded.extend(exclude.iter().cloned());
            let commit = Commit { exclude, ..Commit::default() };
            checkpoint::advance(&mut tx, &self.flow, &self.routes, &commit).await?;
        }
        tx.commit().await.during("commit the opening")?;
        self.fence = fence;
        Ok(opened)
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        self.run("BEGIN IMMEDIATE").await?;
        // From here on nobody else can write, so nobody can take the flow over before the commit.
        let fence = checkpoint::check_fence(&mut self.connection, &self.flow, self.fence).await;
        let done = match fence {
            Ok(()) => self.write(batch, commit).await,
            Err(lost) => Err(lost),
        };
        let done = match done {
            Ok(applied) => self.run("COMMIT").await.map(|()| applied),
            Err(error) => Err(error),
        };
        if done.is_err()
            && let Err(failed) = self.run("ROLLBACK").await
        {
            // SQLite has rolled back already, as it does when the disk is full.
            tracing::debug!(error = %failed, "nothing left to roll back");
        }
        done
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.connection.close().await.during("close")
    }
}
