//! Decides what a delivery is, and what becomes of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, ready};
use tidegate_core::error::{Verdict, code};
use tidegate_core::message::UNDECODABLE;
use tidegate_core::port::Delivery;
use tidegate_core::{Clock, Error, Message, Name};

use super::parked::{Parked, Rank};
use super::{Counts, PAUSE};
use crate::dead_letter::{self, Reason};
use crate::outbox::Outbox;
use crate::policy::{Exhausted, Policy};
use crate::sender::Sender;
use crate::service::{Context, Ended, Failure, Handlers, Replies};

/// What a subscription's deliveries are handled with.
pub(crate) struct Dispatch<S> {
    pub(crate) channel: Name,
    pub(crate) subscription: Name,
    pub(crate) handlers: Handlers<S>,
    pub(crate) state: S,
    pub(crate) policy: Policy,
    /// Where subjects with dead letters are noted, if they are to wait for them.
    pub(crate) parked: Option<Parked>,
    /// Where dead letters go; nothing if a message is tried for ever.
    pub(crate) dead: Option<Sender>,
    pub(crate) replies: Replies,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) counts: Arc<Counts>,
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
    /// Starts what is to be done with a delivery.
    pub(super) fn start(self: &Arc<Self>, delivery: &Delivery) -> BoxFuture<'static, Next> {
        let message = &delivery.message;
        let only = message.headers.get(dead_letter::ONLY);
        if only.is_some_and(|only| only != self.subscription.as_str()) {
            self.counts.ignored();
            return ready(Next::Ack).boxed();
        }
        if *message.kind == *dead_letter::RELEASE {
            let (this, message, lane) = (Arc::clone(self), message.clone(), delivery.token.lane);
            return async move { this.release(lane, &message).await }.boxed();
        }
        let rank = match (&self.parked, &message.subject) {
            (Some(parked), Some(subject)) => {
                parked.rank(delivery.token.lane, subject, &message.id, only.is_some())
            }
            _ => Rank::Free,
        };
        let attempt = delivery.attempt.number();
        let bury = |reason, error: String| ready(Next::Bury(reason, error)).boxed();
        if rank == Rank::Behind {
            return bury(Reason::Behind, "an earlier message of its subject is a dead letter".to_owned());
        }
        if attempt > self.policy.attempts_max && self.policy.exhausted != Exhausted::Block {
            let error = "whoever tried it last did not live to say how that ended";
            return bury(Reason::Exhausted, error.to_owned());
        }
        if *message.kind == *UNDECODABLE {
            return bury(Reason::Undecodable, message.headers.get("tg_error").unwrap_or_default().to_owned());
        }
        let Some(handler) = self.handlers.find(&message.kind) else {
            if self.handlers.ignores_others() {
                self.counts.ignored();
                return ready(Next::Ack).boxed();
            }
            return bury(Reason::Unhandled, format!("nothing handles the kind {}", message.kind));
        };
        let context = Context {
            delivery,
            channel: &self.channel,
            subscription: &self.subscription,
            state: &self.state,
        };
        let started = catch_unwind(AssertUnwindSafe(|| handler.start(&context, &self.replies)));
        let future = match started {
            Ok(Ok(future)) => future,
            Ok(Err(error)) => return bury(Reason::Undecodable, error.to_string()),
            Err(_) => return bury(Reason::Refused, "reading it panicked".to_owned()),
        };
        let (this, message) = (Arc::clone(self), message.clone());
        let lane = delivery.token.lane;
        async move {
            let ended = match this.handle(future).await {
                Ok(Some(reply)) => this.outbox.reply(&message, reply).await.map_err(Failure::from),
                ended => ended.map(drop),
            };
            match ended {
                Ok(()) => {
                    this.counts.handled();
                    if rank == Rank::First {
                        return this.release(lane, &message).await;
                    }
                    Next::Ack
                }
                Err(failure) => this.failed(&message, attempt, &failure),
            }
        }
        .boxed()
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
        self.counts.failed();
        let is_again = !failure.is_final() && self.policy.tries_again(attempt);
        if is_again || self.policy.exhausted == Exhausted::Block {
            let after = self.policy.pause(message, attempt);
            tracing::info!(error = %failure, id = %message.id, attempt, ?after, subscription = %self.subscription, "a message failed and is tried again");
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
            match this.try_bury(&delivery, reason, &error).await {
                Ok(()) => {
                    this.counts.dead();
                    if let Err(error) = this.outbox.refuse(&delivery.message, &error).await {
                        tracing::info!(%error, id = %delivery.message.id, "whoever waits for the reply cannot be told that there is none");
                    }
                    tracing::warn!(
                        id = %delivery.message.id, kind = %delivery.message.kind, reason = reason.word(), error,
                        channel = %this.channel, subscription = %this.subscription, "a message became a dead letter"
                    );
                    Next::Ack
                }
                Err(failed) => {
                    let after = this.policy.pause(&delivery.message, delivery.attempt.number()).max(PAUSE);
                    tracing::error!(error = %failed, id = %delivery.message.id, ?after, "a message cannot become a dead letter now; it and its subject wait");
                    Next::Retry(after)
                }
            }
        }
        .boxed()
    }

    async fn try_bury(&self, delivery: &Delivery, reason: Reason, error: &str) -> tidegate_core::Result<()> {
        let message = &delivery.message;
        let Some(sender) = &self.dead else {
            return Err(Error::new(code::INTERNAL, "a policy that tries for ever has no dead letters"));
        };
        let names = (&self.channel, &self.subscription);
        let attempts = delivery.attempt.number();
        let dead = dead_letter::bury(message, names, reason, error, attempts, self.clock.now())?;
        if let (Some(parked), Some(subject)) = (&self.parked, &message.subject) {
            parked.park(delivery.token.lane, subject, &message.id).await?;
        }
        sender.send(dead).await
    }

    /// Notes that a message is no dead letter any more.
    async fn release(&self, lane: tidegate_core::Lane, message: &Message) -> Next {
        if let (Some(parked), Some(subject)) = (&self.parked, &message.subject) {
            // It was handled, so it is not to be handled again for the store's sake.
            while let Err(error) = parked.release(lane, subject, &message.id).await {
                tracing::warn!(%error, "what is parked cannot be written now, and is tried again");
                if error.verdict() == Verdict::Never {
                    return Next::Retry(self.policy.pause_max);
                }
                self.clock.sleep(PAUSE).await;
            }
        }
        Next::Ack
    }
}
