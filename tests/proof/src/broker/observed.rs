//! A broker under observation: everything that goes over its port is told to the ledger, and nothing is changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::port::{
    Broker, Browse, Consumer, Delivery, Effective, Leftover, Producer, Sent, Settle, Settled, Settlement,
    Signal, Token,
};
use tidegate_core::{
    Apply, Capabilities, Channel, Difference, Message, Name, Result, Start, Subscription, Topology,
};

use super::ledger::{Ledger, SERVICE};

/// A broker, one channel of which is observed together with its dead letters.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) inner: Arc<dyn Broker>,
    pub(super) channel: Name,
    pub(super) ledger: Arc<Ledger>,
    pub(super) members: AtomicU64,
}

#[async_trait]
impl Broker for Observed {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn capabilities(&self) -> &'static Capabilities {
        self.inner.capabilities()
    }

    async fn probe(&self) -> Result<Effective> {
        self.inner.probe().await
    }

    async fn apply(&self, topology: &Topology, mode: Apply) -> Result<Vec<Difference>> {
        self.inner.apply(topology, mode).await
    }

    async fn channel(&self, name: &Name) -> Result<Option<Channel>> {
        self.inner.channel(name).await
    }

    async fn topology(&self) -> Result<Topology> {
        self.inner.topology().await
    }

    async fn browse(&self, channel: &Name, start: &Start) -> Result<Box<dyn Browse>> {
        self.inner.browse(channel, start).await
    }

    async fn producer(&self, channel: &Channel) -> Result<Box<dyn Producer>> {
        let inner = self.inner.producer(channel).await?;
        let is_dead = channel.name != self.channel;
        Ok(Box::new(ObservedProducer { inner, is_dead, ledger: Arc::clone(&self.ledger) }))
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Consumer>> {
        let inner = self.inner.subscribe(subscription).await?;
        if subscription.channel != self.channel {
            return Ok(inner);
        }
        let member = self.members.fetch_add(1, Ordering::Relaxed);
        let settle =
            Arc::new(ObservedSettle { inner: inner.settler(), member, ledger: Arc::clone(&self.ledger) });
        Ok(Box::new(ObservedConsumer { inner, member, settle, ledger: Arc::clone(&self.ledger) }))
    }

    async fn unregister(&self, subscription: &Subscription) -> Result<()> {
        self.inner.unregister(subscription).await
    }

    async fn close(&self, deadline: Duration) -> Result<Leftover> {
        self.inner.close(deadline).await
    }
}

struct ObservedProducer {
    inner: Box<dyn Producer>,
    /// Whether it is that of the dead letters.
    is_dead: bool,
    ledger: Arc<Ledger>,
}

#[async_trait]
impl Producer for ObservedProducer {
    async fn publish(&mut self, batch: &[Message]) -> Vec<Sent> {
        if self.is_dead {
            let sent = self.inner.publish(batch).await;
            self.ledger.buried(batch, &sent);
            return sent;
        }
        self.ledger.oracle.announce(batch);
        let sent = self.inner.publish(batch).await;
        self.ledger.answered(batch, &sent);
        if let Err(error) = self.ledger.oracle.answered(batch, &sent) {
            // What was not answered stays open; whoever publishes it would wait for ever.
            return batch.iter().map(|_| Sent::Unknown(error.again())).collect();
        }
        sent
    }

    async fn close(self: Box<Self>, deadline: Duration) -> Result<()> {
        self.inner.close(deadline).await
    }
}

struct ObservedConsumer {
    inner: Box<dyn Consumer>,
    member: u64,
    settle: Arc<ObservedSettle>,
    ledger: Arc<Ledger>,
}

#[async_trait]
impl Consumer for ObservedConsumer {
    async fn receive(&mut self, max: usize, wait: Duration, out: &mut Vec<Delivery>) -> Result<Signal> {
        let before = out.len();
        let signal = self.inner.receive(max, wait, out).await;
        for delivery in &out[before.min(out.len())..] {
            self.ledger.oracle.delivered(SERVICE, self.member, delivery);
            self.ledger.delivered(delivery);
        }
        signal
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::clone(&self.settle) as Arc<dyn Settle>
    }

    async fn close(self: Box<Self>, deadline: Duration) -> Result<Leftover> {
        let leftover = self.inner.close(deadline).await;
        self.ledger.oracle.gone(SERVICE, self.member);
        leftover
    }
}

struct ObservedSettle {
    inner: Arc<dyn Settle>,
    member: u64,
    ledger: Arc<Ledger>,
}

#[async_trait]
impl Settle for ObservedSettle {
    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Settled> {
        self.ledger.oracle.settling(SERVICE, self.member, batch);
        let answers = self.inner.settle(batch).await;
        self.ledger.oracle.settled(SERVICE, self.member, batch, &answers);
        answers
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Settled> {
        self.inner.extend(tokens, by).await
    }
}
