//! Takes rows and changes, and the checkpoint with them, in one transaction.
//!
//! A chunk that is expected to meet no row is copied into its table, by two sessions if it is large. Everything else is
//! copied into a temporary table first and merged from there by one statement a kind of work.

mod apart;
mod checkpoint;
mod direct;
mod helper;
mod identity;
mod place;
mod stage;

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use bytes::Bytes;
use futures::SinkExt as _;
use tidegate_core::port::{Applied, Batch, Checkpoint, Commit, Opened, Route, Sink, TableBatch};
use tidegate_core::{Error, FlowName, Key, Result, Rows};
use tokio_postgres::error::SqlState;
use tokio_postgres::{SimpleQueryMessage, Statement};

use crate::catalog::target;
use crate::connect::Session;
use crate::error::{from_driver, unsure};
use crate::schema;
use crate::sink::helper::Helper;
use crate::sink::place::Place;
use crate::sink::stage::Stage;
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
    /// Triggers and foreign keys of the target stay on.
    fires: bool,
    fence: i64,
    /// A transaction is open, with batches that were applied and not committed.
    is_open: bool,
    /// Tables that the transaction holds.
    held: HashSet<usize>,
    /// Whose stages were made, and whose hold something.
    staged: HashSet<usize>,
    filled: HashSet<(usize, Stage)>,
    statements: HashMap<String, Statement>,
    ledger: checkpoint::Statements,
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
        let fires = !set_up(&session).await?;
        if fires {
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
            fires,
            fence: 0,
            is_open: false,
            held: HashSet::new(),
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
            if let Some(error) = place.trouble() {
                return Err(error);
            }
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

    /// # Errors
    /// `constraint-violated` if deleting a row of the table changes rows that refer to it. Those that changed in the source
    /// too are among the changes; a row that refers to another one by now would be lost.
    async fn check_cascades(&self, table: usize) -> Result<()> {
        // Asked each time: foreign keys are added while a flow runs.
        if self.fires && target::cascades(&self.session, &self.places[table].route.target.name).await? {
            return Err(target::would_cascade());
        }
        Ok(())
    }

    async fn remove(&mut self, batch: &TableBatch, deletes: Option<Bytes>) -> Result<()> {
        if batch.truncate || deletes.is_some() {
            self.check_cascades(batch.table).await?;
        }
        let place = &self.places[batch.table];
        if batch.truncate {
            let truncate = format!("SAVEPOINT truncating; TRUNCATE {}; RELEASE truncating", place.own);
            match self.session.batch_execute(&truncate).await {
                Ok(()) => {}
                // Another table refers to it.
                Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
                    let delete = format!("ROLLBACK TO truncating; DELETE FROM {}", place.own);
                    self.run(&delete).await?;
                }
                Err(error) => return Err(from_driver(error, "truncate")),
            }
        }
        if let Some(deletes) = deletes {
            self.remove_keys(batch.table, &batch.deletes, deletes).await?;
        }
        Ok(())
    }

    async fn put(&mut self, part: &mut Part<'_>, applied: &mut Applied) -> Result<()> {
        let table = part.batch.table;
        if let Some(upserts) = &part.upserts
            && part.batch.fresh
            && self.copy_direct(table, &part.batch.upserts, upserts, part.shared.as_ref()).await?
        {
            part.upserts = None;
        }
        if part.shared.take().is_some() && part.upserts.is_some() {
            let rows = &part.batch.upserts;
            part.upserts = Some(self.places[table].encode_rows(rows, 0..rows.len())?);
        }
        if part.upserts.is_none() && part.updates.is_empty() {
            return Ok(());
        }
        let holes = match self.put_together(part).await? {
            Some(holes) => holes,
            None => self.put_apart(part).await?,
        };
        applied.holes.extend(holes.into_iter().map(|key| (table, key)));
        Ok(())
    }

    /// Writes a part by as few statements as it takes, and gives the keys of updates that met no row; `None` if a row is
    /// kept out by another one: its holder before may be in this batch as well.
    async fn put_together(&mut self, part: &Part<'_>) -> Result<Option<Vec<Key>>> {
        let table = part.batch.table;
        if let Some(upserts) = &part.upserts {
            self.stage(table, Stage::Rows).await?;
            let place = &self.places[table];
            let (copy, upsert) = (place.copy_rows(), place.upsert());
            let copied = self.copy(copy, upserts.clone()).await;
            copied.map_err(|e| self.places[table].refused(e, "stage", part.batch.upserts.iter()))?;
            if self.attempt(&upsert).await?.is_none() {
                return Ok(None);
            }
        }
        let mut holes = Vec::new();
        for (sent, rows) in &part.updates {
            match self.update(table, sent, &part.batch.updates, rows.clone()).await? {
                Some(missed) => holes.extend(cut_keys(&self.places[table], &part.batch.updates, &missed)),
                None => return Ok(None),
            }
        }
        Ok(Some(if part.batch.crawling { Vec::new() } else { holes }))
    }

    /// Runs a statement and gives what it answers; `None`, with nothing done, if a row is kept out.
    async fn attempt(&self, sql: &str) -> Result<Option<Vec<SimpleQueryMessage>>> {
        let within = format!("SAVEPOINT attempt; {sql}; RELEASE attempt");
        match self.session.simple_query(&within).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if is_kept_out(&error) => {
                self.run("ROLLBACK TO attempt; RELEASE attempt").await?;
                Ok(None)
            }
            Err(error) => Err(from_driver(error, "apply")),
        }
    }

    /// What is checked at the end of a transaction names the table as the server does.
    fn name_table(&self, error: Error) -> Error {
        let relation = error.context().iter().find(|(name, _)| *name == "relation").map(|(_, of)| of.clone());
        let mut places = self.places.iter();
        match relation.and_then(|of| places.find(|place| place.is_called(&of))) {
            Some(place) => error.with("table", &place.name),
            None => error,
        }
    }

    /// Takes the transaction back, with the batches before of which it has more.
    async fn take_back(&mut self) {
        // What was made within is gone; it is made anew if it is not there.
        self.staged.clear();
        self.filled.clear();
        self.held.clear();
        if self.session.batch_execute("ROLLBACK").await.is_err() {
            tracing::debug!("a transaction could not be taken back: its connection is gone");
        }
        self.is_open = false;
    }
}

