//! Where the rows of one route go, and how they are written there.

use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};
use tidegate_core::error::code;
use tidegate_core::port::Route;
use tidegate_core::{Cell, Error, Key, Result, Row, Rows, Value};

use crate::binary::{put_field, put_null};
use crate::catalog::target;
use crate::codec::ENCODING;
use crate::connect::Session;
use crate::crawler::{COPY_HEADER, COPY_TRAILER};
use crate::encode::{Taken, put_value};
use crate::error::from_driver;
use crate::form::{Form, OID_OWN};
use crate::sql;

/// Where tables are that a session has for itself.
const TEMPORARY: &str = "pg_temp.";

/// One table of the target, with the statements that write it.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its name as people have it.
    pub(crate) name: String,
    /// The name of the source's table, by which the ledger knows it.
    pub(crate) source: String,
    /// Its name in statements.
    pub(crate) table: String,
    /// The same, of its own rows alone: others may inherit from it. Those of a partitioned table are its partitions'.
    pub(crate) own: String,
    pub(crate) route: Route,
    /// The table that had the name when the sink was made, and the one that is written to.
    pub(crate) found: Option<u32>,
    pub(crate) known: Option<u32>,
    /// A column that it has not: nothing is written to it.
    lacks: Option<String>,
    /// Its columns and their types, in words that are the same as long as they are.
    pub(crate) words: Option<String>,
    /// The columns' names in statements.
    columns: Vec<String>,
    taken: Vec<Taken>,
    /// Which cells are written as they come.
    passes: Vec<bool>,
    number: usize,
}

/// Asks what columns a table has, and of which types.
pub(crate) fn words_of(table: &str) -> String {
    format!(
        "(SELECT md5(string_agg(concat_ws(' ', attname, atttypid, atttypmod), ',' ORDER BY attnum)) FROM pg_attribute
            WHERE attrelid = to_regclass({}) AND attnum > 0 AND NOT attisdropped)",
        sql::literal(table)
    )
}

impl Place {
    pub(crate) async fn new(session: &Session, number: usize, route: &Route) -> Result<Self> {
        let name = route.target.name.to_string();
        // Before the columns: should they change in between, these words are found to be old.
        let table = sql::table(&route.target.name);
        let sql = format!(
            "SELECT {}, coalesce((SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass({})), false)",
            words_of(&table),
            sql::literal(&table)
        );
        let row = session.query_one(&sql, &[]).await.map_err(|e| from_driver(e, "look at a table"))?;
        let (words, is_partitioned) = (row.get(0), row.get(1));
        let there = target::columns(session, &route.target).await?;
        let found = there.as_ref().map(|(oid, _)| *oid);
        let is_ours = route.shape.codec.encoding() == ENCODING;
        let mut taken = Vec::new();
        let mut passes = Vec::new();
        let mut lacks = None;
        // Nothing is written to one that is not there.
        for (source, column) in route.shape.table.columns.iter().zip(&route.target.columns) {
            let Some((_, there)) = &there else { break };
            let Some(there) = there.iter().find(|there| there.name == column.name) else {
                lacks = Some(column.name.clone());
                break;
            };
            let same_words = source.native == there.native;
            passes.push(is_ours && passes_as_it_is(source, &there.taken, same_words));
            taken.push(there.taken.clone());
        }
        if found.is_some() && lacks.is_none() && taken.len() != route.shape.table.columns.len() {
            return Err(
                Error::new(code::INTERNAL, "a route has more columns than its target").with("table", name)
            );
        }
        Ok(Self {
            own: if is_partitioned { table.clone() } else { format!("ONLY {table}") },
            table,
            columns: route.target.columns.iter().map(|column| sql::ident(&column.name)).collect(),
            route: route.clone(),
            found,
            known: None,
            lacks,
            words,
            name,
            source: route.shape.table.name.to_string(),
            taken,
            passes,
            number,
        })
    }

    /// Why nothing is written to the table that was found, if it is not the one that is to be written to.
    pub(crate) fn trouble(&self) -> Option<Error> {
        if self.found.is_none() || self.found != self.known {
            return Some(self.route.table_missing());
        }
        self.lacks.as_ref().map(|column| self.route.target_differs(column))
    }

    /// The first column that another description of the same table has otherwise.
    pub(crate) fn differs(&self, other: &Self) -> Option<&str> {
        let columns = &self.route.target.columns;
        let differs = (0..columns.len()).find(|at| self.taken.get(*at) != other.taken.get(*at));
        differs.map(|at| columns[at].name.as_str())
    }

    fn key(&self) -> &[usize] {
        &self.route.shape.table.key
    }

    fn staged(&self) -> String {
        format!("{TEMPORARY}tidegate_rows_{}", self.number)
    }

