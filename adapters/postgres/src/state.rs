//! Keeps the records of flows, in the schema `tidegate`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::port::{Lease, StateStore, Stored};
use tidegate_core::{Error, FlowName, Result};
use tokio::sync::Mutex;

use crate::connect::Session;
use crate::error::from_driver;
use crate::schema;
use crate::store::PostgresStore;

/// Every method is one statement, so that one session serves them all at once.
#[derive(Debug)]
pub(crate) struct PostgresState {
    store: PostgresStore,
    session: Mutex<Option<Arc<Session>>>,
    /// The tables are there.
    is_made: AtomicBool,
}

impl PostgresState {
    /// Nothing is reached yet.
    pub(crate) fn new(store: PostgresStore) -> Self {
        Self { store, session: Mutex::default(), is_made: AtomicBool::new(false) }
    }

    pub(crate) async fn open(store: &PostgresStore) -> Result<Self> {
        let state = Self::new(store.clone());
        state.session().await?;
        Ok(state)
    }

    /// The session; another one if the server ended it.
    async fn session(&self) -> Result<Arc<Session>> {
        let mut known = self.session.lock().await;
        if let Some(session) = known.as_ref().filter(|session| !session.is_closed()) {
            return Ok(Arc::clone(session));
        }
        let session = Arc::new(self.store.session().await?);
        *known = Some(Arc::clone(&session));
        Ok(session)
    }

    /// The session, with the tables made.
    pub(crate) async fn making(&self) -> Result<Arc<Session>> {
        let session = self.session().await?;
        if !self.is_made.load(Ordering::Relaxed) {
            schema::ensure(&session).await?;
            self.is_made.store(true, Ordering::Relaxed);
        }
        Ok(session)
    }

    /// The session, if the tables are there: looking makes nothing.
    pub(crate) async fn looking(&self) -> Result<Option<Arc<Session>>> {
        if !self.is_made.load(Ordering::Relaxed) {
            let sql = "SELECT to_regclass('tidegate.records') IS NOT NULL";
            if !self.session().await?.query_one(sql, &[]).await.map_err(failed)?.get::<_, bool>(0) {
                return Ok(None);
            }
        }
        self.making().await.map(Some)
    }
}

pub(crate) fn failed(error: tokio_postgres::Error) -> Error {
    from_driver(error, "state")
}

/// Versions and numbers never grow beyond what fits both.
pub(crate) fn number(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

#[async_trait]
impl StateStore for PostgresState {
    async fn get(&self, flow: &FlowName, key: &str) -> Result<Option<Stored>> {
        let sql = "SELECT version, value FROM tidegate.records WHERE flow = $1 AND key = $2";
        let Some(session) = self.looking().await? else { return Ok(None) };
        let row = session.query_opt(sql, &[&flow.as_str(), &key]).await.map_err(failed)?;
        Ok(row.map(|row| Stored { version: row.get::<_, i64>(0).unsigned_abs(), value: row.get(1) }))
    }

    async fn put(&self, flow: &FlowName, key: &str, value: &str, expected: u64) -> Result<Option<u64>> {
        let session = self.making().await?;
        let flow = flow.as_str();
        let row = if expected == 0 {
            let sql = "INSERT INTO tidegate.records (flow, key, version, value) VALUES ($1, $2, 1, $3)
                ON CONFLICT DO NOTHING RETURNING version";
            session.query_opt(sql, &[&flow, &key, &value]).await
        } else {
            let sql = "UPDATE tidegate.records SET version = version + 1, value = $3
                WHERE flow = $1 AND key = $2 AND version = $4 RETURNING version";
            session.query_opt(sql, &[&flow, &key, &value, &number(expected)]).await
        };
        Ok(row.map_err(failed)?.map(|row| row.get::<_, i64>(0).unsigned_abs()))
    }

    async fn flows(&self) -> Result<Vec<FlowName>> {
        let sql = "SELECT flow FROM tidegate.records UNION SELECT flow FROM tidegate.flows
            UNION SELECT flow FROM tidegate.leases ORDER BY 1";
        let Some(session) = self.looking().await? else { return Ok(Vec::new()) };
        let rows = session.query(sql, &[]).await.map_err(failed)?;
        rows.iter().map(|row| FlowName::new(row.get::<_, String>(0))).collect()
    }

    async fn forget(&self, flow: &FlowName) -> Result<()> {
        let sql = "WITH a AS (DELETE FROM tidegate.records WHERE flow = $1),
            b AS (DELETE FROM tidegate.flows WHERE flow = $1),
            c AS (DELETE FROM tidegate.ranges WHERE flow = $1),
            h AS (DELETE FROM tidegate.holes WHERE flow = $1),
            i AS (DELETE FROM tidegate.identities WHERE flow = $1),
            d AS (DELETE FROM tidegate.left_out WHERE flow = $1),
            t AS (DELETE FROM tidegate.timers WHERE flow = $1)
            DELETE FROM tidegate.leases WHERE flow = $1";
        self.making().await?.execute(sql, &[&flow.as_str()]).await.map_err(failed)?;
        Ok(())
    }

    async fn hold(&self, flow: &FlowName, holder: &str, time: Duration) -> Result<Lease> {
        let session = self.making().await?;
        let micros = time.as_micros() as f64;
        let sql = "UPDATE tidegate.leases SET until = clock_timestamp() + $3 * interval '1 microsecond'
            WHERE flow = $1 AND holder = $2";
        let renewed = session.execute(sql, &[&flow.as_str(), &holder, &micros]).await.map_err(failed)?;
        if renewed > 0 {
            return Ok(Lease { holder: holder.to_owned(), time, renewed: true });
        }
        let sql = "INSERT INTO tidegate.leases AS l (flow, holder, until)
            VALUES ($1, $2, clock_timestamp() + $3 * interval '1 microsecond')
            ON CONFLICT (flow) DO UPDATE SET holder = excluded.holder, until = excluded.until
            WHERE l.until <= clock_timestamp()";
        let taken = session.execute(sql, &[&flow.as_str(), &holder, &micros]).await.map_err(failed)?;
        if taken > 0 {
            return Ok(Lease { holder: holder.to_owned(), time, renewed: false });
        }
        let sql = "SELECT holder FROM tidegate.leases WHERE flow = $1";
        let row = session.query_opt(sql, &[&flow.as_str()]).await.map_err(failed)?;
        let other = row.map_or_else(|| "another".to_owned(), |row| row.get(0));
        Err(Lease::held_by(other))
    }

    async fn release(&self, flow: &FlowName, holder: &str) -> Result<()> {
        let sql = "DELETE FROM tidegate.leases WHERE flow = $1 AND holder = $2";
        self.making().await?.execute(sql, &[&flow.as_str(), &holder]).await.map_err(failed)?;
        Ok(())
    }
}
