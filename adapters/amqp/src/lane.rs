//! A lane that a member has: the book, for which it stood in line, and the queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::link::delivery::{Delivery, DeliveryInfo};
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::transaction::{Controller, Transaction, TransactionDischarge as _};
use fe2o3_amqp::types::messaging::Body;
use fe2o3_amqp::types::primitives::Value;
use fe2o3_amqp::{Receiver, Sender};
use futures::FutureExt as _;
use tidegate_core::error::code;
use tidegate_core::hand::Fetched;
use tidegate_core::port::Attempt;
use tidegate_core::queue::Link;
use tidegate_core::unsettled::Place;
use tidegate_core::{Error, Lane, Message, Name, Result};
use tokio::sync::Notify;

use crate::artemis::{self, Management, address, of};
use crate::codec::decode;
use crate::connect::{Connection, Node, receiver, sender, within};
use crate::copies::{Copies, Number, copy};
use crate::error::{from_driver, timed_out};
use crate::send::post;

/// How many messages are taken at once from what has come.
const PIECE: usize = 1_000;
/// How long a book waits for credit: a server that gives none is short of room, and consumers make it.
const CREDIT: Duration = Duration::from_millis(100);

type Came = std::result::Result<Delivery<Body<Value>>, RecvError>;

pub(crate) struct AmqpLane {
    channel: Name,
    lane: Lane,
    timeout: Duration,
    /// How many messages there may be in hand.
    held: u32,
    found: Bytes,
    messages: tokio::sync::Mutex<Receiver>,
    /// Somebody waits for the receiver of messages, which is had by who waits for some.
    wanted: Notify,
    taken: Mutex<Taken>,
    book: tokio::sync::Mutex<Book>,
    transactions: Controller,
    // These last: what is on them goes with them. A member that is gone leaves its lanes to whoever closes them.
    session: tokio::sync::Mutex<SessionHandle<()>>,
    _connection: Arc<Connection>,
}

/// How many messages came, and what of them is not acknowledged.
#[derive(Default)]
struct Taken {
    count: u64,
    open: BTreeMap<Place, DeliveryInfo>,
    /// Acknowledgements are being handed over: whoever finds this has been preceded by one that was dropped at that.
    is_acknowledging: bool,
}

/// The book, and what writes it.
struct Book {
    copies: Copies,
    sender: Sender,
    number: Number,
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AmqpLane {
    /// Waits until it is this member's turn. The queue has a line of its own: the member before may still be at its head there.
    pub(crate) async fn wait(
        connection: &Arc<Connection>,
        management: &Management,
        channel: &Name,
        subscription: &Name,
        lane: Lane,
        held: u32,
        timeout: Duration,
    ) -> Result<Self> {
        let (queue, book) =
            (artemis::queue(channel, subscription, lane), artemis::book(channel, subscription, lane));
        let mut session = connection.session().await?;
        let transactions = Controller::attach(&mut session, "transactions");
        let transactions = within(timeout, "open a link for transactions", transactions).await?;
        let sender = sender(&mut session, Node::Queue, None, timeout).await?;
        let mut copies = Copies::stand(&mut session, book, timeout).await?;
        copies.next().await?;
        let (number, found) = copies.last(management).await?;
        copies.keep(number).await?;
        let book = Book { copies, sender, number: number.next_owner() };
        let source = of(&address(channel, lane), &queue);
        let mut messages = receiver(&mut session, Node::Topic, source, timeout).await?;
        within(timeout, "read a queue", messages.set_credit(held)).await?;
        Ok(Self {
            channel: channel.clone(),
            lane,
            timeout,
            held,
            found,
            messages: tokio::sync::Mutex::new(messages),
            wanted: Notify::new(),
            taken: Mutex::default(),
            book: tokio::sync::Mutex::new(book),
            transactions,
            session: tokio::sync::Mutex::new(session),
            _connection: Arc::clone(connection),
        })
    }

    /// A message that came, or what stands in the place of one that cannot be read.
    fn fetched(&self, came: Came) -> Result<Fetched> {
        let (info, message) = match came {
            Ok(delivery) => (DeliveryInfo::from(&delivery), decode(delivery.into_message())),
            Err(RecvError::MessageDecode(error)) => {
                let why = Error::new(code::MESSAGE_INVALID, "the message is not written as AMQP is");
                (error.info, Err((why.because(error.source), Bytes::new())))
            }
            Err(error) => return Err(from_driver(&error, "receive")),
        };
        let mut taken = lock(&self.taken);
        taken.count += 1;
        let place = taken.count;
        taken.open.insert(place, info);
        let message = message.unwrap_or_else(|(error, body)| {
            Message::undecodable(&self.channel, self.lane, place, &error, body)
        });
        // Servers count badly what they hand over. What an owner before had comes first, and is no more than it may hold.
        let attempt = Attempt::Flag(place <= u64::from(self.held));
        Ok(Fetched { place, message, stored_at: None, attempt, has_position: false })
    }

    /// The receiver of messages, from whoever waits for some over it.
    async fn receiver(&self) -> tokio::sync::MutexGuard<'_, Receiver> {
        let mut lock = std::pin::pin!(self.messages.lock());
        if let Some(receiver) = (&mut lock).now_or_never() {
            return receiver;
        }
        // In line for it by now.
        self.wanted.notify_one();
        lock.await
    }
}

