//! Appends messages, a window at once.

use std::collections::VecDeque;
use std::future::IntoFuture as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::stream::{Info, State};
use async_trait::async_trait;
use tidegate_broker::log::{Appended, Appender};
use tidegate_broker::unsettled::Place;
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Channel, Error, Message, Result};
use tokio::time::Instant;

use crate::codec::{encode, stream, subject};
use crate::config::Config;
use crate::connect::Link;
use crate::error::from_publish;

/// How long it is believed how full the stream is.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// No stream has had so many messages.
const NEVER: u64 = i64::MAX as u64;
/// Of how many messages that have no room it is asked at once whether they are stored.
const ASKED_MAX: usize = 32;

/// What was sent and is not answered.
struct Open {
    ack: Pin<Box<dyn Future<Output = std::result::Result<PublishAck, PublishError>> + Send>>,
    since: Instant,
    subject: String,
}

pub(crate) struct NatsAppender {
    config: Arc<Config>,
    channel: Channel,
    /// Its own, so that one producer's messages keep their order.
    link: Link,
    /// What was sent and is not answered, in the order of sending; that of a call that was dropped too.
    sent: VecDeque<Open>,
    /// Why an answer did not come. Then those that are not here by now are not waited for, and nothing more is sent: what
    /// is under way may still be stored.
    unknown: Option<Error>,
    /// Nothing is open over the connection, and it does not answer.
    is_silent: bool,
    /// A message was refused: until one is stored again they go one by one, so that none overtakes.
    is_careful: bool,
    kept: Option<Kept>,
}

/// How full a stream is.
struct Kept {
    messages: u64,
    bytes: u64,
    last: Place,
    looked: Instant,
}

impl Kept {
    /// Messages of whomever stand up to here.
    fn reach(&mut self, place: Place) {
        self.messages += place.saturating_sub(self.last);
        self.last = self.last.max(place);
    }

    /// How many of the messages have room. One always has where nothing is: what the server adds to its size may be more
    /// than the channel has.
    fn room(&self, channel: &Channel, batch: &[&Message]) -> usize {
        let (mut messages, mut bytes) = (self.messages, self.bytes);
        let fits = batch.iter().take_while(|message| {
            let is_first = messages == 0;
            messages += 1;
            bytes += message.size() as u64;
            messages <= channel.messages_max && (bytes <= channel.bytes_max || is_first)
        });
        fits.count()
    }
}

impl NatsAppender {
    pub(crate) async fn open(config: Arc<Config>, channel: &Channel) -> Result<Self> {
        let link = Link::open(&config).await?;
        let (sent, channel) = (VecDeque::new(), channel.clone());
        let (unknown, kept) = (None, None);
        Ok(Self { config, channel, link, sent, unknown, is_silent: false, is_careful: false, kept })
    }

    /// Hands a message to the connection; whether it will be answered. One that is not to be stored is answered too if it
    /// is there.
    async fn send(&mut self, message: &Message, is_stored: bool) -> Result<()> {
        let lane = message.lane(self.channel.lanes);
        let publish = PublishMessage::build().headers(encode(message)?);
        let publish = match is_stored {
            true => publish.payload(message.data.clone()),
            // Ids are looked at before this.
            false => publish.expected_last_sequence(NEVER),
        };
        let (since, subject) = (Instant::now(), subject(&self.channel.name, Some(lane)));
        let sent = self.link.context.send_publish(subject.clone(), publish).await;
        let ack = sent.map_err(|error| from_publish(error, "append messages"))?.into_future();
        self.sent.push_back(Open { ack, since, subject });
        Ok(())
    }

    /// The answer to the first message that was sent and is not answered; without one if it is not there.
    async fn answer(&mut self) -> Option<Result<Option<PublishAck>>> {
        let first = self.sent.front_mut()?;
        let answer = match self.unknown {
            Some(_) => tokio::time::timeout(Duration::ZERO, &mut first.ack).await,
            None => Ok((&mut first.ack).await),
        };
        let Open { since, subject, .. } = self.sent.pop_front()?;
        let answer = answer.unwrap_or_else(|_| Err(PublishErrorKind::TimedOut.into()));
        match answer {
            Ok(ack) => {
                self.is_careful = false;
                if let Some(kept) = &mut self.kept {
                    kept.reach(ack.sequence);
                }
                Some(Ok(Some(ack)))
            }
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Some(Ok(None)),
            Err(error) => {
                let error = from_publish(error, "append messages");
                let error = self.link.explain(error, since, |forbidden| forbidden == subject);
                self.kept = None;
                self.is_careful = true;
                if error.verdict() == Verdict::Unknown {
                    self.unknown.get_or_insert_with(|| error.again());
                }
                Some(Err(error))
            }
        }
    }

