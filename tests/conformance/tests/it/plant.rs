//! Brokers with one bug each, around the one in memory. Each has to be caught by the case that is meant for it.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_conformance::{CASES, Outcome, Size, run};
use tidegate_core::port::{
    Attempt, Broker, Browse, Consumer, Delivery, Effective, Leftover, Producer, Sent, Settle, Settled,
    Settlement, Signal, Token,
};
use tidegate_core::{
    Apply, Capabilities, Channel, Difference, Headers, Lane, Message, Name, Position, Result, Scope, Start,
    Subscription, Topology,
};
use tidegate_memory::MemoryBroker;
use tokio::time::{Instant, sleep};

use crate::memory::Memory;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    LosesConfirmed,
    AnswersBackwards,
    BlamesTheNeighbour,
    MakesMissingChannels,
    TooLargeTakesNeighbours,
    UnknownSaysRefused,
    StoresAfterClose,
    HasNoLimits,
    DropsEmptyHeaders,
    ForgetsOnKill,
    SplitsNothing,
    SharesSubscriptions,
    ForgetsAbsentees,
    UnregisterLeavesStorage,
    CrashSettles,
    AttemptStaysOne,
    LostSaysUnknown,
    OldEpochSettles,
    RedeliversSettled,
    ReleaseCounts,
    CancelLoses,
    IgnoresWindow,
    DotsAreUnderscores,
    StartsEarlier,
    PassesOverWhatIsGone,
    LookingKeeps,
    ListsHalf,
    ShufflesBatches,
    RetryGoesToTheBack,
    DeliversWhatItLost,
    ReconnectDropsInHand,
    RetryBlocksAll,
    RetriesBackwards,
    OtherLanes,
    ExtendPretends,
    DeadLetterPretends,
    RetryComesLate,
    StoresForNobody,
    CopiesAreDuplicates,
    CloseSettles,
    NamesAreShort,
    LosesReplies,
    RetryComesEarly,
    CutsDeadLetters,
    KeepsTasks,
    VerifyIsQuiet,
    UrgentComesLast,
    LosesWhatWasCarried,
    ForgetsTraces,
}

/// Every bug and the case that is meant for it.
const BUGS: &[(Bug, &str)] = &[
    (Bug::LosesConfirmed, "A1"),
    (Bug::AnswersBackwards, "A2"),
    (Bug::BlamesTheNeighbour, "A3"),
    (Bug::MakesMissingChannels, "A4"),
    (Bug::TooLargeTakesNeighbours, "A5"),
    (Bug::UnknownSaysRefused, "A6"),
    (Bug::StoresAfterClose, "A7"),
    (Bug::HasNoLimits, "A8"),
    (Bug::DropsEmptyHeaders, "A9"),
    (Bug::ForgetsOnKill, "A10"),
    (Bug::SplitsNothing, "B11"),
    (Bug::SharesSubscriptions, "B12"),
    (Bug::ForgetsAbsentees, "B13"),
    (Bug::UnregisterLeavesStorage, "B14"),
    (Bug::CrashSettles, "B15"),
    (Bug::AttemptStaysOne, "B15"),
    (Bug::LostSaysUnknown, "B16"),
    (Bug::OldEpochSettles, "B17"),
    (Bug::RedeliversSettled, "B18"),
    (Bug::ReleaseCounts, "B19"),
    (Bug::CancelLoses, "B20"),
    (Bug::IgnoresWindow, "B21"),
    (Bug::DotsAreUnderscores, "B22"),
    (Bug::StartsEarlier, "B23"),
    (Bug::PassesOverWhatIsGone, "B23"),
    (Bug::LookingKeeps, "B62"),
    (Bug::ListsHalf, "B63"),
    (Bug::ShufflesBatches, "C24"),
    (Bug::RetryGoesToTheBack, "C25"),
    (Bug::DeliversWhatItLost, "C26"),
    (Bug::ReconnectDropsInHand, "C27"),
    (Bug::RetryBlocksAll, "C28"),
    (Bug::RetriesBackwards, "C29"),
    (Bug::OtherLanes, "C30"),
    (Bug::RetryComesEarly, "D31"),
    (Bug::RetryComesLate, "D31"),
    (Bug::RetryComesLate, "D32"),
    (Bug::AttemptStaysOne, "D33"),
    (Bug::StoresForNobody, "D34"),
    (Bug::AttemptStaysOne, "D35"),
    (Bug::CutsDeadLetters, "D36"),
    (Bug::CopiesAreDuplicates, "D37"),
    (Bug::ExtendPretends, "D38"),
    (Bug::ReconnectDropsInHand, "E40"),
    (Bug::ReleaseCounts, "F47"),
    (Bug::CloseSettles, "F48"),
    (Bug::CrashSettles, "F49"),
    (Bug::KeepsTasks, "F50"),
    (Bug::NamesAreShort, "F51"),
    (Bug::DeadLetterPretends, "G52"),
    (Bug::VerifyIsQuiet, "G54"),
    (Bug::UrgentComesLast, "H56"),
    (Bug::LosesReplies, "H57"),
    (Bug::LosesWhatWasCarried, "H58"),
    (Bug::ForgetsTraces, "H60"),
    (Bug::AttemptStaysOne, "H61"),
];

