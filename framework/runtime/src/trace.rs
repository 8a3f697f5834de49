//! The trace that messages belong to, carried from hop to hop as W3C Trace Context says, and the spans of what is done with them.
//!
//! ```text
//! send ──▶ traceparent 00-T-1-01 ──▶ process ──▶ handler ──▶ send ──▶ traceparent 00-T-3-01 ──▶ …
//!            span 1 of the trace T     span 2 of T             span 3 of T
//! ```
//!
//! The ids of spans follow from the message, what is done with it and the span before: nothing is random, so that a proof can
//! replay it, and a message that is sent again is sent as it was.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tidegate_core::message::HEADER_BYTES_MAX;
use tidegate_core::port::Delivery;
use tidegate_core::{Message, Name};
use tracing::Span;
use tracing::field::Empty;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use crate::dead_letter::REASON;

/// The header, and the attribute, that says to which span of which trace a message belongs.
pub const TRACEPARENT: &str = "traceparent";
/// The header, and the attribute, with what tracers note beside it. It is carried as it is.
pub const TRACESTATE: &str = "tracestate";

/// What the spans of messages are filtered by: `RUST_LOG=tidegate::messages=off` turns them off.
macro_rules! target {
    () => {
        "tidegate::messages"
    };
}

#[cfg(feature = "otlp")]
pub(crate) const TARGET: &str = target!();

tokio::task_local! {
    static CURRENT: Arc<Hop>;
}

/// What a handler's messages go on from.
#[derive(Debug)]
struct Hop {
    trace: Trace,
    state: Option<Arc<str>>,
}

/// One span of a trace.
///
/// ```
/// use tidegate_runtime::Trace;
///
/// let trace = Trace::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
/// assert!(trace.is_sampled());
/// assert_eq!(trace.to_string(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
/// assert!(Trace::parse("00-00000000000000000000000000000000-b7ad6b7169203331-01").is_none());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    id: u128,
    span: u64,
    flags: u8,
}

impl Trace {
    /// Reads a `traceparent`; nothing of one that is not as the standard says, which is to be ignored then.
    pub fn parse(text: &str) -> Option<Self> {
        let (version, rest) = text.split_once('-')?;
        let version = hex(version, 2)?;
        // What a later version adds stands behind what this one has.
        let known =
            if rest.len() > 52 && version > 0 && rest.as_bytes()[52] == b'-' { &rest[..52] } else { rest };
        let mut parts = known.split('-');
        let (id, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
        let trace = Self {
            id: hex(id, 32)?,
            span: u64::try_from(hex(span, 16)?).ok()?,
            flags: u8::try_from(hex(flags, 2)?).ok()?,
        };
        let is_valid = version != 0xff && trace.id != 0 && trace.span != 0 && parts.next().is_none();
        is_valid.then_some(trace)
    }

    /// That of a message: of its attribute, or of the header that other programs give it.
    pub fn of(message: &Message) -> Option<Self> {
        let header = || message.headers.get(TRACEPARENT);
        Self::parse(message.traceparent.as_deref().or_else(header)?)
    }

    /// The span of the handler that asks: give it to whatever it calls otherwise, over HTTP for one.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|hop| hop.trace).ok()
    }

    /// Whether whoever began the trace records it.
    pub fn is_sampled(self) -> bool {
        self.flags & 1 == 1
    }

    /// The first span of a message that belongs to no trace yet.
    fn begin(message: &Message, what: &str) -> Self {
        let id = xxh3_128(seed(message, what).as_bytes()).max(1);
        Self { id, span: 0, flags: 1 }.child(message, what)
    }

    /// The next span of the trace.
    fn child(self, message: &Message, what: &str) -> Self {
        Self { span: xxh3_64_with_seed(seed(message, what).as_bytes(), self.span).max(1), ..self }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A version that we do not know may say something else by its other flags.
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.id, self.span, self.flags & 1)
    }
}

fn seed(message: &Message, what: &str) -> String {
    format!("{}\n{}\n{what}", message.source, message.dedupe_id())
}

