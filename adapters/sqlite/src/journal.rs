//! The journal: which keys changed, in the order of commit.
//!
//! Triggers on each captured table write the key of a changed row, as it was and as it is, one untyped column a key
//! part. SQLite has one writer at a time, so the journal's number (`AUTOINCREMENT`: never used twice) is the order of
//! commit, and the highest number in a reader's snapshot says exactly what that reader sees.
//!
//! ```text
//! tidegate_identity   who this file is, and up to where the journal was trimmed
//! tidegate_journal    seq, tbl, at (µs), k1, k2, …
//! tidegate_capture    a row a flow: up to where it needs the journal no more, and its seal
//! tidegate_captured   a row a flow and table, with the generation of its capture
//! ```
//!
//! A table that is rebuilt (created anew, filled, dropped, renamed) loses its triggers, or is given them again by
//! whoever copies the schema; either way what changed meanwhile is in no entry. The schema keeps the order in which tables
//! were made, also through `VACUUM`, and `tidegate_captured` is made anew behind every table that is captured: one that
//! stands behind it was made since. Such a table is another one to the flow, by its generation, which is its native id.

mod triggers;

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlx::{Connection, Row as _, SqliteConnection};
use tidegate_core::error::code;
use tidegate_core::{Error, FlowName, Ids as _, Position, Result, SystemIds, Table, TableName};

use crate::connect;
use crate::describe::{self, Described};
use crate::error::During;
use crate::statement::{name, sql};
use crate::store::SqliteStore;

/// Entries removed in one transaction at most, so that writers do not wait for it.
const TRIM_LIMIT: i64 = 1_000;

/// The tables of a capture.
const OWN: [&str; 4] = ["tidegate_journal", "tidegate_identity", "tidegate_capture", "tidegate_captured"];

/// The hint of `journal-lost`.
pub(crate) const REMOVED: &str = "somebody removed what the capture had made; begin this migration anew: tidegate migrate abort, \
    then run";

const CAPTURED: &str = "CREATE TABLE tidegate_captured(
    flow TEXT, tbl TEXT, generation INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (flow, tbl))";

/// Its column that earlier builds did not have.
const GENERATION: &str = "generation";

/// Whether a table of `tidegate_captured AS c` was made after that table.
const BEHIND: &str =
    "EXISTS(SELECT 1 FROM sqlite_schema AS t WHERE t.type = 'table' AND t.name = c.tbl COLLATE NOCASE
    AND t.rowid > (SELECT rowid FROM sqlite_schema WHERE name = 'tidegate_captured'))";

/// The id of the file; `None` if it was never captured.
pub(crate) async fn id(connection: &mut SqliteConnection) -> Result<Option<String>> {
    if !exists(connection, "tidegate_identity").await? {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT id FROM tidegate_identity")
        .fetch_optional(connection)
        .await
        .during("read the identity")
}

pub(crate) async fn exists(connection: &mut SqliteConnection, table: &'static str) -> Result<bool> {
    sqlx::query_scalar("SELECT EXISTS(SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?)")
        .bind(table)
        .fetch_one(connection)
        .await
        .during("look for a table of ours")
}

/// Finds that what a capture makes is there.
pub(crate) async fn require(connection: &mut SqliteConnection) -> Result<()> {
    for table in OWN {
        if !exists(connection, table).await? {
            return Err(Error::new(code::JOURNAL_LOST, format!("the table {table} is gone from the source"))
                .hint(REMOVED));
        }
    }
    Ok(())
}

/// The number of the last entry ever written; 0 if there is no journal.
pub(crate) async fn frontier(connection: &mut SqliteConnection) -> Result<u64> {
    if !exists(connection, "tidegate_journal").await? {
        return Ok(0);
    }
    // A statement that fails under OR FAIL keeps its entries, and leaves the sequence behind them.
    let last: i64 = sqlx::query_scalar(
        "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'tidegate_journal'), 0),
                    coalesce((SELECT max(seq) FROM tidegate_journal), 0))",
    )
    .fetch_one(connection)
    .await
    .during("read the end of the journal")?;
    Ok(u64::try_from(last).unwrap_or(0))
}

