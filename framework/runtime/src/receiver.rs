//! Receives one by one.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::{Broker, Consumer, Delivery, Settle, Settled, Settlement, Signal, Token};
use tidegate_core::{Clock, Error, Lane, Result, Subscription};

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
    /// The lanes that are its own.
    lanes: BTreeSet<Lane>,
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
        let (taken, batch, lanes) = (VecDeque::new(), Vec::new(), BTreeSet::new());
        Ok(Self { consumer, settler, clock, taken, batch, lanes })
    }

    /// The next message, or nothing if none comes for so long: there may be some all the same, in lanes that are
    /// [others'](Self::has_lanes). A message whose settling was lost comes again.
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
            self.look(left).await?;
        }
    }

    /// Whether a lane of the subscription is this receiver's. As long as none is, nothing comes, whatever there is.
    pub fn has_lanes(&self) -> bool {
        !self.lanes.is_empty()
    }

    /// Waits for a lane, for so long at most; whether one is this receiver's.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn join(&mut self, wait: Duration) -> Result<bool> {
        let until = self.clock.elapsed() + wait;
        while !self.has_lanes() {
            let left = until.saturating_sub(self.clock.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            self.look(left).await?;
        }
        Ok(true)
    }

    /// Takes what comes, or what the broker says, within so long.
    async fn look(&mut self, wait: Duration) -> Result<()> {
        let signal = self.consumer.receive(MESSAGES, wait, &mut self.batch).await?;
        self.lanes.extend(self.batch.iter().map(|delivery| delivery.token.lane));
        self.taken.extend(self.batch.drain(..));
        match signal {
            Signal::Messages => {}
            Signal::LanesGained(lanes) => self.lanes.extend(lanes),
            Signal::LanesRevoked { lanes, .. } => self.lanes.retain(|lane| !lanes.contains(lane)),
            // Somebody else has them now.
            Signal::LanesLost(lanes) => {
                self.lanes.retain(|lane| !lanes.contains(lane));
                self.taken.retain(|delivery| !lanes.contains(&delivery.token.lane));
            }
            // All of it comes again.
            Signal::Reconnected => {
                self.lanes.clear();
                self.taken.clear();
            }
            Signal::Cancelled(error) => return Err(error),
            Signal::Drained => return Err(Error::new(code::SUBSCRIPTION_GONE, "the broker was closed")),
        }
        Ok(())
    }

    /// These are done. If the broker does not know that afterwards, they come again.
    ///
    /// # Errors
    /// If the broker refuses.
    pub async fn settle(&mut self, tokens: &[Token]) -> Result<()> {
        if tokens.is_empty() {
            return Ok(());
        }
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
