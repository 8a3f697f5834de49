//! A broker in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_broker::unsettled::End;
use tidegate_core::error::code;
use tidegate_core::port::{Broker, Browse, Consumer, Effective, Leftover, Producer};
use tidegate_core::{
    Apply, Capabilities, Channel, Clock, Difference, Error, How, LossCase, LossEvent, Name, Result, Start,
    Subscription, SystemClock, Topology,
};

use crate::browse::MemoryBrowse;
use crate::channel::{ChannelState, MemberState};
use crate::consumer::MemoryConsumer;
use crate::producer::MemoryProducer;

/// How long publishing waits for room.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a consumer that is asked for a lane may finish what it has in hand.
const GRACE: Duration = Duration::from_secs(5);

static CAPABILITIES: Capabilities = Capabilities {
    confirm: "in the memory of this process",
    order_by_key: How::Native,
    competing_consumers: How::Native,
    durable_subscriptions: How::Native,
    unregister: How::Native,
    replay: How::Native,
    dedupe: How::Native,
    retry_later: How::Native,
    dead_letter: How::No("publish to a channel of dead letters, then settle"),
    delivery_count: How::Native,
    lock_extend: How::Native,
    listing: How::Native,
    browsing: How::Native,
    processes: How::No("it lives in one process"),
    message_bytes_max: 16 << 20,
    consumers_per_lane_max: 1,
    loss: &[
        LossCase {
            when: LossEvent::BrokerKilled,
            text: "the process ends: everything is gone",
            avoid: "use sqlite:PATH",
        },
        LossCase {
            when: LossEvent::PowerLost,
            text: "the machine loses its power: everything is gone",
            avoid: "use sqlite:PATH",
        },
    ],
};

/// A broker in memory. Clones are the same connection to the same messages; [`MemoryBroker::connect`] gives another
/// connection to them.
#[derive(Clone, Debug)]
pub struct MemoryBroker {
    pub(crate) data: Arc<Data>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) patience: Duration,
    pub(crate) grace: Duration,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Data {
    channels: Mutex<BTreeMap<Name, ChannelState>>,
    /// Numbers of members, generations and connections.
    numbers: AtomicU64,
    pub(crate) clock: Arc<dyn Clock>,
}

/// One use of the broker, to be closed or cut.
#[derive(Debug)]
pub(crate) struct Connection {
    number: u64,
    pub(crate) is_closing: AtomicBool,
    /// How many answers to `publish` are still to be lost.
    pub(crate) answers_to_lose: AtomicUsize,
}

impl Data {
    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, ChannelState>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn connection(&self) -> Arc<Connection> {
        Arc::new(Connection {
            number: self.number(),
            is_closing: AtomicBool::new(false),
            answers_to_lose: AtomicUsize::new(0),
        })
    }
}

impl MemoryBroker {
    /// An empty broker with this clock.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let data = Data { channels: Mutex::default(), numbers: AtomicU64::new(1), clock };
        Self { connection: data.connection(), data: Arc::new(data), patience: PATIENCE, grace: GRACE }
    }

    /// Lets publishing wait for room no longer than this.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Gives consumers this long to finish with a lane that another one is to have.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Another connection to the same messages, as another program would have it.
    #[must_use]
    pub fn connect(&self) -> Self {
        Self { connection: self.data.connection(), ..self.clone() }
    }

    /// Cuts the connection of all consumers, as a network would: they connect again by themselves, and everything in
    /// hand comes again.
    pub fn cut(&self) {
        let now = self.data.clock.now();
        for channel in self.data.lock().values_mut() {
            for state in channel.subscriptions.values_mut() {
                state.cut(self.connection.number, now);
            }
            channel.changed.notify_waiters();
        }
    }

    /// Does what the next calls of `publish` ask and loses the answer, as a network would.
    pub fn lose_answers(&self, calls: usize) {
        self.connection.answers_to_lose.store(calls, Ordering::Relaxed);
    }

    /// Removes a channel with all that it has, as an operator may do it at a server: whoever uses it learns of it afterwards.
    pub fn remove(&self, channel: &Name) {
        if let Some(removed) = self.data.lock().remove(channel) {
            removed.changed.notify_waiters();
        }
    }

    /// How many messages a channel keeps.
    pub fn kept(&self, channel: &Name) -> u64 {
        self.data.lock().get(channel).map_or(0, ChannelState::messages)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.connection.is_closing.load(Ordering::Acquire) {
            return Err(Error::new(code::STOPPED, "the broker is being closed"));
        }
        Ok(())
    }

    /// Ends what is left of this connection.
    fn cut_off(&self) -> Leftover {
        let mut leftover = Leftover::default();
        for channel in self.data.lock().values_mut() {
            for state in channel.subscriptions.values_mut() {
                let mine = |member: &MemberState| member.connection == self.connection.number;
                let members: Vec<_> =
                    state.members.iter().filter(|(_, member)| mine(member)).map(|(m, _)| *m).collect();
                leftover.released += members.iter().map(|m| state.leave(*m, End::Untried)).sum::<usize>();
            }
            channel.changed.notify_waiters();
        }
        leftover
    }

    fn has_members(&self) -> bool {
        let channels = self.data.lock();
        let mut members = channels.values().flat_map(|channel| channel.subscriptions.values());
        members.any(|state| state.members.values().any(|m| m.connection == self.connection.number))
    }
}

impl Default for MemoryBroker {
    /// An empty broker with the machine's clock.
    fn default() -> Self {
        Self::new(SystemClock::shared())
    }
}

