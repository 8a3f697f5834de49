//! Reads the schema.

use std::collections::BTreeMap;

use sqlx::{Row as _, SqliteConnection};
use tidegate_core::error::code;
use tidegate_core::port::{Obstacle, Selection};
use tidegate_core::{Column, Error, Result, Table, TableName, Type};

use crate::cells::Affinity;
use crate::error::During;
use crate::journal;
use crate::statement::{BINARY, literal, name, sql};

/// A unique index, or the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) name: String,
    /// Its columns with their collations; `None` if one of them is an expression.
    pub(crate) columns: Option<Vec<(String, String)>>,
    pub(crate) is_key: bool,
    pub(crate) is_partial: bool,
}

/// A table as it stands in the file.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) table: Table,
    /// All unique indexes; not the key that is the rowid itself.
    pub(crate) unique: Vec<Index>,
    /// The key is the rowid.
    pub(crate) key_is_rowid: bool,
    /// What a rowid is called that is not the key.
    pub(crate) rowid: Option<&'static str>,
    /// What columns that are NOT NULL hold where `REPLACE` was given a null, as an expression; `None` if only a program
    /// knows.
    pub(crate) defaults: BTreeMap<String, Option<String>>,
}

impl Described {
    pub(crate) fn affinity(&self, column: &str) -> Option<Affinity> {
        let at = self.table.position(column)?;
        Some(Affinity::of(&self.table.columns[at].native))
    }

    /// What an index is over, if no trigger can know the rows that hold a new row's values in it. A generated column is
    /// computed for it while columns that the trigger does not name, and defaults, are null still.
    pub(crate) fn unseen(&self, index: &Index) -> Option<&'static str> {
        let Some(columns) = &index.columns else { return Some("an expression") };
        columns.iter().find_map(|(column, _)| match self.defaults.get(column) {
            _ if self.table.position(column).is_none() => Some("a generated column"),
            Some(None) => Some("a column whose default is computed by functions of a program"),
            _ => None,
        })
    }
}

/// The tables of a selection, and what stands in their way.
pub(crate) async fn describe(
    connection: &mut SqliteConnection,
    which: &Selection,
) -> Result<(Vec<Described>, Vec<Obstacle>)> {
    let names = match which {
        Selection::These(names) => names.clone(),
        Selection::All => all(connection).await?,
    };
    let (mut tables, mut obstacles) = (Vec::new(), Vec::new());
    for name in names {
        match table(connection, &name).await? {
            Ok(mut described) => {
                described.table.native_id = journal::standing(connection, &described).await?.generation;
                obstacles.extend(obstacles_of(&described));
                obstacles.extend(null_key(connection, &described.table).await?);
                tables.push(described);
            }
            Err(error) => obstacles.push(Obstacle { table: Some(name), column: None, error }),
        }
    }
    Ok((tables, obstacles))
}

async fn all(connection: &mut SqliteConnection) -> Result<Vec<TableName>> {
    // A shadow table belongs to the virtual table that is named beside it.
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'virtual')
         AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE 'tidegate\\_%' ESCAPE '\\' ORDER BY name",
    )
    .fetch_all(connection)
    .await
    .during("list tables")?;
    Ok(names.into_iter().map(|name| TableName::new("", name)).collect())
}

