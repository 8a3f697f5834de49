//! Looks after one lane while a consumer has it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join;

use super::record::{self, Book};
use super::shared::{Begun, Inner, Shared, Wakers};
use super::{Link, Queues};
use crate::error::{Error, Result, code};
use crate::hand::Fetched;
use crate::lane::Lane;
use crate::port::Attempt;
use crate::unsettled::Unsettled;

/// How long what was given is left to be noted together with what is settled of it.
const NOTE_AFTER: Duration = Duration::from_millis(5);

/// Has a lane until another member is to have it.
///
/// # Errors
/// What kept it from being had any longer.
pub(super) async fn own<Q: Queues + ?Sized>(
    shared: &Shared<Q>,
    lane: Lane,
    link: Arc<dyn Link>,
) -> Result<()> {
    let book = Book::read(&link.book())?;
    let (epoch, wakers) = shared.lock().gain(lane, Arc::clone(&link), book);
    shared.changed.notify_one();
    tokio::select! {
        ended = read(shared, lane, epoch, &*link) => return ended,
        ended = keep(shared, lane, epoch, &*link, &wakers) => return ended,
        ended = leaving(shared, lane, epoch, &wakers) => ended?,
    }
    close(shared, lane, epoch, &*link).await
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

/// Writes what there is to write, for ever.
async fn keep<Q: Queues + ?Sized>(
    shared: &Shared<Q>,
    lane: Lane,
    epoch: u64,
    link: &dyn Link,
    wakers: &Wakers,
) -> Result<()> {
    loop {
        wakers.writing.notified().await;
        tokio::select! {
            () = wakers.urgent.notified() => {}
            () = shared.clock.sleep(NOTE_AFTER) => {}
        }
        write(shared, lane, epoch, link).await?;
    }
}

/// Writes until everything is durable that has happened until now.
pub(super) async fn write<Q: Queues + ?Sized>(
    shared: &Shared<Q>,
    lane: Lane,
    epoch: u64,
    link: &dyn Link,
) -> Result<()> {
    loop {
        let Some(begun) = shared.lock().begin(lane, epoch, false) else { return Ok(()) };
        one(shared, lane, epoch, link, begun).await?;
    }
}

async fn one<Q: Queues + ?Sized>(
    shared: &Shared<Q>,
    lane: Lane,
    epoch: u64,
    link: &dyn Link,
    begun: Begun,
) -> Result<()> {
    let settled = async { if begun.acks.is_empty() { Ok(()) } else { link.settle(&begun.acks).await } };
    let noted = async {
        match &begun.book {
            Some(book) => link.write(record::bytes(book)?).await,
            None => Ok(()),
        }
    };
    try_join(settled, noted).await?;
    shared.lock().end(lane, epoch, &begun);
    shared.changed.notify_one();
    Ok(())
}

/// Returns when a lane is to go: another member is to have it, and nothing of it is in hand, or its time is over.
async fn leaving<Q: Queues + ?Sized>(
    shared: &Shared<Q>,
    lane: Lane,
    epoch: u64,
    wakers: &Wakers,
) -> Result<()> {
    loop {
        let until = {
            let mut inner = shared.lock();
            let is_free =
                inner.hand.unsettled(lane).map_or(0, Unsettled::in_hand) == 0 && inner.is_written(lane);
            let Some(kept) = inner.kept(lane, epoch) else {
                return Err(Error::new(code::CONNECTION_LOST, "the connection was lost"));
            };
            match kept.revoked {
                Some(_) if is_free => return Ok(()),
                Some(until) => Some(until.max(kept.held_until)),
                None => None,
            }
        };
        let rest = until.map(|until| until.saturating_sub(shared.clock.elapsed()));
        if rest.is_some_and(|rest| rest.is_zero()) {
            return Ok(());
        }
        tokio::select! {
            () = wakers.leaving.notified() => {}
            () = shared.clock.sleep(rest.unwrap_or(Duration::MAX)), if rest.is_some() => {}
        }
    }
}

/// Gives a lane up: what was settled is written, and what was tried is noted, before another one has it.
pub(super) async fn close<Q: Queues + ?Sized>(
    shared: &Shared<Q>,
    lane: Lane,
    epoch: u64,
    link: &dyn Link,
) -> Result<()> {
    let begun = shared.lock().begin(lane, epoch, true);
    if let Some(begun) = begun {
        one(shared, lane, epoch, link, begun).await?;
    }
    let gone = Error::new(code::STOPPED, "the lane was given up");
    shared.lock().lose([lane], &gone);
    shared.changed.notify_one();
    link.close().await
}
