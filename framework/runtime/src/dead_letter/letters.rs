//! Looks at dead letters, and decides about them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_core::error::code;
use tidegate_core::port::{Broker, Delivery};
use tidegate_core::{Clock, Error, Message, Name, Result};

use super::{channel, origin, release, replay, subscription};
use crate::claim;
use crate::publisher::Publisher;
use crate::receiver::Receiver;

/// How long the lane may take to be had, unless something else is said: a lease, for which one that was killed keeps it, and the
/// time to notice that.
const LANE_WAIT: Duration = Duration::from_secs(15);
/// How long the first dead letter may take to come then, and each further one.
const WAITS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(500));
/// How many are replayed or taken away together.
const BATCH: usize = 256;
/// How long a message that is replayed is tried, unless something else is said.
const PATIENCE: Duration = Duration::from_secs(30);

/// The dead letters of one channel, in the order in which they came, in the hand of whoever looks at them: another one who
/// looks meanwhile is told that somebody does.
///
/// ```
/// # use std::time::Duration;
/// # use tidegate_core::{Endpoint, Name, Result, SystemClock};
/// use tidegate_runtime::dead_letter::{DeadLetters, SUBSCRIPTION};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// # let broker = tidegate_memory::open_broker(&Endpoint::parse("memory:")?)?;
/// # let orders = tidegate_core::Channel::new("orders")?;
/// # let topology = tidegate_core::Topology::of(&orders);
/// # broker.apply(&topology, tidegate_core::Apply::Create).await?;
/// # let dead = tidegate_core::Topology::of(&tidegate_runtime::dead_letter::channel(&orders.name)?);
/// # broker.apply(&dead, tidegate_core::Apply::Create).await?;
/// let mut dead = DeadLetters::open(&*broker, &Name::new("orders")?, 1_000, SystemClock::shared()).await?;
/// for letter in dead.read().await? {
///     println!("{}: {:?}", letter.id, letter.headers.get(SUBSCRIPTION));
/// }
/// let replayed = dead.replay(|letter| letter.subject.as_deref() == Some("order-17")).await?;
/// println!("{replayed} are tried again");
/// dead.close().await?;
/// # Ok(())
/// # }
/// ```
pub struct DeadLetters {
    receiver: Receiver,
    back: Publisher,
    held: Vec<Delivery>,
    limit: usize,
    lane_wait: Duration,
    patience: Duration,
    /// Where they are, for people.
    place: (Name, String),
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetters").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

impl DeadLetters {
    /// The dead letters of a channel, at most so many of them.
    ///
    /// # Errors
    /// `channel-missing` if the channel is not there, or never had a dead letter; otherwise as [`Broker::subscribe`].
    pub async fn open(broker: &dyn Broker, of: &Name, limit: usize, clock: Arc<dyn Clock>) -> Result<Self> {
        let missing = |name: &Name| {
            Error::new(code::CHANNEL_MISSING, format!("there is no channel {name}"))
                .with("broker", broker.location())
        };
        let from = broker.channel(of).await?.ok_or_else(|| missing(of))?;
        let dead = channel(of)?;
        broker.channel(&dead.name).await?.ok_or_else(|| {
            missing(&dead.name).hint(
                "no service that handles the channel has ever been started, or none that makes dead letters",
            )
        })?;
        let subscription = subscription(of)?.with_window(limit);
        Ok(Self {
            receiver: Receiver::open(broker, &subscription, Arc::clone(&clock)).await?,
            back: Publisher::open(broker, &from).with_clock(clock).with_patience(PATIENCE).await?,
            held: Vec::new(),
            limit,
            lane_wait: LANE_WAIT,
            patience: PATIENCE,
            place: (of.clone(), broker.location()),
        })
    }

    /// Waits so long for whoever else has them in hand, and tries each message for so long; 15 and 30 seconds unless this is called.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.back.set_patience(patience);
        (self.lane_wait, self.patience) = (patience, patience);
        self
    }

    /// Those that are there.
    ///
    /// # Errors
    /// `lease-held` if somebody else looks at them, also one that was killed until its lease is over. Otherwise as
    /// [`Receiver::next`].
    ///
    /// # Cancel safety
    /// A dropped call loses nothing: the next one goes on.
    pub async fn read(&mut self) -> Result<impl Iterator<Item = &Message>> {
        while self.held.len() < self.limit {
            if !self.receiver.has_lanes() {
                // What was held comes again, to whoever has the lane.
                self.held.clear();
            }
            if !self.receiver.join(self.lane_wait).await? {
                return Err(self.held_elsewhere());
            }
            let wait = if self.held.is_empty() { WAITS.0 } else { WAITS.1 };
            match self.receiver.next(wait).await? {
                Some(delivery) => {
                    // The same, of an ownership of the lane that went and came meanwhile.
                    self.held.retain(|held| held.token.epoch == delivery.token.epoch);
                    self.held.push(delivery);
                }
                None if self.receiver.has_lanes() => break,
                // Nobody knows what is there.
                None => {}
            }
        }
        Ok(self.held.iter().map(|delivery| &*delivery.message))
    }

