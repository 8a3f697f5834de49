//! Puts messages on a channel.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{Broker, Producer, Sent};
use tidegate_core::{Error, Message, Name, Position, Result};

use crate::broker::{MemoryBroker, missing};
use crate::channel::Put;

#[derive(Debug)]
pub(crate) struct MemoryProducer {
    broker: MemoryBroker,
    channel: Name,
}

impl MemoryProducer {
    pub(crate) fn new(broker: MemoryBroker, channel: Name) -> Self {
        Self { broker, channel }
    }

    /// Stores what has room, and stops at the first message that has none.
    fn store(&self, batch: &[Message], sent: &mut Vec<Sent>) -> Result<()> {
        let now = self.broker.data.clock.now();
        let mut channels = self.broker.data.lock();
        let channel = channels.get_mut(&self.channel).ok_or_else(|| missing(&self.channel))?;
        let before = sent.len();
        while let Some(message) = batch.get(sent.len()) {
            let size_max = self.broker.capabilities().message_bytes_max;
            sent.push(match message.check().and_then(|()| message.check_size(size_max)) {
                Err(error) => Sent::Refused(error),
                Ok(()) => match channel.put(message, now) {
                    Err(error) => Sent::Refused(error),
                    Ok(Put::Full) => break,
                    Ok(Put::Stored { place, duplicate }) => {
                        Sent::Stored { position: Some(Position::from_u64(place)), duplicate }
                    }
                },
            });
        }
        // Whoever waits for room is woken by this too, this producer included: not without need.
        if sent.len() > before {
            channel.changed.notify_waiters();
        }
        Ok(())
    }

    fn loses_answer(&self) -> bool {
        let left = &self.broker.connection.answers_to_lose;
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

#[async_trait]
impl Producer for MemoryProducer {
    async fn publish(&mut self, batch: &[Message]) -> Vec<Sent> {
        let mut sent = Vec::with_capacity(batch.len());
        let clock = &self.broker.data.clock;
        let until = clock.elapsed() + self.broker.patience;
        let refusal = loop {
            // Listens before it looks, so that room that comes in between is not missed.
            let changed = self.broker.data.lock().get(&self.channel).map(|c| Arc::clone(&c.changed));
            let changed = changed.unwrap_or_default();
            let mut room = std::pin::pin!(changed.notified());
            room.as_mut().enable();
            if let Err(error) = self.broker.check_open().and_then(|()| self.store(batch, &mut sent)) {
                break error;
            }
            if sent.len() == batch.len() {
                break Error::new(code::STOPPED, "nothing is left to be refused");
            }
            let Some(wait) = until.checked_sub(clock.elapsed()).filter(|wait| !wait.is_zero()) else {
                break Error::new(code::LIMIT_REACHED, format!("channel {} is full", self.channel))
                    .hint("let its consumers catch up, unregister those that are gone, or raise its limits");
            };
            tokio::select! {
                () = room => {}
                () = clock.sleep(wait) => {}
            }
        };
        while sent.len() < batch.len() {
            let error = Error::new(refusal.code(), refusal.message().to_owned());
            sent.push(Sent::Refused(match refusal.hint_text() {
                Some(hint) => error.hint(hint.to_owned()),
                None => error,
            }));
        }
        if !batch.is_empty() && self.loses_answer() {
            for sent in &mut sent {
                *sent = Sent::Unknown(Error::new(code::CONNECTION_LOST, "the answer was lost"));
            }
        }
        sent
    }

    async fn close(self: Box<Self>, _: Duration) -> Result<()> {
        Ok(())
    }
}
