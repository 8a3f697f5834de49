//! Waits by a clock.

use std::time::Duration;

use tidegate_core::Clock;

/// Returns when the clock has come to this time, as [`Clock::elapsed`] counts. Cancel safe.
pub(crate) async fn until(clock: &dyn Clock, time: Duration) {
    while let Some(left) = time.checked_sub(clock.elapsed()).filter(|left| !left.is_zero()) {
        clock.sleep(left).await;
    }
}
