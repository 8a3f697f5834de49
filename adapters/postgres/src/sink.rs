//! Takes rows and changes, and the checkpoint with them, in one transaction.
//!
//! A chunk that is expected to meet no row is copied into its table, by two sessions if it is large. Everything else is
//! copied into a temporary table first and merged from there by one statement a kind of work.

mod checkpoint;
mod helper;
mod place;

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use bytes::Bytes;
use futures::SinkExt as _;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Applied, Batch, Checkpoint, Commit, Opened, Route, Sink, TableBatch};
use tidegate_core::{Error, FlowName, Result, Rows};
use tokio_postgres::error::SqlState;
use tokio_postgres::{SimpleQueryMessage, Statement};

use crate::connect::Session;
use crate::error::from_driver;
use crate::schema;
use crate::sink::helper::{Helper, LOCK_TIMEOUT};
use crate::sink::place::Place;
use crate::store::PostgresStore;

/// How much of a copy goes to the driver at a time.
const PIECE_BYTES: usize = 1 << 18;

/// A chunk of fewer rows is not worth a second session.
const SHARED_ROWS_MIN: usize = 5_000;

#[derive(Debug)]
pub(crate) struct PostgresSink {
    store: PostgresStore,
    session: Session,
    helper: Option<Helper>,
    flow: FlowName,
    places: Vec<Place>,
    fence: i64,
    /// A transaction is open, with batches that were applied and not committed.
    is_open: bool,
    /// Whose stages were made, and whose hold something.
    staged: HashSet<usize>,
    filled: HashSet<(usize, Stage)>,
    statements: HashMap<String, Statement>,
    ledger: checkpoint::Statements,
}

/// A temporary table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Rows,
    Keys,
}

/// What is to be done to one table, in the target's form.
struct Part<'a> {
    batch: &'a TableBatch,
    deletes: Option<Bytes>,
    upserts: Option<Bytes>,
    /// The second half of a chunk that two sessions share; the first half is in `upserts`.
    shared: Option<Bytes>,
    updates: Vec<(Vec<usize>, Bytes)>,
}

impl PostgresSink {
    pub(crate) async fn open(store: &PostgresStore, flow: &FlowName, routes: &[Route]) -> Result<Self> {
        let session = store.session().await?;
        schema::ensure(&session).await?;
        if !set_up(&session).await? {
            tracing::warn!(
                "the role may not set session_replication_role: triggers and foreign keys of the target stay on"
            );
        }
        let mut places = Vec::with_capacity(routes.len());
        for (number, route) in routes.iter().enumerate() {
            places.push(Place::new(&session, number, route).await?);
        }
        let ledger = checkpoint::Statements::prepare(&session).await?;
        Ok(Self {
            store: store.clone(),
            session,
            helper: None,
            ledger,
            flow: flow.clone(),
            places,
            fence: 0,
            is_open: false,
            staged: HashSet::new(),
            filled: HashSet::new(),
            statements: HashMap::new(),
        })
    }

    async fn run(&self, sql: &str) -> Result<()> {
        self.session.batch_execute(sql).await.map_err(|e| from_driver(e, "apply"))
    }

    /// Copies into a table. The driver's error comes as it is, for whoever has another way.
    async fn copy(&mut self, sql: String, data: Bytes) -> Result<(), tokio_postgres::Error> {
        copy_into(&self.session, &mut self.statements, sql, data).await
    }

