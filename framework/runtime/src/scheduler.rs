//! Messages that are sent later, unless they are cancelled.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Broker, Due, Timer, Timers};
use tidegate_core::{Channel, Clock, Error, FlowName, Message, Name, Result, Scope};

use crate::kept::Kept;
use crate::sender::Sender;
use crate::trace::Trace;

/// How often somebody looks whether a time has come.
const LOOK: Duration = Duration::from_millis(100);
/// How many timers are taken at a time.
const TAKEN: usize = 256;
/// How long a message is tried; what was taken is hidden from others for three times as long.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a timer's id may be.
const ID_BYTES_MAX: usize = 200;

/// Sends messages later: reminders, deadlines, delays of more than a broker keeps. They are kept in a store until they are
/// sent, so that they outlast every process, and can be cancelled until then.
///
/// A message goes out once at least, under an id that follows from the timer's: brokers that know ids store it once. It is
/// never early by the clock of the process that sends it, and late by a tenth of a second, or for as long as no process runs
/// [`start`](Self::start).
///
/// ```
/// # use std::time::Duration;
/// # use tidegate_core::{Apply, Channel, Endpoint, Keep, Message, Result, SystemClock, Topology};
/// use std::sync::Arc;
/// use tidegate_memory::MemoryStore;
/// use tidegate_runtime::Scheduler;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// # let broker = tidegate_memory::open_broker(&Endpoint::parse("memory:")?)?;
/// let orders = Channel::new("orders")?;
/// # let orders = orders.with_keep(Keep::AtLeast(Duration::from_secs(60)));
/// # broker.apply(&Topology::of(&orders), Apply::Create).await?;
/// let timers = Arc::new(MemoryStore::new("shop")); // or tidegate::sqlite::open_timers(&url)?
/// let later = Scheduler::new(timers, "shop", SystemClock::shared())?;
/// let sending = later.start(&broker);
///
/// let remind = Message::with_id("remind-17", "/shop", "order.unpaid.v1").with_subject("17");
/// later.after("order-17/unpaid", Duration::from_secs(3_600), &orders, remind).await?;
/// assert!(later.cancel("order-17/unpaid").await?, "it was paid");
/// # drop(sending);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Scheduler {
    timers: Arc<dyn Timers>,
    flow: FlowName,
    clock: Arc<dyn Clock>,
}

/// Sends what is due, until it is dropped.
#[derive(Debug)]
pub struct Sending {
    sent: Arc<Sent>,
    _task: Scope,
}

#[derive(Debug, Default)]
struct Sent {
    sent: AtomicU64,
    failed: AtomicU64,
}

impl Sending {
    /// How many messages were sent.
    pub fn sent(&self) -> u64 {
        self.sent.sent.load(Ordering::Relaxed)
    }

    /// How often one could not be sent. It is tried again until that is done, or it is cancelled.
    pub fn failed(&self) -> u64 {
        self.sent.failed.load(Ordering::Relaxed)
    }
}

impl Scheduler {
    /// What is to be sent later by this name: all who use it share it.
    ///
    /// # Errors
    /// `config-invalid` if the name cannot be used.
    pub fn new(timers: Arc<dyn Timers>, name: &str, clock: Arc<dyn Clock>) -> Result<Self> {
        Ok(Self { timers, flow: FlowName::new(format!("later_{name}"))?, clock })
    }

    /// Sends a message at a time, in microseconds since 1970, in the place of what has the same id and was not sent yet.
    ///
    /// # Errors
    /// `message-invalid` if the message cannot be sent, `config-invalid` if the id is empty or longer than 200 bytes; otherwise
    /// as the store.
    pub async fn at(&self, id: &str, at: i64, channel: &Channel, mut message: Message) -> Result<()> {
        if id.is_empty() || id.len() > ID_BYTES_MAX || id.chars().any(char::is_control) {
            return Err(Error::new(code::CONFIG_INVALID, format!("{id:?} is no id of a timer")));
        }
        message.check()?;
        if let (None, Some(trace)) = (&message.traceparent, Trace::current()) {
            message.traceparent = Some(trace.to_string().into());
        }
        let value = Later::write(channel, &message)?;
        self.timers.put(&self.flow, &Timer { id: id.to_owned(), at, value }).await
    }

