//! Keeps the records of flows.

use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::port::{Lease, StateStore, Stored};
use tidegate_core::{FlowName, Result};

use crate::store::MemoryStore;

#[async_trait]
impl StateStore for MemoryStore {
    async fn get(&self, flow: &FlowName, key: &str) -> Result<Option<Stored>> {
        Ok(self.lock().flows.get(flow).and_then(|state| state.records.get(key)).cloned())
    }

    async fn put(&self, flow: &FlowName, key: &str, value: &str, expected: u64) -> Result<Option<u64>> {
        let mut inner = self.lock();
        let records = &mut inner.flows.entry(flow.clone()).or_default().records;
        if records.get(key).map_or(0, |stored| stored.version) != expected {
            return Ok(None);
        }
        let version = expected + 1;
        records.insert(key.to_owned(), Stored { version, value: value.to_owned() });
        Ok(Some(version))
    }

    async fn flows(&self) -> Result<Vec<FlowName>> {
        let inner = self.lock();
        let flows = inner.flows.iter();
        let known = flows.filter(|(_, state)| !state.records.is_empty() || state.checkpoint.is_some());
        Ok(known.map(|(flow, _)| flow.clone()).collect())
    }

    async fn forget(&self, flow: &FlowName) -> Result<()> {
        self.lock().flows.remove(flow);
        Ok(())
    }

    async fn hold(&self, flow: &FlowName, holder: &str, time: Duration) -> Result<Lease> {
        let now = self.started.elapsed();
        let mut inner = self.lock();
        let state = inner.flows.entry(flow.clone()).or_default();
        match &state.lease {
            Some((other, until)) if other != holder && *until > now => Err(Lease::held_by(other)),
            before => {
                let renewed = before.as_ref().is_some_and(|(before, _)| before == holder);
                state.lease = Some((holder.to_owned(), now + time));
                Ok(Lease { holder: holder.to_owned(), time, renewed })
            }
        }
    }

    async fn release(&self, flow: &FlowName, holder: &str) -> Result<()> {
        let mut inner = self.lock();
        if let Some(state) = inner.flows.get_mut(flow)
            && state.lease.as_ref().is_some_and(|(h, _)| h == holder)
        {
            state.lease = None;
        }
        Ok(())
    }
}
