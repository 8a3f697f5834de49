//! A place in the line of a slot's queue, which is exclusive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{Body, Data, Message as Amqp, MessageId, Properties};
use fe2o3_amqp::types::primitives::{Binary, Value};
use fe2o3_amqp::{Receiver, Sender};
use tidegate_broker::queue::{Copy, Line, Number};
use tidegate_core::Result;

use crate::codec::durable;
use crate::connect::{Node, end, receiver, sender, within};
use crate::error::from_driver;
use crate::send::post;
use crate::server::{Management, Queue, Server, What};

/// How many copies are taken.
const MOST: u32 = 10_000;
/// How long a copy waits for credit: a server that gives none is short of room.
const CREDIT: Duration = Duration::from_millis(500);

pub(crate) struct AmqpLine {
    queue: Queue,
    /// Where copies are sent to.
    target: String,
    receiver: Receiver,
    sender: Sender,
    management: Arc<dyn Management>,
    /// What came and was not removed, and the tag of the next one.
    came: BTreeMap<u64, DeliveryInfo>,
    next: u64,
    timeout: Duration,
    // Last: what is on it goes with it.
    session: SessionHandle<()>,
}

impl AmqpLine {
    /// Stands in the line of a queue, over a session of its own.
    pub(crate) async fn stand(
        mut session: SessionHandle<()>,
        management: Arc<dyn Management>,
        server: Server,
        queue: Queue,
        timeout: Duration,
    ) -> Result<Self> {
        let (node, source) = server.source(&queue);
        let mut receiver = receiver(&mut session, node, source, timeout).await?;
        management.attached(&queue).await?;
        let sender = sender(&mut session, Node::Queue, None, timeout).await?;
        within(timeout, "stand in line", receiver.set_credit(MOST)).await?;
        let target = server.target(&queue);
        Ok(Self {
            queue,
            target,
            receiver,
            sender,
            management,
            came: BTreeMap::new(),
            next: 1,
            timeout,
            session,
        })
    }
}

/// A copy, as it is sent.
pub(crate) fn copy(target: &str, number: Number, value: &[u8]) -> Amqp<Data> {
    Amqp {
        header: Some(durable()),
        delivery_annotations: None,
        message_annotations: None,
        properties: Some(Properties {
            message_id: Some(MessageId::String(number.to_string())),
            to: Some(target.to_owned()),
            ..Properties::default()
        }),
        application_properties: None,
        body: Data(Binary::from(value.to_vec())),
        footer: None,
    }
}

#[async_trait]
impl Line for AmqpLine {
    async fn next(&mut self) -> Result<Copy> {
        let came = self.receiver.recv::<Body<Value>>().await;
        let came = came.map_err(|error| from_driver(&error, "read a copy"))?;
        let tag = self.next;
        self.next += 1;
        self.came.insert(tag, DeliveryInfo::from(&came));
        let message = came.into_message();
        let number = match message.properties.and_then(|properties| properties.message_id) {
            Some(MessageId::String(number)) => number.parse().unwrap_or_default(),
            _ => Number::default(),
        };
        let parts = message.body.try_into_data().map(|parts| parts.flat_map(Binary::into_vec).collect());
        let value: Vec<u8> = parts.unwrap_or_default();
        Ok(Copy { number, value: value.into(), tag })
    }

    async fn left(&mut self) -> Result<u64> {
        // With what is in this one's hand.
        let counts = self.management.count(&[(self.queue.clone(), What::Messages)]).await?;
        let there = counts.first().copied().flatten().unwrap_or(0);
        Ok(there.saturating_sub(self.came.len() as u64))
    }

    async fn store(&mut self, number: Number, value: &[u8]) -> Result<()> {
        let copy = copy(&self.target, number, value);
        post(&mut self.sender, copy, CREDIT, self.timeout, "write a copy").await
    }

    async fn remove(&mut self, tags: &[u64]) -> Result<()> {
        const OPERATION: &str = "remove a copy";
        let old: Vec<DeliveryInfo> = tags.iter().filter_map(|tag| self.came.remove(tag)).collect();
        within(self.timeout, OPERATION, self.receiver.accept_all(old)).await?;
        within(self.timeout, OPERATION, self.receiver.set_credit(MOST)).await
    }

    async fn leave(mut self: Box<Self>) -> Result<()> {
        end(&mut self.session, self.timeout, "leave a line").await
    }
}
