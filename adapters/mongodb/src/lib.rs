//! MongoDB as a source and a target.
//!
//! A server must be a member of a replica set: rows and the checkpoint are written in one transaction, chunks are
//! read at one instant, and changes come from a change stream.
//!
//! Everything of ours in a database is in collections whose names begin with `tidegate.`.
//!
//! - `store`, `connect`: what a `mongodb:` URL says, and the client
//! - `catalog`, `fit`: collections, keys, types
//! - `crawler`, `change_feed`, `stream`, `codec`: reading
//! - `sink`, `write`, `insert`, `transact`, `apart`, `checkpoint`, `state`: writing
//! - `documents`, `decimal`, `json`, `extended`: values

mod apart;
mod catalog;
mod change_feed;
mod checkpoint;
mod codec;
mod connect;
mod crawler;
mod decimal;
mod documents;
mod error;
mod examiner;
mod extended;
mod fit;
mod identity;
mod insert;
mod json;
mod sink;
mod state;
mod store;
mod stream;
mod transact;
mod write;

use std::sync::Arc;

use tidegate_core::port::Store;
use tidegate_core::{Codec, Endpoint, Result};

/// The URL schemes of this adapter.
pub const SCHEMES: &[&str] = &["mongodb", "mongodb+srv"];

/// How rows of these stores are read.
pub fn codec() -> Arc<dyn Codec> {
    Arc::new(codec::Bson)
}

/// Opens a store by its URL, `mongodb://HOST/DATABASE?replicaSet=NAME`. Nothing is connected before a port is opened.
///
/// # Errors
/// `url-invalid` if the URL names no database.
pub fn open(endpoint: &Endpoint) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(store::MongoStore::new(endpoint)?))
}
