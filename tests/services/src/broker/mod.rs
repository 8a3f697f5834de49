//! Brokers of messages: six servers that are run in one way.
//!
//! [`Server`] is one server of one's own, [`shared`] the one of this process. What differs between the brokers (where
//! the program comes from, which files it reads, how it is launched, when it is ready) is a `Recipe`, one file a broker.
//!
//! ```no_run
//! # async fn test() -> tidegate_services::Result<()> {
//! use tidegate_services::broker::{Broker, Options, Server};
//!
//! let options = Options::default().with_setting("maxmemory", "64mb");
//! let server = Server::start(Broker::Redis, options).await?;
//! server.pause().await; // connections stay open, nobody answers
//! server.resume().await;
//! server.kill().await; // nothing is flushed
//! server.restart().await?; // same folder, same ports
//! # Ok(())
//! # }
//! ```

mod activemq;
mod artemis;
mod kafka;
mod nats;
mod options;
mod probe;
mod rabbitmq;
mod recipe;
mod redis;
mod server;
mod shared;

use std::hash::{BuildHasher, RandomState};

use crate::service::may_provision;
use crate::{Missing, Result, Service};
use recipe::{Program, Recipe};

pub use options::Options;
pub use server::Server;
pub use shared::{Shared, shared};

/// A broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Broker {
    /// Redis, which writes and flushes its log of commands before it answers.
    Redis,
    /// RabbitMQ, one node without plugins.
    Rabbitmq,
    /// NATS with JetStream, which flushes every message before it answers.
    Nats,
    /// Kafka, one node that is broker and controller; topics must be created, every message is flushed.
    Kafka,
    /// Artemis: AMQP 1.0, STOMP, OpenWire and its own protocol on one port.
    Artemis,
    /// ActiveMQ Classic: AMQP 1.0, STOMP and OpenWire on a port each, with its scheduler.
    Activemq,
}

impl Broker {
    /// Every broker.
    pub const ALL: &[Broker] =
        &[Broker::Redis, Broker::Rabbitmq, Broker::Nats, Broker::Kafka, Broker::Artemis, Broker::Activemq];

    /// The service that it is.
    pub fn service(self) -> Service {
        match self {
            Broker::Redis => Service::Redis,
            Broker::Rabbitmq => Service::Rabbitmq,
            Broker::Nats => Service::Nats,
            Broker::Kafka => Service::Kafka,
            Broker::Artemis => Service::Artemis,
            Broker::Activemq => Service::Activemq,
        }
    }

    /// Which program is run, with its version where that is always the same.
    pub fn source(self) -> &'static str {
        self.recipe().source
    }

    fn recipe(self) -> &'static Recipe {
        match self {
            Broker::Redis => &redis::RECIPE,
            Broker::Rabbitmq => &rabbitmq::RECIPE,
            Broker::Nats => &nats::RECIPE,
            Broker::Kafka => &kafka::RECIPE,
            Broker::Artemis => &artemis::RECIPE,
            Broker::Activemq => &activemq::RECIPE,
        }
    }
}

pub(crate) fn locate(broker: Broker) -> std::result::Result<Program, Missing> {
    (broker.recipe().locate)().ok_or_else(|| missing(broker))
}

pub(crate) fn provision(broker: Broker) -> Result<Program> {
    if let Ok(found) = locate(broker) {
        return Ok(found);
    }
    (broker.recipe().fetch)()?;
    Ok(locate(broker)?)
}

fn program(broker: Broker) -> Result<Program> {
    if may_provision() { provision(broker) } else { Ok(locate(broker)?) }
}

fn missing(broker: Broker) -> Missing {
    let service = broker.service();
    Missing {
        service,
        what: format!("{} was not found", broker.source()),
        hint: format!(
            "`cargo xtask services up {service}` fetches it where this process may install; or name a server in {}",
            service.url_variable()
        ),
    }
}

/// For names that nobody else has.
fn random() -> u64 {
    RandomState::new().hash_one(())
}
