//! Watches what a flow costs its source, and stops it before the source is harmed.

use std::convert::Infallible;
use std::time::Duration;

use tidegate_core::error::{Verdict, code};
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
    loop {
        flow.clock.sleep(LOOK).await;
        let strain = match look(flow, gauge).await {
            Ok(strain) => strain,
            // The run itself finds out whether the source is there, and what to do then.
            Err(error) if error.verdict() != Verdict::Never => continue,
            Err(error) => {
                tracing::warn!(%error, "what the source keeps cannot be looked at");
                continue;
            }
        };
        let most = flow.options.held_bytes_max.max(1);
        let used = strain.used.unwrap_or(0.0).max(strain.held_bytes as f64 / most as f64);
        gauge.strained(strain.held_bytes, used);
        if used >= STOP {
            return Err(Error::new(
                code::SOURCE_IN_DANGER,
                "the source keeps nearly as much log for this flow as it can bear",
            )
            .with("held_bytes", strain.held_bytes)
            .with("used_percent", (used * 100.0).round()));
        }
        if used >= warned {
            let percent = (used * 100.0).round();
            tracing::warn!(
                held_bytes = strain.held_bytes,
                percent,
                "the source keeps much log for this flow"
            );
            warned = (1.0 + used) / 2.0;
        } else if used < WARN {
            warned = WARN;
        }
    }
}

async fn look(flow: &Flow, gauge: &Gauge) -> Result<tidegate_core::port::Strain> {
    flow.source.examiner().await?.strain(&flow.name, &gauge.replay()).await
}
