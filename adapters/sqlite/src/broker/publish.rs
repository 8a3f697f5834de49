//! Stores messages.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments as _, Row as _, SqliteConnection};
use tidegate_core::error::code;
use tidegate_core::{Error, Message, Result};

use super::retain::forget;
use super::writer::{Job, signed, unsigned};
use crate::error::During;
use crate::statement::sql;

/// How many of the latest messages of the file are known by their ids.
const IDS_MAX: u64 = 1_000_000;
/// How many messages a statement stores, so that few statements serve all batches.
const STEPS: [usize; 4] = [128, 32, 8, 1];
/// How many messages are looked at for room when a channel is full.
const ROOM_SWEEP: i64 = 1_000;

/// A message as it is stored.
#[derive(Debug)]
pub(crate) struct Line {
    lane: u32,
    id: Arc<str>,
    source: Arc<str>,
    subject: Option<Arc<str>>,
    envelope: String,
    data: Bytes,
    size: u64,
}

impl Line {
    pub(crate) fn new(message: &Message, lanes: u32) -> Result<Self> {
        let attributes: Vec<_> = message.attributes().collect();
        let headers: Vec<_> = message.headers.iter().collect();
        let envelope = serde_json::to_string(&(attributes, headers))
            .map_err(|error| Error::new(code::INTERNAL, "a message cannot be written down").because(error))?;
        Ok(Self {
            lane: message.lane(lanes).0,
            id: message.dedupe_id(),
            source: Arc::clone(&message.source),
            subject: message.subject.clone(),
            envelope,
            data: message.data.clone(),
            size: message.size() as u64,
        })
    }
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Stored {
        place: u64,
        duplicate: bool,
    },
    /// There is no room for it, nor for what comes behind it.
    Full,
    /// Nobody subscribes, and nothing is kept for later.
    Unwanted,
    /// Its channel is not there.
    Missing,
}

pub(crate) struct Publish {
    pub(crate) channel: i64,
    pub(crate) lines: Arc<Vec<Line>>,
    /// Which of them.
    pub(crate) range: std::ops::Range<usize>,
    pub(crate) now: i64,
}

#[async_trait]
impl Job for Publish {
    type Answer = Vec<Put>;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Vec<Put>> {
        let lines = &self.lines[self.range.clone()];
        let mut room = match self.room(connection).await? {
            Ok(room) => room,
            Err(put) => return Ok(vec![put; lines.len()]),
        };
        let mut known = self.known(connection, lines).await?;
        let last: i64 = sqlx::query_scalar("SELECT last_place FROM tidegate_broker")
            .fetch_one(&mut *connection)
            .await
            .during("read the last place")?;
        let mut last = unsigned(last);
        let (mut puts, mut fresh) = (Vec::with_capacity(lines.len()), Vec::new());
        let mut has_swept = false;
        for line in lines {
            if let Some(place) = known.get(&(&*line.id, &*line.source)) {
                puts.push(Put::Stored { place: *place, duplicate: true });
                continue;
            }
            if !room.takes(line.size) && !std::mem::replace(&mut has_swept, true) {
                self.make_room(connection).await?;
                let (messages, bytes) = (room.messages_new, room.bytes_new);
                room = self.room(connection).await?.unwrap_or(room);
                (room.messages_new, room.bytes_new) = (messages, bytes);
            }
            if !room.takes(line.size) {
                break;
            }
            room.take(line.size);
            last += 1;
            known.insert((&*line.id, &*line.source), last);
            puts.push(Put::Stored { place: last, duplicate: false });
            fresh.push((last, line));
        }
        puts.resize(lines.len(), Put::Full);
        if !fresh.is_empty() {
            self.insert(connection, &fresh).await?;
            self.count(connection, last, &room).await?;
        }
        Ok(puts)
    }
}

/// What there is room for.
struct Room {
    messages: u64,
    bytes: u64,
    messages_new: u64,
    bytes_new: u64,
}

impl Room {
    fn takes(&self, size: u64) -> bool {
        self.messages_new < self.messages && self.bytes_new + size <= self.bytes
    }

    fn take(&mut self, size: u64) {
        self.messages_new += 1;
        self.bytes_new += size;
    }
}

impl Publish {
    /// Or why there is none for any message.
    async fn room(&self, connection: &mut SqliteConnection) -> Result<std::result::Result<Room, Put>> {
        let row = sqlx::query(
            "SELECT messages_max - messages, bytes_max - bytes,
                 keep IS NOT NULL OR EXISTS (
                     SELECT 1 FROM tidegate_subscription AS b JOIN tidegate_seat AS s ON s.subscription = b.id
                     WHERE b.channel = c.id)
             FROM tidegate_channel AS c WHERE id = ?",
        )
        .bind(self.channel)
        .fetch_optional(connection)
        .await
        .during("look for room")?;
        let Some(row) = row else { return Ok(Err(Put::Missing)) };
        let (messages, bytes) = (unsigned(row.get(0)), unsigned(row.get(1)));
        let room = Room { messages, bytes, messages_new: 0, bytes_new: 0 };
        Ok(if row.get(2) { Ok(room) } else { Err(Put::Unwanted) })
    }

