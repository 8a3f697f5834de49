//! Receives one by one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::{Broker, Consumer, Delivery, Settle, Settled, Settlement, Signal, Token};
use tidegate_core::{Clock, Error, Result, Subscription};

/// How many messages are asked for at a time.
const MESSAGES: usize = 64;

/// Takes messages of one subscription, in the order of their lanes.
///
/// # Cancel safety
/// A dropped call loses nothing.
pub struct Receiver {
    consumer: Box<dyn Consumer>,
    settler: Arc<dyn Settle>,
    clock: Arc<dyn Clock>,
    taken: VecDeque<Delivery>,
    batch: Vec<Delivery>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("taken", &self.taken.len()).finish_non_exhaustive()
    }
}

impl Receiver {
    /// Takes part in a subscription that is there.
    ///
    /// # Errors
    /// As [`Broker::subscribe`].
    pub async fn open(
        broker: &dyn Broker,
        subscription: &Subscription,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let consumer = broker.subscribe(subscription).await?;
        let settler = consumer.settler();
        Ok(Self { consumer, settler, clock, taken: VecDeque::new(), batch: Vec::new() })
    }

    /// The next message, or nothing if none comes for so long. A message whose settling was lost comes again.
    ///
    /// # Errors
    /// As [`Consumer::receive`]; `subscription-gone` if the broker ended the subscription.
    pub async fn next(&mut self, wait: Duration) -> Result<Option<Delivery>> {
        let until = self.clock.elapsed() + wait;
        loop {
            let left = until.saturating_sub(self.clock.elapsed());
            if !self.taken.is_empty() || left.is_zero() {
                return Ok(self.taken.pop_front());
            }
            let signal = self.consumer.receive(MESSAGES, left, &mut self.batch).await?;
            self.taken.extend(self.batch.drain(..));
            match signal {
                // Somebody else has them now.
                Signal::LanesLost(lanes) => self.taken.retain(|d| !lanes.contains(&d.token.lane)),
                Signal::Cancelled(error) => return Err(error),
                Signal::Drained => {
                    return Err(Error::new(code::SUBSCRIPTION_GONE, "the broker was closed"));
                }
                Signal::Messages
                | Signal::LanesGained(_)
                | Signal::LanesRevoked { .. }
                | Signal::Reconnected => {}
            }
        }
    }

    /// These are done. If the broker does not know that afterwards, they come again.
    ///
    /// # Errors
    /// If the broker refuses.
    pub async fn settle(&mut self, tokens: &[Token]) -> Result<()> {
        let done: Vec<_> = tokens.iter().map(|token| (*token, Settlement::Ack)).collect();
        for answer in self.settler.settle(&done).await {
            match answer {
                Settled::Refused(error) => return Err(error),
                Settled::Unknown(error) => tracing::debug!(%error, "whether a message is settled is unknown"),
                Settled::Done | Settled::Lost => {}
            }
        }
        Ok(())
    }

    /// Gives back what is in hand, and ends.
    ///
    /// # Errors
    /// As [`Consumer::close`].
    pub async fn close(mut self, deadline: Duration) -> Result<()> {
        let rest: Vec<_> = self.taken.drain(..).map(|d| (d.token, Settlement::Release)).collect();
        if !rest.is_empty() {
            self.settler.settle(&rest).await;
        }
        self.consumer.close(deadline).await.map(drop)
    }
}
