//! What services do, as Prometheus reads it.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text::encode};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tidegate_core::{Clock, SystemClock};

use crate::delivery::Meter;

/// The media type of [`Metrics::text`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of all services of a process that were given a copy of it, by channel, subscription and kind of message. They
/// count what this process has done since the start of the service; a service that has ended is in them no more.
///
/// ```
/// # use tidegate_core::{Channel, Endpoint, Message, Result};
/// # use tidegate_runtime::{Handlers, Metrics, Policy, Service};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// # let broker = tidegate_memory::open_broker(&Endpoint::parse("memory:")?)?;
/// # let (orders, bill) = (Channel::new("orders")?, |_: Message| async {});
/// let metrics = Metrics::default();
/// let billing = Service::new("billing")
///     .with_metrics(&metrics)
///     .on(&orders, Handlers::new().handle(bill).with_policy(Policy::skip()))
///     .start(&broker)
///     .await?;
/// assert!(metrics.text().contains(r#"tidegate_messages_in_hand{channel="orders",subscription="billing"} 0"#));
/// # drop(billing);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Metrics {
    meters: Arc<Meters>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
struct Meters(Mutex<Vec<Weak<Meter>>>);

impl Default for Metrics {
    fn default() -> Self {
        Self { meters: Arc::default(), clock: SystemClock::shared() }
    }
}

impl Metrics {
    /// Another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// What they are now, in the text format of OpenMetrics, whose media type is [`MEDIA_TYPE`].
    pub fn text(&self) -> String {
        let mut registry = Registry::with_prefix("tidegate");
        registry.register_collector(Box::new(Now { meters: self.meters.living(), now: self.clock.now() }));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry);
        text
    }

    /// Answers `/metrics` at an address, until it is dropped.
    ///
    /// # Errors
    /// `config-invalid` if nothing can listen there, `internal` if the listener ended.
    ///
    /// # Cancel safety
    /// Dropping it is the way to end it: the address is free then, and what is being answered is still answered.
    #[cfg(feature = "listen")]
    pub async fn serve(self, address: std::net::SocketAddr) -> tidegate_core::Result<()> {
        use tidegate_core::{Error, error::code};
        let port = tokio::net::TcpListener::bind(address).await;
        let port = port.map_err(|e| {
            Error::new(code::CONFIG_INVALID, format!("cannot listen on {address}")).because(e)
        })?;
        let answer = move || {
            let text = self.text();
            async { ([(axum::http::header::CONTENT_TYPE, MEDIA_TYPE)], text) }
        };
        let router = axum::Router::new().route("/metrics", axum::routing::get(answer));
        axum::serve(port, router)
            .await
            .map_err(|e| Error::new(code::INTERNAL, "the HTTP listener ended").because(e))
    }

    pub(crate) fn watch(&self, meter: &Arc<Meter>) {
        let mut meters = self.meters.0.lock().unwrap_or_else(PoisonError::into_inner);
        meters.retain(|meter| meter.strong_count() > 0);
        meters.push(Arc::downgrade(meter));
    }
}

impl Meters {
    fn living(&self) -> Vec<Arc<Meter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }
}

#[derive(Debug)]
struct Now {
    meters: Vec<Arc<Meter>>,
    now: i64,
}

type Encoded = Result<(), fmt::Error>;

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let encoder = &mut encoder;
        self.by_kind(encoder)?;
        self.dead(encoder)?;
        let lost = |meter: &Meter| meter.counts.read().lost;
        self.counters(encoder, "settles_lost", "Deliveries whose lane went before they were settled", lost)?;
        let unknown = |meter: &Meter| meter.counts.read().unknown;
        self.counters(encoder, "settles_unknown", "Settlements whose answer was lost", unknown)?;
        let in_hand = |meter: &Meter| meter.unsettled().0 as f64;
        self.gauges(encoder, "messages_in_hand", "Messages taken and not settled yet", None, in_hand)?;
        let parked = |meter: &Meter| meter.subjects_parked() as f64;
        self.gauges(encoder, "subjects_parked", "Subjects that wait behind a dead letter", None, parked)?;
        let oldest = |meter: &Meter| {
            let since = meter.unsettled().1.map_or(0, |at| self.now.saturating_sub(at).max(0));
            since as f64 / 1e6
        };
        let seconds = Some(&Unit::Seconds);
        self.gauges(encoder, "oldest_unsettled", "Age of the oldest message in hand", seconds, oldest)?;
        let lag = |meter: &Meter| meter.counts.read().lag_us as f64 / 1e6;
        self.gauges(encoder, "lag", "How long the latest message had been stored when it came", seconds, lag)
    }
}

impl Now {
    fn by_kind(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        for (name, help, is_handled) in [
            ("messages_handled", "Messages whose handler succeeded", true),
            ("messages_retried", "Deliveries that failed and come again", false),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for meter in &self.meters {
                for (kind, of) in meter.kinds() {
                    let count = if is_handled { &of.handled } else { &of.retried };
                    let counter = ConstCounter::new(count.load(Ordering::Relaxed));
                    counter.encode(family.encode_family(&labels(meter, "kind", kind))?)?;
                }
            }
        }
        let (name, help) = ("handler", "How long handlers took");
        let unit = Some(&Unit::Seconds);
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for meter in &self.meters {
            for (kind, of) in meter.kinds() {
                of.seconds.encode(family.encode_family(&labels(meter, "kind", kind))?)?;
            }
        }
        Ok(())
    }

    fn dead(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let help = "Messages that became dead letters";
        let mut family = encoder.encode_descriptor("messages_dead", help, None, MetricType::Counter)?;
        for meter in &self.meters {
            for (reason, count) in meter.reasons() {
                let labels = labels(meter, "reason", reason);
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn counters(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        of: impl Fn(&Meter) -> u64,
    ) -> Encoded {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for meter in &self.meters {
            ConstCounter::new(of(meter)).encode(family.encode_family(&place(meter))?)?;
        }
        Ok(())
    }

    fn gauges(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        of: impl Fn(&Meter) -> f64,
    ) -> Encoded {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for meter in &self.meters {
            ConstGauge::new(of(meter)).encode(family.encode_family(&place(meter))?)?;
        }
        Ok(())
    }
}

fn place(meter: &Meter) -> [(&'static str, &str); 2] {
    [("channel", meter.place.channel.as_str()), ("subscription", meter.place.subscription.as_str())]
}

fn labels<'a>(meter: &'a Meter, name: &'static str, value: &'a str) -> [(&'static str, &'a str); 3] {
    let [channel, subscription] = place(meter);
    [channel, subscription, (name, value)]
}
