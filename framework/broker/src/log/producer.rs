//! Publishes: checks messages, waits for room, and appends.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::broker::Link;
use super::documents::{self, ChannelRecord};
use super::{Appended, Appender, Log, tidy};
use tidegate_core::channel::Keep;
use tidegate_core::error::{Result, Verdict};
use tidegate_core::message::Message;
use tidegate_core::port::{Producer, Sent};
use tidegate_core::position::Position;
use crate::publishing::{Checked, Doubt, ROOM_WAIT, full, piece, unwanted};

/// How many messages are appended in one piece: a whole window of those who publish in windows.
const PIECE_MESSAGES: usize = 1_024;
/// How long it is believed who subscribes.
const KNOWN_FOR: Duration = Duration::from_secs(1);

pub(super) struct LogProducer<L: Log> {
    link: Arc<Link<L>>,
    channel: ChannelRecord,
    looked: Duration,
    /// It is made anew after an answer was lost.
    appender: Option<Box<dyn Appender>>,
    doubt: Doubt,
}

impl<L: Log> LogProducer<L> {
    pub(super) fn new(link: Arc<Link<L>>, channel: ChannelRecord, appender: Box<dyn Appender>) -> Self {
        let looked = link.clock.elapsed();
        Self { link, channel, looked, appender: Some(appender), doubt: Doubt::default() }
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
        Err(unwanted(&self.channel.channel.name))
    }

    /// Ends an appender in doubt.
    async fn end_doubt(&mut self) {
        if !self.doubt.is_open {
            return;
        }
        if let Some(mut appender) = self.appender.take() {
            self.doubt.end(&*self.link.clock, appender.finish()).await;
        }
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
            self.end_doubt().await;
            let appender = match &mut self.appender {
                Some(appender) => appender,
                none => none.insert(self.link.log.appender(&self.channel.channel).await?),
            };
            let (mut is_full, mut ended, mut refused) = (false, None, None);
            self.doubt.is_open = true;
            let all = appender.append(piece(&messages[sent.len()..], PIECE_MESSAGES)).await;
            self.doubt.is_open = all.iter().any(|appended| matches!(appended, Appended::Unknown(_)));
            for appended in all {
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
                return Err(full(&self.channel.channel.name));
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

#[async_trait]
impl<L: Log> Producer for LogProducer<L> {
    async fn publish(&mut self, batch: &[Message]) -> Vec<Sent> {
        let checked = Checked::new(batch, &self.channel.channel, self.link.log.capabilities());
        let mut sent = Vec::with_capacity(checked.good.len());
        let ended =
            if checked.good.is_empty() { None } else { self.store(&checked.good, &mut sent).await.err() };
        checked.answers(sent, ended.as_ref())
    }

    async fn close(self: Box<Self>, deadline: Duration) -> Result<()> {
        let Self { link, appender, doubt, .. } = *self;
        let finish = async {
            match appender {
                Some(mut appender) => appender.finish().await,
                None => Ok(()),
            }
        };
        doubt.close(&*link.clock, deadline, finish).await
    }
}
