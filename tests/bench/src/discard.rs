//! A target that takes everything and keeps nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{
    Applied, Batch, Catalog, ChangeFeed, Checkpoint, Commit, Crawler, Examiner, Identity, Opened, Route,
    Sink, StateStore, Store,
};
use tidegate_core::{Error, FlowName, Position, Result, Table};

/// Counts what it is given.
#[derive(Clone, Debug, Default)]
pub struct Discard {
    /// Where a flow goes on; a flow is new without it.
    pub resume: Option<Checkpoint>,
    /// Rows and deletions so far.
    pub taken: Arc<AtomicU64>,
}

impl Discard {
    /// Rows and deletions so far.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

fn missing() -> Error {
    Error::new(code::CAPABILITY_MISSING, "nothing can be read from a target that keeps nothing")
}

#[async_trait]
impl Store for Discard {
    fn location(&self) -> String {
        "nowhere".to_owned()
    }

    async fn catalog(&self) -> Result<Arc<dyn Catalog>> {
        Err(missing())
    }

    async fn crawler(&self) -> Result<Box<dyn Crawler>> {
        Err(missing())
    }

    async fn change_feed(
        &self,
        _: &FlowName,
        _: &[Arc<Table>],
        _: &Identity,
        _: &Position,
    ) -> Result<Box<dyn ChangeFeed>> {
        Err(missing())
    }

    async fn sink(&self, _: &FlowName, _: &[Route]) -> Result<Box<dyn Sink>> {
        Ok(Box::new(self.clone()))
    }

    async fn examiner(&self) -> Result<Arc<dyn Examiner>> {
        Err(missing())
    }

    async fn state(&self) -> Result<Arc<dyn StateStore>> {
        Err(missing())
    }
}

#[async_trait]
impl Sink for Discard {
    async fn open(&mut self, _: &Checkpoint) -> Result<Opened> {
        Ok(self.resume.clone().map_or(Opened::New, Opened::Resumed))
    }

    async fn apply(&mut self, batch: &Batch, _: Option<&Commit>) -> Result<Applied> {
        let count: usize = batch.tables.iter().map(tidegate_core::port::TableBatch::len).sum();
        self.taken.fetch_add(count as u64, Ordering::Relaxed);
        Ok(Applied::default())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
