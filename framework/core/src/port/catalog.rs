//! What a store holds, what stands in the way, and what is made and removed there.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::{Error, Result, code};
use crate::flow::FlowName;
use crate::position::Position;
use crate::table::{Codec, Column, Encoding, Table, TableName};
use crate::value::{Type, Value};

/// Which tables are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Selection {
    /// All tables of the database that are not the server's own, nor ours.
    #[default]
    All,
    /// These. A name without a schema means the store's default schema.
    These(Vec<TableName>),
}

/// Who a store is: two stores are the same history exactly if this is equal.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Identity(pub String);

/// Something that stands in the way of carrying a table, found before the first row.
#[derive(Debug)]
pub struct Obstacle {
    /// The table it concerns; `None` if it concerns the store.
    pub table: Option<TableName>,
    /// The column it concerns, if it is one.
    pub column: Option<String>,
    /// Its code, what it is and the way out.
    pub error: Error,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.table, &self.column) {
            (Some(table), Some(column)) => write!(f, "{table}.{column}: {}", self.error),
            (Some(table), None) => write!(f, "{table}: {}", self.error),
            _ => fmt::Display::fmt(&self.error, f),
        }
    }
}

/// What to do about a target whose tables have rows: the hint of `target-not-empty`.
pub const NOT_EMPTY: &str = "empty it, or give --allow-non-empty: rows with equal keys are overwritten then";

/// The conversions that the user named: type in the source → `string`, `date`, …
pub type Conversions = std::collections::BTreeMap<String, String>;

/// The argument that names a conversion of a type ([`Column::conversion_name`]), as a shell takes it: for the hint of
/// `type-refused`.
pub fn convert_argument(named: &str, form: &str) -> String {
    let is_plain = named.chars().all(|c| c.is_ascii_alphanumeric() || ['_', '.'].contains(&c));
    if is_plain {
        return format!("--convert {named}={form}");
    }
    // Between single quotes nothing means anything to a shell, except their end.
    format!("--convert '{}={form}'", named.replace('\'', r"'\''"))
}

/// How a source's column is held by a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// The type in the target's own words.
    pub native: String,
    /// What its values are there.
    pub kind: Type,
    /// What a person should know, if it is not the same type: `numeric(12,2) → Decimal128`.
    pub note: Option<String>,
}

