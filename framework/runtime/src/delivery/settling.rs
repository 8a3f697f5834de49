//! Settles, all that has come meanwhile at once.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use tidegate_core::Clock;
use tidegate_core::port::{Settle, Settled, Settlement, Token};
use tracing::Instrument as _;

use super::PAUSE;
use super::meter::{InHand, Meter};

type Batch = Vec<(Token, Settlement)>;

/// What is to be settled, and is being.
pub(super) struct Settling {
    settle: Arc<dyn Settle>,
    clock: Arc<dyn Clock>,
    meter: Arc<Meter>,
    in_hand: Arc<InHand>,
    waiting: Batch,
    call: Option<BoxFuture<'static, (Batch, Vec<Settled>)>>,
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
        Self { settle, clock, meter, in_hand, waiting: Batch::new(), call: None, is_again: false }
    }

    pub(super) fn add(&mut self, token: Token, settlement: Settlement) {
        if settlement == Settlement::Release {
            self.meter.counts.released(1);
        }
        self.waiting.push((token, settlement));
    }

    /// Whether something is being settled.
    pub(super) fn is_busy(&self) -> bool {
        self.call.is_some()
    }

    /// Whether something is to be settled.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Begins to settle what waits, if nothing is being settled.
    pub(super) fn begin(&mut self) {
        if self.call.is_some() || self.waiting.is_empty() {
            return;
        }
        let (batch, settle) = (std::mem::take(&mut self.waiting), Arc::clone(&self.settle));
        let span = self.meter.place.settling(batch.len());
        let pause = std::mem::take(&mut self.is_again).then(|| Arc::clone(&self.clock));
        self.call = Some(
            async move {
                if let Some(clock) = pause {
                    clock.sleep(PAUSE).await;
                }
                let answers = settle.settle(&batch).await;
                (batch, answers)
            }
            .instrument(span)
            .boxed(),
        );
    }

    /// Waits until what was begun is answered. Cancel safe.
    pub(super) async fn next(&mut self) {
        let Some(call) = &mut self.call else { return };
        let (batch, answers) = call.await;
        self.call = None;
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
