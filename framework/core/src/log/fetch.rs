//! Fetches messages of a consumer's lanes ahead of their being asked for.

use std::sync::Arc;
use std::time::Duration;

use super::Log;
use super::shared::Shared;
use crate::error::Result;
use crate::hand::Fetched;
use crate::lane::Lane;
use crate::unsettled::Place;

/// How long one call waits for messages.
const WAIT: Duration = Duration::from_secs(1);
/// How long to wait before a call that failed is made again: from, to.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Fetches for ever.
pub(super) async fn fetch<L: Log + ?Sized>(shared: Arc<Shared<L>>) -> Result<()> {
    let mut reader = None;
    let mut out: Vec<(Lane, Fetched)> = Vec::new();
    let mut pause = PAUSES.0;
    loop {
        let wanted = wanted(&shared);
        if wanted.is_empty() {
            shared.reading.notified().await;
            continue;
        }
        let epochs: Vec<(Lane, Option<u64>)> = {
            let inner = shared.lock();
            wanted.iter().map(|(lane, ..)| (*lane, inner.hand.epoch(*lane))).collect()
        };
        let read = async {
            let reader = match &mut reader {
                Some(reader) => reader,
                none => none.insert(shared.log.reader(&shared.channel).await?),
            };
            reader.read(&wanted, WAIT, &mut out).await
        };
        let read = tokio::select! {
            read = read => read,
            () = shared.reading.notified() => Ok(()),
        };
        if !out.is_empty() {
            let mut inner = shared.lock();
            for (lane, fetched) in out.drain(..) {
                let epoch = epochs.iter().find(|(known, _)| *known == lane).and_then(|(_, epoch)| *epoch);
                inner.hand.arrive(lane, epoch.unwrap_or_default(), fetched);
            }
            drop(inner);
            shared.changed.notify_one();
        }
        match read {
            Ok(()) => pause = PAUSES.0,
            Err(error) => {
                shared.failed(error, "messages cannot be fetched now");
                reader = None;
                shared.clock.sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

/// What is to be fetched of which lane, and behind which place.
fn wanted<L: Log + ?Sized>(shared: &Shared<L>) -> Vec<(Lane, Place, usize)> {
    let mut inner = shared.lock();
    let lanes: Vec<Lane> = inner.hand.lanes().map(|(lane, _)| lane).collect();
    let wanted = |lane: &Lane| inner.hand.wanted(*lane).map(|(after, count)| (*lane, after, count));
    let mut wanted: Vec<_> = lanes.iter().filter_map(wanted).collect();
    let all = wanted.len();
    wanted.retain(|(_, _, count)| *count > 0);
    inner.is_starved = wanted.len() < all;
    wanted
}
