//! Writes what becomes of a consumer's lanes: all that has happened meanwhile at once.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use super::documents::{self, LaneRecord};
use super::shared::{Inner, Shared, Writing, Written};
use super::{Document, Log};
use crate::error::{Error, Result, Verdict};

/// How long what was given is left to be written together with what is settled of it.
const NOTE_AFTER: Duration = Duration::from_millis(5);
/// How long to wait before something is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// Writes for ever.
pub(super) async fn keep<L: Log + ?Sized>(shared: Arc<Shared<L>>) -> Result<()> {
    loop {
        shared.writing.notified().await;
        tokio::select! {
            () = shared.urgent.notified() => {}
            () = shared.clock.sleep(NOTE_AFTER) => {}
        }
        if let Err(error) = write(&shared).await {
            tracing::debug!(%error, "what is settled cannot be written now");
            shared.clock.sleep(PAUSE).await;
            shared.writing.notify_one();
        }
    }
}

/// Writes until everything is written that has happened until now.
///
/// # Errors
/// What kept a lane from being written; it is to be tried again.
pub(super) async fn write<L: Log + ?Sized>(shared: &Shared<L>) -> Result<()> {
    loop {
        let begun = shared.lock().begin();
        if begun.is_empty() {
            return Ok(());
        }
        let ends = join_all(begun.iter().map(|(writing, record, revision)| {
            let write = one(shared, *writing, record, *revision);
            async move { (*writing, record.low(), write.await) }
        }));
        let ends = ends.await;
        let mut failed = None;
        {
            let mut inner = shared.lock();
            for (writing, low, end) in ends {
                failed = finish(&mut inner, writing, low, end).or(failed);
            }
        }
        shared.changed.notify_one();
        if let Some(error) = failed {
            return Err(error);
        }
    }
}

/// How a writing ended.
enum End {
    /// It is durable, as this revision.
    Durable(u64),
    /// It is not: the document is at this revision, and still ours.
    Not(u64, Option<Error>),
    /// The lane is somebody else's.
    Lost,
    /// Nobody can say.
    Unknown(Error),
}

fn finish(inner: &mut Inner, writing: Writing, low: u64, end: End) -> Option<Error> {
    let kept = inner.lanes.get_mut(&writing.lane).filter(|kept| kept.epoch == writing.epoch);
    match end {
        End::Durable(revision) => {
            if let Some(kept) = kept {
                (kept.revision, kept.written, kept.low) = (revision, writing.number, low);
            }
            inner.end(writing, Some(|| Written::Done));
            None
        }
        End::Not(revision, error) => {
            match kept {
                Some(kept) => {
                    kept.revision = revision;
                    inner.end(writing, None::<fn() -> Written>);
                }
                None => inner.end(writing, Some(|| Written::Lost)),
            }
            error
        }
        End::Lost => {
            inner.end(writing, Some(|| Written::Lost));
            inner.lose([writing.lane], || Written::Lost);
            None
        }
        End::Unknown(error) => {
            let again = || Written::Unknown(error.again());
            inner.end(writing, Some(again));
            inner.lose([writing.lane], again);
            None
        }
    }
}

async fn one<L: Log + ?Sized>(
    shared: &Shared<L>,
    writing: Writing,
    record: &LaneRecord,
    revision: u64,
) -> End {
    let name = documents::lane(shared.subscription, writing.lane);
    let value = match documents::bytes(record) {
        Ok(value) => value,
        Err(error) => return End::Unknown(error),
    };
    let mut error = match shared.log.write(&shared.channel.name, &name, value, Some(revision)).await {
        Ok(Some(revision)) => return End::Durable(revision),
        Err(error) if error.verdict() != Verdict::Unknown => return End::Not(revision, Some(error)),
        Err(error) => Some(error),
        // Somebody else wrote; or this member, whose answer was lost.
        Ok(None) => None,
    };
    let until = shared.clock.elapsed() + shared.settings.lease;
    loop {
        match look(shared, &name, writing).await {
            Ok(end) => return end,
            Err(failed) if shared.clock.elapsed() >= until => return End::Unknown(failed),
            Err(failed) => error.get_or_insert(failed),
        };
        shared.clock.sleep(PAUSE).await;
    }
}

/// Looks whether the document is as it was to be written.
async fn look<L: Log + ?Sized>(shared: &Shared<L>, name: &str, writing: Writing) -> Result<End> {
    let Some(Document { value, revision }) = shared.log.document(&shared.channel.name, name).await? else {
        return Ok(End::Lost);
    };
    let found: LaneRecord = serde_json::from_slice(&value).unwrap_or_default();
    Ok(match (found.epoch == writing.epoch, found.number == writing.number) {
        (true, true) => End::Durable(revision),
        (true, false) => End::Not(revision, None),
        (false, _) => End::Lost,
    })
}