/// A table, or why it cannot be described.
pub(crate) async fn table(
    connection: &mut SqliteConnection,
    wanted: &TableName,
) -> Result<Result<Described, Error>> {
    // Whoever asks takes what stands before a dot for a schema: it may be a part of the name.
    let bare = if wanted.schema == "main" { wanted.name.clone() } else { wanted.to_string() };
    let found = sqlx::query(
        "SELECT name, type, wr, strict FROM pragma_table_list WHERE schema = 'main'
         AND name COLLATE NOCASE IN (?1, ?2) ORDER BY name = ?1 COLLATE NOCASE DESC LIMIT 1",
    )
    .bind(wanted.to_string())
    .bind(bare)
    .fetch_optional(&mut *connection)
    .await
    .during("look for a table")?;
    let missing =
        || Error::new(code::TABLE_MISSING, format!("there is no table {wanted}")).with("table", wanted);
    let Some(found) = found else { return Ok(Err(missing())) };
    let (found_name, kind): (String, String) = (found.get(0), found.get(1));
    if kind != "table" {
        let error =
            Error::new(code::CAPABILITY_MISSING, format!("{wanted} is a {kind} table and is not moved"))
                .with("table", wanted)
                .hint("leave it out (--exclude), and create it anew in the target");
        return Ok(Err(error));
    }
    let (without_rowid, is_strict): (bool, bool) = (found.get(2), found.get(3));
    Ok(Ok(read(connection, found_name, !without_rowid, is_strict).await?))
}

async fn read(
    connection: &mut SqliteConnection,
    table_name: String,
    has_rowid: bool,
    is_strict: bool,
) -> Result<Described> {
    let rows =
        sqlx::query("SELECT name, type, \"notnull\", pk, hidden, dflt_value FROM pragma_table_xinfo(?)")
            .bind(table_name.clone())
            .fetch_all(&mut *connection)
            .await
            .during("read columns")?;
    let (mut columns, mut primary) = (Vec::new(), Vec::new());
    let mut rowid = ["rowid", "_rowid_", "oid"].into_iter().filter(|_| has_rowid).collect::<Vec<_>>();
    let mut defaults = BTreeMap::new();
    for row in rows {
        let (column, declared): (String, String) = (row.get(0), row.get(1));
        rowid.retain(|name| !column.eq_ignore_ascii_case(name));
        let (not_null, pk, hidden): (bool, i64, i64) = (row.get(2), row.get(3), row.get(4));
        let default: Option<String> = row.get(5);
        if hidden != 0 {
            continue;
        }
        if let Some(text) = default.as_deref().filter(|_| not_null) {
            defaults.insert(column.clone(), substitute(connection, text).await?);
        }
        if pk > 0 {
            primary.push((pk, columns.len()));
        }
        // Elsewhere ANY would be a number's type; there, no type at all keeps every value.
        let native = if is_strict && declared.eq_ignore_ascii_case("any") { String::new() } else { declared };
        let affinity = Affinity::of(&native);
        columns.push(Column {
            kind: kind(affinity, &native),
            native_id: affinity as u32,
            native,
            nullable: !not_null,
            has_default: default.is_some_and(|text| !text.eq_ignore_ascii_case("null")),
            ..Column::new(column, Type::Any)
        });
    }
    primary.sort_unstable();
    let unique = indexes(connection, &table_name).await?;
    let mut key: Vec<usize> = primary.iter().map(|(_, at)| *at).collect();
    let key_is_rowid = key.len() == 1 && has_rowid && !unique.iter().any(|index| index.is_key);
    if key_is_rowid {
        columns[key[0]].nullable = false;
    } else {
        let index = match key.is_empty() {
            true => unique.iter().find(|index| !index.is_partial && places(index, &columns, true).is_some()),
            false => unique.iter().find(|index| index.is_key),
        };
        if let Some(index) = index {
            key = places(index, &columns, false).unwrap_or(key);
            for (column, collation) in index.columns.iter().flatten() {
                let Some(at) = columns.iter().position(|c| c.name == *column) else { continue };
                // What is said nowhere is the column's own.
                if !collation.eq_ignore_ascii_case(BINARY)
                    || !is_binary(connection, &table_name, column).await?
                {
                    columns[at].native = format!("{} COLLATE {collation}", columns[at].native);
                }
            }
        }
    }
    let rows_estimated = rows_estimated(connection, &table_name, has_rowid).await?;
    let table = Table {
        name: TableName::new("", table_name),
        native_id: 0,
        columns,
        key,
        rows_estimated,
        bytes_estimated: 0,
    };
    let rowid = rowid.first().copied().filter(|_| !key_is_rowid);
    Ok(Described { table, unique, key_is_rowid, rowid, defaults })
}

