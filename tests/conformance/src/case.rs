//! Cases, how they are run, and what comes of them.

use std::sync::Arc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use tidegate_core::port::{Broker, Consumer, Delivery, Producer, Sent, Settlement, Signal, Token};
use tidegate_core::{
    Apply, Capabilities, Channel, Error, Message, Result, Subscription, SystemIds, Topology,
};
use tokio::time::Instant;

use crate::fixture::{Fixture, Hook};
use crate::oracle::Oracle;
use crate::proxy::{Network, Traffic};

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Size {
    /// Small counts, for every commit.
    Quick,
    /// The counts that the cases are meant to have; some minutes.
    Full,
    /// Ten times those.
    Soak,
}

impl Size {
    /// A count that is this in quick, and twenty times as much in full.
    pub fn count(self, quick: usize) -> usize {
        match self {
            Size::Quick => quick,
            Size::Full => quick * 20,
            Size::Soak => quick * 200,
        }
    }

    /// How long one case may take.
    fn patience(self) -> Duration {
        Duration::from_secs(match self {
            // A server that is killed and starts again on a busy machine takes its time.
            Size::Quick => 120,
            Size::Full => 600,
            Size::Soak => 7_200,
        })
    }
}

/// One rule, checked.
#[derive(Clone, Copy)]
pub struct Case {
    /// What the pages of the traits call it.
    pub id: &'static str,
    /// What has to hold.
    pub rule: &'static str,
    /// The capabilities without which it cannot run; then asking for them has to be refused.
    pub requires: &'static [&'static str],
    /// Runs it on a broker that was just started.
    pub(crate) run: for<'a> fn(&'a mut Context<'_>) -> LocalBoxFuture<'a, Check>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.id, self.rule)
    }
}

/// What came of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The rule holds.
    Passed,
    /// The adapter declares that it cannot, and refuses.
    RefusedAsDeclared,
    /// It speaks of something that the adapter does not have, and nobody can ask for.
    NotApplicable,
    /// The rule does not hold.
    Failed,
    /// Nobody knows.
    NotRun,
}

/// A line of the report.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Row {
    /// The case.
    pub id: &'static str,
    /// What has to hold.
    pub rule: &'static str,
    /// The adapter.
    pub adapter: &'static str,
    /// What came of it.
    pub outcome: Outcome,
    /// What was seen, or why it did not run.
    pub detail: String,
}

/// Why a case ended before its end.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(String),
    NotRun(String),
    Declared(String),
    NotApplicable(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(format!("{error:?}"))
    }
}

pub(crate) type Check<T = ()> = Result<T, Stop>;

/// Fails the case unless this is true.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::case::Stop::Failed(format!($($text)+)));
        }
    };
}
pub(crate) use ensure;

/// What a case works with.
pub(crate) struct Context<'f> {
    pub(crate) fixture: &'f mut dyn Fixture,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) size: Size,
    pub(crate) oracle: Arc<Oracle>,
    /// What could not be shown although the case passed.
    pub(crate) notes: Vec<String>,
}

/// Runs cases one after the other, each on a broker of its own, and tells of each row as it is there.
pub async fn run(
    fixture: &mut dyn Fixture,
    cases: &[Case],
    size: Size,
    mut tell: impl FnMut(&Row, Duration),
) -> Vec<Row> {
    let mut rows = Vec::new();
    for case in cases {
        let begin = Instant::now();
        let (outcome, detail) = match one(fixture, case, size).await {
            Ok(detail) => (Outcome::Passed, detail),
            Err(Stop::Failed(detail)) => (Outcome::Failed, detail),
            Err(Stop::NotRun(detail)) => (Outcome::NotRun, detail),
            Err(Stop::Declared(detail)) => (Outcome::RefusedAsDeclared, detail),
            Err(Stop::NotApplicable(detail)) => (Outcome::NotApplicable, detail),
        };
        let row = Row { id: case.id, rule: case.rule, adapter: fixture.adapter(), outcome, detail };
        tell(&row, begin.elapsed());
        rows.push(row);
    }
    rows
}

async fn one(fixture: &mut dyn Fixture, case: &Case, size: Size) -> Check<String> {
    let started = fixture.start().await;
    let result = match started {
        Ok(broker) => {
            let oracle = Oracle::default();
            let knows_again = broker.capabilities().dedupe.is_there();
            let oracle = Arc::new(if knows_again { oracle } else { oracle.of_repeats() });
            let mut context = Context { fixture: &mut *fixture, broker, size, oracle, notes: Vec::new() };
            let work = context.run(case);
            match tokio::time::timeout(size.patience(), work).await {
                Ok(result) => result.map(|()| context.notes.join("; ")),
                Err(_) => Err(Stop::Failed(format!("did not end within {:?}", size.patience()))),
            }
        }
        Err(error) => Err(Stop::NotRun(format!("the broker could not be started: {error:?}"))),
    };
    if let Ok(network) = fixture.network() {
        network.set(Traffic::Open);
    }
    match (fixture.clean_up().await, result) {
        (Err(error), Ok(_)) => Err(Stop::Failed(format!("could not be cleaned up: {error:?}"))),
        (_, result) => result,
    }
}

