//! A replication session before its stream starts: simple queries and the commands of the replication protocol.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::config::Settings;
use crate::connect::within;
use crate::error;
use crate::link::Link;
use crate::lsn::Lsn;
use crate::wire::frame::{Frame, Frames, unexpected};
use crate::wire::startup;
use crate::wire::stream::WalStream;

/// Measured: 2 ms are too short for the server to fill the socket, 50 ms gain nothing more.
const PAUSE: Duration = Duration::from_millis(15);

/// A session of the replication protocol that has not started its stream.
#[derive(Debug)]
pub(crate) struct Replication {
    frames: Frames,
    /// A query whose answer nobody has read to its end.
    abandoned: bool,
}

/// Who a server is, as far as its log is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The cluster; copies of its files share it.
    pub(crate) system: u64,
    /// Rises when a standby is promoted or a backup is restored to a point in time.
    pub(crate) timeline: u32,
    /// How far the log is written to disk.
    pub(crate) flushed: Lsn,
}

/// What a stream shall carry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct Start {
    slot: String,
    publications: Vec<String>,
    position: Lsn,
    streaming: bool,
    binary: bool,
}

/// One row of a simple query, in text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row(Vec<Option<Bytes>>);

impl Row {
    /// The text of a column; nothing for null, for a column that is not there and for what is not UTF-8.
    pub(crate) fn get(&self, column: usize) -> Option<&str> {
        std::str::from_utf8(self.0.get(column)?.as_ref()?).ok()
    }

    fn read(body: &DataRowBody) -> Result<Self> {
        let storage = body.buffer_bytes();
        let columns = body.ranges().map(|range| Ok(range.map(|range| storage.slice(range)))).collect();
        columns.map(Self).map_err(|error| error::from_io(error, "query"))
    }
}

impl Replication {
    /// Connects to the database of these settings as a reader of its changes.
    ///
    /// # Errors
    /// As [`crate::connect::Session::connect`]; also `slot-unavailable` when the server has no walsender left.
    pub(crate) async fn connect(settings: &Settings) -> Result<Self> {
        Self::connect_with(settings, PAUSE).await
    }

    /// Like [`Replication::connect`], with the pause of a busy reader; zero reads each piece as it comes.
    ///
    /// # Errors
    /// As [`Replication::connect`].
    pub(crate) async fn connect_with(settings: &Settings, pause: Duration) -> Result<Self> {
        within(settings, async {
            let mut frames = Frames::new(Link::open(settings, Some(pause)).await?);
            startup::start(&mut frames, settings).await?;
            Ok(Self { frames, abandoned: false })
        })
        .await
    }

