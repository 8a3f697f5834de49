//! The works, as the table of speeds names them.

pub mod broker;
pub mod crawl_mongo;
pub mod crawl_null;
pub mod crawl_pg;
pub mod crawl_random;
pub mod drain;
pub mod latency;
pub mod memory;
pub mod verify;

use crate::Result;

/// A work counts for nothing if it did not move what it was to move.
fn equal(found: u64, wanted: u64) -> Result<()> {
    if found == wanted { Ok(()) } else { Err(format!("{found} are there of {wanted}").into()) }
}
