//! Reads what is there already, chunk by chunk.

use async_trait::async_trait;

use crate::error::Result;
use crate::position::AsOf;
use crate::rows::{Key, Rows};
use crate::table::Table;

/// A range of keys in the store's own order: greater than `after`, up to and including `upto`.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct KeyRange {
    /// Exclusive lower bound; `None` from the first key on.
    pub after: Option<Key>,
    /// Inclusive upper bound; `None` to the last key.
    pub upto: Option<Key>,
}

/// How much a read gives at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Rows.
    pub rows: usize,
    /// Bytes of rows, as they are in [`Rows::bytes`]. The row that reaches it is the last one: at least one is given.
    pub bytes: usize,
}

impl Limit {
    /// So many rows, whatever they weigh.
    pub const fn rows(rows: usize) -> Self {
        Self { rows, bytes: usize::MAX }
    }

    /// The same, with so few rows of this weight that the bytes are not reached: best ended by the rows, of which some weigh
    /// more than others. A source that cannot stop where the bytes do drops a session for it.
    #[must_use]
    pub fn of_rows(self, row_bytes: usize) -> Self {
        let aim = self.bytes - self.bytes / 8;
        Self { rows: self.rows.min(aim / row_bytes.max(1)).max(1), ..self }
    }
}

/// What a read found out beside its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The instant all its rows were read at.
    pub as_of: AsOf,
    /// The key after which the next chunk of the range begins; `None` if the range is done.
    pub next: Option<Key>,
    /// What rows have beyond the table's columns, in a store that holds no row to them: the place in `out`, and what it is
    /// called. Who carries rows on must not leave it behind.
    pub surplus: Vec<(usize, String)>,
}

/// Reads the rows of tables in chunks by key.
///
/// # Contract
/// 1. All rows of a chunk are read at one instant, and `as_of` is the proof of which.
/// 2. Rows come in the store's own order of the key; ranges that `split` gives cover the table's keys exactly once.
/// 3. The upper bound of the last range is frozen when `split` is called: inserts behind it do not make a crawl endless.
/// 4. A chunk needs nothing kept open from an earlier one: after a crash the range goes on from the last `next`.
/// 5. If the source was dropped, renamed or hides rows, it is an error and never fewer rows. What is about one table
///    names it, as `table`.
/// 6. The barrier of `as_of` is not before the position of any change that its rows show.
/// 7. Instants never go back: what one read showed is shown by every read that begins later, by any crawler of the store.
/// 8. A row with more than the table's columns comes with these, and the rest is named as `surplus`; a fetch of it fails.
///
/// # Concurrency
/// One task at a time; several crawlers of one source may read at once.
///
/// # Cancel safety
/// A dropped `read` leaves `out` unusable until cleared, and the crawler usable.
///
/// # Example
/// ```
/// use tidegate_core::port::{KeyRange, Limit, Selection, Store};
/// use tidegate_core::{Column, Rows, TableName, Type, Value};
/// use tidegate_memory::{MemoryStore, Write};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidegate_core::Result<()> {
/// let store = MemoryStore::new("shop");
/// let orders = TableName::new("", "orders");
/// let columns = vec![Column::new("id", Type::Int { bits: 64 }), Column::new("note", Type::Text)];
/// store.create_table(&orders, columns, &["id"]);
/// for id in 0..100 {
///     store.transact(&[Write::insert(&orders, [Value::Int(id), Value::Text("x".into())])])?;
/// }
/// let (tables, _) = store.catalog().await?.describe(&Selection::All).await?;
/// let mut crawler = store.crawler().await?;
/// let mut count = 0;
/// for range in crawler.split(&tables[0], 4).await? {
///     let mut rest = Some(range);
///     while let Some(range) = rest {
///         let mut rows = Rows::new();
///         let chunk = crawler.read(&tables[0], &range, Limit::rows(10), &mut rows).await?;
///         count += rows.len();
///         // What is left of the range is all that has to be remembered.
///         rest = chunk.next.map(|next| KeyRange { after: Some(next), ..range });
///     }
/// }
/// assert_eq!(count, 100);
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Crawler: Send {
    /// Cuts a table into at most `parts` ranges of similar size. Reads no rows; an empty table has one empty range.
    async fn split(&mut self, table: &Table, parts: usize) -> Result<Vec<KeyRange>>;

    /// Appends rows from the start of the range, up to a limit.
    async fn read(&mut self, table: &Table, range: &KeyRange, limit: Limit, out: &mut Rows) -> Result<Chunk>;

    /// Appends the rows of these keys that exist, in any order. `table.key` says which columns the keys are of: who
    /// folds rows into others asks with the columns that hold the other's key.
    async fn fetch(&mut self, table: &Table, keys: &[Key], out: &mut Rows) -> Result<AsOf>;

    /// The instant a read would have now.
    async fn as_of(&mut self) -> Result<AsOf>;
}
