//! The ports: what an adapter, or an application, implements.
//!
//! A source of rows is a [`Catalog`], a [`Crawler`] and a [`ChangeFeed`]; a target is a [`Catalog`], a [`Sink`] and a
//! [`StateStore`]. A [`Store`] opens them by URL. Each trait's page has its contract as numbered rules.

mod catalog;
mod change_feed;
mod crawler;
mod examiner;
mod sink;
mod state;
mod store;
mod transform;

pub use catalog::{Catalog, Conversions, Fit, Identity, Obstacle, Selection};
pub use change_feed::{ChangeFeed, Progress};
pub use crawler::{Chunk, Crawler, KeyRange};
pub use examiner::{Examiner, Finding, Side, Strain, Weight};
pub use sink::{Applied, Batch, Checkpoint, Commit, Opened, RangeProgress, Route, Sink, TableBatch};
pub use state::{Lease, StateStore, Stored};
pub use store::Store;
pub use transform::{Join, Made, MadeColumn, Recipe, Record, Transform};
