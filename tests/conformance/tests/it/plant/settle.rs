//! What settles.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::Lane;
use tidegate_core::error::code;
use tidegate_core::port::{Delivery, Settle, Settled, Settlement, Token};
use tokio::time::Instant;

use super::{Bug, Kept, lock, planted};

pub(super) struct PlantedSettle {
    pub(super) bug: Bug,
    pub(super) inner: Arc<dyn Settle>,
    pub(super) kept: Arc<Kept>,
}

impl PlantedSettle {
    fn delivery(&self, token: Token) -> Option<Delivery> {
        lock(&self.kept.in_hand).iter().find(|delivery| delivery.token == token).cloned()
    }

    fn asked(&self, token: Token, settlement: &Settlement) -> (Token, Settlement) {
        let mut token = token;
        let settlement = match (self.bug, settlement) {
            (Bug::RetryComesLate, Settlement::Retry { after }) => {
                Settlement::Retry { after: *after + Duration::from_secs(2) }
            }
            (Bug::RetryComesEarly, Settlement::Retry { after }) => Settlement::Retry { after: *after / 2 },
            (Bug::ReleaseCounts, Settlement::Release) => Settlement::Retry { after: Duration::ZERO },
            (Bug::DeadLetterPretends, Settlement::DeadLetter { .. }) => Settlement::Ack,
            (Bug::RetryGoesToTheBack, Settlement::Retry { after }) => {
                if let Some(delivery) = self.delivery(token) {
                    lock(&self.kept.later).push((Instant::now() + *after, delivery));
                }
                Settlement::Ack
            }
            (Bug::RetryBlocksAll, Settlement::Retry { after }) => {
                *lock(&self.kept.blocked) = Some(Instant::now() + *after);
                settlement.clone()
            }
            _ => settlement.clone(),
        };
        if self.bug == Bug::EpochsFall {
            token.epoch = !token.epoch;
        }
        if self.bug == Bug::OtherLanes {
            token.lane = Lane(token.lane.0 ^ 1);
        }
        (token, settlement)
    }
}

#[async_trait]
impl Settle for PlantedSettle {
    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Settled> {
        if let Err(error) = self.kept.way.pass().await {
            return batch.iter().map(|_| Settled::Unknown(error.again())).collect();
        }
        let asked: Vec<_> = batch.iter().map(|(token, settlement)| self.asked(*token, settlement)).collect();
        let mut settled = self.inner.settle(&asked).await;
        for ((token, settlement), settled) in batch.iter().zip(&mut settled) {
            match self.bug {
                Bug::OldEpochSettles if settled.is_lost() => *settled = Settled::Done,
                Bug::LostSaysUnknown if settled.is_lost() => {
                    *settled = Settled::Unknown(planted(code::TIMED_OUT));
                }
                // What comes from here can be settled as well.
                Bug::RetryGoesToTheBack if settled.is_lost() => *settled = Settled::Done,
                Bug::RedeliversSettled if *settlement == Settlement::Ack && settled.is_done() => {
                    let mut again = lock(&self.kept.shared.settled);
                    if again.is_empty() {
                        again.extend(self.delivery(*token));
                    }
                }
                _ => {}
            }
        }
        settled
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Settled> {
        if self.bug == Bug::ExtendPretends {
            return tokens.iter().map(|_| Settled::Done).collect();
        }
        self.inner.extend(tokens, by).await
    }
}
