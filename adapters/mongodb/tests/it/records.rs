//! The records of flows, and who a store is.

use std::time::Duration;

use tidegate_core::Endpoint;
use tidegate_core::error::code;

use crate::place::{Place, first, flow};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_put_by_version_and_the_lease_is_one_runners() {
    let Some(place) = Place::new("records").await else { return };
    let state = place.store.state().await.unwrap();
    let flow = flow();
    assert_eq!(state.get(&flow, "plan").await.unwrap(), None);
    assert_eq!(state.put(&flow, "plan", "a", 1).await.unwrap(), None);
    assert_eq!(state.put(&flow, "plan", "a", 0).await.unwrap(), Some(1));
    assert_eq!(state.put(&flow, "plan", "b", 0).await.unwrap(), None);
    assert_eq!(state.put(&flow, "plan", "b", 1).await.unwrap(), Some(2));
    let stored = state.get(&flow, "plan").await.unwrap().unwrap();
    assert_eq!((stored.version, stored.value.as_str()), (2, "b"));
    assert_eq!(state.flows().await.unwrap(), std::slice::from_ref(&flow));

    tidegate_conformance::a_lease_is_one_holders(state.as_ref(), &flow).await;
    state.hold(&flow, "one", Duration::from_secs(1)).await.unwrap();

    let mut sink = place.store.sink(&flow, &[]).await.unwrap();
    sink.open(&first()).await.unwrap();
    state.forget(&flow).await.unwrap();
    assert_eq!(state.flows().await.unwrap(), []);
    for collection in ["tidegate.state", "tidegate.lease", "tidegate.checkpoint"] {
        assert!(place.all(collection).await.is_empty(), "{collection}");
    }
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_its_replica_set_and_database() {
    let Some(one) = Place::new("identity").await else { return };
    let Some(two) = Place::new("identity").await else { return };
    let id = async |place: &Place| place.store.catalog().await.unwrap().identity().await.unwrap();
    assert_eq!(id(&one).await, id(&one).await);
    assert_ne!(id(&one).await, id(&two).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_unreachable() {
    let url = "mongodb://127.0.0.1:1/shop?serverSelectionTimeoutMS=200&replicaSet=rs0";
    let store = tidegate_mongodb::open(&Endpoint::parse(url).unwrap()).unwrap();
    assert_eq!(store.catalog().await.err().map(|e| e.code()), Some(code::UNREACHABLE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_is_replaced_if_it_is_still_the_one_that_was() {
    let Some(place) = Place::new("seal").await else { return };
    let (catalog, flow) = (place.store.catalog().await.unwrap(), flow());
    assert_eq!(catalog.sealed(&flow).await.unwrap(), None);
    for (was, seal, then) in
        [(None, "a", "a"), (None, "b", "a"), (Some("b"), "c", "a"), (Some("a"), "d", "d")]
    {
        assert_eq!(catalog.seal(&flow, was, seal).await.unwrap(), seal == then);
        assert_eq!(catalog.sealed(&flow).await.unwrap().as_deref(), Some(then));
    }
    let (one, two) = tokio::join!(catalog.seal(&flow, Some("d"), "e"), catalog.seal(&flow, Some("d"), "f"));
    assert_ne!(one.unwrap(), two.unwrap());
    let one = catalog.sealed(&flow).await.unwrap();
    catalog.seal(&flow, Some("d"), "g").await.unwrap();
    assert_eq!(catalog.sealed(&flow).await.unwrap(), one);
    catalog.clean(&flow).await.unwrap();
    catalog.clean(&flow).await.unwrap();
    assert_eq!(catalog.sealed(&flow).await.unwrap(), None);
    let left = place.database.list_collection_names().await.unwrap();
    assert_eq!(left, Vec::<String>::new());
    place.end().await;
}
