//! Reads rows in the order of the key.

use std::path::Path;

use async_trait::async_trait;
use futures::TryStreamExt;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Arguments, Connection};
use tidegate_core::port::{Chunk, Crawler, KeyRange, Limit};
use tidegate_core::{AsOf, Canonical, Error, Key, Position, Result, Rows, Shape, Table, error::code};

use crate::cells::{self, bind_key};
use crate::error::During;
use crate::statement::{columns, join, key_compare, key_equal, key_terms, name, sql};
use crate::{connect, describe, journal};

/// Keys looked at to cut a table, for each part.
const SAMPLES_PER_PART: usize = 50;

pub(crate) struct SqliteCrawler {
    connection: SqliteConnection,
}

/// The proof of an instant: every change up to the last entry of the journal is seen, and none behind it.
pub(crate) async fn instant(connection: &mut SqliteConnection) -> Result<AsOf> {
    let last = journal::frontier(connection).await?;
    Ok(AsOf { barrier: Position::from_u64(last), upper: last + 1, in_flight: Vec::new() })
}

impl SqliteCrawler {
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        let mut connection = connect::reader(path).await?;
        connect::require_wal(&mut connection).await?;
        Ok(Self { connection })
    }
}

#[async_trait]
impl Crawler for SqliteCrawler {
    async fn split(&mut self, table: &Table, parts: usize) -> Result<Vec<KeyRange>> {
        let mut tx = self.connection.begin().await.during("begin to split")?;
        // A row without a key is in no range.
        if describe::null_key(&mut tx, table).await?.is_some() {
            return Err(journal::null_key(&table.name));
        }
        let terms = key_terms("t", table);
        let descending = join(terms.iter().map(|term| format!("{term} DESC")));
        let key = columns("t", table.key_columns());
        let from = name(&table.name.name);
        let last = format!("SELECT {key} FROM {from} AS t ORDER BY {descending} LIMIT 1");
        let Some(last) = keys(&mut tx, table, last).await?.pop() else {
            return Ok(vec![KeyRange::default()]);
        };
        let samples =
            if parts > 1 { sample(&mut tx, table, parts * SAMPLES_PER_PART).await? } else { Vec::new() };
        let mut ranges = Vec::new();
        let mut after = None;
        for part in 1..parts {
            let Some(upto) = samples.get(part * samples.len() / parts) else { break };
            if after.as_ref() != Some(upto) && *upto != last {
                ranges.push(KeyRange { after: after.replace(upto.clone()), upto: Some(upto.clone()) });
            }
        }
        ranges.push(KeyRange { after, upto: Some(last) });
        Ok(ranges)
    }

    async fn read(&mut self, table: &Table, range: &KeyRange, limit: Limit, out: &mut Rows) -> Result<Chunk> {
        let rows = limit.rows.max(1);
        let mut arguments = SqliteArguments::default();
        let mut conditions = Vec::new();
        for (key, operator) in [(&range.after, ">"), (&range.upto, "<=")] {
            if let Some(key) = key {
                conditions.push(key_compare(table, operator));
                bind_key(&mut arguments, key.row())?;
            }
        }
        let limit_value = i64::try_from(rows).unwrap_or(i64::MAX);
        arguments
            .add(limit_value)
            .map_err(|e| Error::new(code::INTERNAL, "a limit cannot be bound").because(e))?;
        let condition =
            if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
        let text = format!(
            "SELECT {} FROM {} AS t {condition} ORDER BY {} LIMIT ?",
            columns("t", &table.columns),
            name(&table.name.name),
            key_terms("t", table).join(", "),
        );
        let mut tx = self.connection.begin().await.during("begin to read")?;
        let as_of = instant(&mut tx).await?;
        let before = out.len();
        let is_full = stream(&mut tx, table, text, arguments, limit.bytes, out).await?;
        let next = (is_full || out.len() - before == rows).then(|| cut_key(table, out, out.len() - 1));
        Ok(Chunk { as_of, next, surplus: Vec::new() })
    }

    async fn fetch(&mut self, table: &Table, keys: &[Key], out: &mut Rows) -> Result<AsOf> {
        let text = format!(
            "SELECT {} FROM {} AS t WHERE {}",
            columns("t", &table.columns),
            name(&table.name.name),
            key_equal("t", table)
        );
        let mut tx = self.connection.begin().await.during("begin to fetch")?;
        let as_of = instant(&mut tx).await?;
        for key in keys {
            let mut arguments = SqliteArguments::default();
            bind_key(&mut arguments, key.row())?;
            stream(&mut tx, table, text.clone(), arguments, usize::MAX, out).await?;
        }
        Ok(as_of)
    }