/// A number of so many hexadecimal digits, in lower case.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
    (text.len() == digits && is_hex).then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// What OpenTelemetry calls a broker, by where it is.
pub(crate) fn system(location: &str) -> Arc<str> {
    let scheme = location.split(':').next().unwrap_or_default();
    match scheme {
        "kafkas" => "kafka",
        "rediss" => "redis",
        "artemiss" => "artemis",
        "activemqs" => "activemq",
        "amqp" | "amqps" => "rabbitmq",
        "tls" => "nats",
        other => other,
    }
    .into()
}

/// Gives a message its place in the trace of the handler that sends it, or begins a trace if somebody records spans. One that
/// belongs to another trace, or that nobody handles anything for, stays as it is.
pub(crate) fn sending(message: &mut Message, system: &str, channel: &Name) -> Span {
    let span = tracing::info_span!(
        target: target!(),
        "publish",
        otel.name = %format_args!("publish {channel}"),
        otel.kind = "producer",
        messaging.system = system,
        messaging.destination.name = channel.as_str(),
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.message.id = &*message.id,
        messaging.message.conversation_id = message.correlation_id.as_deref(),
        trace_id = Empty,
        span_id = Empty,
        parent_span_id = Empty,
        trace_flags = Empty,
        error.type = Empty,
    );
    let known = Trace::of(message);
    let hop =
        CURRENT.try_with(Arc::clone).ok().filter(|hop| known.is_none_or(|known| known.id == hop.trace.id));
    let (parent, state) = match (&hop, known) {
        (Some(hop), _) => (Some(hop.trace), hop.state.clone()),
        // A dead letter is as the message was.
        (None, None) if !span.is_disabled() && message.headers.get(REASON).is_none() => (None, None),
        (None, known) => {
            // It has the span of whoever began it; this one is within.
            note(&span, known.map(|known| known.id), None, known);
            return span;
        }
    };
    if heads(message) > HEADER_BYTES_MAX / 2 {
        // It may have room for no more, and is not to be refused for that.
        return span;
    }
    let trace = match parent {
        Some(parent) => parent.child(message, channel.as_str()),
        None => Trace::begin(message, channel.as_str()),
    };
    let text: Arc<str> = trace.to_string().into();
    // Tracers of other programs look for the headers. There may be too many already.
    let _ = message.headers.set(TRACEPARENT, Arc::clone(&text));
    message.traceparent = Some(text);
    if let Some(state) = state {
        let _ = message.headers.set(TRACESTATE, Arc::clone(&state));
        let _ = message.extensions.set(TRACESTATE, state);
    }
    note(&span, Some(trace.id), Some(trace), parent);
    span
}

/// How long all headers are together.
fn heads(message: &Message) -> usize {
    message
        .headers
        .iter()
        .chain(message.extensions.iter())
        .map(|(name, value)| name.len() + value.len())
        .sum()
}

/// Whose messages are handled, for spans and metrics.
#[derive(Debug)]
pub(crate) struct Place {
    /// What OpenTelemetry calls the broker.
    pub(crate) system: Arc<str>,
    pub(crate) channel: Name,
    pub(crate) subscription: Name,
}

/// The handling of a delivery: its span, and what its handler's messages go on from.
#[derive(Clone, Debug)]
pub(crate) struct Processing {
    pub(crate) span: Span,
    hop: Option<Arc<Hop>>,
}

