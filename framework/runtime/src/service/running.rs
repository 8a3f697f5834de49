//! A service that has been started.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::{Clock, Result, Scope};
use tokio::sync::watch;

use crate::delivery::{Counted, Meter};
use crate::metrics::Metrics;
use crate::replier::Replier;
use crate::sender::{Sender, close_all};

/// A service that handles messages. Dropping it is a crash: what is in hand comes again elsewhere.
pub struct Running {
    name: String,
    tasks: Scope,
    /// By when everything is to be at its end, by the clock.
    stop: watch::Sender<Option<Duration>>,
    meters: Vec<Arc<Meter>>,
    metrics: Metrics,
    replier: Arc<Replier>,
    /// What its handlers send with, to be ended behind them.
    senders: Vec<Sender>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("name", &self.name)
            .field("counted", &self.counted())
            .finish_non_exhaustive()
    }
}

impl Running {
    pub(super) fn new(
        name: String,
        tasks: Scope,
        stop: watch::Sender<Option<Duration>>,
        meters: Vec<Arc<Meter>>,
        metrics: Metrics,
        replier: Arc<Replier>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { name, tasks, stop, meters, metrics, replier, senders: Vec::new(), clock }
    }

    /// Ends these too, when everything is handled.
    pub(crate) fn closing(mut self, senders: impl IntoIterator<Item = Sender>) -> Self {
        self.senders.extend(senders);
        self
    }

    /// What it has done so far.
    pub fn counted(&self) -> Counted {
        self.meters.iter().fold(Counted::default(), |all, meter| all.and(meter.counts.read()))
    }

    /// What is measured of it, and of others that were given the same metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Handles messages until `signal` is there, whatever it says, then drains: `tokio::signal::ctrl_c()`, for example.
    ///
    /// # Errors
    /// What ended a consumer in a way that does not pass, as when its subscription was unregistered. The others are
    /// drained then.
    ///
    /// # Cancel safety
    /// A dropped call is a crash, as dropping the service is: what is in hand comes again elsewhere.
    pub async fn until(mut self, signal: impl Future, deadline: Duration) -> Result<()> {
        let ended = tokio::select! {
            _ = signal => Ok(()),
            ended = self.tasks.next() => ended.unwrap_or(Ok(())),
        };
        ended.and(self.drain(deadline).await)
    }

    /// Takes no more messages, lets handlers end until the deadline, settles what they did and releases the rest. Then the
    /// senders of dead letters and replies are closed.
    ///
    /// # Errors
    /// As [`until`](Self::until).
    ///
    /// # Cancel safety
    /// As [`until`](Self::until).
    pub async fn drain(self, deadline: Duration) -> Result<()> {
        let end = self.clock.elapsed() + deadline;
        self.stop.send_replace(Some(end));
        let mut tasks = self.tasks;
        let mut result = Ok(());
        while let Some(ended) = tasks.next().await {
            result = result.and(ended);
        }
        let left = end.saturating_sub(self.clock.elapsed());
        futures::join!(close_all(self.senders, left), self.replier.close(left));
        result
    }
}
