//! Timers, in the schema `tidegate`.

use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::port::{Due, Timer, Timers};
use tidegate_core::{FlowName, Result};
use tokio_postgres::types::ToSql;

use crate::state::{PostgresState, failed, number};

#[async_trait]
impl Timers for PostgresState {
    async fn put(&self, flow: &FlowName, timer: &Timer) -> Result<()> {
        let sql =
            "INSERT INTO tidegate.timers (flow, id, at, hidden_until, value) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (flow, id) DO UPDATE SET number = DEFAULT, at = excluded.at,
            hidden_until = excluded.hidden_until, value = excluded.value";
        let session = self.making().await?;
        let values = [&flow.as_str() as &(dyn ToSql + Sync), &timer.id, &timer.at, &i64::MIN, &timer.value];
        session.execute(sql, &values).await.map(drop).map_err(failed)
    }

    async fn cancel(&self, flow: &FlowName, id: &str) -> Result<bool> {
        let Some(session) = self.looking().await? else { return Ok(false) };
        let sql = "DELETE FROM tidegate.timers WHERE flow = $1 AND id = $2";
        Ok(session.execute(sql, &[&flow.as_str(), &id]).await.map_err(failed)? > 0)
    }

    async fn due(&self, flow: &FlowName, upto: i64, limit: usize, hide: Duration) -> Result<Vec<Due>> {
        let Some(session) = self.looking().await? else { return Ok(Vec::new()) };
        let hide = i64::try_from(hide.as_micros()).unwrap_or(i64::MAX);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // What another one is taking is not waited for.
        let sql = "UPDATE tidegate.timers SET hidden_until = $1 WHERE number IN (
                SELECT number FROM tidegate.timers WHERE flow = $2 AND at <= $3 AND hidden_until <= $3
                ORDER BY at, number LIMIT $4 FOR UPDATE SKIP LOCKED)
            RETURNING number, id, at, value";
        let values = [&upto.saturating_add(hide) as &(dyn ToSql + Sync), &flow.as_str(), &upto, &limit];
        let rows = session.query(sql, &values).await.map_err(failed)?;
        let mut due: Vec<Due> = rows
            .iter()
            .map(|row| Due {
                number: row.get::<_, i64>(0).unsigned_abs(),
                timer: Timer { id: row.get(1), at: row.get(2), value: row.get(3) },
            })
            .collect();
        // The rows come in the order in which they were found.
        due.sort_by_key(|due| (due.timer.at, due.number));
        Ok(due)
    }

    async fn done(&self, flow: &FlowName, timer: u64) -> Result<bool> {
        let Some(session) = self.looking().await? else { return Ok(false) };
        let sql = "DELETE FROM tidegate.timers WHERE flow = $1 AND number = $2";
        Ok(session.execute(sql, &[&flow.as_str(), &number(timer)]).await.map_err(failed)? > 0)
    }
}
