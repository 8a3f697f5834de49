//! Handles the deliveries of one consumer.
//!
//! ```text
//! Consumer::receive ──▶ Queue ──▶ what is it? ──▶ handler ──▶ Settle
//!                     (subjects)      │              │ failed
//!                                     ▼              ▼
//!                               dead letters ◀── Policy ──▶ Settle: later
//! ```
//!
//! All of it is one task: handlers of several subjects run in it at once, and what several of them settle meanwhile is
//! settled together. What is exhausted is published as a dead letter first, then noted as parked, then settled.

mod counts;
mod dispatch;
mod parked;
mod queue;
mod settling;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tidegate_core::error::Verdict;
use tidegate_core::port::{Consumer, Delivery, Settlement, Signal, Token};
use tidegate_core::{Clock, Lane, Result};
use tokio::sync::watch;

pub use counts::{Counted, Counts};
pub(crate) use dispatch::{Dispatch, Next};
pub(crate) use parked::Parked;

use queue::{Key, Queue};
use settling::Settling;

/// How many deliveries are taken at once.
const BATCH: usize = 256;
/// How long a consumer waits at most before it looks whether the service is to end.
const WAIT: Duration = Duration::from_secs(1);
/// How long handlers may run on when the broker is closed here.
const DRAIN: Duration = Duration::from_secs(20);
/// The pause before something that the broker or the store refused for now is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a lane that somebody else wants is kept for handlers that run, each time.
const EXTEND: Duration = Duration::from_secs(10);

/// One consumer with what handles its deliveries.
pub(crate) struct Worker<S> {
    pub(crate) consumer: Box<dyn Consumer>,
    pub(crate) dispatch: Arc<Dispatch<S>>,
    pub(crate) clock: Arc<dyn Clock>,
    /// How many handlers run at once.
    pub(crate) concurrency: usize,
    /// The least time between two starts of handlers.
    pub(crate) interval: Duration,
    /// Tells by when everything is to be at its end.
    pub(crate) stop: watch::Receiver<Option<Duration>>,
}

/// What ended beside the receiving.
#[allow(clippy::large_enum_variant, reason = "nearly all of them are the large one")]
enum Event {
    /// A message was dealt with: its end.
    Ended(Key, Delivery, Next),
    /// What is parked of a lane is known.
    Loaded(Lane, Result<()>),
    /// These lanes are to go, and were kept for a while.
    Kept(Vec<Lane>),
}

impl<S: Send + Sync + 'static> Worker<S> {
    /// Works until it is stopped, or the subscription ends.
    pub(crate) async fn run(self) -> Result<()> {
        let Self { mut consumer, dispatch, clock, concurrency, interval, mut stop } = self;
        let mut work = Work {
            queue: Queue::default(),
            running: FuturesUnordered::new(),
            at_work: HashSet::new(),
            settling: Settling::new(consumer.settler(), Arc::clone(&clock), Arc::clone(&dispatch.counts)),
            dispatch,
            clock,
            concurrency,
            interval,
            start_at: Duration::ZERO,
        };
        let mut batch = Vec::new();
        let result = loop {
            let pause = work.start();
            work.settling.begin();
            if stop.borrow().is_some() {
                break Ok(());
            }
            let has_room = work.queue.len() < BATCH;
            tokio::select! {
                biased;
                Some(event) = work.running.next(), if !work.running.is_empty() => work.end(event),
                () = work.settling.next(), if work.settling.is_busy() => {}
                () = work.clock.sleep(pause.unwrap_or(WAIT)), if pause.is_some() => {}
                signal = consumer.receive(BATCH, WAIT, &mut batch), if has_room => {
                    let signal = match signal {
                        Ok(signal) => signal,
                        Err(error) if error.verdict() == Verdict::Never => break Err(error),
                        Err(error) => {
                            tracing::warn!(%error, subscription = %work.dispatch.subscription, "receiving failed, and is tried again");
                            work.clock.sleep(PAUSE).await;
                            continue;
                        }
                    };
                    for delivery in batch.drain(..) {
                        work.take(delivery);
                    }
                    match work.signal(signal) {
                        Ok(true) => {}
                        Ok(false) => break Ok(()),
                        Err(error) => break Err(error),
                    }
                }
                _ = stop.changed() => {}
            }
        };
        let deadline = match (&result, *stop.borrow()) {
            (_, Some(deadline)) => deadline,
            (Ok(()), None) => work.clock.elapsed() + DRAIN,
            (Err(_), None) => Duration::ZERO,
        };
        work.finish(consumer, deadline, result).await
    }
}

struct Work<S> {
    queue: Queue,
    running: FuturesUnordered<BoxFuture<'static, Event>>,
    /// The messages among these.
    at_work: HashSet<Token>,
    settling: Settling,
    dispatch: Arc<Dispatch<S>>,
    clock: Arc<dyn Clock>,
    concurrency: usize,
    interval: Duration,
    start_at: Duration,
}