    /// Runs one statement or replication command and returns its rows.
    ///
    /// A dropped call leaves an unread answer behind; the next one says so instead of taking it for its own.
    ///
    /// # Errors
    /// What the server refuses, or `connection-lost`.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Vec<Row>> {
        self.ask(sql).await?;
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            match self.frames.next("query").await? {
                Frame::Message(Message::DataRow(body)) => rows.push(Row::read(&body)?),
                Frame::Message(Message::ErrorResponse(body)) => {
                    refused = Some(error::from_response(&body, "query"));
                }
                Frame::Message(Message::ReadyForQuery(_)) => {
                    self.abandoned = false;
                    return refused.map_or(Ok(rows), Err);
                }
                Frame::Message(
                    Message::RowDescription(_)
                    | Message::CommandComplete(_)
                    | Message::EmptyQueryResponse
                    | Message::NoticeResponse(_)
                    | Message::ParameterStatus(_),
                ) => {}
                Frame::Message(_) | Frame::CopyBoth | Frame::CopyData(_) => return Err(unexpected("query")),
            }
        }
    }

    /// Asks the server who it is.
    ///
    /// # Errors
    /// As [`Replication::query`].
    pub(crate) async fn identify(&mut self) -> Result<Identity> {
        let rows = self.query("IDENTIFY_SYSTEM").await?;
        let row = rows.first();
        let field = |column| row.and_then(|row| row.get(column)).ok_or_else(|| unexpected("identify"));
        Ok(Identity {
            system: field(0)?.parse().map_err(|_| unexpected("identify"))?,
            timeline: field(1)?.parse().map_err(|_| unexpected("identify"))?,
            flushed: field(2)?.parse()?,
        })
    }

    /// Starts the stream; the session is nothing else from here on.
    ///
    /// # Errors
    /// `slot-lost` when the slot is gone or invalidated, `slot-unavailable` when another reader has it.
    pub(crate) async fn start(mut self, start: &Start) -> Result<WalStream> {
        let named = |error: Error| error.with("slot", &start.slot);
        self.ask(&start.command()).await.map_err(named)?;
        loop {
            match self.frames.next("start").await.map_err(named)? {
                Frame::CopyBoth => return Ok(WalStream::new(self.frames)),
                Frame::Message(Message::ErrorResponse(body)) => {
                    return Err(named(error::from_response(&body, "start")));
                }
                Frame::Message(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => {}
                Frame::Message(_) | Frame::CopyData(_) => return Err(named(unexpected("start"))),
            }
        }
    }

    /// Says goodbye.
    #[cfg(test)]
    pub(crate) async fn close(self) {
        self.frames.close().await;
    }

    async fn ask(&mut self, sql: &str) -> Result<()> {
        if self.abandoned {
            return Err(Error::new(
                code::CONNECTION_LOST,
                "an earlier query of this session was given up half-way",
            )
            .hint("connect again"));
        }
        frontend::query(sql, self.frames.output())
            .map_err(|error| Error::new(code::INTERNAL, "a statement holds a zero byte").because(error))?;
        self.abandoned = true;
        self.frames.flush("query").await
    }
}

impl Start {
    /// The changes of these publications, from where the slot stands.
    pub(crate) fn new<P: Into<String>>(
        slot: impl Into<String>,
        publications: impl IntoIterator<Item = P>,
    ) -> Self {
        Self {
            slot: slot.into(),
            publications: publications.into_iter().map(Into::into).collect(),
            position: Lsn::ZERO,
            streaming: false,
            binary: false,
        }
    }

    /// Begins here when the slot stands earlier; the server never goes back behind the slot.
    #[must_use]
    pub(crate) fn with_position(mut self, position: Lsn) -> Self {
        self.position = position;
        self
    }

    /// Carries large transactions before they commit (protocol version 2).
    #[must_use]
    pub(crate) fn with_streaming(mut self, streaming: bool) -> Self {
        self.streaming = streaming;
        self
    }

    /// Carries values in binary form where their type has one.
    #[must_use]
    pub(crate) fn with_binary(mut self, binary: bool) -> Self {
        self.binary = binary;
        self
    }

    fn command(&self) -> String {
        let publications: Vec<String> = self.publications.iter().map(|name| quoted(name)).collect();
        let mut command = format!(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '{}', publication_names '{}'",
            quoted(&self.slot),
            self.position,
            if self.streaming { 2 } else { 1 },
            publications.join(",").replace('\'', "''"),
        );
        for (option, wanted) in [("streaming", self.streaming), ("binary", self.binary)] {
            if wanted {
                // Writing to a text cannot fail.
                let _ = write!(command, ", {option} 'true'");
            }
        }
        command.push(')');
        command
    }
}

/// A name as an identifier of SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_one_command_with_every_name_quoted() {
        let start = Start::new("s", ["p"]);
        assert_eq!(
            start.command(),
            r#"START_REPLICATION SLOT "s" LOGICAL 0/0 (proto_version '1', publication_names '"p"')"#
        );
        let start = Start::new("s", ["it's", "a\"b"])
            .with_position(Lsn(0x1_0000_0002))
            .with_streaming(true)
            .with_binary(true);
        assert_eq!(
            start.command(),
            "START_REPLICATION SLOT \"s\" LOGICAL 1/2 (proto_version '2', publication_names '\"it''s\",\"a\"\"b\"', \
             streaming 'true', binary 'true')"
        );
    }
}
