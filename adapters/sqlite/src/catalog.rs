//! What the file holds, and what is made and removed there.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{Connection, SqliteConnection};
use tidegate_core::error::code;
use tidegate_core::port::{Catalog, Conversions, Fit, Identity, NOT_EMPTY, Obstacle, Selection};
use tidegate_core::{
    Canonical, Codec, Column, Encoding, Error, FlowName, Position, Result, Table, TableName, Value,
};

use crate::cells::{Affinity, stored};
use crate::connect;
use crate::describe::{self, Described, Index};
use crate::error::During;
use crate::statement::{BINARY, collation, join, name, sql};
use crate::store::SqliteStore;
use crate::{fit, journal};

#[async_trait]
impl Catalog for SqliteStore {
    async fn identity(&self) -> Result<Identity> {
        let mut connection = connect::reader(self.path()).await?;
        let identity = self.identity_by(&mut connection).await?;
        connection.close().await.during("close")?;
        Ok(identity)
    }

    async fn describe(&self, which: &Selection) -> Result<(Vec<Table>, Vec<Obstacle>)> {
        let mut connection = connect::reader(self.path()).await?;
        let mut tx = connection.begin().await.during("begin to describe")?;
        let (tables, mut obstacles) = describe::describe(&mut tx, which).await?;
        drop(tx);
        match connect::require_wal(&mut connection).await {
            Err(error) if error.code() == code::JOURNAL_MODE => {
                obstacles.insert(0, Obstacle { table: None, column: None, error });
            }
            other => other?,
        }
        connection.close().await.during("close")?;
        Ok((tables.into_iter().map(|described| described.table).collect(), obstacles))
    }

    fn codec(&self, _: &Table) -> Arc<dyn Codec> {
        Arc::new(Canonical)
    }

    async fn capture(&self, flow: &FlowName, tables: &[Arc<Table>]) -> Result<Position> {
        journal::capture(self, flow, tables).await
    }

    async fn sealed(&self, flow: &FlowName) -> Result<Option<String>> {
        journal::sealed(self, flow).await
    }

    async fn seal(&self, flow: &FlowName, was: Option<&str>, seal: &str) -> Result<bool> {
        journal::seal(self, flow, was, seal).await
    }

    async fn clean(&self, flow: &FlowName) -> Result<()> {
        journal::clean(self, flow).await
    }

    fn accepts(&self, encoding: Encoding) -> bool {
        encoding == Encoding::CANONICAL
    }

    fn stored<'a>(&self, column: &Column, value: Value<'a>) -> Result<Value<'a>> {
        stored(column, value)
            .map_err(|reason| Error::new(code::VALUE_UNFIT, reason).with("column", &column.name))
    }

    fn fit(&self, column: &Column, encoding: Encoding, conversions: &Conversions) -> Result<Fit> {
        fit::fit(column, encoding, conversions)
    }

    fn fold(&self, name: &str) -> String {
        name.to_ascii_lowercase()
    }

    fn name_for(&self, source: &TableName) -> TableName {
        TableName::new("", source.name.clone())
    }

    async fn inspect(&self, tables: &[Arc<Table>], allow_non_empty: bool) -> Result<Vec<Obstacle>> {
        let mut obstacles = Vec::new();
        for table in tables.iter().filter(|table| is_reserved(&table.name.name)) {
            let what = format!(
                "a table cannot have the name {}: SQLite, or tidegate, keeps it for itself",
                table.name
            );
            let error = Error::new(code::MAPPING_INVALID, what).hint("give it another name with --map");
            obstacles.push(Obstacle { table: Some(table.name.clone()), column: None, error });
        }
        if !self.path().exists() {
            let refused = connect::require_folder(self.path()).err();
            obstacles.extend(refused.map(|error| Obstacle { table: None, column: None, error }));
            return Ok(obstacles);
        }
        let mut connection = connect::reader(self.path()).await?;
        for table in tables {
            let found = match describe::table(&mut connection, &table.name).await? {
                Ok(found) => found,
                Err(error) if error.code() == code::TABLE_MISSING => continue,
                Err(error) => {
                    obstacles.push(Obstacle { table: Some(table.name.clone()), column: None, error });
                    continue;
                }
            };
            if let Some((column, error)) = difference(table, &found) {
                obstacles.push(Obstacle { table: Some(table.name.clone()), column, error });
            } else if !allow_non_empty && !is_empty(&mut connection, table).await? {
                let error =
                    Error::new(code::TARGET_NOT_EMPTY, format!("table {} has rows already", table.name))
                        .hint(NOT_EMPTY);
                obstacles.push(Obstacle { table: Some(table.name.clone()), column: None, error });
            }
        }
        connection.close().await.during("close")?;
        Ok(obstacles)
    }

    async fn create(&self, tables: &[Arc<Table>]) -> Result<()> {
        let mut connection = connect::creator(self.path()).await?;
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.during("begin to create")?;
        for table in tables {
            match describe::table(&mut tx, &table.name).await? {
                Ok(found) => {
                    if let Some((_, error)) = difference(table, &found) {
                        return Err(error);
                    }
                }
                Err(error) if error.code() == code::TABLE_MISSING => {
                    sqlx::query(sql(definition(table))).execute(&mut *tx).await.during("create a table")?;
                }
                Err(error) => return Err(error),
            }
        }
        tx.commit().await.during("commit the tables")?;
        connection.close().await.during("close")
    }
    async fn extend(&self, tables: &[Arc<Table>]) -> Result<()> {
        let mut connection = connect::writer(self.path()).await?;
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.during("begin to add columns")?;
        for table in tables {
            let found = describe::table(&mut tx, &table.name).await??;
            for column in table.columns.iter().filter(|column| found.affinity(&column.name).is_none()) {
                let text = format!(
                    "ALTER TABLE {} ADD COLUMN {} {}",
                    name(&table.name.name),
                    name(&column.name),
                    column.native
                );
                sqlx::query(sql(text)).execute(&mut *tx).await.during("add a column")?;
            }
            let found = describe::table(&mut tx, &table.name).await??;
            if let Some((_, error)) = difference(table, &found) {
                return Err(error);
            }
        }
        tx.commit().await.during("commit the columns")?;
        connection.close().await.during("close")
    }
}

