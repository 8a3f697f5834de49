//! Reads the journal and looks the rows up.
//!
//! Transactions are not marked in the journal. What is: a reader's snapshot ends with a commit. So everything up to
//! the last number in a snapshot is delivered as one transaction, in pieces if it is much, and a transaction of the
//! source is never torn. Rows are as they were when they were looked up, which may be later than their entry; then a
//! later entry of theirs is still to come.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use sqlx::{Connection, Row as _, SqliteConnection};
use tidegate_core::error::code;
use tidegate_core::port::{ChangeFeed, Identity, Progress};
use tidegate_core::{Cell, Changes, Error, FlowName, Mark, Op, Position, Result, Rows, Table};

use crate::crawler::of_table;
use crate::error::During;
use crate::statement::{columns, join, key_terms, name, sql};
use crate::store::SqliteStore;
use crate::{cells, connect, journal};

/// Entries in one piece at most, and at the beginning, when it is not known how large rows are.
const ENTRIES_LIMIT: u64 = 10_000;
const ENTRIES_FIRST: u64 = 200;

/// About how many bytes of rows a piece has.
const PIECE_BYTES: u64 = 4 << 20;

/// How long to wait between two looks: from, to.
const WAIT_MIN: Duration = Duration::from_millis(2);
const WAIT_MAX: Duration = Duration::from_millis(64);

/// How long one call waits at most.
const CALL_LIMIT: Duration = Duration::from_millis(500);

pub(crate) struct SqliteFeed {
    store: SqliteStore,
    flow: FlowName,
    tables: Vec<Arc<Table>>,
    source: Identity,
    connection: SqliteConnection,
    /// For acknowledgements alone.
    writer: Option<SqliteConnection>,
    schema: i64,
    at: u64,
    /// The end of the transaction that is being delivered in pieces.
    end: Option<u64>,
    entries: u64,
    wait: Duration,
}

