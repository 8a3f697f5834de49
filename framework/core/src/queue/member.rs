//! Keeps a consumer a member of its subscription: in the lines of lanes that it is to have, and no longer than it is to.

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::sync::watch;

use super::owner::own;
use super::record;
use super::shared::{Finish, Shared};
use super::{Member, Queues};
use crate::error::{Error, Result, code};
use crate::lane::Lane;
use crate::unsettled::Unsettled;

/// How often to look how many members there are.
const LOOK: Duration = Duration::from_millis(100);
/// How long to wait before a connection is made anew: from, to.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Is a member for ever, until the subscription is gone.
pub(super) async fn keep<Q: Queues + ?Sized>(shared: Arc<Shared<Q>>) -> Result<()> {
    let mut pause = PAUSES.0;
    loop {
        let mut had_lanes = false;
        let error = match shared.queues.member(&shared.channel, &shared.subscription).await {
            Ok(member) => {
                let began = shared.clock.elapsed();
                let error = belong(&shared, &*member).await;
                had_lanes = true;
                if shared.clock.elapsed().saturating_sub(began) > PAUSES.1 {
                    pause = PAUSES.0;
                }
                error
            }
            Err(error) => error,
        };
        shared.lock().lose_all(&error);
        shared.changed.notify_one();
        match record::find(&*shared.queues, &shared.channel.name).await {
            Ok(Some(record)) if record.subscriptions.get(&shared.subscription) == Some(&shared.number) => {}
            Ok(Some(_)) => {
                shared.finish(Finish::Gone);
                return Ok(());
            }
            Ok(None) => {
                shared.finish(Finish::ChannelGone);
                return Ok(());
            }
            Err(error) => tracing::debug!(%error, "whether the subscription is there cannot be seen now"),
        }
        if had_lanes {
            shared.lock().hand.reconnected();
            shared.changed.notify_one();
        }
        shared.failed(error);
        shared.clock.sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Is a member over one connection: what ended it.
async fn belong<Q: Queues + ?Sized>(shared: &Shared<Q>, member: &dyn Member) -> Error {
    let wants = watch::Sender::new(false);
    let lines =
        (0..shared.channel.lanes).map(|lane| Box::pin(line(shared, member, Lane(lane), wants.subscribe())));
    let ended = tokio::select! {
        ended = try_join_all(lines) => ended.map(drop),
        ended = tend(shared, member, &wants) => ended,
    };
    ended.err().unwrap_or_else(|| Error::new(code::INTERNAL, "a membership has no end"))
}

/// Stands in the line of a lane whenever the member is to have more, and has the lane when it is its turn.
async fn line<Q: Queues + ?Sized>(
    shared: &Shared<Q>,
    member: &dyn Member,
    lane: Lane,
    mut wants: watch::Receiver<bool>,
) -> Result<()> {
    let ended = |_| Error::new(code::STOPPED, "the consumer was dropped");
    loop {
        wants.wait_for(|wants| *wants).await.map_err(ended)?;
        let link = tokio::select! {
            link = member.lane(lane) => link?,
            left = wants.wait_for(|wants| !*wants) => {
                left.map_err(ended)?;
                continue;
            }
        };
        own(shared, lane, link.into()).await?;
    }
}

/// Looks how many members there are, and lets lanes go that are more than a fair share.
async fn tend<Q: Queues + ?Sized>(
    shared: &Shared<Q>,
    member: &dyn Member,
    wants: &watch::Sender<bool>,
) -> Result<()> {
    loop {
        let share = (shared.channel.lanes as usize).div_ceil(member.count().await?.max(1));
        let has_less = shed(shared, share);
        wants.send_if_modified(|wants| std::mem::replace(wants, has_less) != has_less);
        shared.clock.sleep(LOOK).await;
    }
}

/// Lets go what is more than so many lanes; whether there are less. Those go first of which the least is in hand.
fn shed<Q: Queues + ?Sized>(shared: &Shared<Q>, share: usize) -> bool {
    let mut inner = shared.lock();
    let open = inner.lanes.iter().filter(|(_, kept)| kept.revoked.is_none());
    let in_hand = |lane: Lane| inner.hand.unsettled(lane).map_or(0, Unsettled::in_hand);
    let mut open: Vec<(usize, Lane)> = open.map(|(lane, _)| (in_hand(*lane), *lane)).collect();
    if open.len() <= share {
        return open.len() < share;
    }
    open.sort_unstable();
    open.truncate(open.len() - share);
    let grace = shared.settings.grace;
    let until = shared.clock.elapsed() + grace;
    for (_, lane) in &open {
        if let Some(kept) = inner.lanes.get_mut(lane) {
            kept.revoked = Some(until);
            kept.wakers.leaving.notify_one();
        }
    }
    let told = shared.clock.now().saturating_add(i64::try_from(grace.as_micros()).unwrap_or(i64::MAX));
    inner.hand.revoke(open.into_iter().map(|(_, lane)| lane), told);
    drop(inner);
    shared.changed.notify_one();
    false
}
