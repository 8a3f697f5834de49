//! A log in memory that can be made to fail, and what the suite needs of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tidegate_broker::Settings;
use tidegate_broker::hand::Fetched;
use tidegate_broker::log::{Appended, Appender, Document, Log, LogBroker, Reader};
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
    replay: How::Native,
    dedupe: How::Native,
    retry_later: How::Native,
    dead_letter: How::No("publish to a channel of dead letters, then settle"),
    delivery_count: How::Native,
    lock_extend: How::Native,
    listing: How::Native,
    browsing: How::Native,
    processes: How::No("it is in memory"),
    message_bytes_max: 16 << 20,
    consumers_per_lane_max: 1,
    loss: &[LossCase { when: LossEvent::BrokerKilled, text: "it is in memory", avoid: "nothing" }],
};

/// A log in memory. Clones are the same one, over the same connection.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) data: Arc<Data>,
    pub(super) link: Arc<Connection>,
    clock: Arc<dyn Clock>,
}

/// How one program reaches it.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub(super) is_cut: AtomicBool,
    /// The seats cannot be written.
    pub(super) has_no_seats: AtomicBool,
    /// The documents of lanes cannot be written.
    pub(super) has_no_lanes: AtomicBool,
    /// The connection is cut behind the next document of a lane that is written.
    pub(super) is_cut_by_writing: AtomicBool,
    /// How often the seats were written.
    pub(super) seats_written: AtomicUsize,
    /// Nothing that is read comes, and nobody says why.
    pub(super) is_silent: AtomicBool,
    /// What was stored last is not here yet.
    pub(super) is_behind: AtomicBool,
    /// How long each call takes, in milliseconds.
    pub(super) slow: AtomicUsize,
}

#[derive(Debug, Default)]
pub(super) struct Data {
    channels: Mutex<BTreeMap<Name, Stored>>,
    documents: Mutex<BTreeMap<(Name, String), Document>>,
    revision: AtomicUsize,
    changed: Notify,
    is_away: AtomicBool,
    /// What is read cannot be understood.
    pub(super) is_malformed: AtomicBool,
    /// There are no messages any more, nor what they stood in.
    pub(super) is_gone: AtomicBool,
    /// How many answers to appending are to be lost.
    pub(super) to_lose: AtomicUsize,
    /// What was appended without an answer may still be stored.
    pub(super) is_in_doubt: AtomicBool,
    /// How many calls that append are to be refused.
    pub(super) to_refuse: AtomicUsize,
    /// Of how many calls that write a document one answer is lost.
    calls: AtomicUsize,
}

#[derive(Debug, Default)]
struct Stored {
    last: u64,
    lanes: BTreeMap<Lane, BTreeMap<u64, (Message, i64)>>,
    ids: HashMap<(Arc<str>, Arc<str>), u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost() -> Error {
    Error::new(code::CONNECTION_LOST, "the answer was lost")
}

impl Model {
    pub(super) fn new() -> Self {
        Self { data: Arc::default(), link: Arc::default(), clock: SystemClock::shared() }
    }

    /// The same, as another program reaches it.
    pub(super) fn again(&self) -> Self {
        Self { link: Arc::default(), ..self.clone() }
    }

    pub(super) fn broker(&self) -> Arc<dyn Broker> {
        let settings = Settings {
            lease: Duration::from_millis(1_000),
            grace: Duration::from_millis(300),
            patience: Duration::from_millis(1_000),
        };
        Arc::new(LogBroker::new(self.clone(), settings, Arc::clone(&self.clock)))
    }

    async fn reach(&self) -> Result<()> {
        tokio::task::yield_now().await;
        let slow = self.link.slow.load(Ordering::Acquire);
        if slow > 0 {
            self.clock.sleep(Duration::from_millis(slow as u64)).await;
        }
        if self.data.is_away.load(Ordering::Acquire) || self.link.is_cut.load(Ordering::Acquire) {
            self.clock.sleep(Duration::from_millis(20)).await;
            return Err(Error::new(code::UNREACHABLE, "nobody is there"));
        }
        Ok(())
    }
}

#[async_trait]
impl Log for Model {
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
        self.reach().await?;
        lock(&self.data.channels).entry(channel.name.clone()).or_default();
        Ok(())
    }

    async fn channels(&self) -> Result<Vec<Name>> {
        self.reach().await?;
        let documents = lock(&self.data.documents);
        Ok(documents
            .keys()
            .filter(|(_, name)| name == "channel")
            .map(|(channel, _)| channel.clone())
            .collect())
    }

