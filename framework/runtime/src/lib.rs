//! The delivery runtime: what stands between a broker's ports and an application.
//!
//! ```text
//! Sender ──▶ Publisher ──▶ broker ──▶ Receiver                  one message after the other
//! Caller ──▶                   │ ──▶ Service ─▶ handlers        by kind, subjects in order and beside each other
//!   ▲                          │        │ │ failed
//!   └──────── reply ◀──────────┼────────┘ └─▶ Policy: later, or a dead letter
//! ```
//!
//! A broker answers *unknown* and refuses for a while; consumers lose lanes; handlers fail. All of that is dealt with here,
//! once for every broker. Start with [`Service`].
//!
//! - `publisher`, `sender`: until it is stored, one task or many
//! - `receiver`: one by one
//! - `service`: how an application says what it handles
//! - `delivery`: how it is handled
//! - `policy`, `dead_letter`: what happens to what fails
//! - `priority`: what is handled first
//! - `call`, `replier`: questions and replies
//! - `claim`: bodies that are too large for a broker
//! - `inbox`: effects that happen once
//! - `scheduler`: messages that are sent later
//! - `aggregate`: one message of several
//! - `filter`, `router`, `bridge`: messages sent on, by what is in them, or to another broker
//! - `metrics`: what services do, for Prometheus
//! - `telemetry`: spans, for a collector of OpenTelemetry
//! - `trace`: to which trace messages belong, and spans of what is done with them

mod aggregate;
mod bridge;
mod call;
mod claim;
pub mod dead_letter;
mod delivery;
mod filter;
mod flow;
mod inbox;
mod kept;
mod metrics;
mod policy;
mod priority;
mod publisher;
mod receiver;
mod replier;
mod router;
mod scheduler;
mod sender;
mod service;
#[cfg(feature = "otlp")]
mod telemetry;
mod trace;
mod wait;

pub use aggregate::{Aggregator, Ending};
pub use bridge::{Bridge, Carried, VIA};
pub use call::{CALL, Caller, FAILED, REPLY_TO};
pub use claim::{CLAIM_BYTES, Claims, DATAREF, FolderBlobs};
pub use delivery::Counted;
pub use filter::Filter;
pub use inbox::{Begun, Committed, Effect, Inbox, Once};
pub use metrics::{MEDIA_TYPE, Metrics};
pub use policy::{Exhausted, Policy};
pub use priority::Priority;
pub use publisher::{Opening, Publisher};
pub use receiver::Receiver;
pub use router::Router;
pub use scheduler::{Scheduler, Sending};
pub use sender::Sender;
pub use service::{
    ByMethod, Context, Failure, FromContext, FromMessage, Handle, Handler, Handlers, Idle, Info, IntoEnded,
    Json, Ready, Replies, Running, Service, Startable, State, Typed,
};
#[cfg(feature = "otlp")]
pub use telemetry::{Telemetry, TelemetryLayer};
pub use trace::{TRACEPARENT, TRACESTATE, Trace};
