//! A broker of a log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;

use super::browse::LogBrowse;
use super::consumer::{self, LogConsumer};
use super::documents::{self, ChannelRecord, LaneRecord, Read};
use super::member::leave;
use super::producer::LogProducer;
use super::seating::Seating;
use super::shared::Shared;
use super::{Log, tidy};
use crate::receiving::Consumers;
use crate::settings::Settings;
use crate::unsettled::Place;
use tidegate_core::capability::Capabilities;
use tidegate_core::channel::{Apply, Channel, Difference, Name, Start, Subscription, Topology};
use tidegate_core::clock::Clock;
use tidegate_core::error::{Error, Result, code};
use tidegate_core::lane::Lane;
use tidegate_core::port::{Broker, Browse, Consumer, Effective, Leftover, Producer};
use tidegate_core::scope::Scope;

/// A broker of a system that keeps messages and documents.
#[derive(Debug)]
pub struct LogBroker<L: Log> {
    link: Arc<Link<L>>,
}

/// What a broker's producers and consumers share.
#[derive(Debug)]
pub(super) struct Link<L: Log> {
    pub(super) log: Arc<L>,
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    consumers: Consumers<Shared<L>>,
    chores: Mutex<Scope>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<L: Log> Link<L> {
    pub(super) fn check_open(&self) -> Result<()> {
        self.consumers.check_open()
    }

    pub(super) fn leave(&self, shared: &Arc<Shared<L>>) {
        self.consumers.leave(shared);
    }

    /// Does something beside; it ends with the broker.
    pub(super) fn spawn(&self, chore: impl Future<Output = Result<()>> + Send + 'static) {
        let mut chores = lock(&self.chores);
        chores.reap();
        chores.spawn(chore);
    }
}

impl<L: Log> LogBroker<L> {
    /// A broker of this log.
    pub fn new(log: L, settings: Settings, clock: Arc<dyn Clock>) -> Self {
        Self {
            link: Arc::new(Link {
                log: Arc::new(log),
                settings,
                clock,
                consumers: Consumers::new(),
                chores: Mutex::default(),
            }),
        }
    }

    /// The log.
    pub fn log(&self) -> &L {
        &self.link.log
    }

    async fn found(&self, name: &Name) -> Result<Option<Read<ChannelRecord>>> {
        documents::read(&*self.link.log, name, documents::CHANNEL).await
    }

    /// Changes a channel's record until nobody else did meanwhile.
    async fn change<T>(
        &self,
        name: &Name,
        mut change: impl FnMut(&mut ChannelRecord) -> T,
    ) -> Result<(T, ChannelRecord)> {
        let log = &*self.link.log;
        loop {
            let Read { mut record, revision } = documents::channel(log, name).await?;
            let before = record.clone();
            let answer = change(&mut record);
            let is_done = record == before
                || log
                    .write(name, documents::CHANNEL, documents::bytes(&record)?, Some(revision))
                    .await?
                    .is_some();
            if is_done {
                return Ok((answer, record));
            }
        }
    }

    /// Registers a subscription if it is not: its number.
    async fn register(&self, subscription: &Subscription) -> Result<(u64, ChannelRecord)> {
        let (log, name) = (&*self.link.log, &subscription.channel);
        let found = documents::channel(log, name).await?;
        if let Some(number) = found.record.subscriptions.get(&subscription.name) {
            return Ok((*number, found.record));
        }
        if subscription.start != Start::Earliest {
            // So that what is gone does not depend on when somebody looked last.
            tidy::all(log, name, self.link.clock.now()).await?;
        }
        // A number is used once, also by two who register the same at once.
        let (number, record) = self
            .change(name, |record| {
                let number = record.next;
                record.next += 1;
                record.leaving.insert(number);
                number
            })
            .await?;
        let start = self.start(&subscription.start, &record).await?;
        for (lane, read_to) in (0..record.channel.lanes).zip(&start) {
            let lane_record = LaneRecord { read_to: *read_to, ..LaneRecord::default() };
            let value = documents::bytes(&lane_record)?;
            log.write(name, &documents::lane(number, Lane(lane)), value, None).await?;
        }
        let seating = documents::bytes(&Seating::new(record.channel.lanes))?;
        log.write(name, &documents::seats(number), seating, None).await?;
        let (known, record) = self
            .change(name, |record| {
                if let Some(known) = record.subscriptions.get(&subscription.name) {
                    return *known;
                }
                record.leaving.remove(&number);
                record.subscriptions.insert(subscription.name.clone(), number);
                number
            })
            .await?;
        if known == number
            && matches!(subscription.start, Start::After(_))
            && tidy::is_removed(log, &record, &start).await?
        {
            self.unregister(subscription).await?;
            return Err(gone(&subscription.start, &subscription.channel));
        }
        self.sweep(&record).await?;
        Ok((known, record))
    }

