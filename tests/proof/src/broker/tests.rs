//! Each rule can fail: bugs planted in a broker in memory, whose connections are cut in the place of kills.

use std::collections::HashSet;

use tidegate_core::port::{Broker as _, Browse, Consumer, Effective, Leftover, Producer, Sent};
use tidegate_core::{
    Apply, Capabilities, Channel, Difference, Message, Name, Start, Subscription, SystemClock, Topology,
    message,
};
use tidegate_memory::MemoryBroker;
use tidegate_runtime::dead_letter;

use super::ledger::Step;
use super::*;

/// What is wrong with a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// Some messages are confirmed and not stored.
    LosesConfirmed,
    /// A batch is stored from its end.
    StoresBackwards,
    /// A message comes that nobody published.
    Invents,
    /// A message is stored with another header.
    Changes,
    /// Dead letters are stored twice.
    ParksTwice,
    /// Dead letters do not say what the handler said.
    ForgetsCauses,
    /// Some dead letters are confirmed and not stored.
    LosesLetters,
}

#[derive(Debug)]
struct Planted {
    bug: Bug,
    inner: MemoryBroker,
    capabilities: &'static Capabilities,
}

impl Planted {
    fn new(bug: Bug) -> Self {
        let inner = MemoryBroker::new(SystemClock::shared());
        // What is not killed loses nothing.
        let capabilities = Capabilities { loss: &[], ..*inner.capabilities() };
        Self { bug, inner, capabilities: Box::leak(Box::new(capabilities)) }
    }
}

#[async_trait]
impl port::Broker for Planted {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn capabilities(&self) -> &'static Capabilities {
        self.capabilities
    }

    async fn probe(&self) -> tidegate_core::Result<Effective> {
        self.inner.probe().await
    }

    async fn apply(&self, topology: &Topology, mode: Apply) -> tidegate_core::Result<Vec<Difference>> {
        self.inner.apply(topology, mode).await
    }

    async fn channel(&self, name: &Name) -> tidegate_core::Result<Option<Channel>> {
        self.inner.channel(name).await
    }

    async fn topology(&self) -> tidegate_core::Result<Topology> {
        self.inner.topology().await
    }

    async fn browse(&self, channel: &Name, start: &Start) -> tidegate_core::Result<Box<dyn Browse>> {
        self.inner.browse(channel, start).await
    }

    async fn producer(&self, channel: &Channel) -> tidegate_core::Result<Box<dyn Producer>> {
        let inner = self.inner.producer(channel).await?;
        Ok(Box::new(PlantedProducer { bug: self.bug, inner, count: 0 }))
    }

    async fn subscribe(&self, subscription: &Subscription) -> tidegate_core::Result<Box<dyn Consumer>> {
        self.inner.subscribe(subscription).await
    }

    async fn unregister(&self, subscription: &Subscription) -> tidegate_core::Result<()> {
        self.inner.unregister(subscription).await
    }

    async fn close(&self, deadline: Duration) -> tidegate_core::Result<Leftover> {
        self.inner.close(deadline).await
    }
}

struct PlantedProducer {
    bug: Bug,
    inner: Box<dyn Producer>,
    count: u64,
}

impl PlantedProducer {
    /// Confirms every twentieth message that is of the kind in question, and stores it not.
    async fn lose(&mut self, batch: &[Message], is_meant: impl Fn(&Message) -> bool) -> Vec<Sent> {
        let mut lost = HashSet::new();
        for message in batch.iter().filter(|message| is_meant(message)) {
            self.count += 1;
            if self.count.is_multiple_of(20) {
                lost.insert(Arc::clone(&message.id));
            }
        }
        let rest: Vec<_> = batch.iter().filter(|m| !lost.contains(&m.id)).cloned().collect();
        let mut sent = self.inner.publish(&rest).await.into_iter();
        let stored = || Sent::Stored { position: None, duplicate: false };
        batch.iter().map(|m| if lost.contains(&m.id) { stored() } else { sent.next().unwrap() }).collect()
    }
}

#[async_trait]
impl Producer for PlantedProducer {
    async fn publish(&mut self, batch: &[Message]) -> Vec<Sent> {
        let is_dead = |message: &Message| message.headers.get(dead_letter::REASON).is_some();
        let mut batch = batch.to_vec();
        let count = batch.len();
        let are_dead = batch.iter().any(is_dead);
        match self.bug {
            Bug::LosesConfirmed => return self.lose(&batch, |message| !is_dead(message)).await,
            Bug::LosesLetters => return self.lose(&batch, is_dead).await,
            Bug::StoresBackwards => batch.reverse(),
            Bug::Invents if !are_dead => {
                let step = Step { subject: "nobody".to_owned(), number: 0, is_poison: false };
                batch.push(step.message().unwrap());
            }
            Bug::Changes => {
                batch.iter_mut().for_each(|message| message.headers.set("changed", "yes").unwrap());
            }
            Bug::ParksTwice if are_dead => {
                let mut copies = batch.clone();
                copies.iter_mut().for_each(|copy| copy.headers.set(message::COPY, "another/9").unwrap());
                batch.extend(copies);
            }
            Bug::ForgetsCauses => {
                batch.iter_mut().for_each(|message| message.headers.remove(dead_letter::ERROR));
            }
            _ => {}
        }
        let mut sent = self.inner.publish(&batch).await;
        if self.bug == Bug::StoresBackwards {
            sent.reverse();
        }
        sent.truncate(count);
        sent
    }

    async fn close(self: Box<Self>, deadline: Duration) -> tidegate_core::Result<()> {
        self.inner.close(deadline).await
    }
}

#[async_trait]
impl Victim for MemoryBroker {
    async fn kill(&self) {
        self.lose_answers(2);
        self.cut();
    }

    async fn restart(&self) -> Result<()> {
        Ok(())
    }
}

/// What is found of a broker with this bug.
async fn found(bug: Bug) -> Row {
    let planted = Planted::new(bug);
    let victim = planted.inner.clone();
    let broker: Arc<dyn port::Broker> = Arc::new(planted);
    let mut row = Row::default();
    round(&broker, &victim, &mut Rng::with_seed(7), 3, &mut row).await.unwrap();
    row
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_loses_connections_and_answers_breaks_no_rule() {
    let row = found(Bug::None).await;
    assert!(row.is_clean(3), "{row:?}");
    let found = &row.found;
    assert_eq!(found.handled + found.poison, found.confirmed);
    assert!(found.unknown > 0, "no answer was lost: {row:?}");
    assert!(!row.is_clean(4) && !Row { error: Some("away".to_owned()), ..row }.is_clean(3));
}

#[tokio::test(start_paused = true)]
async fn each_planted_bug_breaks_its_rule() {
    type Rule = fn(&Found) -> u64;
    let rules: [(Bug, Rule); 7] = [
        (Bug::LosesConfirmed, |found| found.lost),
        (Bug::StoresBackwards, |found| found.inverted),
        (Bug::Invents, |found| found.invented),
        (Bug::Changes, |found| found.at_port),
        (Bug::ParksTwice, |found| found.misparked),
        (Bug::ForgetsCauses, |found| found.misparked),
        (Bug::LosesLetters, |found| found.misparked),
    ];
    for (bug, broken) in rules {
        let row = found(bug).await;
        assert!(broken(&row.found) > 0 && !row.is_clean(3), "{bug:?} was not found: {row:?}");
    }
}
