//! Publishes until it is stored.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::future::{BoxFuture, FutureExt as _};
use tidegate_core::error::Verdict;
use tidegate_core::port::{Broker, Producer, Sent};
use tidegate_core::{Channel, Clock, Error, Message, Result, SystemClock};

/// Pauses between attempts: from, to; each with jitter.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));

/// How long each message is tried, unless something else is said.
const PATIENCE: Duration = Duration::from_secs(30);

/// A [`Publisher`] or a [`Sender`](crate::Sender) that is opened when this is awaited.
///
/// ```
/// # use std::time::Duration;
/// # use tidegate_core::{Apply, Channel, Message, Topology, port::Broker};
/// # use tidegate_runtime::Sender;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tidegate_core::Result<()> {
/// # let broker = tidegate_memory::MemoryBroker::default();
/// # let orders = Channel::new("orders")?;
/// # broker.apply(&Topology::of(&orders), Apply::Create).await?;
/// let sender = Sender::open(&broker, &orders).await?;
/// let hasty = Sender::open(&broker, &orders).with_patience(Duration::from_secs(1)).await?;
/// # drop((sender, hasty));
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is opened before it is awaited"]
#[derive(Debug)]
pub struct Opening<'b, T> {
    pub(crate) broker: &'b dyn Broker,
    pub(crate) channel: &'b Channel,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) patience: Duration,
    opened: PhantomData<fn() -> T>,
}

impl<'b, T> Opening<'b, T> {
    pub(crate) fn new(broker: &'b dyn Broker, channel: &'b Channel) -> Self {
        Self { broker, channel, clock: SystemClock::shared(), patience: PATIENCE, opened: PhantomData }
    }

    /// Tries each message for so long; half a minute unless this is called.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Goes by this clock.
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
}

impl<'b> IntoFuture for Opening<'b, Publisher> {
    type Output = Result<Publisher>;
    type IntoFuture = BoxFuture<'b, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        async move {
            let producer = self.broker.producer(self.channel).await?;
            Ok(Publisher { producer, clock: self.clock, patience: self.patience })
        }
        .boxed()
    }
}

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
    /// A publisher of a channel that is there, once it is awaited.
    ///
    /// # Errors
    /// As [`Broker::producer`].
    pub fn open<'b>(broker: &'b dyn Broker, channel: &'b Channel) -> Opening<'b, Self> {
        Opening::new(broker, channel)
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
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

    /// The same, with an answer for each message, in their order: one that is refused for good does not keep the others.
    ///
    /// # Errors
    /// Those of the messages, each at its place: what the broker answered last. If the verdict is unknown, the message may be stored.
    ///
    /// # Cancel safety
    /// A dropped call leaves its messages unknown, and the publisher usable: publish them again, before newer ones.
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
        let mut publisher = Publisher::open(&broker, &channel)
            .with_clock(Arc::clone(&clock))
            .with_patience(Duration::from_secs(5))
            .await
            .unwrap();
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
        let mut publisher = Publisher::open(&broker, &channel)
            .with_clock(Arc::clone(&clock))
            .with_patience(Duration::from_secs(5))
            .await
            .unwrap();
        let invalid = Message::with_id("", "test", "t");
        assert_eq!(publisher.publish(&[invalid]).await.unwrap_err().code(), code::MESSAGE_INVALID);
        publisher.publish(&[Message::with_id("1", "test", "t")]).await.unwrap();
        let began = clock.elapsed();
        let full = publisher.publish(&[Message::with_id("2", "test", "t")]).await.unwrap_err();
        assert_eq!(full.code(), code::LIMIT_REACHED);
        assert!(clock.elapsed() - began >= Duration::from_secs(5));
    }
}
