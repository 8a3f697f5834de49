//! What services keep in a database: notes of what was handled, and timers.

use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::Transactional as _;
use tidegate_core::{Endpoint, FlowName};
use tidegate_postgres::PostgresTx;

use crate::{database, drop_database, url_of};

#[tokio::test]
async fn notes_are_in_the_transaction_of_the_effect() {
    let (_, session) = database("inbox_cases").await;
    session.batch_execute("CREATE TABLE t (id int8 GENERATED ALWAYS AS IDENTITY)").await.unwrap();
    let endpoint = Endpoint::parse(&url_of("inbox_cases")).unwrap();
    let inbox = tidegate_postgres::open_inbox(&endpoint).unwrap();
    let write = async |tx: &mut PostgresTx| {
        tx.execute("INSERT INTO t DEFAULT VALUES", &[]).await.unwrap();
    };
    let count = async || {
        let row = session.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
        row.get::<_, i64>(0).unsigned_abs()
    };
    tidegate_conformance::notes_are_in_the_transaction_of_the_effect(&inbox, write, count).await;
    drop(inbox);
    drop_database(session).await;
}

/// The server answers the commit of a transaction in which a statement failed as if nothing were wrong, and undoes it.
#[tokio::test]
async fn a_commit_behind_a_statement_that_failed_is_no_commit() {
    let (_, session) = database("inbox_aborted").await;
    let inbox = tidegate_postgres::open_inbox(&Endpoint::parse(&url_of("inbox_aborted")).unwrap()).unwrap();
    let flow = FlowName::new("inbox_one").unwrap();
    let mut tx = inbox.begin().await.unwrap();
    assert!(inbox.note(&mut tx, &flow, "a").await.unwrap());
    tx.batch_execute("SELECT 1/0").await.unwrap_err();
    let error = inbox.commit(tx).await.unwrap_err();
    assert_eq!(error.code(), code::STORE_FAILED, "{error:?}");
    let mut tx = inbox.begin().await.unwrap();
    assert!(inbox.note(&mut tx, &flow, "a").await.unwrap(), "nothing was noted");
    // What a transaction set for its session is not the next one's.
    tx.batch_execute("SET search_path = nowhere").await.unwrap();
    inbox.commit(tx).await.unwrap();
    let tx = inbox.begin().await.unwrap();
    let path: String = tx.query_one("SHOW search_path", &[]).await.unwrap().get(0);
    assert_ne!(path, "nowhere");
    drop((tx, inbox));
    drop_database(session).await;
}

#[tokio::test]
async fn timers_are_kept_as_their_contract_says() {
    let (store, session) = database("timer_cases").await;
    let endpoint = Endpoint::parse(&url_of("timer_cases")).unwrap();
    let state = store.state().await.unwrap();
    let open = move || {
        let timers = tidegate_postgres::open_timers(&endpoint).unwrap();
        (timers, Arc::clone(&state))
    };
    tidegate_conformance::keeps_timers(Arc::new(open)).await;
    drop_database(session).await;
}
