//! What every adapter has to do, done by the broker in memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_conformance::{Fixture, Hook, Killed, Network};
use tidegate_core::port::Broker;
use tidegate_core::{Channel, Result, Subscription, SystemClock};
use tidegate_memory::MemoryBroker;

/// A broker and the connection that the suite was given.
struct Memory(MemoryBroker);

impl Memory {
    fn new() -> Self {
        let broker = MemoryBroker::new(SystemClock::shared());
        Self(broker.with_patience(Duration::from_millis(300)).with_grace(Duration::from_millis(300)))
    }
}

#[async_trait]
impl Fixture for Memory {
    fn adapter(&self) -> &'static str {
        "memory"
    }

    async fn start(&mut self) -> Result<Arc<dyn Broker>> {
        *self = Self::new();
        Ok(Arc::new(self.0.clone()))
    }

    async fn connect(&mut self) -> Result<Arc<dyn Broker>> {
        Ok(Arc::new(self.0.connect()))
    }

    async fn stranger(&mut self) -> Result<Option<Arc<dyn Broker>>> {
        Ok(None)
    }

    /// The process goes on, and so do the messages: a connection ends and another one begins.
    async fn restart(&mut self) -> Result<Arc<dyn Broker>> {
        self.0 = self.0.connect();
        Ok(Arc::new(self.0.clone()))
    }

    async fn kill(&mut self, _: &Channel, _: &str) -> Result<Killed> {
        // Declared as a loss, so that nobody asks.
        Ok(Killed { broker: self.start().await?, confirmed: Vec::new() })
    }

    async fn cut(&mut self) -> Result<Hook> {
        self.0.cut();
        Ok(Hook::Done)
    }

    fn network(&self) -> std::result::Result<Arc<dyn Network>, &'static str> {
        Err("nothing is between it and whoever uses it")
    }

    async fn lose_answers(&mut self, calls: usize) -> Result<Hook> {
        self.0.lose_answers(calls);
        Ok(Hook::Done)
    }

    async fn remove(&mut self, channel: &Channel, _: &Subscription) -> Result<Hook> {
        self.0.remove(&channel.name);
        Ok(Hook::Done)
    }

    async fn kept(&mut self, channel: &Channel) -> Result<Option<u64>> {
        Ok(Some(self.0.kept(&channel.name)))
    }

    async fn clean_up(&mut self) -> Result<()> {
        *self = Self::new();
        Ok(())
    }
}

tidegate_conformance::main!(Memory::new());
