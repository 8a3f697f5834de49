//! Captures what changes, in order.

use async_trait::async_trait;

use crate::changes::Changes;
use crate::error::Result;
use crate::position::Position;

/// How far a feed is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    /// Every change before this has been delivered, by this call or an earlier one.
    pub position: Position,
    /// How many bytes of log, or journal entries, the source holds that were not delivered, as far as is known.
    pub behind: u64,
}

/// The changes of one source, as whole transactions in the order of commit.
///
/// # Contract
/// 1. Delivers every change of its tables after the position it was opened at, in commit order, each exactly once as long as it is open.
/// 2. A transaction that was rolled back, wholly or to a savepoint, is not delivered.
/// 3. Never acknowledges by itself: the source may forget only what [`ChangeFeed::acknowledge`] names.
/// 4. Opened at a position the source cannot go back to, it fails with a named error; it never starts later.
/// 5. A cell that the source did not send is `Unchanged`, never null and never a placeholder.
/// 6. `position` rises also while there are no changes; with `want` the feed makes it rise past that position, and
///    does what that needs at the source.
/// 7. A transaction too large for memory comes in pieces; only the last one `ends`.
///
/// # Concurrency
/// One task.
///
/// # Cancel safety
/// Dropping `next` loses no change: what it had read is delivered by the next call.
///
/// # Example
/// ```
/// # use std::sync::Arc;
/// use tidegate_core::port::{Selection, Store};
/// use tidegate_core::{Changes, Column, FlowName, Op, TableName, Type, Value};
/// use tidegate_memory::{MemoryStore, Write};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidegate_core::Result<()> {
/// let store = MemoryStore::new("shop");
/// let orders = TableName::new("", "orders");
/// let columns = vec![Column::new("id", Type::Int { bits: 64 }), Column::new("note", Type::Text)];
/// store.create_table(&orders, columns, &["id"]);
/// let (catalog, flow) = (store.catalog().await?, FlowName::new("shop")?);
/// let (tables, _) = catalog.describe(&Selection::All).await?;
/// let tables: Vec<_> = tables.into_iter().map(Arc::new).collect();
/// let from = catalog.capture(&flow, &tables).await?;
/// store.transact(&[
///     Write::insert(&orders, [Value::Int(1), Value::Text("new".into())]),
///     Write::delete(&orders, [Value::Int(1)]),
/// ])?;
///
/// let mut feed = store.change_feed(&flow, &tables, &catalog.identity().await?, &from).await?;
/// let mut changes = Changes::new();
/// let progress = feed.next(None, &mut changes).await?;
/// let [transaction] = changes.transactions() else { panic!("one transaction, whole") };
/// let ops: Vec<Op> = changes.of(transaction).map(|change| change.op).collect();
/// assert_eq!(ops, [Op::Insert, Op::Delete]);
/// // Only when the effect is durable:
/// feed.acknowledge(&progress.position).await?;
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait ChangeFeed: Send {
    /// Appends what has come, waiting a bounded time (at most about a second) if there is nothing.
    async fn next(&mut self, want: Option<&Position>, out: &mut Changes) -> Result<Progress>;

    /// The source may forget everything up to here: its effect is durable.
    async fn acknowledge(&mut self, upto: &Position) -> Result<()>;

    /// Ends the feed and frees what it holds at the source, keeping its place there.
    async fn close(self: Box<Self>) -> Result<()>;
}
