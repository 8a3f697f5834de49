//! Publishes: checks messages, waits for room, and sends.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::broker::Link;
use super::{Queues, Sender, Taken, record};
use crate::channel::Channel;
use crate::error::{Error, Result, Verdict, code};
use crate::message::Message;
use crate::port::{Producer, Sent};

/// How many messages, and bytes of them, are sent in one piece.
const PIECE_MESSAGES: u64 = 1_000;
const PIECE_BYTES: usize = 4 << 20;
/// How long to wait for what was sent over a sender in doubt.
const FINISH: Duration = Duration::from_secs(1);
/// How long to wait for room before it is looked for again.
const ROOM_WAIT: Duration = Duration::from_millis(20);
/// Into how many parts what there is room for is cut: a look for room lets one of them pass, since others publish as well.
const ROOM_PARTS: u64 = 10;

pub(super) struct QueueProducer<Q: Queues> {
    link: Arc<Link<Q>>,
    channel: Channel,
    /// It is made anew after an answer was lost.
    sender: Option<Box<dyn Sender>>,
    /// Whether something that was sent over it has no answer: an answer was lost, or a call was dropped.
    is_in_doubt: bool,
    /// Why something may still be stored that was sent over an earlier one.
    doubt: Option<Error>,
    /// How many messages may be sent before it is looked again.
    room: u64,
    /// What was published until now: messages and bytes.
    published: (u64, u64),
}

impl<Q: Queues> QueueProducer<Q> {
    pub(super) fn new(link: Arc<Link<Q>>, channel: Channel, sender: Box<dyn Sender>) -> Self {
        let sender = Some(sender);
        Self { link, channel, sender, is_in_doubt: false, doubt: None, room: 0, published: (0, 0) }
    }

    fn check(&self, message: &Message) -> Result<()> {
        message.check()?;
        let size = message.size();
        let most = self.link.system.queues.capabilities().message_bytes_max;
        if size > most {
            let text = format!("a message has {size} bytes, and {most} are possible");
            return Err(Error::new(code::BODY_TOO_LARGE, text));
        }
        if size as u64 > self.channel.bytes_max {
            let text = format!("the message is larger than all that channel {} may keep", self.channel.name);
            return Err(Error::new(code::BODY_TOO_LARGE, text));
        }
        Ok(())
    }

    /// Looks how many messages there is room for. Queues count messages alone: their bytes are reckoned from the mean size of
    /// what was published here.
    async fn look_for_room(&mut self) -> Result<()> {
        let queues = &*self.link.system.queues;
        let record = self.link.system.find_recent(&self.channel.name).await?;
        let record = record.ok_or_else(|| record::missing(&self.channel.name))?;
        let mut waiting = 0;
        for subscription in record.subscriptions.keys() {
            waiting = queues.waiting(&record.channel, subscription).await?.max(waiting);
        }
        let (messages, bytes) = self.published;
        let size = bytes.div_ceil(messages.max(1)).max(1);
        let most = self.channel.messages_max.min(self.channel.bytes_max / size);
        self.room = most.saturating_sub(waiting).min((most / ROOM_PARTS).max(1));
        Ok(())
    }

    /// Waits until something may be sent, at most until then.
    async fn wait_for_room(&mut self, until: Duration) -> Result<()> {
        let clock = Arc::clone(&self.link.system.clock);
        loop {
            self.link.check_open()?;
            if self.room == 0 {
                self.look_for_room().await?;
            }
            if self.room > 0 {
                return Ok(());
            }
            let rest = until.saturating_sub(clock.elapsed());
            if rest.is_zero() {
                let text = format!("channel {} is full", self.channel.name);
                return Err(Error::new(code::LIMIT_REACHED, text).hint(
                    "let its consumers catch up, unregister subscriptions that nobody reads, or raise its limits",
                ));
            }
            clock.sleep(rest.min(ROOM_WAIT)).await;
        }
    }

    /// Ends a sender in doubt: what was sent over it is not to be stored behind what is sent over the next one.
    async fn end_doubt(&mut self) {
        let Some(sender) = self.sender.as_mut().filter(|_| self.is_in_doubt) else { return };
        let ended = tokio::select! {
            ended = sender.finish() => ended,
            () = self.link.system.clock.sleep(FINISH) => Err(not_ended()),
        };
        self.doubt = ended.err().or(self.doubt.take());
        (self.sender, self.is_in_doubt) = (None, false);
    }