    fn held_elsewhere(&self) -> Error {
        let (channel, broker) = &self.place;
        let what = format!("somebody else has the dead letters of channel {channel} in hand");
        Error::new(code::LEASE_HELD, what)
            .with("waited", format!("{:?}", self.lane_wait))
            .with("broker", broker)
            .hint("another `tidegate dlq`, or a program that reads them, is at it: let it end, or stop it; one that was killed has them until its lease is over (lease_ms of the broker's address, 10 seconds)")
    }

    /// Has these tried again by the subscription that could not handle them, in their order: how many. Those of a subject
    /// that stay keep later ones of it waiting.
    ///
    /// # Errors
    /// As [`Publisher::publish`], for the first that is not stored. Those that are stored are no dead letters any more.
    ///
    /// # Cancel safety
    /// A dropped call may have replayed some of them, and these may be dead letters still: called again, it replays them as the same
    /// messages.
    pub async fn replay(&mut self, which: impl Fn(&Message) -> bool) -> Result<usize> {
        // What somebody else put there belongs nowhere: it can be purged alone.
        let is_ours = |letter: &Message| which(letter) && origin(letter).is_ok();
        self.take(is_ours, |letter| replay(letter).map(|(_, message)| Some(message))).await
    }

    /// The same for one of them, with another body.
    ///
    /// # Errors
    /// As [`replay`](Self::replay).
    ///
    /// # Cancel safety
    /// As [`replay`](Self::replay), with the same body.
    pub async fn replay_with(&mut self, id: &str, body: &Bytes) -> Result<usize> {
        let edited = |letter: &Message| {
            let (_, mut message) = replay(letter)?;
            claim::forget(&mut message);
            message.data = body.clone();
            Ok(Some(message))
        };
        let mut is_first = true;
        let one =
            |letter: &Message| *letter.id == *id && origin(letter).is_ok() && std::mem::take(&mut is_first);
        self.take(one, edited).await
    }

    /// Takes these away for ever: how many. What waits behind them may be replayed then.
    ///
    /// # Errors
    /// As [`replay`](Self::replay).
    ///
    /// # Cancel safety
    /// A dropped call may have taken some of them away; call it again.
    pub async fn purge(&mut self, which: impl Fn(&Message) -> bool) -> Result<usize> {
        let release = |letter: &Message| match (&letter.subject, origin(letter)) {
            (Some(_), Ok(_)) => release(letter).map(|(_, message)| Some(message)),
            (_, _) => Ok(None),
        };
        self.take(which, release).await
    }

    async fn take(
        &mut self,
        mut which: impl FnMut(&Message) -> bool,
        instead: impl Fn(&Message) -> Result<Option<Message>>,
    ) -> Result<usize> {
        let mut chosen = Vec::new();
        for Delivery { message, token, .. } in &self.held {
            if which(message) {
                chosen.push((*token, instead(message)?));
            }
        }
        let mut taken = 0;
        for batch in chosen.chunks(BATCH) {
            let messages: Vec<_> = batch.iter().filter_map(|(_, message)| message.clone()).collect();
            let mut answers = self.back.publish_each(&messages).await.into_iter();
            let (mut done, mut result) = (BTreeSet::new(), Ok(()));
            for (token, message) in batch {
                match message.as_ref().and_then(|_| answers.next()).unwrap_or(Ok(())) {
                    Ok(()) => _ = done.insert(*token),
                    Err(error) => result = result.and(Err(error)),
                }
            }
            // What is not known to be settled comes again, and so does its copy.
            self.held.retain(|delivery| !done.contains(&delivery.token));
            self.receiver.settle(&done.iter().copied().collect::<Vec<_>>()).await?;
            taken += done.len();
            result?;
        }
        Ok(taken)
    }

    /// Gives back what is still here.
    ///
    /// # Errors
    /// As [`Receiver::close`].
    pub async fn close(self) -> Result<()> {
        self.back.close(self.patience).await?;
        self.receiver.close(Duration::ZERO).await
    }
}
