//! Collections of the target that somebody removes, renames or replaces.

use std::sync::Arc;

use futures::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use tidegate_core::error::code;
use tidegate_core::port::{Opened, Route, TableBatch};
use tidegate_core::{Table, Type, Value};

use crate::applying::{batch, commit, opened};
use crate::place::{Place, route, table};

const ROWS: i64 = 200;

fn items() -> Arc<Table> {
    table("items", &[("id", Type::Int { bits: 64 })], &[0])
}

fn chunk(fresh: bool) -> TableBatch {
    let mut part = TableBatch { fresh, ..TableBatch::default() };
    (0..ROWS).for_each(|id| part.upserts.push_values([Value::Int(id)]));
    part
}

async fn items_at(prefix: &str) -> Option<(Place, Route)> {
    let place = Place::new(prefix).await?;
    let route = route(&place.store, &items()).await;
    Some((place, route))
}

/// Also by those that insert beside the transaction with the ledger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_makes_a_collection() {
    let Some((place, route)) = items_at("renamed").await else { return };
    let (mut sink, _) = opened(&place, std::slice::from_ref(&route)).await;
    sink.apply(&batch(chunk(true)), Some(&commit(2))).await.unwrap();
    let full = |name: &str| format!("{}.{name}", place.database.name());
    let rename = doc! { "renameCollection": full("items"), "to": full("elsewhere") };
    place.database.client().database("admin").run_command(rename).await.unwrap();
    for fresh in [true, false] {
        let error = sink.apply(&batch(chunk(fresh)), Some(&commit(3))).await.unwrap_err();
        assert_eq!(error.code(), code::TABLE_MISSING, "{error:?}");
        assert!(error.context().contains(&("table".into(), "items".to_owned())), "{error:?}");
    }
    let names = place.database.list_collection_names().await.unwrap();
    assert!(!names.contains(&"items".to_owned()), "{names:?}");
    assert_eq!(place.all("elsewhere").await.len(), usize::try_from(ROWS).unwrap());
    place.end().await;
}

/// An earlier version kept no UUIDs: what is there is taken, and from then on it is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_that_an_earlier_version_began_takes_what_is_there() {
    let Some((place, route)) = items_at("earlier").await else { return };
    let routes = std::slice::from_ref(&route);
    let (mut sink, _) = opened(&place, routes).await;
    sink.apply(&batch(chunk(true)), Some(&commit(2))).await.unwrap();
    let identities = place.database.collection::<Document>("tidegate.identities");
    assert_eq!(identities.delete_many(doc! {}).await.unwrap().deleted_count, 1);
    let (mut sink, found) = opened(&place, routes).await;
    let Opened::Resumed(checkpoint) = found else { panic!("it was here before") };
    assert_eq!(checkpoint.excluded, []);
    sink.apply(&batch(chunk(false)), Some(&commit(3))).await.unwrap();

    place.database.collection::<Document>("items").drop().await.unwrap();
    place.database.create_collection("items").await.unwrap();
    let (_, found) = opened(&place, routes).await;
    let Opened::Resumed(checkpoint) = found else { panic!("it was here before") };
    assert_eq!(checkpoint.excluded.len(), 1);
    place.end().await;
}

/// Every collection has another UUID then, and the documents are those of the checkpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_was_restored_from_a_dump_is_what_it_was() {
    let Some((place, route)) = items_at("restored").await else { return };
    let routes = std::slice::from_ref(&route);
    let (mut sink, _) = opened(&place, routes).await;
    sink.apply(&batch(chunk(true)), Some(&commit(2))).await.unwrap();
    for name in ["items", "tidegate.identities"] {
        let collection = place.database.collection::<Document>(name);
        let documents: Vec<Document> = collection.find(doc! {}).await.unwrap().try_collect().await.unwrap();
        collection.drop().await.unwrap();
        collection.insert_many(documents).await.unwrap();
    }
    for position in [3, 4] {
        let (mut sink, found) = opened(&place, routes).await;
        let Opened::Resumed(checkpoint) = found else { panic!("it was here before") };
        assert_eq!(checkpoint.excluded, []);
        sink.apply(&batch(chunk(false)), Some(&commit(position))).await.unwrap();
    }
    place.end().await;
}

/// What was noted of a collection that is gone says nothing about the next one of its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_may_be_made_again_with_more_columns() {
    let Some((place, _)) = items_at("again").await else { return };
    let columns = [("id", Type::Int { bits: 64 }), ("late", Type::Text)];
    let wider = table("items", &columns, &[0]);
    let catalog = place.store.catalog().await.unwrap();
    let refused = catalog.create(std::slice::from_ref(&wider)).await.unwrap_err();
    assert_eq!(refused.code(), code::TARGET_DIFFERS);
    place.database.collection::<Document>("items").drop().await.unwrap();
    for _ in 0..2 {
        catalog.create(std::slice::from_ref(&wider)).await.unwrap();
    }
    place.end().await;
}
