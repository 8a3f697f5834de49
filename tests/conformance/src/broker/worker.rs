//! Consumers that handle messages until all is done, and tell the oracle everything.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidegate_core::port::{Consumer, Delivery, Settlement, Signal, Token};
use tidegate_core::{Result, Scope};
use tokio::time::{Instant, sleep};

use crate::case::{Check, dropped_after, ensure};
use crate::oracle::Oracle;

/// How messages are handled.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// Of a hundred messages so many fail at each attempt.
    pub(crate) failing: u8,
    /// How long handling takes at most, now and then.
    pub(crate) slow: Duration,
    /// Whether it asks for more before it has settled what it has, and goes away while it waits for the answer.
    pub(crate) hasty: bool,
}

/// Workers of a case.
pub(crate) struct Crew {
    scope: Scope,
    oracle: Arc<Oracle>,
    stop: Arc<AtomicBool>,
    hired: u64,
}

/// One worker, to be sent home.
#[derive(Clone)]
pub(crate) struct Hand {
    stop: Arc<AtomicBool>,
    /// How many messages it has been given.
    pub(crate) given: Arc<AtomicU64>,
}

impl Hand {
    pub(crate) fn send_home(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

impl Crew {
    pub(crate) fn new(oracle: &Arc<Oracle>) -> Self {
        Self { scope: Scope::new(), oracle: Arc::clone(oracle), stop: Arc::default(), hired: 0 }
    }

    /// Lets something else run beside the workers.
    pub(crate) fn beside(&mut self, task: impl Future<Output = Result<()>> + Send + 'static) {
        self.scope.spawn(task);
    }

    pub(crate) fn hire(&mut self, consumer: Box<dyn Consumer>, subscription: &str, manner: Manner) -> Hand {
        self.hired += 1;
        let hand = Hand { stop: Arc::default(), given: Arc::default() };
        let worker = Worker {
            member: self.hired,
            subscription: subscription.to_owned(),
            oracle: Arc::clone(&self.oracle),
            manner,
            random: fastrand::Rng::with_seed(self.hired),
            stops: [Arc::clone(&self.stop), Arc::clone(&hand.stop)],
            given: Arc::clone(&hand.given),
        };
        self.scope.spawn(worker.work(consumer));
        hand
    }

    /// Waits until the subscriptions have everything, or nothing more has come for so long; sends everybody home, and
    /// asks the oracle.
    pub(crate) async fn finish(self, subscriptions: &[&str], patience: Duration) -> Check {
        let missing = |oracle: &Oracle| subscriptions.iter().map(|name| oracle.missing(name)).sum::<usize>();
        let (mut left, mut until) = (missing(&self.oracle), Instant::now() + patience);
        while left > 0 && Instant::now() < until {
            sleep(Duration::from_millis(10)).await;
            let before = std::mem::replace(&mut left, missing(&self.oracle));
            if left != before {
                until = Instant::now() + patience;
            }
        }
        // What should not come may still do so.
        sleep(Duration::from_millis(100)).await;
        self.stop.store(true, Ordering::Release);
        self.scope.join().await?;
        let verdict = self.oracle.verdict(subscriptions);
        ensure!(verdict.is_none(), "{}", verdict.unwrap_or_default());
        Ok(())
    }
}

struct Worker {
    member: u64,
    subscription: String,
    oracle: Arc<Oracle>,
    manner: Manner,
    random: fastrand::Rng,
    stops: [Arc<AtomicBool>; 2],
    given: Arc<AtomicU64>,
}

impl Worker {
    async fn work(mut self, mut consumer: Box<dyn Consumer>) -> Result<()> {
        let settler = consumer.settler();
        let mut batch = Vec::new();
        while !self.stops.iter().any(|stop| stop.load(Ordering::Acquire)) {
            let signal = consumer.receive(64, Duration::from_millis(50), &mut batch).await?;
            // A broker that was closed under us: somebody else goes on.
            if matches!(signal, Signal::Drained) {
                break;
            }
            if let Signal::Cancelled(error) = signal {
                return Err(error);
            }
            if self.manner.hasty && !batch.is_empty() {
                let polls = 1 << self.random.u32(0..14);
                let more = consumer.receive(64, Duration::from_millis(5), &mut batch);
                if let Some(answer) = dropped_after(polls, more).await {
                    answer?;
                }
            }
            self.given.fetch_add(batch.len() as u64, Ordering::Relaxed);
            for delivery in &batch {
                self.oracle.delivered(&self.subscription, self.member, delivery);
            }
            let decided = self.handle(&mut batch).await;
            for part in decided.chunks(16) {
                self.oracle.settling(&self.subscription, self.member, part);
                let answers = settler.settle(part).await;
                self.oracle.settled(&self.subscription, self.member, part, &answers);
            }
        }
        consumer.close(Duration::from_secs(5)).await?;
        self.oracle.gone(&self.subscription, self.member);
        Ok(())
    }

    /// Decides about each; what stands behind a failed message of its key is given back untried.
    async fn handle(&mut self, batch: &mut Vec<Delivery>) -> Vec<(Token, Settlement)> {
        let mut held = HashSet::new();
        let mut decided = Vec::with_capacity(batch.len());
        for delivery in batch.drain(..) {
            if !self.manner.slow.is_zero() && self.random.u8(..10) == 0 {
                sleep(self.manner.slow.mul_f64(self.random.f64())).await;
            }
            let key = delivery.message.subject.clone();
            let settlement = if key.is_some() && held.contains(&key) {
                Settlement::Release
            } else if self.random.u8(..100) < self.manner.failing {
                held.insert(key);
                Settlement::Retry { after: Duration::from_millis(self.random.u64(1..30)) }
            } else {
                Settlement::Ack
            };
            decided.push((delivery.token, settlement));
        }
        decided
    }
}