/// Whether another row has what is unique in one.
fn is_kept_out(error: &tokio_postgres::Error) -> bool {
    [&SqlState::UNIQUE_VIOLATION, &SqlState::EXCLUSION_VIOLATION].map(Some).contains(&error.code())
}

/// The tables as the ledger has them.
fn names(places: &[Place]) -> Vec<&str> {
    places.iter().map(|place| place.source.as_str()).collect()
}

/// The keys of the rows at these places.
fn cut_keys(place: &Place, rows: &Rows, which: &[usize]) -> Vec<Key> {
    which.iter().map(|at| place.route.shape.cut_key(rows.row(*at))).collect()
}

#[async_trait]
impl Sink for PostgresSink {
    async fn open(&mut self, first: &Checkpoint) -> Result<Opened> {
        let failed = |e| from_driver(e, "checkpoint");
        let transaction = self.session.transaction().await.map_err(failed)?;
        let (client, flow) = (transaction.client(), &self.flow);
        let (fence, mut opened) =
            checkpoint::open(client, &self.ledger, flow, &names(&self.places), first).await?;
        let checkpoint = match &mut opened {
            Opened::New => None,
            Opened::Resumed(checkpoint) => Some(checkpoint),
        };
        identity::open(client, flow, &mut self.places, checkpoint).await?;
        transaction.commit().await.map_err(failed)?;
        self.fence = fence;
        Ok(opened)
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        for table in commit.into_iter().flat_map(|commit| &commit.forget) {
            self.places[*table].known = self.places[*table].found;
        }
        let mut parts = match self.parts(batch) {
            Ok(parts) => parts,
            Err(error) => {
                if self.is_open {
                    self.take_back().await;
                }
                return Err(error);
            }
        };
        if !self.is_open {
            self.prepare(batch).await?;
        }
        let mut applied = Applied::default();
        let mut result = self.hold(batch).await;
        if result.is_ok() {
            result = self.write(&mut parts, &mut applied).await;
        }
        if result.is_ok()
            && let Some(commit) = commit
        {
            let (session, names) = (&self.session, names(&self.places));
            result = self.ledger.write(session, &self.flow, self.fence, &names, commit).await;
            if result.is_ok() {
                result = identity::note(session, &self.flow, &self.places, &commit.forget).await;
            }
        }
        if result.is_ok() {
            result = checkpoint::note(&self.session, &self.flow, &names(&self.places), &applied.holes).await;
        }
        if let Err(error) = result {
            self.take_back().await;
            return Err(error);
        }
        if commit.is_some() {
            let committed = self.run("COMMIT").await.map_err(unsure);
            // Whatever became of it: there is no transaction any more.
            self.is_open = false;
            self.held.clear();
            self.filled.clear();
            if let Err(error) = committed {
                self.staged.clear();
                return Err(self.name_table(error));
            }
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

/// Staged keys are looked up one by one, in the index of the target's key: the server cannot know how many there are, and
/// would read all of the target for a batch.
const SETUP: &str = "SET synchronous_commit = on; SET client_min_messages = warning; SET jit = off;
    SET enable_hashjoin = off; SET enable_mergejoin = off";

/// Prepares a session for writing; says whether foreign keys and triggers, which have done their work at the source,
/// are off.
async fn set_up(session: &Session) -> Result<bool> {
    session.batch_execute(SETUP).await.map_err(|e| from_driver(e, "connect"))?;
    Ok(session.batch_execute(target::FIRES_NOT).await.is_ok())
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