    fn staged_keys(&self) -> String {
        format!("{TEMPORARY}tidegate_keys_{}", self.number)
    }

    /// Makes the tables that rows and keys are staged in.
    pub(crate) fn create_stage(&self) -> String {
        let select = |places: &[usize]| {
            let columns = places.iter().map(|at| format!("{} AS c{at}", self.columns[*at]));
            columns.collect::<Vec<_>>().join(", ")
        };
        let all: Vec<usize> = (0..self.columns.len()).collect();
        format!(
            "CREATE TEMP TABLE IF NOT EXISTS {} ON COMMIT DELETE ROWS AS SELECT NULL::int4 AS n, {} FROM {table}
                WITH NO DATA;
            CREATE TEMP TABLE IF NOT EXISTS {} ON COMMIT DELETE ROWS AS SELECT {} FROM {table} WITH NO DATA",
            self.staged(),
            select(&all),
            self.staged_keys(),
            select(self.key()),
            table = self.table,
        )
    }

    pub(crate) fn clear_keys(&self) -> String {
        format!("TRUNCATE {}", self.staged_keys())
    }

    pub(crate) fn clear_rows(&self) -> String {
        format!("TRUNCATE {}", self.staged())
    }

    pub(crate) fn copy_direct(&self) -> String {
        format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.table, self.columns.join(", "))
    }

    pub(crate) fn copy_rows(&self) -> String {
        let columns: Vec<String> = (0..self.columns.len()).map(|at| format!("c{at}")).collect();
        format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.staged(), columns.join(", "))
    }

    pub(crate) fn copy_keys(&self) -> String {
        let columns: Vec<String> = self.key().iter().map(|at| format!("c{at}")).collect();
        format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.staged_keys(), columns.join(", "))
    }

    pub(crate) fn copy_updates(&self, sent: &[usize]) -> String {
        let columns: Vec<String> = sent.iter().map(|at| format!("c{at}")).collect();
        format!("COPY {} (n, {}) FROM STDIN (FORMAT binary)", self.staged(), columns.join(", "))
    }

    fn same_key(&self) -> String {
        let same = self.key().iter().map(|at| format!("t.{} = s.c{at}", self.columns[*at]));
        same.collect::<Vec<_>>().join(" AND ")
    }

    pub(crate) fn delete_keys(&self) -> String {
        format!("DELETE FROM {} t USING {} s WHERE {}", self.own, self.staged_keys(), self.same_key())
    }

    fn insert(&self) -> String {
        let staged: Vec<String> = (0..self.columns.len()).map(|at| format!("s.c{at}")).collect();
        format!(
            "INSERT INTO {} AS t ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} s",
            self.table,
            self.columns.join(", "),
            staged.join(", "),
            self.staged()
        )
    }

    pub(crate) fn upsert(&self) -> String {
        let key: Vec<&str> = self.key().iter().map(|at| self.columns[*at].as_str()).collect();
        let set: Vec<String> = (0..self.columns.len())
            .filter(|at| !self.key().contains(at))
            .map(|at| format!("{column} = excluded.{column}", column = self.columns[at]))
            .collect();
        let action =
            if set.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", set.join(", ")) };
        format!("{} ON CONFLICT ({}) DO {action}", self.insert(), key.join(", "))
    }

    /// Inserts the staged rows of these numbers.
    pub(crate) fn insert_some(&self, which: Range<usize>) -> String {
        format!("{} WHERE {}", self.insert(), is_among(&which))
    }

    /// Whether an error of the server, which names a table without its schema, may be about this one.
    pub(crate) fn is_called(&self, relation: &str) -> bool {
        self.route.target.name.name == relation
    }

    /// Writes the staged columns, and gives the numbers of the rows that met none.
    pub(crate) fn update(&self, sent: &[usize]) -> String {
        self.update_where(sent, "true")
    }

    /// The same with the staged rows of these numbers.
    pub(crate) fn update_some(&self, sent: &[usize], which: Range<usize>) -> String {
        self.update_where(sent, &is_among(&which))
    }

    fn update_where(&self, sent: &[usize], which: &str) -> String {
        let set: Vec<String> = sent
            .iter()
            .filter(|at| !self.key().contains(at))
            .map(|at| format!("{} = s.c{at}", self.columns[*at]))
            .collect();
        let (table, staged, same) = (&self.own, self.staged(), self.same_key());
        if set.is_empty() {
            return format!(
                "SELECT s.n FROM {staged} s WHERE {which} AND NOT EXISTS (SELECT FROM {table} t WHERE {same})"
            );
        }
        format!(
            "WITH hit AS (UPDATE {table} t SET {} FROM {staged} s WHERE {which} AND {same} RETURNING s.n)
            SELECT s.n FROM {staged} s WHERE {which} EXCEPT SELECT n FROM hit ORDER BY n",
            set.join(", ")
        )
    }

    /// Some of the full rows as a copy.
    pub(crate) fn encode_rows(&self, rows: &Rows, which: Range<usize>) -> Result<Bytes> {
        let mut out = begin(rows.bytes().len() * which.len() / rows.len().max(1));
        if self.passes.iter().all(|passes| *passes) {
            out.extend_from_slice(rows.frames(which));
        } else {
            for row in which.map(|at| rows.row(at)) {
                out.put_u16(u16::try_from(row.len()).unwrap_or(u16::MAX));
                for (at, cell) in row.cells().enumerate() {
                    self.put(&mut out, at, cell, row)?;
                }
            }
        }
        Ok(end(out))
    }

    /// Keys as a copy.
    pub(crate) fn encode_keys(&self, keys: &Rows) -> Result<Bytes> {
        let mut out = begin(keys.bytes().len());
        for key in keys.iter() {
            out.put_u16(u16::try_from(key.len()).unwrap_or(u16::MAX));
            for (&at, cell) in self.key().iter().zip(key.cells()) {
                self.put(&mut out, at, cell, key)?;
            }
        }
        Ok(end(out))
    }

    /// Rows with unchanged cells, by the columns that they have, each group as a copy with the rows' numbers.
    pub(crate) fn encode_updates(&self, rows: &Rows) -> Result<Vec<(Vec<usize>, Bytes)>> {
        let mut groups: Vec<(Vec<usize>, BytesMut)> = Vec::new();
        for (number, row) in rows.iter().enumerate() {
            let sent: Vec<usize> = sent_columns(row).collect();
            let group = match groups.iter().position(|(columns, _)| *columns == sent) {
                Some(group) => group,
                None => {
                    groups.push((sent.clone(), begin(0)));
                    groups.len() - 1
                }
            };
            let out = &mut groups[group].1;
            out.put_u16(u16::try_from(sent.len() + 1).unwrap_or(u16::MAX));
            out.put_i32(4);
            out.put_i32(i32::try_from(number).unwrap_or(i32::MAX));
            for at in sent {
                self.put(out, at, row.cell(at), row)?;
            }
        }
        Ok(groups.into_iter().map(|(sent, out)| (sent, end(out))).collect())
    }

    fn put(&self, out: &mut BytesMut, at: usize, cell: Cell<'_>, row: Row<'_>) -> Result<()> {
        let written = match cell {
            Cell::Null => {
                put_null(out);
                return Ok(());
            }
            Cell::Bytes(bytes) if self.passes[at] => put_field(out, |out| {
                out.put_slice(bytes);
                Ok(())
            }),
            Cell::Bytes(bytes) => {
                let column = &self.route.shape.table.columns[at];
                match self.route.shape.codec.value(column, bytes) {
                    Ok(value) if column.is_strange(&value) => {
                        Err(Error::new(code::VALUE_UNFIT, "the text column of the source has bytes in it"))
                    }
                    Ok(Value::Null) => {
                        put_null(out);
                        return Ok(());
                    }
                    Ok(value) => {
                        let value = target::stored(&self.route.target.columns[at].kind, value);
                        put_field(out, |out| put_value(out, &self.taken[at], &value))
                    }
                    Err(error) => Err(error),
                }
            }
            Cell::Unchanged => Err(Error::new(code::ROW_HOLE, "a full row has a cell that was not sent")),
        };
        written.map_err(|error| {
            error
                .with("table", &self.name)
                .with("key", self.show_key(row))
                .with("column", &self.route.shape.table.columns[at].name)
        })
    }

    /// The key of a row, which may be the key alone, for people.
    fn show_key(&self, row: Row<'_>) -> String {
        let is_full = row.len() == self.columns.len();
        let key = if is_full { self.route.shape.cut_key(row) } else { Key(row.frame().into()) };
        self.route.shape.show_key(key.row())
    }

    /// An error of a copy of these rows. If the server refuses what is in one, it says which line and column it is at.
    pub(crate) fn refused<'a>(
        &self,
        error: tokio_postgres::Error,
        operation: &'static str,
        mut rows: impl Iterator<Item = Row<'a>>,
    ) -> Error {
        let spot = error.as_db_error().and_then(|refusal| self.spot(refusal.where_()?));
        let mut error = from_driver(error, operation);
        if ![code::VALUE_UNFIT, code::CONSTRAINT_VIOLATED].contains(&error.code()) {
            return error;
        }
        let Some((line, column)) = spot else { return error };
        if let Some(row) = line.checked_sub(1).and_then(|at| rows.nth(at)) {
            error = error.with("key", self.show_key(row));
        }
        match column {
            Some(at) => error.with("column", &self.route.shape.table.columns[at].name),
            None => error,
        }
    }

    /// The line of a copy into this table, and the place of a column, that the server names.
    fn spot(&self, context: &str) -> Option<(usize, Option<usize>)> {
        let copy = context.lines().last()?;
        let staged = |name: &str| name.strip_prefix(TEMPORARY).unwrap_or(name).to_owned();
        for name in [staged(&self.staged()), staged(&self.staged_keys())] {
            let columns: Vec<String> = (0..self.columns.len()).map(|at| format!("c{at}")).collect();
            if let Some(found) = spot(copy, &name, columns.iter().map(String::as_str)) {
                return Some(found);
            }
        }
        spot(copy, &self.route.target.name.name, self.route.target.columns.iter().map(|c| c.name.as_str()))
    }
}

