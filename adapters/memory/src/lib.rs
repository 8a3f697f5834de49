//! A store in memory: the reference implementation of the ports, for tests of user code and for proofs.
//!
//! It behaves as a real store does where that matters to correctness: changes are logged in the order of commit,
//! a commit may be logged before readers see it, columns that an update leaves alone may be left out of the log, and
//! the log can be cut. Nothing in it survives the process.
//!
//! ```
//! use tidegate_core::{Column, TableName, Type, Value};
//! use tidegate_memory::{MemoryStore, Write};
//!
//! let store = MemoryStore::new("shop");
//! let orders = TableName::new("", "orders");
//! store.create_table(&orders, vec![Column::new("id", Type::Int { bits: 64 })], &["id"]);
//! store.transact(&[Write::insert(&orders, [Value::Int(1)])])?;
//! assert_eq!(store.rows(&orders), [[Value::Int(1)]]);
//! # Ok::<(), tidegate_core::Error>(())
//! ```

//!
//! [`MemoryBroker`] does the same for brokers: the shortest implementation of their contract, with a connection that
//! can be cut and answers that can be lost.

mod blobs;
mod broker;
mod browse;
mod catalog;
mod change_feed;
mod channel;
mod codec;
mod consumer;
mod crawler;
mod examiner;
mod inner;
mod producer;
mod settle;
mod sink;
mod state;
mod store;
mod timers;

use std::sync::Arc;

use tidegate_core::port::Broker;
use tidegate_core::{Endpoint, Result};

pub use blobs::MemoryBlobs;
pub use broker::MemoryBroker;
pub use inner::Write;
pub use store::{Backup, MemoryStore};

/// The URL schemes of the broker.
pub const BROKER_SCHEMES: &[&str] = &["memory"];

/// Opens a broker by its URL, `memory:`. Each one is apart from all others; its clones are the same.
///
/// # Errors
/// None; other adapters have some.
pub fn open_broker(_: &Endpoint) -> Result<Arc<dyn Broker>> {
    Ok(Arc::new(MemoryBroker::default()))
}