    /// The same behind a time from now.
    ///
    /// # Errors
    /// As [`at`](Self::at).
    pub async fn after(&self, id: &str, time: Duration, channel: &Channel, message: Message) -> Result<()> {
        let time = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        self.at(id, self.clock.now().saturating_add(time), channel, message).await
    }

    /// Takes back what was not sent yet; whether there was something. What is being sent just now may still come.
    ///
    /// # Errors
    /// As the store.
    pub async fn cancel(&self, id: &str) -> Result<bool> {
        self.timers.cancel(&self.flow, id).await
    }

    /// Begins to send what is due. Any number of processes may: each message is in the hand of one of them.
    pub fn start(&self, broker: &Arc<dyn Broker>) -> Sending {
        let sent = Arc::new(Sent::default());
        let mut task = Scope::new();
        let work = Work {
            scheduler: self.clone(),
            broker: Arc::clone(broker),
            senders: HashMap::new(),
            sent: Arc::clone(&sent),
        };
        task.spawn(work.run());
        Sending { sent, _task: task }
    }
}

struct Work {
    scheduler: Scheduler,
    broker: Arc<dyn Broker>,
    senders: HashMap<Name, Sender>,
    sent: Arc<Sent>,
}

impl Work {
    async fn run(mut self) -> Result<()> {
        loop {
            match self.look().await {
                Ok(TAKEN) => continue,
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "what is due cannot be read, and is tried again"),
            }
            self.scheduler.clock.sleep(LOOK).await;
        }
    }

    /// Sends what is due: how many were taken.
    async fn look(&mut self) -> Result<usize> {
        let Scheduler { timers, flow, clock } = self.scheduler.clone();
        let due = timers.due(&flow, clock.now(), TAKEN, 3 * PATIENCE).await?;
        let taken = due.len();
        let mut sending = Vec::with_capacity(taken);
        for due in due {
            let prepared = self.prepare(&due).await;
            let (timers, flow) = (&timers, &flow);
            sending.push(async move {
                let (sender, message) = prepared?;
                sender.send(message).await?;
                // If that is lost it is sent again, under the same id.
                timers.done(flow, due.number).await.map(drop)
            });
        }
        for ended in join_all(sending).await {
            match ended {
                Ok(()) => _ = self.sent.sent.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    self.sent.failed.fetch_add(1, Ordering::Relaxed);
                    self.senders.clear();
                    if error.verdict() == Verdict::Never {
                        tracing::error!(%error, "what is due cannot be sent; it is tried again until it is cancelled");
                    } else {
                        tracing::warn!(%error, "what is due could not be sent, and is tried again");
                    }
                }
            }
        }
        Ok(taken)
    }

    async fn prepare(&mut self, due: &Due) -> Result<(Sender, Message)> {
        let (channel, mut message) = Later::read(&due.timer.value)?;
        message.id = format!("{}/{}", due.timer.id, due.number).into();
        if let Some(sender) = self.senders.get(&channel) {
            return Ok((sender.clone(), message));
        }
        let there = self.broker.channel(&channel).await?.ok_or_else(|| {
            Error::new(code::CHANNEL_MISSING, format!("there is no channel {channel}"))
                .with("timer", &due.timer.id)
        })?;
        let clock = Arc::clone(&self.scheduler.clock);
        let sender = Sender::open(&*self.broker, &there).with_clock(clock).with_patience(PATIENCE).await?;
        self.senders.insert(channel, sender.clone());
        Ok((sender, message))
    }
}

/// What is kept of a message that is to be sent later.
#[derive(Debug, Serialize, Deserialize)]
struct Later {
    channel: String,
    message: Kept,
}

impl Later {
    fn write(channel: &Channel, message: &Message) -> Result<String> {
        let later = Self { channel: channel.name.to_string(), message: Kept::of(message) };
        serde_json::to_string(&later)
            .map_err(|e| Error::new(code::INTERNAL, "a message cannot be written").because(e))
    }

    fn read(text: &str) -> Result<(Name, Message)> {
        let later: Self = serde_json::from_str(text).map_err(|error| {
            Error::new(code::STATE_NEWER, "a message that is to be sent later cannot be read").because(error)
        })?;
        Ok((Name::new(later.channel.as_str())?, later.message.message()?))
    }
}
