//! Looks at messages.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_broker::unsettled::Place;
use tidegate_core::port::{Browse, Seen};
use tidegate_core::{Lane, Name, Position, Result};
use tokio::sync::Notify;

use crate::broker::{MemoryBroker, missing};

pub(crate) struct MemoryBrowse {
    broker: MemoryBroker,
    channel: Name,
    /// The place behind which it goes on: places rise over all lanes.
    after: Place,
    changed: Arc<Notify>,
}

impl MemoryBrowse {
    pub(crate) fn new(broker: MemoryBroker, channel: Name, after: Place, changed: Arc<Notify>) -> Self {
        Self { broker, channel, after, changed }
    }

    fn take(&mut self, max: usize, out: &mut Vec<Seen>) -> Result<()> {
        self.broker.check_open()?;
        let channels = self.broker.data.lock();
        let found = channels.get(&self.channel).ok_or_else(|| missing(&self.channel))?;
        let lanes = (0..found.channel.lanes).map(Lane);
        let next =
            lanes.flat_map(|lane| found.next(lane, self.after).take(max).map(move |next| (lane, next)));
        let mut next: Vec<_> = next.collect();
        next.sort_unstable_by_key(|(_, (place, ..))| *place);
        for (lane, (place, message, at)) in next.into_iter().take(max) {
            self.after = place;
            let position = Some(Position::from_u64(place));
            out.push(Seen { message: message.clone(), lane, position, stored_at: Some(at) });
        }
        Ok(())
    }
}

#[async_trait]
impl Browse for MemoryBrowse {
    async fn next(&mut self, max: usize, wait: Duration, out: &mut Vec<Seen>) -> Result<()> {
        let clock = Arc::clone(&self.broker.data.clock);
        let (before, until) = (out.len(), clock.elapsed() + wait);
        loop {
            let changed = Arc::clone(&self.changed);
            let mut changed = std::pin::pin!(changed.notified());
            changed.as_mut().enable();
            self.take(max, out)?;
            let left = until.saturating_sub(clock.elapsed());
            if out.len() > before || left.is_zero() {
                return Ok(());
            }
            tokio::select! {
                () = changed => {}
                () = clock.sleep(left) => {}
            }
        }
    }
}
