//! Looks at messages, and writes nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Log, Reader};
use crate::hand::Fetched;
use crate::unsettled::Place;
use tidegate_core::channel::Channel;
use tidegate_core::error::Result;
use tidegate_core::lane::Lane;
use tidegate_core::port::{Browse, Seen};
use tidegate_core::position::Position;

/// How many messages of a lane are read at once.
const PIECE: usize = 100;

pub(super) struct LogBrowse<L: Log> {
    log: Arc<L>,
    channel: Channel,
    /// Of each lane, the place behind which it goes on.
    after: Vec<Place>,
    /// It is made anew after an error.
    reader: Option<Box<dyn Reader>>,
    ready: VecDeque<Seen>,
    read: Vec<(Lane, Fetched)>,
}

impl<L: Log> LogBrowse<L> {
    pub(super) fn new(log: Arc<L>, channel: Channel, after: Vec<Place>) -> Self {
        Self { log, channel, after, reader: None, ready: VecDeque::new(), read: Vec::new() }
    }

    /// Takes over what a call has read, also one that was dropped.
    fn take_over(&mut self) {
        for (lane, fetched) in self.read.drain(..) {
            let Some(after) = self.after.get_mut(lane.0 as usize) else { continue };
            *after = fetched.place.max(*after);
            let position = fetched.has_position.then(|| Position::from_u64(fetched.place));
            let Fetched { message, stored_at, .. } = fetched;
            let message = Arc::unwrap_or_clone(message);
            self.ready.push_back(Seen { message, lane, position, stored_at });
        }
    }
}

#[async_trait]
impl<L: Log> Browse for LogBrowse<L> {
    async fn next(&mut self, max: usize, wait: Duration, out: &mut Vec<Seen>) -> Result<()> {
        self.take_over();
        if self.ready.is_empty() {
            let wanted: Vec<_> =
                (0..).map(Lane).zip(&self.after).map(|(l, after)| (l, *after, PIECE)).collect();
            let reader = match &mut self.reader {
                Some(reader) => reader,
                none => none.insert(self.log.reader(&self.channel).await?),
            };
            let ended = reader.read(&wanted, wait, &mut self.read).await;
            if ended.is_err() {
                self.reader = None;
            }
            self.take_over();
            if self.ready.is_empty() {
                return ended;
            }
        }
        out.extend(self.ready.drain(..max.min(self.ready.len())));
        Ok(())
    }
}
