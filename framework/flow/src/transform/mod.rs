//! A source whose rows are turned into others before anybody sees them.
//!
//! ```text
//!   source ──rows, changes──▶ Transformed ──made rows, made changes──▶ crawl, capture, merge, apply, verify
//! ```
//!
//! It stands at the source and not before the target, so that the merge, the checkpoint and the verification work
//! on made rows and need not know. What a change does not tell (columns that were not sent, rows of joined tables)
//! is read from the source at an instant that shows the change; what changes later is delivered, and read, later.

mod catalog;
mod change_feed;
mod crawler;
mod making;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{
    Catalog, ChangeFeed, Crawler, Examiner, Identity, Made, Recipe, Route, Selection, Sink, StateStore,
    Store, Transform,
};
use tidegate_core::{Clock, Error, FlowName, Position, Result, Shape, Table, TableName};

use catalog::MadeCatalog;
use change_feed::MadeFeed;
use crawler::MadeCrawler;
pub(crate) use making::MadeCodec;
use making::Making;

/// A store whose tables, as a source, are what a [`Transform`] makes of them.
#[derive(Clone, Debug)]
pub struct Transformed {
    inner: Arc<dyn Store>,
    transform: Arc<dyn Transform>,
    clock: Arc<dyn Clock>,
    makings: Arc<Mutex<BTreeMap<TableName, Arc<Making>>>>,
}

impl Transformed {
    /// Puts a transform between a store and whoever reads it.
    pub fn new(inner: Arc<dyn Store>, transform: Arc<dyn Transform>, clock: Arc<dyn Clock>) -> Self {
        Self { inner, transform, clock, makings: Arc::default() }
    }

    /// How a table is made, if it was described before.
    fn known(&self, table: &TableName) -> Option<Arc<Making>> {
        self.makings.lock().unwrap_or_else(PoisonError::into_inner).get(table).cloned()
    }

    /// How a table is made.
    ///
    /// # Errors
    /// `schema-changed` if it was described anew since, as another one than its reader knows.
    async fn making(&self, table: &Table) -> Result<Arc<Making>> {
        let making = self.making_now(&table.name).await?;
        let names =
            |table: &Table| table.columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>();
        if names(&making.made.table) != names(table) {
            return Err(Error::new(code::SCHEMA_CHANGED, "the table has other columns now")
                .with("table", &table.name));
        }
        Ok(making)
    }

    async fn making_now(&self, table: &TableName) -> Result<Arc<Making>> {
        if let Some(making) = self.known(table) {
            return Ok(making);
        }
        let catalog = self.inner.catalog().await?;
        let (mut tables, _) = catalog.describe(&Selection::These(vec![table.clone()])).await?;
        let found = tables.pop().map(|table| self.make(catalog.as_ref(), table));
        match found {
            Some(making) => making.await?,
            None => None,
        }
        .ok_or_else(|| Error::new(code::TABLE_MISSING, format!("there is no table {table}")))
    }

    /// Works out how a table is made; `None` if it does not travel.
    async fn make(&self, catalog: &dyn Catalog, table: Table) -> Result<Option<Arc<Making>>> {
        let recipe = match self.transform.make(&table)? {
            Made::AsIs => None,
            Made::LeftOut => return Ok(None),
            Made::Into(recipe) => Some(recipe),
        };
        let joined = self.joined(catalog, recipe.as_ref()).await?;
        let name = table.name.clone();
        let source = Shape { codec: catalog.codec(&table), table: Arc::new(table) };
        let making = Arc::new(Making::new(Arc::clone(&self.transform), source, recipe, joined)?);
        self.makings.lock().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::clone(&making));
        Ok(Some(making))
    }

    async fn joined(&self, catalog: &dyn Catalog, recipe: Option<&Recipe>) -> Result<Vec<Shape>> {
        let mut joined = Vec::new();
        for join in recipe.iter().flat_map(|recipe| &recipe.joins) {
            let (mut tables, obstacles) =
                catalog.describe(&Selection::These(vec![join.table.clone()])).await?;
            if let Some(obstacle) = obstacles.into_iter().next() {
                return Err(obstacle.error);
            }
            let table = tables.pop().ok_or_else(|| {
                Error::new(code::MAPPING_INVALID, format!("there is no table {} to fold in", join.table))
            })?;
            joined.push(Shape { codec: catalog.codec(&table), table: Arc::new(table) });
        }
        Ok(joined)
    }
}

/// A source's table with what the flow knows of the columns that it carries: one that came while the flow ran is taken
/// for null in rows from before, and those are crawled anew where it is not.
fn known_as(source: &Arc<Table>, makings: &[Arc<Making>], tables: &[Arc<Table>]) -> Arc<Table> {
    let Some(at) = makings.iter().position(|making| making.source.table.name == source.name) else {
        return Arc::clone(source);
    };
    let mut table = source.as_ref().clone();
    for (column, carries) in tables[at].columns.iter().zip(makings[at].carries()) {
        if let Some(at) = carries.filter(|_| column.is_null_before()) {
            (table.columns[at].nullable, table.columns[at].has_default) = (true, false);
        }
    }
    Arc::new(table)
}

#[async_trait]
impl Store for Transformed {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn catalog(&self) -> Result<Arc<dyn Catalog>> {
        Ok(Arc::new(MadeCatalog { store: self.clone(), inner: self.inner.catalog().await? }))
    }

    async fn crawler(&self) -> Result<Box<dyn Crawler>> {
        Ok(Box::new(MadeCrawler::new(self.clone(), self.inner.crawler().await?)))
    }

    async fn change_feed(
        &self,
        flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Box<dyn ChangeFeed>> {
        let mut makings = Vec::new();
        for table in tables {
            makings.push(self.making(table).await?);
        }
        let wanted = making::sources(&makings);
        let wanted: Vec<_> = wanted.iter().map(|source| known_as(source, &makings, tables)).collect();
        let feed = self.inner.change_feed(flow, &wanted, source, from).await?;
        Ok(Box::new(MadeFeed::new(self.clone(), feed, makings, &wanted, from)))
    }

    async fn sink(&self, flow: &FlowName, routes: &[Route]) -> Result<Box<dyn Sink>> {
        self.inner.sink(flow, routes).await
    }

    async fn examiner(&self) -> Result<Arc<dyn Examiner>> {
        self.inner.examiner().await
    }

    async fn state(&self) -> Result<Arc<dyn StateStore>> {
        self.inner.state().await
    }
}