    /// The places behind which something new begins, one a lane.
    async fn start(&self, start: &Start, record: &ChannelRecord) -> Result<Vec<Place>> {
        let log = &*self.link.log;
        let gone = || gone(start, &record.channel.name);
        match start {
            Start::Earliest => Ok(vec![0; record.channel.lanes as usize]),
            Start::Latest => log.last(&record.channel).await,
            Start::After(position) => {
                let place = position.to_u64().ok_or_else(gone)?;
                let places = log.at(&record.channel, place).await?.ok_or_else(gone)?;
                if tidy::is_removed(log, record, &places).await? { Err(gone()) } else { Ok(places) }
            }
        }
    }

    /// Removes the documents of subscriptions that are gone.
    async fn sweep(&self, record: &ChannelRecord) -> Result<()> {
        let (log, name) = (&*self.link.log, &record.channel.name);
        for number in &record.leaving {
            // First what its members look at.
            log.remove(name, &documents::seats(*number)).await?;
            for lane in 0..record.channel.lanes {
                log.remove(name, &documents::lane(*number, Lane(lane))).await?;
            }
            self.change(name, |record| record.leaving.remove(number)).await?;
        }
        Ok(())
    }

    async fn join(&self, name: &Name, subscription: u64) -> Result<Option<u64>> {
        let log = &*self.link.log;
        let document = documents::seats(subscription);
        loop {
            let found: Option<Read<Seating>> = documents::read(log, name, &document).await?;
            let Some(Read { record: mut seating, revision }) = found else { return Ok(None) };
            let me = seating.join();
            let value = documents::bytes(&seating)?;
            if log.write(name, &document, value, Some(revision)).await?.is_some() {
                return Ok(Some(me));
            }
        }
    }
}

fn gone(start: &Start, channel: &Name) -> Error {
    let Start::After(position) = start else {
        return Error::new(code::POSITION_GONE, "the start is gone");
    };
    let text = format!("channel {channel} cannot begin after position {position}");
    Error::new(code::POSITION_GONE, text).with("position", position)
}

#[async_trait]
impl<L: Log> Broker for LogBroker<L> {
    fn location(&self) -> String {
        self.link.log.location()
    }

    fn capabilities(&self) -> &'static Capabilities {
        self.link.log.capabilities()
    }

    async fn probe(&self) -> Result<Effective> {
        self.link.check_open()?;
        self.link.log.probe().await
    }

    async fn apply(&self, topology: &Topology, mode: Apply) -> Result<Vec<Difference>> {
        self.link.check_open()?;
        topology.channels.iter().try_for_each(Channel::check)?;
        let mut differences = Vec::new();
        for wanted in &topology.channels {
            match self.found(&wanted.name).await? {
                Some(found) => {
                    differences.extend(Difference::between(wanted, &found.record.channel));
                    differences.extend(self.link.log.changed(&found.record.channel).await?);
                }
                None => differences.push(Difference::ChannelMissing(wanted.name.clone())),
            }
        }
        let differs = |d: &&Difference| matches!(d, Difference::ChannelDiffers { .. });
        if mode == Apply::Create
            && let Some(difference) = differences.iter().find(differs)
        {
            return Err(difference.error());
        }
        let is_new = |name: &Name| topology.channels.iter().any(|channel| channel.name == *name);
        for wanted in &topology.subscriptions {
            let found = self.found(&wanted.channel).await?;
            if found.is_none() && !(mode == Apply::Create && is_new(&wanted.channel)) {
                let difference = Difference::ChannelMissing(wanted.channel.clone());
                if mode == Apply::Create {
                    return Err(difference.error());
                }
                if !differences.contains(&difference) {
                    differences.push(difference);
                }
                continue;
            }
            if !found.is_some_and(|found| found.record.subscriptions.contains_key(&wanted.name)) {
                let (channel, name) = (wanted.channel.clone(), wanted.name.clone());
                differences.push(Difference::SubscriptionMissing { channel, name });
            }
        }
        if mode == Apply::Verify {
            return Ok(differences);
        }
        let log = &*self.link.log;
        for wanted in &topology.channels {
            log.create(wanted).await?;
            let record = documents::bytes(&ChannelRecord::new(wanted))?;
            if log.write(&wanted.name, documents::CHANNEL, record, None).await?.is_none() {
                // It was there, or somebody else made it just now.
                let found = documents::channel(log, &wanted.name).await?.record.channel;
                if let Some(difference) = Difference::between(wanted, &found).first() {
                    return Err(difference.error());
                }
            }
        }
        for wanted in &topology.subscriptions {
            self.register(wanted).await?;
        }
        Ok(differences)
    }