#[async_trait]
impl Link for AmqpLane {
    fn book(&self) -> Bytes {
        self.found.clone()
    }

    fn is_open(&self) -> bool {
        // Who has it closes it.
        self.session.try_lock().is_ok_and(|session| !session.is_ended())
    }

    async fn next(&self, out: &mut Vec<Fetched>) -> Result<()> {
        loop {
            let mut receiver = self.messages.lock().await;
            let first = tokio::select! {
                came = receiver.recv::<Body<Value>>() => came,
                () = self.wanted.notified() => continue,
            };
            out.push(self.fetched(first)?);
            while out.len() < PIECE
                && let Some(came) = receiver.recv::<Body<Value>>().now_or_never()
            {
                match self.fetched(came) {
                    Ok(fetched) => out.push(fetched),
                    // It is said again by whoever asks next.
                    Err(_) => break,
                }
            }
            return Ok(());
        }
    }

    async fn settle(&self, places: &[Place]) -> Result<()> {
        const OPERATION: &str = "acknowledge";
        let mut receiver = self.receiver().await;
        let done: Vec<(Place, DeliveryInfo)> = {
            let mut taken = lock(&self.taken);
            if std::mem::replace(&mut taken.is_acknowledging, true) {
                // The driver has forgotten some that it may not have sent. They come again when the lane is gone.
                let text = "what was to be acknowledged may not have been sent";
                return Err(Error::new(code::CONNECTION_LOST, text).with("operation", OPERATION));
            }
            let open = |place: &Place| taken.open.get(place).map(|info| (*place, info.clone()));
            places.iter().filter_map(open).collect()
        };
        let infos = done.iter().map(|(_, info)| info.clone());
        within(self.timeout, OPERATION, receiver.accept_all(infos)).await?;
        let credit = {
            let mut taken = lock(&self.taken);
            taken.is_acknowledging = false;
            done.iter().for_each(|(place, _)| _ = taken.open.remove(place));
            self.held.saturating_sub(u32::try_from(taken.open.len()).unwrap_or(u32::MAX))
        };
        within(self.timeout, OPERATION, receiver.set_credit(credit)).await?;
        drop(receiver);
        // Nobody answers an acknowledgement. A transaction that is begun behind it on the same session is answered when
        // everything before it is on the disk; it has nothing in it.
        let behind = Transaction::declare(&self.transactions, None);
        let mut behind = within(self.timeout, OPERATION, behind).await?;
        behind.set_rollback_on_drop_trials(0);
        within(self.timeout, OPERATION, behind.commit()).await
    }

    async fn write(&self, value: Bytes) -> Result<()> {
        let mut book = self.book.lock().await;
        let number = book.number.next();
        book.number = number;
        let copy = copy(&book.copies.queue, number, &value);
        match post(&mut book.sender, copy, CREDIT, self.timeout, "note attempts").await {
            // Consumers make the room that the server needs: they go on, and nothing is noted meanwhile.
            Err(error) if error.code() == code::LIMIT_REACHED => return Ok(()),
            stored => stored?,
        }
        book.copies.keep(number).await
    }

    async fn close(&self) -> Result<()> {
        let mut session = self.session.lock().await;
        match tokio::time::timeout(self.timeout, session.end()).await {
            Ok(ended) => ended.map_err(|error| {
                Error::new(code::CONNECTION_LOST, "the connection was lost")
                    .with("operation", "give a lane up")
                    .because(error)
            }),
            Err(_) => Err(timed_out("give a lane up")),
        }
    }
}
