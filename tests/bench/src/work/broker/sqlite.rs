//! `publish-sqlite`: a load is stored in a file in windows, each synchronised with the disk, beside a loop that inserts
//! the same messages.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use tidegate_core::{Endpoint, Message};
use tidegate_runtime::Publisher;
use tokio::time::Instant;

use super::{PATIENCE, channel, loads, message, service};
use crate::Result;
use crate::ground::{Size, Versions, rate};
use crate::load::{Load, Seen};
use crate::machine::locked;
use crate::report::{Row, Samples};

const MESSAGES: u64 = 100_000;
const BAR: f64 = 0.7;

/// Both sides in turn, each with a file of its own.
pub(super) async fn run(size: Size, versions: &Versions) -> Result<Vec<Row>> {
    versions.note("SQLite", rusqlite::version());
    let against = format!("rusqlite {}, prepared inserts", locked("rusqlite"));
    let mut rows = Vec::new();
    for load in loads(size, MESSAGES) {
        let (mut own, mut bare) = (Samples::default(), Samples::default());
        for (_, counts) in size.runs() {
            let folder = tempfile::tempdir()?;
            own.push_if(counts, of_ours(load, folder.path()).await?);
            let file = folder.path().join("bare.db");
            bare.push_if(counts, tokio::task::spawn_blocking(move || of_bare(load, &file)).await??);
        }
        let work = format!("publish-sqlite, {}", load.size());
        let row = Row::new(&work, "messages/s", &own, &against, &bare, BAR);
        rows.push(row.with_note(format!("{} messages, synchronous = FULL for each window", load.count)));
    }
    Ok(rows)
}

async fn of_ours(load: Load, folder: &Path) -> Result<f64> {
    let endpoint = Endpoint::parse(&format!("sqlite:{}", folder.join("ours.db").display()))?;
    let broker = tidegate_sqlite::open_broker(&endpoint)?;
    let (channel, _) = channel(&*broker, "load").await?;
    let mut publisher = Publisher::open(&*broker, &channel).with_patience(PATIENCE).await?;
    let start = Instant::now();
    for window in load.windows() {
        let messages: Vec<Message> = window.map(|number| message(load, number, 0)).collect();
        publisher.publish(&messages).await?;
    }
    let publish = rate(load.count, start);
    publisher.close(PATIENCE).await?;
    let seen = Arc::new(Seen::nothing(load));
    let running = service(&broker, &channel, &seen).await?;
    seen.whole().await?;
    running.drain(PATIENCE).await?;
    broker.close(PATIENCE).await?;
    Ok(publish)
}

fn of_bare(load: Load, file: &Path) -> Result<f64> {
    let connection = Connection::open(file)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.execute_batch(
        "CREATE TABLE message (place INTEGER PRIMARY KEY, id TEXT, source TEXT, kind TEXT, subject TEXT, data BLOB)",
    )?;
    let sql = "INSERT INTO message (id, source, kind, subject, data) VALUES (?, ?, ?, ?, ?)";
    let mut insert = connection.prepare(sql)?;
    let start = Instant::now();
    for window in load.windows() {
        let messages: Vec<Message> = window.map(|number| message(load, number, 0)).collect();
        connection.execute_batch("BEGIN")?;
        for Message { id, source, kind, subject, data, .. } in &messages {
            insert.execute((&**id, &**source, &**kind, subject.as_deref(), &**data))?;
        }
        connection.execute_batch("COMMIT")?;
    }
    let publish = rate(load.count, start);
    let seen = Seen::nothing(load);
    let mut read = connection.prepare("SELECT data FROM message")?;
    let mut rows = read.query([])?;
    while let Some(row) = rows.next()? {
        seen.mark(row.get_ref(0)?.as_blob()?)?;
    }
    if seen.is_whole() { Ok(publish) } else { Err(format!("{} messages are there", seen.came()).into()) }
}
