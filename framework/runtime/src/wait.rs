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

/// Says by when something is to end, unless a sooner time was said.
pub(crate) fn end_by(ends: &watch::Sender<Option<Duration>>, end: Duration) {
    ends.send_if_modified(|known| {
        let is_sooner = known.is_none_or(|known| end < known);
        *known = if is_sooner { Some(end) } else { *known };
        is_sooner
    });
}

/// By when something is to end, once that is said; never, if nobody is there any more who could say it. Cancel safe.
pub(crate) async fn told(ends: &mut watch::Receiver<Option<Duration>>) -> Duration {
    match ends.wait_for(Option::is_some).await.ok().and_then(|end| *end) {
        Some(end) => end,
        None => std::future::pending().await,
    }
}