/// The line, and the place of a column, that `COPY name, line 3, column v` is about. The word `COPY` and the names are
/// the same in every language of the server; what stands between them is not. A trigger's function or statement says
/// nothing of a line of a copy, whatever its name is.
fn spot<'a>(
    copy: &str,
    table: &str,
    columns: impl Iterator<Item = &'a str>,
) -> Option<(usize, Option<usize>)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let is_apart = |before: &str, behind: &str| {
        !before.chars().next_back().is_some_and(is_part) && !behind.chars().next().is_some_and(is_part)
    };
    let whole = |text: &'_ str, word: &str| {
        let mut at = text.match_indices(word).map(|(at, _)| (at, at + word.len()));
        at.find(|(begin, end)| is_apart(&text[..*begin], &text[*end..]))
    };
    whole(copy, "COPY")?;
    let (_, end) = whole(copy, table)?;
    let behind = copy[end..].trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
    let (line, behind) = behind.split_at(end);
    let is_last =
        |name: &str| behind.strip_suffix(name).is_some_and(|before| !name.is_empty() && is_apart(before, ""));
    let found = columns.enumerate().filter(|(_, name)| is_last(name)).max_by_key(|(_, name)| name.len());
    Some((line.parse().ok()?, found.map(|(at, _)| at)))
}

