//! The queue of a lane that a member has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::link::delivery::{Delivery, DeliveryInfo};
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::transaction::{Controller, Transaction, TransactionDischarge as _};
use fe2o3_amqp::types::messaging::Body;
use fe2o3_amqp::types::primitives::Value;
use futures::FutureExt as _;
use tidegate_broker::hand::Fetched;
use tidegate_broker::queue::{Link, held_max, place_of_undecodable};
use tidegate_broker::unsettled::Place;
use tidegate_core::error::code;
use tidegate_core::port::Attempt;
use tidegate_core::{Channel, Error, Lane, Message, Name, Result};
use tokio::sync::Notify;
use tokio::task::unconstrained;

use crate::classic::is_made;
use crate::codec::decode;
use crate::connect::{Connection, end, receiver, within};
use crate::error::from_driver;
use crate::server::{Queue, Server};

/// How many messages are taken at once from what has come.
const PIECE: usize = 1_000;

type Came = std::result::Result<Delivery<Body<Value>>, RecvError>;

pub(crate) struct AmqpLane {
    channel: Name,
    lane: Lane,
    timeout: Duration,
    /// How many messages there may be in hand.
    held: u32,
    messages: tokio::sync::Mutex<Receiver>,
    /// Somebody waits for the receiver of messages, which is had by who waits for some.
    wanted: Notify,
    taken: Mutex<Taken>,
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
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AmqpLane {
    /// Takes over the queue. It has a line of its own: the member before may still be at its head there.
    pub(crate) async fn open(
        connection: Arc<Connection>,
        server: Server,
        channel: &Channel,
        queue: &Queue,
        lane: Lane,
        timeout: Duration,
    ) -> Result<Self> {
        let (held, channel) = (u32::from(held_max(channel)), &channel.name);
        let mut session = connection.session().await?;
        let transactions = Controller::attach(&mut session, "transactions");
        let transactions = within(timeout, "open a link for transactions", transactions).await?;
        let (node, source) = server.source(queue);
        let mut messages = receiver(&mut session, node, source, timeout).await?;
        within(timeout, "read a queue", messages.set_credit(held)).await?;
        Ok(Self {
            channel: channel.clone(),
            lane,
            timeout,
            held,
            messages: tokio::sync::Mutex::new(messages),
            wanted: Notify::new(),
            taken: Mutex::default(),
            transactions,
            session: tokio::sync::Mutex::new(session),
            _connection: connection,
        })
    }

    /// A message that came, or what stands in the place of one that cannot be read.
    fn fetched(&self, came: Came) -> Result<Fetched> {
        let (info, id, message) = match came {
            Ok(delivery) => {
                let (info, message) = (DeliveryInfo::from(&delivery), delivery.into_message());
                let id = message.properties.as_ref().and_then(|properties| properties.message_id.as_ref());
                (info, id.map(|id| format!("{id:?}")), decode(message))
            }
            Err(RecvError::MessageDecode(error)) => {
                let why = Error::new(code::MESSAGE_INVALID, "the message is not written as AMQP is");
                (error.info, None, Err((why.because(error.source), Bytes::new())))
            }
            Err(error) => return Err(from_driver(&error, "receive")),
        };
        let mut taken = lock(&self.taken);
        taken.count += 1;
        let place = taken.count;
        taken.open.insert(place, info);
        let message = message.unwrap_or_else(|(error, body)| {
            let place = place_of_undecodable(id.as_deref().unwrap_or_default(), &body);
            Message::undecodable(&self.channel, self.lane, place, &error, body)
        });
        // Servers count badly what they hand over. What an owner before had comes first, and is no more than it may hold.
        let attempt = Attempt::Flag(place <= u64::from(self.held));
        let message = Arc::new(message);
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
            let mut came = Some(first);
            while let Some(next) = came {
                match next {
                    // Who made the queue sent it, and went away before taking it out.
                    Ok(delivery) if is_made(delivery.message()) => {
                        within(self.timeout, "receive", receiver.accept(&delivery)).await?;
                    }
                    next => match self.fetched(next) {
                        Ok(fetched) => out.push(fetched),
                        Err(error) if out.is_empty() => return Err(error),
                        // It is said again by whoever asks next.
                        Err(_) => break,
                    },
                }
                // The runtime's own share of a turn is smaller, and all that came is to be decoded at some time.
                let next = unconstrained(receiver.recv::<Body<Value>>());
                came = if out.len() < PIECE { next.now_or_never() } else { None };
            }
            if !out.is_empty() {
                return Ok(());
            }
        }
    }

    async fn settle(&self, places: &[Place]) -> Result<()> {
        const OPERATION: &str = "acknowledge";
        let mut receiver = self.receiver().await;
        let done: Vec<(Place, DeliveryInfo)> = {
            let taken = lock(&self.taken);
            let open = |place: &Place| taken.open.get(place).map(|info| (*place, info.clone()));
            places.iter().filter_map(open).collect()
        };
        let infos = done.iter().map(|(_, info)| info.clone());
        within(self.timeout, OPERATION, receiver.accept_all(infos)).await?;
        let credit = {
            let mut taken = lock(&self.taken);
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

    async fn close(&self) -> Result<()> {
        end(&mut *self.session.lock().await, self.timeout, "give a lane up").await
    }
}