/// Each on a thread of its own, so that the sum of their waits is not what this test takes.
#[test]
fn every_planted_bug_is_caught_by_the_case_that_is_meant_for_it() {
    let hunt = |(bug, id): (Bug, &'static str)| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let cases: Vec<_> = CASES.iter().filter(|case| case.id == id).copied().collect();
        assert_eq!(cases.len(), 1, "{id}");
        let rows =
            runtime.unwrap().block_on(run(&mut Memory::new(Some(bug)), &cases, Size::Quick, |_, _| ()));
        (bug, rows.into_iter().next().unwrap())
    };
    let mut missed = Vec::new();
    for part in BUGS.chunks(17) {
        let rows: Vec<_> = std::thread::scope(|scope| {
            let hunts: Vec<_> = part.iter().map(|bug| scope.spawn(|| hunt(*bug))).collect();
            hunts.into_iter().map(|hunt| hunt.join().unwrap()).collect()
        });
        for (bug, row) in rows {
            println!("{bug:?}: {} {:?} {}", row.id, row.outcome, row.detail);
            if row.outcome != Outcome::Failed {
                missed.push(format!("{bug:?}: {row:?}"));
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// Every case has a bug that it catches: one that cannot fail shows nothing.
#[test]
fn every_case_has_a_bug() {
    let without: Vec<_> =
        CASES.iter().map(|case| case.id).filter(|id| !BUGS.iter().any(|(_, known)| known == id)).collect();
    assert!(without.is_empty(), "{without:?}");
}

/// A broker with a bug.
#[derive(Debug)]
pub(crate) struct Planted {
    bug: Bug,
    inner: MemoryBroker,
    capabilities: &'static Capabilities,
    shared: Arc<SharedState>,
}

/// What survives a producer or a consumer.
#[derive(Debug, Default)]
struct SharedState {
    number: AtomicU64,
    late: Mutex<Scope>,
    settled: Mutex<VecDeque<Delivery>>,
}

impl Planted {
    pub(crate) fn new(bug: Bug, inner: MemoryBroker) -> Self {
        let mut capabilities = *inner.capabilities();
        if bug == Bug::ForgetsOnKill {
            // It says that it loses nothing.
            capabilities.loss = &[];
        }
        Self { bug, inner, capabilities: Box::leak(Box::new(capabilities)), shared: Arc::default() }
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
        let channel = self.channel(channel);
        if self.bug == Bug::MakesMissingChannels {
            self.inner.apply(&Topology::of(&channel), Apply::Create).await?;
        }
        Ok(Box::new(PlantedProducer {
            bug: self.bug,
            inner: Arc::new(tokio::sync::Mutex::new(self.inner.producer(&channel).await?)),
            shared: Arc::clone(&self.shared),
            seen: HashSet::new(),
        }))
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Consumer>> {
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
        let kept = Arc::new(Kept { shared: Arc::clone(&self.shared), ..Kept::default() });
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
            inner: Some(inner),
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

struct PlantedProducer {
    bug: Bug,
    inner: Arc<tokio::sync::Mutex<Box<dyn Producer>>>,
    shared: Arc<SharedState>,
    seen: HashSet<Arc<str>>,
}

#[async_trait]
impl Producer for PlantedProducer {
    async fn publish(&mut self, batch: &[Message]) -> Vec<Sent> {
        match self.bug {
            Bug::LosesConfirmed | Bug::LosesReplies | Bug::LosesWhatWasCarried => {
                // Of two hundred messages one is confirmed and not stored; of replies, or of what came over a bridge, all.
                let is_lost = |message: &&Message| match self.bug {
                    Bug::LosesReplies => message.headers.get(tidegate_runtime::CALL).is_some(),
                    Bug::LosesWhatWasCarried => message.headers.get(tidegate_runtime::VIA).is_some(),
                    _ => self.shared.number.fetch_add(1, Ordering::Relaxed) % 200 == 199,
                };
                let lost: HashSet<_> = batch.iter().filter(is_lost).map(|m| Arc::clone(&m.id)).collect();
                let rest: Vec<_> = batch.iter().filter(|m| !lost.contains(&m.id)).cloned().collect();
                let mut sent = self.inner.lock().await.publish(&rest).await.into_iter();
                let stored = || Sent::Stored { position: Some(Position::from_u64(0)), duplicate: false };
                let answer = |m: &Message| if lost.contains(&m.id) { stored() } else { sent.next().unwrap() };
                return batch.iter().map(answer).collect();
            }
            Bug::StoresAfterClose => {
                let (inner, batch) = (Arc::clone(&self.inner), batch.to_vec());
                let (tell, told) = tokio::sync::oneshot::channel();
                self.shared.late.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
                    sleep(Duration::from_millis(400)).await;
                    let _ = tell.send(inner.lock().await.publish(&batch).await);
                    Ok(())
                });
                return told.await.unwrap();
            }
            _ => {}
        }
        let is_again = batch.iter().any(|message| self.seen.contains(&message.id));
        self.seen.extend(batch.iter().map(|message| Arc::clone(&message.id)));
        let mut inner = self.inner.lock().await;
        if self.bug == Bug::RetriesBackwards && is_again {
            let backwards: Vec<_> = batch.iter().rev().cloned().collect();
            let mut sent = inner.publish(&backwards).await;
            sent.reverse();
            return sent;
        }
        let mut batch = std::borrow::Cow::Borrowed(batch);
        if self.bug == Bug::CopiesAreDuplicates {
            let forget = |message: &mut Message| message.headers.remove(tidegate_core::message::COPY);
            batch.to_mut().iter_mut().for_each(forget);
        }
        if self.bug == Bug::ForgetsTraces {
            batch.to_mut().iter_mut().for_each(|message| message.traceparent = None);
        }
        if self.bug == Bug::CutsDeadLetters {
            let is_dead = |m: &&mut Message| m.headers.get(tidegate_runtime::dead_letter::REASON).is_some();
            batch.to_mut().iter_mut().filter(is_dead).for_each(|m| m.data.truncate(3));
        }
        let mut sent = inner.publish(&batch).await;
        let refused = sent.iter().position(|sent| matches!(sent, Sent::Refused(_)));
        match (self.bug, refused) {
            (Bug::AnswersBackwards, _) => sent.reverse(),
            (Bug::BlamesTheNeighbour, Some(_)) => sent.rotate_right(1),
            (Bug::TooLargeTakesNeighbours, Some(at)) => {
                sent.truncate(at);
                let refused = || Sent::Refused(tidegate_core::error::code::BODY_TOO_LARGE.into_error());
                sent.resize_with(batch.len(), refused);
            }
            (Bug::StoresForNobody, _) => {
                for sent in &mut sent {
                    let code = sent.error().map(tidegate_core::Error::code);
                    if code == Some(tidegate_core::error::code::SUBSCRIPTION_MISSING) {
                        *sent = Sent::Stored { position: Some(Position::from_u64(0)), duplicate: false };
                    }
                }
            }
            (Bug::UnknownSaysRefused, _) => {
                for sent in &mut sent {
                    if let Sent::Unknown(error) = sent {
                        let error = tidegate_core::Error::new(error.code(), error.message().to_owned());
                        *sent = Sent::Refused(error);
                    }
                }
            }
            _ => {}
        }
        sent
    }

    async fn close(self: Box<Self>, _: Duration) -> Result<()> {
        Ok(())
    }
}

trait IntoError {
    fn into_error(self) -> tidegate_core::Error;
}

impl IntoError for tidegate_core::error::Code {
    fn into_error(self) -> tidegate_core::Error {
        tidegate_core::Error::new(self, "planted")
    }
}

/// What a consumer and its settlers share.
#[derive(Default)]
struct Kept {
    shared: Arc<SharedState>,
    /// In hand, as far as it matters to a bug.
    in_hand: Mutex<Vec<Delivery>>,
    /// What comes later, from here and not from the broker.
    later: Mutex<Vec<(Instant, Delivery)>>,
    /// Nothing comes before this.
    blocked: Mutex<Option<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct PlantedConsumer {
    bug: Bug,
    broker: MemoryBroker,
    subscription: Subscription,
    inner: Option<Box<dyn Consumer>>,
    settle: Arc<dyn Settle>,
    kept: Arc<Kept>,
    /// A batch that is given one call later.
    behind: Vec<Delivery>,
    /// What comes next was in hand when the connection was lost.
    drops_next: bool,
    is_closed: bool,
}

#[async_trait]
impl Consumer for PlantedConsumer {
    async fn receive(&mut self, max: usize, wait: Duration, out: &mut Vec<Delivery>) -> Result<Signal> {
        let inner = self.inner.as_mut().unwrap();
        let blocked = *lock(&self.kept.blocked);
        if let Some(until) = blocked.filter(|until| *until > Instant::now()) {
            sleep(wait.min(until - Instant::now())).await;
            return Ok(Signal::Messages);
        }
        {
            let mut later = lock(&self.kept.later);
            let due = later.iter().position(|(at, _)| *at <= Instant::now());
            if let Some(at) = due {
                out.push(later.remove(at).1);
                return Ok(Signal::Messages);
            }
        }
        if self.bug == Bug::RedeliversSettled
            && let Some(delivery) = lock(&self.kept.shared.settled).pop_front()
        {
            out.push(delivery);
            return Ok(Signal::Messages);
        }
        let wait =
            if self.bug == Bug::RetryGoesToTheBack { wait.min(Duration::from_millis(5)) } else { wait };
        let mut came = Vec::new();
        let signal = inner.receive(max, wait, &mut came).await?;
        match self.bug {
            Bug::UrgentComesLast
                if !came.is_empty() && self.subscription.channel.as_str().ends_with(".high") =>
            {
                *lock(&self.kept.blocked) = Some(Instant::now() + Duration::from_secs(2));
            }
            Bug::CancelLoses if !came.is_empty() => sleep(Duration::from_millis(1)).await,
            Bug::ShufflesBatches => came.reverse(),
            Bug::AttemptStaysOne => came.iter_mut().for_each(|d| d.attempt = Attempt::Exact(1)),
            Bug::DropsEmptyHeaders => came.iter_mut().for_each(|d| {
                let mut headers = Headers::default();
                for (name, value) in d.message.headers.iter().filter(|(_, value)| !value.is_empty()) {
                    headers.set(name, value).unwrap();
                }
                d.message.headers = headers;
            }),
            Bug::OtherLanes => came.iter_mut().for_each(|d| d.token.lane = Lane(d.token.lane.0 ^ 1)),
            Bug::CrashSettles | Bug::CloseSettles | Bug::RedeliversSettled | Bug::RetryGoesToTheBack => {
                lock(&self.kept.in_hand).extend(came.iter().cloned());
            }
            // It reads one batch ahead, and does not look whether the lane is still its own.
            Bug::DeliversWhatItLost => std::mem::swap(&mut came, &mut self.behind),
            Bug::ReconnectDropsInHand => {
                self.drops_next |= matches!(signal, Signal::Reconnected);
                if self.drops_next && !came.is_empty() {
                    self.drops_next = false;
                    let acks: Vec<_> = came.drain(..).map(|d| (d.token, Settlement::Ack)).collect();
                    self.settle.settle(&acks).await;
                }
            }
            _ => {}
        }
        out.extend(came);
        Ok(signal)
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::new(PlantedSettle {
            bug: self.bug,
            inner: Arc::clone(&self.settle),
            kept: Arc::clone(&self.kept),
        })
    }

    async fn close(mut self: Box<Self>, deadline: Duration) -> Result<Leftover> {
        self.is_closed = true;
        if self.bug == Bug::CloseSettles {
            let acks: Vec<_> = lock(&self.kept.in_hand).iter().map(|d| (d.token, Settlement::Ack)).collect();
            self.settle.settle(&acks).await;
        }
        let leftover = self.inner.take().unwrap().close(deadline).await?;
        if self.bug == Bug::ForgetsAbsentees {
            self.broker.unregister(&self.subscription).await?;
        }
        Ok(leftover)
    }
}

impl Drop for PlantedConsumer {
    fn drop(&mut self) {
        if self.bug == Bug::CrashSettles && !self.is_closed {
            let acks: Vec<_> = lock(&self.kept.in_hand).iter().map(|d| (d.token, Settlement::Ack)).collect();
            // The broker in memory answers at once.
            let _ = futures::FutureExt::now_or_never(self.settle.settle(&acks));
        }
    }
}

struct PlantedSettle {
    bug: Bug,
    inner: Arc<dyn Settle>,
    kept: Arc<Kept>,
}

impl PlantedSettle {
    fn delivery(&self, token: Token) -> Option<Delivery> {
        lock(&self.kept.in_hand).iter().find(|delivery| delivery.token == token).cloned()
    }

    fn asked(&self, token: Token, settlement: &Settlement) -> (Token, Settlement) {
        let mut token = token;
        let settlement = match (self.bug, settlement) {
            (Bug::RetryComesLate, Settlement::Retry { after }) => {
                Settlement::Retry { after: *after + Duration::from_secs(2) }
            }
            (Bug::RetryComesEarly, Settlement::Retry { after }) => Settlement::Retry { after: *after / 2 },
            (Bug::ReleaseCounts, Settlement::Release) => Settlement::Retry { after: Duration::ZERO },
            (Bug::DeadLetterPretends, Settlement::DeadLetter { .. }) => Settlement::Ack,
            (Bug::RetryGoesToTheBack, Settlement::Retry { after }) => {
                if let Some(delivery) = self.delivery(token) {
                    lock(&self.kept.later).push((Instant::now() + *after, delivery));
                }
                Settlement::Ack
            }
            (Bug::RetryBlocksAll, Settlement::Retry { after }) => {
                *lock(&self.kept.blocked) = Some(Instant::now() + *after);
                settlement.clone()
            }
            _ => settlement.clone(),
        };
        if self.bug == Bug::OtherLanes {
            token.lane = Lane(token.lane.0 ^ 1);
        }
        (token, settlement)
    }
}

#[async_trait]
impl Settle for PlantedSettle {
    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Settled> {
        let asked: Vec<_> = batch.iter().map(|(token, settlement)| self.asked(*token, settlement)).collect();
        let mut settled = self.inner.settle(&asked).await;
        for ((token, settlement), settled) in batch.iter().zip(&mut settled) {
            match self.bug {
                Bug::OldEpochSettles if settled.is_lost() => *settled = Settled::Done,
                Bug::LostSaysUnknown if settled.is_lost() => {
                    *settled = Settled::Unknown(tidegate_core::error::code::TIMED_OUT.into_error());
                }
                // What comes from here can be settled as well.
                Bug::RetryGoesToTheBack if settled.is_lost() => *settled = Settled::Done,
                Bug::RedeliversSettled if *settlement == Settlement::Ack && settled.is_done() => {
                    let mut again = lock(&self.kept.shared.settled);
                    if again.is_empty() {
                        again.extend(self.delivery(*token));
                    }
                }
                _ => {}
            }
        }
        settled
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Settled> {
        if self.bug == Bug::ExtendPretends {
            return tokens.iter().map(|_| Settled::Done).collect();
        }
        self.inner.extend(tokens, by).await
    }
}
