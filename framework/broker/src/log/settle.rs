//! Settles deliveries: each is done when the document of its lane says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Log;
use super::shared::Shared;
use crate::receiving::Written;
use crate::unsettled::End;
use tidegate_core::capability::missing;
use tidegate_core::lane::Lane;
use tidegate_core::port::{Settle, Settled, Settlement, Token};

pub(super) struct LogSettle<L: Log> {
    shared: Arc<Shared<L>>,
}

impl<L: Log> LogSettle<L> {
    pub(super) fn new(shared: Arc<Shared<L>>) -> Self {
        Self { shared }
    }
}

#[async_trait]
impl<L: Log> Settle for LogSettle<L> {
    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Settled> {
        let shared = &self.shared;
        let now = shared.clock.now();
        // Of each: the answer that is known already, or the lane whose writing has it.
        let mut asked: Vec<Result<Lane, Settled>> = Vec::with_capacity(batch.len());
        let waits: Vec<_> = {
            let mut inner = shared.lock();
            for (token, settlement) in batch {
                let end = match End::of(settlement, now, shared.log.capabilities()) {
                    Ok(end) => end,
                    Err(why) => {
                        asked.push(Err(Settled::Refused(missing(
                            &shared.log.location(),
                            "dead_letter",
                            why,
                        ))));
                        continue;
                    }
                };
                asked.push(inner.hand.end(*token, end).map(|_| token.lane).ok_or(Settled::Lost));
            }
            let lanes: BTreeSet<Lane> =
                asked.iter().filter_map(|asked| asked.as_ref().ok()).copied().collect();
            if std::mem::take(&mut inner.is_starved) {
                shared.reading.notify_one();
            }
            let mut wait = |lane: Lane| {
                let number = inner.touch(lane);
                (lane, inner.wait(lane, number))
            };
            lanes.into_iter().map(&mut wait).collect()
        };
        shared.changed.notify_one();
        shared.writing.notify_one();
        shared.urgent.notify_one();
        let mut written = BTreeMap::new();
        for (lane, wait) in waits {
            written.insert(lane, Written::told(wait.await));
        }
        let answer = |asked: Result<Lane, Settled>| match asked {
            Err(known) => known,
            Ok(lane) => written.get(&lane).map_or(Settled::Lost, Written::settled),
        };
        asked.into_iter().map(answer).collect()
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Settled> {
        let shared = &self.shared;
        let until = shared.clock.elapsed() + by;
        let mut inner = shared.lock();
        let mut extend = |token: &Token| {
            if inner.hand.place(*token).is_none() {
                return Settled::Lost;
            }
            match inner.lanes.get_mut(&token.lane) {
                Some(kept) => kept.held_until = kept.held_until.max(until),
                None => return Settled::Lost,
            }
            Settled::Done
        };
        let settled = tokens.iter().map(&mut extend).collect();
        drop(inner);
        shared.tending.notify_one();
        settled
    }
}
