//! Writes rows into one table.

use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteArguments;
use tidegate_core::error::code;
use tidegate_core::port::{Route, TableBatch};
use tidegate_core::{Cell, Error, Key, Result, Row, Rows, Table};

use crate::cells::{self, Affinity};
use crate::describe;
use crate::error::{During, from_driver, is_constraint, is_unique_violation};
use crate::statement::{VALUES_LIMIT, collation, holes as question_marks, join, key_equal, name, sql};

/// Rows a statement: as many as fit, so that a few prepared statements serve all batches.
const STEPS: [usize; 4] = [128, 16, 4, 1];

/// One route, with what is known of its target.
#[derive(Debug)]
pub(crate) struct Writer {
    route: Route,
    affinities: Vec<Affinity>,
    /// A column that the target has not: nothing is written to it.
    pub(crate) lacks: Option<String>,
    /// The target as it stands there, with the order of its key.
    key_equal: String,
    insert: String,
    /// What follows the rows of an insertion if their keys may be there.
    or_update: String,
}

/// What came of updates.
enum Updated {
    /// They were done, but for those of these keys.
    All(Vec<Key>),
    /// A row has what is unique in another one.
    KeptOut,
}

/// Why rows were not written.
enum Failure {
    /// The driver's error: some row of the statement.
    Driver(sqlx::Error),
    /// A value that does not fit.
    Unfit(Error),
}

impl Writer {
    pub(crate) async fn open(connection: &mut SqliteConnection, route: &Route) -> Result<Self> {
        // Keys come in the order of the source's key.
        let mut target = Table { key: route.shape.table.key.clone(), ..route.target.as_ref().clone() };
        let found = describe::table(connection, &target.name).await??;
        // A column's own comparison may be coarser than that of its key.
        for column in target.columns.iter_mut().filter(|column| collation(&column.native).is_none()) {
            if let Some(at) = found.table.position(&column.name) {
                column.native.clone_from(&found.table.columns[at].native);
            }
        }
        let mut affinities = Vec::new();
        let mut lacks = None;
        for column in &target.columns {
            match found.affinity(&column.name) {
                Some(affinity) => affinities.push(affinity),
                None => lacks = Some(column.name.clone()),
            }
        }
        // OR ABORT: what the table itself says of conflicts may be to remove the other row, or to drop this one.
        let columns = join(target.columns.iter().map(|column| name(&column.name)));
        let insert = format!("INSERT OR ABORT INTO {} ({columns}) VALUES ", name(&target.name.name));
        // The rowid cannot change when it is the same; other keys may be the same and have other bytes.
        let keeps = |at: usize| target.key.contains(&at) && found.key_is_rowid;
        let set = join(
            target
                .columns
                .iter()
                .enumerate()
                .filter(|(at, _)| !keeps(*at))
                .map(|(_, column)| format!("{0} = excluded.{0}", name(&column.name))),
        );
        let key = join(target.key_columns().map(|column| name(&column.name)));
        let or_update = if set.is_empty() {
            format!(" ON CONFLICT ({key}) DO NOTHING")
        } else {
            format!(" ON CONFLICT ({key}) DO UPDATE SET {set}")
        };
        Ok(Self {
            route: route.clone(),
            affinities,
            lacks,
            key_equal: key_equal("t", &target),
            insert,
            or_update,
        })
    }

    /// Does what the batch says. Returns the keys of rows that are not there then and should be.
    pub(crate) async fn write(
        &self,
        connection: &mut SqliteConnection,
        batch: &TableBatch,
    ) -> Result<Vec<Key>> {
        if batch.truncate {
            let text = format!("DELETE FROM {}", name(&self.route.target.name.name));
            let done = sqlx::query(sql(text)).execute(&mut *connection).await.during("empty a table");
            done.map_err(|error| error.with("table", &self.route.target.name))?;
        }
        self.delete(connection, &batch.deletes).await?;
        if self.upsert(connection, &batch.upserts, batch.fresh).await? {
            match self.update(connection, batch, false).await? {
                Updated::All(holes) => return Ok(holes),
                Updated::KeptOut => {}
            }
        }
        self.write_apart(connection, batch).await
    }

