//! The target behind a broker that is cut, loses answers and messages, and whose other end is killed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::port::{Broker, Browse, Consumer, Effective, Leftover, Producer, Sent, Store};
use tidegate_core::{
    Apply, Canonical, Capabilities, Channel, Difference, FlowName, Ids, Message, Name, Result, Start,
    Subscription, SystemClock, Topology,
};
use tidegate_flow::via::{Carried, Via, serve};
use tidegate_memory::MemoryBroker;
use tokio_util::sync::CancellationToken;

use crate::world::Shared;

/// The two ends of the way, and the target at one of them.
#[derive(Debug)]
pub(crate) struct Way {
    near: MemoryBroker,
    far: MemoryBroker,
    world: Shared,
    target: Arc<dyn Store>,
    late: Late,
}

/// Messages whose storing was unknown, and which are stored once more when it suits nobody.
type Late = Arc<Mutex<Vec<Message>>>;

impl Way {
    pub(crate) fn new(target: Arc<dyn Store>, world: Shared) -> Self {
        let near = MemoryBroker::new(SystemClock::shared());
        Self { far: near.connect(), near, world, target, late: Late::default() }
    }

    fn via(&self, end: &MemoryBroker) -> Via {
        let broker = Lossy { inner: end.clone(), world: self.world.clone(), late: Arc::clone(&self.late) };
        Via {
            broker: Arc::new(broker),
            codecs: vec![Arc::new(Canonical)],
            clock: SystemClock::shared(),
            ids: Arc::new(Seeded(self.world.clone())),
        }
    }

    /// The target as the engine sees it.
    pub(crate) fn carried(&self) -> Arc<dyn Store> {
        Arc::new(Carried::new(Arc::clone(&self.target), self.via(&self.near)))
    }

    /// Serves the target, killed and cut now and then. It does not end.
    pub(crate) async fn live(&self, flow: &FlowName) -> Result<std::convert::Infallible> {
        loop {
            let via = self.via(&self.far);
            let never = CancellationToken::new();
            tokio::select! {
                biased;
                ended = serve(flow, &self.target, &via, &never) => ended?,
                () = self.harm() => self.world.lock().count("target's process killed"),
            }
        }
    }

    /// Returns when the process that serves is to be killed.
    async fn harm(&self) {
        loop {
            let (wait, what) = {
                let mut world = self.world.lock();
                let wait = Duration::from_millis(world.rng.u64(1..80));
                let what = (world.faults_left > 0 && world.rng.u8(0..3) == 0).then(|| {
                    world.faults_left -= 1;
                    world.rng.u8(0..6)
                });
                (wait, what)
            };
            tokio::time::sleep(wait).await;
            let Some(what) = what else { continue };
            if what == 0 {
                return;
            }
            self.world.lock().count("broker cut, or its answers lost");
            match what {
                1 => self.near.lose_answers(2),
                2 => self.far.lose_answers(2),
                3 => self.near.cut(),
                _ => self.far.cut(),
            }
        }
    }
}

/// Sessions are named by the seed too.
#[derive(Debug)]
struct Seeded(Shared);

impl Ids for Seeded {
    fn next(&self) -> uuid::Uuid {
        uuid::Uuid::from_u128(self.0.lock().rng.u128(..))
    }
}

/// A broker that says of some messages that they are stored, and loses them; and that stores some twice, the second
/// time late.
#[derive(Clone, Debug)]
struct Lossy {
    inner: MemoryBroker,
    world: Shared,
    late: Late,
}

#[async_trait]
impl Broker for Lossy {
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
        let late = channel.name.as_str().ends_with("calls").then(|| Arc::clone(&self.late));
        Ok(Box::new(LossyProducer { inner, world: self.world.clone(), late }))
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Consumer>> {
        self.inner.subscribe(subscription).await
    }

    async fn unregister(&self, subscription: &Subscription) -> Result<()> {
        self.inner.unregister(subscription).await
    }

    async fn close(&self, deadline: Duration) -> Result<Leftover> {
        self.inner.close(deadline).await
    }
}

struct LossyProducer {
    inner: Box<dyn Producer>,
    world: Shared,
    late: Option<Late>,
}

impl LossyProducer {
    /// Has the broker forget the ids: it stores the same again.
    async fn publish_late(&mut self, late: Vec<Message>) {
        for (at, mut message) in late.into_iter().enumerate() {
            message.id = format!("{}-late-{at}", message.id).into();
            self.inner.publish(&[message]).await;
        }
    }
}

#[async_trait]
impl Producer for LossyProducer {
    async fn publish(&mut self, batch: &[Message]) -> Vec<Sent> {
        let (fault, comes) = {
            let mut world = self.world.lock();
            let is_faulty = world.faults_left > 0 && world.rng.u8(0..12) == 0;
            world.faults_left -= usize::from(is_faulty);
            (is_faulty.then(|| world.rng.bool()), world.rng.u8(0..8) == 0)
        };
        match (fault, self.late.clone()) {
            (None, Some(late)) if comes => {
                let late = std::mem::take(&mut *late.lock().unwrap_or_else(PoisonError::into_inner));
                self.publish_late(late).await;
            }
            (None, _) => {}
            (Some(true), Some(late)) => {
                self.world.lock().count("message stored again, late");
                late.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(batch);
            }
            (Some(_), _) => {
                self.world.lock().count("message lost by the broker");
                return batch.iter().map(|_| Sent::Stored { position: None, duplicate: false }).collect();
            }
        }
        self.inner.publish(batch).await
    }

    async fn close(self: Box<Self>, deadline: Duration) -> Result<()> {
        self.inner.close(deadline).await
    }
}
