//! A store that fails at any call: before it, after it with the answer lost, in the middle, late, or twice.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{
    Applied, Batch, Catalog, ChangeFeed, Checkpoint, Chunk, Commit, Conversions, Crawler, Examiner, Fit,
    Identity, KeyRange, Limit, Obstacle, Opened, Progress, Route, Selection, Sink, StateStore, Store,
};
use tidegate_core::{
    AsOf, Cell, Changes, Codec, Column, Encoding, Error, FlowName, Key, Op, Position, Result, RowWriter,
    Rows, Table, TableName,
};

use crate::plant::PortBug;
use crate::world::Shared;

/// What happens at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Before,
    AnswerLost,
    Partial,
    Twice,
}

/// A store with faults, and time passing at each call.
#[derive(Clone, Debug)]
pub(crate) struct FaultyStore {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) world: Shared,
    pub(crate) bug: Option<PortBug>,
}

impl FaultyStore {
    pub(crate) async fn call(&self) -> Result<Fault> {
        let (fault, delay) = {
            let mut world = self.world.lock();
            world.step();
            let fault = if world.faults_left > 0 && world.rng.u8(0..12) == 0 {
                world.faults_left -= 1;
                match world.rng.u8(0..4) {
                    0 => Fault::Before,
                    1 => Fault::AnswerLost,
                    2 => Fault::Partial,
                    _ => Fault::Twice,
                }
            } else {
                Fault::None
            };
            (fault, if world.rng.u8(0..4) == 0 { world.rng.u64(1..50) } else { 0 })
        };
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        if fault == Fault::Before {
            self.world.lock().count("failed before the call");
            return Err(Error::new(code::UNREACHABLE, "fault: before the call"));
        }
        Ok(fault)
    }

    fn answer<T>(&self, fault: Fault, answer: T) -> Result<T> {
        if fault == Fault::AnswerLost {
            self.world.lock().count("done and the answer lost");
            return Err(
                Error::new(code::TIMED_OUT, "fault: the answer was lost").verdict_is(Verdict::Unknown)
            );
        }
        Ok(answer)
    }
}

#[async_trait]
impl Store for FaultyStore {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn catalog(&self) -> Result<Arc<dyn Catalog>> {
        Ok(Arc::new(FaultyCatalog { store: self.clone(), inner: self.inner.catalog().await? }))
    }

    async fn crawler(&self) -> Result<Box<dyn Crawler>> {
        Ok(Box::new(Faulty { store: self.clone(), inner: self.inner.crawler().await? }))
    }

    async fn change_feed(
        &self,
        flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Box<dyn ChangeFeed>> {
        self.call().await?;
        if self.bug == Some(PortBug::NewColumnCut) {
            return Ok(Box::new(crate::cut::CutFeed::open(self, flow, tables, source, from).await?));
        }
        let inner = self.inner.change_feed(flow, tables, source, from).await?;
        Ok(Box::new(Faulty { store: self.clone(), inner }))
    }

    async fn sink(&self, flow: &FlowName, routes: &[Route]) -> Result<Box<dyn Sink>> {
        Ok(Box::new(Faulty { store: self.clone(), inner: self.inner.sink(flow, routes).await? }))
    }

    async fn examiner(&self) -> Result<Arc<dyn Examiner>> {
        self.inner.examiner().await
    }

    async fn state(&self) -> Result<Arc<dyn StateStore>> {
        self.inner.state().await
    }
}

struct Faulty<T: ?Sized> {
    store: FaultyStore,
    inner: Box<T>,
}

struct FaultyCatalog {
    store: FaultyStore,
    inner: Arc<dyn Catalog>,
}

#[async_trait]
impl Catalog for FaultyCatalog {
    async fn identity(&self) -> Result<Identity> {
        self.inner.identity().await
    }

    async fn describe(&self, which: &Selection) -> Result<(Vec<Table>, Vec<Obstacle>)> {
        let fault = self.store.call().await?;
        let answer = self.inner.describe(which).await?;
        self.store.answer(fault, answer)
    }

    fn codec(&self, table: &Table) -> Arc<dyn Codec> {
        self.inner.codec(table)
    }

    async fn capture(&self, flow: &FlowName, tables: &[Arc<Table>]) -> Result<Position> {
        self.inner.capture(flow, tables).await
    }

    async fn sealed(&self, flow: &FlowName) -> Result<Option<String>> {
        let fault = self.store.call().await?;
        let answer = self.inner.sealed(flow).await?;
        self.store.answer(fault, answer)
    }

