//! What the database holds, and what is made there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use mongodb::bson::{Document, doc};
use mongodb::options::ReadConcern;
use mongodb::{Collection, Database};
use tidegate_core::error::code;
use tidegate_core::port::{Catalog, Conversions, Fit, Identity, NOT_EMPTY, Obstacle, Selection};
use tidegate_core::{
    Codec, Column, Encoding, Error, FlowName, Position, Result, Table, TableName, Type, Value,
};

use crate::error::During;
use crate::store::{MongoStore, OURS};
use crate::{codec, documents, fit, stream};

/// What collections were created for, by their names.
const TABLES: &str = "tidegate.tables";

/// What forgets its oldest documents by itself; neither snapshots nor transactions are to be had of it.
const CAPPED: &str = "capped collection";

/// How long the name of a collection may be, with that of its database and a dot before it.
const NAMESPACE_BYTES: usize = 255;

/// The document that is a flow's seal, and its field.
const SEAL: &str = "seal";
/// How long the members may take to agree that the primary is one.
const SEAL_WAIT: Duration = Duration::from_secs(10);

/// A collection a flow, so that it goes with the flow.
fn seals(database: &Database, flow: &FlowName) -> Collection<Document> {
    database.collection(&format!("{OURS}seal.{flow}"))
}

/// A collection as the server lists it.
struct Listed {
    kind: String,
    id: u32,
    has_collation: bool,
}

impl Listed {
    /// Why no rows can be written to it as to a collection that was made for them.
    fn cannot_be_target(&self) -> Option<String> {
        if self.kind != "collection" {
            return Some(format!("is a {}", self.kind));
        }
        self.has_collation.then(|| "has a collation".to_owned())
    }
}

async fn list(database: &Database) -> Result<BTreeMap<String, Listed>> {
    let mut cursor = database.list_collections().await.during("list collections")?;
    let mut found = BTreeMap::new();
    while let Some(one) = cursor.try_next().await.during("list collections")? {
        let kind = match one.collection_type {
            mongodb::results::CollectionType::Collection if one.options.capped == Some(true) => CAPPED,
            mongodb::results::CollectionType::Collection => "collection",
            mongodb::results::CollectionType::View => "view",
            _ => "time series",
        };
        if one.name.starts_with("system.") || one.name.starts_with(OURS) {
            continue;
        }
        let id = one.info.uuid.as_ref().map_or(0, |uuid| number(&uuid.bytes));
        let listed = Listed { kind: kind.to_owned(), id, has_collation: one.options.collation.is_some() };
        found.insert(one.name, listed);
    }
    Ok(found)
}

/// The number of a collection: the beginning of its UUID, which is random. Another collection of the same name has another.
pub(crate) fn number(uuid: &[u8]) -> u32 {
    uuid.first_chunk().map_or(0, |first| u32::from_be_bytes(*first).max(1))
}

/// The shape that a collection was created with, if it was created for a table.
async fn created_as(database: &Database, name: &str) -> Result<Option<Table>> {
    let found = database
        .collection::<Document>(TABLES)
        .find_one(doc! { "_id": name })
        .await
        .during("read a table's shape")?;
    let Some(found) = found else { return Ok(None) };
    let text = found.get_str("shape").unwrap_or_default();
    let table = serde_json::from_str(text).map_err(|e| {
        Error::new(code::STATE_NEWER, format!("the shape of {name} cannot be read")).because(e)
    })?;
    Ok(Some(table))
}

fn obstacle(table: &TableName, error: Error) -> Obstacle {
    Obstacle { table: Some(table.clone()), column: None, error }
}

fn of_documents(name: &str) -> Table {
    let column = |name: &str, kind: Type, native: &str| Column {
        native: native.to_owned(),
        nullable: false,
        ..Column::new(name, kind)
    };
    Table {
        name: TableName::new("", name),
        native_id: 0,
        columns: vec![
            column("_id", Type::Any, "any"),
            column(codec::DOCUMENT, Type::Document, codec::DOCUMENT),
        ],
        key: vec![0],
        rows_estimated: 0,
        bytes_estimated: 0,
    }
}

