//! Fetches messages of a consumer's lanes ahead of their being asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Log;
use super::shared::Shared;
use crate::hand::Fetched;
use crate::unsettled::Place;
use tidegate_core::error::Result;
use tidegate_core::lane::Lane;

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
        let (wanted, epochs) = wanted(&shared);
        if wanted.is_empty() {
            shared.reading.notified().await;
            continue;
        }
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
                if let Some(epoch) = epochs.get(&lane) {
                    inner.hand.arrive(lane, *epoch, fetched);
                }
            }
            drop(inner);
            shared.changed.notify_one();
        }
        match read {
            Ok(()) => pause = PAUSES.0,
            Err(error) => {
                shared.failed(error, "messages cannot be fetched now");
                if shared.is_over() {
                    return Ok(());
                }
                reader = None;
                shared.clock.sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

/// Lanes, each with a place and a number of messages; and the epochs of these lanes.
type Wanted = (Vec<(Lane, Place, usize)>, BTreeMap<Lane, u64>);

/// What is to be fetched of which lane, behind which place and under which epoch. All in one look: behind a place of an
/// ownership of before, messages could be passed over.
fn wanted<L: Log + ?Sized>(shared: &Shared<L>) -> Wanted {
    let mut inner = shared.lock();
    let (mut wanted, mut epochs, mut is_starved) = (Vec::new(), BTreeMap::new(), false);
    for lane in inner.hand.lanes() {
        match inner.hand.wanted(lane) {
            Some((_, _, 0)) => is_starved = true,
            Some((epoch, after, count)) => {
                wanted.push((lane, after, count));
                epochs.insert(lane, epoch);
            }
            None => {}
        }
    }
    inner.is_starved = is_starved;
    (wanted, epochs)
}
