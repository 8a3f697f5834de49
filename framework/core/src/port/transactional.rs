//! Stores in whose transactions handlers write, beside a note that the message was handled.

use std::future::Future;

use crate::error::Result;
use crate::flow::FlowName;

/// A store whose transactions an application writes in. The note that something was handled is in the transaction of its
/// effect: both are there, or neither is.
///
/// # Contract
/// 1. A note and what is written in its transaction are committed together, durable when `commit` returns. (X1)
/// 2. A transaction that is dropped leaves neither. (X2)
/// 3. `note` says that it was noted before if that was committed; while another transaction has noted it and is not at its
///    end, `note`, or `begin`, waits for that end, or is refused with verdict *retry*. (X3)
/// 4. Flows are apart. (X4)
/// 5. `forget` removes notes older than a time by the store's own clock, and no others. (X5)
///
/// If a `commit` fails with verdict *unknown*, it may have happened: begin again, and the note tells.
///
/// # Concurrency
/// Transactions may be open in several tasks and processes at once.
///
/// # Cancel safety
/// A dropped call leaves its transaction to be dropped.
pub trait Transactional: Send + Sync + 'static {
    /// A transaction, as the driver has it.
    type Tx: Send;

    /// Begins a transaction.
    fn begin(&self) -> impl Future<Output = Result<Self::Tx>> + Send;

    /// Notes in a transaction that this was handled; `false` if that is noted already. An id has at most 1,000 bytes.
    fn note(&self, tx: &mut Self::Tx, flow: &FlowName, id: &str)
    -> impl Future<Output = Result<bool>> + Send;

    /// Makes everything of a transaction durable.
    fn commit(&self, tx: Self::Tx) -> impl Future<Output = Result<()>> + Send;

    /// Forgets what was noted more than so many microseconds ago: how many.
    fn forget(&self, flow: &FlowName, older_than: i64) -> impl Future<Output = Result<u64>> + Send;
}
