//! Decides what a delivery is, and what becomes of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, ready};
use tidegate_core::error::{Verdict, code};
use tidegate_core::message::UNDECODABLE;
use tidegate_core::port::Delivery;
use tidegate_core::{Clock, Error, Message};
use tracing::Instrument as _;

use super::parked::{Parked, Rank};
use super::{Meter, PAUSE};
use crate::claim::{self, Claimed};
use crate::dead_letter::{self, Burial, Copy, Reason};
use crate::policy::{Exhausted, Policy};
use crate::replier::Replier;
use crate::sender::Sender;
use crate::service::{Context, Ended, Erased, Failure, Handlers, Replies};
use crate::trace::{Place, Processing};

/// What a subscription's deliveries are handled with.
pub(crate) struct Dispatch<S> {
    pub(crate) place: Arc<Place>,
    pub(crate) handlers: Handlers<S>,
    pub(crate) state: S,
    pub(crate) policy: Policy,
    /// What is done with messages whose bodies are elsewhere.
    pub(crate) claims: Claimed,
    /// Where subjects with dead letters are noted, if they are to wait for them.
    pub(crate) parked: Option<Arc<Parked>>,
    /// Where dead letters go; nothing if a message is tried for ever.
    pub(crate) dead: Option<Sender>,
    pub(crate) replies: Replies,
    pub(crate) replier: Arc<Replier>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// What becomes of a delivery.
#[derive(Debug)]
pub(crate) enum Next {
    Ack,
    Retry(Duration),
    Bury(Reason, String),
}

impl<S: Send + Sync + 'static> Dispatch<S> {
    /// Whether a message may be one that kills those who handle it: it has been in hand more often than it may be tried. So
    /// may one that was in hand beside such a one, which is why it is tried once more, alone.
    pub(super) fn is_suspect(&self, delivery: &Delivery) -> bool {
        self.policy.exhausted != Exhausted::Block
            && delivery.attempt.number() == self.policy.attempts_max.saturating_add(1)
    }

