//! A store in memory that says first what it is asked for, and may refuse it.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tidegate_core::port::{
    Applied, Batch, Catalog, ChangeFeed, Checkpoint, Chunk, Commit, Crawler, Examiner, Identity, KeyRange,
    Limit, Opened, Progress, Route, Sink, StateStore, Store,
};
use tidegate_core::{AsOf, Changes, FlowName, Key, Position, Result, Rows, Table, TableName};
use tidegate_memory::MemoryStore;

type Hook<T> = Arc<dyn Fn(&TableName, T) -> Result<()> + Send + Sync>;

/// Calls `read` before a chunk of a table is read, `fetch` before so many rows of it, and `write` before anything is done
/// to one. With `holds`, what comes without a commit is done with the next one, as a server's transaction does, and lost if
/// that is refused.
#[derive(Clone)]
pub(crate) struct Hooked {
    inner: MemoryStore,
    read: Hook<Limit>,
    fetch: Hook<usize>,
    write: Hook<()>,
    holds: bool,
    cuts: bool,
    quiet: bool,
}

impl Hooked {
    pub(crate) fn new(inner: &MemoryStore) -> Self {
        Self {
            inner: inner.clone(),
            read: Arc::new(|_, _| Ok(())),
            fetch: Arc::new(|_, _| Ok(())),
            write: Arc::new(|_, ()| Ok(())),
            holds: false,
            cuts: false,
            quiet: false,
        }
    }

    /// Transactions come in pieces.
    pub(crate) fn cutting(mut self) -> Self {
        self.cuts = true;
        self
    }

    /// Nothing is delivered while nothing is new, as by a server's stream.
    pub(crate) fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    pub(crate) fn holding(mut self) -> Self {
        self.holds = true;
        self
    }

    pub(crate) fn on_read(
        mut self,
        hook: impl Fn(&TableName, Limit) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.read = Arc::new(hook);
        self
    }

    pub(crate) fn on_fetch(
        mut self,
        hook: impl Fn(&TableName, usize) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.fetch = Arc::new(hook);
        self
    }

    pub(crate) fn on_write(
        mut self,
        hook: impl Fn(&TableName) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.write = Arc::new(move |table, ()| hook(table));
        self
    }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hooked").field(&self.inner).finish()
    }
}

#[async_trait]
impl Store for Hooked {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn catalog(&self) -> Result<Arc<dyn Catalog>> {
        self.inner.catalog().await
    }

    async fn crawler(&self) -> Result<Box<dyn Crawler>> {
        Ok(Box::new(HookedCrawler {
            read: Arc::clone(&self.read),
            fetch: Arc::clone(&self.fetch),
            inner: self.inner.crawler().await?,
        }))
    }

    async fn change_feed(
        &self,
        flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Box<dyn ChangeFeed>> {
        let inner = self.inner.change_feed(flow, tables, source, from).await?;
        let inner = if self.quiet { Box::new(QuietFeed { inner, at: None }) } else { inner };
        Ok(if self.cuts { Box::new(CutFeed(inner)) } else { inner })
    }

    async fn sink(&self, flow: &FlowName, routes: &[Route]) -> Result<Box<dyn Sink>> {
        let inner = self.inner.sink(flow, routes).await?;
        let (write, held) = (Arc::clone(&self.write), self.holds.then(Vec::new));
        Ok(Box::new(HookedSink { write, held, inner, routes: routes.to_vec() }))
    }

    async fn examiner(&self) -> Result<Arc<dyn Examiner>> {
        self.inner.examiner().await
    }

    async fn state(&self) -> Result<Arc<dyn StateStore>> {
        self.inner.state().await
    }
}

struct HookedCrawler {
    read: Hook<Limit>,
    fetch: Hook<usize>,
    inner: Box<dyn Crawler>,
}

#[async_trait]
impl Crawler for HookedCrawler {
    async fn split(&mut self, table: &Table, parts: usize) -> Result<Vec<KeyRange>> {
        self.inner.split(table, parts).await
    }

    async fn read(&mut self, table: &Table, range: &KeyRange, limit: Limit, out: &mut Rows) -> Result<Chunk> {
        (self.read)(&table.name, limit)?;
        self.inner.read(table, range, limit, out).await
    }

    async fn fetch(&mut self, table: &Table, keys: &[Key], out: &mut Rows) -> Result<AsOf> {
        (self.fetch)(&table.name, keys.len())?;
        self.inner.fetch(table, keys, out).await
    }

    async fn as_of(&mut self) -> Result<AsOf> {
        self.inner.as_of().await
    }
}

/// Gives an answer only where something is new.
struct QuietFeed {
    inner: Box<dyn ChangeFeed>,
    at: Option<Position>,
}

#[async_trait]
impl ChangeFeed for QuietFeed {
    async fn next(&mut self, want: Option<&Position>, out: &mut Changes) -> Result<Progress> {
        loop {
            let progress = self.inner.next(want, out).await?;
            if !out.transactions().is_empty() || self.at.as_ref() != Some(&progress.position) {
                self.at = Some(progress.position.clone());
                return Ok(progress);
            }
        }
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<()> {
        self.inner.acknowledge(position).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}

/// Delivers transactions in pieces.
struct CutFeed(Box<dyn ChangeFeed>);

#[async_trait]
impl ChangeFeed for CutFeed {
    async fn next(&mut self, want: Option<&Position>, out: &mut Changes) -> Result<Progress> {
        const PIECE: usize = 5;
        let mut whole = Changes::new();
        let progress = self.0.next(want, &mut whole).await?;
        for transaction in whole.transactions() {
            let places = whole.places(transaction);
            let end = |out: &mut Changes, ends| {
                out.end(transaction.mark, transaction.position.clone(), transaction.committed_at, ends);
            };
            for (nth, at) in places.enumerate() {
                if nth > 0 && nth % PIECE == 0 {
                    end(out, false);
                }
                let change = whole.change(at);
                out.push_rows(change.table, change.op, change.row, change.old_key);
            }
            end(out, transaction.ends);
        }
        Ok(progress)
    }

    async fn acknowledge(&mut self, position: &Position) -> Result<()> {
        self.0.acknowledge(position).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.0.close().await
    }
}

struct HookedSink {
    write: Hook<()>,
    held: Option<Vec<Batch>>,
    inner: Box<dyn Sink>,
    routes: Vec<Route>,
}

#[async_trait]
impl Sink for HookedSink {
    async fn open(&mut self, first: &Checkpoint) -> Result<Opened> {
        self.inner.open(first).await
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        if commit.is_none()
            && let Some(held) = &mut self.held
        {
            held.push(batch.clone());
            return Ok(Applied::default());
        }
        let held = self.held.as_mut().map(std::mem::take).unwrap_or_default();
        let parts = held.iter().chain([batch]).flat_map(|batch| &batch.tables);
        parts.into_iter().try_for_each(|part| (self.write)(&self.routes[part.table].target.name, ()))?;
        for batch in &held {
            self.inner.apply(batch, None).await?;
        }
        self.inner.apply(batch, commit).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}
