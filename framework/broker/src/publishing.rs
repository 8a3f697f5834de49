//! What a producer of a log does as one of queues does: it checks a batch, cuts it into pieces, and does not forget what may
//! still be stored.

use std::time::Duration;

use tidegate_core::capability::Capabilities;
use tidegate_core::channel::{Channel, Name};
use tidegate_core::clock::Clock;
use tidegate_core::error::{Error, Result, code};
use tidegate_core::message::Message;
use tidegate_core::port::Sent;

/// How many bytes of messages go in one piece.
const PIECE_BYTES: usize = 16 << 20;
/// How long to wait before room is looked for again.
pub(crate) const ROOM_WAIT: Duration = Duration::from_millis(20);
/// How long to wait for what was sent over a connection in doubt.
const FINISH: Duration = Duration::from_secs(1);

/// What of a batch is not stored for what it is itself, and the rest of it.
pub(crate) struct Checked<'a> {
    refused: Vec<Option<Error>>,
    /// To be stored, in their order.
    pub(crate) good: Vec<&'a Message>,
}

impl<'a> Checked<'a> {
    pub(crate) fn new(batch: &'a [Message], channel: &Channel, capabilities: &Capabilities) -> Self {
        let refused: Vec<Option<Error>> =
            batch.iter().map(|message| check(message, channel, capabilities).err()).collect();
        let good = batch.iter().zip(&refused).filter(|(_, refused)| refused.is_none());
        let good = good.map(|(message, _)| message).collect();
        Self { refused, good }
    }

    /// The answers to the batch: those to what was good, one a message until something ended it, and what that was.
    pub(crate) fn answers(self, sent: Vec<Sent>, ended: Option<&Error>) -> Vec<Sent> {
        let mut sent = sent.into_iter();
        let answer = |refused: Option<Error>| match refused {
            Some(error) => Sent::Refused(error),
            None => sent.next().unwrap_or_else(|| {
                let missing = || Error::new(code::INTERNAL, "a message has no answer");
                Sent::Refused(ended.map_or_else(missing, Error::again))
            }),
        };
        self.refused.into_iter().map(answer).collect()
    }
}

fn check(message: &Message, channel: &Channel, capabilities: &Capabilities) -> Result<()> {
    message.check()?;
    message.check_size(capabilities.message_bytes_max)?;
    if message.size() as u64 > channel.bytes_max {
        let text = format!("the message is larger than all that channel {} may keep", channel.name);
        return Err(Error::new(code::BODY_TOO_LARGE, text));
    }
    Ok(())
}

/// As many messages as go in one piece, `most` of them at most; one at least.
pub(crate) fn piece<'a, 'm>(messages: &'a [&'m Message], most: usize) -> &'a [&'m Message] {
    let mut bytes = 0;
    let fits = messages.iter().take(most).take_while(|message| {
        bytes += message.size();
        bytes <= PIECE_BYTES
    });
    let count = fits.count().max(1);
    &messages[..count.min(messages.len())]
}

/// Nobody would ever get a message.
pub(crate) fn unwanted(channel: &Name) -> Error {
    let text = format!("channel {channel} has no subscription, and keeps nothing for later ones");
    Error::new(code::SUBSCRIPTION_MISSING, text)
}

pub(crate) fn full(channel: &Name) -> Error {
    Error::new(code::LIMIT_REACHED, format!("channel {channel} is full"))
        .hint("let its consumers catch up, unregister subscriptions that nobody reads, or raise its limits")
}

/// Whether something that was sent may still be stored, though nobody waits for it any more.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    /// Of what was sent over the connection that is used now: an answer was lost, or a call was dropped.
    pub(crate) is_open: bool,
    /// Of an earlier one, and why.
    left: Option<Error>,
}

impl Doubt {
    /// Brings to an end what was sent over a connection in doubt: it is not to be stored behind what is sent over the next one.
    /// The connection is of no use any more then.
    pub(crate) async fn end(&mut self, clock: &dyn Clock, finish: impl Future<Output = Result<()>>) {
        let before = self.left.replace(not_ended());
        self.is_open = false;
        // Should the call be dropped here, it stays in doubt.
        let ended = ended(clock, FINISH, finish).await;
        self.left = ended.err().or(before);
    }

    /// Nothing that was sent over an earlier connection can be stored any more, whatever became of that.
    pub(crate) fn forget(&mut self) {
        self.left = None;
    }

    /// Brings everything to an end.
    ///
    /// # Errors
    /// Why something may still be stored.
    pub(crate) async fn close(
        mut self,
        clock: &dyn Clock,
        deadline: Duration,
        finish: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        ended(clock, deadline, finish).await.and(self.left.take().map_or(Ok(()), Err))
    }
}

async fn ended(clock: &dyn Clock, time: Duration, finish: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::select! {
        ended = finish => ended,
        () = clock.sleep(time) => Err(not_ended()),
    }
}

fn not_ended() -> Error {
    Error::new(code::TIMED_OUT, "what was published could not be brought to an end in time")
}
