//! The broker in memory as a fixture, with or without a planted bug.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_conformance::{Fixture, Hook, Killed, Network, numbered};
use tidegate_core::port::{Broker, Sent};
use tidegate_core::{Apply, Channel, Result, Subscription, SystemClock, Topology};
use tidegate_memory::MemoryBroker;

use crate::plant::{Bug, MemoryNetwork, Planted};

pub(crate) struct Memory {
    bug: Option<Bug>,
    broker: MemoryBroker,
    network: Arc<MemoryNetwork>,
}

fn empty() -> MemoryBroker {
    let broker = MemoryBroker::new(SystemClock::shared());
    broker.with_patience(Duration::from_millis(200)).with_grace(Duration::from_millis(300))
}

impl Memory {
    pub(crate) fn new(bug: Option<Bug>) -> Self {
        Self { bug, broker: empty(), network: Arc::default() }
    }

    fn planted(&self, broker: MemoryBroker) -> Arc<dyn Broker> {
        match self.bug {
            Some(bug) => Arc::new(Planted::new(bug, &self.network, broker)),
            None => Arc::new(broker),
        }
    }
}

#[async_trait]
impl Fixture for Memory {
    fn adapter(&self) -> &'static str {
        "memory"
    }

    async fn start(&mut self) -> Result<Arc<dyn Broker>> {
        self.broker = empty();
        self.network = Arc::default();
        Ok(self.planted(self.broker.clone()))
    }

    async fn connect(&mut self) -> Result<Arc<dyn Broker>> {
        Ok(self.planted(self.broker.connect()))
    }

    async fn stranger(&mut self) -> Result<Option<Arc<dyn Broker>>> {
        let stranger = |bug| Planted::new(bug, &self.network, self.broker.connect()).stranger();
        Ok(self.bug.map(|bug| Arc::new(stranger(bug)) as Arc<dyn Broker>))
    }

    async fn restart(&mut self) -> Result<Arc<dyn Broker>> {
        self.broker.cut();
        self.broker = self.broker.connect();
        Ok(self.planted(self.broker.clone()))
    }

    /// What a kill does to a broker in memory: it is empty.
    async fn kill(&mut self, channel: &Channel, prefix: &str) -> Result<Killed> {
        let mut producer = self.broker.producer(channel).await?;
        let batch: Vec<_> = (0..50).map(|number| numbered(prefix, number)).collect();
        let sent = producer.publish(&batch).await;
        let confirmed = (0..).zip(&sent).filter(|(_, sent)| matches!(sent, Sent::Stored { .. }));
        let confirmed = confirmed.map(|(number, _)| number).collect();
        self.broker = empty();
        let topology = Topology::of(channel).and(&Subscription::new(channel, "s")?);
        self.broker.apply(&topology, Apply::Create).await?;
        Ok(Killed { broker: self.planted(self.broker.clone()), confirmed })
    }

    async fn cut(&mut self) -> Result<Hook> {
        self.broker.cut();
        Ok(Hook::Done)
    }

    fn network(&self) -> std::result::Result<Arc<dyn Network>, &'static str> {
        match self.bug {
            Some(_) => Ok(Arc::clone(&self.network) as Arc<dyn Network>),
            None => Err("nothing is between it and whoever uses it"),
        }
    }

    async fn lose_answers(&mut self, calls: usize) -> Result<Hook> {
        self.broker.lose_answers(calls);
        Ok(Hook::Done)
    }

    async fn remove(&mut self, channel: &Channel, _: &Subscription) -> Result<Hook> {
        self.broker.remove(&channel.name);
        Ok(Hook::Done)
    }

    async fn kept(&mut self, channel: &Channel) -> Result<Option<u64>> {
        Ok(Some(self.broker.kept(&channel.name)))
    }

    async fn clean_up(&mut self) -> Result<()> {
        self.broker = empty();
        Ok(())
    }
}
