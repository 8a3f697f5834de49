//! A member of a subscription.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Queues;
use super::broker::Link;
use super::settle::QueueSettle;
use super::shared::{Shared, Stop};
use crate::receiving::{self, Receiving};
use tidegate_core::channel::Subscription;
use tidegate_core::error::{Error, Result, code};
use tidegate_core::port::{Consumer, Delivery, Leftover, Settle, Signal};

/// How long a consumer that is closed waits for what it has settled to be written.
pub(super) const LAST_WRITE: Duration = Duration::from_secs(5);

pub(super) struct QueueConsumer<Q: Queues> {
    link: Arc<Link<Q>>,
    shared: Arc<Shared<Q>>,
    receiving: Receiving,
}

impl<Q: Queues> QueueConsumer<Q> {
    pub(super) fn new(link: Arc<Link<Q>>, shared: Arc<Shared<Q>>, subscription: &Subscription) -> Self {
        Self { link, shared, receiving: Receiving::new(subscription) }
    }
}

#[async_trait]
impl<Q: Queues> Consumer for QueueConsumer<Q> {
    async fn receive(&mut self, max: usize, wait: Duration, out: &mut Vec<Delivery>) -> Result<Signal> {
        self.receiving.receive(&*self.shared, max, wait, out).await
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::new(QueueSettle::new(Arc::clone(&self.shared)))
    }

    async fn close(mut self: Box<Self>, deadline: Duration) -> Result<Leftover> {
        self.receiving.give_back(&mut *self.shared.lock());
        receiving::settled(&*self.shared, deadline).await;
        let (released, ended) = end(&self.shared).await;
        ended.map(|()| Leftover { released })
    }
}

/// Ends a consumer: what is in its hand is released, and its lanes are given up, with what was settled written. How much was
/// released.
pub(super) async fn end<Q: Queues>(shared: &Shared<Q>) -> (usize, Result<()>) {
    let released = {
        let mut inner = shared.lock();
        inner.failed = None;
        inner.release()
    };
    shared.stop(Stop::Close);
    let mut is_over = shared.is_over.subscribe();
    let ended = tokio::select! {
        _ = is_over.wait_for(|is_over| *is_over) => shared.lock().failed.take().map_or(Ok(()), Err),
        () = shared.system.clock.sleep(LAST_WRITE) => {
            shared.lock().abandon();
            Err(Error::new(code::TIMED_OUT, "what was settled last could not be written in time"))
        }
    };
    (released, ended)
}

impl<Q: Queues> Drop for QueueConsumer<Q> {
    /// A consumer that was not closed has crashed: the system gives what it had to others. What it has in hand is noted once
    /// more, as it would have been. One whose closing was dropped goes on to end as it was about to.
    fn drop(&mut self) {
        self.shared.stop(Stop::Crash);
        self.link.leave(&self.shared);
    }
}
