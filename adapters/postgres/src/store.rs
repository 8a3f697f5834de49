//! Opens the ports of one database.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_core::port::{Catalog, ChangeFeed, Crawler, Examiner, Identity, Route, Sink, StateStore, Store};
use tidegate_core::{Endpoint, FlowName, Position, Result, Table};

use crate::catalog::PostgresCatalog;
use crate::change_feed::PostgresFeed;
use crate::config::Settings;
use crate::connect::Session;
use crate::crawler::PostgresCrawler;
use crate::error::from_driver;
use crate::sink::PostgresSink;
use crate::state::PostgresState;

/// One database of one server.
#[derive(Clone, Debug)]
pub(crate) struct PostgresStore {
    settings: Arc<Settings>,
}

/// What every session of ours relies on, whatever the server, the database or the role has set. The server ends a session
/// whose host is gone within a minute, and not within hours: what it holds the next runner needs.
const SETUP: &str = "
    SET search_path = ''; SET row_security = off; SET timezone = 'UTC'; SET datestyle = 'ISO, YMD';
    SET intervalstyle = 'postgres'; SET extra_float_digits = 1; SET bytea_output = 'hex';
    SET quote_all_identifiers = off; SET lock_timeout = 0;
    SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0;
    SET tcp_keepalives_idle = 20; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = 60000";

impl PostgresStore {
    pub(crate) fn open(endpoint: &Endpoint) -> Result<Self> {
        Ok(Self { settings: Arc::new(Settings::parse(endpoint.expose())?) })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn database(&self) -> &str {
        &self.settings.database
    }

    /// A new session, set up.
    pub(crate) async fn session(&self) -> Result<Session> {
        let session = Session::connect(&self.settings).await?;
        session.batch_execute(SETUP).await.map_err(|e| from_driver(e, "connect"))?;
        Ok(session)
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn location(&self) -> String {
        self.settings.to_string()
    }

    async fn catalog(&self) -> Result<Arc<dyn Catalog>> {
        Ok(Arc::new(PostgresCatalog(self.clone())))
    }

    async fn crawler(&self) -> Result<Box<dyn Crawler>> {
        Ok(Box::new(PostgresCrawler::open(self).await?))
    }

    async fn change_feed(
        &self,
        flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Box<dyn ChangeFeed>> {
        Ok(Box::new(PostgresFeed::open(self, flow, tables, source, from).await?))
    }

    async fn sink(&self, flow: &FlowName, routes: &[Route]) -> Result<Box<dyn Sink>> {
        Ok(Box::new(PostgresSink::open(self, flow, routes).await?))
    }

    async fn examiner(&self) -> Result<Arc<dyn Examiner>> {
        Ok(Arc::new(self.clone()))
    }

    async fn state(&self) -> Result<Arc<dyn StateStore>> {
        Ok(Arc::new(PostgresState::open(self).await?))
    }
}