/// Up to where entries were removed.
pub(crate) async fn trimmed(connection: &mut SqliteConnection) -> Result<u64> {
    let trimmed: Option<i64> = sqlx::query_scalar("SELECT trimmed FROM tidegate_identity")
        .fetch_optional(connection)
        .await
        .during("read the start of the journal")?;
    Ok(u64::try_from(trimmed.unwrap_or(0)).unwrap_or(0))
}

/// Makes the journal and the triggers for a flow's tables.
pub(crate) async fn capture(store: &SqliteStore, flow: &FlowName, tables: &[Arc<Table>]) -> Result<Position> {
    let mut connection = connect::writer(store.path()).await?;
    connect::require_wal(&mut connection).await?;
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.during("begin to capture")?;
    if exists(&mut tx, "tidegate_identity").await? {
        // A part made anew would hide that changes went by unseen.
        require(&mut tx).await?;
    }
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS tidegate_identity(
             one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, trimmed INTEGER NOT NULL DEFAULT 0);
         CREATE TABLE IF NOT EXISTS tidegate_journal(
             seq INTEGER PRIMARY KEY AUTOINCREMENT, tbl TEXT NOT NULL, at INTEGER NOT NULL, k1);
         CREATE TABLE IF NOT EXISTS tidegate_capture(
             flow TEXT PRIMARY KEY, acknowledged INTEGER NOT NULL, seal TEXT);",
    )
    .execute(&mut *tx)
    .await
    .during("create the journal")?;
    if !exists(&mut tx, "tidegate_captured").await? {
        sqlx::raw_sql(CAPTURED).execute(&mut *tx).await.during("create the record of captures")?;
    } else if !columns_of(&mut tx, "tidegate_captured").await?.contains(&GENERATION.to_owned()) {
        // An earlier build made it.
        let text =
            format!("ALTER TABLE tidegate_captured ADD COLUMN {GENERATION} INTEGER NOT NULL DEFAULT 0");
        sqlx::query(sql(text)).execute(&mut *tx).await.during("widen the record of captures")?;
    }
    sqlx::query("INSERT OR IGNORE INTO tidegate_identity(one, id) VALUES (1, ?)")
        .bind(SystemIds.next().to_string())
        .execute(&mut *tx)
        .await
        .during("store the identity")?;
    widen(&mut tx, tables.iter().map(|table| table.key.len()).max().unwrap_or(1)).await?;
    let mut made = BTreeSet::new();
    for table in tables {
        made.extend(capture_table(&mut tx, flow, table).await?);
    }
    if !made.is_empty() {
        mark(&mut tx, &made).await?;
    }
    let position = frontier(&mut tx).await?;
    sqlx::query("INSERT OR IGNORE INTO tidegate_capture(flow, acknowledged) VALUES (?, ?)")
        .bind(flow.as_str())
        .bind(i64::try_from(position).unwrap_or(i64::MAX))
        .execute(&mut *tx)
        .await
        .during("store the capture")?;
    tx.commit().await.during("commit the capture")?;
    connection.close().await.during("close")?;
    Ok(Position::from_u64(position))
}

/// The journal has as many columns as the widest key has parts.
async fn widen(connection: &mut SqliteConnection, parts: usize) -> Result<()> {
    let there = columns_of(connection, "tidegate_journal").await?;
    for part in 1..=parts {
        let column = format!("k{part}");
        if !there.contains(&column) {
            let text = format!("ALTER TABLE tidegate_journal ADD COLUMN {column}");
            sqlx::query(sql(text)).execute(&mut *connection).await.during("widen the journal")?;
        }
    }
    Ok(())
}

async fn columns_of(connection: &mut SqliteConnection, table: &'static str) -> Result<Vec<String>> {
    sqlx::query_scalar("SELECT name FROM pragma_table_info(?)")
        .bind(table)
        .fetch_all(connection)
        .await
        .during("read the columns of a table of ours")
}

