//! Watches what a flow costs its source, and stops it before the source is harmed.

use std::convert::Infallible;
use std::time::Duration;

use tidegate_core::error::{Kind, Verdict, code};
use tidegate_core::{Error, Result};

use crate::engine::Flow;
use crate::status::Gauge;

/// How often it looks.
const LOOK: Duration = Duration::from_secs(5);
/// From this share of the bound on it warns, and again whenever the rest has halved.
const WARN: f64 = 0.5;
/// From this share on the run stops.
const STOP: f64 = 0.95;

/// Looks until the source is in danger.
///
/// # Errors
/// `source-in-danger`.
pub(crate) async fn watch(flow: &Flow, gauge: &Gauge) -> Result<Infallible> {
    let mut warned = WARN;
    let mut bound = Bound::default();
    loop {
        flow.clock.sleep(LOOK).await;
        let strain = match look(flow, gauge).await {
            Ok(strain) => strain,
            // The run itself finds out whether the source is there, and what to do then.
            Err(error) if error.verdict() != Verdict::Never => continue,
            // What has to be kept is gone; nothing that the run may still do brings it back.
            Err(error) if error.kind() == Kind::Lost => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "what the source keeps cannot be looked at");
                continue;
            }
        };
        let most = flow.options.held_bytes_max.max(1);
        let used = strain.used.unwrap_or(0.0).max(strain.held_bytes as f64 / most as f64);
        gauge.strained(strain.held_bytes, used);
        if bound.is_passed(strain.held_bytes, used, most) {
            return Err(Error::new(
                code::SOURCE_IN_DANGER,
                "the source keeps nearly as much log for this flow as it can bear",
            )
            .with("held_bytes", strain.held_bytes)
            .with("used_percent", (used * 100.0).round()));
        }
        if used >= warned {
            let percent = (used * 100.0).round();
            if strain.held_bytes > 0 {
                let held_bytes = strain.held_bytes;
                tracing::warn!(held_bytes, percent, "the source keeps much log for this flow");
            } else {
                tracing::warn!(percent, "the source will soon forget what this flow has not had yet");
            }
            warned = (1.0 + used) / 2.0;
        } else if used < WARN {
            warned = WARN;
        }
    }
}

/// What the source may keep for a run. One that begins beyond the bound may hold as much again: nothing but a run brings
/// it down.
#[derive(Default)]
struct Bound {
    /// What such a run may hold; 0 for one that was within the bound, or has been since.
    raised: Option<u64>,
}

impl Bound {
    fn is_passed(&mut self, held_bytes: u64, used: f64, most: u64) -> bool {
        // A log that is kept for nobody is not freed by an end of the run: that only loses its place the sooner.
        let is_over = used >= STOP && held_bytes > 0;
        let raised = self.raised.get_or_insert(if is_over { held_bytes.saturating_add(most) } else { 0 });
        if !is_over {
            *raised = 0;
        }
        is_over && held_bytes >= *raised
    }
}

async fn look(flow: &Flow, gauge: &Gauge) -> Result<tidegate_core::port::Strain> {
    flow.source.examiner().await?.strain(&flow.name, &gauge.replay()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by trying: a run that was to catch up was stopped before it could, each time it was started.
    #[test]
    fn a_run_that_begins_beyond_the_bound_may_catch_up() {
        let most = 100;
        let passed = |looks: &[u64]| {
            let mut bound = Bound::default();
            looks.iter().position(|held| bound.is_passed(*held, *held as f64 / most as f64, most))
        };
        assert_eq!(passed(&[10, 94, 95]), Some(2));
        assert_eq!(passed(&[300, 340, 399, 200, 90]), None, "it catches up");
        assert_eq!(passed(&[300, 340, 400]), Some(2), "it does not");
        assert_eq!(passed(&[300, 90, 96]), Some(2), "it had");
    }

    /// Found by reading: a run was stopped for a log that MongoDB keeps for nobody, and what it would have read was lost.
    #[test]
    fn a_log_that_is_held_for_nobody_stops_no_run() {
        let mut bound = Bound::default();
        assert!([0.1, 0.96, 1.0].iter().all(|used| !bound.is_passed(0, *used, 100)));
    }
}
