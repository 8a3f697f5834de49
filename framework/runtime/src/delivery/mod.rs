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
//! settled together. What is exhausted is noted as parked first, then published as a dead letter, then settled.

mod counts;
mod dispatch;
mod meter;
mod parked;
mod queue;
mod settling;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Consumer, Delivery, Settlement, Signal, Token};
use tidegate_core::{Clock, Error, Lane, Result};
use tokio::sync::watch;

pub use counts::Counted;
pub(crate) use dispatch::{Dispatch, Next};
pub(crate) use meter::Meter;
pub(crate) use parked::Parked;

use crate::priority::Part;

use meter::InHand;
use queue::{Key, Queue};
use settling::Settling;

/// How many deliveries wait here at most.
const WAITING_MAX: usize = 256;
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
    /// Its part in the turns of several levels, if it is one of them.
    pub(crate) part: Option<Part>,
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
    /// What is parked of a lane, under this ownership, is known.
    Loaded(Lane, u64, Result<()>),
    /// These lanes are to go, and were kept for a while.
    Kept(Vec<Lane>),
}

impl<S: Send + Sync + 'static> Worker<S> {
    /// Works until it is stopped, or the subscription ends.
    pub(crate) async fn run(self) -> Result<()> {
        let Self { part, mut consumer, dispatch, clock, concurrency, interval, mut stop } = self;
        let in_hand = dispatch.meter.in_hand();
        let meter = Arc::clone(&dispatch.meter);
        let settling = Settling::new(consumer.settler(), Arc::clone(&clock), meter, Arc::clone(&in_hand));
        let mut work = Work {
            part,
            queue: Queue::default(),
            running: FuturesUnordered::new(),
            at_work: HashSet::new(),
            alone: Alone::Nothing,
            epochs: HashMap::new(),
            in_hand,
            settling,
            dispatch,
            clock,
            concurrency,
            interval,
            start_at: Duration::ZERO,
            failed: None,
        };
        let mut batch = Vec::new();
        // When to receive again behind an error.
        let mut receive_at = Duration::ZERO;
        let result = loop {
            let pause = work.start();
            work.settling.begin();
            if let Some(error) = work.failed.take() {
                break Err(error);
            }
            if stop.borrow().is_some() {
                break Ok(());
            }
            let now = work.clock.elapsed();
            let is_deaf = now < receive_at;
            let pause = if is_deaf { Some(pause.unwrap_or(WAIT).min(receive_at - now)) } else { pause };
            // With no room signals still come: a lane that is to go, or went.
            let room = match work.alone {
                Alone::Nothing => WAITING_MAX.saturating_sub(work.queue.len()),
                Alone::Waits(_) | Alone::Runs(_) => 0,
            };
            tokio::select! {
                biased;
                Some(event) = work.running.next(), if !work.running.is_empty() => work.end(event),
                () = work.settling.next(), if work.settling.is_busy() => {}
                () = work.clock.sleep(pause.unwrap_or(WAIT)), if pause.is_some() => {}
                _ = stop.changed() => {}
                () = turn(work.part.as_ref()), if work.part.is_some() => {}
                signal = consumer.receive(room, WAIT, &mut batch), if !is_deaf => {
                    let signal = match signal {
                        Ok(signal) => signal,
                        Err(error) if error.verdict() == Verdict::Never => break Err(error),
                        Err(error) => {
                            tracing::warn!(%error, subscription = %work.dispatch.place.subscription, "receiving failed, and is tried again");
                            receive_at = work.clock.elapsed() + PAUSE;
                            continue;
                        }
                    };
                    if !batch.is_empty() {
                        let span = work.dispatch.place.receiving(batch.len());
                        let now = work.clock.now();
                        span.in_scope(|| batch.drain(..).for_each(|delivery| work.take(delivery, now)));
                    }
                    match work.signal(signal) {
                        Ok(true) => {}
                        Ok(false) => break Ok(()),
                        Err(error) => break Err(error),
                    }
                }
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

/// A message that may have killed a process. It is tried with nothing else in hand, so that nothing else is taken for it.
enum Alone {
    Nothing,
    /// Until nothing else is in hand.
    Waits(Box<(Key, Delivery)>),
    Runs(Token),
}

/// Returns when it may be a level's turn.
async fn turn(part: Option<&Part>) {
    match part {
        Some(part) => part.changed().await,
        None => std::future::pending().await,
    }
}

struct Work<S> {
    part: Option<Part>,
    queue: Queue,
    running: FuturesUnordered<BoxFuture<'static, Event>>,
    /// The messages among these.
    at_work: HashSet<Token>,
    alone: Alone,
    /// Under which ownership what is parked of a lane is known, or looked for.
    epochs: HashMap<Lane, u64>,
    in_hand: Arc<InHand>,
    settling: Settling,
    dispatch: Arc<Dispatch<S>>,
    clock: Arc<dyn Clock>,
    concurrency: usize,
    interval: Duration,
    start_at: Duration,
    /// What ends the worker.
    failed: Option<Error>,
}

impl<S: Send + Sync + 'static> Work<S> {
    fn take(&mut self, delivery: Delivery, now: i64) {
        self.dispatch.meter.counts.received(&delivery, now);
        self.in_hand.take(&delivery, now);
        let Token { lane, epoch, .. } = delivery.token;
        if self.dispatch.parked.is_some() && self.epochs.insert(lane, epoch) != Some(epoch) {
            self.queue.close(lane);
            self.load(lane, epoch, Duration::ZERO);
        }
        if let Err(token) = self.queue.offer(delivery) {
            self.settling.add(token, Settlement::Release);
        }
    }

    /// Starts what may be started; how long to wait before more may be.
    fn start(&mut self) -> Option<Duration> {
        let has_others = !self.at_work.is_empty() || self.settling.is_busy() || self.settling.has_waiting();
        match std::mem::replace(&mut self.alone, Alone::Nothing) {
            Alone::Waits(waiting) if !has_others => {
                let (key, delivery) = *waiting;
                self.alone = Alone::Runs(delivery.token);
                self.begin(key, delivery);
            }
            alone => self.alone = alone,
        }
        let mut pause = None;
        let mut has_turn = true;
        while self.at_work.len() < self.concurrency && self.may_start() {
            pause = self.pause();
            has_turn = pause.is_none() && self.part.as_ref().is_none_or(Part::ask);
            if !has_turn {
                break;
            }
            let (key, delivery) = self.queue.next()?;
            self.started();
            if self.dispatch.is_suspect(&delivery) {
                let others = self.queue.forget_all();
                others.into_iter().for_each(|token| self.settling.add(token, Settlement::Release));
                self.alone = Alone::Waits(Box::new((key, delivery)));
                return self.start();
            }
            self.begin(key, delivery);
        }
        let wants = !has_turn || self.may_start();
        match &self.part {
            Some(part) if wants => part.want(),
            Some(part) => part.pass(),
            None => {}
        }
        pause
    }

    fn may_start(&mut self) -> bool {
        matches!(self.alone, Alone::Nothing) && self.queue.has_ready()
    }

    /// How long to wait before the next handler may be started.
    fn pause(&self) -> Option<Duration> {
        if self.interval.is_zero() {
            return None;
        }
        let now = self.clock.elapsed();
        match &self.part {
            Some(part) => part.pause(now),
            None => self.start_at.checked_sub(now).filter(|pause| !pause.is_zero()),
        }
    }

    fn started(&mut self) {
        if self.interval.is_zero() {
            return;
        }
        let now = self.clock.elapsed();
        match &self.part {
            Some(part) => part.started(now, self.interval),
            None => self.start_at = self.start_at.max(now.saturating_sub(self.interval)) + self.interval,
        }
    }

    fn begin(&mut self, key: Key, delivery: Delivery) {
        let mut ending = self.dispatch.start(&delivery);
        // Most handlers that do not wait for anything end at once.
        match ending.as_mut().now_or_never() {
            Some(next) => self.ended(key, delivery, next),
            None => self.run(key, delivery, ending),
        }
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
            // Somebody had the lane in between, and it is looked for anew.
            Event::Loaded(lane, epoch, _) if self.epochs.get(&lane) != Some(&epoch) => {}
            Event::Loaded(lane, _, Ok(())) => self.queue.open(lane),
            Event::Loaded(lane, _, Err(error)) if error.code() == code::LEASE_LOST => {
                // What is in hand of it comes again to its owner.
                self.lose(&[lane]);
                self.epochs.remove(&lane);
            }
            Event::Loaded(.., Err(error)) if error.verdict() == Verdict::Never => self.failed = Some(error),
            Event::Loaded(lane, epoch, Err(error)) => {
                tracing::warn!(%error, lane = lane.0, "what is parked of a lane cannot be read, and is tried again");
                self.load(lane, epoch, PAUSE);
            }
        }
    }

    fn ended(&mut self, key: Key, delivery: Delivery, next: Next) {
        if matches!(self.alone, Alone::Runs(token) if token == delivery.token) {
            self.alone = Alone::Nothing;
        }
        if let (Next::Ack | Next::Retry(_), Some(part)) = (&next, &self.part) {
            part.end();
        }
        match next {
            Next::Ack => {
                self.queue.done(&key);
                self.settling.add(delivery.token, Settlement::Ack);
            }
            Next::Retry(after) => {
                self.dispatch.meter.retried(&delivery.message.kind);
                let behind = self.queue.again(&key, &delivery);
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
            // What is parked is looked for with the first message of a lane, which says under which ownership it came.
            Signal::Messages | Signal::LanesGained(_) => {}
            Signal::LanesRevoked { lanes, .. } => {
                if let Some(parked) = &self.dispatch.parked {
                    parked.leave(&lanes);
                }
                let mut waiting = self.queue.forget(&lanes);
                waiting.extend(self.forget_alone(|lane| lanes.contains(&lane)));
                waiting.into_iter().for_each(|token| self.settling.add(token, Settlement::Release));
                self.keep(lanes);
            }
            Signal::LanesLost(lanes) => self.lose(&lanes),
            // All that was in hand comes again.
            Signal::Reconnected => {
                let mut lost = self.queue.forget_all();
                lost.extend(self.forget_alone(|_| true));
                self.lost(&lost);
            }
            Signal::Cancelled(error) => return Err(error),
            Signal::Drained => return Ok(false),
        }
        Ok(true)
    }

    /// These lanes are somebody else's.
    fn lose(&mut self, lanes: &[Lane]) {
        if let Some(parked) = &self.dispatch.parked {
            parked.leave(lanes);
        }
        let mut lost = self.queue.forget(lanes);
        lost.extend(self.forget_alone(|lane| lanes.contains(&lane)));
        self.lost(&lost);
    }

    /// These come again, to whoever has their lanes.
    fn lost(&self, tokens: &[Token]) {
        self.dispatch.meter.counts.lost(tokens.len() as u64);
        tokens.iter().for_each(|token| self.in_hand.settled(*token));
    }

    /// Forgets the message that waits to be tried alone, if its lane is one of these: it is not in the queue any more, and no handler has it.
    fn forget_alone(&mut self, of: impl Fn(Lane) -> bool) -> Option<Token> {
        match std::mem::replace(&mut self.alone, Alone::Nothing) {
            Alone::Waits(waiting) if of(waiting.1.token.lane) => {
                let (key, delivery) = *waiting;
                self.queue.done(&key);
                // It had a turn, and needs none.
                self.part.iter().for_each(Part::end);
                Some(delivery.token)
            }
            alone => {
                self.alone = alone;
                None
            }
        }
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

    fn load(&mut self, lane: Lane, epoch: u64, after: Duration) {
        let (dispatch, clock) = (Arc::clone(&self.dispatch), Arc::clone(&self.clock));
        let load = async move {
            if !after.is_zero() {
                clock.sleep(after).await;
            }
            let loaded = match &dispatch.parked {
                Some(parked) => parked.load(lane, epoch).await,
                None => Ok(()),
            };
            Event::Loaded(lane, epoch, loaded)
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
        // Other levels go on with what this one has.
        self.part = None;
        let mut waiting = self.queue.forget_all();
        waiting.extend(self.forget_alone(|_| true));
        waiting.into_iter().for_each(|token| self.settling.add(token, Settlement::Release));
        let clock = Arc::clone(&self.clock);
        let mut over = clock.sleep(deadline.saturating_sub(clock.elapsed()));
        loop {
            self.settling.begin();
            if self.at_work.is_empty() && !self.settling.is_busy() && !self.settling.has_waiting() {
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
        left.map(|left| self.dispatch.meter.counts.released(left.released as u64))
    }
}

#[cfg(test)]
mod tests;
