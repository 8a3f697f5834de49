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
#[async_trait]
pub trait ChangeFeed: Send {
    /// Appends what has come, waiting a bounded time (at most about a second) if there is nothing.
    async fn next(&mut self, want: Option<&Position>, out: &mut Changes) -> Result<Progress>;

    /// The source may forget everything up to here: its effect is durable.
    async fn acknowledge(&mut self, upto: &Position) -> Result<()>;

    /// Ends the feed and frees what it holds at the source, keeping its place there.
    async fn close(self: Box<Self>) -> Result<()>;
}