impl SqliteFeed {
    pub(crate) async fn open(
        store: SqliteStore,
        flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Self> {
        let mut connection = connect::reader(store.path()).await?;
        connect::require_wal(&mut connection).await?;
        let found = store.identity_by(&mut connection).await?;
        if found != *source {
            return Err(Error::new(
                code::SOURCE_REPLACED,
                "the source is not the file that the flow began with",
            )
            .with("began_with", &source.0)
            .with("found", &found.0));
        }
        let at = from.to_u64().ok_or_else(|| {
            Error::new(code::STREAM_MALFORMED, "the position is not one of a SQLite source")
        })?;
        let mut feed = Self {
            store,
            flow: flow.clone(),
            tables: tables.to_vec(),
            source: source.clone(),
            connection,
            writer: None,
            schema: -1,
            at,
            end: None,
            entries: ENTRIES_FIRST,
            wait: WAIT_MIN,
        };
        let mut tx = feed.connection.begin().await.during("begin to open the feed")?;
        let trimmed = bounds(&mut tx).await?.0;
        if at < trimmed {
            return Err(Error::new(code::JOURNAL_LOST, "the journal was trimmed behind the checkpoint")
                .with("checkpoint", at)
                .with("trimmed", trimmed)
                .hint(journal::REMOVED));
        }
        drop(tx);
        feed.look().await?;
        Ok(feed)
    }

    /// Whether there is something to deliver; and whether the source is still what it was.
    async fn look(&mut self) -> Result<u64> {
        if schema_version(&mut self.connection).await? != self.schema {
            let mut tx = self.connection.begin().await.during("begin to check the tables")?;
            let schema = schema_version(&mut tx).await?;
            bounds(&mut tx).await?;
            for table in &self.tables {
                journal::check(&mut tx, table).await?;
            }
            drop(tx);
            self.schema = schema;
        }
        let last = journal::frontier(&mut self.connection).await?;
        self.not_behind(last)?;
        Ok(last)
    }

    fn not_behind(&self, last: u64) -> Result<()> {
        if last >= self.at {
            return Ok(());
        }
        Err(Error::new(code::SOURCE_REPLACED, "the checkpoint is ahead of the source: it is an older copy")
            .with("checkpoint", self.at)
            .with("found", last))
    }

    /// Delivers one piece; nothing if the schema has changed since the tables were checked. The feed has moved only
    /// when it returns.
    async fn take(&mut self, out: &mut Changes) -> Result<Option<u64>> {
        let mut tx = self.connection.begin().await.during("begin to read the journal")?;
        let last = journal::frontier(&mut tx).await?;
        // Rows are looked up as they are now: if the tables are others than when they were checked, by columns that
        // nobody asks for, the entries would be passed and the new values lost.
        if schema_version(&mut tx).await? != self.schema {
            return Ok(None);
        }
        let end = self.end.unwrap_or(last);
        let upto = end.min(self.at + self.entries);
        let (mut found, mut committed_at) = (Vec::new(), 0);
        let parts = sqlx::query_as::<_, (String, i64, i64)>(
            "SELECT tbl, max(at), count(*) FROM tidegate_journal WHERE seq > ? AND seq <= ? GROUP BY tbl",
        )
        .bind(number(self.at))
        .bind(number(upto))
        .fetch_all(&mut *tx)
        .await
        .during("read the journal")?;
        let entries: i64 = parts.iter().map(|(_, _, count)| count).sum();
        if entries != number(upto - self.at) {
            return Err(Error::new(
                code::JOURNAL_LOST,
                "entries of the journal were removed by somebody else",
            )
            .with("after", self.at)
            .with("upto", upto)
            .hint(journal::REMOVED));
        }
        for (table, at, _) in parts {
            committed_at = committed_at.max(at);
            if let Some(place) = self.tables.iter().position(|t| t.name.name == table) {
                let states = states(&mut tx, &self.tables[place], self.at, upto).await?;
                found.push((place, states));
            }
        }
        drop(tx);
        let before = out.bytes();
        for (place, states) in &found {
            states.push(*place, &self.tables[*place], out)?;
        }
        let mark: Mark = end;
        out.end(mark, Position::from_u64(upto), committed_at, upto == end);
        let bytes = (out.bytes() - before) as u64;
        let row_bytes = bytes / (upto - self.at).max(1) + 1;
        self.entries = (PIECE_BYTES / row_bytes).clamp(10, ENTRIES_LIMIT);
        self.end = (upto < end).then_some(end);
        self.at = upto;
        Ok(Some(last - upto.min(last)))
    }
}

/// Finds that a file is the one that the flow reads, with all that the capture made.
async fn is_still(source: &Identity, store: &SqliteStore, connection: &mut SqliteConnection) -> Result<()> {
    let found = store.identity_by(connection).await?;
    if found == *source {
        return Ok(());
    }
    let file_of = |identity: &Identity| identity.0.rsplit_once('@').map(|(_, file)| file.to_owned());
    if file_of(&found) == file_of(source) {
        bounds(connection).await?;
    }
    Err(Error::new(code::SOURCE_REPLACED, "another file was put in the source's place")
        .with("began_with", &source.0)
        .with("found", &found.0))
}

async fn schema_version(connection: &mut SqliteConnection) -> Result<i64> {
    sqlx::query_scalar("PRAGMA schema_version").fetch_one(connection).await.during("look at the schema")
}

fn number(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

/// Up to where the journal was trimmed, and its end.
async fn bounds(connection: &mut SqliteConnection) -> Result<(u64, u64)> {
    journal::require(connection).await?;
    Ok((journal::trimmed(connection).await?, journal::frontier(connection).await?))
}

/// Keys with the rows they have now.
#[derive(Default)]
struct States {
    keys: Rows,
    rows: Rows,
    /// Whether a key has a row; those that do have them in turn.
    is_there: Vec<bool>,
}

impl States {
    fn push(&self, place: usize, table: &Table, out: &mut Changes) -> Result<()> {
        let mut rows = self.rows.iter();
        for (key, is_there) in self.keys.iter().zip(&self.is_there) {
            if key.cells().any(|cell| cell == Cell::Null) {
                return Err(journal::null_key(&table.name));
            }
            let Some(row) = rows.next_if(*is_there) else {
                out.push_rows(place, Op::Delete, None, Some(key));
                continue;
            };
            // The index may hold another key to be this one: 'a' and 'A', 1 and 1.0.
            let same = table.has_key(row, key);
            out.push_rows(place, Op::Update, Some(row), (!same).then_some(key));
        }
        Ok(())
    }
}

/// Takes the next item only if told so.
trait NextIf: Iterator {
    fn next_if(&mut self, wanted: bool) -> Option<Self::Item> {
        if wanted { self.next() } else { None }
    }
}

impl<I: Iterator> NextIf for I {}

/// The keys of a table that have entries between two numbers, each once, with their rows.
async fn states(connection: &mut SqliteConnection, table: &Table, after: u64, upto: u64) -> Result<States> {
    let parts: Vec<String> = (1..=table.key.len()).map(|part| format!("k{part}")).collect();
    let group = join(parts.iter().map(|part| format!("{part}, typeof({part})")));
    let equal = key_terms("t", table)
        .iter()
        .zip(&parts)
        .map(|(term, part)| format!("{term} = j.{part}"))
        .collect::<Vec<_>>()
        .join(" AND ");
    let first_key = table.key_columns().next().map(|column| name(&column.name)).unwrap_or_default();
    let text = format!(
        "SELECT t.{first_key} IS NOT NULL, {}, {} FROM (
             SELECT max(seq) AS seq, {keys} FROM tidegate_journal
             WHERE seq > ? AND seq <= ? AND tbl = ? GROUP BY {group}) AS j
         LEFT JOIN {} AS t ON {equal} ORDER BY j.seq",
        join(parts.iter().map(|part| format!("j.{part}"))),
        columns("t", &table.columns),
        name(&table.name.name),
        keys = parts.join(", "),
    );
    let mut found = sqlx::query(sql(text))
        .bind(number(after))
        .bind(number(upto))
        .bind(table.name.name.clone())
        .fetch(connection);
    let mut states = States::default();
    while let Some(row) = found.try_next().await.map_err(|e| of_table(e, table))? {
        let is_there: bool = row.try_get(0).during("read rows")?;
        cells::push(&row, 1, parts.len(), &mut states.keys)
            .map_err(|part| cells::not_utf8(table, table.key.get(part).copied().unwrap_or(part)))?;
        if is_there {
            cells::push(&row, 1 + parts.len(), table.columns.len(), &mut states.rows)
                .map_err(|column| cells::not_utf8(table, column))?;
        }
        states.is_there.push(is_there);
    }
    Ok(states)
}

#[async_trait]
impl ChangeFeed for SqliteFeed {
    async fn next(&mut self, _: Option<&Position>, out: &mut Changes) -> Result<Progress> {
        let start = tokio::time::Instant::now();
        loop {
            let last = self.look().await?;
            if last > self.at {
                self.wait = WAIT_MIN;
                let Some(behind) = self.take(out).await? else { continue };
                return Ok(Progress { position: Position::from_u64(self.at), behind });
            }
            if start.elapsed() >= CALL_LIMIT {
                break;
            }
            tokio::time::sleep(self.wait).await;
            self.wait = (self.wait * 2).min(WAIT_MAX);
        }
        // The open file stays what it was when another one is put in its place.
        is_still(&self.source, &self.store, &mut self.connection).await?;
        Ok(Progress { position: Position::from_u64(self.at), behind: 0 })
    }

    async fn acknowledge(&mut self, upto: &Position) -> Result<()> {
        let upto = upto.to_u64().unwrap_or(0).min(self.at);
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                // Nothing is said to a file that took the place of the one that is read.
                let mut writer = connect::writer(self.store.path()).await?;
                is_still(&self.source, &self.store, &mut writer).await?;
                none.insert(writer)
            }
        };
        match journal::acknowledge(writer, &self.flow, upto).await {
            Err(error) if error.code() == code::TABLE_MISSING => {
                is_still(&self.source, &self.store, writer).await?;
                Err(error)
            }
            done => done,
        }
    }

    async fn close(self: Box<Self>) -> Result<()> {
        if let Some(writer) = self.writer {
            writer.close().await.during("close")?;
        }
        self.connection.close().await.during("close")
    }
}