/// A default as an expression that means the same anywhere; `None` if it does not here. A bare name is a text there, and
/// a column elsewhere; of an expression the parentheses are not kept, but a comment at its end is.
async fn substitute(connection: &mut SqliteConnection, text: &str) -> Result<Option<String>> {
    let word = |is: &str| text.eq_ignore_ascii_case(is);
    let unquoted = match text.as_bytes() {
        [quote @ (b'"' | b'`'), inner @ .., _] => {
            let quote = char::from(*quote);
            let inner = String::from_utf8_lossy(inner);
            Some(inner.replace(&format!("{quote}{quote}"), &quote.to_string()))
        }
        [b'[', inner @ .., _] => Some(String::from_utf8_lossy(inner).into_owned()),
        _ if word("true") => return Ok(Some("1".to_owned())),
        _ if word("false") => return Ok(Some("0".to_owned())),
        _ if ["null", "current_time", "current_date", "current_timestamp"].into_iter().any(word) => None,
        [first, ..] if !first.is_ascii_digit() && text.chars().all(is_of_names) => Some(text.to_owned()),
        _ => None,
    };
    if let Some(text) = unquoted {
        return Ok(Some(literal(&text)));
    }
    let expression = format!("({text}\n)");
    let prepared = sqlx::query(sql(format!("EXPLAIN SELECT {expression}"))).fetch_all(connection).await;
    match prepared {
        // SQLITE_ERROR: there is no such function.
        Err(error) if error.as_database_error().is_some_and(|e| e.code().as_deref() == Some("1")) => Ok(None),
        prepared => prepared.during("read a default").map(|_| Some(expression)),
    }
}

/// Whether SQLite takes a character for one of a name that is not quoted.
fn is_of_names(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '$') || !character.is_ascii()
}

/// Whether a column is compared byte by byte unless it is said otherwise. No pragma tells; a text in its place does.
async fn is_binary(connection: &mut SqliteConnection, table: &str, column: &str) -> Result<bool> {
    let text = format!(
        "SELECT t.{0} <> 'A' AND t.{0} <> 'a ' FROM
         (SELECT t.{0} FROM {1} AS t WHERE 0 UNION ALL SELECT 'a') AS t",
        name(column),
        name(table)
    );
    let found: Result<bool, sqlx::Error> = sqlx::query_scalar(sql(text)).fetch_one(connection).await;
    match found {
        // A collation that a program defines.
        Err(error) if error.as_database_error().is_some_and(|e| e.message().contains("collation")) => {
            Ok(false)
        }
        found => found.during("read a collation"),
    }
}

fn kind(affinity: Affinity, declared: &str) -> Type {
    match affinity {
        Affinity::Integer => Type::Int { bits: 64 },
        Affinity::Text => Type::Text,
        Affinity::Real => Type::Float { bits: 64 },
        Affinity::Blob if !declared.is_empty() => Type::Bytes,
        Affinity::Blob | Affinity::Numeric => Type::Any,
    }
}

/// Where the columns of an index stand; `None` if it is not made of plain columns that travel.
fn places(index: &Index, columns: &[Column], only_not_null: bool) -> Option<Vec<usize>> {
    let place = |(column, _): &(String, String)| {
        columns.iter().position(|c| c.name == *column && !(only_not_null && c.nullable))
    };
    index.columns.as_ref()?.iter().map(place).collect()
}