    async fn document(&self, channel: &Name, name: &str) -> Result<Option<Document>> {
        self.reach().await?;
        Ok(lock(&self.data.documents).get(&(channel.clone(), name.to_owned())).cloned())
    }

    async fn write(
        &self,
        channel: &Name,
        name: &str,
        value: Bytes,
        expected: Option<u64>,
    ) -> Result<Option<u64>> {
        self.reach().await?;
        if name.starts_with("seats.") && self.link.has_no_seats.load(Ordering::Acquire) {
            return Err(Error::new(code::UNREACHABLE, "nobody is there"));
        }
        if name.starts_with("seats.") {
            self.link.seats_written.fetch_add(1, Ordering::Relaxed);
        }
        if name.starts_with("lane.") && self.link.has_no_lanes.load(Ordering::Acquire) {
            return Err(Error::new(code::UNREACHABLE, "nobody is there"));
        }
        let revision = self.data.revision.fetch_add(1, Ordering::Relaxed) as u64 + 1;
        {
            let mut documents = lock(&self.data.documents);
            let key = (channel.clone(), name.to_owned());
            if documents.get(&key).map(|document| document.revision) != expected {
                return Ok(None);
            }
            documents.insert(key, Document { value, revision });
        }
        if name.starts_with("lane.") && self.link.is_cut_by_writing.swap(false, Ordering::AcqRel) {
            self.link.is_cut.store(true, Ordering::Release);
            return Err(lost());
        }
        // Of what is written of a lane every thirtieth answer is lost.
        if expected.is_some()
            && name.starts_with("lane.")
            && self.data.calls.fetch_add(1, Ordering::Relaxed) % 30 == 29
        {
            return Err(lost());
        }
        Ok(Some(revision))
    }

    async fn remove(&self, channel: &Name, name: &str) -> Result<()> {
        self.reach().await?;
        lock(&self.data.documents).remove(&(channel.clone(), name.to_owned()));
        Ok(())
    }

    async fn last(&self, channel: &Channel) -> Result<Vec<u64>> {
        self.reach().await?;
        let last = lock(&self.data.channels).get(&channel.name).map_or(0, |stored| stored.last);
        Ok(vec![last; channel.lanes as usize])
    }

    async fn at(&self, channel: &Channel, place: u64) -> Result<Option<Vec<u64>>> {
        let last = self.last(channel).await?;
        Ok(last.first().is_some_and(|last| place <= *last).then(|| vec![place; channel.lanes as usize]))
    }

    async fn stored_before(&self, channel: &Channel, lane: Lane, upto: u64, time: i64) -> Result<u64> {
        self.reach().await?;
        let channels = lock(&self.data.channels);
        let lane = channels.get(&channel.name).and_then(|stored| stored.lanes.get(&lane));
        let old = lane.into_iter().flat_map(|lane| lane.range(..=upto)).filter(|(_, (_, at))| *at < time);
        Ok(old.map(|(place, _)| *place).last().unwrap_or(0))
    }

    async fn trim(&self, channel: &Channel, lane: Lane, upto: u64) -> Result<()> {
        self.reach().await?;
        if let Some(stored) = lock(&self.data.channels).get_mut(&channel.name) {
            let kept = stored.lanes.entry(lane).or_default().split_off(&(upto + 1));
            stored.lanes.insert(lane, kept);
        }
        Ok(())
    }

    async fn appender(&self, channel: &Channel) -> Result<Box<dyn Appender>> {
        self.reach().await?;
        Ok(Box::new(ModelAppender { model: self.clone(), channel: channel.clone() }))
    }

    async fn reader(&self, channel: &Channel) -> Result<Box<dyn Reader>> {
        self.reach().await?;
        Ok(Box::new(ModelReader { model: self.clone(), channel: channel.clone() }))
    }
}

struct ModelAppender {
    model: Model,
    channel: Channel,
}