impl<S: Send + Sync + 'static> Work<S> {
    fn take(&mut self, delivery: Delivery) {
        self.dispatch.counts.received(&delivery, self.clock.now());
        if let Err(token) = self.queue.offer(delivery) {
            self.settling.add(token, Settlement::Release);
        }
    }

    /// Starts what may be started; how long to wait before more may be.
    fn start(&mut self) -> Option<Duration> {
        while self.at_work.len() < self.concurrency {
            if !self.interval.is_zero() && self.queue.len() > 0 {
                let now = self.clock.elapsed();
                if now < self.start_at {
                    return Some(self.start_at - now);
                }
                self.start_at = self.start_at.max(now.saturating_sub(self.interval)) + self.interval;
            }
            let (key, delivery) = self.queue.next()?;
            let mut ending = self.dispatch.start(&delivery);
            // Most handlers that do not wait for anything end at once.
            match ending.as_mut().now_or_never() {
                Some(next) => self.ended(key, delivery, next),
                None => self.run(key, delivery, ending),
            }
        }
        None
    }

    fn run(&mut self, key: Key, delivery: Delivery, ending: BoxFuture<'static, Next>) {
        self.at_work.insert(delivery.token);
        self.running.push(async move { Event::Ended(key, delivery, ending.await) }.boxed());
    }

    fn end(&mut self, event: Event) {
        match event {
            Event::Ended(key, delivery, next) => {
                self.at_work.remove(&delivery.token);
                self.ended(key, delivery, next);
            }
            Event::Kept(lanes) => self.keep(lanes),
            Event::Loaded(lane, Ok(())) => self.queue.open(lane),
            Event::Loaded(lane, Err(error)) => {
                tracing::warn!(%error, lane = lane.0, "what is parked of a lane cannot be read, and is tried again");
                self.load(lane, PAUSE);
            }
        }
    }

    fn ended(&mut self, key: Key, delivery: Delivery, next: Next) {
        match next {
            Next::Ack => {
                self.queue.done(&key);
                self.settling.add(delivery.token, Settlement::Ack);
            }
            Next::Retry(after) => {
                let behind = self.queue.again(&key, &delivery.message.id);
                self.settling.add(delivery.token, Settlement::Retry { after });
                behind.into_iter().for_each(|token| self.settling.add(token, Settlement::Release));
            }
            Next::Bury(reason, error) => {
                let ending = self.dispatch.bury(&delivery, reason, error);
                self.run(key, delivery, ending);
            }
        }
    }

    /// Whether it goes on.
    fn signal(&mut self, signal: Signal) -> Result<bool> {
        match signal {
            Signal::Messages => {}
            Signal::LanesGained(lanes) => {
                if self.dispatch.parked.is_some() {
                    for lane in lanes {
                        self.queue.close(lane);
                        self.load(lane, Duration::ZERO);
                    }
                }
            }
            Signal::LanesRevoked { lanes, .. } => {
                let waiting = self.queue.forget(&lanes);
                waiting.into_iter().for_each(|token| self.settling.add(token, Settlement::Release));
                self.keep(lanes);
            }
            Signal::LanesLost(lanes) => drop(self.queue.forget(&lanes)),
            // All that was in hand comes again.
            Signal::Reconnected => drop(self.queue.forget_all()),
            Signal::Cancelled(error) => return Err(error),
            Signal::Drained => return Ok(false),
        }
        Ok(true)
    }

    /// Keeps lanes that are to go, as long as handlers of their messages run.
    fn keep(&mut self, lanes: Vec<Lane>) {
        let tokens: Vec<Token> =
            self.at_work.iter().copied().filter(|token| lanes.contains(&token.lane)).collect();
        if !tokens.is_empty() {
            let kept = self.settling.extend(tokens, EXTEND);
            self.running.push(kept.map(|()| Event::Kept(lanes)).boxed());
        }
    }

    fn load(&mut self, lane: Lane, after: Duration) {
        let (dispatch, clock) = (Arc::clone(&self.dispatch), Arc::clone(&self.clock));
        let load = async move {
            if !after.is_zero() {
                clock.sleep(after).await;
            }
            let loaded = match &dispatch.parked {
                Some(parked) => parked.load(lane).await,
                None => Ok(()),
            };
            Event::Loaded(lane, loaded)
        };
        self.running.push(load.boxed());
    }

    /// Ends: what waits is given back, what runs may end until the deadline, and all of it is settled.
    async fn finish(
        mut self,
        consumer: Box<dyn Consumer>,
        deadline: Duration,
        result: Result<()>,
    ) -> Result<()> {
        let waiting: Vec<Token> = self.queue.forget_all();
        waiting.into_iter().for_each(|token| self.settling.add(token, Settlement::Release));
        let clock = Arc::clone(&self.clock);
        let mut over = clock.sleep(deadline.saturating_sub(clock.elapsed()));
        loop {
            self.settling.begin();
            if self.at_work.is_empty() && !self.settling.is_busy() {
                break;
            }
            tokio::select! {
                biased;
                Some(event) = self.running.next(), if !self.at_work.is_empty() => self.end(event),
                () = self.settling.next(), if self.settling.is_busy() => {}
                () = &mut over => break,
            }
        }
        drop(over);
        // Handlers that still run are dropped, and their messages are released.
        drop(self.running);
        let left = consumer.close(deadline.saturating_sub(clock.elapsed())).await;
        result?;
        left.map(|left| self.dispatch.counts.released(left.released as u64))
    }
}
