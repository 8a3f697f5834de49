//! The target of a migration: takes rows and changes, and remembers how far it is, in one transaction.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::{Error, Result, code};
use crate::port::catalog::Identity;
use crate::port::crawler::KeyRange;
use crate::position::Position;
use crate::rows::{Key, Rows};
use crate::table::{Shape, Table};

/// From a table of the source to one of the target. Rows come in the shape of the source; their cells stand for the
/// columns of the target in the same order.
#[derive(Clone, Debug)]
pub struct Route {
    /// How the rows that come are read.
    pub shape: Shape,
    /// Where they go. It has as many columns as the shape's table.
    pub target: Arc<Table>,
}

impl Route {
    /// The error of a table of the target that is gone, or whose name another one has.
    pub fn table_missing(&self) -> Error {
        let what = "the target's table is gone, or another one has its name; nothing was written to it";
        Error::new(code::TABLE_MISSING, what).with("table", &self.target.name)
    }

    /// The error of a table of the target that has lost a column, or has it otherwise.
    pub fn target_differs(&self, column: &str) -> Error {
        let what =
            format!("the target's table has not the column {column} that it had; nothing was written to it");
        Error::new(code::TARGET_DIFFERS, what).with("table", &self.target.name).with("column", column)
    }
}

/// What is to be done to one table: at most one row or deletion a key. Only a key that was written anew as an equal one
/// (1.0 as 1.00) is in `deletes` as it was and in `upserts` as it is.
#[derive(Clone, Debug, Default)]
pub struct TableBatch {
    /// The table, by its place among the routes.
    pub table: usize,
    /// First remove all rows.
    pub truncate: bool,
    /// Keys whose rows are to be gone, before anything is written.
    pub deletes: Rows,
    /// Full rows to be there afterwards, whether or not their key was.
    pub upserts: Rows,
    /// Rows with unchanged cells: only the others are written, and only where the key is there.
    pub updates: Rows,
    /// No row of `upserts` is expected to be there: the fastest way of writing may be tried first.
    pub fresh: bool,
    /// Rows of the table are still to come from the crawl: an update that meets no row is no hole.
    pub crawling: bool,
}

impl TableBatch {
    /// How many rows and deletions.
    pub fn len(&self) -> usize {
        self.deletes.len() + self.upserts.len() + self.updates.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && !self.truncate
    }
}

/// Work for a sink.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// At most one entry a table.
    pub tables: Vec<TableBatch>,
}

/// How far the crawl of one key range is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RangeProgress {
    /// The table, by its place among the routes.
    pub table: usize,
    /// The number of the range in its table.
    pub range: u32,
    /// What is left of it. Meaningless when done.
    pub rest: KeyRange,
    /// Rows crawled so far.
    pub rows: u64,
    /// Whether nothing is left.
    pub done: bool,
}

/// Why a table takes no part. Its text is what a sink stores; it is read from there with `from`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Exclusion {
    /// It could not go on: the line of the error.
    Failed(String),
    /// Somebody left it out.
    Skipped,
    /// It is to be crawled anew, and what is there of it is not gone yet.
    Restarting,
}

/// No error has this line: each begins with its code.
const SKIPPED: &str = "skipped on request";
const RESTARTING: &str = "to be crawled anew";

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed(line) => line,
            Self::Skipped => SKIPPED,
            Self::Restarting => RESTARTING,
        })
    }
}

impl From<String> for Exclusion {
    fn from(text: String) -> Self {
        match text.as_str() {
            SKIPPED => Self::Skipped,
            RESTARTING => Self::Restarting,
            _ => Self::Failed(text),
        }
    }
}

impl From<Exclusion> for String {
    fn from(exclusion: Exclusion) -> Self {
        exclusion.to_string()
    }
}

/// What becomes durable together with a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Commit {
    /// The changes up to here are in the target; `None` leaves it as it was.
    pub position: Option<Position>,
    /// Where a feed has to be opened after a restart; `None` leaves it as it was. See [`Checkpoint::replay`].
    pub replay: Option<Position>,
    /// Ranges whose progress changed.
    pub ranges: Vec<RangeProgress>,
    /// Tables whose ranges, holes, exclusion and identity are forgotten first: they are to be crawled anew, into the
    /// table of the target that the sink found.
    pub forget: Vec<usize>,
    /// Tables that take no part from here on, and why; it replaces what was said of one before.
    pub exclude: Vec<(usize, Exclusion)>,
    /// Holes that are none any more, by table, in the source's encoding. They are forgotten before those of the same
    /// batch are noted.
    #[serde(default)]
    pub filled: Vec<(usize, Key)>,
}

/// How far the target is, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Checkpoint {
    /// The source it belongs to.
    pub source: Identity,
    /// Changes up to here are in the target.
    pub position: Position,
    /// Every change before this is seen by whoever reads the source now. A later chunk may have been read before a
    /// change between here and `position` was seen, so after a restart those are delivered again, to be merged.
    pub replay: Position,
    /// The ledger of the crawl.
    pub ranges: Vec<RangeProgress>,
    /// Tables that take no part, and why: changes to them since are not in the target.
    pub excluded: Vec<(usize, Exclusion)>,
    /// Rows that the target lacks: see [`Applied::holes`].
    #[serde(default)]
    pub holes: Vec<(usize, Key)>,
}

impl Checkpoint {
    /// What a flow begins with: nothing is in the target, and changes from here on are captured.
    pub fn first(source: Identity, position: Position) -> Self {
        Self {
            source,
            replay: position.clone(),
            position,
            ranges: Vec::new(),
            excluded: Vec::new(),
            holes: Vec::new(),
        }
    }
}

