//! The model's sink, held to what every sink does.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_conformance::Seats;
use tidegate_core::port::{Batch, Checkpoint, Commit, Exclusion, Identity, Opened, Route, Selection, Store};
use tidegate_core::{Canonical, Column, FlowName, Position, Shape, TableName, Type, Value};
use tidegate_memory::{MemoryStore, Write};

struct Hall(MemoryStore);

#[async_trait]
impl Seats for Hall {
    fn name(&self) -> TableName {
        TableName::new("", "seats")
    }

    fn store(&self) -> &dyn Store {
        &self.0
    }

    async fn put(&self, id: i64, seat: &str) {
        let row = [Value::Int(id), Value::Text(seat.to_owned().into()), Value::Text("rival".into())];
        self.0.transact(&[Write::insert(&self.name(), row)]).unwrap();
    }

    async fn remove(&self, id: i64) {
        self.0.transact(&[Write::delete(&self.name(), [Value::Int(id)])]).unwrap();
    }

    async fn all(&self) -> Vec<String> {
        let show = |row: Vec<Value<'static>>| match &row[..] {
            [Value::Int(id), Value::Text(seat), Value::Text(note)] => format!("{id} {seat} {note}"),
            other => panic!("{other:?}"),
        };
        self.0.rows(&self.name()).into_iter().map(show).collect()
    }

    async fn drop_table(&self, name: &TableName) {
        self.0.drop_table(name);
    }
}

#[tokio::test]
async fn a_table_that_is_gone_or_another_one() {
    let hall = Hall(MemoryStore::new("target"));
    tidegate_conformance::a_table_that_is_gone_is_named(&hall).await;
    tidegate_conformance::a_table_that_another_one_replaced_is_named(&hall).await;
}

#[tokio::test]
async fn rows_that_are_in_each_others_way() {
    let hall = Hall(MemoryStore::new("target"));
    let columns = vec![
        Column::new("id", Type::Int { bits: 64 }),
        Column::new("seat", Type::Text),
        Column::new("note", Type::Text),
    ];
    hall.0.create_table(&hall.name(), columns, &["id"]);
    hall.0.create_unique(&hall.name(), &["seat"]);
    tidegate_conformance::keeps_rivals_apart(&hall).await;
}

#[tokio::test]
async fn the_last_reason_why_a_table_takes_no_part_holds() {
    let store = MemoryStore::new("target");
    store.create_table(&TableName::new("", "t"), vec![Column::new("id", Type::Int { bits: 64 })], &["id"]);
    let (mut tables, _) = store.catalog().await.unwrap().describe(&Selection::All).await.unwrap();
    let target = Arc::new(tables.remove(0));
    let shape = Shape { table: Arc::clone(&target), codec: Arc::new(Canonical) };
    let first = Checkpoint::first(Identity("source".to_owned()), Position::from_u64(1));
    let mut sink = store.sink(&FlowName::new("it").unwrap(), &[Route { shape, target }]).await.unwrap();
    sink.open(&first).await.unwrap();
    for why in [Exclusion::Failed("it broke".to_owned()), Exclusion::Skipped] {
        let commit = Commit { exclude: vec![(0, why.clone())], ..Commit::default() };
        sink.apply(&Batch::default(), Some(&commit)).await.unwrap();
        let Opened::Resumed(checkpoint) = sink.open(&first).await.unwrap() else { panic!("it was here") };
        assert_eq!(checkpoint.excluded, [(0, why)]);
    }
}
