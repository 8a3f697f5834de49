//! Takes rows and changes: transactions of rows, the last one with the checkpoint.
//!
//! Rows of a fresh chunk are inserted first, outside a transaction and by several commands at once; those that are
//! there already are then put in place in the transaction that has the ledger. A crash between the two leaves rows
//! that the ledger does not know; they are read again.

use async_trait::async_trait;
use futures::future::try_join_all;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::error::ErrorKind;
use mongodb::{ClientSession, Database};
use tidegate_core::error::code;
use tidegate_core::port::{Applied, Batch, Checkpoint, Commit, Opened, Route, Sink, TableBatch};
use tidegate_core::{Error, FlowName, Result};

use crate::checkpoint;
use crate::error::{DUPLICATE_KEY, During, from_driver};
use crate::transact::{ATTEMPTS, Piece, Work, Written, end, is_worth_again, pause, start};
use crate::write::{Statement, Writer, pieces};

/// How many commands insert at once.
const INSERTERS: usize = 3;
/// Fewer rows than these go the ordinary way.
const FRESH_LEAST: usize = 50;

pub(crate) struct MongoSink {
    pub(crate) database: Database,
    pub(crate) flow: FlowName,
    pub(crate) routes: Vec<Route>,
    writers: Vec<Writer>,
    pub(crate) fence: i64,
    /// The one session of all its transactions: a new one there ends an old one that was left open.
    pub(crate) session: Option<ClientSession>,
}

impl MongoSink {
    pub(crate) async fn open(database: Database, flow: &FlowName, routes: &[Route]) -> Result<Self> {
        checkpoint::create(&database).await?;
        let writers = routes.iter().map(Writer::new).collect::<Result<_>>()?;
        Ok(Self { database, flow: flow.clone(), routes: routes.to_vec(), writers, fence: 0, session: None })
    }

    pub(crate) fn writer(&self, table: usize) -> Result<&Writer> {
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
            for (row, document) in documents.into_iter().enumerate() {
                prepared.statements.push(writer.upsert(part.table, row, document)?);
            }
            writer.updates(part.table, part, &mut prepared.statements)?;
        }
        Ok(prepared)
    }

    /// Inserts documents and gives those that were refused, with their places: their key was there, or their values.
    async fn insert(
        &self,
        table: usize,
        documents: Vec<RawDocumentBuf>,
    ) -> Result<Vec<(usize, RawDocumentBuf)>> {
        let collection = self.database.collection::<RawDocumentBuf>(&self.writer(table)?.collection);
        let size = documents.len().div_ceil(INSERTERS).max(1);
        let inserts = documents.chunks(size).enumerate().map(async |(nth, slice)| {
            let error = match collection.insert_many(slice).ordered(false).await {
                Ok(_) => return Ok(Vec::new()),
                Err(error) => error,
            };
            if let ErrorKind::InsertMany(refused) = &*error.kind
                && refused.write_concern_error.is_none()
                && let Some(all) = &refused.write_errors
                && all.iter().all(|one| one.code == DUPLICATE_KEY)
            {
                let there = all
                    .iter()
                    .filter_map(|one| Some((nth * size + one.index, slice.get(one.index)?.clone())));
                return Ok(there.collect());
            }
            Err(from_driver(error, "insert rows"))
        });
        Ok(try_join_all(inserts).await?.concat())
    }
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
            for (row, document) in self.insert(table, documents).await? {
                prepared.statements.push(self.writer(table)?.upsert(table, row, document)?);
            }
        }
        let mut work = Work { batch, commit, holes: Vec::new() };
        let mut statements = prepared.statements;
        let (mut done, mut is_kept_out) = (0, false);
        for piece in pieces(&statements) {
            let ends = done + piece.len() == statements.len();
            let piece = Piece { statements: piece, hole: None, ends };
            if self.transact(&piece, &mut work).await? == Written::KeptOut {
                is_kept_out = true;
                break;
            }
            done += piece.statements.len();
        }
        if is_kept_out {
            self.write_apart(statements.split_off(done), &mut work).await?;
        }
        Ok(Applied { holes: work.holes })
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
