//! Waits by a clock.

use std::time::Duration;

use tidegate_core::Clock;
use tokio::sync::watch;

/// Returns when the clock has come to this time, as [`Clock::elapsed`] counts. Cancel safe.
pub(crate) async fn until(clock: &dyn Clock, time: Duration) {
    while let Some(left) = time.checked_sub(clock.elapsed()).filter(|left| !left.is_zero()) {
        clock.sleep(left).await;
    }
}

/// By when something is to end, once that is said; never, if nobody is there any more who could say it. Cancel safe.
pub(crate) async fn told(ends: &mut watch::Receiver<Option<Duration>>) -> Duration {
    match ends.wait_for(Option::is_some).await.ok().and_then(|end| *end) {
        Some(end) => end,
        None => std::future::pending().await,
    }
}
