//! PostgreSQL as a source and a target.
//!
//! Two clients share one configuration: `tokio-postgres` for bulk reads and staged writes ([`connect`]), and a
//! thin one of our own for the replication protocol ([`wire`]), which `tokio-postgres` does not speak. The thin
//! one never acknowledges anything by itself: what may be forgotten by the server is the caller's decision.
//!
//! - [`config`]: what a `postgres://` URL says
//! - [`connect`]: an ordinary session
//! - [`wire`]: a replication session and the stream of the write-ahead log
//! - [`pgoutput`]: what that stream says
//! - [`binary`]: values in the server's binary form
//! - [`lsn`]: positions in the write-ahead log

pub mod binary;
mod catalog;
mod change_feed;
mod codec;
pub mod config;
pub mod connect;
mod crawler;
mod cursor;
mod encode;
mod error;
mod form;
mod link;
pub mod lsn;
pub mod pgoutput;
mod schema;
mod sink;
mod sql;
mod state;
mod store;
mod tls;
pub mod wire;

use std::sync::Arc;

use tidegate_core::port::Store;
use tidegate_core::{Endpoint, Result};

pub use config::Settings;
pub use lsn::Lsn;

/// The schemes of the URLs that [`open`] takes.
pub const SCHEMES: &[&str] = &["postgres", "postgresql"];

/// Opens a database by its URL. Nothing is reached yet.
///
/// # Errors
/// `url-invalid` or `config-invalid`.
pub fn open(endpoint: &Endpoint) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(store::PostgresStore::open(endpoint)?))
}
