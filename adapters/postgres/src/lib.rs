//! PostgreSQL as a source and a target.
//!
//! [`open`] gives a store by its URL; everything else stands behind the ports of `tidegate_core`. As a source it is
//! read by key in binary copies, each at one instant, and by its log through a publication and a slot; rows pass
//! through in the server's own binary form. As a target it keeps the checkpoint in the schema `tidegate`, in the
//! transaction of the rows.
//!
//! Two clients share one configuration: `tokio-postgres` for everything in SQL, and a thin one of our own for the
//! replication protocol, which `tokio-postgres` does not speak. The thin one never acknowledges anything by itself:
//! what the server may forget is the caller's decision.
//!
//! ```
//! use tidegate_core::Endpoint;
//!
//! let store = tidegate_postgres::open(&Endpoint::parse("postgres://app:s3cret@db.example/shop")?)?;
//! assert_eq!(store.location(), "postgres://app@db.example:5432/shop");
//! # Ok::<(), tidegate_core::Error>(())
//! ```

mod binary;
mod catalog;
mod change_feed;
mod codec;
mod config;
mod connect;
mod crawler;
mod cursor;
mod encode;
mod error;
mod examiner;
mod form;
mod link;
mod lsn;
mod pgoutput;
mod schema;
mod sink;
mod sql;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod timers;
mod tls;
mod transactional;
mod wire;

use std::sync::Arc;

use tidegate_core::port::{Store, Timers};
use tidegate_core::{Codec, Endpoint, Result};

pub use transactional::{PostgresInbox, PostgresTx};

/// The schemes of the URLs that [`open`] takes.
pub const SCHEMES: &[&str] = &["postgres", "postgresql"];

/// How rows of these databases are read.
pub fn codec() -> Arc<dyn Codec> {
    Arc::new(codec::Binary)
}

/// Opens a database by its URL. Nothing is reached yet.
///
/// # Errors
/// `url-invalid` or `config-invalid`.
pub fn open(endpoint: &Endpoint) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(store::PostgresStore::open(endpoint)?))
}

/// Opens the timers of a database by its URL. Nothing is reached yet.
///
/// # Errors
/// `url-invalid` or `config-invalid`.
pub fn open_timers(endpoint: &Endpoint) -> Result<Arc<dyn Timers>> {
    Ok(Arc::new(state::PostgresState::new(store::PostgresStore::open(endpoint)?)))
}

/// Opens a database whose transactions note what was handled. Nothing is reached yet.
///
/// # Errors
/// `url-invalid` or `config-invalid`.
pub fn open_inbox(endpoint: &Endpoint) -> Result<PostgresInbox> {
    PostgresInbox::open(endpoint)
}
