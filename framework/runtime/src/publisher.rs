//! Publishes until it is stored.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tidegate_core::error::Verdict;
use tidegate_core::port::{Broker, Producer, Sent};
use tidegate_core::{Channel, Clock, Error, Message, Result};

/// Pauses between attempts: from, to; each with jitter.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));

/// Puts messages on one channel.
///
/// # Cancel safety
/// A dropped call leaves its messages unknown, and the publisher usable.
pub struct Publisher {
    producer: Box<dyn Producer>,
    clock: Arc<dyn Clock>,
    patience: Duration,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Publisher {
    /// A publisher of a channel that is there. It tries for `patience`.
    ///
    /// # Errors
    /// As [`Broker::producer`].
    pub async fn open(
        broker: &dyn Broker,
        channel: &Channel,
        clock: Arc<dyn Clock>,
        patience: Duration,
    ) -> Result<Self> {
        Ok(Self { producer: broker.producer(channel).await?, clock, patience })
    }

    /// Returns when every message is stored. What may be stored already is published again under its own id, before
    /// anything newer: a broker that does not know it by its id stores it twice, so receivers have to.
    ///
    /// # Errors
    /// What the broker answered last, when it refused for good or the patience was over. Other messages of the call may
    /// be stored all the same.
    pub async fn publish(&mut self, messages: &[Message]) -> Result<()> {
        self.publish_each(messages).await.into_iter().collect()
    }

    /// The same, with an answer for each message: one that is refused for good does not keep the others.
    pub async fn publish_each(&mut self, messages: &[Message]) -> Vec<Result<()>> {
        let until = self.clock.elapsed() + self.patience;
        let schedule = ExponentialBuilder::new().with_min_delay(PAUSES.0).with_max_delay(PAUSES.1);
        let mut pauses = schedule.with_jitter().without_max_times().build();
        let mut results: Vec<Result<()>> = messages.iter().map(|_| Ok(())).collect();
        // Which messages are tried again, and those.
        let mut left: Option<(Vec<usize>, Vec<Message>)> = None;
        loop {
            let batch = left.as_ref().map_or(messages, |(_, again)| again);
            let answers = self.producer.publish(batch).await;
            let mut again = Vec::new();
            for (at, answer) in answers.into_iter().enumerate() {
                let at = left.as_ref().map_or(at, |(which, _)| which[at]);
                results[at] = match answer {
                    Sent::Stored { .. } => Ok(()),
                    Sent::Refused(error) if error.verdict() == Verdict::Never => Err(error),
                    Sent::Refused(error) | Sent::Unknown(error) => {
                        again.push(at);
                        Err(error)
                    }
                };
            }
            if again.is_empty() || self.clock.elapsed() >= until {
                return results;
            }
            tracing::debug!(messages = again.len(), "published again");
            let batch = again.iter().map(|at| messages[*at].clone()).collect();
            left = Some((again, batch));
            self.clock.sleep(pauses.next().unwrap_or(PAUSES.1)).await;
        }
    }

    /// Ends; afterwards nothing of it is stored any more.
    ///
    /// # Errors
    /// As [`Producer::close`].
    pub async fn close(self, deadline: Duration) -> Result<(), Error> {
        self.producer.close(deadline).await
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::{Apply, SystemClock, Topology, error::code};
    use tidegate_memory::MemoryBroker;

    use super::*;
    use crate::Receiver;

    #[tokio::test(start_paused = true)]
    async fn lost_answers_are_asked_for_again_and_order_stays() {
        let broker = MemoryBroker::default();
        let channel = Channel::new("orders").unwrap().with_lanes(1);
        let subscription = tidegate_core::Subscription::new(&channel, "all").unwrap();
        broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
        let clock = SystemClock::shared();
        let mut publisher =
            Publisher::open(&broker, &channel, Arc::clone(&clock), Duration::from_secs(5)).await.unwrap();
        let message = |n: u32| Message::with_id(n.to_string(), "test", "t").with_subject("k");
        broker.lose_answers(3);
        publisher.publish(&[message(1), message(2)]).await.unwrap();
        publisher.publish(&[message(3)]).await.unwrap();
        publisher.close(Duration::from_secs(1)).await.unwrap();
        let mut receiver = Receiver::open(&broker, &subscription, clock).await.unwrap();
        let mut seen = Vec::new();
        while let Some(delivery) = receiver.next(Duration::from_millis(50)).await.unwrap() {
            receiver.settle(&[delivery.token]).await.unwrap();
            seen.push(delivery.message.id.to_string());
        }
        seen.dedup();
        assert_eq!(seen, ["1", "2", "3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_for_good_is_not_tried_again_and_patience_ends() {
        let broker = MemoryBroker::default().with_patience(Duration::from_millis(1));
        let channel = Channel::new("orders").unwrap().with_lanes(1).with_limits(1, 1 << 20);
        let subscription = tidegate_core::Subscription::new(&channel, "all").unwrap();
        broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
        let clock = SystemClock::shared();
        let mut publisher =
            Publisher::open(&broker, &channel, Arc::clone(&clock), Duration::from_secs(5)).await.unwrap();
        let invalid = Message::with_id("", "test", "t");
        assert_eq!(publisher.publish(&[invalid]).await.unwrap_err().code(), code::MESSAGE_INVALID);
        publisher.publish(&[Message::with_id("1", "test", "t")]).await.unwrap();
        let began = clock.elapsed();
        let full = publisher.publish(&[Message::with_id("2", "test", "t")]).await.unwrap_err();
        assert_eq!(full.code(), code::LIMIT_REACHED);
        assert!(clock.elapsed() - began >= Duration::from_secs(5));
    }
}
