//! Opens the ports of one store by its URL.

use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Result;
use crate::flow::FlowName;
use crate::port::sink::Route;
use crate::port::{Catalog, ChangeFeed, Crawler, Examiner, Identity, Sink, StateStore};
use crate::position::Position;
use crate::table::Table;

/// One store: a server's database or a file.
///
/// # Contract
/// 1. Opening a port that the store does not have fails with `capability-missing` and the way out.
/// 2. A wrong password fails at once; a server that does not answer is `unreachable`, with verdict retry.
///
/// # Concurrency
/// May be used from several tasks at once; each opened port has connections of its own.
///
/// # Implementing
/// The crate `tidegate-memory` is the reference. An adapter exports its schemes as `SCHEMES` and opens a store with `open`.
///
/// # Example
/// ```
/// use tidegate_core::port::{Selection, Store};
/// use tidegate_memory::MemoryStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidegate_core::Result<()> {
/// /// Any store will do: this one, or one that was opened by its URL.
/// async fn count_tables(store: &dyn Store) -> tidegate_core::Result<usize> {
///     Ok(store.catalog().await?.describe(&Selection::All).await?.0.len())
/// }
/// assert_eq!(count_tables(&MemoryStore::new("shop")).await?, 0);
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Where it is, for people; without secrets.
    fn location(&self) -> String;

    /// What it holds.
    async fn catalog(&self) -> Result<Arc<dyn Catalog>>;

    /// A reader of what is there.
    async fn crawler(&self) -> Result<Box<dyn Crawler>>;

    /// The changes of a flow's tables from a position on. Fails if the store is not `source` any more, or cannot go
    /// back to that position.
    async fn change_feed(
        &self,
        flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Box<dyn ChangeFeed>>;

    /// A writer of a flow's rows.
    async fn sink(&self, flow: &FlowName, routes: &[Route]) -> Result<Box<dyn Sink>>;

    /// What could be lost there, and what a flow costs it.
    async fn examiner(&self) -> Result<Arc<dyn Examiner>>;

    /// The records of flows.
    async fn state(&self) -> Result<Arc<dyn StateStore>>;
}
