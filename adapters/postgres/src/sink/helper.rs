//! A second session that copies half of a chunk while the first one copies the other half.
//!
//! Its half becomes durable just before the first session's transaction, which has the ledger: if that is lost, the
//! chunk is done again, and rows that are there already are merged. It looks at the fence in its own transaction.

use std::collections::HashMap;

use bytes::Bytes;
use tidegate_core::error::code;
use tidegate_core::{Error, FlowName, Result};
use tokio_postgres::Statement;

use crate::connect::Session;
use crate::error::from_driver;
use crate::sink::{copy_into, set_up};
use crate::store::PostgresStore;

/// Waits of one half for the other end here; neither would ever end by itself.
pub(super) const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '5s'";

#[derive(Debug)]
pub(super) struct Helper {
    session: Session,
    fence: Statement,
    statements: HashMap<String, Statement>,
}

impl Helper {
    pub(super) async fn open(store: &PostgresStore) -> Result<Self> {
        let session = store.session().await?;
        set_up(&session).await?;
        // Until this transaction ends nobody takes the flow over.
        let fence = "SELECT FROM tidegate.flows WHERE flow = $1 AND fence = $2 FOR SHARE";
        let fence = session.prepare(fence).await.map_err(|e| from_driver(e, "connect"))?;
        Ok(Self { session, fence, statements: HashMap::new() })
    }

    /// Begins, if the flow is still ours. What it commits is flushed with what is committed after it.
    pub(super) async fn begin(&self, flow: &FlowName, fence: i64) -> Result<()> {
        let begin = format!("BEGIN; SET LOCAL synchronous_commit = off; {LOCK_TIMEOUT}");
        self.run(&begin).await?;
        let ours = self.session.query_opt(&self.fence, &[&flow.as_str(), &fence]).await;
        match ours.map_err(|e| from_driver(e, "apply"))? {
            Some(_) => Ok(()),
            None => Err(Error::new(code::LEASE_LOST, "another runner has taken this flow over")),
        }
    }

    pub(super) async fn copy(&mut self, sql: String, data: Bytes) -> Result<(), tokio_postgres::Error> {
        copy_into(&self.session, &mut self.statements, sql, data).await
    }

    pub(super) async fn run(&self, sql: &str) -> Result<()> {
        self.session.batch_execute(sql).await.map_err(|e| from_driver(e, "apply"))
    }

    pub(super) async fn close(self) {
        self.session.close().await;
    }
}
