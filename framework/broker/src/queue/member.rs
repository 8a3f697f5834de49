//! Keeps a consumer a member of its subscription: in the lines of lanes that it is to have, and no longer than it is to.

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::sync::{Notify, watch};

use super::owner::own;
use super::shared::{Kept, Shared};
use super::slot::Slot;
use super::{Member, Queues};
use crate::receiving::Finish;
use crate::unsettled::Unsettled;
use tidegate_core::error::{Error, Result, code};
use tidegate_core::lane::Lane;

/// How often to look how many members there are.
const LOOK: Duration = Duration::from_millis(100);
/// How often a member that has too few lanes calls in one of the lines that it stands in.
const CALL_EVERY: Duration = Duration::from_millis(500);
/// How long to wait before a connection is made anew: from, to.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Is a member until the consumer ends, or the subscription is gone.
pub(super) async fn keep<Q: Queues + ?Sized>(shared: Arc<Shared<Q>>) -> Result<()> {
    be_member(&shared).await;
    shared.lock().abandon();
    shared.changed.notify_one();
    shared.is_over.send_replace(true);
    Ok(())
}

async fn be_member<Q: Queues + ?Sized>(shared: &Shared<Q>) {
    let (system, clock) = (&shared.system, &shared.system.clock);
    let mut pause = PAUSES.0;
    loop {
        let mut had_lanes = false;
        let member = tokio::select! {
            member = system.queues.member(&shared.channel, &shared.subscription) => member,
            () = shared.stopped() => return,
        };
        let error = match member {
            Ok(member) => {
                let began = clock.elapsed();
                let error = belong(shared, &*member).await;
                had_lanes = true;
                if clock.elapsed().saturating_sub(began) > PAUSES.1 {
                    pause = PAUSES.0;
                }
                error
            }
            Err(error) => Err(error),
        };
        if shared.stop.borrow().is_some() {
            shared.lock().failed = error.err();
            return;
        }
        let error =
            error.err().unwrap_or_else(|| Error::new(code::INTERNAL, "a membership ended for no reason"));
        shared.lock().lose_all(&error);
        shared.changed.notify_one();
        let found = tokio::select! {
            found = system.find(&shared.channel.name) => found,
            () = shared.stopped() => return,
        };
        match found {
            Ok(Some(record)) if record.subscriptions.get(&shared.subscription) == Some(&shared.number) => {}
            Ok(Some(_)) => return shared.finish(Finish::Gone),
            Ok(None) => return shared.finish(Finish::ChannelGone),
            Err(error) => tracing::debug!(%error, "whether the subscription is there cannot be seen now"),
        }
        if had_lanes {
            shared.lock().hand.reconnected();
            shared.changed.notify_one();
        }
        shared.failed(error);
        tokio::select! {
            () = clock.sleep(pause) => {}
            () = shared.stopped() => return,
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// What a member tells those who stand in lines for it.
struct Wants {
    /// Whether it is to have more lanes.
    more: watch::Sender<bool>,
    /// In which line somebody is to call.
    calls: Vec<Notify>,
}

/// Is a member over one connection, until the consumer ends.
///
/// # Errors
/// What ended it before.
async fn belong<Q: Queues + ?Sized>(shared: &Shared<Q>, member: &dyn Member) -> Result<()> {
    let lanes = || (0..shared.channel.lanes).map(Lane);
    let wants = Wants { more: watch::Sender::new(false), calls: lanes().map(|_| Notify::new()).collect() };
    let lines = lanes()
        .zip(&wants.calls)
        .map(|(lane, call)| Box::pin(line(shared, member, lane, wants.more.subscribe(), call)));
    tokio::select! {
        ended = try_join_all(lines) => ended.map(drop),
        ended = tend(shared, member, &wants) => ended,
    }
}

/// Stands in the line of a lane whenever the member is to have more, and has the lane when it is its turn.
async fn line<Q: Queues + ?Sized>(
    shared: &Shared<Q>,
    member: &dyn Member,
    lane: Lane,
    mut wants: watch::Receiver<bool>,
    call: &Notify,
) -> Result<()> {
    let ended = |_| Error::new(code::STOPPED, "the consumer was dropped");
    loop {
        tokio::select! {
            wanted = wants.wait_for(|wants| *wants) => drop(wanted.map_err(ended)?),
            () = shared.stopped() => return Ok(()),
        }
        let take = async {
            let line = member.line(lane).await?;
            let book = Slot::take(line, Arc::clone(&shared.system.clock), None, call).await?;
            Ok::<_, Error>((book, member.lane(lane).await?))
        };
        let (book, link) = tokio::select! {
            taken = take => taken?,
            left = wants.wait_for(|wants| !*wants) => {
                left.map_err(ended)?;
                continue;
            }
            () = shared.stopped() => return Ok(()),
        };
        own(shared, lane, book, link.into()).await?;
    }
}

/// Looks how many members there are, and lets lanes go that are more than a fair share.
async fn tend<Q: Queues + ?Sized>(shared: &Shared<Q>, member: &dyn Member, wants: &Wants) -> Result<()> {
    let lanes = shared.channel.lanes as usize;
    let (mut called, mut turn) = (shared.system.clock.elapsed(), 0);
    loop {
        let members = member.count().await?.max(1);
        let (least, most) = (lanes / members, lanes.div_ceil(members));
        let had = shed(shared, least, most);
        let is_to_have_more = had < most;
        wants.more.send_if_modified(|more| std::mem::replace(more, is_to_have_more) != is_to_have_more);
        let now = shared.system.clock.elapsed();
        if had < least && now.saturating_sub(called) >= CALL_EVERY {
            (called, turn) = (now, next_line(shared, turn));
            if let Some(call) = wants.calls.get(turn) {
                call.notify_one();
            }
        }
        shared.system.clock.sleep(LOOK).await;
    }
}

/// The next lane behind one that is not this member's: where to call.
fn next_line<Q: Queues + ?Sized>(shared: &Shared<Q>, behind: usize) -> usize {
    let inner = shared.lock();
    let lanes = shared.channel.lanes;
    let of = |at: u32| Lane(u32::try_from(behind).unwrap_or(0).wrapping_add(at) % lanes.max(1));
    let next = (1..=lanes).map(of).find(|lane| !inner.lanes.contains_key(lane));
    next.map_or(0, |lane| lane.0 as usize)
}

/// Lets go what is more than most; and of what is more than least, one that somebody called for who has less. How many there
/// were before. Those go first of which the least is in hand.
fn shed<Q: Queues + ?Sized>(shared: &Shared<Q>, least: usize, most: usize) -> usize {
    let mut inner = shared.lock();
    let take = |(lane, kept): (&Lane, &mut Kept)| std::mem::take(&mut kept.is_called).then_some(*lane);
    let called: Vec<Lane> = inner.lanes.iter_mut().filter_map(take).collect();
    let open = inner.lanes.iter().filter(|(_, kept)| kept.revoked.is_none());
    let in_hand = |lane: Lane| inner.hand.unsettled(lane).map_or(0, Unsettled::in_hand);
    let mut open: Vec<(usize, Lane)> = open.map(|(lane, _)| (in_hand(*lane), *lane)).collect();
    let had = open.len();
    if had > most {
        open.sort_unstable();
        open.truncate(had - most);
    } else if had > least && had == most {
        open.retain(|(_, lane)| called.contains(lane));
        open.truncate(1);
    } else {
        open.clear();
    }
    if open.is_empty() {
        return had;
    }
    let grace = shared.system.settings.grace;
    let until = shared.system.clock.elapsed() + grace;
    for (_, lane) in &open {
        if let Some(kept) = inner.lanes.get_mut(lane) {
            kept.revoked = Some(until);
            kept.wakers.leaving.notify_one();
        }
    }
    let told = shared.system.clock.now().saturating_add(i64::try_from(grace.as_micros()).unwrap_or(i64::MAX));
    inner.hand.revoke(open.into_iter().map(|(_, lane)| lane), told);
    drop(inner);
    shared.changed.notify_one();
    had
}
