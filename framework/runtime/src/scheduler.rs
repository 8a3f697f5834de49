//! Messages that are sent later, unless they are cancelled.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, join_all};
use futures::stream::{FuturesUnordered, StreamExt as _};
use serde::{Deserialize, Serialize};
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Broker, Timer, Timers};
use tidegate_core::{Channel, Clock, Error, FlowName, Message, Name, Result, Scope};
use tokio::sync::watch;

use crate::kept::Kept;
use crate::sender::{Sender, close_all};
use crate::trace::Trace;
use crate::wait;

/// How often somebody looks whether a time has come.
const LOOK: Duration = Duration::from_millis(100);
/// How many timers are taken at a time.
const TAKEN: usize = 256;
/// How many channels are sent to at once.
const CHANNELS_MAX: usize = 2 * TAKEN;
/// How long the others wait for a channel that does not answer.
const SLOW: Duration = Duration::from_secs(1);
/// How long a message is tried.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long what was taken is hidden from others.
const HIDDEN: Duration = Duration::from_secs(30);
/// How long sending it may take, the opening of its channel included, so that it has ended when others may send it.
const LIMIT: Duration = Duration::from_secs(25);
/// How long a timer's id may be.
const ID_BYTES_MAX: usize = 200;

/// Sends messages later: reminders, deadlines, delays of more than a broker keeps. They are kept in a store until they are
/// sent, so that they outlast every process, and can be cancelled until then.
///
/// A message goes out once at least, under an id that follows from the timer's: brokers that know ids store it once. It is
/// never early by the clock of the process that sends it, and late by a tenth of a second, or for as long as no process runs
/// [`start`](Self::start). A channel that does not answer holds up its own messages alone, which are tried again half a minute later.
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
/// sending.drain(Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Scheduler {
    timers: Arc<dyn Timers>,
    flow: FlowName,
    clock: Arc<dyn Clock>,
}

/// Sends what is due, until it is drained or dropped. Dropping it is a crash: what is being sent is sent again, under the same ids, half
/// a minute later.
#[derive(Debug)]
pub struct Sending {
    sent: Arc<Sent>,
    /// By when it is to be at its end, by the clock.
    stop: watch::Sender<Option<Duration>>,
    clock: Arc<dyn Clock>,
    task: Scope,
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

    /// Takes nothing more, lets what is being sent end until the deadline, and closes. What is not known to be sent then is sent again by
    /// whoever sends next, under the same ids.
    ///
    /// # Cancel safety
    /// A dropped call is a crash, as dropping it is.
    pub async fn drain(mut self, deadline: Duration) {
        let end = self.clock.elapsed() + deadline;
        self.stop.send_replace(Some(end));
        tokio::select! {
            biased;
            ended = self.task.next() => if let Some(Err(error)) = ended {
                tracing::error!(%error, "sending what is due had ended");
            },
            // The store does not answer.
            () = wait::until(&*self.clock, end) => {}
        }
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
    ///
    /// # Cancel safety
    /// A dropped call may have set the timer: call it again, which sets it once, or cancel it.
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
    ///
    /// # Cancel safety
    /// As [`at`](Self::at); the time begins anew.
    pub async fn after(&self, id: &str, time: Duration, channel: &Channel, message: Message) -> Result<()> {
        let time = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        self.at(id, self.clock.now().saturating_add(time), channel, message).await
    }

    /// Takes back what was not sent yet; whether there was something. What is being sent just now may still come.
    ///
    /// # Errors
    /// As the store.
    ///
    /// # Cancel safety
    /// A dropped call may have taken it back; called again, it says then that there was nothing.
    pub async fn cancel(&self, id: &str) -> Result<bool> {
        self.timers.cancel(&self.flow, id).await
    }

    /// Begins to send what is due. Any number of processes may: each message is in the hand of one of them.
    pub fn start(&self, broker: &Arc<dyn Broker>) -> Sending {
        let sent = Arc::new(Sent::default());
        let (stop, stopped) = watch::channel(None);
        let mut task = Scope::new();
        let work = Work {
            scheduler: self.clone(),
            broker: Arc::clone(broker),
            senders: HashMap::new(),
            sending: FuturesUnordered::new(),
            busy: HashSet::new(),
            sent: Arc::clone(&sent),
            stop: stopped,
        };
        task.spawn(work.run());
        Sending { sent, stop, clock: Arc::clone(&self.clock), task }
    }
}

struct Work {
    scheduler: Scheduler,
    broker: Arc<dyn Broker>,
    senders: HashMap<Name, Sender>,
    /// What is being sent, for each channel.
    sending: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// The channels of these.
    busy: HashSet<Name>,
    sent: Arc<Sent>,
    stop: watch::Receiver<Option<Duration>>,
}

/// What became of messages that were due on one channel.
struct Ended {
    channel: Name,
    /// What they were sent with, and what became of each; or why none could be sent.
    sent: Result<(Sender, Vec<Result<()>>)>,
    count: usize,
}

impl Work {
    async fn run(mut self) -> Result<()> {
        while self.stop.borrow().is_none() {
            let (taken, begun) = match self.look().await {
                Ok(looked) => looked,
                Err(error) => {
                    tracing::warn!(%error, "what is due cannot be read, and is tried again");
                    (0, HashSet::new())
                }
            };
            self.go_on(&begun).await;
            if taken < TAKEN {
                self.rest().await;
            }
        }
        self.finish().await;
        Ok(())
    }

