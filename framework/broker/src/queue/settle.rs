//! Settles deliveries: each is done when its acknowledgement is durable, or what is noted of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Queues;
use super::shared::Shared;
use crate::receiving::Written;
use crate::unsettled::End;
use tidegate_core::capability::missing;
use tidegate_core::lane::Lane;
use tidegate_core::port::{Settle, Settled, Settlement, Token};

pub(super) struct QueueSettle<Q: Queues> {
    shared: Arc<Shared<Q>>,
}

impl<Q: Queues> QueueSettle<Q> {
    pub(super) fn new(shared: Arc<Shared<Q>>) -> Self {
        Self { shared }
    }
}

#[async_trait]
impl<Q: Queues> Settle for QueueSettle<Q> {
    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Settled> {
        let shared = &self.shared;
        let now = shared.system.clock.now();
        // Of each: the answer that is known already, or the lane whose writing has it, and whether that is to note it.
        let mut asked: Vec<Result<(Lane, bool), Settled>> = Vec::with_capacity(batch.len());
        let waits: Vec<_> = {
            let mut inner = shared.lock();
            for (token, settlement) in batch {
                let end = match End::of(settlement, now, shared.system.queues.capabilities()) {
                    Ok(end) => end,
                    Err(why) => {
                        let location = shared.system.queues.location();
                        asked.push(Err(Settled::Refused(missing(&location, "dead_letter", why))));
                        continue;
                    }
                };
                let place = inner.hand.end(*token, end);
                if let (Some(place), End::Done) = (place, end) {
                    inner.ack(token.lane, place);
                }
                asked.push(place.map(|_| (token.lane, end != End::Done)).ok_or(Settled::Lost));
            }
            let writings: BTreeSet<(Lane, bool)> =
                asked.iter().filter_map(|asked| asked.as_ref().ok()).copied().collect();
            let mut wait = |(lane, is_note)| {
                let number = inner.touch(lane);
                if let Some(kept) = inner.lanes.get(&lane) {
                    kept.wakers.urgent.notify_one();
                }
                ((lane, is_note), inner.wait(lane, number, is_note))
            };
            writings.into_iter().map(&mut wait).collect()
        };
        shared.changed.notify_one();
        let mut written = BTreeMap::new();
        for (writing, wait) in waits {
            written.insert(writing, Written::told(wait.await));
        }
        let answer = |asked: Result<(Lane, bool), Settled>| match asked {
            Err(known) => known,
            Ok(writing) => written.get(&writing).map_or(Settled::Lost, Written::settled),
        };
        asked.into_iter().map(answer).collect()
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Settled> {
        let until = self.shared.system.clock.elapsed() + by;
        let mut inner = self.shared.lock();
        let mut extend = |token: &Token| {
            if inner.hand.place(*token).is_none() {
                return Settled::Lost;
            }
            match inner.kept(token.lane, token.epoch) {
                Some(kept) => {
                    kept.held_until = kept.held_until.max(until);
                    kept.wakers.leaving.notify_one();
                    Settled::Done
                }
                None => Settled::Lost,
            }
        };
        tokens.iter().map(&mut extend).collect()
    }
}