    async fn channel(&self, name: &Name) -> Result<Option<Channel>> {
        self.link.check_open()?;
        Ok(self.found(name).await?.map(|found| found.record.channel))
    }

    async fn topology(&self) -> Result<Topology> {
        self.link.check_open()?;
        let mut topology = Topology::default();
        let mut names = self.link.log.channels().await?;
        names.sort_unstable();
        for name in names {
            let Some(Read { record, .. }) = self.found(&name).await? else { continue };
            for subscription in record.subscriptions.keys() {
                topology.subscriptions.push(Subscription::new(&record.channel, subscription.as_str())?);
            }
            topology.channels.push(record.channel);
        }
        Ok(topology)
    }

    async fn browse(&self, channel: &Name, start: &Start) -> Result<Box<dyn Browse>> {
        self.link.check_open()?;
        let record = documents::channel(&*self.link.log, channel).await?.record;
        let after = self.start(start, &record).await?;
        Ok(Box::new(LogBrowse::new(Arc::clone(&self.link.log), record.channel, after)))
    }

    async fn producer(&self, channel: &Channel) -> Result<Box<dyn Producer>> {
        self.link.check_open()?;
        let record = documents::channel(&*self.link.log, &channel.name).await?.record;
        let differs = Difference::between(channel, &record.channel);
        let lanes = |d: &&Difference| matches!(d, Difference::ChannelDiffers { setting: "lanes", .. });
        if let Some(difference) = differs.iter().find(lanes) {
            return Err(difference.error());
        }
        let appender = self.link.log.appender(&record.channel).await?;
        Ok(Box::new(LogProducer::new(Arc::clone(&self.link), record, appender)))
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Consumer>> {
        self.link.check_open()?;
        loop {
            let (number, record) = self.register(subscription).await?;
            // Whoever unregisters it between the two makes it a new one.
            let Some(me) = self.join(&subscription.channel, number).await? else { continue };
            let shared = Arc::new(Shared::new(
                Arc::clone(&self.link.log),
                record.channel,
                (number, me),
                subscription.window,
                self.link.settings,
                Arc::clone(&self.link.clock),
            ));
            if let Err(closing) = self.link.consumers.join(&shared) {
                leave(&shared).await?;
                return Err(closing);
            }
            return Ok(Box::new(LogConsumer::new(Arc::clone(&self.link), shared, subscription)));
        }
    }

    async fn unregister(&self, subscription: &Subscription) -> Result<()> {
        self.link.check_open()?;
        let name = &subscription.channel;
        if self.found(name).await?.is_none() {
            return Ok(());
        }
        let gone = |record: &mut ChannelRecord| {
            let number = record.subscriptions.remove(&subscription.name);
            record.leaving.extend(number);
        };
        let ((), record) = self.change(name, gone).await?;
        self.sweep(&record).await?;
        tidy::all(&*self.link.log, name, self.link.clock.now()).await
    }

    async fn close(&self, deadline: Duration) -> Result<Leftover> {
        let clock = &self.link.clock;
        let consumers = self.link.consumers.close(&**clock, deadline).await;
        let ended = join_all(consumers.iter().map(async |shared| {
            shared.stop();
            let ended = tokio::select! {
                ended = consumer::end(shared) => ended,
                () = clock.sleep(consumer::LAST_WRITE) => {
                    shared.lock().abandon();
                    Ok(0)
                }
            };
            // What could not be written comes again.
            ended.unwrap_or(0)
        }));
        let released = ended.await.into_iter().sum();
        let chores = std::mem::take(&mut *lock(&self.link.chores));
        chores.join().await?;
        Ok(Leftover { released })
    }
}