    /// Forgets old messages that are kept for their time alone.
    async fn make_room(&self, connection: &mut SqliteConnection) -> Result<()> {
        let places: Vec<i64> = sqlx::query_scalar(
            "SELECT place FROM tidegate_message NOT INDEXED WHERE channel = ?1
                 AND EXISTS (SELECT 1 FROM tidegate_channel AS c WHERE c.id = ?1 AND c.keep IS NOT NULL)
             ORDER BY place LIMIT ?2",
        )
        .bind(self.channel)
        .bind(ROOM_SWEEP)
        .fetch_all(&mut *connection)
        .await
        .during("look for old messages")?;
        forget(connection, self.channel, places.into_iter().map(unsigned), self.now).await?;
        Ok(())
    }

    /// Which of the lines are stored already.
    async fn known<'l>(
        &self,
        connection: &mut SqliteConnection,
        lines: &'l [Line],
    ) -> Result<HashMap<(&'l str, &'l str), u64>> {
        let ids: Vec<&str> = lines.iter().map(|line| &*line.id).collect();
        let ids = serde_json::to_string(&ids)
            .map_err(|error| Error::new(code::INTERNAL, "ids cannot be written down").because(error))?;
        let rows = sqlx::query(
            "SELECT i.id, i.source, i.place FROM json_each(?) AS j
             CROSS JOIN tidegate_message_id AS i ON i.channel = ? AND i.id = j.value",
        )
        .bind(ids)
        .bind(self.channel)
        .fetch_all(connection)
        .await
        .during("look for duplicates")?;
        if rows.is_empty() {
            return Ok(HashMap::new());
        }
        let found: HashMap<(String, String), u64> =
            rows.iter().map(|row| ((row.get(0), row.get(1)), unsigned(row.get(2)))).collect();
        let of = |line: &'l Line| {
            let place = found.get(&((*line.id).to_owned(), (*line.source).to_owned()))?;
            Some(((&*line.id, &*line.source), *place))
        };
        Ok(lines.iter().filter_map(of).collect())
    }

    async fn insert(&self, connection: &mut SqliteConnection, fresh: &[(u64, &Line)]) -> Result<()> {
        let mut rest = fresh;
        while !rest.is_empty() {
            let step = STEPS.into_iter().find(|step| *step <= rest.len()).unwrap_or(1);
            let (now, later) = rest.split_at(step);
            rest = later;
            let (mut messages, mut ids) = (SqliteArguments::default(), SqliteArguments::default());
            for (place, line) in now {
                let place = signed(*place);
                let bound = messages
                    .add(place)
                    .and_then(|()| messages.add(self.channel))
                    .and_then(|()| messages.add(line.lane))
                    .and_then(|()| messages.add(self.now))
                    .and_then(|()| messages.add(signed(line.size)))
                    .and_then(|()| messages.add(line.subject.as_deref().map(str::to_owned)))
                    .and_then(|()| messages.add(line.envelope.clone()))
                    .and_then(|()| messages.add(line.data.to_vec()))
                    .and_then(|()| ids.add(place))
                    .and_then(|()| ids.add(self.channel))
                    .and_then(|()| ids.add((*line.id).to_owned()))
                    .and_then(|()| ids.add((*line.source).to_owned()));
                bound.map_err(|error| {
                    Error::new(code::INTERNAL, "a message cannot be bound").because(error)
                })?;
            }
            let values = |columns: &str| vec![columns; step].join(", ");
            let text = format!(
                "INSERT INTO tidegate_message(place, channel, lane, at, size, subject, envelope, data) VALUES {}",
                values("(?, ?, ?, ?, ?, ?, ?, ?)")
            );
            sqlx::query_with(sql(text), messages).execute(&mut *connection).await.during("store messages")?;
            let text = format!(
                "INSERT INTO tidegate_message_id(place, channel, id, source) VALUES {}",
                values("(?, ?, ?, ?)")
            );
            sqlx::query_with(sql(text), ids).execute(&mut *connection).await.during("store ids")?;
        }
        Ok(())
    }

    async fn count(&self, connection: &mut SqliteConnection, last: u64, room: &Room) -> Result<()> {
        sqlx::query("UPDATE tidegate_channel SET messages = messages + ?, bytes = bytes + ? WHERE id = ?")
            .bind(signed(room.messages_new))
            .bind(signed(room.bytes_new))
            .bind(self.channel)
            .execute(&mut *connection)
            .await
            .during("count messages")?;
        sqlx::query("UPDATE tidegate_broker SET last_place = ?")
            .bind(signed(last))
            .execute(&mut *connection)
            .await
            .during("keep the last place")?;
        sqlx::query("DELETE FROM tidegate_message_id WHERE place <= ?")
            .bind(signed(last.saturating_sub(IDS_MAX)))
            .execute(connection)
            .await
            .during("forget old ids")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidegate_conformance::{Part, golden, golden_channel};

    use super::*;
    use crate::broker::read::decode;

    #[test]
    fn a_row_is_what_the_page_says_and_is_read_back() {
        let channel = golden_channel().unwrap();
        let carry = |message: &Message| {
            let line = Line::new(message, channel.lanes)?;
            let mut parts: Vec<Part> = Vec::new();
            let mut put =
                |column: &str, value: &[u8]| parts.push(("column", column.to_owned(), value.to_vec()));
            put("lane", line.lane.to_string().as_bytes());
            if let Some(subject) = &line.subject {
                put("subject", subject.as_bytes());
            }
            put("envelope", line.envelope.as_bytes());
            put("data", &line.data);
            let read = decode(&line.envelope, line.data);
            Ok((parts, read.map_err(|error| Error::new(code::INTERNAL, "not read").because(error))?))
        };
        golden("SQLite", carry).unwrap();
    }
}
