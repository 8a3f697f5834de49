//! Kafka as a broker: a topic a channel, a partition a lane, and a topic of one partition beside it for everything else that
//! [`tidegate_broker::log`] needs.
//!
//! | topic | what |
//! |---|---|
//! | `orders` | messages: CloudEvents attributes as headers `ce_…`, headers by their names, the subject as key, the body as value |
//! | `_tidegate.orders` | documents: the channel, who has which lane, what is settled |
//!
//! Who reads which lane is not left to consumer groups. A group takes the commit of a member that has lost the partition, so
//! that whoever was thought dead could settle what is another one's; it keeps 4 KB beside an offset, so that what is settled
//! out of its order has no room; and it forgets the offsets of a subscription that nobody uses for a while. Instead documents
//! are compared and set: Kafka puts what several send to one partition in one order, and from that order follows which of two
//! writings was the first.
//!
//! A place is a partition and an offset. Other programs may write to a topic by the default partitioner of Kafka's own
//! clients, which is ours, and read it with groups of their own.
//!
//! - `config`, `link`, `error`: what a `kafka:` URL says, clients, what can go wrong
//! - `topics`: what a channel is kept in
//! - `record`, `ledger`: documents
//! - `codec`: messages as records
//! - `log`, `append`, `read`: the log

mod append;
mod codec;
mod config;
mod error;
mod ledger;
mod link;
mod log;
mod read;
mod record;
mod topics;

use std::sync::Arc;

use tidegate_broker::log::LogBroker;
use tidegate_core::port::Broker;
use tidegate_core::{Endpoint, Result, SystemClock};

use config::Config;
use link::Link;
use log::KafkaLog;

/// The URL schemes of the broker.
pub const BROKER_SCHEMES: &[&str] = &["kafka", "kafkas"];

/// Opens a broker by its URL: `kafka://user:password@host:9092`, or `kafkas://` with TLS, which is verified.
///
/// Behind a `?` may stand `servers=HOST:PORT,…` (more servers to ask first), `ca=FILE` (the certificate of the servers'
/// authority), `cert=FILE` and `key=FILE` (the client's own), `password-file=FILE`, `sasl` (`scram-sha-256`, which is
/// the default for a user, `scram-sha-512` or `plain`), `replicas` (how many servers keep a channel that is made; the servers'
/// default else), `timeout_ms` (how long an answer may take, 10,000), and `lease_ms`, `grace_ms` and `patience_ms` as
/// everywhere.
///
/// # Errors
/// `url-invalid` if the URL cannot be read, or a setting is none; `tls-failed` if a certificate cannot be.
pub fn open_broker(endpoint: &Endpoint) -> Result<Arc<dyn Broker>> {
    let config = Config::of(endpoint)?;
    let settings = config.access.settings;
    Ok(Arc::new(LogBroker::new(KafkaLog::new(Link::new(config)?), settings, SystemClock::shared())))
}
