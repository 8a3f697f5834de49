//! What every subscription has settled goes, when its time is over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use super::Log;
use super::documents::{self, ChannelRecord, LaneRecord, Read};
use super::shared::Shared;
use crate::unsettled::Place;
use tidegate_core::channel::Name;
use tidegate_core::error::Result;
use tidegate_core::lane::Lane;

/// How often a consumer's lanes are tidied.
const LOOK: Duration = Duration::from_millis(100);

/// Tidies the lanes of a consumer for ever; beside its membership, which must not wait for it.
pub(super) async fn keep<L: Log + ?Sized>(shared: Arc<Shared<L>>) -> Result<()> {
    loop {
        shared.clock.sleep(LOOK).await;
        own(&shared).await;
    }
}

/// Tidies the lanes of a consumer in which it has settled more than when they were tidied last. What fails is tried again.
pub(super) async fn own<L: Log + ?Sized>(shared: &Shared<L>) {
    let lows: BTreeMap<Lane, Place> = {
        let inner = shared.lock();
        let due = inner.lanes.iter().filter(|(_, kept)| kept.low > kept.tidied);
        due.map(|(lane, kept)| (*lane, kept.low)).collect()
    };
    if lows.is_empty() {
        return;
    }
    let now = shared.clock.now();
    let tidied = async {
        let channel = documents::channel(&*shared.log, &shared.channel.name).await?;
        // Beside each other: a system that synchronises what it writes with the disk does that once for all of them.
        let lanes = join_all(lows.iter().map(async |(lane, low)| {
            let own = Some((shared.subscription, *low));
            let is_tidied = lane_of(&*shared.log, &channel, *lane, own, now).await?;
            // What is kept for its time goes later.
            if is_tidied
                && channel.record.kept_since(now).is_none()
                && let Some(kept) = shared.lock().lanes.get_mut(lane)
            {
                kept.tidied = *low;
            }
            Ok(())
        }));
        lanes.await.into_iter().collect::<Result<()>>()
    };
    if let Err(error) = tidied.await {
        tracing::debug!(%error, "what is settled cannot be removed now");
    }
}

/// Tidies all lanes of a channel.
pub(super) async fn all(log: &(impl Log + ?Sized), name: &Name, now: i64) -> Result<()> {
    let channel = documents::channel(log, name).await?;
    for lane in 0..channel.record.channel.lanes {
        lane_of(log, &channel, Lane(lane), None, now).await?;
    }
    Ok(())
}

/// Tidies one lane; `own` is a subscription of which it is known how far it is. False if the channel has other
/// subscriptions by now: whoever comes may need what is there.
async fn lane_of(
    log: &(impl Log + ?Sized),
    channel: &Read<ChannelRecord>,
    lane: Lane,
    own: Option<(u64, Place)>,
    now: i64,
) -> Result<bool> {
    let record = &channel.record;
    let name = &record.channel.name;
    let mut low: Option<Place> = None;
    for subscription in record.subscriptions.values() {
        let theirs = match own {
            Some((known, low)) if known == *subscription => low,
            _ => {
                let found: Option<Read<LaneRecord>> =
                    documents::read(log, name, &documents::lane(*subscription, lane)).await?;
                // Without it the subscription is being removed, or was just made.
                let Some(found) = found else { return Ok(false) };
                found.record.low()
            }
        };
        low = Some(low.map_or(theirs, |low| low.min(theirs)));
    }
    let mut low = match low {
        Some(low) => low,
        None => log.last(&record.channel).await?.get(lane.0 as usize).copied().unwrap_or(0),
    };
    if let Some(since) = record.kept_since(now) {
        low = log.stored_before(&record.channel, lane, low, since).await?;
    }
    if low == 0 {
        return Ok(true);
    }
    // Before anything is removed: whoever registers looks at it last.
    let document = documents::removed(lane);
    let known: Option<Read<Place>> = documents::read(log, name, &document).await?;
    let (upto, revision) = known.map_or((0, None), |known| (known.record, Some(known.revision)));
    if upto < low && log.write(name, &document, documents::bytes(&low)?, revision).await?.is_none() {
        return Ok(false);
    }
    let again = documents::channel(log, name).await?;
    if again.revision != channel.revision {
        return Ok(false);
    }
    log.trim(&record.channel, lane, low).await?;
    Ok(true)
}

/// Whether something behind these places, one a lane, may have been removed.
pub(super) async fn is_removed(
    log: &(impl Log + ?Sized),
    channel: &ChannelRecord,
    behind: &[Place],
) -> Result<bool> {
    for (lane, place) in (0..).zip(behind) {
        let known: Option<Read<Place>> =
            documents::read(log, &channel.channel.name, &documents::removed(Lane(lane))).await?;
        if known.is_some_and(|known| known.record > *place) {
            return Ok(true);
        }
    }
    Ok(false)
}