    async fn as_of(&mut self) -> Result<AsOf> {
        let mut tx = self.connection.begin().await.during("begin to look")?;
        instant(&mut tx).await
    }
}

/// Appends rows until there are so many bytes of them; whether it came to that.
async fn stream(
    connection: &mut SqliteConnection,
    table: &Table,
    text: String,
    arguments: SqliteArguments,
    bytes: usize,
    out: &mut Rows,
) -> Result<bool> {
    let before = out.bytes().len();
    let mut found = sqlx::query_with(sql(text), arguments).fetch(connection);
    while let Some(row) = found.try_next().await.map_err(|e| of_table(e, table))? {
        cells::push(&row, 0, table.columns.len(), out).map_err(|column| cells::not_utf8(table, column))?;
        if out.bytes().len() - before >= bytes {
            return Ok(true);
        }
    }
    Ok(false)
}

/// An error of reading a table names it.
pub(crate) fn of_table(error: sqlx::Error, table: &Table) -> Error {
    crate::error::from_driver(error, "read rows").with("table", &table.name)
}

fn cut_key(table: &Table, rows: &Rows, at: usize) -> Key {
    let shape = Shape { table: table.clone().into(), codec: std::sync::Arc::new(Canonical) };
    shape.cut_key(rows.row(at))
}

/// The keys that a statement gives.
async fn keys(connection: &mut SqliteConnection, table: &Table, text: String) -> Result<Vec<Key>> {
    let mut found = sqlx::query(sql(text)).fetch(connection);
    let mut rows = Rows::new();
    while let Some(row) = found.try_next().await.map_err(|e| of_table(e, table))? {
        cells::push(&row, 0, table.key.len(), &mut rows)
            .map_err(|part| cells::not_utf8(table, table.key.get(part).copied().unwrap_or(part)))?;
    }
    Ok(rows.iter().map(|row| Key(row.frame().into())).collect())
}

/// About so many keys in their order, from all over the table.
async fn sample(connection: &mut SqliteConnection, table: &Table, count: usize) -> Result<Vec<Key>> {
    if let Some(text) = steps(connection, table, count).await? {
        let found = keys(connection, table, text).await?;
        if found.len() >= count / 4 {
            return Ok(found);
        }
        // The rowids stand in a few heaps with wide gaps between.
    }
    // All keys are passed over once; an index is read, and no row is kept.
    let text = format!(
        "SELECT {key} FROM (SELECT {key}, row_number() OVER (ORDER BY {order}) AS tidegate_at,
             count(*) OVER () AS tidegate_count FROM {from} AS t) AS t
         WHERE t.tidegate_at % max(t.tidegate_count / {count}, 1) = 0 ORDER BY {order}",
        key = columns("t", table.key_columns()),
        order = key_terms("t", table).join(", "),
        from = name(&table.name.name),
    );
    keys(connection, table, text).await
}

/// A statement that gives keys at equal steps of the rowid, if the table has one.
async fn steps(connection: &mut SqliteConnection, table: &Table, count: usize) -> Result<Option<String>> {
    let from = name(&table.name.name);
    let key = columns("t", table.key_columns());
    let order = key_terms("t", table).join(", ");
    let names = ["rowid", "_rowid_", "oid"];
    let free = names.iter().find(|id| !table.columns.iter().any(|c| c.name.eq_ignore_ascii_case(id)));
    let has_rowid: bool =
        sqlx::query_scalar("SELECT NOT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?")
            .bind(table.name.name.clone())
            .fetch_one(connection)
            .await
            .during("look for rowids")?;
    let Some(id) = free.filter(|_| has_rowid) else { return Ok(None) };
    // Steps over the span of the rowids, each to the next row that is there. All names are qualified, and ours have
    // our prefix: the table may have columns, and a name, of any kind.
    Ok(Some(format!(
        "WITH RECURSIVE
           tidegate_span(low, high) AS (SELECT (SELECT min(t.{id}) FROM {from} AS t), (SELECT max(t.{id}) FROM {from} AS t)),
           tidegate_step(n) AS (SELECT 0 UNION ALL
               SELECT tidegate_step.n + 1 FROM tidegate_step WHERE tidegate_step.n < {count}),
           tidegate_found(id) AS (SELECT DISTINCT (SELECT t.{id} FROM {from} AS t
               WHERE t.{id} >= CAST(tidegate_span.low + (CAST(tidegate_span.high AS REAL) - tidegate_span.low)
                   * tidegate_step.n / {count} AS INTEGER)
               ORDER BY t.{id} LIMIT 1) FROM tidegate_step, tidegate_span)
         SELECT {key} FROM tidegate_found JOIN {from} AS t ON t.{id} = tidegate_found.id ORDER BY {order}"
    )))
}
