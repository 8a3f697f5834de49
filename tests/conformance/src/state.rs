//! What a state store does with the lease of a flow.

use std::time::Duration;

use tidegate_core::FlowName;
use tidegate_core::error::code;
use tidegate_core::port::StateStore;

/// A lease is one holder's until its time is over, and says whether it was this holder's already.
///
/// # Panics
/// If the store breaks its contract.
pub async fn a_lease_is_one_holders(state: &dyn StateStore, flow: &FlowName) {
    let hold = async |holder, time: Duration| state.hold(flow, holder, time).await.map(|lease| lease.renewed);
    let (minute, moment) = (Duration::from_secs(60), Duration::from_millis(100));
    assert_eq!(hold("one", minute).await.ok(), Some(false));
    assert_eq!(hold("one", minute).await.ok(), Some(true));
    let held = hold("two", minute).await.expect_err("it is held");
    assert_eq!(held.code(), code::LEASE_HELD);
    assert!(held.context().contains(&("process".into(), "one".to_owned())), "{held:?}");
    state.release(flow, "two").await.expect("nothing to give up");
    assert_eq!(hold("two", minute).await.expect_err("it is held still").code(), code::LEASE_HELD);

    assert_eq!(hold("one", moment).await.ok(), Some(true));
    tokio::time::sleep(2 * moment).await;
    assert_eq!(hold("one", moment).await.ok(), Some(true), "nobody took it meanwhile");
    tokio::time::sleep(2 * moment).await;
    assert_eq!(hold("two", moment).await.ok(), Some(false));
    tokio::time::sleep(2 * moment).await;
    assert_eq!(hold("one", minute).await.ok(), Some(false), "somebody did");
    state.release(flow, "one").await.expect("it is given up");
    assert_eq!(hold("two", minute).await.ok(), Some(false));

    state.forget(flow).await.expect("it is forgotten");
    assert_eq!(hold("two", minute).await.ok(), Some(false), "the flow is another one");
    state.forget(flow).await.expect("it is forgotten again");
}
