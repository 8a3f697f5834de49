//! What a store has to do in whose transactions handlers write.

use std::time::Duration;

use tidegate_core::FlowName;
use tidegate_core::port::Transactional;

/// Notes and effects are there together or not at all: `write` adds one row in a transaction, `count` says how many there are.
///
/// # Panics
/// If the store breaks its contract.
pub async fn notes_are_in_the_transaction_of_the_effect<T: Transactional>(
    store: &T,
    write: impl AsyncFn(&mut T::Tx),
    count: impl AsyncFn() -> u64,
) {
    let flow = FlowName::new("inbox_one").expect("a good name");
    let other = FlowName::new("inbox_other").expect("a good name");
    let handle = async |flow: &FlowName, id: &str| {
        let mut tx = store.begin().await.expect("a transaction begins");
        let is_new = store.note(&mut tx, flow, id).await.expect("it is noted");
        if is_new {
            write(&mut tx).await;
            store.commit(tx).await.expect("it is committed");
        }
        is_new
    };
    assert!(handle(&flow, "a").await && count().await == 1, "X1: the effect is there");
    assert!(!handle(&flow, "a").await && count().await == 1, "X1: and so is the note");

    let mut tx = store.begin().await.expect("a transaction begins");
    assert!(store.note(&mut tx, &flow, "b").await.expect("it is noted"));
    write(&mut tx).await;
    drop(tx);
    assert!(handle(&flow, "b").await, "X2: what was dropped is not noted");
    assert_eq!(count().await, 2, "X2: and has no effect");

    let all = futures::future::join_all((0..8).map(|_| handle(&flow, "c"))).await;
    assert_eq!(all.iter().filter(|is_new| **is_new).count(), 1, "X3: one of several handles it");
    assert_eq!(count().await, 3, "X3: once");

    assert!(handle(&other, "a").await && count().await == 4, "X4: another one handles it as well");

    let hour = 3_600_000_000;
    assert_eq!(store.forget(&flow, hour).await.expect("nothing is forgotten"), 0, "X5: what is new stays");
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(store.forget(&flow, 1).await.expect("it is forgotten"), 3, "X5: what is old goes");
    assert!(handle(&flow, "a").await && !handle(&other, "a").await, "X5: and nothing else does");
}