    /// Encodes everything first, so that what does not fit is found before anything is done.
    fn parts<'a>(&self, batch: &'a Batch) -> Result<Vec<Part<'a>>> {
        let part = |batch: &'a TableBatch| {
            let place = &self.places[batch.table];
            let some =
                |rows: &Rows, encoded: Result<Bytes>| (!rows.is_empty()).then_some(encoded).transpose();
            let rows = &batch.upserts;
            // What is there already has to go first, in the same transaction.
            let is_shared =
                batch.fresh && rows.len() >= SHARED_ROWS_MIN && batch.len() == rows.len() && !batch.truncate;
            let first = if is_shared { rows.len() / 2 } else { rows.len() };
            Ok(Part {
                batch,
                deletes: some(&batch.deletes, place.encode_keys(&batch.deletes))?,
                upserts: some(rows, place.encode_rows(rows, 0..first))?,
                shared: is_shared.then(|| place.encode_rows(rows, first..rows.len())).transpose()?,
                updates: place.encode_updates(&batch.updates)?,
            })
        };
        batch.tables.iter().map(part).collect()
    }

    async fn write(&mut self, parts: &mut [Part<'_>], applied: &mut Applied) -> Result<()> {
        for part in &mut *parts {
            let (table, deletes) = (part.batch.table, part.deletes.take());
            self.remove(part.batch, deletes)
                .await
                .map_err(|error| error.with("table", &self.places[table].name))?;
        }
        for part in parts {
            let table = part.batch.table;
            self.put(part, applied).await.map_err(|error| error.with("table", &self.places[table].name))?;
        }
        Ok(())
    }

    async fn remove(&mut self, batch: &TableBatch, deletes: Option<Bytes>) -> Result<()> {
        let place = &self.places[batch.table];
        if batch.truncate {
            let truncate = format!("SAVEPOINT truncating; TRUNCATE {}; RELEASE truncating", place.table);
            match self.session.batch_execute(&truncate).await {
                Ok(()) => {}
                // Another table refers to it.
                Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
                    let delete = format!("ROLLBACK TO truncating; DELETE FROM {}", place.table);
                    self.run(&delete).await?;
                }
                Err(error) => return Err(from_driver(error, "truncate")),
            }
        }
        if let Some(deletes) = deletes {
            self.stage(batch.table, Stage::Keys).await?;
            let (copy, delete) =
                (self.places[batch.table].copy_keys(), self.places[batch.table].delete_keys());
            self.copy(copy, deletes).await.map_err(|e| from_driver(e, "stage"))?;
            self.run(&delete).await?;
        }
        Ok(())
    }

    async fn put(&mut self, part: &mut Part<'_>, applied: &mut Applied) -> Result<()> {
        let table = part.batch.table;
        if let Some(upserts) = part.upserts.take()
            && !(part.batch.fresh && self.copy_direct(table, &upserts, part.shared.as_ref()).await?)
        {
            let upserts = match part.shared.take() {
                Some(_) => {
                    self.places[table].encode_rows(&part.batch.upserts, 0..part.batch.upserts.len())?
                }
                None => upserts,
            };
            self.stage(table, Stage::Rows).await?;
            let place = &self.places[table];
            let (copy, upsert) = (place.copy_rows(), place.upsert());
            self.copy(copy, upserts).await.map_err(|e| from_driver(e, "stage"))?;
            let upsert = format!("SAVEPOINT writing; {upsert}; RELEASE writing");
            match self.session.batch_execute(&upsert).await {
                Ok(()) => {}
                // Another unique key: its holder before may be in this batch as well.
                Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                    let replace = format!("ROLLBACK TO writing; {}", self.places[table].replace());
                    self.run(&replace).await?;
                }
                Err(error) => return Err(from_driver(error, "apply")),
            }
        }
        for (sent, rows) in std::mem::take(&mut part.updates) {
            self.stage(table, Stage::Rows).await?;
            let place = &self.places[table];
            let (copy, update) = (place.copy_updates(&sent), place.update(&sent));
            self.copy(copy, rows).await.map_err(|e| from_driver(e, "stage"))?;
            let missed = self.session.simple_query(&update).await.map_err(|e| from_driver(e, "apply"))?;
            let shape = &self.places[table].shape;
            for message in &missed {
                if let SimpleQueryMessage::Row(row) = message
                    && let Some(number) = row.get(0).and_then(|text| text.parse::<usize>().ok())
                {
                    applied.holes.push((table, shape.cut_key(part.batch.updates.row(number))));
                }
            }
        }
        Ok(())
    }

    /// Copies into the table itself; false, with nothing done, if a row was there.
    async fn copy_direct(&mut self, table: usize, rows: &Bytes, shared: Option<&Bytes>) -> Result<bool> {
        let sql = self.places[table].copy_direct();
        if let Some(second) = shared
            && let Some(mut helper) = self.helper().await
        {
            let done = self.copy_shared(&mut helper, &sql, rows, second).await;
            // After an error nobody knows what its session holds.
            self.helper = done.is_ok().then_some(helper);
            return done;
        }
        self.run("SAVEPOINT copying").await?;
        let copied = self.copy(sql.clone(), rows.clone()).await;
        let copied = match (copied, shared) {
            (Ok(()), Some(second)) => self.copy(sql, second.clone()).await,
            (copied, _) => copied,
        };
        match copied {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                self.run("ROLLBACK TO copying").await?;
                Ok(false)
            }
            Err(error) => Err(from_driver(error, "copy")),
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
        sql: &str,
        first: &Bytes,
        second: &Bytes,
    ) -> Result<bool> {
        self.run(&format!("SAVEPOINT copying; {LOCK_TIMEOUT}")).await?;
        helper.begin(&self.flow, self.fence).await?;
        let (first, second) = futures::join!(
            copy_into(&self.session, &mut self.statements, sql.to_owned(), first.clone()),
            helper.copy(sql.to_owned(), second.clone()),
        );
        // A row was there; or the halves wait for each other, which unique keys of the target alone can bring about.
        let is_met = |error: &tokio_postgres::Error| {
            [&SqlState::UNIQUE_VIOLATION, &SqlState::LOCK_NOT_AVAILABLE].map(Some).contains(&error.code())
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
            Err(error) => Err(from_driver(error, "copy")),
        }
    }

    /// Makes the stage of a table, or empties it if the transaction has used it.
    async fn stage(&mut self, table: usize, stage: Stage) -> Result<()> {
        let place = &self.places[table];
        if self.staged.insert(table) {
            self.run(&place.create_stage()).await?;
        } else if self.filled.contains(&(table, stage)) {
            self.run(&match stage {
                Stage::Rows => place.clear_rows(),
                Stage::Keys => place.clear_keys(),
            })
            .await?;
        }
        self.filled.insert((table, stage));
        Ok(())
    }

    /// Makes the stages that a batch needs while no transaction is open, so that they stay whatever becomes of it.
    async fn prepare(&mut self, batch: &Batch) -> Result<()> {
        for part in &batch.tables {
            let needs = !part.fresh || !part.deletes.is_empty() || !part.updates.is_empty();
            if needs && !part.is_empty() && self.staged.insert(part.table) {
                self.run(&self.places[part.table].create_stage()).await?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Vec<&str> {
        self.places.iter().map(|place| place.name.as_str()).collect()
    }

    /// Takes back what a batch did: it, or with `all` the whole transaction.
    async fn take_back(&mut self, all: bool) {
        // What was made within may be gone; it is made anew if it is not there.
        self.staged.clear();
        self.filled.clear();
        let sql = if all { "ROLLBACK" } else { "ROLLBACK TO batch" };
        if self.session.batch_execute(sql).await.is_err() {
            tracing::debug!("a transaction could not be taken back: its connection is gone");
        }
        self.is_open &= !all;
    }
}

#[async_trait]
impl Sink for PostgresSink {
    async fn open(&mut self, first: &Checkpoint) -> Result<Opened> {
        let names: Vec<&str> = self.places.iter().map(|place| place.name.as_str()).collect();
        let (fence, opened) = checkpoint::open(&mut self.session, &self.flow, &names, first).await?;
        self.fence = fence;
        Ok(opened)
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        let mut parts = self.parts(batch)?;
        let goes_on = self.is_open;
        if goes_on {
            self.run("SAVEPOINT batch").await?;
        } else {
            self.prepare(batch).await?;
            self.run("BEGIN").await?;
            self.is_open = true;
        }
        let mut applied = Applied::default();
        let mut result = self.write(&mut parts, &mut applied).await;
        if result.is_ok()
            && let Some(commit) = commit
        {
            result = self.ledger.write(&self.session, &self.flow, self.fence, &self.names(), commit).await;
        }
        if let Err(error) = result {
            let lost = error.code() == code::LEASE_LOST;
            self.take_back(!goes_on || lost).await;
            return Err(error);
        }
        if commit.is_some() {
            self.run("COMMIT").await.map_err(unsure)?;
            self.is_open = false;
            self.filled.clear();
        } else if goes_on {
            self.run("RELEASE batch").await?;
        }
        Ok(applied)
    }

    async fn close(self: Box<Self>) -> Result<()> {
        // What was applied without a commit comes again.
        if let Some(helper) = self.helper {
            helper.close().await;
        }
        self.session.close().await;
        Ok(())
    }
}

/// Prepares a session for writing; says whether foreign keys and triggers, which have done their work at the source,
/// are off.
async fn set_up(session: &Session) -> Result<bool> {
    let setup = "SET synchronous_commit = on; SET client_min_messages = warning; SET jit = off";
    session.batch_execute(setup).await.map_err(|e| from_driver(e, "connect"))?;
    Ok(session.batch_execute("SET session_replication_role = replica").await.is_ok())
}

async fn copy_into(
    session: &Session,
    statements: &mut HashMap<String, Statement>,
    sql: String,
    mut data: Bytes,
) -> Result<(), tokio_postgres::Error> {
    let statement = match statements.get(&sql) {
        Some(statement) => statement.clone(),
        None => {
            let statement = session.prepare(&sql).await?;
            statements.insert(sql, statement.clone());
            statement
        }
    };
    let sink = session.copy_in::<_, Bytes>(&statement).await?;
    let mut sink = std::pin::pin!(sink);
    while !data.is_empty() {
        sink.feed(data.split_to(PIECE_BYTES.min(data.len()))).await?;
    }
    sink.finish().await?;
    Ok(())
}

/// Nobody knows whether a commit that was not answered was done. One that the server refused was not.
fn unsure(error: Error) -> Error {
    match error.code() {
        code::CONNECTION_LOST | code::TIMED_OUT | code::UNREACHABLE => error.verdict_is(Verdict::Unknown),
        _ => error,
    }
}
