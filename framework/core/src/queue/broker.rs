//! A broker of queues.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::consumer::{self, QueueConsumer};
use super::producer::QueueProducer;
use super::record::{self, ChannelRecord};
use super::shared::{Finish, Shared};
use super::{NO_BROWSING, NO_LISTING, Queues, Settings};
use crate::capability::{Capabilities, How, missing};
use crate::channel::{Apply, Channel, Difference, Keep, Name, Start, Subscription, Topology};
use crate::clock::Clock;
use crate::error::{Error, Result, code};
use crate::port::{Broker, Browse, Consumer, Effective, Leftover, Producer};
use crate::scope::Scope;

/// A broker of a system that keeps messages in queues.
#[derive(Debug)]
pub struct QueueBroker<Q: Queues> {
    link: Arc<Link<Q>>,
}

/// What a broker's producers and consumers share.
#[derive(Debug)]
pub(super) struct Link<Q: ?Sized> {
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    consumers: Mutex<Vec<Arc<Shared<Q>>>>,
    /// A consumer left.
    left: Notify,
    is_closing: AtomicBool,
    chores: Mutex<Scope>,
    pub(super) queues: Arc<Q>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<Q: Queues> Link<Q> {
    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_closing.load(Ordering::Acquire) {
            return Err(Error::new(code::STOPPED, "the broker is being closed"));
        }
        Ok(())
    }

    pub(super) fn leave(&self, shared: &Arc<Shared<Q>>) {
        lock(&self.consumers).retain(|known| !Arc::ptr_eq(known, shared));
        self.left.notify_waiters();
    }

    /// Does something beside; it ends with the broker.
    pub(super) fn spawn(&self, chore: impl Future<Output = Result<()>> + Send + 'static) {
        let mut chores = lock(&self.chores);
        chores.reap();
        chores.spawn(chore);
    }
}

impl<Q: Queues> QueueBroker<Q> {
    /// A broker of these queues.
    pub fn new(queues: Q, settings: Settings, clock: Arc<dyn Clock>) -> Self {
        Self {
            link: Arc::new(Link {
                queues: Arc::new(queues),
                settings,
                clock,
                consumers: Mutex::default(),
                left: Notify::new(),
                is_closing: AtomicBool::new(false),
                chores: Mutex::default(),
            }),
        }
    }

    /// The queues.
    pub fn queues(&self) -> &Q {
        &self.link.queues
    }

    /// Refuses what needs messages that were settled.
    fn refuse_replay(&self, is_asked: bool) -> Result<()> {
        match self.link.queues.capabilities().replay {
            How::No(why) if is_asked => Err(missing(&self.link.queues.location(), "replay", why)),
            How::No(_) | How::Native | How::Emulated(_) => Ok(()),
        }
    }

    /// Registers a subscription if it is not: its number. The register is held meanwhile, so that nobody removes it.
    async fn register(&self, subscription: &Subscription) -> Result<(u64, ChannelRecord)> {
        self.refuse_replay(matches!(subscription.start, Start::After(_)))?;
        let (queues, name) = (&*self.link.queues, &subscription.channel);
        let held = record::hold(queues, name).await?;
        let mut held = held.ok_or_else(|| record::missing(name))?;
        if let Some(number) = held.record.subscriptions.get(&subscription.name).copied() {
            return Ok((number, held.give_back().await?));
        }
        queues.subscribe(&held.record.channel, &subscription.name).await?;
        let number = held.record.next;
        held.record.next += 1;
        held.record.subscriptions.insert(subscription.name.clone(), number);
        Ok((number, held.write().await?))
    }

    async fn differences(&self, topology: &Topology, mode: Apply) -> Result<Vec<Difference>> {
        let queues = &*self.link.queues;
        let mut differences = Vec::new();
        for wanted in &topology.channels {
            match record::find(queues, &wanted.name).await? {
                Some(found) => differences.extend(Difference::between(wanted, &found.channel)),
                None => differences.push(Difference::ChannelMissing(wanted.name.clone())),
            }
        }
        let is_new = |name: &Name| topology.channels.iter().any(|channel| channel.name == *name);
        for wanted in &topology.subscriptions {
            let found = record::find(queues, &wanted.channel).await?;
            if found.is_none() && !(mode == Apply::Create && is_new(&wanted.channel)) {
                let difference = Difference::ChannelMissing(wanted.channel.clone());
                if mode == Apply::Create {
                    return Err(difference.error());
                }
                if !differences.contains(&difference) {
                    differences.push(difference);
                }
            } else if !found.is_some_and(|found| found.subscriptions.contains_key(&wanted.name)) {
                let (channel, name) = (wanted.channel.clone(), wanted.name.clone());
                differences.push(Difference::SubscriptionMissing { channel, name });
            }
        }
        Ok(differences)
    }
}

#[async_trait]
impl<Q: Queues> Broker for QueueBroker<Q> {
    fn location(&self) -> String {
        self.link.queues.location()
    }

