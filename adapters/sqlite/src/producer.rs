//! Puts messages on a channel.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Producer, Sent};
use tidegate_core::{Error, Message, Name, Position, Result};

use crate::broker::publish::{Line, Publish, Put};
use crate::broker::topology::missing;
use crate::broker::writer::Job;
use crate::broker::{CAPABILITIES, Link};

/// How many messages are stored in one piece.
const PIECE_MAX: usize = 1_024;
/// How long to wait for room that another process makes.
const ROOM_WAIT: Duration = Duration::from_millis(20);

pub(crate) struct SqliteProducer {
    link: Arc<Link>,
    channel: i64,
    name: Name,
    lanes: u32,
}

impl SqliteProducer {
    pub(crate) fn new(link: Arc<Link>, channel: i64, name: Name, lanes: u32) -> Self {
        Self { link, channel, name, lanes }
    }

    /// Stores lines until all are, or something ends it; one answer a line that there is an answer to.
    async fn store(&self, lines: &Arc<Vec<Line>>, sent: &mut Vec<Sent>) -> Result<()> {
        let clock = &self.link.clock;
        let until = clock.elapsed() + self.link.settings.patience;
        while sent.len() < lines.len() {
            self.link.check_open()?;
            let mut settled = std::pin::pin!(self.link.settled.notified());
            settled.as_mut().enable();
            let range = sent.len()..lines.len().min(sent.len() + PIECE_MAX);
            let job = Publish {
                channel: self.channel,
                lines: Arc::clone(lines),
                range: range.clone(),
                now: clock.now(),
            };
            let puts = match self.link.ask(job).await {
                Ok(puts) => puts,
                Err(error) if error.verdict() == Verdict::Unknown => {
                    // What was asked for may have happened; what stands behind it was not asked for.
                    sent.extend(range.map(|_| Sent::Unknown(error.again())));
                    return Err(error.verdict_is(Verdict::Retry));
                }
                Err(error) => return Err(error),
            };
            let mut is_full = false;
            for put in puts {
                match put {
                    Put::Stored { place, duplicate } => {
                        sent.push(Sent::Stored { position: Some(Position::from_u64(place)), duplicate });
                    }
                    Put::Unwanted => {
                        let text = format!(
                            "channel {} has no subscription, and keeps nothing for later ones",
                            self.name
                        );
                        return Err(Error::new(code::SUBSCRIPTION_MISSING, text));
                    }
                    Put::Missing => return Err(missing(&self.name)),
                    Put::Full => {
                        is_full = true;
                        break;
                    }
                }
            }
            if !is_full {
                continue;
            }
            let left = until.saturating_sub(clock.elapsed());
            if left.is_zero() {
                return Err(Error::new(code::LIMIT_REACHED, format!("channel {} is full", self.name)).hint(
                    "let its consumers catch up, unregister those that are gone, or raise its limits",
                ));
            }
            tokio::select! {
                () = settled => {}
                () = clock.sleep(left.min(ROOM_WAIT)) => {}
            }
        }
        Ok(())
    }

    fn line(&self, message: &Message) -> Result<Line> {
        message.check()?;
        message.check_size(CAPABILITIES.message_bytes_max)?;
        Line::new(message, self.lanes)
    }
}

#[async_trait]
impl Producer for SqliteProducer {
    async fn publish(&mut self, batch: &[Message]) -> Vec<Sent> {
        let (mut lines, mut refused) = (Vec::with_capacity(batch.len()), Vec::new());
        for message in batch {
            match self.line(message) {
                Ok(line) => {
                    lines.push(line);
                    refused.push(None);
                }
                Err(error) => refused.push(Some(error)),
            }
        }
        let mut sent = Vec::with_capacity(lines.len());
        let ended = self.store(&Arc::new(lines), &mut sent).await.err();
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

    async fn close(self: Box<Self>, deadline: Duration) -> Result<()> {
        // Jobs are done in their order: behind this one nothing of an earlier call is left.
        let last = async { self.link.ask(Nothing).await };
        tokio::select! {
            ended = last => ended,
            () = self.link.clock.sleep(deadline) => {
                Err(Error::new(code::TIMED_OUT, "what was published could not be brought to an end in time"))
            }
        }
    }
}

struct Nothing;

#[async_trait]
impl Job for Nothing {
    type Answer = ();

    async fn run(&self, _: &mut SqliteConnection) -> Result<()> {
        Ok(())
    }
}
