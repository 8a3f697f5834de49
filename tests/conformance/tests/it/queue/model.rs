//! Queues in memory that can be cut off and made to lose answers, and what the suite needs of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tidegate_broker::Settings;
use tidegate_broker::hand::Fetched;
use tidegate_broker::queue::{
    Copy, Line, Link, Member, NO_BROWSING, NO_LISTING, Number, QueueBroker, Queues, Sender, Taken, held_max,
};
use tidegate_conformance::{Fixture, Hook, Killed, Network, numbered};
use tidegate_core::error::code;
use tidegate_core::port::{Attempt, Broker, Effective, Sent};
use tidegate_core::{
    Apply, Capabilities, Channel, Clock, Error, How, Lane, LossCase, LossEvent, Message, Name, Result,
    Subscription, SystemClock, Topology,
};
use tokio::sync::Notify;

static CAPABILITIES: Capabilities = Capabilities {
    confirm: "in memory",
    order_by_key: How::Native,
    competing_consumers: How::Native,
    durable_subscriptions: How::Native,
    unregister: How::Native,
    replay: How::No("a queue forgets what is settled"),
    dedupe: How::No("queues know no message again"),
    retry_later: How::Native,
    dead_letter: How::No("publish to a channel of dead letters, then settle"),
    delivery_count: How::Native,
    lock_extend: How::Native,
    listing: How::No(NO_LISTING),
    browsing: How::No(NO_BROWSING),
    processes: How::No("it is in memory"),
    message_bytes_max: 16 << 20,
    consumers_per_lane_max: 1,
    loss: &[LossCase { when: LossEvent::BrokerKilled, text: "it is in memory", avoid: "nothing" }],
};

/// Queues in memory. Clones are the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) data: Arc<Data>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
pub(crate) struct Data {
    channels: Mutex<BTreeMap<Name, Stored>>,
    changed: Notify,
    /// How often all connections were cut.
    cuts: AtomicU64,
    tickets: AtomicU64,
    /// How many answers to sending are to be lost.
    to_lose: AtomicUsize,
    /// A bug: everybody who stands in the line of a record is at its head.
    pub(crate) has_no_lines: AtomicBool,
    /// How many steps of making or removing a subscription are left before whoever does it is killed.
    steps_left: Mutex<Option<usize>>,
    /// How long a settling takes.
    settling: Mutex<Duration>,
    /// Books cannot be written: the server takes nothing.
    pub(crate) is_full: AtomicBool,
    /// A lane that is given up ends the connection, with all that is had over it.
    pub(crate) is_brittle: AtomicBool,
}

#[derive(Debug, Default)]
struct Stored {
    record: Slot,
    subscriptions: BTreeMap<Name, Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    members: usize,
    lanes: BTreeMap<Lane, Lined>,
}

/// The queue of a slot, and who stands in its line: the first has what is in hand.
#[derive(Debug, Default)]
struct Slot {
    line: VecDeque<u64>,
    ready: VecDeque<(Number, Bytes)>,
    in_hand: BTreeMap<u64, (Number, Bytes)>,
    given: u64,
}

/// A queue, and its book, whose holder has what is in hand.
#[derive(Debug, Default)]
struct Lined {
    book: Slot,
    /// With whether somebody had it before.
    ready: VecDeque<(Message, bool)>,
    in_hand: BTreeMap<u64, Message>,
    given: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost() -> Error {
    Error::new(code::CONNECTION_LOST, "the connection was lost")
}

impl Model {
    pub(crate) fn new() -> Self {
        Self { data: Arc::default(), clock: SystemClock::shared() }
    }

    pub(crate) fn broker(&self) -> Arc<dyn Broker> {
        let settings = Settings {
            lease: Duration::from_millis(1_000),
            grace: Duration::from_millis(300),
            patience: Duration::from_millis(1_000),
        };
        Arc::new(QueueBroker::new(self.clone(), settings, Arc::clone(&self.clock)))
    }

    /// The queues that a channel has, by subscription, whether its record names them or not.
    pub(crate) fn subscriptions(&self, channel: &Channel) -> Vec<String> {
        let channels = lock(&self.data.channels);
        let stored = channels.get(&channel.name).into_iter();
        stored.flat_map(|stored| stored.subscriptions.keys().map(ToString::to_string)).collect()
    }

    /// Kills whoever makes or removes a subscription, after so many steps of it.
    pub(crate) fn kill_after(&self, steps: usize) {
        *lock(&self.data.steps_left) = Some(steps);
    }

    pub(crate) fn revive(&self) {
        *lock(&self.data.steps_left) = None;
    }

    pub(crate) fn settle_in(&self, time: Duration) {
        *lock(&self.data.settling) = time;
    }

