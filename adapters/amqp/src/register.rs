//! The register of a channel: one message in a queue that one at a time reads. Who has it unsettled holds it, and who is gone
//! gives it back.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fe2o3_amqp::session::SessionHandle;
use tidegate_core::error::code;
use tidegate_core::queue::Register;
use tidegate_core::{Error, Name, Result};
use tokio::time::Instant;

use crate::artemis::{self, MESSAGES, Management, Question};
use crate::connect::{Node, sender};
use crate::copies::{Copies, Number, copy};
use crate::error::is_missing;
use crate::send::post;

/// How long to wait before it is counted what is in the queue, and how often there is nothing in one that nobody has written to.
const LOOK: Duration = Duration::from_millis(200);
const EMPTY: u32 = 5;

pub(crate) struct AmqpRegister {
    copies: Copies,
    session: SessionHandle<()>,
    value: Bytes,
    version: Number,
}

/// Writes the first value.
pub(crate) async fn begin(
    session: &mut SessionHandle<()>,
    name: &Name,
    value: &[u8],
    timeout: Duration,
) -> Result<()> {
    let mut link = sender(session, Node::Queue, None, timeout).await?;
    let first = copy(&artemis::register(name), Number::default().next_owner(), value);
    post(&mut link, first, timeout, timeout, "write a register").await
}

/// Takes the register as soon as nobody else holds it; nothing if there is none. One in which nothing was ever written is none:
/// whoever made it went away in the midst of it.
pub(crate) async fn find(
    mut session: SessionHandle<()>,
    management: &Management,
    name: &Name,
    timeout: Duration,
) -> Result<Option<Box<AmqpRegister>>> {
    let mut copies = match Copies::stand(&mut session, artemis::register(name), timeout).await {
        Ok(copies) => copies,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let (until, mut empty) = (Instant::now() + timeout, 0);
    loop {
        if let Ok(came) = tokio::time::timeout(LOOK, copies.next()).await {
            came?;
            break;
        }
        // With what is in somebody's hand, but for moments in which it changes hands.
        let count = management.counts(&[Question::count(&copies.queue, MESSAGES)]).await?;
        empty = if count.first().copied().flatten().unwrap_or(0) == 0 { empty + 1 } else { 0 };
        if empty == EMPTY {
            return Ok(None);
        }
        if Instant::now() >= until {
            let text =
                format!("the register of channel {name} is held by somebody who does not give it back");
            return Err(Error::new(code::UNREACHABLE, text).hint(
                "whoever holds it has lost it when its connection ends: look at the consumers of its queue",
            ));
        }
    }
    let (version, value) = copies.last(management).await?;
    copies.keep(version).await?;
    Ok(Some(Box::new(AmqpRegister { copies, session, value, version })))
}

#[async_trait]
impl Register for AmqpRegister {
    fn value(&self) -> &[u8] {
        &self.value
    }

    async fn give_back(self: Box<Self>, value: Option<Bytes>) -> Result<()> {
        let Self { mut copies, mut session, version, .. } = *self;
        if let Some(value) = value {
            copies.replace(&mut session, version.next_owner(), &value).await?;
        }
        copies.leave().await
    }
}