/// Captures a table, and gives its name if triggers were made for it.
async fn capture_table(
    connection: &mut SqliteConnection,
    flow: &FlowName,
    table: &Table,
) -> Result<Option<String>> {
    let described = describe::table(connection, &table.name).await??;
    if let Some(obstacle) = describe::obstacles_of(&described).pop() {
        return Err(obstacle.error);
    }
    let standing = standing(connection, &described).await?;
    is_as_known(table, &described.table, &standing)?;
    let called = &described.table.name.name;
    // Of a table that is captured, the feed says it: that stops this one alone.
    if !standing.flows.contains(flow.as_str())
        && let Some(obstacle) = describe::null_key(connection, &described.table).await?
    {
        return Err(obstacle.error);
    }
    if !standing.is_kept() || standing.is_of_earlier {
        triggers::drop_all(connection, called).await?;
        for (trigger, text) in triggers::all(&described) {
            let drop = format!("DROP TRIGGER IF EXISTS {}", name(&trigger));
            sqlx::query(sql(drop)).execute(&mut *connection).await.during("drop a trigger")?;
            sqlx::query(sql(text)).execute(&mut *connection).await.during("create a trigger")?;
        }
    }
    sqlx::query("INSERT OR IGNORE INTO tidegate_captured(flow, tbl) VALUES (?, ?)")
        .bind(flow.as_str())
        .bind(called.clone())
        .execute(&mut *connection)
        .await
        .during("store the capture")?;
    sqlx::query("UPDATE tidegate_captured SET generation = ? WHERE tbl = ?")
        .bind(standing.generation)
        .bind(called.clone())
        .execute(connection)
        .await
        .during("store the generation")?;
    Ok((!standing.is_kept()).then(|| called.clone()))
}

/// Makes the record of captured tables anew, behind those that triggers were just made for.
async fn mark(connection: &mut SqliteConnection, made: &BTreeSet<String>) -> Result<()> {
    let rows: Vec<(String, String, u32, bool)> = sqlx::query_as(sql(format!(
        "SELECT c.flow, c.tbl, c.generation, {BEHIND} FROM tidegate_captured AS c"
    )))
    .fetch_all(&mut *connection)
    .await
    .during("read what is captured")?;
    // Of any other table that stands behind it, the triggers say from now on that it was rebuilt.
    for (_, table, _, _) in rows.iter().filter(|(_, table, _, behind)| *behind && !made.contains(table)) {
        triggers::drop_all(connection, table).await?;
    }
    sqlx::raw_sql(sql(format!("DROP TABLE tidegate_captured; {CAPTURED}")))
        .execute(&mut *connection)
        .await
        .during("make the record of captures anew")?;
    for (flow, table, generation, _) in rows {
        sqlx::query("INSERT INTO tidegate_captured(flow, tbl, generation) VALUES (?, ?, ?)")
            .bind(flow)
            .bind(table)
            .bind(generation)
            .execute(&mut *connection)
            .await
            .during("store what is captured")?;
    }
    Ok(())
}

/// How a table stands to the journal.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// The flows that capture it.
    flows: BTreeSet<String>,
    /// Which capture of it this is, or the next one will be: another one each time that changes may be missing.
    pub(crate) generation: u32,
    /// Why changes of it may be missing in the journal although it is captured.
    lost: Option<String>,
    /// An earlier build made its triggers.
    is_of_earlier: bool,
}

impl Standing {
    /// Whether the triggers that it has have seen everything.
    fn is_kept(&self) -> bool {
        !self.flows.is_empty() && self.lost.is_none()
    }
}

