//! A broker that is asked through somebody who counts, and lets it wait.

use std::collections::HashMap;

use tidegate_core::error::code;
use tidegate_core::port::{
    Browse, Consumer, Delivery, Effective, Leftover, Sent, Settle, Settled, Settlement, Signal, Token,
};
use tidegate_core::{Capabilities, Difference, Error, Name, Result, Start};

use super::*;

/// What is asked of a broker, as `publish orders`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    calls: Arc<Mutex<HashMap<String, Call>>>,
    refused: Arc<Mutex<Option<String>>>,
    probed: Arc<Mutex<Option<Result<Effective>>>>,
}

#[derive(Debug, Default)]
struct Call {
    count: usize,
    /// How long the next one takes.
    delay: Option<Duration>,
}

impl Calls {
    /// How often it was asked for.
    pub(crate) fn count(&self, call: &str) -> usize {
        self.calls.lock().unwrap().get(call).map_or(0, |call| call.count)
    }

    /// The next such call takes so long.
    pub(crate) fn delay(&self, call: &str, time: Duration) {
        self.calls.lock().unwrap().entry(call.to_owned()).or_default().delay = Some(time);
    }

    /// The message of this id is refused for good.
    pub(crate) fn refuse(&self, id: &str) {
        *self.refused.lock().unwrap() = Some(id.to_owned());
    }

    /// What the next look at the server finds.
    pub(crate) fn finds(&self, probed: Result<Effective>) {
        *self.probed.lock().unwrap() = Some(probed);
    }

    async fn note(&self, call: &str, channel: &Name) {
        let delay = {
            let mut calls = self.calls.lock().unwrap();
            let call = calls.entry(format!("{call} {channel}")).or_default();
            call.count += 1;
            call.delay.take()
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
    }
}

#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) inner: Arc<dyn Broker>,
    pub(crate) calls: Calls,
}

impl Watched {
    /// A world whose broker is watched.
    pub(crate) async fn world() -> (World, Calls) {
        let (mut world, calls) = (World::new().await, Calls::default());
        world.broker = Arc::new(Self { inner: world.broker, calls: calls.clone() });
        (world, calls)
    }
}

/// What belongs to one channel.
struct Part<T> {
    inner: T,
    channel: Name,
    calls: Calls,
}

#[async_trait::async_trait]
impl Broker for Watched {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn capabilities(&self) -> &'static Capabilities {
        self.inner.capabilities()
    }

    async fn probe(&self) -> Result<Effective> {
        let told = self.calls.probed.lock().unwrap().take();
        match told {
            Some(told) => told,
            None => self.inner.probe().await,
        }
    }

    async fn apply(&self, topology: &Topology, mode: Apply) -> Result<Vec<Difference>> {
        self.inner.apply(topology, mode).await
    }

    async fn channel(&self, name: &Name) -> Result<Option<Channel>> {
        self.calls.note("channel", name).await;
        self.inner.channel(name).await
    }

    async fn topology(&self) -> Result<Topology> {
        self.inner.topology().await
    }

    async fn browse(&self, channel: &Name, start: &Start) -> Result<Box<dyn Browse>> {
        self.inner.browse(channel, start).await
    }

    async fn producer(&self, channel: &Channel) -> Result<Box<dyn Producer>> {
        self.calls.note("producer", &channel.name).await;
        let inner = self.inner.producer(channel).await?;
        Ok(Box::new(Part { inner, channel: channel.name.clone(), calls: self.calls.clone() }))
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Consumer>> {
        let inner = self.inner.subscribe(subscription).await?;
        Ok(Box::new(Part { inner, channel: subscription.channel.clone(), calls: self.calls.clone() }))
    }

    async fn unregister(&self, subscription: &Subscription) -> Result<()> {
        self.inner.unregister(subscription).await
    }

    async fn close(&self, deadline: Duration) -> Result<Leftover> {
        self.inner.close(deadline).await
    }
}

#[async_trait::async_trait]
impl Producer for Part<Box<dyn Producer>> {
    async fn publish(&mut self, batch: &[Message]) -> Vec<Sent> {
        self.calls.note("publish", &self.channel).await;
        let refused = self.calls.refused.lock().unwrap().clone();
        let is_refused = |message: &&Message| refused.as_deref() == Some(&*message.id);
        let good: Vec<_> = batch.iter().filter(|message| !is_refused(message)).cloned().collect();
        let mut sent = self.inner.publish(&good).await.into_iter();
        let answer = |message| match is_refused(&message) {
            true => Sent::Refused(Error::new(code::MESSAGE_INVALID, "planted")),
            false => sent.next().unwrap(),
        };
        batch.iter().map(answer).collect()
    }

    async fn close(self: Box<Self>, deadline: Duration) -> Result<()> {
        self.calls.note("close", &self.channel).await;
        self.inner.close(deadline).await
    }
}

#[async_trait::async_trait]
impl Consumer for Part<Box<dyn Consumer>> {
    async fn receive(&mut self, max: usize, wait: Duration, out: &mut Vec<Delivery>) -> Result<Signal> {
        self.inner.receive(max, wait, out).await
    }

    fn settler(&self) -> Arc<dyn Settle> {
        let (inner, channel, calls) = (self.inner.settler(), self.channel.clone(), self.calls.clone());
        Arc::new(Part { inner, channel, calls })
    }

    async fn close(self: Box<Self>, deadline: Duration) -> Result<Leftover> {
        self.inner.close(deadline).await
    }
}

#[async_trait::async_trait]
impl Settle for Part<Arc<dyn Settle>> {
    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Settled> {
        self.calls.note("settle", &self.channel).await;
        self.inner.settle(batch).await
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Settled> {
        self.inner.extend(tokens, by).await
    }
}
