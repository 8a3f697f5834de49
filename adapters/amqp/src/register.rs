//! The register of a channel: one message in a queue that one at a time reads. Who has it unsettled holds it, and who is gone
//! gives it back.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fe2o3_amqp::session::SessionHandle;
use tidegate_core::error::code;
use tidegate_core::queue::Register;
use tidegate_core::{Error, Name, Result};

use crate::artemis::{self, MESSAGES, Management, Question};
use crate::connect::{Node, sender};
use crate::copies::{Copies, Number, copy};
use crate::error::is_missing;
use crate::send::post;

pub(crate) struct AmqpRegister {
    copies: Copies,
    session: SessionHandle<()>,
    value: Bytes,
    version: Number,
    timeout: Duration,
}

/// Writes the first value.
pub(crate) async fn begin(
    session: &mut SessionHandle<()>,
    name: &Name,
    value: &[u8],
    timeout: Duration,
) -> Result<()> {
    write(session, &artemis::register(name), Number::default().next_owner(), value, timeout).await
}

async fn write(
    session: &mut SessionHandle<()>,
    queue: &str,
    version: Number,
    value: &[u8],
    timeout: Duration,
) -> Result<()> {
    let mut link = sender(session, Node::Queue, None, timeout).await?;
    post(&mut link, copy(queue, version, value), timeout, timeout, "write a register").await
}

/// Takes the register as soon as nobody else holds it; nothing if there is none. One in which nothing was ever written is none:
/// whoever made it went away in the midst of it.
pub(crate) async fn find(
    mut session: SessionHandle<()>,
    management: &Management,
    name: &Name,
    timeout: Duration,
) -> Result<Option<Box<AmqpRegister>>> {
    let queue = artemis::register(name);
    // With what is in somebody's hand.
    let count = management.counts(&[Question::count(&queue, MESSAGES)]).await?;
    if count.first().copied().flatten().unwrap_or(0) == 0 {
        return Ok(None);
    }
    let mut copies = match Copies::stand(&mut session, queue, timeout).await {
        Ok(copies) => copies,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    match tokio::time::timeout(timeout, copies.next()).await {
        Ok(came) => came?,
        Err(_) => {
            let text =
                format!("the register of channel {name} is held by somebody who does not give it back");
            return Err(Error::new(code::UNREACHABLE, text).hint(
                "whoever holds it has lost it when its connection ends: look at the consumers of its queue",
            ));
        }
    }
    let (version, value) = copies.last(management).await?;
    copies.keep(version).await?;
    Ok(Some(Box::new(AmqpRegister { copies, session, value, version, timeout })))
}

#[async_trait]
impl Register for AmqpRegister {
    fn value(&self) -> &[u8] {
        &self.value
    }

    async fn give_back(self: Box<Self>, value: Option<Bytes>) -> Result<()> {
        let Self { mut copies, mut session, version, timeout, .. } = *self;
        if let Some(value) = value {
            let next = version.next_owner();
            write(&mut session, &copies.queue, next, &value, timeout).await?;
            copies.keep(next).await?;
        }
        copies.leave().await
    }
}
