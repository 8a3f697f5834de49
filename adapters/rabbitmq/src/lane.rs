//! A lane that a member has: a place at the head of the line for its book, and its queue.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel as Amqp, Consumer};
use tidegate_core::error::code;
use tidegate_core::hand::Fetched;
use tidegate_core::port::Attempt;
use tidegate_core::queue::Link;
use tidegate_core::unsettled::Place;
use tidegate_core::{Error, Lane, Message, Name, Result};

use crate::codec::decode;
use crate::connect::{Own, OwnConnection, published, within};
use crate::error::{from_driver, timed_out};
use crate::queues::{Publishing, book, passive, publish_to, queue};

/// How many messages are taken at once from what has come.
const PIECE: usize = 1_000;
/// The tag of the consumer that comes and goes behind acknowledgements.
const BEHIND: &str = "behind";

pub(crate) struct RabbitLane {
    connection: Arc<OwnConnection>,
    // Closed before their consumers are cancelled: what a cancelled one has in hand does not go back.
    line: Own,
    amqp: Own,
    books: Publishing,
    channel: Name,
    lane: Lane,
    book: ShortString,
    queue: ShortString,
    found: Bytes,
    timeout: Duration,
    messages: tokio::sync::Mutex<Consumer>,
    written: tokio::sync::Mutex<Written>,
    /// What is not acknowledged.
    open: Mutex<BTreeSet<Place>>,
    number: AtomicU64,
    /// The consumer that comes and goes behind acknowledgements. It waits in the line of the queue behind that of the messages,
    /// and gets nothing.
    behind: tokio::sync::Mutex<Option<Consumer>>,
}

/// The books that have come, each with its number and the tag of its delivery: all but the last are to go.
struct Written {
    consumer: Consumer,
    books: Vec<(u64, u64)>,
}

fn number(properties: &BasicProperties) -> u64 {
    properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok()).unwrap_or(0)
}

/// The server ended a consumer: its queue is gone, or moves.
fn cancelled() -> Error {
    Error::new(
        code::CONNECTION_LOST,
        "the server ended a consumer: its queue is gone, or moves to another node",
    )
}

fn came(delivery: Option<lapin::Result<Delivery>>) -> Result<Delivery> {
    delivery.ok_or_else(cancelled)?.map_err(|error| from_driver(&error, "receive"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RabbitLane {
    /// Waits until it is this member's turn. The queue has a line of its own: the member before may still be at its head there.
    pub(crate) async fn wait(
        connection: Arc<OwnConnection>,
        [line, amqp]: [Own; 2],
        books: Publishing,
        channel: &Name,
        subscription: &Name,
        lane: Lane,
        timeout: Duration,
    ) -> Result<Self> {
        let (book, queue) = (book(channel, subscription, lane), queue(channel, subscription, lane));
        let consume = |amqp: &Amqp, queue: &ShortString| {
            let (amqp, queue) = (amqp.clone(), queue.clone());
            async move {
                let options = BasicConsumeOptions::default();
                amqp.basic_consume(queue, "owner".into(), options, FieldTable::default()).await
            }
        };
        let consumer = within(timeout, "stand in line", consume(&line, &book)).await?;
        let mut written = Written { consumer, books: Vec::new() };
        let mut found = came(written.consumer.next().await)?;
        written.books.push((number(&found.properties), found.delivery_tag));
        // What was given with it has come when this is answered.
        let asked = line.queue_declare(book.clone(), passive(), FieldTable::default());
        within(timeout, "read a book", asked).await?;
        while let Some(delivery) = written.consumer.next().now_or_never() {
            let delivery = came(delivery)?;
            written.books.push((number(&delivery.properties), delivery.delivery_tag));
            if number(&delivery.properties) > number(&found.properties) {
                found = delivery;
            }
        }
        let messages = within(timeout, "read a queue", consume(&amqp, &queue)).await?;
        Ok(Self {
            connection,
            line,
            amqp,
            books,
            channel: channel.clone(),
            lane,
            book,
            queue,
            number: AtomicU64::new(number(&found.properties)),
            found: found.data.into(),
            timeout,
            messages: tokio::sync::Mutex::new(messages),
            written: tokio::sync::Mutex::new(written),
            open: Mutex::default(),
            behind: tokio::sync::Mutex::default(),
        })
    }

    fn fetched(&self, delivery: Delivery) -> Fetched {
        let (place, body) = (delivery.delivery_tag, Bytes::from(delivery.data));
        let message = decode(&delivery.properties, body.clone())
            .unwrap_or_else(|error| Message::undecodable(&self.channel, self.lane, place, &error, body));
        lock(&self.open).insert(place);
        let attempt = Attempt::Flag(delivery.redelivered);
        Fetched { place, message, stored_at: None, attempt, has_position: false }
    }

    /// Sends acknowledgements: those from the first on that are all to be given in one.
    async fn acknowledge(&self, places: &[Place]) -> lapin::Result<()> {
        let (mut upto, mut single) = (None, Vec::new());
        {
            let mut open = lock(&self.open);
            let mut places: Vec<Place> =
                places.iter().copied().filter(|place| open.contains(place)).collect();
            places.sort_unstable();
            for place in places {
                if single.is_empty() && open.first() == Some(&place) {
                    upto = Some(place);
                } else {
                    single.push(place);
                }
                open.remove(&place);
            }
        }
        if let Some(upto) = upto {
            self.amqp.basic_ack(upto, BasicAckOptions { multiple: true }).await?;
        }
        for place in single {
            self.amqp.basic_ack(place, BasicAckOptions::default()).await?;
        }
        Ok(())
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
    fn book(&self) -> Bytes {
        self.found.clone()
    }

    fn is_open(&self) -> bool {
        self.connection.status().connected()
            && self.amqp.status().connected()
            && self.line.status().connected()
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
        within(self.timeout, "acknowledge", async {
            self.acknowledge(places).await?;
            self.behind().await
        })
        .await
    }

    async fn write(&self, value: Bytes) -> Result<()> {
        let mut written = self.written.lock().await;
        if self.books.connection.status().blocked() {
            // Consumers make the room that the server needs: they go on, and nothing is noted meanwhile.
            return Ok(());
        }
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        let properties =
            BasicProperties::default().with_delivery_mode(2).with_message_id(number.to_string().into());
        let stored = publish_to(&self.books.amqp, self.book.clone(), &value, properties);
        let stored = match published(&self.books.connection, self.timeout, "note attempts", stored).await {
            Err(error) if error.code() == code::LIMIT_REACHED => return Ok(()),
            stored => stored?,
        };
        if !stored {
            return Err(Error::new(code::CONNECTION_LOST, "the server did not take what was to be noted"));
        }
        // It comes back here, where it is the last; the one before may go then.
        while written.books.iter().all(|(known, _)| *known < number) {
            let next = tokio::time::timeout(self.timeout, written.consumer.next()).await;
            let delivery = came(next.map_err(|_| timed_out("note attempts"))?)?;
            written.books.push((self::number(&delivery.properties), delivery.delivery_tag));
        }
        written.books.sort_unstable();
        while written.books.len() > 1 {
            let (_, tag) = written.books.remove(0);
            let acked = self.line.basic_ack(tag, BasicAckOptions::default());
            within(self.timeout, "note attempts", acked).await?;
        }
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        // First the messages go back, then the next one in line is let in.
        within(self.timeout, "give a lane up", self.amqp.close(200, "the lane is given up".into())).await?;
        within(self.timeout, "give a lane up", self.line.close(200, "the lane is given up".into())).await
    }
}
