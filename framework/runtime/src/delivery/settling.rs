//! Settles, all that has come meanwhile at once, and several such calls beside each other: what is settled leaves the hand when a
//! call begins, so that the broker gives more while it makes it durable.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tidegate_core::Clock;
use tidegate_core::port::{Settle, Settled, Settlement, Token};
use tracing::Instrument as _;

use super::PAUSE;
use super::meter::{InHand, Meter};

/// How many calls are under way at once.
const CALLS_MAX: usize = 8;

type Batch = Vec<(Token, Settlement)>;
type Answered = (Batch, Vec<Settled>);

/// What is to be settled, and is being.
pub(super) struct Settling {
    settle: Arc<dyn Settle>,
    clock: Arc<dyn Clock>,
    meter: Arc<Meter>,
    in_hand: Arc<InHand>,
    waiting: Batch,
    calls: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// What was unknown is tried again, after a pause.
    is_again: bool,
}

impl Settling {
    pub(super) fn new(
        settle: Arc<dyn Settle>,
        clock: Arc<dyn Clock>,
        meter: Arc<Meter>,
        in_hand: Arc<InHand>,
    ) -> Self {
        Self {
            settle,
            clock,
            meter,
            in_hand,
            waiting: Batch::new(),
            calls: FuturesUnordered::new(),
            is_again: false,
        }
    }

    pub(super) fn add(&mut self, token: Token, settlement: Settlement) {
        if settlement == Settlement::Release {
            self.meter.counts.released(1);
        }
        self.waiting.push((token, settlement));
    }

    /// Whether something is being settled.
    pub(super) fn is_busy(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Whether something is to be settled.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Begins to settle what waits, unless there is enough under way.
    pub(super) fn begin(&mut self) {
        while self.calls.len() < CALLS_MAX && !self.waiting.is_empty() {
            let (batch, settle) = (std::mem::take(&mut self.waiting), Arc::clone(&self.settle));
            let span = self.meter.place.settling(batch.len());
            let pause = std::mem::take(&mut self.is_again).then(|| Arc::clone(&self.clock));
            let mut call = async move {
                if let Some(clock) = pause {
                    clock.sleep(PAUSE).await;
                }
                let answers = settle.settle(&batch).await;
                (batch, answers)
            }
            .instrument(span)
            .boxed();
            // It has begun when the next one does.
            match call.as_mut().now_or_never() {
                Some(answered) => self.answered(answered),
                None => self.calls.push(call),
            }
        }
    }

    /// Waits until one that was begun is answered. Cancel safe.
    pub(super) async fn next(&mut self) {
        if let Some(answered) = self.calls.next().await {
            self.answered(answered);
        }
    }

    fn answered(&mut self, (batch, answers): Answered) {
        for ((token, settlement), answer) in batch.into_iter().zip(answers) {
            match answer {
                Settled::Done => self.in_hand.settled(token),
                Settled::Lost => {
                    self.in_hand.settled(token);
                    self.meter.counts.lost(1);
                }
                Settled::Unknown(error) => {
                    tracing::debug!(%error, "whether a message is settled is unknown");
                    self.meter.counts.unknown();
                    self.is_again = true;
                    self.waiting.push((token, settlement));
                }
                Settled::Refused(error) => tracing::error!(%error, "a message cannot be settled"),
            }
        }
    }

    /// Keeps what is in hand for longer, and returns after half of that time.
    pub(super) fn extend(&self, tokens: Vec<Token>, by: Duration) -> BoxFuture<'static, ()> {
        let (settle, clock) = (Arc::clone(&self.settle), Arc::clone(&self.clock));
        async move {
            settle.extend(&tokens, by).await;
            clock.sleep(by / 2).await;
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use tidegate_core::{Lane, Name, SystemClock};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::trace::Place;

    /// Answers as many calls as it is let.
    struct Slow {
        begun: Mutex<Vec<u64>>,
        answers: Semaphore,
    }

    #[async_trait]
    impl Settle for Slow {
        async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Settled> {
            self.begun.lock().unwrap().extend(batch.iter().map(|(token, _)| token.number));
            self.answers.acquire().await.unwrap().forget();
            batch.iter().map(|_| Settled::Done).collect()
        }

        async fn extend(&self, tokens: &[Token], _: Duration) -> Vec<Settled> {
            tokens.iter().map(|_| Settled::Done).collect()
        }
    }

    #[tokio::test]
    async fn what_is_settled_leaves_the_hand_while_what_was_settled_before_is_made_durable() {
        let slow = Arc::new(Slow { begun: Mutex::default(), answers: Semaphore::new(0) });
        let [channel, subscription] = ["c", "s"].map(|name| Name::new(name).unwrap());
        let place = Place { system: "tidegate".into(), channel, subscription };
        let meter = Arc::new(Meter::new(Arc::new(place), [].into_iter(), None));
        let in_hand = meter.in_hand();
        let settle = Arc::clone(&slow) as Arc<dyn Settle>;
        let mut settling = Settling::new(settle, SystemClock::shared(), meter, in_hand);
        let mut add = |number| {
            settling.add(Token { lane: Lane(0), epoch: 1, number }, Settlement::Ack);
            settling.begin();
            settling.has_waiting()
        };
        let most = CALLS_MAX as u64;
        assert!((0..most).all(|number| !add(number)), "each begins at once");
        assert!(add(most) && add(most + 1), "there is enough under way");
        assert_eq!(*slow.begun.lock().unwrap(), (0..most).collect::<Vec<_>>(), "in their order");
        slow.answers.add_permits(1);
        settling.next().await;
        settling.begin();
        assert!(!settling.has_waiting(), "what waited begins as one call");
        assert_eq!(*slow.begun.lock().unwrap(), (0..most + 2).collect::<Vec<_>>());
        slow.answers.add_permits(CALLS_MAX);
        while settling.is_busy() {
            settling.next().await;
        }
    }
}