async fn indexes(connection: &mut SqliteConnection, table_name: &str) -> Result<Vec<Index>> {
    let rows =
        sqlx::query("SELECT name, origin, partial FROM pragma_index_list(?) WHERE \"unique\" ORDER BY name")
            .bind(table_name.to_owned())
            .fetch_all(&mut *connection)
            .await
            .during("list indexes")?;
    let mut unique = Vec::new();
    for row in rows {
        let (name, origin): (String, String) = (row.get(0), row.get(1));
        let parts: Vec<(Option<String>, Option<String>)> =
            sqlx::query_as("SELECT name, coll FROM pragma_index_xinfo(?) WHERE \"key\" ORDER BY seqno")
                .bind(name.clone())
                .fetch_all(&mut *connection)
                .await
                .during("read an index")?;
        let part = |(column, collation): (Option<String>, Option<String>)| {
            Some((column?, collation.unwrap_or_else(|| BINARY.to_owned())))
        };
        unique.push(Index {
            name,
            columns: parts.into_iter().map(part).collect(),
            is_key: origin == "pk",
            is_partial: row.get(2),
        });
    }
    Ok(unique)
}

/// The span of the rowids; where there are none, a count.
async fn rows_estimated(connection: &mut SqliteConnection, table_name: &str, has_rowid: bool) -> Result<u64> {
    let table = name(table_name);
    let text = if has_rowid {
        format!(
            "SELECT coalesce((SELECT max(_rowid_) FROM {table}) - (SELECT min(_rowid_) FROM {table}) + 1, 0)"
        )
    } else {
        format!("SELECT count(*) FROM {table}")
    };
    // A column of that name may hold anything; then there is no estimate.
    let count: Option<i64> = sqlx::query_scalar(sql(text)).fetch_one(connection).await.unwrap_or(None);
    Ok(u64::try_from(count.unwrap_or(0)).unwrap_or(0))
}

/// What stands in the way of reading a table as a source, whatever its rows are.
pub(crate) fn obstacles_of(described: &Described) -> Vec<Obstacle> {
    let table = &described.table;
    let mut obstacles = Vec::new();
    let mut add = |column: Option<&str>, error: Error| {
        obstacles.push(Obstacle {
            table: Some(table.name.clone()),
            column: column.map(str::to_owned),
            error: error.with("table", &table.name),
        });
    };
    if table.key.is_empty() {
        let message =
            format!("table {} has no primary key, nor a unique index over NOT NULL columns", table.name);
        add(
            None,
            Error::new(code::KEY_MISSING, message)
                .hint("add a primary key, or leave the table out (--exclude)"),
        );
    }
    for column in table.key_columns() {
        if let Some(collation) = crate::statement::collation(&column.native)
            && ![BINARY, "NOCASE", "RTRIM"].iter().any(|known| collation.eq_ignore_ascii_case(known))
        {
            let message = format!("the key {}.{} is ordered by {collation}", table.name, column.name);
            add(
                Some(&column.name),
                Error::new(code::KEY_UNFIT, message)
                    .hint("an order that a program defines is known to that program alone"),
            );
        }
    }
    for (index, what) in described.unique.iter().filter_map(|i| Some((i, described.unseen(i)?))) {
        let message = format!("the unique index {} of {} is over {what}", index.name, table.name);
        add(
            None,
            Error::new(code::CAPABILITY_MISSING, message).hint(
                "rows that REPLACE removes by it would not be seen; make it an index over plain columns",
            ),
        );
    }
    obstacles
}

/// A column of the key that is null in some rows. Such a row is found by no key.
pub(crate) async fn null_key(connection: &mut SqliteConnection, table: &Table) -> Result<Option<Obstacle>> {
    for column in table.key_columns().filter(|column| column.nullable) {
        let (from, key) = (name(&table.name.name), name(&column.name));
        let text = format!("SELECT EXISTS(SELECT 1 FROM {from} AS t WHERE t.{key} IS NULL)");
        let has_null = sqlx::query_scalar(sql(text)).fetch_one(&mut *connection).await;
        if has_null.during("look for null keys")? {
            let message = format!("the key {}.{} is null in some rows", table.name, column.name);
            let error = Error::new(code::KEY_UNFIT, message)
                .with("table", &table.name)
                .hint("give those rows a key, or leave the table out (--exclude)");
            let (table, column) = (Some(table.name.clone()), Some(column.name.clone()));
            return Ok(Some(Obstacle { table, column, error }));
        }
    }
    Ok(None)
}
