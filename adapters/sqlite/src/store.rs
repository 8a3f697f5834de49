//! One file.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tidegate_core::port::{Catalog, ChangeFeed, Crawler, Examiner, Identity, Route, Sink, StateStore, Store};
use tidegate_core::{Endpoint, FlowName, Position, Result, Table};

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
}

impl SqliteStore {
    pub(crate) fn new(endpoint: &Endpoint) -> Result<Self> {
        Ok(Self { path: connect::path(endpoint)?.into(), location: endpoint.to_string().into() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) async fn identity_by(&self, connection: &mut SqliteConnection) -> Result<Identity> {
        // A file that was never captured is known by its number alone.
        let id = journal::id(connection).await?.unwrap_or_default();
        let number = connect::file_number(&self.path)?.ok_or_else(|| connect::missing(&self.path))?;
        Ok(Identity(format!("sqlite:{id}@{number}")))
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