#[async_trait]
impl Appender for ModelAppender {
    async fn append(&mut self, batch: &[&Message]) -> Vec<Appended> {
        if let Err(error) = self.model.reach().await {
            let again = || Error::new(error.code(), error.message().to_owned());
            return batch.iter().map(|_| Appended::Refused(again())).collect();
        }
        if self.model.data.is_gone.load(Ordering::Acquire) {
            let gone = || Appended::Refused(Error::new(code::CHANNEL_MISSING, "somebody removed it"));
            return batch.iter().map(|_| gone()).collect();
        }
        let less = |left: usize| left.checked_sub(1);
        if self.model.data.to_refuse.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok() {
            let refused = || Appended::Refused(Error::new(code::LIMIT_REACHED, "there is no space"));
            return batch.iter().map(|_| refused()).collect();
        }
        let now = self.model.clock.now();
        let mut answers = Vec::new();
        {
            let mut channels = lock(&self.model.data.channels);
            let stored = channels.entry(self.channel.name.clone()).or_default();
            for message in batch {
                let id = (Arc::clone(&message.source), message.dedupe_id());
                if let Some(place) = stored.ids.get(&id) {
                    answers.push(Appended::Stored { place: *place, duplicate: true });
                    continue;
                }
                let kept: usize = stored.lanes.values().map(BTreeMap::len).sum();
                if kept as u64 >= self.channel.messages_max {
                    answers.push(Appended::Full);
                    break;
                }
                stored.last += 1;
                let place = stored.last;
                let lane = stored.lanes.entry(message.lane(self.channel.lanes)).or_default();
                lane.insert(place, ((*message).clone(), now));
                stored.ids.insert(id, place);
                answers.push(Appended::Stored { place, duplicate: false });
            }
        }
        answers.resize_with(batch.len(), || Appended::Full);
        self.model.data.changed.notify_waiters();
        let lose = |left: usize| left.checked_sub(1);
        let loses = self.model.data.to_lose.fetch_update(Ordering::AcqRel, Ordering::Acquire, lose).is_ok();
        if loses {
            return batch.iter().map(|_| Appended::Unknown(lost())).collect();
        }
        tokio::task::yield_now().await;
        answers
    }

    async fn finish(&mut self) -> Result<()> {
        match self.model.data.is_in_doubt.load(Ordering::Acquire) {
            true => Err(lost()),
            false => Ok(()),
        }
    }
}

struct ModelReader {
    model: Model,
    channel: Channel,
}

#[async_trait]
impl Reader for ModelReader {
    async fn read(
        &mut self,
        wanted: &[(Lane, u64, usize)],
        wait: Duration,
        out: &mut Vec<(Lane, Fetched)>,
    ) -> Result<()> {
        let clock = Arc::clone(&self.model.clock);
        let until = clock.elapsed() + wait;
        loop {
            let data = Arc::clone(&self.model.data);
            let mut changed = std::pin::pin!(data.changed.notified());
            changed.as_mut().enable();
            self.model.reach().await?;
            if self.model.link.is_silent.load(Ordering::Acquire) {
                std::future::pending::<()>().await;
            }
            if data.is_malformed.load(Ordering::Acquire) {
                return Err(Error::new(code::STREAM_MALFORMED, "an entry is none"));
            }
            if data.is_gone.load(Ordering::Acquire) {
                return Err(Error::new(code::CHANNEL_MISSING, "somebody removed it"));
            }
            {
                let channels = lock(&data.channels);
                let is_behind = self.model.link.is_behind.load(Ordering::Acquire);
                let stored = channels.get(&self.channel.name).filter(|_| !is_behind);
                for (lane, after, count) in wanted {
                    let kept = stored.and_then(|stored| stored.lanes.get(lane));
                    let next = kept.into_iter().flat_map(|kept| kept.range(after + 1..)).take(*count);
                    out.extend(next.map(|(place, (message, at))| {
                        let (message, stored_at) = (Arc::new(message.clone()), Some(*at));
                        let attempt = Attempt::Exact(1);
                        (*lane, Fetched { place: *place, message, stored_at, attempt, has_position: true })
                    }));
                }
            }
            let left = until.saturating_sub(clock.elapsed());
            if !out.is_empty() || left.is_zero() {
                return Ok(());
            }
            tokio::select! {
                () = changed => {}
                () = clock.sleep(left) => {}
            }
        }
    }
}

pub(super) struct Modelled {
    pub(super) model: Model,
}

#[async_trait]
impl Fixture for Modelled {
    fn adapter(&self) -> &'static str {
        "model"
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

    /// Nobody reaches the log for longer than a lease.
    async fn cut(&mut self) -> Result<Hook> {
        self.model.data.is_away.store(true, Ordering::Release);
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        self.model.data.is_away.store(false, Ordering::Release);
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
        self.model.data.is_gone.store(true, Ordering::Release);
        Ok(Hook::Done)
    }

    async fn kept(&mut self, channel: &Channel) -> Result<Option<u64>> {
        let channels = lock(&self.model.data.channels);
        let stored = channels.get(&channel.name);
        Ok(Some(stored.map_or(0, |stored| stored.lanes.values().map(BTreeMap::len).sum::<usize>() as u64)))
    }

    async fn clean_up(&mut self) -> Result<()> {
        Ok(())
    }
}