#[async_trait]
impl Catalog for MongoStore {
    async fn identity(&self) -> Result<Identity> {
        MongoStore::identity(self).await
    }

    async fn describe(&self, which: &Selection) -> Result<(Vec<Table>, Vec<Obstacle>)> {
        let database = self.database().await?;
        let listed = list(database).await?;
        let names: Vec<TableName> = match which {
            Selection::All => listed
                .iter()
                .filter(|(_, one)| one.kind != "view")
                .map(|(name, _)| TableName::new("", name))
                .collect(),
            Selection::These(names) => names.clone(),
        };
        let (mut tables, mut obstacles) = (Vec::new(), Vec::new());
        for name in names {
            let full = name.to_string();
            let Some(one) = listed.get(&full) else {
                let error = Error::new(code::TABLE_MISSING, format!("there is no collection {full}"));
                obstacles.push(obstacle(&name, error));
                continue;
            };
            if one.kind != "collection" {
                let why = if one.kind == CAPPED {
                    "cannot be read at one instant"
                } else {
                    "has no changes of its own"
                };
                let what = format!("{full} is a {} and {why}", one.kind);
                obstacles.push(obstacle(
                    &name,
                    Error::new(code::CAPABILITY_MISSING, what).hint("leave it out: --exclude"),
                ));
                continue;
            }
            if one.has_collation {
                let what = format!("the keys of {full} are equal by a collation");
                obstacles
                    .push(obstacle(&name, Error::new(code::KEY_UNFIT, what).hint("leave it out: --exclude")));
            }
            let collection = database.collection::<Document>(&full);
            let rows = collection.estimated_document_count().await.during("count documents")?;
            tables.push(Table { name, native_id: one.id, rows_estimated: rows, ..of_documents(&full) });
        }
        Ok((tables, obstacles))
    }

    async fn held(&self, wanted: &Table) -> Result<Table> {
        let database = self.database().await?;
        let full = wanted.name.to_string();
        let listed = list(database).await?;
        let Some(one) = listed.get(&full) else {
            return Err(Error::new(code::TABLE_MISSING, format!("there is no collection {full}")));
        };
        if let Some(what) = one.cannot_be_target() {
            return Err(differs(wanted, &what));
        }
        let created = if codec::is_of_documents(wanted) { None } else { created_as(database, &full).await? };
        let shape = created.unwrap_or_else(|| of_documents(&full));
        Ok(Table { name: wanted.name.clone(), native_id: one.id, ..shape })
    }

    fn codec(&self, _: &Table) -> Arc<dyn Codec> {
        crate::codec()
    }

    async fn capture(&self, _flow: &FlowName, _tables: &[Arc<Table>]) -> Result<Position> {
        // The server keeps every change in its log; there is nothing to make.
        stream::now(self.database().await?, self.floor()).await
    }

    async fn sealed(&self, flow: &FlowName) -> Result<Option<String>> {
        // Linearizable: a primary that was deposed and does not know it would show an older one.
        let found = seals(self.database().await?, flow)
            .find_one(doc! { "_id": SEAL })
            .read_concern(ReadConcern::linearizable())
            .max_time(SEAL_WAIT)
            .await
            .during("read the seal")?;
        Ok(found.and_then(|found| found.get_str(SEAL).ok().map(str::to_owned)))
    }

    async fn seal(&self, flow: &FlowName, was: Option<&str>, seal: &str) -> Result<bool> {
        let seals = seals(self.database().await?, flow);
        let Some(was) = was else {
            return match seals.insert_one(doc! { "_id": SEAL, SEAL: seal }).await.during("seal") {
                Err(error) if error.code() == code::CONSTRAINT_VIOLATED => Ok(false),
                written => written.map(|_| true),
            };
        };
        let filter = doc! { "_id": SEAL, SEAL: was };
        let written = seals.update_one(filter, doc! { "$set": { SEAL: seal } }).await.during("seal")?;
        Ok(written.matched_count > 0)
    }

