//! Looks after one lane while a consumer has it.

use std::sync::Arc;
use std::time::Duration;

use super::record::{self, Book};
use super::shared::{Begun, Inner, Shared, Stop, Wakers};
use super::slot::Slot;
use super::{Link, Queues};
use crate::hand::Fetched;
use crate::unsettled::Unsettled;
use tidegate_core::error::{Error, Result, code};
use tidegate_core::lane::Lane;
use tidegate_core::port::Attempt;

/// How long what was given is left to be noted together with what is settled of it.
const NOTE_AFTER: Duration = Duration::from_millis(5);

/// A lane that is had: what there is to write of it, and where.
struct Own<'a, Q: ?Sized> {
    shared: &'a Shared<Q>,
    lane: Lane,
    epoch: u64,
    wakers: Arc<Wakers>,
    link: &'a dyn Link,
    book: &'a mut Slot,
}

/// Has a lane whose book is held, until another member is to have it, or the consumer ends.
///
/// # Errors
/// What kept it from being had any longer.
pub(super) async fn own<Q: Queues + ?Sized>(
    shared: &Shared<Q>,
    lane: Lane,
    mut book: Slot,
    // Dropped before the book is: messages go back before somebody else has the lane.
    link: Arc<dyn Link>,
) -> Result<()> {
    let found = Book::read(book.value())?;
    match book.sign().await {
        // Consumers go on where the system takes nothing. A later owner's epoch may be this one's then.
        Err(error) if error.code() == code::LIMIT_REACHED => {}
        signed => signed?,
    }
    let (epoch, wakers) = shared.lock().gain(lane, book.holder(), &link, found);
    shared.changed.notify_one();
    let mut own = Own { shared, lane, epoch, wakers, link: &*link, book: &mut book };
    let ended = tokio::select! {
        ended = read(shared, lane, epoch, &*link) => ended,
        ended = own.keep() => ended,
    };
    let why = match &ended {
        Ok(()) => Error::new(code::STOPPED, "the lane was given up"),
        Err(error) => error.again(),
    };
    shared.let_go(lane, epoch, &why);
    ended?;
    let stop = *shared.stop.borrow();
    if stop == Some(Stop::Crash) {
        return Ok(());
    }
    if stop == Some(Stop::Close) {
        // What a server still sends to a lane that has ended may end the connection: the others are written before.
        shared.all_let_go().await;
    }
    let left = async {
        link.close().await?;
        drop(link);
        book.leave().await
    };
    match left.await {
        // All is written, and what was had over a connection that is lost goes back by itself.
        Err(error) if stop == Some(Stop::Close) && error.code() == code::CONNECTION_LOST => {
            tracing::debug!(%error, channel = %shared.channel.name, lane = lane.0, "the connection ended with its lanes");
            Ok(())
        }
        left => left,
    }
}

/// Takes what comes, for ever.
async fn read<Q: Queues + ?Sized>(shared: &Shared<Q>, lane: Lane, epoch: u64, link: &dyn Link) -> Result<()> {
    let mut out = Vec::new();
    loop {
        link.next(&mut out).await?;
        let mut inner = shared.lock();
        out.drain(..).for_each(|fetched| arrive(&mut inner, lane, epoch, fetched));
        drop(inner);
        shared.changed.notify_one();
    }
}

/// Takes a message, with what an owner before noted of it. Those that an owner before had come first: once one comes that
/// nobody had, nothing that was noted is still to come.
fn arrive(inner: &mut Inner, lane: Lane, epoch: u64, mut fetched: Fetched) {
    let Some(kept) = inner.kept(lane, epoch) else { return };
    let mut before = None;
    if fetched.attempt.is_again() {
        before = kept.before.remove(&record::name(&fetched.message));
    } else {
        kept.before.clear();
    }
    let before = before.unwrap_or_default();
    fetched.attempt = Attempt::AtLeast(before.attempts().saturating_add(1));
    if before.1 > 0 {
        inner.hand.arrive_later(lane, epoch, fetched, before.1);
    } else {
        inner.hand.arrive(lane, epoch, fetched);
    }
}

