//! Keeps what is to happen later, until it has happened.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
use crate::flow::FlowName;

/// Something that is to happen at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// What tells it from the other timers of its flow: at most 200 bytes.
    pub id: String,
    /// When, in microseconds since 1970.
    pub at: i64,
    /// What: text of at most 8 MiB.
    pub value: String,
}

/// A timer whose time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The timer.
    pub timer: Timer,
    /// Which setting of the timer it is. No other one, of any timer, ever has this number.
    pub number: u64,
}

/// Keeps timers.
///
/// ```text
/// put ──▶ (waits until `at`) ──▶ due ──▶ whoever fires it ──▶ done
///  ▲                              ▲                  │ died
///  └── put again: another number  └── hidden ◀───────┘
/// ```
///
/// # Contract
/// 1. A timer that was put is durable and seen by every process. (T1)
/// 2. `due` gives those whose time is not after `upto`, the earliest first, and at most `limit` of them. (T2)
/// 3. What `due` gave is hidden until `upto` is later by `hide`, and then given again, until it is done or cancelled: one that
///    fires it does not fire it beside others, and who dies over it keeps it from nobody. (T3)
/// 4. The same id put again is another setting, with another number, given at its own time and hidden by nothing that was
///    given before. (T4)
/// 5. `done` takes away the setting of that number and no later one: an owner of before ends nothing. (T5)
/// 6. What was cancelled is not given any more; `cancel` says whether there was something. What was given before may still
///    happen. (T6)
/// 7. Flows are apart; [`StateStore::forget`](crate::port::StateStore::forget) of the same store forgets a flow's timers. (T7)
///
/// Times are those of whoever asks: a timer is never early by the clock of the one that fires it.
///
/// # Errors
/// Of every call: `unreachable`, `connection-lost` or `timed-out` where the store is not there or lost its answer, `access-denied` and
/// `store-failed` where it refuses. The verdict says whether the call may be made again, and `Unknown` that it may have had its
/// effect.
///
/// # Concurrency
/// May be used from several tasks and processes at once.
///
/// # Cancel safety
/// A dropped call may have happened. A dropped `due` may hide what nobody fires for as long as `hide`.
///
/// # Example
/// ```
/// # use std::time::Duration;
/// use tidegate_core::FlowName;
/// use tidegate_core::port::{Timer, Timers};
/// use tidegate_memory::MemoryStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidegate_core::Result<()> {
/// let (timers, shop) = (MemoryStore::new("shop"), FlowName::new("shop")?);
/// timers.put(&shop, &Timer { id: "order-17".into(), at: 1_000, value: "remind".into() }).await?;
/// let hide = Duration::from_secs(60);
/// assert!(timers.due(&shop, 999, 10, hide).await?.is_empty());
/// let due = timers.due(&shop, 1_000, 10, hide).await?;
/// assert_eq!(due[0].timer.value, "remind");
/// assert!(timers.due(&shop, 1_000, 10, hide).await?.is_empty(), "somebody has it");
/// assert!(timers.done(&shop, due[0].number).await?);
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Timers: Send + Sync + std::fmt::Debug {
    /// Sets a timer, in the place of one of the same id.
    async fn put(&self, flow: &FlowName, timer: &Timer) -> Result<()>;

    /// Takes a timer away; whether it was there.
    async fn cancel(&self, flow: &FlowName, id: &str) -> Result<bool>;

    /// Those whose time has come by `upto`, hidden from others for as long as `hide`.
    async fn due(&self, flow: &FlowName, upto: i64, limit: usize, hide: Duration) -> Result<Vec<Due>>;

    /// It has happened; whether that setting was still there.
    async fn done(&self, flow: &FlowName, number: u64) -> Result<bool>;
}
