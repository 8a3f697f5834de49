//! Publishes: checks messages, waits for room, and sends.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::broker::Link;
use super::{Queues, Sender, Taken, record};
use crate::publishing::{Checked, Doubt, ROOM_WAIT, full, piece, unwanted};
use tidegate_core::channel::Channel;
use tidegate_core::error::{Result, Verdict};
use tidegate_core::message::Message;
use tidegate_core::port::{Producer, Sent};

/// How many messages are sent in one piece.
const PIECE_MESSAGES: u64 = 1_000;
/// Into how many parts what there is room for is cut: a look for room lets one of them pass, since others publish as well.
const ROOM_PARTS: u64 = 10;

pub(super) struct QueueProducer<Q: Queues> {
    link: Arc<Link<Q>>,
    channel: Channel,
    /// It is made anew after an answer was lost.
    sender: Option<Box<dyn Sender>>,
    doubt: Doubt,
    /// How many messages may be sent before it is looked again.
    room: u64,
    /// What was published until now: messages and bytes.
    published: (u64, u64),
}

impl<Q: Queues> QueueProducer<Q> {
    pub(super) fn new(link: Arc<Link<Q>>, channel: Channel, sender: Box<dyn Sender>) -> Self {
        let sender = Some(sender);
        Self { link, channel, sender, doubt: Doubt::default(), room: 0, published: (0, 0) }
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
                return Err(full(&self.channel.name));
            }
            clock.sleep(rest.min(ROOM_WAIT)).await;
        }
    }

    /// Ends a sender in doubt.
    async fn end_doubt(&mut self) {
        if !self.doubt.is_open {
            return;
        }
        if let Some(mut sender) = self.sender.take() {
            self.doubt.end(&*self.link.system.clock, sender.finish()).await;
        }
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
            let most = usize::try_from(self.room.min(PIECE_MESSAGES)).unwrap_or(usize::MAX);
            let piece = piece(&messages[sent.len()..], most);
            self.doubt.is_open = true;
            let all = sender.send(piece).await;
            self.doubt.is_open = all.iter().any(|taken| matches!(taken, Taken::Unknown(_)));
            for (message, taken) in piece.iter().zip(all) {
                sent.push(match taken {
                    Taken::Stored => {
                        self.room = self.room.saturating_sub(1);
                        self.published.0 += 1;
                        self.published.1 += message.size() as u64;
                        Sent::Stored { position: None, duplicate: false }
                    }
                    Taken::Unwanted => Sent::Refused(unwanted(&self.channel.name)),
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

#[async_trait]
impl<Q: Queues> Producer for QueueProducer<Q> {
    async fn publish(&mut self, batch: &[Message]) -> Vec<Sent> {
        let checked = Checked::new(batch, &self.channel, self.link.system.queues.capabilities());
        let mut sent = Vec::with_capacity(checked.good.len());
        let ended =
            if checked.good.is_empty() { None } else { self.store(&checked.good, &mut sent).await.err() };
        checked.answers(sent, ended.as_ref())
    }

    async fn close(self: Box<Self>, deadline: Duration) -> Result<()> {
        let Self { link, sender, doubt, .. } = *self;
        let finish = async {
            match sender {
                Some(mut sender) => sender.finish().await,
                None => Ok(()),
            }
        };
        doubt.close(&*link.system.clock, deadline, finish).await
    }
}
