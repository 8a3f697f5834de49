//! Reads the rows of a table in chunks by key, each as one binary copy at one instant.

use std::collections::HashMap;

use async_trait::async_trait;
use futures::TryStreamExt as _;
use tidegate_core::error::code;
use tidegate_core::port::{Chunk, Crawler, KeyRange, Limit};
use tidegate_core::rows::frame_length;
use tidegate_core::{AsOf, Error, Key, Position, Result, Row, RowWriter, Rows, Table};
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use crate::connect::Session;
use crate::error::from_driver;
use crate::lsn::Lsn;
use crate::sql;
use crate::store::PostgresStore;

/// Signature, flags and the length of the extension: what a binary copy begins with.
pub(crate) const COPY_HEADER: &[u8] = b"PGCOPY\n\xFF\r\n\0\0\0\0\0\0\0\0\0";
/// What it ends with.
pub(crate) const COPY_TRAILER: &[u8] = &[0xFF, 0xFF];

/// Chunks walk along the index of the key: anything else would read or sort the rest of the table for each.
const PLANNER: &str = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off;
    SET enable_incremental_sort = off; SET max_parallel_workers_per_gather = 0; SET jit = off;
    SET default_transaction_isolation = 'repeatable read'; SET default_transaction_read_only = on";

/// The snapshot and the position belong together: both are taken by the first statement that needs a snapshot.
const INSTANT: &str = "pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text";

/// Below this size a table is not cut.
const SPLIT_BYTES_MIN: u64 = 4 << 20;
const PAGE_BYTES: u64 = 8192;
/// How many pages are looked at to find where to cut.
const PAGES_SAMPLED: f64 = 400.0;

#[derive(Debug)]
pub(crate) struct PostgresCrawler {
    store: PostgresStore,
    session: Session,
    /// Whether a transaction may be open, since a call was given up or failed.
    unclean: bool,
    /// By the table's number, the word that leaves tables that inherit from it out.
    only: HashMap<u32, &'static str>,
}

impl PostgresCrawler {
    pub(crate) async fn open(store: &PostgresStore) -> Result<Self> {
        Ok(Self {
            store: store.clone(),
            session: Self::session(store).await?,
            unclean: false,
            only: HashMap::new(),
        })
    }

    async fn session(store: &PostgresStore) -> Result<Session> {
        let session = store.session().await?;
        session.batch_execute(PLANNER).await.map_err(|e| from_driver(e, "connect"))?;
        Ok(session)
    }

    /// Ends the transaction of a call that was given up or failed.
    async fn settle(&mut self) -> Result<()> {
        if self.unclean {
            self.session.batch_execute("ROLLBACK").await.map_err(|e| from_driver(e, "read"))?;
            self.unclean = false;
        }
        Ok(())
    }

    /// The table as a query reads it.
    async fn from(&mut self, table: &Table) -> Result<String> {
        self.settle().await?;
        let only = match self.only.get(&table.native_id) {
            Some(only) => *only,
            None => {
                let name = sql::table(&table.name);
                let sql = "SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass($1)";
                let row = self.session.query_opt(sql, &[&name]).await.map_err(|e| from_driver(e, "read"))?;
                let row = row.ok_or_else(|| missing(table))?;
                let only = if row.get(0) { "" } else { "ONLY " };
                self.only.insert(table.native_id, only);
                only
            }
        };
        Ok(format!("{only}{}", sql::table(&table.name)))
    }

    /// Runs one binary copy in a transaction of its own and appends its rows until there are so many bytes of them.
    /// Says whether it came to that.
    async fn copy(
        &mut self,
        table: &Table,
        query: &str,
        bytes: usize,
        out: &mut Rows,
    ) -> Result<(AsOf, bool)> {
        let from = self.from(table).await?;
        self.unclean = true;
        let copied = self.copy_within(table, &from, query, bytes, out).await;
        match &copied {
            // At once: an open transaction keeps the source from tidying up. If it is lost, its transaction is too.
            Err(_) => drop(self.settle().await),
            Ok((_, true)) => {
                // The rest would have to be received to be passed over: the server stops when the session is gone.
                self.session = Self::session(&self.store).await?;
                self.unclean = false;
            }
            Ok((_, false)) => {}
        }
        copied
    }