pub(crate) async fn standing(connection: &mut SqliteConnection, described: &Described) -> Result<Standing> {
    let table = &described.table.name;
    if !exists(connection, "tidegate_captured").await? {
        return Ok(Standing::default());
    }
    let text =
        format!("SELECT c.*, {BEHIND} AS behind FROM tidegate_captured AS c WHERE c.tbl = ? COLLATE NOCASE");
    let rows = sqlx::query(sql(text))
        .bind(table.name.clone())
        .fetch_all(&mut *connection)
        .await
        .during("look for a capture")?;
    let mut standing = Standing::default();
    let mut is_behind = false;
    for row in rows {
        standing.flows.insert(row.get("flow"));
        // An earlier build had none.
        standing.generation = standing.generation.max(row.try_get(GENERATION).unwrap_or(0));
        is_behind |= row.get::<bool, _>("behind");
    }
    if standing.flows.is_empty() {
        return Ok(standing);
    }
    let there: Vec<(String, String)> =
        sqlx::query_as("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?")
            .bind(table.name.clone())
            .fetch_all(connection)
            .await
            .during("read triggers")?;
    let there: BTreeSet<(String, String)> = there.into_iter().collect();
    let (now, earlier) = (triggers::all(described), triggers::of_earlier(described));
    let missing = now.iter().find(|trigger| !there.contains(*trigger));
    standing.is_of_earlier = missing.is_some()
        && earlier.iter().all(|trigger| there.contains(trigger))
        && !now.iter().any(|trigger| there.contains(trigger) && !earlier.contains(trigger));
    let unseen = described.unique.iter().find_map(|index| Some((index, described.unseen(index)?)));
    standing.lost = match (unseen, missing) {
        _ if is_behind => Some(format!("table {table} was rebuilt")),
        (Some((index, what)), _) => Some(format!(
            "table {table} has the unique index {} over {what}, by which REPLACE removes rows unseen",
            index.name
        )),
        (None, Some((trigger, _))) if !standing.is_of_earlier => Some(format!(
            "table {table} was rebuilt, or has a new unique index: the trigger {trigger} is gone or another one"
        )),
        _ => None,
    };
    standing.generation += u32::from(standing.lost.is_some());
    Ok(standing)
}

/// Whether everything that happens to a table is journaled still, and the table is what it was.
pub(crate) async fn check(connection: &mut SqliteConnection, table: &Table) -> Result<()> {
    let described = describe::table(connection, &table.name).await??;
    let standing = standing(connection, &described).await?;
    if standing.flows.is_empty() {
        return Err(Error::new(code::JOURNAL_LOST, format!("table {} is not captured any more", table.name))
            .with("table", &table.name)
            .hint(REMOVED));
    }
    is_as_known(table, &described.table, &standing)?;
    match standing.lost {
        None => Ok(()),
        Some(lost) => Err(changed(table, lost)),
    }
}

/// Finds that a table is the one that was described.
fn is_as_known(known: &Table, found: &Table, standing: &Standing) -> Result<()> {
    // In their order too: two columns may have exchanged their names.
    let differ = |at: &usize| {
        let [known, found] = [known, found].map(|table| table.columns.get(*at));
        known.map(|c| (&c.name, &c.native)) != found.map(|c| (&c.name, &c.native))
    };
    let count = known.columns.len().max(found.columns.len());
    let column = (0..count).find(differ).map(|at| {
        let column = known.columns.get(at).or(found.columns.get(at));
        column.map(|column| column.name.clone()).unwrap_or_default()
    });
    if column.is_some() || known.key.len() != found.key.len() {
        let what = format!("table {} has other columns now", known.name);
        return Err(changed(known, what).with("column", column.unwrap_or_default()));
    }
    if known.native_id == standing.generation {
        return Ok(());
    }
    let rebuilt = || format!("table {} was rebuilt, and captured anew since", known.name);
    Err(changed(known, standing.lost.clone().unwrap_or_else(rebuilt)))
}

fn changed(table: &Table, what: String) -> Error {
    Error::new(code::SCHEMA_CHANGED, what).with("table", &table.name)
}

/// Removes what only this flow needs.
pub(crate) async fn clean(store: &SqliteStore, flow: &FlowName) -> Result<()> {
    if !store.path().exists() {
        return Ok(());
    }
    let mut connection = connect::writer(store.path()).await?;
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.during("begin to clean")?;
    if exists(&mut tx, "tidegate_capture").await? && exists(&mut tx, "tidegate_captured").await? {
        for text in
            ["DELETE FROM tidegate_capture WHERE flow = ?", "DELETE FROM tidegate_captured WHERE flow = ?"]
        {
            sqlx::query(text).bind(flow.as_str()).execute(&mut *tx).await.during("remove the capture")?;
        }
        let unused: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'tidegate\\_capture\\_%' ESCAPE '\\'
             AND tbl_name NOT IN (SELECT tbl FROM tidegate_captured)",
        )
        .fetch_all(&mut *tx)
        .await
        .during("list triggers")?;
        for trigger in unused {
            let text = format!("DROP TRIGGER {}", name(&trigger));
            sqlx::query(sql(text)).execute(&mut *tx).await.during("drop a trigger")?;
        }
        let others: bool = sqlx::query_scalar("SELECT EXISTS(SELECT 1 FROM tidegate_capture)")
            .fetch_one(&mut *tx)
            .await
            .during("look for other flows")?;
        if !others {
            sqlx::raw_sql(
                "DROP TABLE tidegate_captured; DROP TABLE tidegate_capture;
                 DROP TABLE IF EXISTS tidegate_journal; DROP TABLE IF EXISTS tidegate_identity;",
            )
            .execute(&mut *tx)
            .await
            .during("drop the journal")?;
        }
    }
    tx.commit().await.during("commit the clean-up")?;
    connection.close().await.during("close")
}

