//! The lease of a flow.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use tidegate_core::FlowName;
use tidegate_core::port::Store;
use tidegate_memory::MemoryStore;

#[tokio::test]
async fn a_lease_is_one_holders_until_its_time_is_over() {
    let state = MemoryStore::new("shop").state().await.unwrap();
    tidegate_conformance::a_lease_is_one_holders(state.as_ref(), &FlowName::new("shop").unwrap()).await;
}
