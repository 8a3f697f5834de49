//! A broker of queues.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;

use super::consumer::{self, QueueConsumer};
use super::member;
use super::producer::QueueProducer;
use super::record::{self, ChannelRecord, System};
use super::shared::Shared;
use super::{NO_BROWSING, NO_LISTING, Queues};
use crate::receiving::Consumers;
use crate::settings::Settings;
use tidegate_core::capability::{Capabilities, How, missing};
use tidegate_core::channel::{Apply, Channel, Difference, Keep, Name, Start, Subscription, Topology};
use tidegate_core::clock::Clock;
use tidegate_core::error::Result;
use tidegate_core::port::{Broker, Browse, Consumer, Effective, Leftover, Producer};
use tidegate_core::scope::Scope;

/// A broker of a system that keeps messages in queues.
///
/// Consumers that were dropped and not closed go on beside until what they have settled is written; they end with the last use
/// of the broker.
#[derive(Debug)]
pub struct QueueBroker<Q: Queues> {
    link: Arc<Link<Q>>,
}

/// What a broker's producers and consumers share.
#[derive(Debug)]
pub(super) struct Link<Q: ?Sized> {
    consumers: Consumers<Shared<Q>>,
    /// What keeps consumers members of their subscriptions.
    members: Mutex<Scope>,
    pub(super) system: Arc<System<Q>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<Q: Queues> Link<Q> {
    pub(super) fn check_open(&self) -> Result<()> {
        self.consumers.check_open()
    }

    /// Begins with a consumer, unless the broker is being closed: nobody would end it.
    fn join(&self, shared: &Arc<Shared<Q>>) -> Result<()> {
        self.consumers.join(shared)?;
        let mut members = lock(&self.members);
        members.reap();
        members.spawn(member::keep(Arc::clone(shared)));
        Ok(())
    }

    pub(super) fn leave(&self, shared: &Arc<Shared<Q>>) {
        self.consumers.leave(shared);
    }
}

impl<Q: Queues> QueueBroker<Q> {
    /// A broker of these queues.
    pub fn new(queues: Q, settings: Settings, clock: Arc<dyn Clock>) -> Self {
        Self {
            link: Arc::new(Link {
                system: Arc::new(System::new(Arc::new(queues), settings, clock)),
                consumers: Consumers::new(),
                members: Mutex::default(),
            }),
        }
    }

    /// The queues.
    pub fn queues(&self) -> &Q {
        &self.link.system.queues
    }

    /// Refuses what needs messages that were settled.
    fn refuse_replay(&self, is_asked: bool) -> Result<()> {
        match self.link.system.queues.capabilities().replay {
            How::No(why) if is_asked => Err(missing(&self.link.system.queues.location(), "replay", why)),
            How::No(_) | How::Native | How::Emulated(_) => Ok(()),
        }
    }

    /// Registers a subscription if it is not: its number. The record is held meanwhile, so that nobody removes it.
    async fn register(&self, subscription: &Subscription) -> Result<(u64, ChannelRecord)> {
        self.refuse_replay(matches!(subscription.start, Start::After(_)))?;
        let held = self.link.system.hold(&subscription.channel).await?;
        let mut held = held.ok_or_else(|| record::missing(&subscription.channel))?;
        let number = held.subscribe(&subscription.name).await?;
        Ok((number, held.leave().await?))
    }

    async fn differences(&self, topology: &Topology, mode: Apply) -> Result<Vec<Difference>> {
        let system = &self.link.system;
        let mut differences = Vec::new();
        for wanted in &topology.channels {
            match system.find(&wanted.name).await? {
                Some(found) => differences.extend(Difference::between(wanted, &found.channel)),
                None => differences.push(Difference::ChannelMissing(wanted.name.clone())),
            }
        }
        let is_new = |name: &Name| topology.channels.iter().any(|channel| channel.name == *name);
        for wanted in &topology.subscriptions {
            let found = system.find(&wanted.channel).await?;
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
        self.link.system.queues.location()
    }

    fn capabilities(&self) -> &'static Capabilities {
        self.link.system.queues.capabilities()
    }

    async fn probe(&self) -> Result<Effective> {
        self.link.check_open()?;
        self.link.system.queues.probe().await
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
        let system = &self.link.system;
        let mut young = Vec::new();
        for difference in &differences {
            let Difference::ChannelMissing(name) = difference else { continue };
            let Some(wanted) = topology.channels.iter().find(|channel| channel.name == *name) else {
                continue;
            };
            // Somebody else may have made it just now.
            let made = system.create(wanted).await?;
            if let Some(difference) = Difference::between(wanted, &made.channel).first() {
                return Err(difference.error());
            }
            young.push(made);
        }
        for wanted in &topology.subscriptions {
            young.push(self.register(wanted).await?.1);
        }
        for record in &young {
            system.ripen(record).await;
        }
        Ok(differences)
    }

    async fn channel(&self, name: &Name) -> Result<Option<Channel>> {
        self.link.check_open()?;
        Ok(self.link.system.find(name).await?.map(|found| found.channel))
    }

    async fn topology(&self) -> Result<Topology> {
        Err(missing(&self.location(), "listing", NO_LISTING))
    }

    async fn browse(&self, _: &Name, _: &Start) -> Result<Box<dyn Browse>> {
        Err(missing(&self.location(), "browsing", NO_BROWSING))
    }

    async fn producer(&self, channel: &Channel) -> Result<Box<dyn Producer>> {
        self.link.check_open()?;
        let found = self.link.system.find(&channel.name).await?;
        let record = found.ok_or_else(|| record::missing(&channel.name))?;
        self.link.system.ripen(&record).await;
        let found = record.channel;
        let differs = Difference::between(channel, &found);
        let lanes = |d: &&Difference| matches!(d, Difference::ChannelDiffers { setting: "lanes", .. });
        if let Some(difference) = differs.iter().find(lanes) {
            return Err(difference.error());
        }
        let sender = self.link.system.queues.sender(&found).await?;
        Ok(Box::new(QueueProducer::new(Arc::clone(&self.link), found, sender)))
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Consumer>> {
        self.link.check_open()?;
        let (number, record) = self.register(subscription).await?;
        self.link.system.ripen(&record).await;
        let system = Arc::clone(&self.link.system);
        let shared = Arc::new(Shared::new(system, record.channel, subscription, number));
        self.link.join(&shared)?;
        Ok(Box::new(QueueConsumer::new(Arc::clone(&self.link), shared, subscription)))
    }

    async fn unregister(&self, subscription: &Subscription) -> Result<()> {
        self.link.check_open()?;
        let Some(mut held) = self.link.system.hold(&subscription.channel).await? else { return Ok(()) };
        held.unsubscribe(&subscription.name).await?;
        held.leave().await.map(drop)
    }

    async fn close(&self, deadline: Duration) -> Result<Leftover> {
        let clock = &self.link.system.clock;
        let consumers = self.link.consumers.close(&**clock, deadline).await;
        let ended = join_all(consumers.iter().map(|shared| consumer::end(shared))).await;
        let members = std::mem::take(&mut *lock(&self.link.members));
        // Those that were dropped before, and are writing what they have settled.
        let last = tokio::select! {
            last = members.join() => last,
            () = clock.sleep(consumer::LAST_WRITE) => Ok(()),
        };
        // What could not be written is with the system, and comes again.
        last.map(|()| Leftover { released: ended.into_iter().map(|(released, _)| released).sum() })
    }
}
