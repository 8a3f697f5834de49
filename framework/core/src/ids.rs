//! Ids come through a trait, so that a proof can replay a seed.

use uuid::Uuid;

/// Makes ids that are unique, and sort by the time they were made.
pub trait Ids: Send + Sync + std::fmt::Debug {
    /// The next id (UUID version 7).
    fn next(&self) -> Uuid;
}

/// Ids from the machine's clock and random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemIds;

impl Ids for SystemIds {
    #[allow(clippy::disallowed_methods, reason = "this is the one place that makes random ids")]
    fn next(&self) -> Uuid {
        Uuid::now_v7()
    }
}