impl Processing {
    pub(crate) fn of(delivery: &Delivery, place: &Place) -> Self {
        let (channel, subscription) = (&place.channel, &place.subscription);
        let message = &delivery.message;
        let span = tracing::info_span!(
            target: target!(),
            "process",
            otel.name = %format_args!("process {channel}"),
            otel.kind = "consumer",
            messaging.system = &*place.system,
            messaging.destination.name = channel.as_str(),
            messaging.destination.subscription.name = subscription.as_str(),
            messaging.destination.partition.id = delivery.token.lane.0,
            messaging.operation.name = "process",
            messaging.operation.type = "process",
            messaging.message.id = &*message.id,
            messaging.message.conversation_id = message.correlation_id.as_deref(),
            messaging.message.delivery_attempt = delivery.attempt.number(),
            trace_id = Empty,
            span_id = Empty,
            parent_span_id = Empty,
            trace_flags = Empty,
            error.type = Empty,
        );
        let parent = Trace::of(message);
        if parent.is_none() && span.is_disabled() {
            return Self { span, hop: None };
        }
        let what = format!("{subscription}\n{}", delivery.attempt.number());
        let trace = match parent {
            Some(parent) => parent.child(message, &what),
            None => Trace::begin(message, &what),
        };
        note(&span, Some(trace.id), Some(trace), parent);
        let state = message.extensions.get(TRACESTATE).or_else(|| message.headers.get(TRACESTATE));
        Self { span, hop: Some(Arc::new(Hop { trace, state: state.map(Arc::from) })) }
    }

    /// Runs the handler within.
    pub(crate) async fn within<T>(self, handling: impl Future<Output = T>) -> T {
        match self.hop {
            Some(hop) => CURRENT.scope(hop, handling).await,
            None => handling.await,
        }
    }
}

/// Notes of a span to which trace it belongs, which one of it it is if that stands in the message, and which one is before it.
fn note(span: &Span, id: Option<u128>, trace: Option<Trace>, parent: Option<Trace>) {
    if span.is_disabled() {
        return;
    }
    if let Some(id) = id {
        span.record("trace_id", format!("{id:032x}"));
    }
    if let Some(trace) = trace {
        span.record("span_id", format!("{:016x}", trace.span));
    }
    if let Some(parent) = parent {
        span.record("parent_span_id", format!("{:016x}", parent.span));
    }
    if let Some(one) = trace.or(parent) {
        span.record("trace_flags", format!("{:02x}", one.flags & 1));
    }
}

/// The span of what is done with several deliveries together.
macro_rules! batch {
    ($what:literal, $place:expr, $messages:expr) => {
        tracing::debug_span!(
            target: target!(),
            $what,
            otel.name = %format_args!(concat!($what, " {}"), $place.channel),
            otel.kind = "client",
            messaging.system = &*$place.system,
            messaging.destination.name = $place.channel.as_str(),
            messaging.destination.subscription.name = $place.subscription.as_str(),
            messaging.operation.name = $what,
            messaging.operation.type = $what,
            messaging.batch.message_count = $messages,
        )
    };
}

impl Place {
    /// The settling of deliveries.
    pub(crate) fn settling(&self, messages: usize) -> Span {
        batch!("settle", self, messages)
    }

    /// The taking in of deliveries that came together.
    pub(crate) fn receiving(&self, messages: usize) -> Span {
        batch!("receive", self, messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_the_standard_refuses_is_no_trace() {
        for (text, is_good) in [
            (KNOWN, true),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", true),
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true),
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", true),
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", false),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false),
            ("00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", false),
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b71692033\u{e4}\u{e4}-01", false),
            ("", false),
        ] {
            assert_eq!(Trace::parse(text).is_some(), is_good, "{text}");
        }
    }

    #[test]
    fn spans_of_a_trace_differ_and_come_again_as_they_were() {
        let trace = Trace::parse(KNOWN).unwrap();
        let message = |id: &str| Message::with_id(id, "shop", "t");
        let (one, two) = (trace.child(&message("1"), "orders"), trace.child(&message("2"), "orders"));
        assert!(one.id == trace.id && one.span != two.span && one.span != trace.span);
        assert_ne!(one, trace.child(&message("1"), "bills"));
        assert_eq!(one, trace.child(&message("1"), "orders"));
        assert_ne!(Trace::begin(&message("1"), "orders").id, Trace::begin(&message("2"), "orders").id);
        assert_eq!(Trace::parse(&one.to_string()), Some(one));
    }

    #[test]
    fn brokers_have_the_names_of_the_conventions() {
        for (location, name) in [("kafkas://u@h:1", "kafka"), ("tls://h:4222", "nats"), ("memory:", "memory")]
        {
            assert_eq!(&*system(location), name);
        }
    }
}
