//! What a run tells over HTTP: `/health`, `/ready` and `/metrics`.
//!
//! `/health` says that the program works, whatever it waits for: who restarts it for a lag makes the lag longer.
//! `/ready` says that it is connected to both sides and holds the lease.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text::encode};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tidegate_core::error::code;
use tidegate_core::{Clock, Error, Result};
use tidegate_flow::{Gauge, Status, TableState};
use tokio::net::TcpListener;

/// After this time without a sign of life the program is not healthy.
const ALIVE: Duration = Duration::from_secs(10);

/// Takes the port, if one was asked for: before anything is made, since it may be another's.
///
/// # Errors
/// `config-invalid` if nothing can listen at that address.
pub(crate) async fn bind(address: Option<SocketAddr>) -> Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound
        .map(Some)
        .map_err(|e| Error::new(code::CONFIG_INVALID, format!("cannot listen on {address}")).because(e))
}

/// What the answers are made from.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    gauge: Arc<Gauge>,
    clock: Arc<dyn Clock>,
    alive_at: Arc<AtomicU64>,
}

impl Listener {
    pub(crate) fn new(gauge: Arc<Gauge>, clock: Arc<dyn Clock>) -> Self {
        let listener = Self { gauge, clock, alive_at: Arc::default() };
        listener.is_alive();
        listener
    }

    /// A sign of life.
    pub(crate) fn is_alive(&self) {
        let now = u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.alive_at.store(now, Ordering::Relaxed);
    }

    /// Answers until it is dropped.
    pub(crate) async fn serve(self, port: TcpListener) -> Result<()> {
        if let Ok(address) = port.local_addr() {
            tracing::info!(%address, "answering /health, /ready and /metrics");
        }
        axum::serve(port, self.router())
            .await
            .map_err(|e| Error::new(code::INTERNAL, "the HTTP listener ended").because(e))
    }

    fn router(self) -> Router {
        let (ready, metrics) = (self.clone(), self.clone());
        Router::new()
            .route("/health", get(async move || self.health()))
            .route("/ready", get(async move || ready.ready()))
            .route("/metrics", get(async move || metrics.metrics()))
    }

    fn health(&self) -> (StatusCode, &'static str) {
        let since = Duration::from_millis(self.alive_at.load(Ordering::Relaxed));
        if self.clock.elapsed().saturating_sub(since) < ALIVE {
            (StatusCode::OK, "alive\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "no sign of life\n")
        }
    }

    fn ready(&self) -> (StatusCode, &'static str) {
        if self.gauge.read(self.clock.as_ref()).connected {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not connected\n")
        }
    }

    fn metrics(&self) -> (StatusCode, [(header::HeaderName, &'static str); 1], String) {
        let mut registry = Registry::with_prefix("tidegate");
        registry.register_collector(Box::new(Metrics(self.gauge.read(self.clock.as_ref()))));
        let mut text = String::new();
        let status = match encode(&mut text, &registry) {
            Ok(()) => StatusCode::OK,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
    }
}

/// A status as metrics.
#[derive(Debug)]
struct Metrics(Status);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::result::Result<(), std::fmt::Error> {
        let status = &self.0;
        for (name, help, value) in [
            ("changes_applied", "Changes that are in the target", status.changes_applied),
            ("rows_healed", "Rows that the target lacked, read again and written", status.rows_healed),
            ("rows_moved", "Rows read again because their key changed", status.rows_moved),
            ("reads_given_up", "Reads given up because of too many changes", status.reads_given_up),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let lag = ConstGauge::new(status.lag_seconds());
        let kind = lag.metric_type();
        lag.encode(encoder.encode_descriptor(
            "lag",
            "Between source and target",
            Some(&Unit::Seconds),
            kind,
        )?)?;
        for (name, help, value) in [
            (
                "behind",
                "Bytes, or journal entries, that the source has and the target has not",
                status.behind,
            ),
            ("held_by_source", "Bytes that the source keeps for this migration", status.held_bytes),
            ("rows_missing", "Rows that the target lacks for now", status.rows_missing),
            ("connected", "Whether the run is connected to both sides", u64::from(status.connected)),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counter = ConstCounter::new(0_u64);
        let mut rows = encoder.encode_descriptor(
            "rows_crawled",
            "Crawled rows in the target",
            None,
            counter.metric_type(),
        )?;
        for table in &status.tables {
            let label = [("table", table.source.as_str())];
            ConstCounter::new(table.rows_crawled).encode(rows.encode_family(&label)?)?;
        }
        let gauge = ConstGauge::new(0_i64);
        let mut stopped = encoder.encode_descriptor(
            "table_stopped",
            "Whether a table stopped",
            None,
            gauge.metric_type(),
        )?;
        for table in &status.tables {
            let label = [("table", table.source.as_str())];
            let is_stopped = ConstGauge::new(i64::from(table.state == TableState::Failed));
            is_stopped.encode(stopped.encode_family(&label)?)?;
        }
        Ok(())
    }
}
