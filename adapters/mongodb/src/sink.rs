//! Takes rows and changes: transactions of rows, the last one with the checkpoint.
//!
//! Rows of a fresh chunk are inserted first, outside a transaction and by several commands at once; those that are
//! there already are then put in place in the transaction that has the ledger. A crash between the two leaves rows
//! that the ledger does not know; they are read again.

use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use mongodb::bson::RawArrayBuf;
use mongodb::bson::raw::cstr;
use mongodb::bson::{Document, RawBson, RawDocumentBuf, doc};
use mongodb::error::ErrorKind;
use mongodb::{ClientSession, Database};
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Applied, Batch, Checkpoint, Commit, Opened, Route, Sink, TableBatch};
use tidegate_core::{Error, FlowName, Key, Result};

use crate::checkpoint;
use crate::error::{DUPLICATE_KEY, During, from_answer, from_driver};
use crate::write::{Kind, Statement, Writer, command, pieces};

/// How many commands insert at once.
const INSERTERS: usize = 3;
/// Fewer rows than these go the ordinary way.
const FRESH_LEAST: usize = 50;
/// How often a transaction that had no effect is done again.
const ATTEMPTS: u32 = 12;

pub(crate) struct MongoSink {
    database: Database,
    flow: FlowName,
    routes: Vec<Route>,
    writers: Vec<Writer>,
    fence: i64,
    /// The one session of all its transactions: a new one there ends an old one that was left open.
    session: Option<ClientSession>,
}

impl MongoSink {
    pub(crate) async fn open(database: Database, flow: &FlowName, routes: &[Route]) -> Result<Self> {
        checkpoint::create(&database).await?;
        let writers = routes.iter().map(Writer::new).collect::<Result<_>>()?;
        Ok(Self { database, flow: flow.clone(), routes: routes.to_vec(), writers, fence: 0, session: None })
    }

    fn writer(&self, table: usize) -> Result<&Writer> {
        self.writers
            .get(table)
            .ok_or_else(|| Error::new(code::INTERNAL, format!("there is no route {table}")))
    }

    /// Everything that a batch says, checked before the first of it is done.
    fn prepare(&self, batch: &Batch) -> Result<Prepared> {
        let mut prepared = Prepared::default();
        for part in &batch.tables {
            let writer = self.writer(part.table)?;
            if part.truncate {
                prepared.truncates.push(part.table);
            }
            let documents = writer.documents(part)?;
            if is_fresh(part) {
                prepared.fresh.push((part.table, documents));
                continue;
            }
            writer.deletes(part.table, part, &mut prepared.statements)?;
            for document in documents {
                prepared.statements.push(writer.upsert(part.table, document)?);
            }
            writer.updates(part.table, part, &mut prepared.statements)?;
        }
        Ok(prepared)
    }

    /// Inserts documents and gives those whose key was there.
    async fn insert(&self, table: usize, documents: Vec<RawDocumentBuf>) -> Result<Vec<RawDocumentBuf>> {
        let collection = self.database.collection::<RawDocumentBuf>(&self.writer(table)?.collection);
        let slice = documents.len().div_ceil(INSERTERS).max(1);
        let inserts = documents.chunks(slice).map(async |slice| {
            let error = match collection.insert_many(slice).ordered(false).await {
                Ok(_) => return Ok(Vec::new()),
                Err(error) => error,
            };
            let mut there = Vec::new();
            if let ErrorKind::InsertMany(refused) = &*error.kind
                && refused.write_concern_error.is_none()
                && let Some(all) = &refused.write_errors
                && all.iter().all(|one| one.code == DUPLICATE_KEY)
            {
                there.extend(all.iter().filter_map(|one| slice.get(one.index).cloned()));
                return Ok(there);
            }
            Err(from_driver(error, "insert rows"))
        });
        Ok(try_join_all(inserts).await?.concat())
    }

