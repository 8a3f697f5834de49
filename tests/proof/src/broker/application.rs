//! The application: a service and a publisher of one channel, under load until they are told to rest.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Broker, StateStore};
use tidegate_core::{Channel, Clock, Error, Message, Scope, Start, Subscription, SystemClock};
use tidegate_memory::MemoryStore;
use tidegate_runtime::{
    Failure, Handlers, Json, Policy, Publisher, Receiver, Running, Service, State, dead_letter,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Result;
use super::ledger::{ATTEMPTS, CAUSE, Found, Ledger, SERVICE, Step};
use super::observed::Observed;

/// Subjects that can be handled.
const SUBJECTS: u64 = 24;
/// Of so many messages one is poison.
const POISON: u64 = 40;
/// How many messages are published at once at most.
const BATCH: usize = 32;
/// How long nothing may come of anything: the server has to be there again, and whoever lost it to know.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long handlers may take to end.
const DRAIN: Duration = Duration::from_secs(30);
/// After the last dead letter; more than one may be there.
const QUIET: Duration = Duration::from_secs(2);

/// What runs on one channel.
pub(super) struct Application {
    broker: Arc<dyn Broker>,
    channel: Channel,
    ledger: Arc<Ledger>,
    service: Running,
    publishing: Scope,
    stop: CancellationToken,
    /// Which poison subject is written to.
    poison: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
}

impl Application {
    pub(super) async fn start(inner: &Arc<dyn Broker>, name: String, seed: u64) -> Result<Self> {
        let ledger = Arc::new(Ledger::new(inner.capabilities().dedupe.is_there()));
        let (channel, clock) = (Channel::new(name)?, SystemClock::shared());
        let broker: Arc<dyn Broker> = Arc::new(Observed {
            inner: Arc::clone(inner),
            channel: channel.name.clone(),
            ledger: Arc::clone(&ledger),
            members: AtomicU64::new(0),
        });
        // The application lives on, and so does its store: the broker alone is killed.
        let store: Arc<dyn StateStore> = Arc::new(MemoryStore::new(SERVICE));
        let policy = Policy::park_key()
            .with_attempts(ATTEMPTS)
            .with_pauses(Duration::from_millis(20), Duration::from_millis(200));
        let handlers = Handlers::new().handle(handle).with_policy(policy).with_members(2).with_concurrency(8);
        let service = Service::new(SERVICE).with_state(Arc::clone(&ledger)).with_store(store);
        let service = service.on(&channel, handlers).start(&broker).await?;
        let publisher = Publisher::open(&*broker, &channel)
            .with_clock(Arc::clone(&clock))
            .with_patience(PATIENCE)
            .await?;
        let (stop, poison) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let mut publishing = Scope::new();
        let load = Load {
            ledger: Arc::clone(&ledger),
            poison: Arc::clone(&poison),
            numbers: HashMap::new(),
            rng: Rng::with_seed(seed),
        };
        publishing.spawn(load.publish(publisher, stop.clone()));
        Ok(Self { broker, channel, ledger, service, publishing, stop, poison, clock })
    }

    /// Goes on to another subject that cannot be handled.
    pub(super) fn poison(&self) {
        self.poison.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until something is handled that was not.
    pub(super) async fn comes_again(&self) -> Result<()> {
        let (before, until) = (self.ledger.count(), Instant::now() + PATIENCE);
        while self.ledger.count() == before {
            if Instant::now() >= until {
                return Err(
                    format!("nothing was handled for {} s after a restart", PATIENCE.as_secs()).into()
                );
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Publishes no more, handles what is there, and ends: the verdict.
    pub(super) async fn end(self) -> Result<Found> {
        self.stop.cancel();
        during("publishing", self.publishing.join().await)?;
        let (mut open, mut until) = (self.ledger.open(), Instant::now() + PATIENCE);
        while open > 0 && Instant::now() < until {
            sleep(Duration::from_millis(100)).await;
            let before = std::mem::replace(&mut open, self.ledger.open());
            if open != before {
                until = Instant::now() + PATIENCE;
            }
        }
        // What should not come may still do so.
        sleep(Duration::from_millis(300)).await;
        during("draining", self.service.drain(DRAIN).await)?;
        let subscription = dead_letter::subscription(&self.channel.name)?;
        let letters =
            during("reading dead letters", letters(&*self.broker, &subscription, self.clock).await)?;
        let kept = if open > 0 { kept(&*self.broker, &self.channel).await? } else { None };
        during("unregistering", self.broker.unregister(&subscription).await)?;
        let own = Subscription::new(&self.channel, SERVICE)?;
        during("unregistering", self.broker.unregister(&own).await)?;
        Ok(self.ledger.judge(&letters, kept.as_ref()))
    }
}

/// Says at what the run ended.
fn during<T>(what: &str, done: tidegate_core::Result<T>) -> Result<T> {
    done.map_err(|error| format!("{what}: {error}").into())
}

/// All dead letters, settled.
async fn letters(
    broker: &dyn Broker,
    subscription: &Subscription,
    clock: Arc<dyn Clock>,
) -> tidegate_core::Result<Vec<Message>> {
    let mut receiver = Receiver::open(broker, subscription, clock).await?;
    let (mut letters, until) = (Vec::new(), Instant::now() + PATIENCE);
    while let Some(delivery) = receiver.next(QUIET).await? {
        receiver.settle(&[delivery.token]).await?;
        letters.push(Arc::unwrap_or_clone(delivery.message));
        if Instant::now() >= until {
            let text = format!("there is no end of dead letters: {} came", letters.len());
            return Err(Error::new(code::INTERNAL, text));
        }
    }
    receiver.close(DRAIN).await?;
    Ok(letters)
}

/// The ids of what the broker has in a channel, if that can be seen.
async fn kept(broker: &dyn Broker, channel: &Channel) -> Result<Option<HashSet<Arc<str>>>> {
    if !broker.capabilities().browsing.is_there() {
        return Ok(None);
    }
    let (mut kept, mut seen) = (HashSet::new(), Vec::new());
    let mut browse = broker.browse(&channel.name, &Start::Earliest).await?;
    loop {
        browse.next(1_000, QUIET, &mut seen).await?;
        if seen.is_empty() {
            return Ok(Some(kept));
        }
        kept.extend(seen.drain(..).map(|seen| seen.message.id));
    }
}

async fn handle(
    State(ledger): State<Arc<Ledger>>,
    Json(step): Json<Step>,
) -> std::result::Result<(), Failure> {
    if step.is_poison {
        return Err(Failure::retry(CAUSE));
    }
    // Now and then it takes a while, so that a kill meets something in hand.
    if step.number % 8 == 0 {
        sleep(Duration::from_millis(2)).await;
    }
    ledger.handled(&step);
    Ok(())
}

/// The publisher's side.
struct Load {
    ledger: Arc<Ledger>,
    poison: Arc<AtomicU64>,
    /// The next number of each subject.
    numbers: HashMap<String, u64>,
    rng: Rng,
}

impl Load {
    /// Publishes until told to stop; everything that was begun is stored then. What may be stored once more is for the ledger.
    async fn publish(
        mut self,
        mut publisher: Publisher,
        stop: CancellationToken,
    ) -> tidegate_core::Result<()> {
        while !stop.is_cancelled() {
            let steps: Vec<_> = (0..self.rng.usize(1..=BATCH)).map(|_| self.step()).collect();
            steps.iter().for_each(|step| self.ledger.announce(step));
            let batch = steps.iter().map(Step::message).collect::<tidegate_core::Result<Vec<_>>>()?;
            publisher.publish(&batch).await?;
            sleep(Duration::from_millis(self.rng.u64(0..10))).await;
        }
        match publisher.close(DRAIN).await {
            Err(error) if error.verdict() == Verdict::Unknown => Ok(()),
            closed => closed,
        }
    }

    fn step(&mut self) -> Step {
        let is_poison = self.rng.u64(..POISON) == 0;
        let subject = match is_poison {
            true => format!("poison-{}", self.poison.load(Ordering::Relaxed)),
            false => format!("subject-{}", self.rng.u64(..SUBJECTS)),
        };
        let number = self.numbers.entry(subject.clone()).or_default();
        *number += 1;
        Step { number: *number - 1, subject, is_poison }
    }
}
