//! SQL texts. Every name is quoted, every value is bound.

use std::sync::Arc;

use sqlx::AssertSqlSafe;
use tidegate_core::{Column, Table};

/// How many values one statement may bind.
pub(crate) const VALUES_LIMIT: usize = 32_766;

/// The comparison byte by byte, which is the one of all that say no other.
pub(crate) const BINARY: &str = "BINARY";

/// A text made here, of quoted names alone.
pub(crate) fn sql(text: impl Into<Arc<str>>) -> AssertSqlSafe<Arc<str>> {
    AssertSqlSafe(text.into())
}

/// A name, quoted. A column in an expression has to be qualified as well: SQLite takes a quoted name that it does
/// not know for a text.
pub(crate) fn name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text, quoted, for statements that cannot bind: those of triggers.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Columns of a table by an alias: `t."a", t."b"`.
pub(crate) fn columns<'a>(alias: &str, columns: impl IntoIterator<Item = &'a Column>) -> String {
    join(columns.into_iter().map(|column| format!("{alias}.{}", name(&column.name))))
}

/// Joins with commas.
pub(crate) fn join(parts: impl IntoIterator<Item = String>) -> String {
    parts.into_iter().collect::<Vec<_>>().join(", ")
}

/// `?, ?, ?`
pub(crate) fn holes(count: usize) -> String {
    join((0..count).map(|_| "?".to_owned()))
}

/// The order in which a key's unique index holds a column, where it is not the binary one or not the column's own.
pub(crate) fn collation(native: &str) -> Option<&str> {
    native.split_once(" COLLATE ").map(|(_, collation)| collation)
}

/// The columns of the key as they are compared: `t."a" COLLATE NOCASE`.
pub(crate) fn key_terms(alias: &str, table: &Table) -> Vec<String> {
    let term = |column: &Column| match collation(&column.native) {
        Some(collation) => format!("{alias}.{} COLLATE {collation}", name(&column.name)),
        None => format!("{alias}.{}", name(&column.name)),
    };
    table.key_columns().map(term).collect()
}

/// Compares the key with bound values: `(t."a", t."b") > (?, ?)`.
pub(crate) fn key_compare(table: &Table, operator: &str) -> String {
    let terms = key_terms("t", table);
    match terms.as_slice() {
        [term] => format!("{term} {operator} ?"),
        _ => format!("({}) {operator} ({})", terms.join(", "), holes(terms.len())),
    }
}

/// Finds a row by its key: `t."a" = ? AND t."b" = ?`.
pub(crate) fn key_equal(alias: &str, table: &Table) -> String {
    key_terms(alias, table).iter().map(|term| format!("{term} = ?")).collect::<Vec<_>>().join(" AND ")
}
