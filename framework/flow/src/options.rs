//! The limits of a flow. Everything that can grow has one.

use std::time::Duration;

/// Sizes and times of a flow.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Options {
    /// Rows a chunk has at most.
    pub chunk_rows: usize,
    /// Bytes a chunk has at most, but for its last row.
    pub chunk_bytes: usize,
    /// Reads of the crawl at the same time.
    pub workers: usize,
    /// Ranges a table is cut into for each worker.
    pub ranges_per_worker: usize,
    /// Changes applied in one transaction at most, unless one transaction of the source has more.
    pub batch_changes: usize,
    /// Bytes of changes applied in one transaction at most, as above.
    pub batch_bytes: usize,
    /// Bytes of changes kept for chunks that are being read. Beyond it reads are given up and done again.
    pub window_bytes: usize,
    /// Bytes of log or journal that the source may keep for the flow. Beyond it the run stops, before the source's
    /// disk is in danger.
    pub held_bytes_max: u64,
    /// How often the source is told what it may forget.
    pub acknowledge_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            chunk_rows: 20_000,
            chunk_bytes: 8 << 20,
            workers: 1,
            ranges_per_worker: 4,
            batch_changes: 20_000,
            batch_bytes: 8 << 20,
            window_bytes: 32 << 20,
            held_bytes_max: 64 << 30,
            acknowledge_every: Duration::from_secs(1),
        }
    }
}
