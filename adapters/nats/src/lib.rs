//! NATS JetStream as a broker: a stream a channel, and a key-value bucket for everything else that
//! [`tidegate_broker::log`] needs.
//!
//! | what | where |
//! |---|---|
//! | messages of the channel `orders.placed` | stream `tidegate-orders~placed`, which has the subjects `tidegate.orders.placed.*` |
//! | those of its lane 3 | subject `tidegate.orders.placed.3`: CloudEvents attributes as headers `ce-…`, headers by their names, the body as it is |
//! | documents: the channel, who has which lane, what is settled | bucket `tidegate` (stream `KV_tidegate`), key `orders.placed/…` |
//!
//! A place is a message's sequence in its stream. Channels are apart whatever their names look like: their subjects have
//! other words or another number of them. Other programs may publish to a lane's subject, and read the stream with
//! consumers of their own; what every subscription here has settled is purged.
//!
//! - `config`, `connect`, `error`: what a `nats:` URL says, connections, what can go wrong
//! - `codec`: messages as headers and a body
//! - `log`, `append`, `read`: the log

mod append;
mod codec;
mod config;
mod connect;
mod error;
mod log;
mod probe;
mod read;

use std::sync::Arc;

use tidegate_broker::log::LogBroker;
use tidegate_core::port::Broker;
use tidegate_core::{Endpoint, Result, SystemClock};

use config::Config;
use log::NatsLog;

/// The URL schemes of the broker.
pub const BROKER_SCHEMES: &[&str] = &["nats", "tls"];

/// Opens a broker by its URL: `nats://user:password@host:4222`, or `tls://` where nothing but TLS will do. TLS is verified
/// in both.
///
/// Behind a `?` may stand
///
/// - `servers=HOST:PORT,…`: further servers of the cluster, tried in turn
/// - `ca=FILE`: the certificate of the servers' authority; `cert=FILE` and `key=FILE`: those of this client
/// - `password-file=FILE`, `token-file=FILE`, `nkey=FILE` (a seed) or `creds=FILE`: how to log in
/// - `replicas` (1): of streams that are made
/// - `dedupe_s` (120): for how many seconds ids of messages are known on streams that are made
/// - `timeout_ms` (5,000): how long an answer may take
/// - `lease_ms`, `grace_ms` and `patience_ms` as everywhere
///
/// # Errors
/// `url-invalid` if the URL cannot be read, a setting is none, or a file cannot be read; `tls-failed` if it is one of
/// certificates.
pub fn open_broker(endpoint: &Endpoint) -> Result<Arc<dyn Broker>> {
    let config = Config::of(endpoint)?;
    let settings = config.access.settings;
    Ok(Arc::new(LogBroker::new(NatsLog::new(config), settings, SystemClock::shared())))
}