    async fn seal(&self, flow: &FlowName, was: Option<&str>, seal: &str) -> Result<bool> {
        let fault = self.store.call().await?;
        let mut answer = self.inner.seal(flow, was, seal).await?;
        if fault == Fault::Twice {
            answer = self.inner.seal(flow, was, seal).await?;
        }
        self.store.answer(fault, answer)
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
        let fault = self.store.call().await?;
        self.inner.extend(tables).await?;
        if fault == Fault::Twice {
            self.inner.extend(tables).await?;
        }
        self.store.answer(fault, ())
    }
}

impl Faulty<dyn Crawler> {
    /// A plain watermark takes what was logged for what is seen.
    fn proof(&self, mut as_of: AsOf) -> AsOf {
        if self.store.bug == Some(PortBug::PlainWatermark) {
            as_of.in_flight.clear();
        }
        as_of
    }
}

#[async_trait]
impl Crawler for Faulty<dyn Crawler> {
    async fn split(&mut self, table: &Table, parts: usize) -> Result<Vec<KeyRange>> {
        let fault = self.store.call().await?;
        let answer = self.inner.split(table, parts).await?;
        self.store.answer(fault, answer)
    }

    async fn read(&mut self, table: &Table, range: &KeyRange, limit: Limit, out: &mut Rows) -> Result<Chunk> {
        let fault = self.store.call().await?;
        let mut chunk = self.inner.read(table, range, limit, out).await?;
        chunk.as_of = self.proof(chunk.as_of);
        // Between the reading and its answer the world goes on.
        self.store.call().await?;
        self.store.answer(fault, chunk)
    }

    async fn fetch(&mut self, table: &Table, keys: &[Key], out: &mut Rows) -> Result<AsOf> {
        let fault = self.store.call().await?;
        let as_of = self.inner.fetch(table, keys, out).await?;
        self.store.answer(fault, self.proof(as_of))
    }

    async fn as_of(&mut self) -> Result<AsOf> {
        let fault = self.store.call().await?;
        let as_of = self.inner.as_of().await?;
        self.store.answer(fault, self.proof(as_of))
    }
}

#[async_trait]
impl ChangeFeed for Faulty<dyn ChangeFeed> {
    async fn next(&mut self, want: Option<&Position>, out: &mut Changes) -> Result<Progress> {
        self.store.call().await?;
        let mut progress = self.inner.next(want, out).await?;
        if self.store.bug == Some(PortBug::UnchangedAsNull) {
            *out = unchanged_as_null(out);
        }
        if self.store.world.lock().rng.bool() {
            progress.behind = 0;
        }
        Ok(progress)
    }

    async fn acknowledge(&mut self, upto: &Position) -> Result<()> {
        let fault = self.store.call().await?;
        self.inner.acknowledge(upto).await?;
        self.store.answer(fault, ())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}

/// Planted: what was not sent is taken for null.
fn unchanged_as_null(changes: &Changes) -> Changes {
    let mut out = Changes::new();
    for transaction in changes.transactions() {
        for change in changes.of(transaction) {
            let mut write_row = |row: &mut RowWriter<'_>| {
                for cell in change.row.iter().flat_map(|row| row.cells()) {
                    row.cell(if cell == Cell::Unchanged { Cell::Null } else { cell });
                }
            };
            let mut write_key = |row: &mut RowWriter<'_>| {
                change.old_key.iter().flat_map(|key| key.cells()).for_each(|cell| row.cell(cell));
            };
            let row: Option<&mut dyn FnMut(&mut RowWriter<'_>)> =
                if matches!(change.op, Op::Insert | Op::Update) { Some(&mut write_row) } else { None };
            let key: Option<&mut dyn FnMut(&mut RowWriter<'_>)> =
                if change.old_key.is_some() { Some(&mut write_key) } else { None };
            out.push(change.table, change.op, row, key);
        }
        out.end(transaction.mark, transaction.position.clone(), transaction.committed_at, transaction.ends);
    }
    out
}

#[async_trait]
impl Sink for Faulty<dyn Sink> {
    async fn open(&mut self, first: &Checkpoint) -> Result<Opened> {
        let fault = self.store.call().await?;
        let answer = self.inner.open(first).await?;
        self.store.answer(fault, answer)
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        let fault = self.store.call().await?;
        if self.store.bug == Some(PortBug::CheckpointBeforeEffect) && commit.is_some() {
            self.inner.apply(&Batch::default(), commit).await?;
            self.store.call().await?;
            return self.inner.apply(batch, None).await;
        }
        if fault == Fault::Partial && !batch.tables.is_empty() {
            // A target without transactions: some of the batch is done, and then the connection breaks.
            let some = Batch { tables: batch.tables[..1].to_vec() };
            self.inner.apply(&some, None).await?;
            self.store.world.lock().count("part of a batch done");
            return Err(Error::new(code::CONNECTION_LOST, "fault: in the middle of a batch"));
        }
        let mut applied = self.inner.apply(batch, commit).await?;
        if fault == Fault::Twice {
            self.store.world.lock().count("a batch done twice");
            applied = self.inner.apply(batch, commit).await?;
        }
        self.store.answer(fault, applied)
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}