    async fn copy_within(
        &mut self,
        table: &Table,
        from: &str,
        query: &str,
        bytes: usize,
        out: &mut Rows,
    ) -> Result<(AsOf, bool)> {
        let failed = |e| from_driver(e, "read").with("table", &table.name);
        // Held before the snapshot is taken: a table that is rewritten in between looks empty to it.
        let begin = format!(
            "BEGIN; LOCK TABLE {from} IN ACCESS SHARE MODE; SELECT {INSTANT}, to_regclass({})::oid::text",
            sql::literal(&sql::table(&table.name))
        );
        let copy = format!("COPY ({query}) TO STDOUT (FORMAT binary)");
        // Sent together: the second is read by the server within the transaction of the first.
        let (begun, statement) = tokio::join!(
            biased;
            self.session.simple_query(&begin),
            self.session.prepare(&copy)
        );
        let begun = begun.map_err(failed)?;
        let instant = first_row(&begun)?;
        let oid: Option<u32> = instant.get(2).and_then(|oid| oid.parse().ok());
        if oid.is_none_or(|oid| table.native_id != 0 && oid != table.native_id) {
            return Err(missing(table));
        }
        let as_of = as_of(instant)?;
        let stream = self.session.copy_out(&statement.map_err(failed)?).await.map_err(failed)?;
        let mut stream = std::pin::pin!(stream);
        let mut frames = Frames::default();
        let before = out.bytes().len();
        while let Some(piece) = stream.try_next().await.map_err(failed)? {
            frames.take(&piece, out)?;
            if out.bytes().len() - before >= bytes {
                return Ok((as_of, true));
            }
        }
        frames.end()?;
        self.session.batch_execute("COMMIT").await.map_err(failed)?;
        self.unclean = false;
        Ok((as_of, false))
    }
}

fn missing(table: &Table) -> Error {
    Error::new(code::TABLE_MISSING, "the table is not there any more").with("table", &table.name)
}

fn first_row(messages: &[SimpleQueryMessage]) -> Result<&SimpleQueryRow> {
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    row.ok_or_else(|| Error::new(code::STREAM_MALFORMED, "the server did not say when it read"))
}

/// Reads what [`INSTANT`] asks for: `xmin:xmax:xip,…` and a position.
fn as_of(row: &SimpleQueryRow) -> Result<AsOf> {
    let malformed = || Error::new(code::STREAM_MALFORMED, "the server's snapshot cannot be read");
    let mut snapshot = row.get(0).ok_or_else(malformed)?.split(':').skip(1);
    let upper = snapshot.next().and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
    let in_flight = snapshot.next().unwrap_or_default().split(',').filter(|text| !text.is_empty());
    let mut in_flight: Vec<u64> =
        in_flight.map(|text| text.parse().map_err(|_| malformed())).collect::<Result<_>>()?;
    in_flight.sort_unstable();
    let barrier: Lsn = row.get(1).ok_or_else(malformed)?.parse()?;
    Ok(AsOf { barrier: Position::from_u64(barrier.0), upper, in_flight })
}

/// Cuts the bytes of a copy into rows. The server sends each row by itself; nothing here relies on it.
#[derive(Debug, Default)]
struct Frames {
    begun: bool,
    ended: bool,
    rest: Vec<u8>,
}

impl Frames {
    fn take(&mut self, mut piece: &[u8], out: &mut Rows) -> Result<()> {
        if self.begun && self.rest.is_empty() {
            if let Ok(row) = Row::parse(piece) {
                out.push(row);
                return Ok(());
            }
        } else if !self.begun {
            self.rest.extend_from_slice(piece);
            if self.rest.len() < COPY_HEADER.len() {
                return Ok(());
            }
            self.begun = true;
            self.rest.drain(..COPY_HEADER.len());
            piece = &[];
        }
        self.rest.extend_from_slice(piece);
        let mut at = 0;
        while !self.ended {
            let rest = &self.rest[at..];
            if rest == COPY_TRAILER {
                self.ended = true;
                at = self.rest.len();
            } else if let Some(length) = frame_length(rest) {
                out.push(Row::parse(&rest[..length])?);
                at += length;
            } else {
                break;
            }
        }
        self.rest.drain(..at);
        Ok(())
    }

    fn end(self) -> Result<()> {
        if self.ended && self.rest.is_empty() {
            return Ok(());
        }
        Err(Error::new(code::STREAM_MALFORMED, "a copy ended before its end"))
    }
}

fn cut_key(table: &Table, row: Row<'_>) -> Key {
    let mut frame = Vec::new();
    let mut writer = RowWriter::new(&mut frame);
    table.key.iter().for_each(|&at| writer.cell(row.cell(at)));
    writer.finish();
    Key(frame.into())
}

/// The condition that a row lies in a range.
fn condition(table: &Table, range: &KeyRange) -> Result<String> {
    let key = sql::key_list(table);
    let mut parts = Vec::new();
    for (bound, operator) in [(&range.after, ">"), (&range.upto, "<=")] {
        if let Some(bound) = bound {
            let literals = sql::key_literals(table, bound)?;
            parts.push(if table.key.len() == 1 {
                format!("{key} {operator} {literals}")
            } else {
                format!("({key}) {operator} ({literals})")
            });
        }
    }
    Ok(if parts.is_empty() { String::new() } else { format!(" WHERE {}", parts.join(" AND ")) })
}

