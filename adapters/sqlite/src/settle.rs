//! Settles deliveries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_broker::seats::Member;
use tidegate_broker::unsettled::End;
use tidegate_core::capability::missing;
use tidegate_core::error::code;
use tidegate_core::port::{Settle, Settled, Settlement, Token};
use tidegate_core::{Error, Lane, Result};

use crate::broker::hand::{Extend, SettleJob};
use crate::broker::writer::{micros, never_answered, pending};
use crate::broker::{CAPABILITIES, Link};
use crate::consumer::Shared;

pub(crate) struct SqliteSettle {
    link: Arc<Link>,
    shared: Arc<Shared>,
    channel: i64,
    me: Member,
}

impl SqliteSettle {
    pub(crate) fn new(link: Arc<Link>, shared: Arc<Shared>, channel: i64, me: Member) -> Self {
        Self { link, shared, channel, me }
    }

    /// What the job's answer means to each that was asked for.
    fn answer(&self, asked: Vec<Asked>, answer: Result<BTreeSet<Lane>>) -> Vec<Settled> {
        if let Ok(lost) = &answer {
            self.shared.lose(lost.iter().copied());
        } else {
            // Whether it was done or not: the lanes are taken anew, as they stand in the file.
            self.shared.lose(asked.iter().filter_map(|asked| match asked {
                Asked::Of(lane) => Some(*lane),
                Asked::Lost | Asked::Refused(_) => None,
            }));
        }
        let settled = |asked: Asked| match (asked, &answer) {
            (Asked::Lost, _) => Settled::Lost,
            (Asked::Refused(error), _) => Settled::Refused(error),
            (Asked::Of(lane), Ok(lost)) if lost.contains(&lane) => Settled::Lost,
            (Asked::Of(_), Ok(_)) => Settled::Done,
            (Asked::Of(_), Err(error)) => Settled::Unknown(error.again()),
        };
        asked.into_iter().map(settled).collect()
    }
}

/// What became of a token before the file was asked.
enum Asked {
    /// It is in hand, and the file is asked about its lane.
    Of(Lane),
    Lost,
    Refused(Error),
}

#[async_trait]
impl Settle for SqliteSettle {
    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Settled> {
        let permit = match self.link.reserve().await {
            Ok(permit) => permit,
            // Nobody writes any more: what was in hand was released.
            Err(error) if error.code() == code::STOPPED => {
                return batch.iter().map(|_| Settled::Lost).collect();
            }
            Err(_) => return batch.iter().map(|_| Settled::Unknown(never_answered())).collect(),
        };
        let now = self.link.clock.now();
        let mut ends = Vec::with_capacity(batch.len());
        let mut asked = Vec::with_capacity(batch.len());
        let answer = {
            // Memory and file learn of it in the same order.
            let mut lanes = self.shared.lock();
            for (token, settlement) in batch {
                let end = match End::of(settlement, now, &CAPABILITIES) {
                    Ok(end) => end,
                    Err(why) => {
                        asked.push(Asked::Refused(missing("sqlite:", "dead_letter", why)));
                        continue;
                    }
                };
                let held = lanes.get_mut(&token.lane).filter(|held| held.epoch == token.epoch);
                match held.and_then(|held| held.unsettled.end(token.number, end)) {
                    Some(place) => {
                        ends.push((token.lane, token.epoch, place, end));
                        asked.push(Asked::Of(token.lane));
                    }
                    None => asked.push(Asked::Lost),
                }
            }
            if ends.is_empty() {
                None
            } else {
                let subscription = self.shared.subscription;
                let (job, answer) =
                    pending(SettleJob { channel: self.channel, subscription, me: self.me, ends, now });
                permit.send(job);
                Some(answer)
            }
        };
        let answer = match answer {
            Some(answer) => answer.await.unwrap_or_else(|_| Err(never_answered())),
            None => Ok(BTreeSet::new()),
        };
        self.link.settled.notify_waiters();
        self.answer(asked, answer)
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Settled> {
        let mut epochs = BTreeMap::new();
        let asked: Vec<Asked> = {
            let lanes = self.shared.lock();
            let mut look = |token: &Token| {
                let held = lanes.get(&token.lane).filter(|held| held.epoch == token.epoch);
                match held.and_then(|held| held.unsettled.place(token.number)) {
                    Some(_) => {
                        epochs.insert(token.lane, token.epoch);
                        Asked::Of(token.lane)
                    }
                    None => Asked::Lost,
                }
            };
            tokens.iter().map(&mut look).collect()
        };
        if epochs.is_empty() {
            return self.answer(asked, Ok(BTreeSet::new()));
        }
        let until = self.link.clock.now().saturating_add(micros(by));
        let subscription = self.shared.subscription;
        let answer = self.link.ask(Extend { subscription, me: self.me, lanes: epochs, until }).await;
        self.answer(asked, answer)
    }
}