/// What is next for a lane.
enum Next {
    /// To wait, at most until then.
    Wait(Option<Duration>),
    /// To give it up.
    Leave(Stop),
}

impl<Q: Queues + ?Sized> Own<'_, Q> {
    /// Writes what there is to write until the lane is to go. A writing that was begun is brought to its end: whoever waits for
    /// it is told nothing that is not so.
    async fn keep(&mut self) -> Result<()> {
        loop {
            let rest = match self.next()? {
                Next::Wait(rest) => rest,
                Next::Leave(Stop::Close) => return self.write_last().await,
                Next::Leave(Stop::Crash) => return self.write().await,
            };
            tokio::select! {
                () = self.wakers.writing.notified() => {}
                () = self.wakers.leaving.notified() => continue,
                () = self.shared.system.clock.sleep(rest.unwrap_or(Duration::MAX)), if rest.is_some() => continue,
                is_call = self.book.sent() => {
                    self.called(is_call?);
                    self.book.tidy().await?;
                    continue;
                }
            }
            tokio::select! {
                () = self.wakers.urgent.notified() => {}
                () = self.shared.system.clock.sleep(NOTE_AFTER) => {}
            }
            self.write().await?;
        }
    }

    fn called(&self, is_call: bool) {
        if let Some(kept) = self.shared.lock().kept(self.lane, self.epoch) {
            kept.is_called |= is_call;
        }
    }

    /// A lane goes when the consumer ends, or when another member is to have it, and nothing of it is in hand, or its time is
    /// over.
    fn next(&self) -> Result<Next> {
        let mut inner = self.shared.lock();
        let in_hand = inner.hand.unsettled(self.lane).map_or(0, Unsettled::in_hand);
        let is_free = in_hand == 0 && inner.is_written(self.lane);
        let Some(kept) = inner.kept(self.lane, self.epoch) else {
            return Err(Error::new(code::CONNECTION_LOST, "the connection was lost"));
        };
        if let Some(stop) = *self.shared.stop.borrow() {
            return Ok(Next::Leave(stop));
        }
        let Some(revoked) = kept.revoked else { return Ok(Next::Wait(None)) };
        let rest = revoked.max(kept.held_until).saturating_sub(self.shared.system.clock.elapsed());
        let is_over = is_free || rest.is_zero();
        Ok(if is_over { Next::Leave(Stop::Close) } else { Next::Wait(Some(rest)) })
    }

    /// Writes until everything is durable that has happened until now.
    async fn write(&mut self) -> Result<()> {
        loop {
            let Some(begun) = self.shared.lock().begin(self.lane, self.epoch, false) else { return Ok(()) };
            self.one(begun).await?;
        }
    }

    /// Writes what was settled, and what was tried, for the next owner.
    async fn write_last(&mut self) -> Result<()> {
        let begun = self.shared.lock().begin(self.lane, self.epoch, true);
        match begun {
            Some(begun) => self.one(begun).await,
            None => Ok(()),
        }
    }

    async fn one(&mut self, begun: Begun) -> Result<()> {
        let Self { link, book, .. } = self;
        let settled = async { if begun.acks.is_empty() { Ok(()) } else { link.settle(&begun.acks).await } };
        let noted = async {
            match &begun.book {
                Some(noted) => match book.write(record::bytes(noted)?).await {
                    // Consumers make the room that the system needs: they go on.
                    Err(error) if error.code() == code::LIMIT_REACHED => Ok(Some(error)),
                    written => written.map(|()| None),
                },
                None => Ok(None),
            }
        };
        let ((), refused) = futures::future::try_join(settled, noted).await?;
        self.shared.lock().end(self.lane, self.epoch, &begun, refused.as_ref());
        self.shared.changed.notify_one();
        Ok(())
    }
}
