//! Keeps bodies that are too large for a broker.

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;

/// A place for large bodies, beside the broker: a folder that all processes see, or a store of objects.
///
/// # Contract
/// 1. What `put` has answered is there, whole, for every process, until it is purged; what is being put is not there yet.
/// 2. The same name put again is one blob, as it was put last, and as old as that.
/// 3. `get` of a name that is not there is `None`, and no error.
/// 4. Names are our own words: 1 to 100 of `a-z`, `0-9` and `-`.
/// 5. `purge` removes what was put before, by the store's own clock, and nothing else.
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
/// A dropped `put` may have happened; put it again.
///
/// # Example
/// ```
/// use tidegate_core::port::Blobs;
/// use tidegate_memory::MemoryBlobs;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidegate_core::Result<()> {
/// let blobs = MemoryBlobs::default();
/// blobs.put("one", "a long text".into()).await?;
/// assert_eq!(blobs.get("one").await?.as_deref(), Some(&b"a long text"[..]));
/// assert_eq!(blobs.get("two").await?, None);
/// assert_eq!(blobs.purge(i64::MAX).await?, 1);
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Blobs: Send + Sync + std::fmt::Debug {
    /// Keeps a blob.
    async fn put(&self, name: &str, data: Bytes) -> Result<()>;

    /// A blob, if it is there.
    async fn get(&self, name: &str) -> Result<Option<Bytes>>;

    /// Removes blobs that were put before this time, in microseconds since 1970: how many.
    async fn purge(&self, before: i64) -> Result<usize>;
}
