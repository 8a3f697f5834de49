//! Brokers that speak AMQP 1.0, Artemis and ActiveMQ Classic, with everything else that [`tidegate_broker::queue`] makes of them.
//!
//! | what | where on Artemis | on ActiveMQ Classic |
//! |---|---|---|
//! | the lane 3 of the channel `orders` | address `tidegate.orders/3` (multicast), there as long as the channel has a subscription | virtual topic `VirtualTopic.tidegate.orders.3` |
//! | its settings and subscriptions | the one message in the queue `tidegate.orders` | the same |
//! | messages of the lane 3 for the subscription `billing` | queue `tidegate.orders/billing/3` of that address | queue `Consumer.billing.VirtualTopic.tidegate.orders.3` |
//! | what its owner noted of attempts | the last message in the queue `tidegate.orders/billing/3/book` | the same |
//! | how many members the subscription has | consumers of the queue `tidegate.orders/billing`, which stays empty | the same, with one message in it that says that there is such a subscription |
//!
//! A message is what the AMQP binding of CloudEvents says: attributes as application properties `cloudEvents_…`, headers by
//! their names, the body as data. A client of JMS sees a message of text or of bytes, with its id, its type, its group (the
//! subject) and what it is to be answered at (the header `reply_to`), and what it sends to the topic of a lane is read; other
//! programs may have queues of their own on it.
//!
//! Queues, or their consumers, are exclusive: the server lets the next member in when the one before is gone, and what that one had not settled is
//! back before everything else, in its order.
//!
//! What is the same with any server of AMQP 1.0, and what is a server's own:
//!
//! - `config`, `connect`, `error`: what a URL says, connections and links, what can go wrong
//! - `codec`, `json`: messages, and what of other programs' messages becomes of them
//! - `queues`, `line`, `send`, `member`, `lane`: the queues
//! - `server`: what differs; `asking`: questions to a server, by messages
//! - `artemis`, `classic`: the names of their queues, and how these are made, counted and removed; `openwire`: the word for
//!   removing that Classic has, and AMQP has not

mod artemis;
mod asking;
mod classic;
mod codec;
mod config;
mod connect;
mod error;
mod json;
mod lane;
mod line;
mod member;
mod openwire;
mod queues;
mod send;
mod server;

use std::sync::Arc;

use tidegate_broker::queue::QueueBroker;
use tidegate_core::port::Broker;
use tidegate_core::{Endpoint, Result, SystemClock};

use queues::AmqpQueues;
use server::Server;

/// The URL schemes of the broker.
pub const BROKER_SCHEMES: &[&str] = &["artemis", "artemiss", "activemq", "activemqs"];

/// Opens a broker by its URL: `artemis://user:password@host:5672` or `activemq://…`, or `artemiss://` and `activemqs://` with TLS,
/// which is verified.
///
/// Behind a `?` may stand
///
/// - `ca=FILE`: the certificate of the server's authority, in the place of the system's
/// - `cert=FILE` and `key=FILE`: those of this client; without a user in the URL they are the login (SASL EXTERNAL)
/// - `password-file=FILE`: instead of a password in the URL
/// - `timeout_ms` (5,000): how long an answer may take
/// - `openwire=PORT`, of ActiveMQ Classic: where its own protocol is spoken, if the server does not say it rightly
/// - `lease_ms` (how long the server may be silent), `grace_ms` and `patience_ms` as everywhere
///
/// # Errors
/// `url-invalid` if the URL cannot be read, a setting is none, or a file cannot be read.
pub fn open_broker(endpoint: &Endpoint) -> Result<Arc<dyn Broker>> {
    let server = Server::of(endpoint.scheme());
    let access = config::access(server, endpoint)?;
    let settings = access.settings;
    Ok(Arc::new(QueueBroker::new(AmqpQueues::new(server, access), settings, SystemClock::shared())))
}
