//! Redis as a broker: a stream a lane, and hashes beside them for everything else that [`tidegate_broker::log`] needs.
//!
//! Keys of a channel, in one slot of a cluster by the braces:
//!
//! | key | what |
//! |---|---|
//! | `tidegate:{orders}:lane:3` | the stream of lane 3: one entry a message, CloudEvents attributes as fields `ce_…`, headers by their names, the body as `data` |
//! | `tidegate:{orders}:document:…` | documents: the channel, who has which lane, what is settled |
//! | `tidegate:{orders}:record` | the last place, bytes that are kept |
//! | `tidegate:{orders}:ids:…` | where messages of the last minutes are stored, by source and id |
//! | `tidegate:{orders}:sizes:3` | bytes of lane 3, by place |
//!
//! A place is an entry's id: its milliseconds and its number, as one number. Other programs may `XADD` to a lane with `*`,
//! and read any of them with groups of their own.
//!
//! - `config`, `connect`, `error`: what a `redis:` URL says, connections, what can go wrong
//! - `codec`: messages as fields of an entry
//! - `log`, `append`, `read`: the log

mod append;
mod codec;
mod config;
mod connect;
mod error;
mod log;
mod read;

use std::sync::Arc;

use tidegate_broker::log::LogBroker;
use tidegate_core::port::Broker;
use tidegate_core::{Endpoint, Result, SystemClock};

use config::Config;
use log::RedisLog;

/// The URL schemes of the broker.
pub const BROKER_SCHEMES: &[&str] = &["redis", "rediss"];

/// Opens a broker by its URL: `redis://user:password@host:6379/0`, or `rediss://` with TLS, which is verified.
///
/// Behind a `?` may stand `ca=FILE` (the certificate of the server's authority), `cert=FILE` and `key=FILE` (the client's
/// own), `password-file=FILE`, `dedupe_s` (for how many seconds ids of messages are known at least, 60), `timeout_ms` (how
/// long an answer may take, 5,000), and `lease_ms`, `grace_ms` and `patience_ms` as everywhere.
///
/// # Errors
/// `url-invalid` if the URL cannot be read, a setting is none, or a file cannot be read; `tls-failed` if it is one of
/// certificates.
pub fn open_broker(endpoint: &Endpoint) -> Result<Arc<dyn Broker>> {
    let config = Config::of(endpoint)?;
    let settings = config.access.settings;
    Ok(Arc::new(LogBroker::new(RedisLog::new(config), settings, SystemClock::shared())))
}
