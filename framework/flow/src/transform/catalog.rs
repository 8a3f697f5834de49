//! Describes the tables that travel.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_core::port::{Catalog, Conversions, Fit, Identity, Obstacle, Selection};
use tidegate_core::{Codec, Column, Encoding, FlowName, Position, Result, Table, TableName, Value};

use super::{Transformed, making};

pub(super) struct MadeCatalog {
    pub(super) store: Transformed,
    pub(super) inner: Arc<dyn Catalog>,
}

#[async_trait]
impl Catalog for MadeCatalog {
    async fn identity(&self) -> Result<Identity> {
        self.inner.identity().await
    }

    async fn describe(&self, which: &Selection) -> Result<(Vec<Table>, Vec<Obstacle>)> {
        let (tables, mut obstacles) = self.inner.describe(which).await?;
        let mut made = Vec::new();
        for table in tables {
            let name = table.name.clone();
            match self.store.make(self.inner.as_ref(), table).await {
                Ok(Some(making)) => made.push(making.made.table.as_ref().clone()),
                Ok(None) => obstacles.retain(|obstacle| obstacle.table.as_ref() != Some(&name)),
                Err(error) => obstacles.push(Obstacle { table: Some(name), column: None, error }),
            }
        }
        Ok((made, obstacles))
    }

    async fn held(&self, wanted: &Table) -> Result<Table> {
        self.inner.held(wanted).await
    }

    fn keeps(&self, before: &Column, now: &Column) -> bool {
        self.inner.keeps(before, now)
    }

    fn codec(&self, table: &Table) -> Arc<dyn Codec> {
        match self.store.known(&table.name) {
            Some(making) => Arc::clone(&making.made.codec),
            None => self.inner.codec(table),
        }
    }

    async fn capture(&self, flow: &FlowName, tables: &[Arc<Table>]) -> Result<Position> {
        let mut makings = Vec::new();
        for table in tables {
            makings.push(self.store.making(table).await?);
        }
        self.inner.capture(flow, &making::sources(&makings)).await
    }

    async fn sealed(&self, flow: &FlowName) -> Result<Option<String>> {
        self.inner.sealed(flow).await
    }

    async fn seal(&self, flow: &FlowName, was: Option<&str>, seal: &str) -> Result<bool> {
        self.inner.seal(flow, was, seal).await
    }

    async fn clean(&self, flow: &FlowName) -> Result<()> {
        self.inner.clean(flow).await
    }

    fn accepts(&self, encoding: Encoding) -> bool {
        self.inner.accepts(encoding)
    }

    fn fit(&self, column: &Column, encoding: Encoding, conversions: &Conversions) -> Result<Fit> {
        self.inner.fit(column, encoding, conversions)
    }

    fn stored<'a>(&self, column: &Column, value: Value<'a>) -> Result<Value<'a>> {
        self.inner.stored(column, value)
    }

    fn fold(&self, name: &str) -> String {
        self.inner.fold(name)
    }

    fn name_for(&self, source: &TableName) -> TableName {
        self.inner.name_for(source)
    }

    async fn inspect(&self, tables: &[Arc<Table>], allow_non_empty: bool) -> Result<Vec<Obstacle>> {
        self.inner.inspect(tables, allow_non_empty).await
    }

    async fn create(&self, tables: &[Arc<Table>]) -> Result<()> {
        self.inner.create(tables).await
    }

    async fn extend(&self, tables: &[Arc<Table>]) -> Result<()> {
        self.inner.extend(tables).await
    }
}