/// Whether a name is one of SQLite's own tables, or of ours.
fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("sqlite_") || name.starts_with("tidegate_")
}

async fn is_empty(connection: &mut SqliteConnection, table: &Table) -> Result<bool> {
    let text = format!("SELECT NOT EXISTS(SELECT 1 FROM {})", name(&table.name.name));
    sqlx::query_scalar(sql(text)).fetch_one(connection).await.during("look for rows")
}

/// Columns, not null, key.
fn definition(table: &Table) -> String {
    let column = |(at, column): (usize, &Column)| {
        let not_null = if !column.nullable || table.key.contains(&at) { " NOT NULL" } else { "" };
        format!("{} {}{not_null}", name(&column.name), column.native)
    };
    let columns = join(table.columns.iter().enumerate().map(column));
    let key = join(table.key_columns().map(|column| name(&column.name)));
    format!("CREATE TABLE {} ({columns}, PRIMARY KEY ({key}))", name(&table.name.name))
}

/// Why a table that is there cannot take the rows of the one that is wanted.
fn difference(wanted: &Table, found: &Described) -> Option<(Option<String>, Error)> {
    let differs = |column: Option<&str>, what: String| {
        let error = Error::new(code::TARGET_DIFFERS, format!("table {} {what}", wanted.name))
            .with("table", &wanted.name)
            .hint("rename it, or leave it out");
        Some((column.map(str::to_owned), error))
    };
    for column in &wanted.columns {
        match found.affinity(&column.name) {
            None => return differs(Some(&column.name), format!("has no column {}", column.name)),
            Some(affinity) if affinity != Affinity::of(&column.native) => {
                let here = found.table.columns.iter().find(|c| c.name == column.name);
                let here = match here.map_or("", |c| &c.native) {
                    "" => "no type".to_owned(),
                    native => format!("the type {native}"),
                };
                let what = format!("has {here} for {}, and not {}", column.name, column.native);
                return differs(Some(&column.name), what);
            }
            Some(_) => {}
        }
    }
    if let Some(other) = found.table.columns.iter().find(|c| wanted.position(&c.name).is_none()) {
        return differs(Some(&other.name), format!("has the column {} more", other.name));
    }
    if !keys_of(wanted, found).any(|_| true) && !is_key(wanted, found.table.key_columns().map(|c| &c.name)) {
        let key: Vec<_> = wanted.key_columns().map(|column| column.name.as_str()).collect();
        return differs(None, format!("has not the key {}", key.join(", ")));
    }
    let coarse =
        keys_of(wanted, found).flat_map(|index| index.columns.iter().flatten()).find(|(column, is)| {
            let wanted = wanted.columns.iter().find(|c| c.name == *column);
            let wanted = wanted.and_then(|c| collation(&c.native)).unwrap_or(BINARY);
            !is.eq_ignore_ascii_case(BINARY) && !is.eq_ignore_ascii_case(wanted)
        });
    if let Some((column, is)) = coarse {
        let error = Error::new(
            code::TARGET_DIFFERS,
            format!(
                "table {} compares the key {column} by {is}: different keys would be one row",
                wanted.name
            ),
        )
        .with("table", &wanted.name)
        .hint(format!("make {column} COLLATE BINARY there, or drop the table and let it be created"));
        return Some((Some(column.clone()), error));
    }
    None
}

/// The unique indexes of the table that is there over the key of the one that is wanted. A key that is the rowid has
/// none.
fn keys_of<'a>(wanted: &'a Table, found: &'a Described) -> impl Iterator<Item = &'a Index> {
    found.unique.iter().filter(|index| !index.is_partial).filter(|index| {
        let columns = index.columns.as_ref();
        columns.is_some_and(|columns| is_key(wanted, columns.iter().map(|(name, _)| name)))
    })
}

/// Whether these columns are the key of the table, in whatever order.
fn is_key<'a>(table: &'a Table, columns: impl Iterator<Item = &'a String>) -> bool {
    let key: BTreeSet<&String> = table.key_columns().map(|column| &column.name).collect();
    columns.collect::<BTreeSet<_>>() == key
}
