//! SQLite as a source, a target and a broker.
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
//! - `sink`, `write`, `checkpoint`, `state`, `timers`, `transactional`: writing
//! - `cells`, `text`, `statement`: values and SQL
//! - `broker`, `producer`, `consumer`, `settle`: the embedded broker

mod broker;
mod browse;
mod catalog;
mod cells;
mod change_feed;
mod checkpoint;
mod connect;
mod consumer;
mod crawler;
mod describe;
mod error;
mod examiner;
mod fit;
pub mod journal;
mod producer;
mod settle;
mod sink;
mod state;
mod statement;
mod store;
mod timers;
mod transactional;
mod write;

use std::sync::Arc;

use tidegate_core::port::{Broker, Store, Timers};
use tidegate_core::{Endpoint, Result};

pub use broker::SqliteBroker;
pub use store::SqliteStore;
pub use transactional::SqliteTx;

/// The URL schemes of this adapter.
pub const SCHEMES: &[&str] = &["sqlite"];

/// Opens a store by its URL, `sqlite:PATH`. The file is looked at when a port is opened.
///
/// # Errors
/// `url-invalid` if the URL names no file.
pub fn open(endpoint: &Endpoint) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(SqliteStore::new(endpoint)?))
}

/// Opens the timers of a file by its URL, `sqlite:PATH`. The file is made when a timer is set.
///
/// # Errors
/// As [`open`].
pub fn open_timers(endpoint: &Endpoint) -> Result<Arc<dyn Timers>> {
    Ok(Arc::new(SqliteStore::new(endpoint)?))
}

/// Opens a file by its URL, `sqlite:PATH`, for handlers that write in its transactions. The file is made when it is used.
///
/// # Errors
/// As [`open`].
pub fn open_inbox(endpoint: &Endpoint) -> Result<SqliteStore> {
    SqliteStore::new(endpoint)
}

/// The URL schemes of the broker.
pub const BROKER_SCHEMES: &[&str] = &["sqlite"];

/// Opens a broker by its URL, `sqlite:PATH`. The file is made when it is used first.
///
/// Behind a `?` may stand `lease_ms` (how long a process that is not heard of keeps its lanes, 10,000), `grace_ms` (how
/// long a consumer may finish with a lane that another one is to have, 5,000) and `patience_ms` (how long publishing
/// waits for room, 10,000).
///
/// # Errors
/// `url-invalid` if the URL names no file, or a setting that is none.
pub fn open_broker(endpoint: &Endpoint) -> Result<Arc<dyn Broker>> {
    Ok(Arc::new(SqliteBroker::new(endpoint)?))
}