    /// Begins to send what is due: how much was taken, and the channels of that.
    async fn look(&mut self) -> Result<(usize, HashSet<Name>)> {
        let Scheduler { timers, flow, clock } = &self.scheduler;
        let end = clock.elapsed() + LIMIT;
        let due = timers.due(flow, clock.now(), TAKEN, HIDDEN).await?;
        let taken = due.len();
        let mut by_channel: HashMap<Name, Vec<(u64, Message)>> = HashMap::new();
        for due in due {
            match Later::read(&due.timer.value) {
                Ok((channel, mut message)) => {
                    message.id = format!("{}/{}", due.timer.id, due.number).into();
                    by_channel.entry(channel).or_default().push((due.number, message));
                }
                Err(error) => self.failed(1, &error.with("timer", &due.timer.id)),
            }
        }
        let mut begun = HashSet::new();
        for (channel, due) in by_channel {
            // What is not begun comes again: its channel did not answer for what is sent already, or too many do not.
            if self.busy.len() < CHANNELS_MAX && self.busy.insert(channel.clone()) {
                begun.insert(channel.clone());
                self.begin(channel, due, end);
            }
        }
        Ok((taken, begun))
    }

    fn begin(&mut self, channel: Name, due: Vec<(u64, Message)>, end: Duration) {
        let Scheduler { timers, flow, clock } = self.scheduler.clone();
        let (broker, sender) = (Arc::clone(&self.broker), self.senders.get(&channel).cloned());
        let (count, to) = (due.len(), channel.clone());
        let sending = {
            let clock = Arc::clone(&clock);
            async move {
                let sender = match sender {
                    Some(sender) => sender,
                    None => open(&*broker, &to, clock).await?,
                };
                let send = |(number, message)| {
                    let (sender, timers, flow) = (&sender, &timers, &flow);
                    async move {
                        sender.send(message).await?;
                        // If that is lost it is sent again, under the same id.
                        timers.done(flow, number).await.map(drop)
                    }
                };
                let sent = join_all(due.into_iter().map(send)).await;
                Ok::<_, Error>((sender, sent))
            }
        };
        let limited = async move {
            let sent = tokio::select! {
                sent = sending => sent,
                () = wait::until(&*clock, end) => {
                    Err(Error::new(code::TIMED_OUT, format!("channel {channel} did not answer within {LIMIT:?}")))
                }
            };
            Ended { channel, sent, count }
        };
        self.sending.push(limited.boxed());
    }

    fn ended(&mut self, ended: Ended) {
        let Ended { channel, sent, count } = ended;
        self.busy.remove(&channel);
        let (sender, sent) = match sent {
            Ok(sent) => sent,
            Err(error) => {
                self.senders.remove(&channel);
                return self.failed(count, &error);
            }
        };
        self.senders.insert(channel.clone(), sender);
        for sent in sent {
            match sent {
                Ok(()) => _ = self.sent.sent.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    self.senders.remove(&channel);
                    self.failed(1, &error);
                }
            }
        }
    }

    fn failed(&self, count: usize, error: &Error) {
        self.sent.failed.fetch_add(count as u64, Ordering::Relaxed);
        if error.verdict() == Verdict::Never {
            tracing::error!(%error, count, "what is due cannot be sent; it is tried again until it is cancelled");
        } else {
            tracing::warn!(%error, count, "what is due could not be sent, and is tried again");
        }
    }

    /// Sends, until these channels have answered, or one of them has not for too long.
    async fn go_on(&mut self, begun: &HashSet<Name>) {
        let clock = Arc::clone(&self.scheduler.clock);
        let mut slow = wait::until(&*clock, clock.elapsed() + SLOW).boxed();
        while !self.busy.is_disjoint(begun) && self.stop.borrow().is_none() {
            tokio::select! {
                biased;
                Some(ended) = self.sending.next() => self.ended(ended),
                () = &mut slow => break,
                _ = self.stop.changed() => {}
            }
        }
    }

    /// Sends, until it is time to look again.
    async fn rest(&mut self) {
        let clock = Arc::clone(&self.scheduler.clock);
        let mut rested = clock.sleep(LOOK);
        while self.stop.borrow().is_none() {
            tokio::select! {
                biased;
                Some(ended) = self.sending.next() => self.ended(ended),
                () = &mut rested => break,
                _ = self.stop.changed() => {}
            }
        }
    }

    /// Lets what is being sent end until the deadline, and closes.
    async fn finish(mut self) {
        let clock = Arc::clone(&self.scheduler.clock);
        let end = self.stop.borrow().unwrap_or_default();
        let mut over = wait::until(&*clock, end).boxed();
        while !self.sending.is_empty() {
            tokio::select! {
                biased;
                Some(ended) = self.sending.next() => self.ended(ended),
                () = &mut over => break,
            }
        }
        close_all(self.senders.into_values(), end.saturating_sub(clock.elapsed())).await;
    }
}

/// A sender to a channel, as it is there.
async fn open(broker: &dyn Broker, channel: &Name, clock: Arc<dyn Clock>) -> Result<Sender> {
    let there = broker
        .channel(channel)
        .await?
        .ok_or_else(|| Error::new(code::CHANNEL_MISSING, format!("there is no channel {channel}")))?;
    Sender::open(broker, &there).with_clock(clock).with_patience(PATIENCE).await
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
