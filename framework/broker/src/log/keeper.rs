//! Writes what becomes of a consumer's lanes: all that has happened meanwhile at once.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use super::documents::{self, LaneRecord};
use super::shared::{Begun, Inner, Shared, Writing};
use super::{Document, Log};
use crate::receiving::Written;
use tidegate_core::error::{Error, Result, Verdict, code};

/// How long what was given is left to be written together with what is settled of it.
const NOTE_AFTER: Duration = Duration::from_millis(5);
/// How long to wait before something is tried again.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

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
        let ends = join_all(begun.iter().map(async |begun: &Begun| {
            let end = one(shared, begun).await;
            (begun.writing, begun.record.low(), end)
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
    /// It is not, and will not be: nothing was done.
    Not(Error),
    /// The lane is somebody else's, and it was not written.
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
        End::Not(error) => {
            match kept {
                Some(_) => inner.end(writing, None::<fn() -> Written>),
                None => inner.end(writing, Some(|| Written::Lost)),
            }
            Some(error)
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

/// Writes a lane, until it is known what came of it. Once an answer was lost only the document tells, and only as long as
/// the lane is this member's: what another owner found there may have been this writing.
async fn one<L: Log + ?Sized>(shared: &Shared<L>, begun: &Begun) -> End {
    let Begun { writing, record, .. } = begun;
    let name = documents::lane(shared.subscription, writing.lane);
    let value = match documents::bytes(record) {
        Ok(value) => value,
        Err(error) => return End::Unknown(error),
    };
    let until = shared.clock.elapsed() + shared.settings.lease;
    let (mut revision, mut is_in_doubt) = (begun.revision, begun.is_in_doubt);
    loop {
        let written = shared.log.write(&shared.channel.name, &name, value.clone(), Some(revision)).await;
        let mut error = match written {
            Ok(Some(revision)) => return End::Durable(revision),
            Ok(None) => None,
            Err(error) => {
                is_in_doubt |= error.verdict() == Verdict::Unknown;
                if !is_in_doubt {
                    return End::Not(error);
                }
                Some(error)
            }
        };
        match look(shared, &name, *writing).await {
            Ok(Found::Written(revision)) => return End::Durable(revision),
            Ok(Found::Ours(now)) => revision = now,
            Ok(Found::Theirs) if !is_in_doubt => return End::Lost,
            Ok(Found::Theirs) => return End::Unknown(error.unwrap_or_else(in_doubt)),
            Err(failed) => error = Some(failed),
        }
        if let Some(error) = error {
            if shared.clock.elapsed() >= until {
                return End::Unknown(error);
            }
            shared.clock.sleep(PAUSE).await;
        }
    }
}

fn in_doubt() -> Error {
    let text = "the lane is somebody else's, and what was written of it last may have been written before";
    Error::new(code::TIMED_OUT, text)
}

/// How a document stands that was to be written.
enum Found {
    /// As it was to be written, or with what came behind that as well.
    Written(u64),
    /// Not so, and this member may still write it.
    Ours(u64),
    Theirs,
}

async fn look<L: Log + ?Sized>(shared: &Shared<L>, name: &str, writing: Writing) -> Result<Found> {
    let Some(Document { value, revision }) = shared.log.document(&shared.channel.name, name).await? else {
        return Ok(Found::Theirs);
    };
    let found: LaneRecord = serde_json::from_slice(&value).unwrap_or_default();
    Ok(stands(&found, writing, revision))
}

fn stands(found: &LaneRecord, writing: Writing, revision: u64) -> Found {
    match (found.epoch == writing.epoch, found.number >= writing.number) {
        (true, true) => Found::Written(revision),
        (true, false) => Found::Ours(revision),
        (false, _) => Found::Theirs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::lane::Lane;

    /// Found by reading: one that was written behind it was taken for one before it, and overwritten.
    #[test]
    fn what_was_written_later_has_what_was_written_before() {
        let writing = Writing { lane: Lane(0), epoch: 3, number: 5 };
        let found = |epoch, number| {
            let record = LaneRecord { epoch, number, ..LaneRecord::default() };
            match stands(&record, writing, 70) {
                Found::Written(70) => "written",
                Found::Ours(70) => "ours",
                Found::Theirs => "theirs",
                Found::Written(_) | Found::Ours(_) => "another revision",
            }
        };
        assert_eq!(
            [found(3, 4), found(3, 5), found(3, 7), found(4, 5)],
            ["ours", "written", "written", "theirs"]
        );
    }
}