    async fn clean(&self, flow: &FlowName) -> Result<()> {
        let database = self.database().await?;
        stream::forget_marker(database).await?;
        seals(database, flow).drop().await.during("remove the seal")
    }

    fn accepts(&self, encoding: Encoding) -> bool {
        encoding == codec::BSON
    }

    fn fit(&self, column: &Column, encoding: Encoding, conversions: &Conversions) -> Result<Fit> {
        fit::fit(column, encoding, conversions)
    }

    fn stored<'a>(&self, column: &Column, value: Value<'a>) -> Result<Value<'a>> {
        if column.native == codec::DOCUMENT || column.native == "any" {
            return Ok(value);
        }
        let unfit = |reason: &str| {
            Error::new(
                code::VALUE_UNFIT,
                format!("a {} does not fit {}: {reason}", value.kind(), column.name),
            )
            .with("column", &column.name)
        };
        let held = documents::hold(&column.kind, &value).map_err(unfit)?;
        documents::read(&column.kind, held.as_raw_bson_ref()).map_err(unfit)
    }

    fn name_for(&self, source: &TableName) -> TableName {
        match source.schema.as_str() {
            "" | "public" | "main" => TableName::new("", source.name.clone()),
            schema => TableName::new("", format!("{schema}.{}", source.name)),
        }
    }

    async fn inspect(&self, tables: &[Arc<Table>], allow_non_empty: bool) -> Result<Vec<Obstacle>> {
        let database = self.database().await?;
        let listed = list(database).await?;
        let mut obstacles = Vec::new();
        for table in tables {
            let full = table.name.to_string();
            if let Err(error) = check(database.name(), table) {
                obstacles.push(obstacle(&table.name, error));
                continue;
            }
            let Some(one) = listed.get(&full) else { continue };
            if let Some(what) = one.cannot_be_target() {
                obstacles.push(obstacle(&table.name, differs(table, &what)));
                continue;
            }
            if let Some(created) = created_as(database, &full).await?
                && !is_same_shape(table, &created)
            {
                obstacles.push(obstacle(&table.name, differs(table, "was created with other columns")));
                continue;
            }
            let first =
                database.collection::<Document>(&full).find_one(doc! {}).await.during("look for rows")?;
            if first.is_some() && !allow_non_empty {
                let what = format!("collection {full} has documents already");
                obstacles
                    .push(obstacle(&table.name, Error::new(code::TARGET_NOT_EMPTY, what).hint(NOT_EMPTY)));
            }
        }
        Ok(obstacles)
    }

    async fn create(&self, tables: &[Arc<Table>]) -> Result<()> {
        let database = self.database().await?;
        let listed = list(database).await?;
        for table in tables {
            check(database.name(), table)?;
            let full = table.name.to_string();
            let Some(one) = listed.get(&full) else {
                // First what it is for: of an earlier one of this name other columns may be noted.
                if codec::is_of_documents(table) {
                    forget_shape(database, table).await?;
                } else {
                    note_shape(database, table).await?;
                }
                make(database, &full).await?;
                continue;
            };
            if let Some(what) = one.cannot_be_target() {
                return Err(differs(table, &what));
            }
            if codec::is_of_documents(table) {
                continue;
            }
            if let Some(created) = created_as(database, &full).await? {
                if !is_same_shape(table, &created) {
                    return Err(differs(table, "was created with other columns"));
                }
                continue;
            }
            note_shape(database, table).await?;
        }
        Ok(())
    }

    async fn extend(&self, tables: &[Arc<Table>]) -> Result<()> {
        let database = self.database().await?;
        let listed = list(database).await?;
        for table in tables {
            let full = table.name.to_string();
            if !listed.contains_key(&full) {
                return Err(Error::new(code::TABLE_MISSING, format!("there is no collection {full}")));
            }
            // Documents have whatever fields they are written with; only what is known of them grows.
            let Some(created) = created_as(database, &full).await? else { continue };
            let known: Vec<Column> =
                table.columns.iter().filter(|c| created.position(&c.name).is_some()).cloned().collect();
            let key = |table: &Table| table.key_columns().map(|c| c.name.clone()).collect::<Vec<_>>();
            let same = known.len() == created.columns.len()
                && known
                    .iter()
                    .all(|c| created.position(&c.name).is_some_and(|at| created.columns[at].kind == c.kind));
            if !same || key(table) != key(&created) {
                return Err(differs(table, "was created with other columns"));
            }
            note_shape(database, table).await?;
        }
        Ok(())
    }
}

