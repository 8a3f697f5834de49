//! The broker.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::port::{Broker, Browse, Consumer, Effective, Leftover, Producer};
use tidegate_core::{
    Apply, Capabilities, Channel, Difference, Name, Result, Scope, Start, Subscription, Topology,
};
use tidegate_memory::MemoryBroker;

use super::consumer::PlantedConsumer;
use super::network::{MemoryNetwork, Way};
use super::producer::PlantedProducer;
use super::{Bug, Kept, SharedState};

/// A broker with a bug.
#[derive(Debug)]
pub(crate) struct Planted {
    bug: Bug,
    inner: MemoryBroker,
    capabilities: &'static Capabilities,
    shared: Arc<SharedState>,
    way: Way,
}

impl Planted {
    pub(crate) fn new(bug: Bug, network: &Arc<MemoryNetwork>, inner: MemoryBroker) -> Self {
        let mut capabilities = *inner.capabilities();
        if bug == Bug::ForgetsOnKill {
            // It says that it loses nothing.
            capabilities.loss = &[];
        }
        let capabilities = Box::leak(Box::new(capabilities));
        Self { bug, way: Way::new(network, bug, &inner), inner, capabilities, shared: Arc::default() }
    }

    /// Of somebody with a wrong password.
    pub(crate) fn stranger(mut self) -> Self {
        self.way.is_stranger = true;
        self
    }

    fn channel(&self, channel: &Channel) -> Channel {
        let mut channel = channel.clone();
        if self.bug == Bug::HasNoLimits {
            channel = channel.with_limits(u64::MAX >> 1, u64::MAX >> 1);
        }
        channel.name = self.name(&channel.name);
        channel
    }

    fn name(&self, name: &Name) -> Name {
        let name = name.as_str();
        let name = match self.bug {
            Bug::DotsAreUnderscores => name.replace('.', "_"),
            Bug::NamesAreShort => name[..name.len().min(11)].to_owned(),
            _ => name.to_owned(),
        };
        Name::new(name).unwrap()
    }

    fn subscription(&self, subscription: &Subscription) -> Subscription {
        let mut subscription = subscription.clone();
        subscription.channel = self.name(&subscription.channel);
        match self.bug {
            Bug::SharesSubscriptions => subscription.name = Name::new("all").unwrap(),
            Bug::IgnoresWindow => subscription.window = usize::MAX,
            Bug::StartsEarlier if matches!(subscription.start, Start::After(_)) => {
                subscription.start = Start::Earliest;
            }
            _ => {}
        }
        subscription
    }
}

#[async_trait]
impl Broker for Planted {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn capabilities(&self) -> &'static Capabilities {
        self.capabilities
    }

    async fn probe(&self) -> Result<Effective> {
        self.way.pass().await?;
        self.inner.probe().await
    }

    async fn apply(&self, topology: &Topology, mode: Apply) -> Result<Vec<Difference>> {
        let mut topology = Topology {
            channels: topology.channels.iter().map(|channel| self.channel(channel)).collect(),
            subscriptions: topology.subscriptions.iter().map(|s| self.subscription(s)).collect(),
        };
        if self.bug == Bug::UnregisterLeavesStorage
            && let Some(mut kept) = topology.subscriptions.first().cloned()
        {
            // What it keeps by is never removed.
            kept.name = Name::new("kept-for-nobody")?;
            topology.subscriptions.push(kept);
        }
        let mut found = self.inner.apply(&topology, mode).await?;
        if self.bug == Bug::VerifyIsQuiet {
            found.retain(|difference| !matches!(difference, Difference::ChannelDiffers { .. }));
        }
        Ok(found)
    }

    async fn channel(&self, name: &Name) -> Result<Option<Channel>> {
        self.inner.channel(&self.name(name)).await
    }

    async fn topology(&self) -> Result<Topology> {
        let mut topology = self.inner.topology().await?;
        if self.bug == Bug::ListsHalf {
            topology.subscriptions.pop();
        }
        Ok(topology)
    }

    async fn browse(&self, channel: &Name, start: &Start) -> Result<Box<dyn Browse>> {
        if self.bug == Bug::LookingKeeps
            && let Some(found) = self.inner.channel(channel).await?
        {
            let looker = Subscription::new(&found, "looker")?.with_start(start.clone());
            self.inner.apply(&Topology::default().and(&looker), Apply::Create).await?;
        }
        self.inner.browse(channel, start).await
    }

    async fn producer(&self, channel: &Channel) -> Result<Box<dyn Producer>> {
        self.way.pass().await?;
        let channel = self.channel(channel);
        if self.bug == Bug::MakesMissingChannels {
            self.inner.apply(&Topology::of(&channel), Apply::Create).await?;
        }
        Ok(Box::new(PlantedProducer {
            bug: self.bug,
            inner: Arc::new(tokio::sync::Mutex::new(self.inner.producer(&channel).await?)),
            shared: Arc::clone(&self.shared),
            seen: HashSet::new(),
            way: self.way.clone(),
        }))
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Consumer>> {
        self.way.pass().await?;
        let mut subscription = self.subscription(subscription);
        if self.bug == Bug::SplitsNothing {
            let number = self.shared.number.fetch_add(1, Ordering::Relaxed);
            subscription.name = Name::new(format!("member-{number}"))?;
        }
        let inner = match self.inner.subscribe(&subscription).await {
            Err(_) if self.bug == Bug::PassesOverWhatIsGone => {
                subscription.start = Start::Latest;
                self.inner.subscribe(&subscription).await?
            }
            inner => inner?,
        };
        let kept = Arc::new(Kept::new(Arc::clone(&self.shared), self.way.clone()));
        if self.bug == Bug::KeepsTasks {
            let mut scope = Scope::new();
            scope.spawn(std::future::pending());
            std::mem::forget(scope);
        }
        Ok(Box::new(PlantedConsumer {
            bug: self.bug,
            broker: self.inner.clone(),
            subscription,
            settle: inner.settler(),
            inner: self.way.consumer(inner),
            kept,
            behind: Vec::new(),
            drops_next: false,
            is_closed: false,
        }))
    }

    async fn unregister(&self, subscription: &Subscription) -> Result<()> {
        self.inner.unregister(&self.subscription(subscription)).await
    }

    async fn close(&self, deadline: Duration) -> Result<Leftover> {
        self.inner.close(deadline).await
    }
}
