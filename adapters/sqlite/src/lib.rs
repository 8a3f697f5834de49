//! SQLite as a source and a target.
//!
//! A source must be in WAL mode. Its changes are captured by triggers that write the keys of changed rows, and
//! nothing else, into a journal table of ours ([`journal`]); the feed looks the rows up when it reads the journal.
//! So a change is delivered as the state of its row, and not as the steps that led there.
//!
//! Everything of ours in a file begins with `tidegate_`.
//!
//! - `store`, `connect`: what a `sqlite:` URL says, and connections
//! - `describe`, `catalog`, `fit`: tables, keys, types
//! - [`journal`]: triggers and the journal
//! - `change_feed`, `crawler`: reading
//! - `sink`, `write`, `checkpoint`, `state`: writing
//! - `cells`, `text`, `statement`: values and SQL

mod catalog;
mod cells;
mod change_feed;
mod checkpoint;
mod connect;
mod crawler;
mod describe;
mod error;
mod examiner;
mod fit;
pub mod journal;
mod sink;
mod state;
mod statement;
mod store;
mod write;

use std::sync::Arc;

use tidegate_core::port::Store;
use tidegate_core::{Endpoint, Result};

pub use store::SqliteStore;

/// The URL schemes of this adapter.
pub const SCHEMES: &[&str] = &["sqlite"];

/// Opens a store by its URL, `sqlite:PATH`. The file is looked at when a port is opened.
///
/// # Errors
/// `url-invalid` if the URL names no file.
pub fn open(endpoint: &Endpoint) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(SqliteStore::new(endpoint)?))
}
