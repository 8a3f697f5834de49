//! The register of a channel: one message in a queue that one at a time reads. Who has it unsettled holds it, and who is gone
//! gives it back.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::Body;
use fe2o3_amqp::types::primitives::Value;
use tidegate_core::queue::Register;
use tidegate_core::{Error, Name, Result};

use crate::artemis::{self, MESSAGES, Management, Question};
use crate::connect::{Node, receiver, sender, within};
use crate::error::{is_missing, timed_out};
use crate::send::{numbered, post, value};

/// How many messages of a register or a book there may be: those of writers that went away in the midst of it.
pub(crate) const COPIES_MAX: u32 = 64;

pub(crate) enum Found {
    Register(Box<AmqpRegister>),
    /// There is no such queue.
    Missing,
    /// Nothing came for as long as an answer may take.
    Empty,
}

pub(crate) struct AmqpRegister {
    session: SessionHandle<()>,
    receiver: Receiver,
    name: Name,
    value: Bytes,
    found: DeliveryInfo,
    version: u64,
    timeout: Duration,
}

/// Writes the first value.
pub(crate) async fn begin(
    session: &mut SessionHandle<()>,
    name: &Name,
    value: &[u8],
    timeout: Duration,
) -> Result<()> {
    let mut link = sender(session, Node::Queue, None, timeout).await?;
    let message = numbered(artemis::register(name), 1.to_string(), value);
    post(&mut link, message, timeout, timeout, "write a register").await
}

/// Takes the register as soon as nobody else holds it.
pub(crate) async fn find(
    mut session: SessionHandle<()>,
    management: &Management,
    name: &Name,
    timeout: Duration,
) -> Result<Found> {
    const OPERATION: &str = "read a register";
    let queue = artemis::register(name);
    let mut receiver = match receiver(&mut session, Node::Queue, queue.clone(), timeout).await {
        Ok(receiver) => receiver,
        Err(error) if is_missing(&error) => return Ok(Found::Missing),
        Err(error) => return Err(error),
    };
    within(timeout, OPERATION, receiver.set_credit(COPIES_MAX)).await?;
    let mut next = async || match within(timeout, OPERATION, receiver.recv::<Body<Value>>()).await {
        Ok(came) => {
            let found = DeliveryInfo::from(&came);
            let (number, value) = value(came.into_message());
            Ok(Some((number.parse::<u64>().unwrap_or(0), value, found)))
        }
        Err(error) if error.code() == timed_out(OPERATION).code() => Ok(None),
        Err(error) => Err::<_, Error>(error),
    };
    let Some(mut best) = next().await? else { return Ok(Found::Empty) };
    // Whoever wrote one or made the register went away in the midst of it, or two made it at once: the first of the highest
    // version is it.
    let count = management.counts(&[Question::count(&queue, MESSAGES)]).await?;
    let mut others = Vec::new();
    for _ in 1..count.first().copied().flatten().unwrap_or(1) {
        let Some(other) = next().await? else { break };
        others.push(if other.0 > best.0 { std::mem::replace(&mut best, other) } else { other });
    }
    if !others.is_empty() {
        let old = others.into_iter().map(|(_, _, found)| found);
        within(timeout, "tidy a register", receiver.accept_all(old)).await?;
    }
    let (version, value, found) = best;
    let name = name.clone();
    Ok(Found::Register(Box::new(AmqpRegister { session, receiver, name, value, found, version, timeout })))
}

#[async_trait]
impl Register for AmqpRegister {
    fn value(&self) -> &[u8] {
        &self.value
    }

    async fn give_back(self: Box<Self>, value: Option<Bytes>) -> Result<()> {
        let Self { mut session, receiver, name, found, version, timeout, .. } = *self;
        if let Some(value) = value {
            let mut link = sender(&mut session, Node::Queue, None, timeout).await?;
            let message = numbered(artemis::register(&name), (version + 1).to_string(), &value);
            post(&mut link, message, timeout, timeout, "write a register").await?;
            within(timeout, "write a register", receiver.accept(found)).await?;
        }
        within(timeout, "give a register back", receiver.close()).await
    }
}