/// Notes what a collection was created for.
async fn note_shape(database: &Database, table: &Table) -> Result<()> {
    let shape = serde_json::to_string(table)
        .map_err(|e| Error::new(code::INTERNAL, "a table's shape cannot be written").because(e))?;
    database
        .collection::<Document>(TABLES)
        .replace_one(doc! { "_id": table.name.to_string() }, doc! { "shape": shape })
        .upsert(true)
        .await
        .during("write a table's shape")?;
    Ok(())
}

/// Forgets what an earlier collection of the name was created for.
async fn forget_shape(database: &Database, table: &Table) -> Result<()> {
    let notes = database.collection::<Document>(TABLES);
    notes.delete_one(doc! { "_id": table.name.to_string() }).await.during("forget a table's shape")?;
    Ok(())
}

/// Creates a collection unless it is there.
pub(crate) async fn make(database: &Database, name: &str) -> Result<()> {
    match database.create_collection(name).await {
        Err(error) if crate::error::number(&error) == Some(48) => Ok(()),
        other => other.during("create a collection"),
    }
}

fn is_same_shape(wanted: &Table, found: &Table) -> bool {
    let shape = |table: &Table| {
        let columns = table.columns.iter().map(|c| (c.name.clone(), c.kind.clone())).collect::<Vec<_>>();
        (columns, table.key.clone())
    };
    shape(wanted) == shape(found)
}

fn differs(table: &Table, what: &str) -> Error {
    Error::new(code::TARGET_DIFFERS, format!("collection {} {what}", table.name))
        .with("table", &table.name)
        .hint("rename it, or leave it out")
}

/// Why the server, or this adapter, has no collection of that name.
fn why_no_name(database: &str, name: &str) -> Option<&'static str> {
    let is_long = database.len() + 1 + name.len() > NAMESPACE_BYTES;
    [
        (name.is_empty(), "it is empty"),
        (name.starts_with('.'), "it begins with a dot"),
        (name.contains(['$', '\0']), "it has a $ or a zero byte in it"),
        (name.starts_with("system.") || name.contains(".system."), "system. is the server's own"),
        (name.starts_with(OURS), "tidegate. is for what keeps the migration"),
        (is_long, "it has more than 255 bytes, with the name of the database"),
    ]
    .into_iter()
    .find_map(|(is_so, why)| is_so.then_some(why))
}

/// What a collection cannot be for.
fn check(database: &str, table: &Table) -> Result<()> {
    let full = table.name.to_string();
    if let Some(why) = why_no_name(database, &full) {
        let what = format!("a collection cannot have the name {full:?}: {why}");
        return Err(Error::new(code::MAPPING_INVALID, what)
            .hint("give the table another name there: --map TABLE=NAME"));
    }
    if table.key.is_empty() {
        return Err(Error::new(code::KEY_MISSING, format!("table {full} has no key")));
    }
    let place = table.position("_id");
    if place.is_some_and(|at| table.key != [at] && !table.key.contains(&at)) {
        return Err(Error::new(
            code::MAPPING_INVALID,
            format!("table {full} has a column _id that is not its key"),
        )
        .hint("the key becomes _id; rename the column, or leave it out"));
    }
    Ok(())
}
