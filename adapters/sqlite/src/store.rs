//! One file.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tidegate_core::port::{Catalog, ChangeFeed, Crawler, Examiner, Identity, Route, Sink, StateStore, Store};
use tidegate_core::{Endpoint, FlowName, Ids, Position, Result, SystemIds, Table};

use crate::change_feed::SqliteFeed;
use crate::connect;
use crate::crawler::SqliteCrawler;
use crate::journal;
use crate::sink::SqliteSink;

/// A SQLite file, as a source or a target.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    path: Arc<Path>,
    location: Arc<str>,
    /// The id that the file gets if it is captured by this store.
    id: Arc<OnceLock<String>>,
}

impl SqliteStore {
    pub(crate) fn new(endpoint: &Endpoint) -> Result<Self> {
        Ok(Self {
            path: connect::path(endpoint)?.into(),
            location: endpoint.to_string().into(),
            id: Arc::default(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The id for a file that has none. The same until the store is dropped, so that what was said of the file
    /// before it was captured is true afterwards.
    pub(crate) fn new_id(&self) -> &str {
        self.id.get_or_init(|| SystemIds.next().to_string())
    }

    pub(crate) async fn identity_by(&self, connection: &mut SqliteConnection) -> Result<Identity> {
        let id = journal::id(connection).await?;
        let id = id.as_deref().unwrap_or_else(|| self.new_id());
        Ok(Identity(format!("sqlite:{id}@{}", connect::file_number(&self.path)?)))
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn location(&self) -> String {
        self.location.to_string()
    }

    async fn catalog(&self) -> Result<Arc<dyn Catalog>> {
        Ok(Arc::new(self.clone()))
    }

    async fn crawler(&self) -> Result<Box<dyn Crawler>> {
        Ok(Box::new(SqliteCrawler::open(&self.path).await?))
    }

    async fn change_feed(
        &self,
        flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Box<dyn ChangeFeed>> {
        Ok(Box::new(SqliteFeed::open(self.clone(), flow, tables, source, from).await?))
    }

    async fn sink(&self, flow: &FlowName, routes: &[Route]) -> Result<Box<dyn Sink>> {
        Ok(Box::new(SqliteSink::open(&self.path, flow, routes).await?))
    }

    async fn examiner(&self) -> Result<Arc<dyn Examiner>> {
        Ok(Arc::new(self.clone()))
    }

    async fn state(&self) -> Result<Arc<dyn StateStore>> {
        Ok(Arc::new(self.clone()))
    }
}
