//! Turns rows of the source into the rows that travel.

use std::fmt;

use crate::error::{Error, Result, code};
use crate::rows::Row;
use crate::table::{Column, Shape, Table, TableName};
use crate::value::Value;

/// What becomes of a table of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// It travels as it is.
    AsIs,
    /// It does not travel by itself.
    LeftOut,
    /// It travels as this.
    Into(Recipe),
}

/// How the rows of a table are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// The columns that travel, in order. The key's columns are among them, carried.
    pub columns: Vec<MadeColumn>,
    /// Other tables whose rows are folded into this one's.
    pub joins: Vec<Join>,
    /// Whether [`Transform::row`] may leave rows out.
    pub filters: bool,
}

/// A column of a made table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeColumn {
    /// The column as it travels.
    pub column: Column,
    /// The column of the source's table whose cells it carries as they are; `None` if [`Transform::row`] computes it.
    pub carries: Option<usize>,
}

/// A table whose rows belong to rows of another one: the lines of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// The table.
    pub table: TableName,
    /// Its columns that hold the other table's key, in the key's order. They are part of its own key.
    pub on: Vec<String>,
}

/// A row with the names of its columns.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    shape: &'a Shape,
    row: Row<'a>,
}

impl<'a> Record<'a> {
    /// A full row of this shape.
    pub fn new(shape: &'a Shape, row: Row<'a>) -> Self {
        Self { shape, row }
    }

    /// The name of its table in the source.
    pub fn table(&self) -> &'a TableName {
        &self.shape.table.name
    }

    /// The columns, in the order of the cells.
    pub fn columns(&self) -> &'a [Column] {
        &self.shape.table.columns
    }

    /// The value at a place.
    ///
    /// # Errors
    /// `transform-failed` if there is none, else as the codec's.
    pub fn value_at(&self, at: usize) -> Result<Value<'a>> {
        let value = if at < self.columns().len() { self.shape.value(at, self.row.cell(at))? } else { None };
        value.ok_or_else(|| {
            Error::new(code::TRANSFORM_FAILED, format!("the row has no value in column {at}"))
                .with("table", &self.shape.table.name)
        })
    }

    /// The value of a column.
    ///
    /// # Errors
    /// `transform-failed` if there is no such column, else as the codec's.
    pub fn value(&self, column: &str) -> Result<Value<'a>> {
        let at = self.shape.table.position(column).ok_or_else(|| {
            Error::new(code::TRANSFORM_FAILED, format!("the row has no column {column}"))
                .with("table", &self.shape.table.name)
        })?;
        self.value_at(at)
    }

    /// The key, for errors: `id=17`.
    pub fn key(&self) -> String {
        self.shape.show_key(self.shape.cut_key(self.row).row())
    }
}

/// Turns rows of a source's tables into the rows that travel: columns dropped, renamed or computed, rows left out,
/// rows of other tables folded in.
///
/// A made table keeps the key of the table it is made from, so that a row of the one is a row of the other. Crawl,
/// capture, merge and verification work on made rows; nothing else knows of it.
///
/// # Contract
/// 1. The answers depend on the arguments alone: the same row gives the same values today and after a restart.
/// 2. The key's columns are carried, in any place, as they are.
/// 3. A value that cannot be computed is an error, `transform-failed`, which stops the table; it is never a default.
///
/// # Concurrency
/// Called from several tasks at once.
///
/// # Cancel safety
/// Nothing waits here.
///
/// # Implementing
/// `examples/fold-orders` folds orders and their lines into one document.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how rows are made",
    label = "implement `make` and `row`"
)]
pub trait Transform: Send + Sync + fmt::Debug {
    /// What becomes of a table.
    ///
    /// # Errors
    /// `mapping-invalid` if it cannot be made from a table with these columns.
    fn make(&self, table: &Table) -> Result<Made>;

    /// Appends the values of the computed columns, in order, for a row of that table; `false` leaves the row out.
    /// `joined` has the rows of each join, ordered by their own key's bytes.
    ///
    /// # Errors
    /// `transform-failed` if the row cannot be turned.
    fn row(
        &self,
        row: &Record<'_>,
        joined: &[Vec<Record<'_>>],
        out: &mut Vec<Value<'static>>,
    ) -> Result<bool>;
}
