//! Records and leases.

use std::sync::Arc;

use tidegate_core::port::{Stored, Transactional as _};
use tidegate_core::{Endpoint, FlowName};

use crate::file::{File, flow, open};

#[tokio::test]
async fn records_are_compared_before_they_are_set() {
    let file = File::with("CREATE TABLE t(id INTEGER PRIMARY KEY)").await;
    let path = file.folder.path().join("state.db");
    let state = open(&path).state().await.unwrap();
    assert_eq!(state.get(&flow(), "plan").await.unwrap(), None);
    assert!(state.flows().await.unwrap().is_empty());
    assert!(!path.exists(), "looking makes nothing");
    assert_eq!(state.put(&flow(), "plan", "a", 0).await.unwrap(), Some(1));
    assert_eq!(state.put(&flow(), "plan", "b", 0).await.unwrap(), None);
    assert_eq!(open(&path).state().await.unwrap().put(&flow(), "plan", "c", 1).await.unwrap(), Some(2));
    assert_eq!(state.get(&flow(), "plan").await.unwrap(), Some(Stored { version: 2, value: "c".to_owned() }));
    state.put(&FlowName::new("b").unwrap(), "plan", "x", 0).await.unwrap();
    assert_eq!(state.flows().await.unwrap().len(), 2);
    state.forget(&flow()).await.unwrap();
    assert_eq!(state.get(&flow(), "plan").await.unwrap(), None);
    assert_eq!(state.flows().await.unwrap(), [FlowName::new("b").unwrap()]);
}

#[tokio::test]
async fn one_of_many_wins() {
    let file = File::with("CREATE TABLE t(id INTEGER PRIMARY KEY)").await;
    let puts = (0..8).map(|_| {
        let store = open(&file.path);
        async move { store.state().await.unwrap().put(&flow(), "k", "v", 0).await.unwrap() }
    });
    let won = futures::future::join_all(puts).await.into_iter().flatten().count();
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_lease_is_one_holders_until_its_time_is_over() {
    let file = File::with("CREATE TABLE t(id INTEGER PRIMARY KEY)").await;
    let state = file.store.state().await.unwrap();
    tidegate_conformance::a_lease_is_one_holders(state.as_ref(), &flow()).await;
}

#[tokio::test]
async fn timers_are_kept_as_their_contract_says() {
    let file = File::with("CREATE TABLE t(id INTEGER PRIMARY KEY)").await;
    let path = file.folder.path().join("timers.db");
    let endpoint = Endpoint::parse(&format!("sqlite:{}", path.display())).unwrap();
    let state = open(&path).state().await.unwrap();
    let open = move || {
        let timers = tidegate_sqlite::open_timers(&endpoint).unwrap();
        (timers, Arc::clone(&state))
    };
    tidegate_conformance::keeps_timers(Arc::new(open)).await;
}

#[tokio::test]
async fn notes_are_in_the_transaction_of_the_effect() {
    let file = File::with("CREATE TABLE t(id INTEGER PRIMARY KEY)").await;
    let endpoint = Endpoint::parse(&format!("sqlite:{}", file.path.display())).unwrap();
    let store = tidegate_sqlite::open_inbox(&endpoint).unwrap();
    let write = async |tx: &mut tidegate_sqlite::SqliteTx| {
        sqlx::raw_sql("INSERT INTO t DEFAULT VALUES").execute(&mut **tx).await.unwrap();
    };
    let count = async || {
        let mut tx = store.begin().await.unwrap();
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut *tx).await.unwrap();
        u64::try_from(count).unwrap()
    };
    tidegate_conformance::notes_are_in_the_transaction_of_the_effect(&store, write, count).await;
}
