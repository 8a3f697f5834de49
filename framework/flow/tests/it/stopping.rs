//! Which table stops when one of them cannot go on.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{
    Applied, Batch, Catalog, ChangeFeed, Checkpoint, Chunk, Commit, Crawler, Examiner, Identity, KeyRange,
    Limit, Opened, Route, Sink, StateStore, Store,
};
use tidegate_core::{
    AsOf, Column, Error, FlowName, Key, Position, Result, Rows, Table, TableName, Type, Value,
};
use tidegate_flow::run::run;
use tidegate_flow::{Ended, Gauge, TableState, Until};
use tidegate_memory::{MemoryStore, Write};
use tokio_util::sync::CancellationToken;

/// A store with a table whose rows it neither gives nor takes.
#[derive(Clone, Debug)]
struct Picky {
    inner: MemoryStore,
    refuses: TableName,
}

impl Picky {
    fn check(&self, table: &TableName) -> Result<()> {
        if *table != self.refuses {
            return Ok(());
        }
        Err(Error::new(code::VALUE_UNFIT, "it is refused").with("table", table))
    }
}

#[async_trait]
impl Store for Picky {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn catalog(&self) -> Result<Arc<dyn Catalog>> {
        self.inner.catalog().await
    }

    async fn crawler(&self) -> Result<Box<dyn Crawler>> {
        Ok(Box::new(PickyCrawler { store: self.clone(), inner: self.inner.crawler().await? }))
    }

    async fn change_feed(
        &self,
        flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Box<dyn ChangeFeed>> {
        self.inner.change_feed(flow, tables, source, from).await
    }

    async fn sink(&self, flow: &FlowName, routes: &[Route]) -> Result<Box<dyn Sink>> {
        let inner = self.inner.sink(flow, routes).await?;
        Ok(Box::new(PickySink { store: self.clone(), inner, routes: routes.to_vec() }))
    }

    async fn examiner(&self) -> Result<Arc<dyn Examiner>> {
        self.inner.examiner().await
    }

    async fn state(&self) -> Result<Arc<dyn StateStore>> {
        self.inner.state().await
    }
}

struct PickyCrawler {
    store: Picky,
    inner: Box<dyn Crawler>,
}

#[async_trait]
impl Crawler for PickyCrawler {
    async fn split(&mut self, table: &Table, parts: usize) -> Result<Vec<KeyRange>> {
        self.inner.split(table, parts).await
    }

    async fn read(&mut self, table: &Table, range: &KeyRange, limit: Limit, out: &mut Rows) -> Result<Chunk> {
        self.store.check(&table.name)?;
        self.inner.read(table, range, limit, out).await
    }

    async fn fetch(&mut self, table: &Table, keys: &[Key], out: &mut Rows) -> Result<AsOf> {
        self.inner.fetch(table, keys, out).await
    }

    async fn as_of(&mut self) -> Result<AsOf> {
        self.inner.as_of().await
    }
}

struct PickySink {
    store: Picky,
    inner: Box<dyn Sink>,
    routes: Vec<Route>,
}

#[async_trait]
impl Sink for PickySink {
    async fn open(&mut self, first: &Checkpoint) -> Result<Opened> {
        self.inner.open(first).await
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        batch.tables.iter().try_for_each(|part| self.store.check(&self.routes[part.table].target.name))?;
        self.inner.apply(batch, commit).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}

/// What is wrong with the table `one`.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    SourceGivesNoRow,
    TargetTakesNoRow,
    TargetKeepsRowsOut,
}

/// Runs a flow of `one` into `two` and of `two` into `one`, and gives the names in the source of those that stopped.
async fn stopped(trouble: Trouble, order: [&str; 2]) -> Vec<String> {
    let tables = order.map(|name| TableName::new("", name));
    let (source, target) = (MemoryStore::new("source"), MemoryStore::new("target"));
    let columns =
        || vec![Column::new("id", Type::Int { bits: 64 }), Column::new("v", Type::Int { bits: 64 })];
    for table in &tables {
        source.create_table(table, columns(), &["id"]);
        for id in 0..2 {
            source.transact(&[Write::insert(table, [Value::Int(id), Value::Int(7)])]).unwrap();
        }
    }
    let mut flow = crate::flow(&source, &target, &tables).await;
    for (route, name) in flow.routes.iter_mut().zip(tables.iter().rev()) {
        flow.wanted.names.insert(route.target.name.to_string(), name.clone());
        route.target = Arc::new(Table { name: name.clone(), ..route.target.as_ref().clone() });
    }
    let one = TableName::new("", "one");
    let picky = |inner: &MemoryStore| Arc::new(Picky { inner: inner.clone(), refuses: one.clone() });
    match trouble {
        Trouble::SourceGivesNoRow => flow.source = picky(&source),
        Trouble::TargetTakesNoRow => flow.target = picky(&target),
        Trouble::TargetKeepsRowsOut => target.create_unique(&one, &["v"]),
    }
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let state: Arc<dyn StateStore> = target.state().await.unwrap();
    let (patience, stop) = (Duration::from_secs(60), CancellationToken::new());
    let ended = Box::pin(run(&flow, Until::CaughtUp, &gauge, &state, "me", patience, &stop)).await;
    assert_eq!(ended.unwrap(), Ended::CaughtUp, "{trouble:?} {order:?}");
    let (failed, others): (Vec<_>, Vec<_>) = gauge
        .read(flow.clock.as_ref())
        .tables
        .into_iter()
        .partition(|table| table.state == TableState::Failed);
    for table in others {
        let (from, to) = (TableName::new("", &table.source), TableName::new("", &table.target));
        assert_eq!(target.rows(&to), source.rows(&from), "{trouble:?} {order:?}");
    }
    failed.into_iter().map(|table| table.source).collect()
}

/// Found by reading: a table was looked for by its name on either side, so that the name of another table's other end
/// stopped that one.
#[tokio::test(start_paused = true)]
async fn only_the_table_that_an_error_is_about_stops() {
    for order in [["one", "two"], ["two", "one"]] {
        assert_eq!(stopped(Trouble::SourceGivesNoRow, order).await, ["one"], "{order:?}");
        assert_eq!(stopped(Trouble::TargetTakesNoRow, order).await, ["two"], "{order:?}");
        assert_eq!(stopped(Trouble::TargetKeepsRowsOut, order).await, ["two"], "{order:?}");
    }
}