    fn step(&self) -> Result<()> {
        match &mut *lock(&self.data.steps_left) {
            Some(0) => Err(lost()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(crate) fn cut(&self) {
        self.data.cuts.fetch_add(1, Ordering::AcqRel);
        self.data.changed.notify_waiters();
    }
}

#[async_trait]
impl Queues for Model {
    fn location(&self) -> String {
        "model:".to_owned()
    }

    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    async fn probe(&self) -> Result<Effective> {
        Ok(Effective::default())
    }

    async fn create(&self, channel: &Channel) -> Result<()> {
        lock(&self.data.channels).entry(channel.name.clone()).or_default();
        Ok(())
    }

    async fn line(&self, channel: &Name) -> Result<Option<Box<dyn Line>>> {
        if !lock(&self.data.channels).contains_key(channel) {
            return Ok(None);
        }
        Ok(Some(ModelLine::stand(&self.data, channel, None)?))
    }

    async fn subscribe(&self, channel: &Channel, subscription: &Name) -> Result<()> {
        self.step()?;
        {
            let mut channels = lock(&self.data.channels);
            let stored = channels.get_mut(&channel.name).ok_or_else(lost)?;
            let mut lanes: BTreeMap<_, _> =
                (0..channel.lanes).map(|lane| (Lane(lane), Lined::default())).collect();
            let books = lanes.values_mut().map(|lined: &mut Lined| &mut lined.book);
            books.for_each(|book| book.ready.push_back((Number::default(), Bytes::new())));
            stored.subscriptions.entry(subscription.clone()).or_insert(Queue { members: 0, lanes });
        }
        self.step()
    }

    async fn unsubscribe(&self, channel: &Channel, subscription: &Name) -> Result<()> {
        self.step()?;
        if let Some(stored) = lock(&self.data.channels).get_mut(&channel.name) {
            stored.subscriptions.remove(subscription);
        }
        self.data.changed.notify_waiters();
        self.step()
    }

    async fn waiting(&self, channel: &Channel, subscription: &Name) -> Result<u64> {
        let channels = lock(&self.data.channels);
        let queue = channels.get(&channel.name).and_then(|stored| stored.subscriptions.get(subscription));
        Ok(queue.map_or(0, |queue| queue.lanes.values().map(|line| line.ready.len()).sum::<usize>() as u64))
    }

    async fn sender(&self, channel: &Channel) -> Result<Box<dyn Sender>> {
        let cuts = self.data.cuts.load(Ordering::Acquire);
        Ok(Box::new(ModelSender { data: Arc::clone(&self.data), channel: channel.clone(), cuts }))
    }

    async fn member(&self, channel: &Channel, subscription: &Name) -> Result<Arc<dyn Member>> {
        let session = Session {
            cuts: self.data.cuts.load(Ordering::Acquire),
            data: Arc::clone(&self.data),
            channel: channel.clone(),
            subscription: subscription.clone(),
        };
        session.with(|queue| queue.members += 1)?;
        Ok(Arc::new(ModelMember { session }))
    }
}

/// A place in the line of a record, or of the book of a lane.
struct ModelLine {
    data: Arc<Data>,
    channel: Name,
    of: Option<(Name, Lane)>,
    ticket: u64,
    cuts: u64,
}

impl ModelLine {
    fn stand(data: &Arc<Data>, channel: &Name, of: Option<(Name, Lane)>) -> Result<Box<dyn Line>> {
        let ticket = data.tickets.fetch_add(1, Ordering::Relaxed);
        let cuts = data.cuts.load(Ordering::Acquire);
        let line = Self { data: Arc::clone(data), channel: channel.clone(), of, ticket, cuts };
        line.slot(|slot| slot.line.push_back(ticket))?;
        Ok(Box::new(line))
    }

    fn slot<T>(&self, act: impl FnOnce(&mut Slot) -> T) -> Result<T> {
        let mut channels = lock(&self.data.channels);
        let stored = channels.get_mut(&self.channel).ok_or_else(lost)?;
        let slot = match &self.of {
            None => &mut stored.record,
            Some((subscription, lane)) => {
                let queue = stored.subscriptions.get_mut(subscription).ok_or_else(lost)?;
                &mut queue.lanes.entry(*lane).or_default().book
            }
        };
        Ok(act(slot))
    }

    fn open<T>(&self, act: impl FnOnce(&mut Slot) -> T) -> Result<T> {
        if self.data.cuts.load(Ordering::Acquire) != self.cuts {
            return Err(lost());
        }
        self.slot(act)
    }
}

impl Drop for ModelLine {
    fn drop(&mut self) {
        let ticket = self.ticket;
        let _gone_before = self.slot(|slot| {
            if slot.line.front() == Some(&ticket) {
                for (_, copy) in std::mem::take(&mut slot.in_hand).into_iter().rev() {
                    slot.ready.push_front(copy);
                }
            }
            slot.line.retain(|known| *known != ticket);
        });
        self.data.changed.notify_waiters();
    }
}

#[async_trait]
impl Line for ModelLine {
    async fn next(&mut self) -> Result<Copy> {
        loop {
            let data = Arc::clone(&self.data);
            let mut changed = std::pin::pin!(data.changed.notified());
            changed.as_mut().enable();
            let is_first = |slot: &Slot| {
                slot.line.front() == Some(&self.ticket)
                    || self.of.is_none() && data.has_no_lines.load(Ordering::Acquire)
            };
            let came = self.open(|slot| {
                let (number, value) = is_first(slot).then(|| slot.ready.pop_front()).flatten()?;
                slot.given += 1;
                slot.in_hand.insert(slot.given, (number, value.clone()));
                Some(Copy { number, value, tag: slot.given })
            });
            if let Some(copy) = came? {
                return Ok(copy);
            }
            changed.await;
        }
    }

    async fn left(&mut self) -> Result<u64> {
        tokio::task::yield_now().await;
        self.open(|slot| slot.ready.len() as u64)
    }

    async fn store(&mut self, number: Number, value: &[u8]) -> Result<()> {
        tokio::task::yield_now().await;
        if self.of.is_some() && self.data.is_full.load(Ordering::Acquire) {
            return Err(Error::new(code::LIMIT_REACHED, "the server takes nothing"));
        }
        self.open(|slot| slot.ready.push_back((number, Bytes::copy_from_slice(value))))?;
        self.data.changed.notify_waiters();
        Ok(())
    }

    async fn remove(&mut self, tags: &[u64]) -> Result<()> {
        self.open(|slot| slot.in_hand.retain(|tag, _| !tags.contains(tag)))
    }

    async fn leave(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct ModelSender {
    data: Arc<Data>,
    channel: Channel,
    cuts: u64,
}

#[async_trait]
impl Sender for ModelSender {
    fn is_open(&self) -> bool {
        self.data.cuts.load(Ordering::Acquire) == self.cuts
    }

    async fn send(&mut self, batch: &[&Message]) -> Vec<Taken> {
        tokio::task::yield_now().await;
        if !self.is_open() {
            return batch.iter().map(|_| Taken::Unknown(lost())).collect();
        }
        let mut answers = Vec::new();
        if let Some(stored) = lock(&self.data.channels).get_mut(&self.channel.name) {
            for message in batch {
                let lane = message.lane(self.channel.lanes);
                for queue in stored.subscriptions.values_mut() {
                    queue.lanes.entry(lane).or_default().ready.push_back(((*message).clone(), false));
                }
                answers.push(if stored.subscriptions.is_empty() { Taken::Unwanted } else { Taken::Stored });
            }
        }
        self.data.changed.notify_waiters();
        let less = |left: usize| left.checked_sub(1);
        if self.data.to_lose.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok() {
            return batch.iter().map(|_| Taken::Unknown(lost())).collect();
        }
        tokio::task::yield_now().await;
        answers
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// One connection of one member.
#[derive(Clone)]
struct Session {
    data: Arc<Data>,
    channel: Channel,
    subscription: Name,
    cuts: u64,
}

impl Session {
    fn is_open(&self) -> bool {
        self.data.cuts.load(Ordering::Acquire) == self.cuts
    }

    fn with<T>(&self, act: impl FnOnce(&mut Queue) -> T) -> Result<T> {
        let mut channels = lock(&self.data.channels);
        let stored = channels.get_mut(&self.channel.name).ok_or_else(lost)?;
        Ok(act(stored.subscriptions.get_mut(&self.subscription).ok_or_else(lost)?))
    }

    fn line<T>(&self, lane: Lane, act: impl FnOnce(&mut Lined) -> T) -> Result<T> {
        if !self.is_open() {
            return Err(lost());
        }
        self.with(|queue| act(queue.lanes.entry(lane).or_default()))
    }
}

struct ModelMember {
    session: Session,
}

impl Drop for ModelMember {
    fn drop(&mut self) {
        let _gone_before = self.session.with(|queue| queue.members = queue.members.saturating_sub(1));
    }
}

#[async_trait]
impl Member for ModelMember {
    async fn count(&self) -> Result<usize> {
        tokio::task::yield_now().await;
        if !self.session.is_open() {
            return Err(lost());
        }
        self.session.with(|queue| queue.members)
    }

    async fn line(&self, lane: Lane) -> Result<Box<dyn Line>> {
        let Session { data, channel, subscription, .. } = &self.session;
        ModelLine::stand(data, &channel.name, Some((subscription.clone(), lane)))
    }

    async fn lane(&self, lane: Lane) -> Result<Box<dyn Link>> {
        Ok(Box::new(ModelLink { session: self.session.clone(), lane }))
    }
}

struct ModelLink {
    session: Session,
    lane: Lane,
}

impl Drop for ModelLink {
    fn drop(&mut self) {
        let _gone_before = self.session.with(|queue| {
            let line = queue.lanes.entry(self.lane).or_default();
            for (_, message) in std::mem::take(&mut line.in_hand).into_iter().rev() {
                line.ready.push_front((message, true));
            }
            line.given = 0;
        });
        self.session.data.changed.notify_waiters();
    }
}

#[async_trait]
impl Link for ModelLink {
    fn is_open(&self) -> bool {
        self.session.is_open()
    }

    async fn next(&self, out: &mut Vec<Fetched>) -> Result<()> {
        let most = usize::from(held_max(&self.session.channel));
        loop {
            let data = Arc::clone(&self.session.data);
            let mut changed = std::pin::pin!(data.changed.notified());
            changed.as_mut().enable();
            self.session.line(self.lane, |line| {
                while line.in_hand.len() < most
                    && let Some((message, was_had)) = line.ready.pop_front()
                {
                    line.given += 1;
                    let place = line.given;
                    line.in_hand.insert(place, message.clone());
                    let message = Arc::new(message);
                    let attempt = Attempt::Flag(was_had);
                    out.push(Fetched { place, message, stored_at: None, attempt, has_position: false });
                }
            })?;
            if !out.is_empty() {
                return Ok(());
            }
            changed.await;
        }
    }

    async fn settle(&self, places: &[u64]) -> Result<()> {
        let settling = *lock(&self.session.data.settling);
        tokio::time::sleep(settling).await;
        self.session
            .line(self.lane, |line| places.iter().for_each(|place| _ = line.in_hand.remove(place)))?;
        self.session.data.changed.notify_waiters();
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        let data = &self.session.data;
        if data.is_brittle.load(Ordering::Acquire) {
            data.cuts.fetch_add(1, Ordering::AcqRel);
            data.changed.notify_waiters();
        }
        Ok(())
    }
}

pub(crate) struct Modelled {
    pub(crate) model: Model,
}

#[async_trait]
impl Fixture for Modelled {
    fn adapter(&self) -> &'static str {
        "queues"
    }

    async fn start(&mut self) -> Result<Arc<dyn Broker>> {
        self.model = Model::new();
        Ok(self.model.broker())
    }

    async fn connect(&mut self) -> Result<Arc<dyn Broker>> {
        Ok(self.model.broker())
    }

    async fn stranger(&mut self) -> Result<Option<Arc<dyn Broker>>> {
        Ok(None)
    }

    async fn restart(&mut self) -> Result<Arc<dyn Broker>> {
        self.model.cut();
        Ok(self.model.broker())
    }

    async fn kill(&mut self, channel: &Channel, prefix: &str) -> Result<Killed> {
        let mut producer = self.model.broker().producer(channel).await?;
        let batch: Vec<_> = (0..50).map(|number| numbered(prefix, number)).collect();
        let sent = producer.publish(&batch).await;
        let confirmed = (0..).zip(&sent).filter(|(_, sent)| matches!(sent, Sent::Stored { .. }));
        let confirmed = confirmed.map(|(number, _)| number).collect();
        self.model = Model::new();
        let broker = self.model.broker();
        let topology = Topology::of(channel).and(&Subscription::new(channel, "s")?);
        broker.apply(&topology, Apply::Create).await?;
        Ok(Killed { broker, confirmed })
    }

    async fn cut(&mut self) -> Result<Hook> {
        self.model.cut();
        Ok(Hook::Done)
    }

    fn network(&self) -> std::result::Result<Arc<dyn Network>, &'static str> {
        Err("nothing is between it and whoever uses it")
    }

    async fn lose_answers(&mut self, calls: usize) -> Result<Hook> {
        self.model.data.to_lose.store(calls, Ordering::Release);
        Ok(Hook::Done)
    }

    async fn remove(&mut self, _: &Channel, _: &Subscription) -> Result<Hook> {
        Ok(Hook::Cannot("its queues go with their record alone"))
    }

    /// What is kept of the subscription that has most.
    async fn kept(&mut self, channel: &Channel) -> Result<Option<u64>> {
        let channels = lock(&self.model.data.channels);
        let queues = channels.get(&channel.name).into_iter().flat_map(|stored| stored.subscriptions.values());
        let of = |queue: &Queue| {
            queue.lanes.values().map(|line| line.ready.len() + line.in_hand.len()).sum::<usize>()
        };
        Ok(Some(queues.map(of).max().unwrap_or(0) as u64))
    }

    async fn clean_up(&mut self) -> Result<()> {
        Ok(())
    }
}
