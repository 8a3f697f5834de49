//! Small durable records of a flow, and who may run it.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::{Error, Result, code};
use crate::flow::FlowName;

/// A record with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Rises with every write; 0 stands for "not there".
    pub version: u64,
    /// The record.
    pub value: String,
}

/// Keeps the records of flows: plan, status, knobs, reports.
///
/// # Contract
/// 1. `put` is compare-and-set: it writes only if the version is still `expected` (0: not there), and says whether it did.
/// 2. A record that was put is durable and seen by every process.
/// 3. Keys are our own words, of at most 100 bytes; values are text of at most 8 MiB.
///
/// # Errors
/// Of every call: `unreachable`, `connection-lost` or `timed-out` where the store is not there or lost its answer, `access-denied` and
/// `store-failed` where it refuses. The verdict says whether the call may be made again, and `Unknown` that it may have had its
/// effect.
///
/// # Concurrency
/// May be used from several tasks and processes at once.
///
/// # Cancel safety
/// A dropped `put` may have written: read before writing again.
///
/// # Example
/// ```
/// # use std::time::Duration;
/// use tidegate_core::FlowName;
/// use tidegate_core::port::Store;
/// use tidegate_memory::MemoryStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidegate_core::Result<()> {
/// let state = MemoryStore::new("shop").state().await?;
/// let flow = FlowName::new("shop")?;
/// assert_eq!(state.put(&flow, "plan", "first", 0).await?, Some(1));
/// assert_eq!(state.put(&flow, "plan", "second", 0).await?, None, "somebody was faster");
/// assert_eq!(state.put(&flow, "plan", "second", 1).await?, Some(2));
///
/// assert!(!state.hold(&flow, "a", Duration::from_secs(60)).await?.renewed);
/// assert!(state.hold(&flow, "a", Duration::from_secs(60)).await?.renewed);
/// assert!(state.hold(&flow, "b", Duration::from_secs(60)).await.is_err());
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait StateStore: Send + Sync {
    /// The record of a key.
    async fn get(&self, flow: &FlowName, key: &str) -> Result<Option<Stored>>;

    /// Writes a record if its version is `expected`; the new version, or `None` if it was another.
    async fn put(&self, flow: &FlowName, key: &str, value: &str, expected: u64) -> Result<Option<u64>>;

    /// The names of all flows that have a record.
    async fn flows(&self) -> Result<Vec<FlowName>>;

    /// Removes all records of a flow, its checkpoint and its lease.
    async fn forget(&self, flow: &FlowName) -> Result<()>;

    /// Takes, or renews, the lease of a flow by the store's own clock, and says which. Its holder may renew it after its
    /// time as long as nobody else took it and it was not forgotten.
    ///
    /// # Errors
    /// `lease-held` if another holder has it and its time is not over.
    async fn hold(&self, flow: &FlowName, holder: &str, time: Duration) -> Result<Lease>;

    /// Gives the lease up, if it is still this holder's.
    async fn release(&self, flow: &FlowName, holder: &str) -> Result<()>;
}

/// The right to run a flow for some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it.
    pub holder: String,
    /// How long from now, by the store's clock.
    pub time: Duration,
    /// Whether this holder had it before, and nobody else since.
    pub renewed: bool,
}

impl Lease {
    /// The error of whoever asks for a lease that another process has.
    pub fn held_by(process: impl Into<String>) -> Error {
        Error::new(code::LEASE_HELD, "another process runs this migration")
            .with("process", process.into())
            .hint("stop that one first, or work with it: status, pause and set are for any process")
    }
}
