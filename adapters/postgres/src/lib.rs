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
pub mod config;
pub mod connect;
mod cursor;
mod error;
mod link;
pub mod lsn;
pub mod pgoutput;
mod tls;
pub mod wire;

pub use config::Settings;
pub use lsn::Lsn;