    /// Sends messages until all are stored, or something ends it; one answer a message that there is an answer for.
    async fn store(&mut self, messages: &[&Message], sent: &mut Vec<Sent>) -> Result<()> {
        let clock = Arc::clone(&self.link.system.clock);
        let until = clock.elapsed() + self.link.system.settings.patience;
        while sent.len() < messages.len() {
            self.wait_for_room(until).await?;
            self.end_doubt().await;
            let sender = match &mut self.sender {
                Some(sender) if sender.is_open() => sender,
                Some(lost) => {
                    *lost = self.link.system.queues.sender(&self.channel).await?;
                    lost
                }
                none => none.insert(self.link.system.queues.sender(&self.channel).await?),
            };
            let (mut blocked, mut ended, mut refused) = (None, None, None);
            let piece = piece(&messages[sent.len()..], self.room);
            self.is_in_doubt = true;
            let all = sender.send(piece).await;
            self.is_in_doubt = all.iter().any(|taken| matches!(taken, Taken::Unknown(_)));
            for (message, taken) in piece.iter().zip(all) {
                sent.push(match taken {
                    Taken::Stored => {
                        self.room = self.room.saturating_sub(1);
                        self.published.0 += 1;
                        self.published.1 += message.size() as u64;
                        Sent::Stored { position: None, duplicate: false }
                    }
                    Taken::Unwanted => {
                        let text = format!(
                            "channel {} has no subscription, and keeps nothing for later ones",
                            self.channel.name
                        );
                        Sent::Refused(Error::new(code::SUBSCRIPTION_MISSING, text))
                    }
                    Taken::Refused(error) => {
                        if error.verdict() == Verdict::Retry {
                            refused.get_or_insert_with(|| error.again());
                        }
                        Sent::Refused(error)
                    }
                    Taken::Unknown(error) => {
                        ended.get_or_insert_with(|| error.again());
                        Sent::Unknown(error)
                    }
                    Taken::Blocked(error) => {
                        blocked = Some(error);
                        break;
                    }
                });
            }
            if let Some(error) = ended {
                // What stands behind it was not asked for.
                return Err(error.verdict_is(Verdict::Retry));
            }
            if let Some(error) = refused {
                // It will be published again, and what stands behind it must not be before it then.
                return Err(error);
            }
            if let Some(error) = blocked {
                let rest = until.saturating_sub(clock.elapsed());
                if rest.is_zero() {
                    return Err(error);
                }
                clock.sleep(rest.min(ROOM_WAIT)).await;
            }
        }
        Ok(())
    }
}

fn not_ended() -> Error {
    Error::new(code::TIMED_OUT, "what was published could not be brought to an end in time")
}

/// As many messages as go in one piece, and have room; one at least.
fn piece<'a, 'm>(messages: &'a [&'m Message], room: u64) -> &'a [&'m Message] {
    let most = usize::try_from(room.min(PIECE_MESSAGES)).unwrap_or(usize::MAX);
    let mut bytes = 0;
    let fits = messages.iter().take(most).take_while(|message| {
        bytes += message.size();
        bytes <= PIECE_BYTES
    });
    let count = fits.count().max(1);
    &messages[..count.min(messages.len())]
}

#[async_trait]
impl<Q: Queues> Producer for QueueProducer<Q> {
    async fn publish(&mut self, batch: &[Message]) -> Vec<Sent> {
        let refused: Vec<Option<Error>> = batch.iter().map(|message| self.check(message).err()).collect();
        let good = batch.iter().zip(&refused).filter(|(_, refused)| refused.is_none());
        let good: Vec<&Message> = good.map(|(message, _)| message).collect();
        let mut sent = Vec::with_capacity(good.len());
        let ended = if good.is_empty() { None } else { self.store(&good, &mut sent).await.err() };
        let mut sent = sent.into_iter();
        let answer = |refused: Option<Error>| match refused {
            Some(error) => Sent::Refused(error),
            None => sent.next().unwrap_or_else(|| {
                let missing = || Error::new(code::INTERNAL, "a message has no answer");
                Sent::Refused(ended.as_ref().map_or_else(missing, Error::again))
            }),
        };
        refused.into_iter().map(answer).collect()
    }

    async fn close(mut self: Box<Self>, deadline: Duration) -> Result<()> {
        let ended = match &mut self.sender {
            None => Ok(()),
            Some(sender) => tokio::select! {
                ended = sender.finish() => ended,
                () = self.link.system.clock.sleep(deadline) => Err(not_ended()),
            },
        };
        ended.and(self.doubt.take().map_or(Ok(()), Err))
    }
}