    /// Starts what is to be done with a delivery.
    pub(super) fn start(self: &Arc<Self>, delivery: &Delivery) -> BoxFuture<'static, Next> {
        let message = &delivery.message;
        let copy = Copy::of(message, &self.place.channel, &self.place.subscription);
        if copy == Copy::Others {
            self.meter.counts.ignored();
            return ready(Next::Ack).boxed();
        }
        let is_copy = copy == Copy::Ours;
        if *message.kind == *dead_letter::RELEASE {
            self.meter.counts.ignored();
            return self.let_go(delivery);
        }
        let rank = match (&self.parked, &message.subject) {
            (Some(parked), Some(subject)) => parked.rank(delivery.token.lane, subject, message, is_copy),
            _ => Rank::Free,
        };
        let attempt = delivery.attempt.number();
        let bury = |reason, error: String| ready(Next::Bury(reason, error)).boxed();
        if let Rank::Dead(reason, error) = rank {
            return bury(reason, error);
        }
        if attempt > self.policy.attempts_max.saturating_add(1) && self.policy.exhausted != Exhausted::Block {
            let error = "whoever tried it last did not live to say how that ended";
            return bury(Reason::Exhausted, error.to_owned());
        }
        if *message.kind == *UNDECODABLE {
            return bury(Reason::Undecodable, message.headers.get("tg_error").unwrap_or_default().to_owned());
        }
        let Some(handler) = self.handlers.find(&message.kind) else {
            if !self.handlers.ignores_others() {
                return bury(Reason::Unhandled, format!("nothing handles the kind {}", message.kind));
            }
            self.meter.counts.ignored();
            return if rank == Rank::First { self.let_go(delivery) } else { ready(Next::Ack).boxed() };
        };
        let processing = Processing::of(delivery, &self.place);
        let Some(mut seen) = self.seen(delivery, is_copy) else {
            return self.run(handler, delivery, delivery, rank, processing);
        };
        if !self.is_elsewhere(&seen.message) {
            return self.run(handler, delivery, &seen, rank, processing);
        }
        let (this, handler, delivery) = (Arc::clone(self), Arc::clone(handler), delivery.clone());
        async move {
            let fetched =
                this.fetch(Arc::make_mut(&mut seen.message)).instrument(processing.span.clone()).await;
            match fetched {
                Ok(()) => this.run(&handler, &delivery, &seen, rank, processing).await,
                Err(error) => {
                    processing.span.record("error.type", error.code().name());
                    if error.code() == code::BODY_MISSING {
                        return Next::Bury(Reason::Unclaimed, error.to_string());
                    }
                    this.failed(&delivery.message, attempt, &Failure::from(error))
                }
            }
        }
        .boxed()
    }

    /// What a handler sees of a delivery, where that is something else.
    fn seen(&self, delivery: &Delivery, is_copy: bool) -> Option<Delivery> {
        if !is_copy && !self.is_elsewhere(&delivery.message) {
            return None;
        }
        let mut seen = delivery.clone();
        if is_copy {
            // What it is a copy of is for us alone: whoever passes the message on passes on the message.
            dead_letter::forget_copy(Arc::make_mut(&mut seen.message));
        }
        Some(seen)
    }

    /// Whether the body of a message has to be fetched.
    fn is_elsewhere(&self, message: &Message) -> bool {
        claim::is_claimed(message) && !matches!(self.claims, Claimed::Pass)
    }

    /// Gives a message its body.
    async fn fetch(&self, message: &mut Message) -> tidegate_core::Result<()> {
        let Claimed::Fetch(claims) = &self.claims else {
            let what = "the body is in a store of large bodies, and the service has none";
            return Err(Error::new(code::BODY_MISSING, what).hint("add .with_claims(&claims) to the service"));
        };
        tokio::select! {
            fetched = claims.fetch(message) => fetched,
            () = self.clock.sleep(self.policy.time_limit) => {
                let what = format!("the body did not come within {:?}", self.policy.time_limit);
                Err(Error::new(code::TIMED_OUT, what))
            }
        }
    }

    /// Runs a handler with what it sees of a delivery.
    fn run(
        self: &Arc<Self>,
        handler: &Arc<dyn Erased<S>>,
        delivery: &Delivery,
        seen: &Delivery,
        rank: Rank,
        processing: Processing,
    ) -> BoxFuture<'static, Next> {
        let attempt = delivery.attempt.number();
        let bury = |reason, error: String| ready(Next::Bury(reason, error)).boxed();
        let future = match processing.span.in_scope(|| self.call(handler, seen)) {
            Ok(Ok(future)) => future,
            Ok(Err(error)) => {
                processing.span.record("error.type", error.code().name());
                return bury(Reason::Undecodable, error.to_string());
            }
            Err(_) => return bury(Reason::Refused, "reading it panicked".to_owned()),
        };
        let (this, delivery, span) = (Arc::clone(self), delivery.clone(), processing.span.clone());
        let handling = async move {
            let began = this.clock.elapsed();
            let ended = this.handle(future).await;
            this.meter.took(&delivery.message.kind, this.clock.elapsed().saturating_sub(began));
            match ended {
                Ok(reply) => {
                    if let Some(reply) = reply {
                        this.replier.reply(&delivery.message, reply).await;
                    }
                    this.meter.handled(&delivery.message.kind);
                    if rank == Rank::First { this.release(&delivery).await } else { Next::Ack }
                }
                Err(failure) => {
                    span.record("error.type", failure.kind());
                    this.failed(&delivery.message, attempt, &failure)
                }
            }
        };
        let span = processing.span.clone();
        processing.within(handling).instrument(span).boxed()
    }

    /// Lets a handler read the message.
    #[allow(clippy::type_complexity, reason = "a panic, or why it cannot be read, or what runs")]
    fn call(
        &self,
        handler: &Arc<dyn Erased<S>>,
        delivery: &Delivery,
    ) -> std::thread::Result<tidegate_core::Result<BoxFuture<'static, Ended>>> {
        let context = Context {
            delivery,
            channel: &self.place.channel,
            subscription: &self.place.subscription,
            state: &self.state,
        };
        catch_unwind(AssertUnwindSafe(|| handler.start(&context, &self.replies)))
    }

    /// Runs a handler, for as long as it may.
    async fn handle(&self, future: BoxFuture<'static, Ended>) -> Ended {
        let mut future = AssertUnwindSafe(future).catch_unwind();
        let ended = match (&mut future).now_or_never() {
            Some(ended) => ended,
            None => tokio::select! {
                ended = &mut future => ended,
                () = self.clock.sleep(self.policy.time_limit) => {
                    let what = format!("the handler took longer than {:?}", self.policy.time_limit);
                    return Err(Failure::retry(Error::new(code::TIMED_OUT, what)));
                }
            },
        };
        ended.unwrap_or_else(|_| Err(Failure::retry(Error::new(code::INTERNAL, "the handler panicked"))))
    }

    fn failed(&self, message: &Message, attempt: u32, failure: &Failure) -> Next {
        if !failure.is_final() && self.policy.tries_again(attempt) {
            let after = self.policy.pause(message, attempt);
            tracing::info!(error = %failure, id = %message.id, attempt, ?after, subscription = %self.place.subscription, "a message failed and is tried again");
            return Next::Retry(after);
        }
        let reason = if failure.is_final() { Reason::Refused } else { Reason::Exhausted };
        Next::Bury(reason, failure.to_string())
    }

    /// Makes a dead letter of a message. If that cannot be done now, the message stays.
    pub(super) fn bury(
        self: &Arc<Self>,
        delivery: &Delivery,
        reason: Reason,
        error: String,
    ) -> BoxFuture<'static, Next> {
        let (this, delivery) = (Arc::clone(self), delivery.clone());
        async move {
            let message = &delivery.message;
            let Some(dead) = &this.dead else {
                let after = this.policy.pause_max;
                tracing::error!(id = %message.id, reason = reason.word(), error, ?after, subscription = %this.place.subscription, "a message cannot be handled, and is tried for ever; its subject waits");
                return Next::Retry(after);
            };
            if let Err(failed) = this.try_bury(dead, &delivery, reason, &error).await {
                let after = this.policy.pause(message, delivery.attempt.number()).max(PAUSE);
                tracing::error!(error = %failed, id = %message.id, ?after, subscription = %this.place.subscription, "a message cannot become a dead letter now; it and its subject wait");
                return Next::Retry(after);
            }
            this.meter.dead(reason);
            this.replier.refuse(message, &error).await;
            tracing::warn!(id = %message.id, kind = %message.kind, reason = reason.word(), channel = %this.place.channel, subscription = %this.place.subscription, "a message became a dead letter");
            Next::Ack
        }
        .boxed()
    }

    async fn try_bury(
        &self,
        dead: &Sender,
        delivery: &Delivery,
        reason: Reason,
        error: &str,
    ) -> tidegate_core::Result<()> {
        let message = &delivery.message;
        let mut place = None;
        if let (Some(parked), Some(subject)) = (&self.parked, &message.subject) {
            let is_copy = Copy::of(message, &self.place.channel, &self.place.subscription) == Copy::Ours;
            let is_in_hand = |token| self.meter.has_in_hand(token);
            place =
                parked.park(delivery.token, subject, message, is_copy, (reason, error), &is_in_hand).await?;
        }
        let burial = Burial {
            channel: &self.place.channel,
            subscription: &self.place.subscription,
            reason,
            error,
            attempts: delivery.attempt.number(),
            place: place.map(|place| place.to_string()),
            now: self.clock.now(),
        };
        let sent = match burial.letter(message) {
            Ok(letter) => dead.send(letter).await,
            Err(error) => Err(error),
        };
        match sent {
            // There is no room beside it for everything: the least that makes it a dead letter.
            Err(error) if error.verdict() == Verdict::Never && error.code() != code::SUBSCRIPTION_MISSING => {
                dead.send(burial.least(message)?).await
            }
            sent => sent,
        }
    }

    fn let_go(self: &Arc<Self>, delivery: &Delivery) -> BoxFuture<'static, Next> {
        let (this, delivery) = (Arc::clone(self), delivery.clone());
        async move { this.release(&delivery).await }.boxed()
    }

    /// Notes that a message is no dead letter any more.
    async fn release(&self, delivery: &Delivery) -> Next {
        let message = &delivery.message;
        if let (Some(parked), Some(subject)) = (&self.parked, &message.subject) {
            // It was handled, so it is not to be handled again for the store's sake.
            while let Err(error) = parked.release(delivery.token, subject, message).await {
                if error.code() == code::LEASE_LOST {
                    // It comes again to the owner, who knows that it is the first.
                    break;
                }
                tracing::warn!(%error, "what is parked cannot be written now, and is tried again");
                self.clock.sleep(PAUSE).await;
            }
        }
        Next::Ack
    }
}
