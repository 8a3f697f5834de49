//! Forgets messages that everybody has settled.

use async_trait::async_trait;
use sqlx::{Row as _, SqliteConnection};
use tidegate_core::Result;

use super::writer::{Job, list, unsigned};
use crate::error::During;

/// How many messages one job looks at.
const SWEEP_MAX: i64 = 2_000;

/// Of messages, by a condition on them, those that every subscription has settled and whose time is over.
const FORGET: &str = "
DELETE FROM tidegate_message WHERE place IN (SELECT value FROM json_each(?1))
  AND at <= ?2 - (SELECT ifnull(keep, 0) FROM tidegate_channel AS c WHERE c.id = tidegate_message.channel)
  AND NOT EXISTS (
    SELECT 1 FROM tidegate_subscription AS b
    JOIN tidegate_seat AS s ON s.subscription = b.id AND s.lane = tidegate_message.lane
    WHERE b.channel = tidegate_message.channel
      AND (s.read_to < tidegate_message.place
        OR EXISTS (SELECT 1 FROM tidegate_unsettled AS u
                   WHERE u.subscription = b.id AND u.place = tidegate_message.place)))
RETURNING place, size";

/// Forgets those of these messages of a channel that nobody needs; how many it were.
pub(crate) async fn forget(
    connection: &mut SqliteConnection,
    channel: i64,
    places: impl IntoIterator<Item = u64>,
    now: i64,
) -> Result<u64> {
    let gone = sqlx::query(FORGET)
        .bind(list(places))
        .bind(now)
        .fetch_all(&mut *connection)
        .await
        .during("forget messages")?;
    if gone.is_empty() {
        return Ok(0);
    }
    let bytes: i64 = gone.iter().map(|row| row.get::<i64, _>(1)).sum();
    let removed_to = gone.iter().map(|row| row.get::<i64, _>(0)).max();
    sqlx::query(
        "UPDATE tidegate_channel SET messages = messages - ?, bytes = bytes - ?,
             removed_to = max(removed_to, ?) WHERE id = ?",
    )
    .bind(i64::try_from(gone.len()).unwrap_or(i64::MAX))
    .bind(bytes)
    .bind(removed_to)
    .bind(channel)
    .execute(connection)
    .await
    .during("count messages")?;
    Ok(gone.len() as u64)
}

/// Looks at the oldest messages of a channel behind a place, some at a time: the place to go on from, or `None` at the
/// end.
pub(crate) struct Sweep {
    pub(crate) channel: i64,
    pub(crate) after: u64,
    pub(crate) now: i64,
}

#[async_trait]
impl Job for Sweep {
    type Answer = Option<u64>;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Option<u64>> {
        let mut last = None;
        // By lane, since that is how they are indexed; a batch ends with the lowest place of those that go on.
        let lanes: i64 =
            sqlx::query_scalar("SELECT ifnull(max(lanes), 0) FROM tidegate_channel WHERE id = ?")
                .bind(self.channel)
                .fetch_one(&mut *connection)
                .await
                .during("count lanes")?;
        for lane in 0..lanes {
            let places: Vec<i64> = sqlx::query_scalar(
                "SELECT place FROM tidegate_message WHERE channel = ? AND lane = ? AND place > ?
                 ORDER BY place LIMIT ?",
            )
            .bind(self.channel)
            .bind(lane)
            .bind(super::writer::signed(self.after))
            .bind(SWEEP_MAX)
            .fetch_all(&mut *connection)
            .await
            .during("look for messages")?;
            if places.len() as i64 == SWEEP_MAX {
                let end = places.last().copied().map(unsigned);
                last = match (last, end) {
                    (Some(last), Some(end)) => Some(u64::min(last, end)),
                    (last, end) => last.or(end),
                };
            }
            forget(connection, self.channel, places.into_iter().map(unsigned), self.now).await?;
        }
        Ok(last)
    }
}
