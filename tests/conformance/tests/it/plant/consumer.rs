//! Its consumers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::port::{Attempt, Broker as _, Consumer, Delivery, Leftover, Settle, Settlement, Signal};
use tidegate_core::{Headers, Lane, Result, Subscription};
use tidegate_memory::MemoryBroker;
use tokio::time::{Instant, sleep};

use super::network::Inner;
use super::settle::PlantedSettle;
use super::{Bug, Kept, lock};

pub(super) struct PlantedConsumer {
    pub(super) bug: Bug,
    pub(super) broker: MemoryBroker,
    pub(super) subscription: Subscription,
    pub(super) inner: Arc<Inner>,
    pub(super) settle: Arc<dyn Settle>,
    pub(super) kept: Arc<Kept>,
    /// A batch that is given one call later.
    pub(super) behind: Vec<Delivery>,
    /// What comes next was in hand when the connection was lost.
    pub(super) drops_next: bool,
    pub(super) is_closed: bool,
}

#[async_trait]
impl Consumer for PlantedConsumer {
    async fn receive(&mut self, max: usize, wait: Duration, out: &mut Vec<Delivery>) -> Result<Signal> {
        if self.kept.way.pass().await.is_err() {
            // It connects again by itself.
            sleep(wait).await;
            return Ok(Signal::Messages);
        }
        let kept = Arc::clone(&self.inner);
        let mut kept = kept.lock().await;
        if kept.is_none() {
            // It was given up, and begins anew.
            let new = self.broker.subscribe(&self.subscription).await?;
            self.settle = new.settler();
            *kept = Some(new);
        }
        let inner = kept.as_mut().unwrap();
        let blocked = *lock(&self.kept.blocked);
        if let Some(until) = blocked.filter(|until| *until > Instant::now()) {
            sleep(wait.min(until - Instant::now())).await;
            return Ok(Signal::Messages);
        }
        {
            let mut later = lock(&self.kept.later);
            let due = later.iter().position(|(at, _)| *at <= Instant::now());
            if let Some(at) = due {
                out.push(later.remove(at).1);
                return Ok(Signal::Messages);
            }
        }
        if self.bug == Bug::RedeliversSettled
            && let Some(delivery) = lock(&self.kept.shared.settled).pop_front()
        {
            out.push(delivery);
            return Ok(Signal::Messages);
        }
        let wait =
            if self.bug == Bug::RetryGoesToTheBack { wait.min(Duration::from_millis(5)) } else { wait };
        let mut came = Vec::new();
        let signal = inner.receive(max, wait, &mut came).await?;
        match self.bug {
            Bug::RemovalIsQuiet if matches!(signal, Signal::Cancelled(_)) => {
                sleep(wait).await;
                return Ok(Signal::Messages);
            }
            Bug::UrgentComesLast
                if !came.is_empty() && self.subscription.channel.as_str().ends_with(".high") =>
            {
                *lock(&self.kept.blocked) = Some(Instant::now() + Duration::from_secs(2));
            }
            Bug::CancelLoses if !came.is_empty() => sleep(Duration::from_millis(1)).await,
            Bug::ShufflesBatches => came.reverse(),
            Bug::AttemptStaysOne => came.iter_mut().for_each(|d| d.attempt = Attempt::Exact(1)),
            Bug::DropsEmptyHeaders => came.iter_mut().for_each(|d| {
                let mut headers = Headers::default();
                for (name, value) in d.message.headers.iter().filter(|(_, value)| !value.is_empty()) {
                    headers.set(name, value).unwrap();
                }
                Arc::make_mut(&mut d.message).headers = headers;
            }),
            // They fall, and are as they were when they are settled.
            Bug::EpochsFall => came.iter_mut().for_each(|d| d.token.epoch = !d.token.epoch),
            Bug::OtherLanes => came.iter_mut().for_each(|d| d.token.lane = Lane(d.token.lane.0 ^ 1)),
            Bug::CrashSettles | Bug::CloseSettles | Bug::RedeliversSettled | Bug::RetryGoesToTheBack => {
                lock(&self.kept.in_hand).extend(came.iter().cloned());
            }
            // It reads one batch ahead, and does not look whether the lane is still its own.
            Bug::DeliversWhatItLost => std::mem::swap(&mut came, &mut self.behind),
            Bug::ReconnectDropsInHand => {
                self.drops_next |= matches!(signal, Signal::Reconnected);
                if self.drops_next && !came.is_empty() {
                    self.drops_next = false;
                    let acks: Vec<_> = came.drain(..).map(|d| (d.token, Settlement::Ack)).collect();
                    self.settle.settle(&acks).await;
                }
            }
            _ => {}
        }
        out.extend(came);
        Ok(signal)
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::new(PlantedSettle {
            bug: self.bug,
            inner: Arc::clone(&self.settle),
            kept: Arc::clone(&self.kept),
        })
    }

    async fn close(mut self: Box<Self>, deadline: Duration) -> Result<Leftover> {
        self.is_closed = true;
        if self.bug == Bug::CloseSettles {
            let acks: Vec<_> = lock(&self.kept.in_hand).iter().map(|d| (d.token, Settlement::Ack)).collect();
            self.settle.settle(&acks).await;
        }
        let inner = self.inner.lock().await.take();
        let leftover = match inner {
            Some(inner) => inner.close(deadline).await?,
            None => Leftover::default(),
        };
        if self.bug == Bug::ForgetsAbsentees {
            self.broker.unregister(&self.subscription).await?;
        }
        Ok(leftover)
    }
}

impl Drop for PlantedConsumer {
    fn drop(&mut self) {
        if self.bug == Bug::CrashSettles && !self.is_closed {
            let acks: Vec<_> = lock(&self.kept.in_hand).iter().map(|d| (d.token, Settlement::Ack)).collect();
            // The broker in memory answers at once.
            let _ = futures::FutureExt::now_or_never(self.settle.settle(&acks));
        }
    }
}
