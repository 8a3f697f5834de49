//! Rows that a unique index keeps out, and changes that meet no row.

use async_trait::async_trait;
use mongodb::IndexModel;
use mongodb::bson::{Document, doc};
use mongodb::options::IndexOptions;
use tidegate_conformance::{Seats, full};
use tidegate_core::port::{Sink, Store};
use tidegate_core::{TableName, Type};

use crate::applying::{batch, commit, opened};
use crate::place::{Place, route, table};

/// Seats, of which each is taken once.
struct Hall(Place);

impl Hall {
    async fn new(name: &str, index: IndexOptions) -> Option<Self> {
        let place = Place::new(name).await?;
        let mut options = index;
        options.unique = Some(true);
        let index = IndexModel::builder().keys(doc! { "seat": 1 }).options(options);
        place.database.collection::<Document>("seats").create_index(index.build()).await.unwrap();
        Some(Self(place))
    }

    /// A sink of a flow of its own.
    async fn opened(&self) -> Box<dyn Sink> {
        let columns = [("id", Type::Int { bits: 64 }), ("seat", Type::Text), ("note", Type::Text)];
        let route = route(&self.0.store, &table("seats", &columns, &[0])).await;
        opened(&self.0, std::slice::from_ref(&route)).await.0
    }

    async fn insert(&self, document: Document) {
        self.0.database.collection::<Document>("seats").insert_one(document).await.unwrap();
    }
}

#[async_trait]
impl Seats for Hall {
    fn name(&self) -> TableName {
        TableName::new("", "seats")
    }

    fn store(&self) -> &dyn Store {
        self.0.store.as_ref()
    }

    async fn put(&self, id: i64, seat: &str) {
        self.insert(doc! { "_id": id, "seat": seat, "note": "rival" }).await;
    }

    async fn remove(&self, id: i64) {
        self.0.database.collection::<Document>("seats").delete_one(doc! { "_id": id }).await.unwrap();
    }

    async fn all(&self) -> Vec<String> {
        let show = |one: &Document| {
            let text = |name: &str| one.get_str(name).unwrap_or("-").to_owned();
            format!("{} {} {}", one.get_i64("_id").unwrap(), text("seat"), text("note"))
        };
        self.0.all("seats").await.iter().map(show).collect()
    }

    async fn drop_table(&self, name: &TableName) {
        self.0.database.collection::<Document>(&name.to_string()).drop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_in_each_others_way() {
    let Some(hall) = Hall::new("rivals", IndexOptions::default()).await else { return };
    tidegate_conformance::keeps_rivals_apart(&hall).await;
    hall.0.end().await;
}

/// The server makes a collection for whoever writes to one that is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_is_gone_or_another_one() {
    let Some(place) = Place::new("gone").await else { return };
    let hall = Hall(place);
    tidegate_conformance::a_table_that_is_gone_is_named(&hall).await;
    tidegate_conformance::a_table_that_another_one_replaced_is_named(&hall).await;
    hall.0.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_knows_some_documents_only_keeps_out_only_those() {
    let sparse = IndexOptions::builder().sparse(true).build();
    let some = IndexOptions::builder().partial_filter_expression(doc! { "note": "full" }).build();
    for (name, index, rival_counts) in [("sparse", sparse, true), ("some", some, false)] {
        let Some(hall) = Hall::new(name, index).await else { return };
        let mut sink = hall.opened().await;
        hall.put(99, "z").await;
        hall.insert(doc! { "_id": 98_i64 }).await;
        sink.apply(&batch(full([(1, "a"), (2, "b")])), Some(&commit(2))).await.unwrap();
        let part = full([(1, "b"), (2, "a"), (3, "z")]);
        let holes = sink.apply(&batch(part), Some(&commit(3))).await.unwrap().holes;
        assert_eq!(holes.len(), usize::from(rival_counts), "{name}");
        assert_eq!(hall.all().await[..2], ["1 b full", "2 a full"], "{name}");
        hall.0.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_is_no_duplicate_is_an_error_still() {
    let Some(hall) = Hall::new("invalid", IndexOptions::default()).await else { return };
    let mut sink = hall.opened().await;
    let rule = doc! { "collMod": "seats", "validator": { "seat": { "$ne": "x" } } };
    hall.0.database.run_command(rule).await.unwrap();
    sink.apply(&batch(full([(1, "a"), (2, "b")])), Some(&commit(2))).await.unwrap();
    let error = sink.apply(&batch(full([(1, "x")])), Some(&commit(3))).await.unwrap_err();
    assert_eq!(error.code(), tidegate_core::error::code::CONSTRAINT_VIOLATED);
    assert_eq!(hall.all().await, ["1 a full", "2 b full"]);
    hall.0.end().await;
}
