//! The tables of the broker.
//!
//! A message stands once. A subscription has, for each lane, the place up to which it was given messages, and a row for
//! each of those that it has not settled: what nobody has read costs nothing, and what is settled leaves nothing.

use sqlx::SqliteConnection;
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::error::During;

const VERSION: i64 = 1;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS tidegate_broker(version INTEGER NOT NULL, last_place INTEGER NOT NULL);
INSERT INTO tidegate_broker SELECT 1, 0 WHERE NOT EXISTS (SELECT 1 FROM tidegate_broker);
CREATE TABLE IF NOT EXISTS tidegate_channel(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, lanes INTEGER NOT NULL, keep INTEGER,
    messages_max INTEGER NOT NULL, bytes_max INTEGER NOT NULL,
    messages INTEGER NOT NULL, bytes INTEGER NOT NULL, removed_to INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS tidegate_message(
    place INTEGER PRIMARY KEY, channel INTEGER NOT NULL, lane INTEGER NOT NULL, at INTEGER NOT NULL,
    size INTEGER NOT NULL, subject TEXT, envelope TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS tidegate_message_lane ON tidegate_message(channel, lane, place);
CREATE TABLE IF NOT EXISTS tidegate_message_id(
    place INTEGER PRIMARY KEY, channel INTEGER NOT NULL, id TEXT NOT NULL, source TEXT NOT NULL,
    UNIQUE (channel, id, source));
CREATE TABLE IF NOT EXISTS tidegate_subscription(
    id INTEGER PRIMARY KEY AUTOINCREMENT, channel INTEGER NOT NULL, name TEXT NOT NULL, UNIQUE (channel, name));
CREATE TABLE IF NOT EXISTS tidegate_member(
    id INTEGER PRIMARY KEY AUTOINCREMENT, subscription INTEGER NOT NULL, until INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS tidegate_seat(
    subscription INTEGER NOT NULL, lane INTEGER NOT NULL, owner INTEGER, epoch INTEGER NOT NULL,
    give_up_by INTEGER, held_until INTEGER NOT NULL, read_to INTEGER NOT NULL,
    PRIMARY KEY (subscription, lane)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tidegate_unsettled(
    subscription INTEGER NOT NULL, place INTEGER NOT NULL, lane INTEGER NOT NULL,
    attempts INTEGER NOT NULL, due INTEGER NOT NULL, in_hand INTEGER NOT NULL,
    PRIMARY KEY (subscription, place)) WITHOUT ROWID;
";

/// Makes what is missing, in the transaction that is open.
pub(crate) async fn create(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::raw_sql(TABLES).execute(&mut *connection).await.during("create the broker's tables")?;
    let version: i64 = sqlx::query_scalar("SELECT version FROM tidegate_broker")
        .fetch_one(connection)
        .await
        .during("read the version of the broker's tables")?;
    if version == VERSION {
        return Ok(());
    }
    Err(Error::new(
        code::STATE_NEWER,
        format!("the broker's tables have version {version}, and this program knows {VERSION}"),
    ))
}
