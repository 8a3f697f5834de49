//! Publishes: checks messages, waits for room, and appends.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::broker::Link;
use super::documents::{self, ChannelRecord};
use super::{Appended, Appender, Log, tidy};
use crate::publishing::{Checked, Doubt, ROOM_WAIT, full, piece, unwanted};
use tidegate_core::capability::How;
use tidegate_core::channel::Keep;
use tidegate_core::error::{Result, Verdict};
use tidegate_core::message::Message;
use tidegate_core::port::{Producer, Sent};
use tidegate_core::position::Position;

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
    /// Messages that may be stored, by source and id, and were not published again.
    unknown: HashSet<Id>,
    /// There were others: a call was dropped, and what it had is not known.
    is_untold: bool,
}

type Id = (Arc<str>, Arc<str>);

impl<L: Log> LogProducer<L> {
    pub(super) fn new(link: Arc<Link<L>>, channel: ChannelRecord, appender: Box<dyn Appender>) -> Self {
        let looked = link.clock.elapsed();
        Self {
            link,
            channel,
            looked,
            appender: Some(appender),
            doubt: Doubt::default(),
            unknown: HashSet::new(),
            is_untold: false,
        }
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
        self.is_untold |= self.unknown.is_empty();
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
            let piece = piece(&messages[sent.len()..], PIECE_MESSAGES);
            let all = appender.append(piece).await;
            self.doubt.is_open = all.iter().any(|appended| matches!(appended, Appended::Unknown(_)));
            note(&mut self.unknown, piece, &all);
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

/// Notes which messages may be stored: none that was stored when it was published again.
fn note(unknown: &mut HashSet<Id>, piece: &[&Message], all: &[Appended]) {
    for (message, appended) in piece.iter().zip(all) {
        let id = || (Arc::clone(&message.source), message.dedupe_id());
        match appended {
            Appended::Unknown(_) => _ = unknown.insert(id()),
            Appended::Stored { .. } if !unknown.is_empty() => _ = unknown.remove(&id()),
            Appended::Stored { .. } | Appended::Refused(_) | Appended::Full => {}
        }
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
        let Self { link, appender, mut doubt, unknown, is_untold, .. } = *self;
        // What was stored when it was published again is not stored once more.
        let knows_again = !matches!(link.log.capabilities().dedupe, How::No(_));
        if knows_again && unknown.is_empty() && !is_untold {
            doubt.forget();
        }
        let finish = async {
            match appender {
                Some(mut appender) => appender.finish().await,
                None => Ok(()),
            }
        };
        doubt.close(&*link.clock, deadline, finish).await
    }
}