#[async_trait]
impl Crawler for PostgresCrawler {
    async fn split(&mut self, table: &Table, parts: usize) -> Result<Vec<KeyRange>> {
        let from = self.from(table).await?;
        let key = sql::key_list(table);
        let keys = Table {
            key: (0..table.key.len()).collect(),
            columns: table.key_columns().cloned().collect(),
            ..table.clone()
        };
        let descending: Vec<String> =
            table.key_columns().map(|column| format!("{} DESC", sql::ident(&column.name))).collect();
        let mut last = Rows::new();
        let query = format!("SELECT {key} FROM {from} ORDER BY {} LIMIT 1", descending.join(", "));
        self.copy(&keys, &query, usize::MAX, &mut last).await?;
        if last.is_empty() {
            return Ok(vec![KeyRange::default()]);
        }
        let last = cut_key(&keys, last.row(0));
        let mut ranges = Vec::new();
        let mut after: Option<Key> = None;
        if parts > 1 && table.bytes_estimated >= SPLIT_BYTES_MIN {
            let pages = (table.bytes_estimated / PAGE_BYTES).max(1) as f64;
            let percent = (PAGES_SAMPLED * 100.0 / pages).min(100.0);
            let mut sample = Rows::new();
            // Within the frozen end, should rows have come in meanwhile.
            let within = condition(table, &KeyRange { after: None, upto: Some(last.clone()) })?;
            let query =
                format!("SELECT {key} FROM {from} TABLESAMPLE SYSTEM ({percent}){within} ORDER BY {key}");
            self.copy(&keys, &query, usize::MAX, &mut sample).await?;
            let mut at = 0;
            for part in 1..parts {
                let next = sample.len() * part / parts;
                if next <= at || next >= sample.len() {
                    continue;
                }
                at = next;
                let upto = cut_key(&keys, sample.row(at));
                if upto != last {
                    ranges.push(KeyRange { after: after.replace(upto.clone()), upto: Some(upto) });
                }
            }
        }
        ranges.push(KeyRange { after, upto: Some(last) });
        Ok(ranges)
    }

    async fn read(&mut self, table: &Table, range: &KeyRange, limit: Limit, out: &mut Rows) -> Result<Chunk> {
        let from = self.from(table).await?;
        let columns = sql::list(table.columns.iter().map(|column| &column.name));
        let rows = limit.rows.max(1);
        let query = format!(
            "SELECT {columns} FROM {from}{} ORDER BY {} LIMIT {rows}",
            condition(table, range)?,
            sql::key_list(table)
        );
        let before = out.len();
        let (as_of, is_full) = self.copy(table, &query, limit.bytes, out).await?;
        let next = (is_full || out.len() - before == rows).then(|| cut_key(table, out.row(out.len() - 1)));
        Ok(Chunk { as_of, next, surplus: Vec::new() })
    }

    async fn fetch(&mut self, table: &Table, keys: &[Key], out: &mut Rows) -> Result<AsOf> {
        if keys.is_empty() {
            return self.as_of().await;
        }
        let from = self.from(table).await?;
        let columns: Vec<String> =
            table.columns.iter().map(|column| format!("t.{}", sql::ident(&column.name))).collect();
        let mut wanted = Vec::with_capacity(keys.len());
        for key in keys {
            wanted.push(format!("({})", sql::key_literals(table, key)?));
        }
        let places = 0..table.key.len();
        let names: Vec<String> = places.map(|at| format!("k{at}")).collect();
        let same =
            table.key_columns().enumerate().map(|(at, c)| format!("t.{} = w.k{at}", sql::ident(&c.name)));
        // A join, so that each key is one step into the index, of however many columns it is.
        let query = format!(
            "SELECT {} FROM (VALUES {}) w ({}) JOIN {from} t ON {}",
            columns.join(", "),
            wanted.join(", "),
            names.join(", "),
            same.collect::<Vec<_>>().join(" AND ")
        );
        Ok(self.copy(table, &query, usize::MAX, out).await?.0)
    }

    async fn as_of(&mut self) -> Result<AsOf> {
        self.settle().await?;
        self.unclean = true;
        let sql = format!("BEGIN; SELECT {INSTANT}; COMMIT");
        let messages = self.session.simple_query(&sql).await.map_err(|e| from_driver(e, "read"))?;
        self.unclean = false;
        as_of(first_row(&messages)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_however_the_copy_is_cut() {
        let mut whole = COPY_HEADER.to_vec();
        let mut rows = Rows::new();
        for cell in [&b"a"[..], b"", b"ccc"] {
            rows.push_with(|row| row.cell(tidegate_core::Cell::Bytes(cell)));
        }
        whole.extend_from_slice(rows.bytes());
        whole.extend_from_slice(COPY_TRAILER);
        for size in 1..whole.len() {
            let mut frames = Frames::default();
            let mut read = Rows::new();
            whole.chunks(size).for_each(|piece| frames.take(piece, &mut read).unwrap());
            frames.end().unwrap();
            assert_eq!(read.bytes(), rows.bytes(), "{size}");
        }
    }
}
