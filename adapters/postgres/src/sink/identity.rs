//! Which tables the rows of a flow go to, by their oids, beside the ledger.
//!
//! Statements name tables, and another one may have taken a name. So a transaction holds the tables before it writes, by
//! a lock that other writers do not wait for, and looks which they are: until its end nobody can drop or rename one.

use tidegate_core::port::{Batch, Checkpoint, Exclusion};
use tidegate_core::{FlowName, Result};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::PostgresSink;
use super::place::{Place, words_of};
use crate::error::from_driver;
use crate::sql;

impl PostgresSink {
    /// Begins unless a transaction is open, and holds the tables of a batch, if they are those that are known.
    pub(super) async fn hold(&mut self, batch: &Batch) -> Result<()> {
        let tables = batch.tables.iter().map(|part| part.table);
        let new: Vec<usize> = tables.filter(|table| !self.held.contains(table)).collect();
        if self.is_open && new.is_empty() {
            return Ok(());
        }
        let begin = if self.is_open { "" } else { "BEGIN;" };
        let places = new.iter().map(|table| &self.places[*table]);
        let locks = places.clone().map(|place| format!("LOCK TABLE {} IN ROW EXCLUSIVE MODE;", place.table));
        let sql = format!("{begin}{}{}", locks.collect::<String>(), which(places.clone()));
        self.is_open = true;
        let answer = self.session.simple_query(&sql).await;
        if let Ok(answer) = &answer {
            if let Some(place) = another(places, answer) {
                return Err(place.route.table_missing());
            }
            let words = words(answer);
            for (table, words) in new.iter().zip(words) {
                if self.places[*table].words != words {
                    self.describe(*table).await?;
                }
            }
            self.held.extend(new);
            return Ok(());
        }
        // The server does not say which one is gone.
        self.run("ROLLBACK; BEGIN").await?;
        let there = self.session.simple_query(&which(places.clone())).await;
        match another(places, &there.map_err(|e| from_driver(e, "apply"))?) {
            Some(place) => Err(place.route.table_missing()),
            None => answer.map(drop).map_err(|e| from_driver(e, "apply")),
        }
    }
}

impl PostgresSink {
    /// Looks anew at a table that was changed and is held now: rows are encoded by what its columns were.
    async fn describe(&mut self, table: usize) -> Result<()> {
        let place = &self.places[table];
        let now = Place::new(&self.session, table, &place.route).await?;
        if let Some(column) = place.differs(&now) {
            return Err(place.route.target_differs(column));
        }
        self.places[table].words = now.words;
        Ok(())
    }
}

/// Asks which tables have the names of these, and what columns they have.
fn which<'a>(places: impl Iterator<Item = &'a Place>) -> String {
    let asks: Vec<_> = places
        .map(|place| format!("to_regclass({})::oid, {}", sql::literal(&place.table), words_of(&place.table)))
        .collect();
    format!("SELECT {}", asks.join(", "))
}

fn row(answer: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

/// What columns they have, in the answer to [`which`].
fn words(answer: &[SimpleQueryMessage]) -> Vec<Option<String>> {
    let words = |row: &SimpleQueryRow| -> Vec<_> {
        (1..row.len()).step_by(2).map(|at| row.get(at).map(str::to_owned)).collect()
    };
    row(answer).map(words).unwrap_or_default()
}

/// The first that is not the one that is known, in the answer to [`which`].
fn another<'a>(
    mut places: impl Iterator<Item = &'a Place>,
    answer: &[SimpleQueryMessage],
) -> Option<&'a Place> {
    let row = row(answer)?;
    let oid = |at: usize| row.get(at).and_then(|oid| oid.parse::<u32>().ok());
    let mut at = (0..).step_by(2);
    places.find(|place| at.next().and_then(oid) != place.known)
}

/// Takes the tables that the flow knows. A dump that was restored has them all under other oids, this ledger among them:
/// then what is found is what was restored. For a table that is new to it, also one of a flow that an earlier version began,
/// the one that was found is kept. A table that is not the one that is known, or lacks a column, is excluded, unless it is. To be called in
/// the transaction that opens the flow.
pub(super) async fn open(
    session: &Client,
    flow: &FlowName,
    places: &mut [Place],
    checkpoint: Option<&mut Checkpoint>,
) -> Result<()> {
    let failed = |e| from_driver(e, "checkpoint");
    let sql = "SELECT name, oid FROM tidegate.identities
        WHERE flow = $1 AND within = 'tidegate.identities'::regclass::oid";
    let rows = session.query(sql, &[&flow.as_str()]).await.map_err(failed)?;
    let stored = |place: &Place| rows.iter().find(|row| row.get::<_, &str>(0) == place.source);
    let mut new = Vec::new();
    for (table, place) in places.iter_mut().enumerate() {
        place.known = stored(place).map(|row| row.get(1));
        if place.known.is_none() {
            place.known = place.found;
            new.push(table);
        }
    }
    note(session, flow, places, &new).await?;
    let Some(checkpoint) = checkpoint else { return Ok(()) };
    for (table, place) in places.iter().enumerate() {
        let Some(error) = place.trouble() else { continue };
        if checkpoint.excluded.iter().any(|(excluded, _)| *excluded == table) {
            continue;
        }
        let why = Exclusion::Failed(error.line());
        let sql = "INSERT INTO tidegate.left_out (flow, name, reason) VALUES ($1, $2, $3)";
        let values = (flow.as_str(), place.source.as_str(), why.to_string());
        session.execute(sql, &[&values.0, &values.1, &values.2]).await.map_err(failed)?;
        checkpoint.excluded.push((table, why));
    }
    Ok(())
}

/// Keeps which tables are known for these.
pub(super) async fn note(
    session: &Client,
    flow: &FlowName,
    places: &[Place],
    tables: &[usize],
) -> Result<()> {
    for table in tables {
        let place = &places[*table];
        let sql =
            "WITH gone AS (DELETE FROM tidegate.identities WHERE flow = $1 AND name = $2 AND $3::oid IS NULL)
            INSERT INTO tidegate.identities (flow, name, oid, within)
            SELECT $1, $2, $3, 'tidegate.identities'::regclass::oid WHERE $3 IS NOT NULL
            ON CONFLICT (flow, name) DO UPDATE SET oid = excluded.oid, within = excluded.within";
        let done = session.execute(sql, &[&flow.as_str(), &place.source, &place.known]).await;
        done.map_err(|e| from_driver(e, "checkpoint"))?;
    }
    Ok(())
}
