//! Keeps timers.

use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::port::{Due, Timer, Timers};
use tidegate_core::{FlowName, Result};

use crate::store::MemoryStore;

/// A timer as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    due: Due,
    /// Until when nobody else is given it.
    hidden_until: i64,
}

#[async_trait]
impl Timers for MemoryStore {
    async fn put(&self, flow: &FlowName, timer: &Timer) -> Result<()> {
        let mut inner = self.lock();
        inner.timers_put += 1;
        let due = Due { timer: timer.clone(), number: inner.timers_put };
        let timers = &mut inner.flows.entry(flow.clone()).or_default().timers;
        timers.insert(timer.id.clone(), Kept { due, hidden_until: i64::MIN });
        Ok(())
    }

    async fn cancel(&self, flow: &FlowName, id: &str) -> Result<bool> {
        let mut inner = self.lock();
        Ok(inner.flows.get_mut(flow).is_some_and(|state| state.timers.remove(id).is_some()))
    }

    async fn due(&self, flow: &FlowName, upto: i64, limit: usize, hide: Duration) -> Result<Vec<Due>> {
        let mut inner = self.lock();
        let Some(state) = inner.flows.get_mut(flow) else { return Ok(Vec::new()) };
        let is_due = |kept: &&mut Kept| kept.due.timer.at <= upto && kept.hidden_until <= upto;
        let mut due: Vec<_> = state.timers.values_mut().filter(is_due).collect();
        due.sort_by_key(|kept| (kept.due.timer.at, kept.due.number));
        due.truncate(limit);
        let hide = i64::try_from(hide.as_micros()).unwrap_or(i64::MAX);
        let give = |kept: &mut Kept| {
            kept.hidden_until = upto.saturating_add(hide);
            kept.due.clone()
        };
        Ok(due.into_iter().map(give).collect())
    }

    async fn done(&self, flow: &FlowName, number: u64) -> Result<bool> {
        let mut inner = self.lock();
        let Some(state) = inner.flows.get_mut(flow) else { return Ok(false) };
        let before = state.timers.len();
        state.timers.retain(|_, kept| kept.due.number != number);
        Ok(state.timers.len() < before)
    }
}
