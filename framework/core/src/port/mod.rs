//! The ports: what an adapter, or an application, implements.
//!
//! A source of rows is a [`Catalog`], a [`Crawler`] and a [`ChangeFeed`]; a target is a [`Catalog`], a [`Sink`] and a
//! [`StateStore`]. A [`Store`] opens them by URL. A [`Broker`] opens a [`Producer`] and a [`Consumer`], whose deliveries
//! a [`Settle`] settles, and a [`Browse`], which only looks; [`Blobs`] keep what is too large for it, and [`Timers`] what is
//! to happen later. In the transactions of a [`Transactional`] store handlers write. Each trait's page has its contract as
//! numbered rules.

mod blobs;
mod broker;
mod browse;
mod catalog;
mod change_feed;
mod consumer;
mod crawler;
mod examiner;
mod producer;
mod settle;
mod sink;
mod state;
mod store;
mod timers;
mod transactional;
mod transform;

pub use blobs::Blobs;
pub use broker::{Broker, Effective};
pub use browse::{Browse, Seen};
pub use catalog::{Catalog, Conversions, Fit, Identity, NOT_EMPTY, Obstacle, Selection, convert_argument};
pub use change_feed::{ChangeFeed, Progress};
pub use consumer::{Attempt, Consumer, Delivery, Leftover, Signal, Token};
pub use crawler::{Chunk, Crawler, KeyRange, Limit};
pub use examiner::{Examiner, Finding, Side, Strain, Weight};
pub use producer::{Producer, Sent};
pub use settle::{Settle, Settled, Settlement};
pub use sink::{
    Applied, Batch, Checkpoint, Commit, Exclusion, Opened, RangeProgress, Route, Sink, TableBatch,
};
pub use state::{Lease, StateStore, Stored};
pub use store::Store;
pub use timers::{Due, Timer, Timers};
pub use transactional::Transactional;
pub use transform::{Join, Made, MadeColumn, Recipe, Record, Transform};
