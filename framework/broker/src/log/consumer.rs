//! A member of a subscription.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::broker::Link;
use super::fetch::fetch;
use super::keeper::{PAUSE, keep, write};
use super::member::{Membership, leave};
use super::settle::LogSettle;
use super::shared::Shared;
use super::{Log, tidy};
use crate::receiving::{self, Receiving};
use tidegate_core::channel::Subscription;
use tidegate_core::error::{Error, Result, Verdict, code};
use tidegate_core::port::{Consumer, Delivery, Leftover, Settle, Signal};

/// How long a consumer that is closed waits for what it has settled to be written.
pub(super) const LAST_WRITE: Duration = Duration::from_secs(5);

pub(super) struct LogConsumer<L: Log> {
    link: Arc<Link<L>>,
    shared: Arc<Shared<L>>,
    receiving: Receiving,
}

impl<L: Log> LogConsumer<L> {
    pub(super) fn new(link: Arc<Link<L>>, shared: Arc<Shared<L>>, subscription: &Subscription) -> Self {
        shared.spawn(Membership::new(Arc::clone(&shared)).keep());
        shared.spawn(keep(Arc::clone(&shared)));
        shared.spawn(fetch(Arc::clone(&shared)));
        shared.spawn(tidy::keep(Arc::clone(&shared)));
        Self { link, shared, receiving: Receiving::new(subscription) }
    }
}

#[async_trait]
impl<L: Log> Consumer for LogConsumer<L> {
    async fn receive(&mut self, max: usize, wait: Duration, out: &mut Vec<Delivery>) -> Result<Signal> {
        self.receiving.receive(&*self.shared, max, wait, out).await
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::new(LogSettle::new(Arc::clone(&self.shared)))
    }

    async fn close(mut self: Box<Self>, deadline: Duration) -> Result<Leftover> {
        self.receiving.give_back(&mut *self.shared.lock());
        receiving::settled(&*self.shared, deadline).await;
        self.shared.stop();
        let released = end(&self.shared).await;
        self.link.leave(&self.shared);
        released.map(|released| Leftover { released })
    }
}

/// Ends a consumer whose tasks have ended: what is in its hand is released, and its lanes are free.
pub(super) async fn end<L: Log>(shared: &Shared<L>) -> Result<usize> {
    let released = shared.lock().release();
    let written = tokio::select! {
        written = write_at_last(shared) => written,
        () = shared.clock.sleep(LAST_WRITE) => {
            Err(Error::new(code::TIMED_OUT, "what was settled last could not be written in time"))
        }
    };
    tidy::own(shared).await;
    shared.lock().abandon();
    let left = leave(shared).await;
    written.and(left).map(|()| released)
}

/// Writes until it is done, or cannot be.
async fn write_at_last<L: Log>(shared: &Shared<L>) -> Result<()> {
    loop {
        match write(shared).await {
            Err(error) if error.verdict() != Verdict::Never => shared.clock.sleep(PAUSE).await,
            written => return written,
        }
    }
}

impl<L: Log> Drop for LogConsumer<L> {
    /// A consumer that was not closed has crashed: its lease ends by itself. What it has in hand is written once more, as it
    /// would have been.
    fn drop(&mut self) {
        if self.shared.stop() {
            let shared = Arc::clone(&self.shared);
            self.link.leave(&self.shared);
            self.link.spawn(async move {
                let _ = write(&shared).await;
                shared.lock().abandon();
                Ok(())
            });
        }
    }
}