fn is_among(numbers: &Range<usize>) -> String {
    format!("s.n >= {} AND s.n < {}", numbers.start, numbers.end)
}

/// The places of the cells that were sent.
pub(crate) fn sent_columns(row: Row<'_>) -> impl Iterator<Item = usize> {
    row.cells().enumerate().filter(|(_, cell)| *cell != Cell::Unchanged).map(|(at, _)| at)
}

fn begin(bytes: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(bytes + COPY_HEADER.len() + COPY_TRAILER.len());
    out.extend_from_slice(COPY_HEADER);
    out
}

fn end(mut out: BytesMut) -> Bytes {
    out.extend_from_slice(COPY_TRAILER);
    out.freeze()
}

/// Whether a cell in the server's own form is written as it comes: the types are the same, and the target's declared
/// length or scale cannot change it without a word.
fn passes_as_it_is(source: &tidegate_core::Column, taken: &Taken, same_words: bool) -> bool {
    let form = Form::of(taken.oid, &taken.kind);
    if source.native_id >= OID_OWN || taken.oid >= OID_OWN {
        // Numbers of such types differ from database to database, and arrays hold them.
        return form != Form::Array && (same_words || form == Form::Text && source.kind == taken.kind);
    }
    let is_exact = taken.modifier == -1 || same_words;
    let texts = Form::of(source.native_id, &source.kind) == Form::Text && form == Form::Text;
    (source.native_id == taken.oid || texts) && is_exact
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_copy_into_the_table_names_a_line() {
        for (context, expected) in [
            ("COPY orders, line 3, column total", Some((3, Some(1)))),
            ("COPY orders, Zeile 12, Spalte total", Some((12, Some(1)))),
            ("COPY orders, line 3", Some((3, None))),
            ("COPY my.orders, line 3, column total_net", Some((3, Some(2)))),
            ("COPY orders, line 3, column other_total", Some((3, None))),
            ("COPY orders_2024, line 3, column total", None),
            ("COPY old_orders, line 3, column total", None),
            // A trigger acts when the copy's own context is gone.
            ("PL/pgSQL function orders_audit() line 3 at SQL statement", None),
            ("SQL function \"orders\" statement 1", None),
            ("PL/pgSQL function COPY_orders() line 3 at RAISE", None),
            ("", None),
        ] {
            let columns = ["id", "total", "total_net", "t"];
            assert_eq!(spot(context, "orders", columns.into_iter()), expected, "{context}");
        }
    }
}
