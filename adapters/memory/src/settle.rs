//! Settles deliveries.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_broker::seats::Member;
use tidegate_broker::unsettled::End;
use tidegate_core::Subscription;
use tidegate_core::capability::missing;
use tidegate_core::port::{Broker, Settle, Settled, Settlement, Token};
use tokio::sync::Notify;

use crate::broker::MemoryBroker;
use crate::channel::micros;

#[derive(Debug)]
pub(crate) struct MemorySettle {
    broker: MemoryBroker,
    subscription: Subscription,
    who: (Member, u64),
    changed: Arc<Notify>,
}

impl MemorySettle {
    pub(crate) fn new(
        broker: MemoryBroker,
        subscription: &Subscription,
        who: (Member, u64),
        changed: Arc<Notify>,
    ) -> Self {
        Self { broker, subscription: subscription.clone(), who, changed }
    }
}

#[async_trait]
impl Settle for MemorySettle {
    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Settled> {
        let now = self.broker.data.clock.now();
        let mut channels = self.broker.data.lock();
        let mut channel = channels.get_mut(&self.subscription.channel);
        let mut settle = |token: Token, settlement: &Settlement| {
            let Some(channel) = channel.as_mut() else { return Settled::Lost };
            let end = match End::of(settlement, now, self.broker.capabilities()) {
                Ok(end) => end,
                Err(why) => return Settled::Refused(missing("memory:", "dead_letter", why)),
            };
            match channel.settle(&self.subscription.name, self.who, token, end, now) {
                true => Settled::Done,
                false => Settled::Lost,
            }
        };
        let settled = batch.iter().map(|(token, settlement)| settle(*token, settlement)).collect();
        self.changed.notify_waiters();
        settled
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Settled> {
        let until = self.broker.data.clock.now().saturating_add(micros(by));
        let mut channels = self.broker.data.lock();
        let mut channel = channels.get_mut(&self.subscription.channel);
        let mut hold = |token: &Token| {
            let name = &self.subscription.name;
            channel.as_mut().is_some_and(|channel| channel.hold(name, self.who, *token, until))
        };
        tokens.iter().map(|token| if hold(token) { Settled::Done } else { Settled::Lost }).collect()
    }
}
