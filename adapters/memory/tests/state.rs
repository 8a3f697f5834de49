//! The lease of a flow, and timers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use tidegate_core::FlowName;
use tidegate_core::port::{StateStore, Store, Timers};
use tidegate_memory::MemoryStore;

#[tokio::test]
async fn a_lease_is_one_holders_until_its_time_is_over() {
    let state = MemoryStore::new("shop").state().await.unwrap();
    tidegate_conformance::a_lease_is_one_holders(state.as_ref(), &FlowName::new("shop").unwrap()).await;
}

#[tokio::test]
async fn timers_are_kept_as_their_contract_says() {
    let store = MemoryStore::new("shop");
    let open =
        move || (Arc::new(store.clone()) as Arc<dyn Timers>, Arc::new(store.clone()) as Arc<dyn StateStore>);
    tidegate_conformance::keeps_timers(Arc::new(open)).await;
}
