//! Transactions of an application, with notes of what was handled.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidegate_core::port::Transactional;
use tidegate_core::{Endpoint, FlowName, Result};
use tokio_postgres::Client;

use crate::connect::Session;
use crate::error::{from_driver, unsure};
use crate::schema;
use crate::store::PostgresStore;

/// How many sessions wait for the next transaction at most.
const IDLE_MAX: usize = 16;

/// Transactions in a database, each on a session of its own. A session that is committed is used again.
#[derive(Clone, Debug)]
pub struct PostgresInbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: PostgresStore,
    idle: Mutex<Vec<Session>>,
    /// The table is there.
    is_made: AtomicBool,
}

/// A transaction on a session of its own, whose client is what it derefs to; the role's and the database's settings hold in it.
/// Dropping it undoes it.
#[derive(Debug)]
pub struct PostgresTx(Session);

impl Deref for PostgresTx {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl DerefMut for PostgresTx {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.0
    }
}

impl PostgresInbox {
    pub(crate) fn open(endpoint: &Endpoint) -> Result<Self> {
        let (store, idle, is_made) =
            (PostgresStore::open(endpoint)?, Mutex::default(), AtomicBool::default());
        Ok(Self(Arc::new(Inner { store, idle, is_made })))
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session without a transaction, in a database that has the table.
    async fn session(&self) -> Result<Session> {
        let known = {
            let mut idle = self.idle();
            idle.retain(|session| !session.is_closed());
            idle.pop()
        };
        let session = match known {
            Some(session) => session,
            None => Session::connect(self.0.store.settings()).await?,
        };
        if !self.0.is_made.load(Ordering::Relaxed) {
            schema::ensure(&session).await?;
            self.0.is_made.store(true, Ordering::Relaxed);
        }
        Ok(session)
    }

    /// Keeps a session for the next one, as it was when it began.
    async fn keep(&self, session: Session) {
        if self.idle().len() < IDLE_MAX && session.batch_execute("DISCARD ALL").await.is_ok() {
            self.idle().push(session);
        }
    }
}

impl Transactional for PostgresInbox {
    type Tx = PostgresTx;

    async fn begin(&self) -> Result<PostgresTx> {
        let session = self.session().await?;
        session.batch_execute("BEGIN").await.map_err(|error| from_driver(error, "begin a transaction"))?;
        Ok(PostgresTx(session))
    }

    async fn note(&self, tx: &mut PostgresTx, flow: &FlowName, id: &str) -> Result<bool> {
        let sql = "INSERT INTO tidegate.inbox (flow, id, at)
            VALUES ($1, $2, (extract(epoch FROM clock_timestamp()) * 1000000)::int8) ON CONFLICT DO NOTHING";
        let noted = tx.0.execute(sql, &[&flow.as_str(), &id]).await;
        noted.map(|rows| rows > 0).map_err(|error| from_driver(error, "note what is handled"))
    }

    async fn commit(&self, tx: PostgresTx) -> Result<()> {
        // A bare COMMIT of a transaction in which something failed undoes it, and reports no error.
        let committed = tx.0.batch_execute("SELECT 1; COMMIT").await;
        committed.map_err(|error| unsure(from_driver(error, "commit a transaction")))?;
        self.keep(tx.0).await;
        Ok(())
    }

    async fn forget(&self, flow: &FlowName, older_than: i64) -> Result<u64> {
        let session = self.session().await?;
        let sql = "DELETE FROM tidegate.inbox
            WHERE flow = $1 AND at < (extract(epoch FROM clock_timestamp()) * 1000000)::int8 - $2";
        let forgotten = session.execute(sql, &[&flow.as_str(), &older_than]).await;
        let forgotten = forgotten.map_err(|error| from_driver(error, "forget what was handled"))?;
        self.keep(session).await;
        Ok(forgotten)
    }
}