    fn capabilities(&self) -> &'static Capabilities {
        self.link.queues.capabilities()
    }

    async fn probe(&self) -> Result<Effective> {
        self.link.check_open()?;
        self.link.queues.probe().await
    }

    async fn apply(&self, topology: &Topology, mode: Apply) -> Result<Vec<Difference>> {
        self.link.check_open()?;
        topology.channels.iter().try_for_each(Channel::check)?;
        self.refuse_replay(topology.channels.iter().any(|channel| channel.keep != Keep::UntilSettled))?;
        let differences = self.differences(topology, mode).await?;
        if mode == Apply::Verify {
            return Ok(differences);
        }
        let differs = |d: &&Difference| matches!(d, Difference::ChannelDiffers { .. });
        if let Some(difference) = differences.iter().find(differs) {
            return Err(difference.error());
        }
        let queues = &*self.link.queues;
        for difference in &differences {
            let Difference::ChannelMissing(name) = difference else { continue };
            let Some(wanted) = topology.channels.iter().find(|channel| channel.name == *name) else {
                continue;
            };
            queues.create(wanted, record::bytes(&ChannelRecord::new(wanted))?).await?;
            // Somebody else may have made it just now.
            let found = record::find(queues, name).await?.ok_or_else(|| record::missing(name))?;
            if let Some(difference) = Difference::between(wanted, &found.channel).first() {
                return Err(difference.error());
            }
        }
        for wanted in &topology.subscriptions {
            self.register(wanted).await?;
        }
        queues.ripen().await?;
        Ok(differences)
    }

    async fn channel(&self, name: &Name) -> Result<Option<Channel>> {
        self.link.check_open()?;
        Ok(record::find(&*self.link.queues, name).await?.map(|found| found.channel))
    }

    async fn topology(&self) -> Result<Topology> {
        Err(missing(&self.location(), "listing", NO_LISTING))
    }

    async fn browse(&self, _: &Name, _: &Start) -> Result<Box<dyn Browse>> {
        Err(missing(&self.location(), "browsing", NO_BROWSING))
    }

    async fn producer(&self, channel: &Channel) -> Result<Box<dyn Producer>> {
        self.link.check_open()?;
        let found = record::find(&*self.link.queues, &channel.name).await?;
        let found = found.ok_or_else(|| record::missing(&channel.name))?.channel;
        let differs = Difference::between(channel, &found);
        let lanes = |d: &&Difference| matches!(d, Difference::ChannelDiffers { setting: "lanes", .. });
        if let Some(difference) = differs.iter().find(lanes) {
            return Err(difference.error());
        }
        let sender = self.link.queues.sender(&found).await?;
        Ok(Box::new(QueueProducer::new(Arc::clone(&self.link), found, sender)))
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Consumer>> {
        self.link.check_open()?;
        let (number, record) = self.register(subscription).await?;
        self.link.queues.ripen().await?;
        let shared = Arc::new(Shared::new(&self.link, record.channel, subscription, number));
        lock(&self.link.consumers).push(Arc::clone(&shared));
        Ok(Box::new(QueueConsumer::new(Arc::clone(&self.link), shared, subscription)))
    }

    async fn unregister(&self, subscription: &Subscription) -> Result<()> {
        self.link.check_open()?;
        let queues = &*self.link.queues;
        let Some(mut held) = record::hold(queues, &subscription.channel).await? else { return Ok(()) };
        // Repeated after half of it was done, it does the rest.
        queues.unsubscribe(&held.record.channel, &subscription.name).await?;
        match held.record.subscriptions.remove(&subscription.name) {
            Some(_) => held.write().await.map(drop),
            None => held.give_back().await.map(drop),
        }
    }

    async fn close(&self, deadline: Duration) -> Result<Leftover> {
        self.link.is_closing.store(true, Ordering::Release);
        let clock = &self.link.clock;
        let until = clock.elapsed() + deadline;
        for shared in &*lock(&self.link.consumers) {
            shared.lock().end.get_or_insert(Finish::Drained);
            shared.changed.notify_one();
        }
        loop {
            let mut left = std::pin::pin!(self.link.left.notified());
            left.as_mut().enable();
            let rest = until.saturating_sub(clock.elapsed());
            if lock(&self.link.consumers).is_empty() || rest.is_zero() {
                break;
            }
            tokio::select! {
                () = left => {}
                () = clock.sleep(rest) => {}
            }
        }
        let mut leftover = Leftover::default();
        let consumers = std::mem::take(&mut *lock(&self.link.consumers));
        for shared in consumers {
            let released = shared.lock().hand.in_hand();
            // What could not be written is with the system, and comes again.
            let _ = consumer::end(&shared, None).await;
            leftover.released += released;
        }
        let chores = std::mem::take(&mut *lock(&self.link.chores));
        chores.join().await?;
        Ok(leftover)
    }
}
