//! What a store holds: tables (or collections), their columns and keys.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result, code};
use crate::port::Conversions;
use crate::rows::Row;
use crate::value::{Type, Value};

/// The name of a table or collection: a schema (empty where the store has none) and a name in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct TableName {
    /// The schema, or empty.
    pub schema: String,
    /// The name.
    pub name: String,
}

impl TableName {
    /// A name in a schema; an empty schema where the store has none.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// Whether somebody who writes this means the table: its name, with or without its schema.
    pub fn is_called(&self, text: &str) -> bool {
        self.name == text || self.to_string() == text
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.schema.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}.{}", self.schema, self.name)
        }
    }
}

impl fmt::Debug for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A column as a store describes it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What its values are.
    pub kind: Type,
    /// The type in the store's own words, as a table definition would have it.
    pub native: String,
    /// The store's own number for that type, for its codec (PostgreSQL: the type's oid), else 0.
    pub native_id: u32,
    /// Whether null is allowed.
    pub nullable: bool,
    /// Whether the store computes it; it is compared but never written.
    pub generated: bool,
    /// Whether a row that says nothing of it has another value than null there. When such a column is added, the
    /// rows that are there get that value, and no change tells so.
    #[serde(default)]
    pub has_default: bool,
}

impl Column {
    /// Whether a value is of another class than the column: not every store holds its columns to their types, and bytes in
    /// a column of text are no text. Written as text they would be the value of another row.
    pub fn is_strange(&self, value: &Value<'_>) -> bool {
        self.kind == Type::Text && matches!(value, Value::Bytes(_))
    }

    /// The conversion that the user named for it: by its type in the store's own words, with or without what is in
    /// brackets, or by [`Type::word`].
    pub fn conversion<'c>(&self, conversions: &'c Conversions) -> Option<&'c str> {
        self.conversion_names().iter().find_map(|name| conversions.get(*name)).map(String::as_str)
    }

    /// What its type is best called where a conversion is named.
    pub fn conversion_name(&self) -> &str {
        if self.native.is_empty() { self.kind.word() } else { &self.native }
    }

    /// What its type may be called where a conversion is named: the most exact name first.
    pub fn conversion_names(&self) -> [&str; 3] {
        let bare = self.native.split('(').next().unwrap_or_default().trim();
        [&self.native, bare, self.kind.word()]
    }

    /// A plain, nullable column.
    pub fn new(name: impl Into<String>, kind: Type) -> Self {
        Self {
            name: name.into(),
            kind,
            native: String::new(),
            native_id: 0,
            nullable: true,
            generated: false,
            has_default: false,
        }
    }

    /// Whether a row from before this column was added had null in it, so that nothing has to be known of such rows.
    pub fn is_null_before(&self) -> bool {
        self.nullable && !self.has_default && !self.generated
    }
}

/// A table as a store describes it. The columns are those that travel: a generated column is not among them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Table {
    /// Its name.
    pub name: TableName,
    /// The store's own number for it, or 0.
    pub native_id: u32,
    /// Its columns, in the order in which their cells stand in a row.
    pub columns: Vec<Column>,
    /// The places of the key's columns in `columns`, in the key's order.
    pub key: Vec<usize>,
    /// About how many rows it has.
    pub rows_estimated: u64,
    /// About how many bytes it has.
    pub bytes_estimated: u64,
}

impl Table {
    /// Where a column stands.
    pub fn position(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == column)
    }

    /// About how many bytes a row has; 0 if nobody knows.
    pub fn row_bytes_estimated(&self) -> usize {
        let bytes = self.bytes_estimated.checked_div(self.rows_estimated).unwrap_or(0);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Whether a full row's key is this one byte for byte, and not an equal one in another form (1.0 and 1.00).
    pub fn has_key(&self, row: Row<'_>, key: Row<'_>) -> bool {
        self.key.iter().zip(key.cells()).all(|(&at, cell)| row.cell(at) == cell)
    }

    /// The error of a row that has more than the columns.
    pub fn surplus(&self, field: &str) -> Error {
        let what = format!("a row of {} has {field}, which is no column of the table", self.name);
        Error::new(code::SCHEMA_CHANGED, what).with("table", &self.name).with("column", field)
    }

    /// The columns of the key, in its order.
    pub fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().map(|&at| &self.columns[at])
    }
}

/// How the bytes of cells are to be read: the name of an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Encoding(pub &'static str);

impl Encoding {
    /// The encoding of [`Value::encode`], which every sink understands.
    pub const CANONICAL: Encoding = Encoding("canonical");
}

/// Reads the cells of one encoding.
pub trait Codec: Send + Sync + fmt::Debug {
    /// The encoding it reads.
    fn encoding(&self) -> Encoding;

    /// The encoding of this column's cells: another one only where rows are put together of several.
    fn encoding_of(&self, _column: &Column) -> Encoding {
        self.encoding()
    }

    /// Whether cells of this column have values at all: of some types only the store itself knows them.
    fn has_values(&self, _column: &Column) -> bool {
        true
    }

    /// The value of a cell of this column.
    ///
    /// # Errors
    /// `stream-malformed` if the bytes are not of the encoding, `value-unfit` if they stand for something that has
    /// no value in the canonical model.
    fn value<'a>(&self, column: &Column, cell: &'a [u8]) -> Result<Value<'a>>;

    /// Appends bytes that are equal exactly for cells that the store holds to be equal keys.
    ///
    /// # Errors
    /// As [`Codec::value`].
    fn key(&self, column: &Column, cell: &[u8], out: &mut Vec<u8>) -> Result<()> {
        self.value(column, cell)?.encode(out);
        Ok(())
    }
}

/// Reads [`Encoding::CANONICAL`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Canonical;

impl Codec for Canonical {
    fn encoding(&self) -> Encoding {
        Encoding::CANONICAL
    }

    fn value<'a>(&self, _: &Column, cell: &'a [u8]) -> Result<Value<'a>> {
        Value::decode(cell)
    }
}

/// A table together with the way its cells are read: what a buffer of rows needs to be understood.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The table.
    pub table: Arc<Table>,
    /// How its cells are read.
    pub codec: Arc<dyn Codec>,
}