/// What opening a sink found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Opened {
    /// Nothing: the checkpoint given was stored.
    New,
    /// The flow was here before.
    Resumed(Checkpoint),
}

/// What a batch did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Applied {
    /// Rows that the target lacks now and has to get again from the source: updates that met no row, and rows that
    /// were kept out because another row has their values in a unique index. By table, in the source's encoding. The
    /// target has noted them together with the batch, and says them in every [`Checkpoint`] until they are `filled`.
    pub holes: Vec<(usize, Key)>,
}

/// Applies batches.
///
/// # Contract
/// 1. Batch and commit become durable together where the target has transactions; elsewhere, and for a part of a fresh
///    batch that a second session writes, the batch first. After a crash the checkpoint is never ahead of the effect.
/// 2. Applying a batch again, with later batches following again, ends in the same state.
/// 3. `Unchanged` cells are never written; an update without a row is never an insert: it is a hole, unless the table
///    is `crawling`.
/// 4. Rows of one batch never keep each other out of a unique index by what they were before. A row that is kept out
///    by one that is not in the batch, or by one that is and stays, is a hole: neither its old nor its new form is
///    there.
/// 5. A batch without a commit belongs to a transaction that goes on: the target may keep it open, or commit it alone.
///    If a later batch of the transaction fails, those before it may be gone; the next one begins anew.
/// 6. Opening fences: whoever opened the flow before writes nothing more, and gets `lease-lost`; also if the flow was
///    forgotten in between.
/// 7. Holes are noted durably with the batch that made them; without a commit, no later than the next one.
/// 8. A value that does not fit exactly is an error that names table, key and column, and nothing of the batch is done.
///    What is about one table names it as the target does, as `table`.
/// 9. The ledger (ranges, exclusions and holes) is kept by the name of the source's table: a table that is not among the
///    routes keeps its own, and the order of the routes does not matter.
/// 10. Where tables of the target have an identity there, the ledger has it: the sink writes to the table that it found
///     when the flow first had it, or that it found before the table was forgotten. One that is gone, or whose name
///     another one has, is `table-missing`: `open` excludes it, `apply` refuses what is for it.
///     So it is with one that lacks a column when the sink is made: `target-differs`.
///
/// # Concurrency
/// One task. A sink may split a batch over several connections.
///
/// # Cancel safety
/// None: after a dropped call open the sink again.
///
/// # Example
/// ```
/// # use std::sync::Arc;
/// use tidegate_core::port::{Batch, Checkpoint, Commit, Opened, Route, Selection, Store, TableBatch};
/// use tidegate_core::{Canonical, Column, FlowName, Position, Rows, Shape, TableName, Type, Value};
/// use tidegate_memory::MemoryStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidegate_core::Result<()> {
/// let store = MemoryStore::new("shop");
/// let orders = TableName::new("", "orders");
/// let columns = vec![Column::new("id", Type::Int { bits: 64 }), Column::new("note", Type::Text)];
/// store.create_table(&orders, columns, &["id"]);
/// let (tables, _) = store.catalog().await?.describe(&Selection::All).await?;
/// let target = Arc::new(tables[0].clone());
/// let shape = Shape { table: Arc::clone(&target), codec: Arc::new(Canonical) };
/// let routes = [Route { shape, target }];
/// let source = MemoryStore::new("old").catalog().await?.identity().await?;
/// let first = Checkpoint::first(source, Position::from_u64(7));
/// let flow = FlowName::new("shop")?;
/// let mut sink = store.sink(&flow, &routes).await?;
/// assert_eq!(sink.open(&first).await?, Opened::New);
///
/// let mut upserts = Rows::new();
/// upserts.push_values([Value::Int(1), Value::Text("moved".into())]);
/// let batch = Batch { tables: vec![TableBatch { upserts, ..TableBatch::default() }] };
/// let commit = Commit { position: Some(Position::from_u64(8)), ..Commit::default() };
/// sink.apply(&batch, Some(&commit)).await?;
///
/// // Whoever comes next is told how far the target is, by the target.
/// let mut next = store.sink(&flow, &routes).await?;
/// let Opened::Resumed(checkpoint) = next.open(&first).await? else { panic!("it was here before") };
/// assert_eq!(checkpoint.position, Position::from_u64(8));
/// // And whoever was there before can write no more.
/// assert!(sink.apply(&batch, Some(&commit)).await.is_err());
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Sink: Send {
    /// Takes over the flow: stores `first` if the flow is new here, else says how far it is.
    async fn open(&mut self, first: &Checkpoint) -> Result<Opened>;

    /// Does what the batch says; with a commit, durably.
    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied>;

    /// Ends, with nothing lost.
    async fn close(self: Box<Self>) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an earlier version stored, or sent, is read as what it meant.
    #[test]
    fn an_exclusion_is_stored_and_sent_as_its_text() {
        for (text, exclusion) in [
            ("skipped on request", Exclusion::Skipped),
            ("to be crawled anew", Exclusion::Restarting),
            ("TG0012 too-long: 300", Exclusion::Failed("TG0012 too-long: 300".to_owned())),
        ] {
            assert_eq!(Exclusion::from(text.to_owned()), exclusion);
            assert_eq!(exclusion.to_string(), text);
            let sent = serde_json::to_string(&exclusion).unwrap();
            assert_eq!(sent, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<Exclusion>(&sent).unwrap(), exclusion);
        }
    }
}
