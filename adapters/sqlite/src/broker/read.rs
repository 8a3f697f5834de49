//! Reads messages.

use bytes::Bytes;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use tidegate_core::error::code;
use tidegate_core::{Error, Lane, Message, Result};

use super::writer::{list, signed, unsigned};
use crate::error::During;

/// How many bytes of messages one call reads; a single message may be larger.
const BYTES_MAX: i64 = 16 << 20;

/// A message as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) place: u64,
    pub(crate) at: i64,
    pub(crate) message: Message,
}

fn kept(row: &SqliteRow) -> Result<Kept> {
    let place = unsigned(row.get(0));
    let message = decode(row.get(2), row.get::<Vec<u8>, _>(3).into()).map_err(|error| {
        Error::new(code::STREAM_MALFORMED, format!("the message at {place} cannot be read")).because(error)
    })?;
    Ok(Kept { place, at: row.get(1), message })
}

/// A message of its envelope and its body.
pub(super) fn decode(
    envelope: &str,
    data: Bytes,
) -> std::result::Result<Message, Box<dyn std::error::Error + Send + Sync>> {
    type Pairs = Vec<(String, String)>;
    let (attributes, headers): (Pairs, Pairs) = serde_json::from_str(envelope)?;
    Ok(Message::decode(
        attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())),
        headers.iter().map(|(name, value)| (name.as_str(), value.as_str())),
        data,
    )?)
}

/// The messages at these places that are there, in order.
pub(crate) async fn at(
    connection: &mut SqliteConnection,
    places: impl ExactSizeIterator<Item = u64>,
) -> Result<Vec<Kept>> {
    if places.len() == 0 {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT place, at, envelope, data FROM tidegate_message
         WHERE place IN (SELECT value FROM json_each(?)) ORDER BY place",
    )
    .bind(list(places))
    .fetch_all(connection)
    .await
    .during("read messages again")?;
    rows.iter().map(kept).collect()
}

/// The next messages of a lane behind a place, so many and of a bounded size.
pub(crate) async fn next(
    connection: &mut SqliteConnection,
    channel: i64,
    lane: Lane,
    after: u64,
    count: usize,
) -> Result<Vec<Kept>> {
    // What is read is bounded before it is read: the driver reads ahead of us.
    let rows = sqlx::query(
        "SELECT m.place, m.at, m.envelope, m.data FROM (
             SELECT place, sum(size) OVER (ORDER BY place) - size AS before FROM (
                 SELECT place, size FROM tidegate_message WHERE channel = ? AND lane = ? AND place > ?
                 ORDER BY place LIMIT ?)) AS n
         JOIN tidegate_message AS m ON m.place = n.place WHERE n.before < ? ORDER BY m.place",
    )
    .bind(channel)
    .bind(lane.0)
    .bind(signed(after))
    .bind(i64::try_from(count).unwrap_or(i64::MAX))
    .bind(BYTES_MAX)
    .fetch_all(connection)
    .await
    .during("read messages")?;
    rows.iter().map(kept).collect()
}

/// A number that changes with every commit of another connection.
pub(crate) async fn version(connection: &mut SqliteConnection) -> Result<i64> {
    sqlx::query_scalar("PRAGMA data_version").fetch_one(connection).await.during("look for changes")
}