    /// The slow way, where rows are in each other's way: what they were before goes first, since all of it is in the
    /// batch. A row that is kept out even so is a hole; a row that is not in the batch stays.
    async fn write_apart(&self, connection: &mut SqliteConnection, batch: &TableBatch) -> Result<Vec<Key>> {
        for row in batch.upserts.iter() {
            self.delete_one(connection, self.route.shape.cut_key(row).row()).await?;
        }
        let Updated::All(mut holes) = self.update(connection, batch, true).await? else {
            return Err(Error::new(code::INTERNAL, "updates were not done one by one"));
        };
        for row in batch.upserts.iter() {
            let key = self.route.shape.cut_key(row);
            let mut arguments = SqliteArguments::default();
            self.bind_row(&mut arguments, row)?;
            let text =
                format!("{}({}) ON CONFLICT DO NOTHING", self.insert, question_marks(self.affinities.len()));
            let done = sqlx::query_with(sql(text), arguments).execute(&mut *connection).await;
            let done = done.map_err(|e| self.blame(from_driver(e, "write a row"), key.row()))?;
            if done.rows_affected() == 0 {
                holes.push(key);
            }
        }
        Ok(holes)
    }

    async fn delete(&self, connection: &mut SqliteConnection, keys: &Rows) -> Result<()> {
        for key in keys.iter() {
            self.delete_one(connection, key).await?;
        }
        Ok(())
    }

    async fn delete_one(&self, connection: &mut SqliteConnection, key: Row<'_>) -> Result<()> {
        let text =
            format!("DELETE FROM {} AS t WHERE {}", name(&self.route.target.name.name), self.key_equal);
        let mut arguments = SqliteArguments::default();
        self.bind_key(&mut arguments, key)?;
        sqlx::query_with(sql(text), arguments)
            .execute(connection)
            .await
            .map_err(|e| self.blame(from_driver(e, "delete a row"), key))?;
        Ok(())
    }

    /// Writes full rows; false if one breaks a constraint.
    async fn upsert(&self, connection: &mut SqliteConnection, rows: &Rows, fresh: bool) -> Result<bool> {
        let width = self.affinities.len().max(1);
        let mut at = 0;
        let mut may_be_new = fresh;
        while at < rows.len() {
            let left = rows.len() - at;
            let step =
                STEPS.into_iter().find(|step| *step <= left && step * width <= VALUES_LIMIT).unwrap_or(1);
            let chunk = at..at + step;
            let mut written = self.insert(connection, rows, chunk.clone(), !may_be_new).await;
            if may_be_new && matches!(&written, Err(Failure::Driver(e)) if is_unique_violation(e)) {
                // Some are there already: it is not worth trying again in this batch.
                may_be_new = false;
                written = self.insert(connection, rows, chunk.clone(), true).await;
            }
            match written {
                Ok(()) => {}
                Err(Failure::Driver(e)) if is_constraint(&e) => return Ok(false),
                Err(Failure::Driver(e)) => {
                    return Err(from_driver(e, "write rows").with("table", &self.route.target.name));
                }
                Err(Failure::Unfit(e)) => return Err(e),
            }
            at += step;
        }
        Ok(true)
    }

    async fn insert(
        &self,
        connection: &mut SqliteConnection,
        rows: &Rows,
        chunk: std::ops::Range<usize>,
        or_update: bool,
    ) -> Result<(), Failure> {
        let one = format!("({})", question_marks(self.affinities.len()));
        let mut text = self.insert.clone();
        text.push_str(&join(chunk.clone().map(|_| one.clone())));
        if or_update {
            text.push_str(&self.or_update);
        }
        let mut arguments = SqliteArguments::default();
        for row in chunk {
            self.bind_row(&mut arguments, rows.row(row)).map_err(Failure::Unfit)?;
        }
        sqlx::query_with(sql(text), arguments).execute(connection).await.map_err(Failure::Driver)?;
        Ok(())
    }