pub(crate) fn missing(channel: &Name) -> Error {
    Difference::ChannelMissing(channel.clone()).error()
}

#[async_trait]
impl Broker for MemoryBroker {
    fn location(&self) -> String {
        "memory:".to_owned()
    }

    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    async fn probe(&self) -> Result<Effective> {
        self.check_open()?;
        Ok(Effective { version: env!("CARGO_PKG_VERSION").to_owned(), ..Effective::default() })
    }

    async fn apply(&self, topology: &Topology, mode: Apply) -> Result<Vec<Difference>> {
        self.check_open()?;
        topology.channels.iter().try_for_each(Channel::check)?;
        let mut channels = self.data.lock();
        let mut differences = Vec::new();
        for wanted in &topology.channels {
            match channels.get(&wanted.name) {
                None => differences.push(Difference::ChannelMissing(wanted.name.clone())),
                Some(found) => differences.extend(Difference::between(wanted, &found.channel)),
            }
        }
        for Subscription { channel, name, .. } in &topology.subscriptions {
            let known = channels.get(channel);
            if known.is_none() && !topology.channels.iter().any(|wanted| wanted.name == *channel) {
                differences.push(Difference::ChannelMissing(channel.clone()));
            } else if !known.is_some_and(|known| known.subscriptions.contains_key(name)) {
                let (channel, name) = (channel.clone(), name.clone());
                differences.push(Difference::SubscriptionMissing { channel, name });
            }
        }
        if mode == Apply::Verify {
            return Ok(differences);
        }
        // What cannot be made is found before anything is made.
        for difference in &differences {
            let is_ours = |name: &Name| topology.channels.iter().any(|wanted| wanted.name == *name);
            match difference {
                Difference::ChannelDiffers { .. } => return Err(difference.error()),
                Difference::ChannelMissing(name) if !is_ours(name) => return Err(difference.error()),
                Difference::ChannelMissing(_) | Difference::SubscriptionMissing { .. } => {}
            }
        }
        for wanted in &topology.channels {
            channels.entry(wanted.name.clone()).or_insert_with(|| ChannelState::new(wanted));
        }
        for subscription in &topology.subscriptions {
            if let Some(channel) = channels.get_mut(&subscription.channel) {
                channel.register(&subscription.name, &subscription.start, self.data.number())?;
            }
        }
        Ok(differences)
    }

    async fn channel(&self, name: &Name) -> Result<Option<Channel>> {
        self.check_open()?;
        Ok(self.data.lock().get(name).map(|found| found.channel.clone()))
    }

    async fn topology(&self) -> Result<Topology> {
        self.check_open()?;
        let mut topology = Topology::default();
        for found in self.data.lock().values() {
            topology.channels.push(found.channel.clone());
            for name in found.subscriptions.keys() {
                topology.subscriptions.push(Subscription::new(&found.channel, name.as_str())?);
            }
        }
        Ok(topology)
    }

    async fn browse(&self, channel: &Name, start: &Start) -> Result<Box<dyn Browse>> {
        self.check_open()?;
        let channels = self.data.lock();
        let found = channels.get(channel).ok_or_else(|| missing(channel))?;
        let after = found.place(start)?;
        let changed = Arc::clone(&found.changed);
        drop(channels);
        Ok(Box::new(MemoryBrowse::new(self.clone(), channel.clone(), after, changed)))
    }

    async fn producer(&self, channel: &Channel) -> Result<Box<dyn Producer>> {
        self.check_open()?;
        let channels = self.data.lock();
        let found = &channels.get(&channel.name).ok_or_else(|| missing(&channel.name))?.channel;
        let differs = Difference::between(channel, found);
        let lanes = |d: &&Difference| matches!(d, Difference::ChannelDiffers { setting: "lanes", .. });
        if let Some(difference) = differs.iter().find(lanes) {
            return Err(difference.error());
        }
        drop(channels);
        Ok(Box::new(MemoryProducer::new(self.clone(), channel.name.clone())))
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Consumer>> {
        self.check_open()?;
        let mut channels = self.data.lock();
        let channel =
            channels.get_mut(&subscription.channel).ok_or_else(|| missing(&subscription.channel))?;
        channel.register(&subscription.name, &subscription.start, self.data.number())?;
        let changed = Arc::clone(&channel.changed);
        let member = self.data.number();
        let known = channel
            .subscriptions
            .get_mut(&subscription.name)
            .ok_or_else(|| Error::new(code::INTERNAL, "a subscription that was registered is not there"))?;
        known.members.insert(member, MemberState::new(self.connection.number));
        let who = (member, known.generation);
        changed.notify_waiters();
        drop(channels);
        Ok(Box::new(MemoryConsumer::new(self.clone(), subscription, who, changed)))
    }

    async fn unregister(&self, subscription: &Subscription) -> Result<()> {
        self.check_open()?;
        let now = self.data.clock.now();
        if let Some(channel) = self.data.lock().get_mut(&subscription.channel) {
            channel.unregister(&subscription.name, now);
        }
        Ok(())
    }

    async fn close(&self, deadline: Duration) -> Result<Leftover> {
        self.connection.is_closing.store(true, Ordering::Release);
        for channel in self.data.lock().values() {
            channel.changed.notify_waiters();
        }
        let until = self.data.clock.elapsed() + deadline;
        while self.has_members() && self.data.clock.elapsed() < until {
            self.data.clock.sleep(Duration::from_millis(5).min(deadline)).await;
        }
        Ok(self.cut_off())
    }
}
