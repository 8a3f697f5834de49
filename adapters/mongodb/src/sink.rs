//! Takes rows and changes: transactions of rows, the last one with the checkpoint.
//!
//! Rows of a fresh chunk are inserted first, by several transactions at once; those that are there already are then put
//! in place in the transaction that has the ledger. A crash between the two leaves rows that the ledger does not know;
//! they are read again.

use async_trait::async_trait;
use futures::TryStreamExt;
use mongodb::bson::{RawDocumentBuf, doc};
use mongodb::{ClientSession, Database};
use tidegate_core::error::code;
use tidegate_core::port::{Applied, Batch, Checkpoint, Commit, Opened, Route, Sink, TableBatch};
use tidegate_core::{Error, FlowName, Result};

use crate::checkpoint;
use crate::error::During;
use crate::identity::Identities;
use crate::insert::Inserters;
use crate::transact::{Piece, Tries, Work, Written, begin, start};
use crate::write::{STATEMENTS_LIMIT, Statement, Writer, pieces};

/// Fewer rows than these go the ordinary way.
const FRESH_LEAST: usize = 50;

pub(crate) struct MongoSink {
    pub(crate) database: Database,
    pub(crate) flow: FlowName,
    pub(crate) routes: Vec<Route>,
    pub(crate) writers: Vec<Writer>,
    pub(crate) identities: Identities,
    pub(crate) fence: i64,
    /// The one session of its transactions in order: a new one there ends an old one that was left open.
    pub(crate) session: Option<ClientSession>,
    pub(crate) inserters: Inserters,
}

impl MongoSink {
    pub(crate) async fn open(database: Database, flow: &FlowName, routes: &[Route]) -> Result<Self> {
        checkpoint::create(&database).await?;
        let writers = routes.iter().map(Writer::new).collect::<Result<_>>()?;
        Ok(Self {
            database,
            flow: flow.clone(),
            routes: routes.to_vec(),
            writers,
            identities: Identities::default(),
            fence: 0,
            session: None,
            inserters: Inserters::default(),
        })
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
            if self.identities.of(part.table).is_none() {
                return Err(writer.route.table_missing());
            }
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

    /// What opening does in one transaction.
    async fn take_over(
        &self,
        session: &mut ClientSession,
        first: &Checkpoint,
        inserters: &Inserters,
        identities: &mut Identities,
    ) -> Result<(i64, Opened)> {
        let (database, flow, routes) = (&self.database, &self.flow, &self.routes);
        let (fence, mut opened) =
            checkpoint::open(database, session, flow, routes, first, &inserters.ids()).await?;
        let checkpoint = match &mut opened {
            Opened::New => None,
            Opened::Resumed(checkpoint) => Some(checkpoint),
        };
        identities.open(database, session, flow, routes, checkpoint).await?;
        Ok((fence, opened))
    }

    /// Removes all documents of a collection.
    async fn truncate(&mut self, table: usize, work: &mut Work<'_>) -> Result<()> {
        let collection = self.database.collection::<RawDocumentBuf>(&self.writer(table)?.collection);
        let found = collection.find(doc! {}).projection(doc! { "_id": 1 }).await;
        let mut some = found.during("look what to remove")?.try_chunks(STATEMENTS_LIMIT);
        while let Some(documents) = some.try_next().await.map_err(|e| e.1).during("look what to remove")? {
            let removals = documents.iter().map(|document| Statement::removal_of(table, document));
            let removals = removals.collect::<Result<Vec<_>>>()?;
            for statements in pieces(&removals) {
                self.transact_surely(&Piece { statements, hole: None, ends: false }, work).await?;
            }
        }
        Ok(())
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
        let mut session = start(&self.database).await?;
        let inserters = Inserters::start(&self.database).await?;
        let mut identities = Identities::find(&self.database, &self.routes).await?;
        let mut tries = Tries::default();
        let (fence, opened) = loop {
            checkpoint::end_earlier(&self.database, &self.flow).await?;
            begin(&mut session).await?;
            let opened = self.take_over(&mut session, first, &inserters, &mut identities).await;
            if let Some(done) = tries.end(&mut session, opened.map(Some)).await {
                break done?.ok_or_else(|| Error::new(code::INTERNAL, "a flow was opened and not taken"))?;
            }
        };
        (self.fence, self.session, self.inserters) = (fence, Some(session), inserters);
        self.identities = identities;
        Ok(opened)
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        if let Some(commit) = commit {
            self.identities.take(&commit.forget);
        }
        let mut prepared = self.prepare(batch)?;
        let mut work = Work { batch, commit, holes: Vec::new() };
        for table in prepared.truncates {
            self.truncate(table, &mut work).await?;
        }
        for (table, documents) in prepared.fresh {
            for (row, document) in self.insert(table, documents).await? {
                prepared.statements.push(self.writer(table)?.upsert(table, row, document)?);
            }
        }
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