/// A flow's seal.
pub(crate) async fn sealed(store: &SqliteStore, flow: &FlowName) -> Result<Option<String>> {
    let mut connection = connect::reader(store.path()).await?;
    let mut seal = None;
    if exists(&mut connection, "tidegate_capture").await? {
        let found: Option<Option<String>> =
            sqlx::query_scalar("SELECT seal FROM tidegate_capture WHERE flow = ?")
                .bind(flow.as_str())
                .fetch_optional(&mut connection)
                .await
                .during("read the seal")?;
        seal = found.flatten();
    }
    connection.close().await.during("close")?;
    Ok(seal)
}

/// Seals a flow that is captured, if its seal is still this one.
pub(crate) async fn seal(
    store: &SqliteStore,
    flow: &FlowName,
    was: Option<&str>,
    seal: &str,
) -> Result<bool> {
    let mut connection = connect::writer(store.path()).await?;
    let mut written = 0;
    if exists(&mut connection, "tidegate_capture").await? {
        let done = sqlx::query("UPDATE tidegate_capture SET seal = ? WHERE flow = ? AND seal IS ?")
            .bind(seal)
            .bind(flow.as_str())
            .bind(was)
            .execute(&mut connection)
            .await
            .during("seal")?;
        written = done.rows_affected();
    }
    connection.close().await.during("close")?;
    Ok(written > 0)
}

/// Notes that a flow needs nothing up to here, and removes what no flow needs.
pub(crate) async fn acknowledge(connection: &mut SqliteConnection, flow: &FlowName, upto: u64) -> Result<()> {
    let upto = i64::try_from(upto).unwrap_or(i64::MAX);
    loop {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.during("begin to trim")?;
        sqlx::query("UPDATE tidegate_capture SET acknowledged = max(acknowledged, ?) WHERE flow = ?")
            .bind(upto)
            .bind(flow.as_str())
            .execute(&mut *tx)
            .await
            .during("acknowledge")?;
        let row = sqlx::query(
            "SELECT coalesce((SELECT min(acknowledged) FROM tidegate_capture), 0),
                    coalesce((SELECT min(seq) FROM tidegate_journal), 0),
                    coalesce((SELECT max(seq) FROM tidegate_journal), 0)",
        )
        .fetch_one(&mut *tx)
        .await
        .during("look what may be trimmed")?;
        let (needed_from, first, last): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        // The last entry stays: with the sequence behind it, its number would be used again.
        let needed_from = needed_from.min(last - 1);
        let end = needed_from.min(first + TRIM_LIMIT - 1);
        let more = first > 0 && end >= first;
        if more {
            sqlx::query("DELETE FROM tidegate_journal WHERE seq <= ?")
                .bind(end)
                .execute(&mut *tx)
                .await
                .during("trim")?;
            sqlx::query("UPDATE tidegate_identity SET trimmed = max(trimmed, ?)")
                .bind(end)
                .execute(&mut *tx)
                .await
                .during("note the trim")?;
        }
        tx.commit().await.during("commit the trim")?;
        if !more || end == needed_from {
            return Ok(());
        }
    }
}

/// The error for a table with a row that has no key, which came while it is moved.
pub(crate) fn null_key(table: &TableName) -> Error {
    Error::new(code::VALUE_UNFIT, format!("a row of {table} has no key: a part of it is null"))
        .with("table", table)
        .hint("give those rows a key, or leave the table out (--exclude)")
}
