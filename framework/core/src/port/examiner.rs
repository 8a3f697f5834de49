//! Looks at a server's settings and state: what could be lost there, and what a flow costs it.

use async_trait::async_trait;

use crate::error::Result;
use crate::flow::FlowName;
use crate::position::Position;

/// The part that a store plays in a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Rows and changes come from it.
    Source,
    /// They go to it.
    Target,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// As it should be.
    Good,
    /// It works; something may become slow or stop.
    Notice,
    /// Data can be lost, or the flow cannot work.
    Loss,
}

/// One setting, or one state, of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: `wal_level`.
    pub what: String,
    /// What it is.
    pub found: String,
    /// How grave that is.
    pub weight: Weight,
    /// What can happen, and how to avoid it. Empty if it is good.
    pub advice: String,
}

impl Finding {
    /// A finding that is good if `good`, else of this weight and with this advice.
    pub fn new(
        what: impl Into<String>,
        found: impl ToString,
        good: bool,
        else_weight: Weight,
        advice: impl Into<String>,
    ) -> Self {
        let (weight, advice) =
            if good { (Weight::Good, String::new()) } else { (else_weight, advice.into()) };
        Self { what: what.into(), found: found.to_string(), weight, advice }
    }
}

/// What a source bears for a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Strain {
    /// Bytes of log, or of journal, that it keeps for the flow. 0 where its log is kept for nobody: ending the flow gives
    /// nothing back there.
    pub held_bytes: u64,
    /// How much of its own bound is used, from 0 to 1: at 1 it forgets what the flow has not had yet. `None` without
    /// a bound.
    pub used: Option<f64>,
}

/// Examines one store.
///
/// # Contract
/// 1. Changes nothing, and works with the rights that a flow has; what it may not see is a finding of weight
///    [`Weight::Notice`].
/// 2. `strain` of a flow that the source keeps nothing for has no bytes.
/// 3. `grants` gives a script that a server's administrator can run as it is, with the least rights that work.
///
/// # Concurrency
/// May be used from several tasks at once.
#[async_trait]
pub trait Examiner: Send + Sync {
    /// Looks at everything that matters to that side.
    async fn examine(&self, side: Side) -> Result<Vec<Finding>>;

    /// What the source bears for a flow that has had everything up to a position.
    ///
    /// # Errors
    /// That of the change feed, as `slot-lost`, where the source says that it keeps what follows no longer.
    async fn strain(&self, flow: &FlowName, from: &Position) -> Result<Strain>;

    /// The script that gives a user the rights of that side.
    fn grants(&self, side: Side, user: &str) -> String;
}
