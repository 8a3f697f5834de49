//! Data in motion from one store to another: crawl and capture at once, merged, applied, checkpointed.
//!
//! [`engine`] has the picture. The rules stand in [`window`] (what a chunk may have missed) and in
//! [`tidegate_core::port`] (what adapters promise).

mod apply;
mod capture;
pub mod coalesce;
mod crawl;
mod cut;
pub mod engine;
pub mod follow;
mod holes;
pub mod options;
pub mod plan;
pub mod plant;
pub mod run;
pub mod seal;
mod sequencer;
pub mod status;
pub mod transform;
pub mod verify;
pub mod via;
mod watch;
pub mod window;

pub use engine::{Ended, Flow, MaxRate, Request, Until, run_once};
pub use follow::{Doubt, renew};
pub use options::Options;
pub use plan::{Plan, PlannedTable, Wanted, plan};
pub use status::{Gauge, Status, TableState, TableStatus};
pub use transform::Transformed;