    /// Writes the cells that were sent. A row that another one keeps out ends it, or is removed if they are written
    /// `apart`.
    async fn update(
        &self,
        connection: &mut SqliteConnection,
        batch: &TableBatch,
        apart: bool,
    ) -> Result<Updated> {
        let target = &self.route.target;
        let key_places = &self.route.shape.table.key;
        let mut holes = Vec::new();
        for row in batch.updates.iter() {
            let key = self.route.shape.cut_key(row);
            let sent: Vec<usize> = (0..self.affinities.len())
                .filter(|at| !key_places.contains(at) && row.cell(*at) != Cell::Unchanged)
                .collect();
            let set = if sent.is_empty() {
                // Whether the row is there has to be found out all the same.
                key_places.iter().map(|at| format!("{0} = t.{0}", name(&target.columns[*at].name))).collect()
            } else {
                sent.iter().map(|at| format!("{} = ?", name(&target.columns[*at].name))).collect::<Vec<_>>()
            };
            let table = name(&target.name.name);
            let text =
                format!("UPDATE OR ABORT {table} AS t SET {} WHERE {}", set.join(", "), self.key_equal);
            let mut arguments = SqliteArguments::default();
            for at in sent {
                self.bind_cell(&mut arguments, at, row.cell(at), key.row())?;
            }
            self.bind_key(&mut arguments, key.row())?;
            let done = sqlx::query_with(sql(text), arguments).execute(&mut *connection).await;
            if done.as_ref().is_err_and(is_unique_violation) {
                if !apart {
                    return Ok(Updated::KeptOut);
                }
                self.delete_one(connection, key.row()).await?;
                holes.push(key);
                continue;
            }
            let done = done.map_err(|e| self.blame(from_driver(e, "update a row"), key.row()))?;
            if done.rows_affected() == 0 && !batch.crawling {
                holes.push(key);
            }
        }
        Ok(Updated::All(holes))
    }

    fn bind_row(&self, arguments: &mut SqliteArguments, row: Row<'_>) -> Result<()> {
        for (at, cell) in row.cells().enumerate() {
            let bound = self.try_bind(arguments, at, cell);
            if !matches!(bound, Ok(Ok(()))) {
                let key = self.route.shape.cut_key(row);
                self.check(bound, at, cell, key.row())?;
            }
        }
        Ok(())
    }

    fn bind_cell(
        &self,
        arguments: &mut SqliteArguments,
        at: usize,
        cell: Cell<'_>,
        key: Row<'_>,
    ) -> Result<()> {
        self.check(self.try_bind(arguments, at, cell), at, cell, key)
    }

    /// Says of what could not be bound where it is.
    fn check(
        &self,
        bound: Result<Result<(), &'static str>>,
        at: usize,
        cell: Cell<'_>,
        key: Row<'_>,
    ) -> Result<()> {
        let bound = bound.map_err(|error| self.blame(error, key))?;
        bound.map_err(|reason| self.unfit(at, cell, reason, key))
    }

    fn bind_key(&self, arguments: &mut SqliteArguments, key: Row<'_>) -> Result<()> {
        for (&at, cell) in self.route.shape.table.key.iter().zip(key.cells()) {
            self.bind_cell(arguments, at, cell, key)?;
        }
        Ok(())
    }

    fn try_bind(
        &self,
        arguments: &mut SqliteArguments,
        at: usize,
        cell: Cell<'_>,
    ) -> Result<Result<(), &'static str>> {
        let Some(value) = self.route.shape.value(at, cell)? else {
            return Err(Error::new(code::ROW_HOLE, "a full row has a cell that was not sent"));
        };
        Ok(cells::bind(arguments, &self.route.target.columns[at], value, self.affinities[at]))
    }

    fn unfit(&self, at: usize, cell: Cell<'_>, reason: &'static str, key: Row<'_>) -> Error {
        let column = self.route.target.columns.get(at).map_or("?", |column| column.name.as_str());
        let kind = self.route.shape.value(at, cell).ok().flatten().map_or("value", |value| value.kind());
        let message = format!("a {kind} does not fit {}.{column}: {reason}", self.route.target.name);
        self.blame(Error::new(code::VALUE_UNFIT, message).with("column", column), key)
    }

    /// Names the table and the row.
    fn blame(&self, error: Error, key: Row<'_>) -> Error {
        error.with("table", &self.route.target.name).with("key", self.route.shape.show_key(key))
    }
}
