//! Gives spans to a collector of OpenTelemetry: those of messages, and those that handlers open within them.
//!
//! The ids of messages' spans are not the exporter's to choose, since they stand in the messages ([`Trace`](crate::Trace)): so
//! spans are taken from `tracing` here, with the ids that were noted in them, and no second tree of spans is kept beside.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, Key, KeyValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanExporter as Exporter,
    SpanLinks, SpanProcessor,
};
use tidegate_core::error::code;
use tidegate_core::{Clock, Error, Result, SystemClock};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::trace::TARGET;

/// How long what is left may take to be sent when it is closed.
const LAST: Duration = Duration::from_secs(5);

/// Where spans are sent to, in the background, many at once. Those that a collector does not take in time are lost, and nothing
/// waits for it.
///
/// ```no_run
/// use tidegate_runtime::Telemetry;
/// use tracing_subscriber::layer::SubscriberExt as _;
/// use tracing_subscriber::util::SubscriberInitExt as _;
///
/// let telemetry = Telemetry::open("http://127.0.0.1:4318", "billing")?;
/// tracing_subscriber::registry().with(telemetry.layer()).init();
/// // … the service runs …
/// telemetry.close()?;
/// # Ok::<(), tidegate_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Telemetry {
    processor: Arc<BatchSpanProcessor>,
    lost: Arc<AtomicUsize>,
}

impl Telemetry {
    /// Sends spans by OTLP over HTTP to the collector at this address, as those of the service of this name. Nothing is asked of
    /// the collector yet.
    ///
    /// # Errors
    /// The address is none.
    pub fn open(collector: &str, service: &str) -> Result<Self> {
        let unfit = |error: &dyn fmt::Display| {
            Error::new(code::URL_INVALID, "the address of a collector cannot be used")
                .with("address", collector)
                .hint("a collector beside the program is http://127.0.0.1:4318")
                .because(error.to_string())
        };
        let address = format!("{}/v1/traces", collector.trim_end_matches('/'));
        let exporter = SpanExporter::builder().with_http().with_endpoint(address).build();
        let lost = Arc::new(AtomicUsize::new(0));
        let exporter = Tally { exporter: exporter.map_err(|error| unfit(&error))?, lost: Arc::clone(&lost) };
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        processor.set_resource(&Resource::builder().with_service_name(service.to_owned()).build());
        Ok(Self { processor: Arc::new(processor), lost })
    }

    /// What takes the spans of a subscriber of `tracing`.
    pub fn layer(&self) -> TelemetryLayer {
        TelemetryLayer {
            processor: Arc::clone(&self.processor),
            clock: SystemClock::shared(),
            scope: InstrumentationScope::builder("tidegate").with_version(env!("CARGO_PKG_VERSION")).build(),
        }
    }

    /// Sends what is left, and no more. Waits for at most five seconds: call it when the service has ended.
    ///
    /// # Errors
    /// `unreachable` if some did not reach the collector since this was opened, with how many, or if the last ones may not have.
    pub fn close(self) -> Result<()> {
        self.processor.shutdown_with_timeout(LAST).map_err(|error| {
            Error::new(code::UNREACHABLE, "the last spans may not have reached the collector")
                .because(error.to_string())
        })?;
        match self.lost.load(Ordering::Acquire) {
            0 => Ok(()),
            lost => {
                Err(Error::new(code::UNREACHABLE, "spans did not reach the collector").with("spans", lost))
            }
        }
    }
}

/// Counts the spans that the collector did not take: the processor says nothing of them, not even when it is shut down.
#[derive(Debug)]
struct Tally {
    exporter: SpanExporter,
    lost: Arc<AtomicUsize>,
}

impl Exporter for Tally {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.exporter.export(batch).await;
        if exported.is_err() {
            self.lost.fetch_add(spans, Ordering::AcqRel);
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// A layer of `tracing-subscriber` that [`Telemetry`] gives.
#[derive(Debug)]
pub struct TelemetryLayer {
    processor: Arc<BatchSpanProcessor>,
    clock: Arc<dyn Clock>,
    scope: InstrumentationScope,
}

impl TelemetryLayer {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(u64::try_from(self.clock.now()).unwrap_or(0))
    }
}

/// What is known of an open span.
struct Open {
    name: Cow<'static, str>,
    kind: SpanKind,
    begin: SystemTime,
    trace: TraceId,
    span: SpanId,
    parent: SpanId,
    /// The parent is a message's span, from wherever it came.
    is_remote: bool,
    is_sampled: bool,
    status: Status,
    attributes: Vec<KeyValue>,
}

impl Open {
    fn field(&mut self, name: &'static str, value: Value) {
        let text = || value.as_str();
        match name {
            "otel.name" => self.name = text().into_owned().into(),
            "otel.kind" => {
                self.kind = match &*text() {
                    "producer" => SpanKind::Producer,
                    "consumer" => SpanKind::Consumer,
                    "client" => SpanKind::Client,
                    "server" => SpanKind::Server,
                    _ => SpanKind::Internal,
                };
            }
            "trace_id" => self.trace = TraceId::from_hex(&text()).unwrap_or(TraceId::INVALID),
            "span_id" => self.span = SpanId::from_hex(&text()).unwrap_or(SpanId::INVALID),
            "parent_span_id" => {
                self.parent = SpanId::from_hex(&text()).unwrap_or(SpanId::INVALID);
                self.is_remote = true;
            }
            "trace_flags" => self.is_sampled = text() == "01",
            _ => {
                if name == "error.type" {
                    self.status = Status::error(text().into_owned());
                }
                self.attributes.push(KeyValue::new(Key::from_static_str(name), value));
            }
        }
    }
}

impl Visit for Open {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field.name(), Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field.name(), Value::I64(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match i64::try_from(value) {
            Ok(value) => self.record_i64(field, value),
            Err(_) => self.record_str(field, &value.to_string()),
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field.name(), Value::F64(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field.name(), Value::String(value.to_owned().into()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field.name(), Value::String(format!("{value:?}").into()));
    }
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for TelemetryLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let metadata: &'static Metadata<'static> = attributes.metadata();
        let within = span.parent().and_then(|parent| {
            let open = parent.extensions();
            let open = open.get::<Open>()?;
            Some((open.trace, open.span, open.is_sampled))
        });
        let is_message = metadata.target() == TARGET;
        if !is_message && within.is_none() {
            return;
        }
        let (trace, parent, is_sampled) =
            within.unwrap_or_else(|| (RandomIdGenerator::default().new_trace_id(), SpanId::INVALID, true));
        let mut open = Open {
            name: metadata.name().into(),
            kind: SpanKind::Internal,
            begin: self.now(),
            trace,
            span: RandomIdGenerator::default().new_span_id(),
            parent,
            is_remote: false,
            is_sampled,
            status: Status::Unset,
            attributes: Vec::new(),
        };
        attributes.record(&mut open);
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            values.record(open);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(open) = span.extensions_mut().remove::<Open>() else { return };
        if !open.is_sampled {
            return;
        }
        self.processor.on_end(SpanData {
            span_context: SpanContext::new(
                open.trace,
                open.span,
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id: open.parent,
            parent_span_is_remote: open.is_remote,
            span_kind: open.kind,
            name: open.name,
            start_time: open.begin,
            end_time: self.now(),
            attributes: open.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: open.status,
            instrumentation_scope: self.scope.clone(),
        });
    }
}
