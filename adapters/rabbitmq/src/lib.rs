//! RabbitMQ as a broker: quorum queues, with everything else that [`tidegate_broker::queue`] makes of them.
//!
//! | what | where |
//! |---|---|
//! | the channel `orders` | exchange `tidegate/orders` (direct), where a lane is a routing key: `0`, `1`, … |
//! | its settings and subscriptions | the last message in the queue `tidegate/orders` |
//! | messages of the lane 3 for the subscription `billing` | queue `tidegate/orders/billing/3`, bound to the routing key `3` |
//! | what its owner noted of attempts | the last message in the queue `tidegate/orders/billing/3/book` |
//! | how many members the subscription has | consumers of the queue `tidegate/orders/billing`, which stays empty |
//!
//! A message is what the AMQP binding of CloudEvents says: attributes as headers `cloudEvents_…`, headers by their names, the
//! body as it is. Other programs may publish to the exchange, with the routing key of a lane, and bind queues of their own
//! to it.
//!
//! These queues have a single active consumer: the server lets the next one in when the one before is gone, with what that one
//! had not settled before everything else, in its order. For this nothing is ever requeued one by one.
//!
//! - `config`, `connect`, `error`: what an `amqp:` URL says, connections, what can go wrong
//! - `codec`: messages as headers and a body
//! - `queues`, `line`, `send`, `member`, `lane`: the queues
//! - `probe`: what of the server is unsafe

mod codec;
mod config;
mod connect;
mod error;
mod lane;
mod line;
mod member;
mod probe;
mod queues;
mod send;

use std::sync::Arc;

use tidegate_broker::queue::QueueBroker;
use tidegate_core::port::Broker;
use tidegate_core::{Endpoint, Result, SystemClock};

use config::Config;
use queues::RabbitQueues;

/// The URL schemes of the broker.
pub const BROKER_SCHEMES: &[&str] = &["amqp", "amqps"];

/// Opens a broker by its URL: `amqp://user:password@host:5672/virtual-host`, or `amqps://` with TLS, which is verified.
///
/// Behind a `?` may stand
///
/// - `ca=FILE`: the certificate of the server's authority
/// - `cert=FILE` and `key=FILE`: those of this client; without a user in the URL they are the login (SASL EXTERNAL)
/// - `password-file=FILE`: instead of a password in the URL
/// - `timeout_ms` (5,000): how long an answer may take
/// - `ripe_ms` (4,000): how long to wait behind the last queue that was made: a server that is killed while a queue is younger
///   forgets it, with what was confirmed into it
/// - `lease_ms` (as heartbeat, in whole seconds), `grace_ms` and `patience_ms` as everywhere
///
/// # Errors
/// `url-invalid` if the URL cannot be read, a setting is none, or a file cannot be read; `tls-failed` if it is one of
/// certificates.
pub fn open_broker(endpoint: &Endpoint) -> Result<Arc<dyn Broker>> {
    let config = Config::of(endpoint)?;
    let settings = config.access.settings;
    Ok(Arc::new(QueueBroker::new(RabbitQueues::new(config), settings, SystemClock::shared())))
}
