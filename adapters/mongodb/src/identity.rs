//! Which collections the rows of a flow go to: their UUIDs, kept beside the ledger.
//!
//! A write to a collection that is not there makes one. So every write says which one it means (`collectionUUID`), and
//! the server refuses it where the name is another collection's, or nobody's. It looks while the transaction holds the
//! collection, which nobody can remove or rename before its end.

use futures::TryStreamExt;
use mongodb::bson::{Binary, Bson, Document, doc};
use mongodb::{ClientSession, Database};
use tidegate_core::port::{Checkpoint, Commit, Exclusion, Route};
use tidegate_core::{FlowName, Result};

use crate::checkpoint::{name, of_flow, place, records, replace, run};
use crate::error::During;

pub(crate) const IDENTITIES: &str = "tidegate.identities";

/// The collections of a flow's routes.
#[derive(Default)]
pub(crate) struct Identities {
    /// Those that had the names when the flow was opened.
    found: Vec<Option<Binary>>,
    /// Those that are written to.
    known: Vec<Option<Binary>>,
    /// The collection of this ledger.
    ledger: Option<Binary>,
}

impl Identities {
    pub(crate) async fn find(database: &Database, routes: &[Route]) -> Result<Self> {
        let names: Vec<String> = routes.iter().map(|route| route.target.name.to_string()).collect();
        let looked_for: Vec<&str> = names.iter().map(String::as_str).chain([IDENTITIES]).collect();
        let filter = doc! { "name": { "$in": looked_for } };
        let listed = database.list_collections().filter(filter).await.during("look for collections")?;
        let listed: Vec<_> = listed.try_collect().await.during("look for collections")?;
        let found = |name: &str| listed.iter().find(|one| one.name == name)?.info.uuid.clone();
        let ledger = found(IDENTITIES);
        Ok(Self { found: names.iter().map(|name| found(name)).collect(), known: Vec::new(), ledger })
    }

    /// Which collection is written to for a table, if it is known.
    pub(crate) fn of(&self, table: usize) -> Option<&Binary> {
        self.known.get(table)?.as_ref()
    }

    /// Takes those that the flow knows. A dump that was restored has them all under other UUIDs, this ledger among them: then
    /// what is found is what was restored. For a table that is new to it, also one of a flow that an earlier version began,
    /// the one that was found is kept; a table whose collection is not the one that is known is excluded, unless it is.
    /// To be called in the transaction that opens the flow.
    pub(crate) async fn open(
        &mut self,
        database: &Database,
        session: &mut ClientSession,
        flow: &FlowName,
        routes: &[Route],
        checkpoint: Option<&mut Checkpoint>,
    ) -> Result<()> {
        self.known = vec![None; routes.len()];
        for one in of_flow(database, session, IDENTITIES, flow).await? {
            if one.get("within") != self.ledger.clone().map(Bson::Binary).as_ref() {
                continue;
            }
            let table = one.get_document("_id").ok().and_then(|id| place(routes, id));
            if let (Some(table), Some(Bson::Binary(known))) = (table, one.get("collection")) {
                self.known[table] = Some(known.clone());
            }
        }
        let new: Vec<usize> = (0..routes.len()).filter(|table| self.known[*table].is_none()).collect();
        self.take(&new);
        self.note(database, session, flow, routes, &new).await?;
        let Some(checkpoint) = checkpoint else { return Ok(()) };
        let is_there =
            |table: &usize| self.known[*table].is_some() && self.known[*table] == self.found[*table];
        let is_excluded = |table: &usize| checkpoint.excluded.iter().any(|(excluded, _)| excluded == table);
        let gone = (0..routes.len()).filter(|table| !is_there(table) && !is_excluded(table));
        let exclude: Vec<_> =
            gone.map(|table| (table, Exclusion::Failed(routes[table].table_missing().line()))).collect();
        checkpoint.excluded.extend(exclude.iter().cloned());
        let commit = Commit { exclude, ..Commit::default() };
        records(database, session, flow, routes, &commit).await
    }

    /// These tables are written to the collections that were found.
    pub(crate) fn take(&mut self, tables: &[usize]) {
        tables.iter().for_each(|table| self.known[*table] = self.found[*table].clone());
    }

    /// Keeps which collections these tables are written to.
    pub(crate) async fn note(
        &self,
        database: &Database,
        session: &mut ClientSession,
        flow: &FlowName,
        routes: &[Route],
        tables: &[usize],
    ) -> Result<()> {
        let id = |table: usize| doc! { "flow": flow.as_str(), "table": name(routes, table) };
        let (known, unknown): (Vec<usize>, Vec<usize>) =
            tables.iter().partition(|table| self.of(**table).is_some());
        let deletes: Vec<Document> =
            unknown.iter().map(|table| doc! { "q": { "_id": id(*table) }, "limit": 1 }).collect();
        if !deletes.is_empty() {
            run(database, session, doc! { "delete": IDENTITIES, "deletes": deletes }).await?;
        }
        let notes = known.iter().filter_map(|table| {
            let collection = self.of(*table)?.clone();
            let within = self.ledger.clone();
            Some((id(*table), doc! { "_id": id(*table), "collection": collection, "within": within }))
        });
        replace(database, session, IDENTITIES, notes.collect()).await
    }
}
