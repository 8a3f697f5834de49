//! A database of its own for each test.

use std::sync::Arc;

use mongodb::bson::{Document, doc};
use mongodb::{Client, Database};
use tidegate_core::port::{Checkpoint, Conversions, Identity, Route, Store};
use tidegate_core::{Canonical, Column, Endpoint, FlowName, Position, Shape, Table, TableName, Type};

pub(crate) struct Place {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) database: Database,
}

impl Place {
    /// `None` where the service is skipped by name.
    pub(crate) async fn new(prefix: &str) -> Option<Self> {
        let server = tidegate_services::mongodb::shared().await?;
        Some(Self::at(&server.database(prefix)).await)
    }

    pub(crate) async fn at(url: &str) -> Self {
        let store = tidegate_mongodb::open(&Endpoint::parse(url).unwrap()).unwrap();
        let client = Client::with_uri_str(url).await.unwrap();
        let database = client.default_database().unwrap();
        Self { store, database }
    }

    pub(crate) async fn all(&self, collection: &str) -> Vec<Document> {
        use futures::TryStreamExt;
        let collection = self.database.collection::<Document>(collection);
        let found = collection.find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap();
        found.try_collect().await.unwrap()
    }

    pub(crate) async fn end(&self) {
        self.database.drop().await.unwrap();
    }
}

pub(crate) fn flow() -> FlowName {
    FlowName::new("shop").unwrap()
}

pub(crate) fn table(name: &str, columns: &[(&str, Type)], key: &[usize]) -> Arc<Table> {
    Arc::new(Table {
        name: TableName::new("", name),
        native_id: 0,
        columns: columns.iter().map(|(name, kind)| Column::new(*name, kind.clone())).collect(),
        key: key.to_vec(),
        rows_estimated: 0,
        bytes_estimated: 0,
    })
}

/// The way of a table whose rows come in the canonical encoding.
pub(crate) async fn route(store: &Arc<dyn Store>, source: &Arc<Table>) -> Route {
    let catalog = store.catalog().await.unwrap();
    let conversions = Conversions::from([("timestamptz".to_owned(), "date".to_owned())]);
    let mut target = Table { name: catalog.name_for(&source.name), ..source.as_ref().clone() };
    for column in &mut target.columns {
        let fit = catalog.fit(column, tidegate_core::Encoding::CANONICAL, &conversions).unwrap();
        (column.native, column.kind) = (fit.native, fit.kind);
    }
    let target = Arc::new(target);
    catalog.create(std::slice::from_ref(&target)).await.unwrap();
    catalog.create(std::slice::from_ref(&target)).await.unwrap();
    Route { shape: Shape { table: Arc::clone(source), codec: Arc::new(Canonical) }, target }
}

pub(crate) fn first() -> Checkpoint {
    Checkpoint::first(Identity("memory:shop".to_owned()), Position::from_u64(1))
}
