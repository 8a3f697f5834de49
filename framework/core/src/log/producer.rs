//! Publishes: checks messages, waits for room, and appends.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::broker::Link;
use super::documents::{self, ChannelRecord};
use super::{Appended, Appender, Log, tidy};
use crate::channel::Keep;
use crate::error::{Error, Result, Verdict, code};
use crate::message::Message;
use crate::port::{Producer, Sent};
use crate::position::Position;

/// How many messages, and bytes of them, are appended in one piece: a whole window of those who publish in windows.
const PIECE_MESSAGES: usize = 1_024;
const PIECE_BYTES: usize = 4 << 20;
/// How long to wait for room before it is looked for again.
const ROOM_WAIT: Duration = Duration::from_millis(20);
/// How long it is believed who subscribes.
const KNOWN_FOR: Duration = Duration::from_secs(1);

pub(super) struct LogProducer<L: Log> {
    link: Arc<Link<L>>,
    channel: ChannelRecord,
    looked: Duration,
    /// It is made anew after an answer was lost.
    appender: Option<Box<dyn Appender>>,
}

impl<L: Log> LogProducer<L> {
    pub(super) fn new(link: Arc<Link<L>>, channel: ChannelRecord, appender: Box<dyn Appender>) -> Self {
        let looked = link.clock.elapsed();
        Self { link, channel, looked, appender: Some(appender) }
    }

    /// # Errors
    /// `subscription-missing` if nobody would ever get a message.
    async fn require_somebody(&mut self) -> Result<()> {
        let is_wanted = |record: &ChannelRecord| {
            !record.subscriptions.is_empty() || record.channel.keep != Keep::UntilSettled
        };
        let elapsed = self.link.clock.elapsed();
        if is_wanted(&self.channel) && elapsed.saturating_sub(self.looked) < KNOWN_FOR {
            return Ok(());
        }
        self.channel = documents::channel(&*self.link.log, &self.channel.channel.name).await?.record;
        self.looked = elapsed;
        if is_wanted(&self.channel) {
            return Ok(());
        }
        let text = format!(
            "channel {} has no subscription, and keeps nothing for later ones",
            self.channel.channel.name
        );
        Err(Error::new(code::SUBSCRIPTION_MISSING, text))
    }

    fn check(&self, message: &Message) -> Result<()> {
        message.check()?;
        let size = message.size();
        let most = self.link.log.capabilities().message_bytes_max;
        if size > most {
            let text = format!("a message has {size} bytes, and {most} are possible");
            return Err(Error::new(code::BODY_TOO_LARGE, text));
        }
        if size as u64 > self.channel.channel.bytes_max {
            let text =
                format!("the message is larger than all that channel {} may keep", self.channel.channel.name);
            return Err(Error::new(code::BODY_TOO_LARGE, text));
        }
        Ok(())
    }

    /// Appends messages until all are stored, or something ends it; one answer a message that there is an answer for.
    async fn store(&mut self, messages: &[&Message], sent: &mut Vec<Sent>) -> Result<()> {
        self.link.check_open()?;
        self.require_somebody().await?;
        let clock = Arc::clone(&self.link.clock);
        let until = clock.elapsed() + self.link.settings.patience;
        let mut looked = None;
        while sent.len() < messages.len() {
            self.link.check_open()?;
            let appender = match &mut self.appender {
                Some(appender) => appender,
                none => none.insert(self.link.log.appender(&self.channel.channel).await?),
            };
            let (mut is_full, mut ended, mut refused) = (false, None, None);
            for appended in appender.append(piece(&messages[sent.len()..])).await {
                match appended {
                    Appended::Stored { place, duplicate } => {
                        sent.push(Sent::Stored { position: Some(Position::from_u64(place)), duplicate });
                    }
                    Appended::Refused(error) => {
                        if error.verdict() == Verdict::Retry {
                            refused.get_or_insert_with(|| error.again());
                        }
                        sent.push(Sent::Refused(error));
                    }
                    Appended::Unknown(error) => {
                        ended.get_or_insert_with(|| error.again());
                        sent.push(Sent::Unknown(error));
                    }
                    Appended::Full => {
                        is_full = true;
                        break;
                    }
                }
            }
            if let Some(error) = ended {
                // What stands behind it was not asked for.
                self.appender = None;
                return Err(error.verdict_is(Verdict::Retry));
            }
            if let Some(error) = refused {
                // It will be published again, and what stands behind it must not be before it then.
                return Err(error);
            }
            if !is_full {
                continue;
            }
            let elapsed = clock.elapsed();
            if elapsed >= until && looked.is_some() {
                let text = format!("channel {} is full", self.channel.channel.name);
                return Err(Error::new(code::LIMIT_REACHED, text).hint(
                    "let its consumers catch up, unregister those that are gone, or raise its limits",
                ));
            }
            // Somebody may have settled and died before it tidied.
            if looked.is_none_or(|looked| elapsed.saturating_sub(looked) >= KNOWN_FOR) {
                looked = Some(elapsed);
                tidy::all(&*self.link.log, &self.channel.channel.name, clock.now()).await?;
            } else {
                clock.sleep(until.saturating_sub(elapsed).min(ROOM_WAIT)).await;
            }
        }
        Ok(())
    }
}

/// As many messages as go in one piece; one at least.
fn piece<'a, 'm>(messages: &'a [&'m Message]) -> &'a [&'m Message] {
    let mut bytes = 0;
    let fits = messages.iter().take(PIECE_MESSAGES).take_while(|message| {
        bytes += message.size();
        bytes <= PIECE_BYTES
    });
    let count = fits.count().max(1);
    &messages[..count.min(messages.len())]
}

#[async_trait]
impl<L: Log> Producer for LogProducer<L> {
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
        let Some(appender) = &mut self.appender else { return Ok(()) };
        tokio::select! {
            ended = appender.finish() => ended,
            () = self.link.clock.sleep(deadline) => {
                Err(Error::new(code::TIMED_OUT, "what was published could not be brought to an end in time"))
            }
        }
    }
}
