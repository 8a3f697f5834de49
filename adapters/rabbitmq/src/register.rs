//! The register of a channel: one message in a queue. Who has it unacknowledged holds it, and who is gone gives it back.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use tidegate_core::error::code;
use tidegate_core::queue::Register;
use tidegate_core::{Error, Name, Result};
use tokio::time::Instant;

use crate::connect::{published, within};
use crate::error::{from_driver, is_missing};
use crate::queues::{Publishing, exchange, publish_to};

/// How long to wait before it is asked for again.
const PAUSE: Duration = Duration::from_millis(5);

pub(crate) enum Found {
    Register(Box<RabbitRegister>),
    /// There is no such queue.
    Missing,
    /// There is nothing in the queue for as long as an answer may take.
    Empty,
}

pub(crate) struct RabbitRegister {
    link: Publishing,
    name: Name,
    value: Vec<u8>,
    tag: u64,
    version: u64,
    timeout: Duration,
}

fn version(properties: &BasicProperties) -> u64 {
    properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok()).unwrap_or(0)
}

fn numbered(version: u64) -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2).with_message_id(version.to_string().into())
}

/// Writes the first value.
pub(crate) async fn begin(link: &Publishing, name: &Name, value: &[u8], timeout: Duration) -> Result<()> {
    let written = publish_to(&link.amqp, exchange(name), value, numbered(1));
    match published(&link.connection, timeout, "write a register", written).await? {
        true => Ok(()),
        false => Err(not_taken()),
    }
}

fn not_taken() -> Error {
    Error::new(code::STORE_FAILED, "the server did not take what was to be written to the register")
}

/// Takes the register as soon as nobody else holds it.
pub(crate) async fn find(link: Publishing, name: &Name, timeout: Duration) -> Result<Found> {
    let until = Instant::now() + timeout;
    let amqp = &link.amqp;
    let get = || amqp.basic_get(exchange(name), BasicGetOptions::default());
    let mut best: Option<BasicGetMessage> = None;
    loop {
        let got = match tokio::time::timeout(timeout, get()).await {
            Ok(Ok(got)) => got,
            Ok(Err(error)) if is_missing(&error) => return Ok(Found::Missing),
            Ok(Err(error)) => return Err(from_driver(&error, "read a register")),
            Err(_) => return Err(crate::error::timed_out("read a register")),
        };
        match (got, best.take()) {
            (None, Some(best)) => {
                let (version, tag) = (version(&best.properties), best.delivery_tag);
                let (name, value) = (name.clone(), best.delivery.data);
                let register = RabbitRegister { link, name, value, tag, version, timeout };
                return Ok(Found::Register(Box::new(register)));
            }
            (None, None) if Instant::now() < until => tokio::time::sleep(PAUSE).await,
            (None, None) => return Ok(Found::Empty),
            (Some(got), None) => best = Some(got),
            // Whoever wrote one or made the register went away in the midst of it, or two made it at once: the first of the
            // highest version is it.
            (Some(got), Some(known)) => {
                let (kept, other) = if version(&got.properties) > version(&known.properties) {
                    (got, known)
                } else {
                    (known, got)
                };
                let acked = amqp.basic_ack(other.delivery_tag, BasicAckOptions::default());
                within(timeout, "tidy a register", acked).await?;
                best = Some(kept);
            }
        }
    }
}

#[async_trait]
impl Register for RabbitRegister {
    fn value(&self) -> &[u8] {
        &self.value
    }

    async fn give_back(self: Box<Self>, value: Option<Bytes>) -> Result<()> {
        let Self { link: Publishing { connection, amqp }, name, tag, version, timeout, .. } = *self;
        match value {
            None => {
                let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
                within(timeout, "give a register back", amqp.basic_nack(tag, options)).await
            }
            Some(value) => {
                let written = publish_to(&amqp, exchange(&name), &value, numbered(version + 1));
                if !published(&connection, timeout, "write a register", written).await? {
                    return Err(not_taken());
                }
                within(timeout, "write a register", amqp.basic_ack(tag, BasicAckOptions::default())).await
            }
        }
    }
}
