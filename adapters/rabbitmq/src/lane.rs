//! The queue of a lane that a member has.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use lapin::Consumer;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions};
use lapin::types::{FieldTable, ShortString};
use tidegate_broker::hand::Fetched;
use tidegate_broker::queue::{Link, place_of_undecodable};
use tidegate_broker::unsettled::Place;
use tidegate_core::port::Attempt;
use tidegate_core::{Lane, Message, Name, Result};

use crate::codec::decode;
use crate::connect::{Own, OwnConnection, within};
use crate::error::came;
use crate::queues::queue;

/// How many messages are taken at once from what has come.
const PIECE: usize = 1_000;
/// How many single acknowledgements stand before what is asked behind them. Of more than about 32 that it has not written yet
/// the server keeps some back, and lets a consumer that comes or goes pass by them.
const ACKS_MAX: usize = 16;
/// The tag of the consumer that comes and goes behind acknowledgements.
const BEHIND: &str = "behind";

pub(crate) struct RabbitLane {
    connection: Arc<OwnConnection>,
    /// Closed before its consumers are cancelled: what a cancelled one has in hand does not go back.
    amqp: Own,
    channel: Name,
    lane: Lane,
    queue: ShortString,
    timeout: Duration,
    messages: tokio::sync::Mutex<Consumer>,
    /// What is not acknowledged.
    open: Mutex<BTreeSet<Place>>,
    /// The consumer that comes and goes behind acknowledgements. It waits in the line of the queue behind that of the messages,
    /// and gets nothing.
    behind: tokio::sync::Mutex<Option<Consumer>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RabbitLane {
    /// Takes over the queue. It has a line of its own: the member before may still be at its head there.
    pub(crate) async fn open(
        connection: Arc<OwnConnection>,
        amqp: Own,
        channel: &Name,
        subscription: &Name,
        lane: Lane,
        timeout: Duration,
    ) -> Result<Self> {
        let queue = queue(channel, subscription, lane);
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consuming = amqp.basic_consume(queue.clone(), "owner".into(), options, arguments);
        let messages = tokio::sync::Mutex::new(within(timeout, "read a queue", consuming).await?);
        let (open, behind) = (Mutex::default(), tokio::sync::Mutex::default());
        let channel = channel.clone();
        Ok(Self { connection, amqp, channel, lane, queue, timeout, messages, open, behind })
    }

    fn fetched(&self, delivery: Delivery) -> Fetched {
        let (place, body) = (delivery.delivery_tag, Bytes::from(delivery.data));
        let message = decode(&delivery.properties, body.clone()).unwrap_or_else(|error| {
            let id = delivery.properties.message_id().as_ref().map(ShortString::as_str);
            let place = place_of_undecodable(id.unwrap_or_default(), &body);
            Message::undecodable(&self.channel, self.lane, place, &error, body)
        });
        lock(&self.open).insert(place);
        let attempt = Attempt::Flag(delivery.redelivered);
        let message = Arc::new(message);
        Fetched { place, message, stored_at: None, attempt, has_position: false }
    }

    /// What is acknowledged by the name of its last one, as all from the first on are; and what one by one.
    fn acknowledged(&self, places: &[Place]) -> (Option<Place>, Vec<Place>) {
        let (mut upto, mut single) = (None, Vec::new());
        let mut open = lock(&self.open);
        let mut places: Vec<Place> = places.iter().copied().filter(|place| open.contains(place)).collect();
        places.sort_unstable();
        for place in places {
            if single.is_empty() && open.first() == Some(&place) {
                upto = Some(place);
            } else {
                single.push(place);
            }
            open.remove(&place);
        }
        (upto, single)
    }

    /// A round trip behind what was acknowledged. A consumer that comes or goes is agreed on by the members of the quorum queue
    /// as acknowledgements are, behind them, and answered when it is so; nothing else that AMQP can ask of a queue is.
    async fn behind(&self) -> lapin::Result<()> {
        let mut behind = self.behind.lock().await;
        if behind.is_some() {
            self.amqp.basic_cancel(BEHIND.into(), BasicCancelOptions::default()).await?;
            *behind = None;
        } else {
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            let came = self.amqp.basic_consume(self.queue.clone(), BEHIND.into(), options, arguments);
            *behind = Some(came.await?);
        }
        Ok(())
    }
}

#[async_trait]
impl Link for RabbitLane {
    fn is_open(&self) -> bool {
        self.connection.status().connected() && self.amqp.status().connected()
    }

    async fn next(&self, out: &mut Vec<Fetched>) -> Result<()> {
        let mut messages = self.messages.lock().await;
        let first = came(messages.next().await)?;
        out.push(self.fetched(first));
        while out.len() < PIECE
            && let Some(delivery) = messages.next().now_or_never()
        {
            out.push(self.fetched(came(delivery)?));
        }
        Ok(())
    }

    async fn settle(&self, places: &[Place]) -> Result<()> {
        const OPERATION: &str = "acknowledge";
        let (upto, single) = self.acknowledged(places);
        if let Some(upto) = upto {
            let all = BasicAckOptions { multiple: true };
            within(self.timeout, OPERATION, self.amqp.basic_ack(upto, all)).await?;
        }
        let mut some = single.chunks(ACKS_MAX);
        loop {
            let acked = async {
                for place in some.next().unwrap_or_default() {
                    self.amqp.basic_ack(*place, BasicAckOptions::default()).await?;
                }
                self.behind().await
            };
            within(self.timeout, OPERATION, acked).await?;
            if some.len() == 0 {
                return Ok(());
            }
        }
    }

    async fn close(&self) -> Result<()> {
        within(self.timeout, "give a lane up", self.amqp.close(200, "the lane is given up".into())).await
    }
}