/// Describes and prepares one store.
///
/// # Contract
/// 1. `describe` changes nothing and names every obstacle; a table with an obstacle is still described. It gives the same
///    table for [`Selection::All`] and for [`Selection::These`], whoever made it.
/// 2. `capture` is repeatable: after a kill at any point, asking again gives the same capture or a named error.
///    Every change before the position it gives is seen by readers; every later one is kept.
/// 3. `capture` never publishes or alters a table with an obstacle.
/// 4. `create` is repeatable and refuses a target that exists with another shape.
/// 5. `clean` removes everything that `capture` made for this flow and nothing else; it is repeatable.
/// 6. Every name from a user reaches the store quoted; every value bound.
/// 7. `extend` adds to a table that is there the columns that it lacks: each nullable and without a default,
///    whatever the wanted table says. It is repeatable, and refuses a table that is missing or then still differs.
/// 8. `seal` is compare-and-set: it writes a flow's seal only if the one there is still `was`. A seal is durable when
///    `seal` returns, and an older one is never read after that. It is part of the database: a backup has it, and
///    `clean` removes it. Where a capture leaves something in the database, a flow without one is not sealed.
///
/// # Concurrency
/// May be used from several tasks at once.
///
/// # Example
/// ```
/// use tidegate_core::port::{Selection, Store};
/// use tidegate_core::{Column, TableName, Type};
/// use tidegate_memory::MemoryStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidegate_core::Result<()> {
/// let store = MemoryStore::new("shop");
/// let orders = TableName::new("", "orders");
/// let columns = vec![Column::new("id", Type::Int { bits: 64 }), Column::new("note", Type::Text)];
/// store.create_table(&orders, columns, &["id"]);
/// let catalog = store.catalog().await?;
/// let (tables, obstacles) = catalog.describe(&Selection::All).await?;
/// assert!(obstacles.is_empty());
/// assert_eq!(tables[0].name, orders);
/// assert_eq!(tables[0].key, [0], "the key, by the places of its columns");
///
/// // Another store makes the same table, once or twice.
/// let target = MemoryStore::new("new").catalog().await?;
/// let tables: Vec<_> = tables.into_iter().map(std::sync::Arc::new).collect();
/// target.create(&tables).await?;
/// target.create(&tables).await?;
/// assert!(target.inspect(&tables, false).await?.is_empty());
///
/// // What source and target agree on, one word after the other.
/// let flow = tidegate_core::FlowName::new("shop")?;
/// assert!(catalog.seal(&flow, None, "first").await?);
/// assert!(!catalog.seal(&flow, None, "too late").await?);
/// assert_eq!(catalog.sealed(&flow).await?.as_deref(), Some("first"));
///
/// // The source's table gets a column: so does the target's, once or twice.
/// store.add_column(&orders, Column::new("paid", Type::Bool), None)?;
/// let (tables, _) = catalog.describe(&Selection::All).await?;
/// let tables: Vec<_> = tables.into_iter().map(std::sync::Arc::new).collect();
/// target.extend(&tables).await?;
/// target.extend(&tables).await?;
/// let (there, _) = target.describe(&Selection::All).await?;
/// assert_eq!(there[0].columns, tables[0].columns);
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Catalog: Send + Sync {
    /// Who this store is. It is kept from the first capture on; before, it only tells one store from another.
    async fn identity(&self) -> Result<Identity>;

    /// The tables of a selection, and what stands in their way as a source.
    async fn describe(&self, which: &Selection) -> Result<(Vec<Table>, Vec<Obstacle>)>;

    /// The table of a target that is there for one of the plan, as its rows are read back to be verified. A store whose tables
    /// have a form as a source and another one as a target says here what the target's is.
    ///
    /// # Errors
    /// `table-missing`.
    async fn held(&self, wanted: &Table) -> Result<Table> {
        let (mut tables, obstacles) = self.describe(&Selection::These(vec![wanted.name.clone()])).await?;
        let missing = || Error::new(code::TABLE_MISSING, format!("the target has no table {}", wanted.name));
        tables
            .pop()
            .ok_or_else(|| obstacles.into_iter().next().map_or_else(missing, |obstacle| obstacle.error))
    }

    /// Whether a column that has become another one has in every row what it had: the log tells no change of the rows.
    fn keeps(&self, before: &Column, now: &Column) -> bool {
        before.kind == now.kind
    }

    /// How the cells of a table's rows are read.
    fn codec(&self, table: &Table) -> Arc<dyn Codec>;

    /// Starts to keep changes of these tables for a flow, and says from where on they are kept.
    async fn capture(&self, flow: &FlowName, tables: &[Arc<Table>]) -> Result<Position>;

    /// The seal that this flow's source has, if it has one.
    async fn sealed(&self, flow: &FlowName) -> Result<Option<String>>;

    /// Replaces a flow's seal at its source: a word that the target knows too, so that an older copy of the source, with
    /// an older seal, is not taken for it. Whether it was written; not if the seal there is not `was`.
    async fn seal(&self, flow: &FlowName, was: Option<&str>, seal: &str) -> Result<bool>;

    /// Removes what [`Catalog::capture`] and [`Catalog::seal`] made.
    ///
    /// # Errors
    /// `lease-held` where the store knows that somebody reads it; nothing is removed then.
    async fn clean(&self, flow: &FlowName) -> Result<()>;

    /// Whether this store, as a target, takes rows of that encoding as they are.
    fn accepts(&self, encoding: Encoding) -> bool;

    /// How this store, as a target, would hold a column of a source with that encoding.
    ///
    /// # Errors
    /// `type-refused` if it cannot without loss and no conversion was named.
    fn fit(&self, column: &Column, encoding: Encoding, conversions: &Conversions) -> Result<Fit>;

    /// The value that this store, as a target, gives back for one that was written to this column of its own: text
    /// for a decimal where it keeps decimals as text. Verification compares what is there with this: it asks for the column
    /// of the plan first, then for the one that is there, which may be of a wider type.
    ///
    /// # Errors
    /// `value-unfit` if it cannot be written exactly.
    fn stored<'a>(&self, column: &Column, value: Value<'a>) -> Result<Value<'a>> {
        let _ = column;
        Ok(value)
    }

    /// The name that a source's table has here by default.
    fn name_for(&self, source: &TableName) -> TableName;

    /// What a name is to this store as a target: names with one folding are one name there, where letter case does not
    /// count or long names are cut.
    fn fold(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Looks at the tables of the plan as targets: which exist, and what stands in the way.
    async fn inspect(&self, tables: &[Arc<Table>], allow_non_empty: bool) -> Result<Vec<Obstacle>>;

    /// Creates the tables that do not exist: columns, not null, key.
    async fn create(&self, tables: &[Arc<Table>]) -> Result<()>;

    /// Adds the columns that existing tables lack: a table of the source got them while a flow ran.
    ///
    /// # Errors
    /// `table-missing`, and `target-differs` if a table differs in more than columns that it lacks.
    async fn extend(&self, tables: &[Arc<Table>]) -> Result<()>;
}
