//! Looks at the messages of a channel without taking part in it.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
use crate::lane::Lane;
use crate::message::Message;
use crate::position::Position;

/// A message that was looked at.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The message.
    pub message: Message,
    /// Its lane.
    pub lane: Lane,
    /// Where it stands, if the broker can say.
    pub position: Option<Position>,
    /// When it was stored, in microseconds since 1970, if the broker can say.
    pub stored_at: Option<i64>,
}

/// Looks at messages, for people and tools.
///
/// # Contract
/// 1. Nothing is settled, kept or held up by it: what every subscription has settled goes, whether it was seen here or
///    not. (B62)
/// 2. Messages of a lane come in their order, each once; what is published meanwhile comes too. (B62)
///
/// # Cancel safety
/// A dropped call loses nothing.
#[async_trait]
pub trait Browse: Send {
    /// Appends at most `max` of the next messages to `out`. Waits for one at most so long, and comes back without any
    /// then.
    ///
    /// # Errors
    /// What keeps it from looking. It may be asked again.
    async fn next(&mut self, max: usize, wait: Duration, out: &mut Vec<Seen>) -> Result<()>;
}