    /// One transaction of statements, done again as long as it had no effect.
    async fn transact(&mut self, statements: &[Statement], commit: Option<&Commit>) -> Result<Applied> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => start(&self.database).await?,
        };
        let done = self.transact_in(&mut session, statements, commit).await;
        self.session = Some(session);
        done
    }

    async fn transact_in(
        &self,
        session: &mut ClientSession,
        statements: &[Statement],
        commit: Option<&Commit>,
    ) -> Result<Applied> {
        let mut attempt = 0;
        loop {
            session.start_transaction().await.during("begin")?;
            let done = match self.write(session, statements, commit).await {
                Ok(applied) => end(session).await.map(|()| applied),
                Err(error) => {
                    // Where the server has ended it already there is nothing left to undo.
                    let _ = session.abort_transaction().await;
                    Err(error)
                }
            };
            match done {
                Err(error) if is_worth_again(&error) && attempt < ATTEMPTS => pause(attempt).await,
                other => return other,
            }
            attempt += 1;
        }
    }

    async fn write(
        &self,
        session: &mut ClientSession,
        statements: &[Statement],
        commit: Option<&Commit>,
    ) -> Result<Applied> {
        checkpoint::advance(&self.database, session, &self.flow, &self.routes, self.fence, commit).await?;
        let mut applied = Applied::default();
        for group in statements.chunk_by(|a, b| (a.kind, a.table) == (b.kind, b.table)) {
            let Some(first) = group.first() else { continue };
            let writer = self.writer(first.table)?;
            let name = &writer.collection;
            let blame = |error: Error| error.with("table", &writer.route.target.name);
            let answer = self
                .database
                .run_raw_command(command(first.kind, name, group))
                .session(&mut *session)
                .await
                .during("write rows")
                .map_err(blame)?;
            if let Some(error) = from_answer(&answer, "write rows") {
                return Err(blame(error));
            }
            let met = usize::try_from(answer.get_i32("n").unwrap_or(0)).unwrap_or(0);
            if first.kind == Kind::Update && met < group.len() {
                let holes = self.holes(session, name, group).await?;
                applied.holes.extend(holes.into_iter().map(|key| (first.table, key)));
            }
        }
        Ok(applied)
    }

    /// The keys of updates that met no row.
    async fn holes(&self, session: &mut ClientSession, name: &str, group: &[Statement]) -> Result<Vec<Key>> {
        let mut holes = Vec::new();
        let collection = self.database.collection::<RawDocumentBuf>(name);
        for (id, key) in group.iter().filter_map(|statement| statement.updates.as_ref()) {
            let filter = filter_by(id)?;
            let found = collection
                .find_one(filter)
                .projection(doc! { "_id": 1 })
                .session(&mut *session)
                .await
                .during("look for a row")?;
            if found.is_none() {
                holes.push(key.clone());
            }
        }
        Ok(holes)
    }
}

fn filter_by(id: &RawBson) -> Result<Document> {
    let mut list = RawArrayBuf::new();
    list.push(id.clone());
    let mut wanted = RawDocumentBuf::new();
    wanted.append(cstr!("$in"), list);
    let mut filter = RawDocumentBuf::new();
    filter.append(cstr!("_id"), wanted);
    Document::try_from(filter.as_ref()).map_err(crate::extended::unreadable)
}

/// What is to be done for a batch.
#[derive(Default)]
struct Prepared {
    truncates: Vec<usize>,
    fresh: Vec<(usize, Vec<RawDocumentBuf>)>,
    statements: Vec<Statement>,
}

fn is_fresh(part: &TableBatch) -> bool {
    part.fresh && part.deletes.is_empty() && part.updates.is_empty() && part.upserts.len() >= FRESH_LEAST
}

fn is_worth_again(error: &Error) -> bool {
    error.verdict() == Verdict::Retry && error.code() != code::UNREACHABLE
}

async fn pause(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(5 << attempt.min(7))).await;
}

async fn start(database: &Database) -> Result<ClientSession> {
    database.client().start_session().await.during("start a session")
}

/// Commits, and asks again where it is not known whether it was committed.
async fn end(session: &mut ClientSession) -> Result<()> {
    let mut attempt = 0;
    loop {
        match session.commit_transaction().await.during("commit") {
            Err(error) if error.verdict() == Verdict::Unknown && attempt < ATTEMPTS => pause(attempt).await,
            other => return other,
        }
        attempt += 1;
    }
}

#[async_trait]
impl Sink for MongoSink {
    async fn open(&mut self, first: &Checkpoint) -> Result<Opened> {
        checkpoint::end_earlier(&self.database, &self.flow).await?;
        let mut session = start(&self.database).await?;
        let mut attempt = 0;
        loop {
            session.start_transaction().await.during("begin to open")?;
            let opened =
                checkpoint::open(&self.database, &mut session, &self.flow, &self.routes, first).await;
            let done = match opened {
                Ok(opened) => end(&mut session).await.map(|()| opened),
                Err(error) => {
                    let _ = session.abort_transaction().await;
                    Err(error)
                }
            };
            match done {
                Ok((fence, opened)) => {
                    self.fence = fence;
                    self.session = Some(session);
                    return Ok(opened);
                }
                Err(error) if is_worth_again(&error) && attempt < ATTEMPTS => pause(attempt).await,
                Err(error) => return Err(error),
            }
            attempt += 1;
        }
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        let mut prepared = self.prepare(batch)?;
        if !prepared.truncates.is_empty() || !prepared.fresh.is_empty() {
            checkpoint::look(&self.database, &self.flow, self.fence).await?;
        }
        for table in prepared.truncates {
            let collection = self.database.collection::<Document>(&self.writer(table)?.collection);
            collection.delete_many(doc! {}).await.during("empty a collection")?;
        }
        for (table, documents) in prepared.fresh {
            for document in self.insert(table, documents).await? {
                prepared.statements.push(self.writer(table)?.upsert(table, document)?);
            }
        }
        let mut applied = Applied::default();
        let pieces = pieces(&prepared.statements);
        let last = pieces.len() - 1;
        for (at, piece) in pieces.into_iter().enumerate() {
            let commit = commit.filter(|_| at == last);
            applied.holes.extend(self.transact(piece, commit).await?.holes);
        }
        Ok(applied)
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