    /// Has another connection, when nothing is open over the one of before.
    async fn renew(&mut self) -> Result<()> {
        self.link = Link::open(&self.config).await?;
        (self.is_silent, self.kept) = (false, None);
        Ok(())
    }

    async fn look(&mut self) -> Result<Info> {
        let asked = format!("STREAM.INFO.{}", stream(&self.channel.name));
        self.link.get(&asked, &(), "look how full a stream is").await
    }

    /// Brings an earlier call to its end, and says how many of the messages have room.
    async fn prepare(&mut self, batch: &[&Message]) -> Result<usize> {
        self.finish().await?;
        if self.is_silent {
            self.renew().await?;
        }
        if let Some(kept) = self.kept.as_ref().filter(|kept| kept.looked.elapsed() < KNOWN_FOR)
            && !self.link.is_lost()
            && kept.room(&self.channel, batch) == batch.len()
        {
            return Ok(batch.len());
        }
        let looked = Instant::now();
        let info = match self.look().await {
            // That it was cut while it was idle is seen now.
            Err(error) if error.code() == code::CONNECTION_LOST => {
                self.renew().await?;
                self.look().await
            }
            info => info,
        };
        let State { messages, bytes, last_sequence, .. } = info.inspect_err(|_| self.is_silent = true)?.state;
        let kept = self.kept.insert(Kept { messages, bytes, last: last_sequence, looked });
        Ok(kept.room(&self.channel, batch))
    }
}

#[async_trait]
impl Appender for NatsAppender {
    async fn append(&mut self, batch: &[&Message]) -> Vec<Appended> {
        let room = match self.prepare(batch).await {
            Ok(room) => room,
            Err(error) => {
                let again = || error.again().with("cause", format!("{error:?}"));
                // Nothing of this batch was sent now. But some of it may be under way since an earlier call.
                let failed = |_: &&Message| match error.verdict() {
                    Verdict::Unknown if self.unknown.is_some() => Appended::Unknown(again()),
                    Verdict::Unknown => Appended::Refused(again().verdict_is(Verdict::Retry)),
                    Verdict::Retry | Verdict::Never => Appended::Refused(again()),
                };
                return batch.iter().map(failed).collect();
            }
        };
        // For what has no room it is only asked whether it is stored: the answer to an earlier call may have been lost.
        let count = if self.is_careful { 1 } else { room + ASKED_MAX };
        let batch = &batch[..count.min(batch.len())];
        // All are sent before the first answer is waited for.
        let mut failed = Vec::with_capacity(batch.len());
        for (at, message) in batch.iter().enumerate() {
            failed.push(self.send(message, at < room).await.err());
        }
        let (mut answers, mut stored) = (Vec::with_capacity(batch.len()), 0);
        for (message, failed) in batch.iter().zip(failed) {
            let answer = match failed {
                Some(error) => Err(error),
                None => self.answer().await.unwrap_or_else(|| {
                    Err(Error::new(code::INTERNAL, "a message has no answer").verdict_is(Verdict::Unknown))
                }),
            };
            answers.push(match answer {
                Ok(Some(ack)) => {
                    if !ack.duplicate {
                        stored += 1;
                        self.kept.iter_mut().for_each(|kept| kept.bytes += message.size() as u64);
                    }
                    Appended::Stored { place: ack.sequence, duplicate: ack.duplicate }
                }
                // Some that were given room did not need it.
                Ok(None) if stored < room => break,
                Ok(None) => Appended::Full,
                Err(error) if error.verdict() == Verdict::Unknown => Appended::Unknown(error),
                Err(error) => Appended::Refused(error),
            });
        }
        answers
    }

    async fn finish(&mut self) -> Result<()> {
        while self.answer().await.is_some() {}
        self.unknown.as_ref().map_or(Ok(()), |error| Err(error.again()))
    }
}
