//! Inserts the rows of fresh chunks, by several transactions at once.
//!
//! The rows are not there yet, as a rule: an insertion needs no search. Transactions, because whoever takes the flow
//! over has to end what this runner still does: a row that came late would bring back one that was removed since.

use std::collections::HashSet;

use futures::TryStreamExt;
use futures::future::join_all;
use mongodb::bson::{Binary, Document, RawArrayBuf, RawBson, RawDocumentBuf, doc, rawdoc};
use mongodb::{ClientSession, Database};
use tidegate_core::error::code;
use tidegate_core::{Error, FlowName, Result};

use crate::error::{During, from_answer, is_duplicate};
use crate::sink::MongoSink;
use crate::transact::{Tries, begin, start};
use crate::write::{Writer, cut, insertion};
use crate::{checkpoint, codec, extended};

/// How many insert at once.
const INSERTERS: usize = 3;
/// How many documents one transaction inserts at most.
const DOCUMENTS_LIMIT: usize = 2_000;

/// Those that insert, a session each.
#[derive(Default)]
pub(crate) struct Inserters(Vec<ClientSession>);

impl Inserters {
    pub(crate) async fn start(database: &Database) -> Result<Self> {
        let mut all = Vec::with_capacity(INSERTERS);
        for _ in 0..INSERTERS {
            all.push(start(database).await?);
        }
        Ok(Self(all))
    }

    pub(crate) fn ids(&self) -> Vec<Document> {
        self.0.iter().map(|session| session.id().clone()).collect()
    }
}

impl MongoSink {
    /// Inserts documents and gives those that were refused, with their places: their key was there, or their values.
    pub(crate) async fn insert(
        &mut self,
        table: usize,
        documents: Vec<RawDocumentBuf>,
    ) -> Result<Vec<(usize, RawDocumentBuf)>> {
        let writer = self
            .writers
            .get(table)
            .ok_or_else(|| Error::new(code::INTERNAL, format!("there is no route {table}")))?;
        let identity = self.identities.of(table).ok_or_else(|| writer.route.table_missing())?;
        let target =
            Target { database: &self.database, flow: &self.flow, fence: self.fence, writer, identity };
        let slices = cut(&documents, DOCUMENTS_LIMIT, |document| document.as_bytes().len());
        let shares = self.inserters.0.iter_mut().enumerate().map(async |(nth, session)| {
            let mut refused = Vec::new();
            for slice in slices.iter().skip(nth).step_by(INSERTERS) {
                let documents = slice.clone().map(|place| (place, &documents[place])).collect();
                refused.extend(target.insert(nth, session, documents).await?);
            }
            Ok(refused)
        });
        // All of them to their end: one that is left in the middle holds its transaction open.
        let refused = join_all(shares).await.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(refused.concat().into_iter().map(|place| (place, documents[place].clone())).collect())
    }
}

/// Where rows are inserted, and for whom.
struct Target<'a> {
    database: &'a Database,
    flow: &'a FlowName,
    fence: i64,
    writer: &'a Writer,
    identity: &'a Binary,
}

/// Documents with their places in the batch.
type Placed<'a> = Vec<(usize, &'a RawDocumentBuf)>;

impl Target<'_> {
    /// Inserts what is not there, and gives the places of the others.
    async fn insert(
        &self,
        nth: usize,
        session: &mut ClientSession,
        documents: Placed<'_>,
    ) -> Result<Vec<usize>> {
        if self.insert_all(nth, session, &documents).await? {
            return Ok(Vec::new());
        }
        let there = self.ids_there(&documents).await?;
        let (known, new): (Placed<'_>, Placed<'_>) =
            documents.into_iter().partition(|(_, document)| there.contains(&id_bytes(document)));
        let mut refused: Vec<usize> = known.iter().map(|(place, _)| *place).collect();
        // Where another index keeps one of them out it is found later, by the statements of a transaction.
        if known.is_empty() || !self.insert_all(nth, session, &new).await? {
            refused.extend(new.iter().map(|(place, _)| *place));
        }
        Ok(refused)
    }

    /// Whether all were inserted; otherwise none was.
    async fn insert_all(
        &self,
        nth: usize,
        session: &mut ClientSession,
        documents: &[(usize, &RawDocumentBuf)],
    ) -> Result<bool> {
        if documents.is_empty() {
            return Ok(true);
        }
        let mut tries = Tries::default();
        loop {
            begin(session).await?;
            let inserted = self.insert_in(nth, session, documents).await;
            if let Some(done) = tries.end(session, inserted).await {
                return Ok(done?.is_some());
            }
        }
    }

    async fn insert_in(
        &self,
        nth: usize,
        session: &mut ClientSession,
        documents: &[(usize, &RawDocumentBuf)],
    ) -> Result<Option<()>> {
        checkpoint::hold_fence(self.database, session, self.flow, self.fence, nth).await?;
        let command = insertion(&self.writer.collection, self.identity, documents);
        let answer = self.database.run_raw_command(command).session(session).await;
        if is_duplicate(&answer) {
            return Ok(None);
        }
        let answer = answer.during("insert rows").map_err(|error| self.writer.refused(error))?;
        match from_answer(&answer, "insert rows") {
            Some(error) => Err(self.writer.refused(error)),
            None => Ok(Some(())),
        }
    }

    /// The keys of these documents that are there.
    async fn ids_there(&self, documents: &[(usize, &RawDocumentBuf)]) -> Result<HashSet<Vec<u8>>> {
        let mut any = RawArrayBuf::new();
        for (_, document) in documents {
            any.push(RawBson::from(codec::id_of(document)?));
        }
        let filter = rawdoc! { "_id": { "$in": any } }.try_into().map_err(extended::unreadable)?;
        let collection = self.database.collection::<RawDocumentBuf>(&self.writer.collection);
        let find = collection.find(filter).projection(doc! { "_id": 1 });
        let mut found = find.await.during("look for rows")?;
        let mut ids = HashSet::new();
        while let Some(one) = found.try_next().await.during("look for rows")? {
            ids.insert(id_bytes(&one));
        }
        Ok(ids)
    }
}

/// A key that only an equal one of the same type equals; nothing for a document without one.
fn id_bytes(document: &RawDocumentBuf) -> Vec<u8> {
    codec::id_of(document).map(codec::element).unwrap_or_default()
}