impl Context<'_> {
    async fn run(&mut self, case: &Case) -> Check {
        for name in case.requires {
            let Some(how) = self.capabilities().row(name) else {
                return Err(Stop::Failed(format!("there is no capability {name}")));
            };
            if !how.is_there() {
                crate::broker::refusal::check(self, name).await?;
                return Err(Stop::Declared(format!("{name}: {how}")));
            }
        }
        (case.run)(self).await
    }

    pub(crate) fn capabilities(&self) -> &'static Capabilities {
        self.broker.capabilities()
    }

    /// A channel that is there, and its subscriptions.
    pub(crate) async fn declare(&self, channel: &Channel, names: &[&str]) -> Check<Vec<Subscription>> {
        let mut topology = Topology::of(channel);
        for name in names {
            topology = topology.and(&Subscription::new(channel, *name)?);
        }
        self.broker.apply(&topology, Apply::Create).await?;
        Ok(topology.subscriptions)
    }

    /// Reports what could not be shown.
    pub(crate) fn needs(&mut self, hook: Hook) -> bool {
        if let Hook::Cannot(why) = hook {
            self.notes.push(format!("not shown: {why}"));
        }
        hook == Hook::Done
    }

    /// The network before the server. It is mended when the case ends.
    pub(crate) fn network(&self) -> Check<Arc<dyn Network>> {
        self.fixture.network().map_err(|why| Stop::NotApplicable(why.to_owned()))
    }

    pub(crate) async fn kept(&mut self, channel: &Channel) -> Check<Option<u64>> {
        Ok(self.fixture.kept(channel).await?)
    }
}

/// How long a message may take to arrive on a loaded machine.
pub(crate) const ARRIVAL: Duration = Duration::from_secs(15);
/// How long nothing has to come for us to believe that nothing will.
pub(crate) const QUIET: Duration = Duration::from_millis(250);

/// A message about a key; `version` makes it one of a kind.
pub(crate) fn message(key: &str, version: usize) -> Message {
    let message = Message::new(&SystemIds, "conformance", "tested").with_subject(key);
    let message = message.with_data("text/plain", format!("{key}/{version}"));
    message.with_header("version", version.to_string()).unwrap_or_else(|error| unreachable!("{error}"))
}

/// Messages about so many keys in turn.
pub(crate) fn messages(keys: usize, count: usize) -> Vec<Message> {
    (0..count).map(|at| message(&format!("key-{}", at % keys), at / keys)).collect()
}

/// Publishes everything and fails unless it is stored.
pub(crate) async fn publish(
    producer: &mut dyn Producer,
    oracle: &Oracle,
    all: &[Message],
) -> Check<Vec<Sent>> {
    let mut answers = Vec::with_capacity(all.len());
    for batch in all.chunks(200) {
        oracle.announce(batch);
        let sent = producer.publish(batch).await;
        oracle.answered(batch, &sent)?;
        for sent in &sent {
            ensure!(sent.is_stored(), "a message was not stored: {sent:?}");
        }
        answers.extend(sent);
    }
    Ok(answers)
}

/// Publishes everything, again if it is refused for now or its answer is lost, until it is stored.
pub(crate) async fn publish_until_stored(
    producer: &mut dyn Producer,
    oracle: &Oracle,
    all: &[Message],
) -> Check {
    let until = Instant::now() + ARRIVAL;
    for batch in all.chunks(200) {
        let mut open = batch.to_vec();
        while !open.is_empty() {
            oracle.announce(&open);
            let sent = producer.publish(&open).await;
            oracle.answered(&open, &sent)?;
            let first = sent.iter().position(|sent| !sent.is_stored()).unwrap_or(open.len());
            ensure!(first == open.len() || Instant::now() < until, "it cannot be stored: {:?}", sent[first]);
            open.drain(..first);
        }
    }
    Ok(())
}

/// Receives until so many are there, or nothing has come for a long time.
pub(crate) async fn take(consumer: &mut dyn Consumer, count: usize, most: Duration) -> Check<Vec<Delivery>> {
    let (mut out, until) = (Vec::new(), Instant::now() + most);
    while out.len() < count {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let max = count - out.len();
        match consumer.receive(max, left.min(Duration::from_millis(500)), &mut out).await? {
            Signal::Cancelled(error) => return Err(error.into()),
            Signal::Drained => break,
            Signal::Messages
            | Signal::LanesGained(_)
            | Signal::LanesRevoked { .. }
            | Signal::LanesLost(_)
            | Signal::Reconnected => {}
        }
    }
    ensure!(out.len() <= count, "{} came where {count} were asked for", out.len());
    Ok(out)
}

/// Receives so many and no more.
pub(crate) async fn take_exactly(consumer: &mut dyn Consumer, count: usize) -> Check<Vec<Delivery>> {
    let out = take(consumer, count, ARRIVAL).await?;
    ensure!(out.len() == count, "{} of {count} messages came", out.len());
    let more = take(consumer, 1, QUIET).await?;
    ensure!(more.is_empty(), "{} of {count} messages came, and then {:?}", out.len(), more[0].message);
    Ok(out)
}

/// Acknowledges deliveries and fails unless it is done.
pub(crate) async fn ack(consumer: &dyn Consumer, deliveries: &[Delivery]) -> Check {
    settle(consumer, deliveries, &Settlement::Ack).await
}

pub(crate) async fn settle(consumer: &dyn Consumer, deliveries: &[Delivery], how: &Settlement) -> Check {
    let batch: Vec<(Token, Settlement)> = deliveries.iter().map(|d| (d.token, how.clone())).collect();
    let settled = consumer.settler().settle(&batch).await;
    ensure!(settled.len() == batch.len(), "{} answers to {} settlements", settled.len(), batch.len());
    for settled in settled {
        ensure!(settled.is_done(), "{how:?} ended as {settled:?}");
    }
    Ok(())
}

/// Lets a call run until it has been looked at so often, and drops it then: a caller that goes away at any point, not
/// at those that a timer happens to meet.
pub(crate) async fn dropped_after<T>(polls: u32, call: impl Future<Output = T>) -> Option<T> {
    let mut left = polls;
    let out_of_patience = std::future::poll_fn(|context| {
        if left == 0 {
            return std::task::Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    });
    tokio::select! {
        biased;
        answer = call => Some(answer),
        () = out_of_patience => None,
    }
}
