//! The stream of the write-ahead log, and the reports that let the server forget.

use bytes::{Buf as _, BufMut as _, Bytes};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::error;
use crate::lsn::Lsn;
use crate::wire::frame::{Frame, Frames, unexpected};

const COPY_DATA: u8 = b'd';
const STANDBY_STATUS: u8 = b'r';
/// The length itself, the kind, three positions, a time and a flag.
const STANDBY_STATUS_BYTES: u32 = 4 + 1 + 8 * 4 + 1;

const XLOG_DATA: u8 = b'w';
const XLOG_DATA_HEADER_BYTES: usize = 8 * 3;
const KEEPALIVE: u8 = b'k';
const KEEPALIVE_BYTES: usize = 8 * 2 + 1;

/// A running stream.
#[derive(Debug)]
pub(crate) struct WalStream {
    frames: Frames,
    /// The server has said that nothing more comes.
    done: bool,
}

/// One frame of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WalFrame {
    /// A piece of the log, for [`crate::pgoutput`] to read.
    Data {
        /// Where its record begins; zero for messages that are not in the log, such as relations.
        start: Lsn,
        /// How far the server has sent, this piece included.
        sent: Lsn,
        /// When it was sent, in microseconds since 2000-01-01 UTC.
        sent_at: i64,
        /// The message of the output plugin.
        payload: Bytes,
    },
    /// The server is there, and has sent everything up to a position.
    Keepalive {
        /// Everything before it has been sent or concerns nobody here.
        sent: Lsn,
        /// When it was sent, in microseconds since 2000-01-01 UTC.
        sent_at: i64,
        /// The server ends the connection soon if it hears nothing.
        reply_wanted: bool,
    },
}

/// What the server may know of our progress. It forgets what lies before `flush`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Received up to here.
    pub(crate) write: Lsn,
    /// Durable up to here: the server will not send it again.
    pub(crate) flush: Lsn,
    /// Visible to readers of the target up to here.
    pub(crate) apply: Lsn,
}

impl WalStream {
    pub(crate) fn new(frames: Frames) -> Self {
        Self { frames, done: false }
    }

    /// The next frame; nothing when the server has ended the stream in good order.
    ///
    /// Dropping the future loses nothing, so it may stand in a `select!`.
    ///
    /// # Errors
    /// `connection-lost` when the server is gone, `slot-lost` when the log it needs is,
    /// `stream-malformed` for what the protocol does not know.
    pub(crate) async fn next(&mut self) -> Result<Option<WalFrame>> {
        while !self.done {
            let frame = self.frames.next("stream").await?;
            if let Some(frame) = self.read(frame)? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// The next frame that has been received in full, without waiting.
    ///
    /// Take all of these before asking the server for its position: each request queues one more keepalive, and
    /// whoever asks faster than it drains looks at positions that are seconds old.
    ///
    /// # Errors
    /// As [`WalStream::next`].
    pub(crate) fn received(&mut self) -> Result<Option<WalFrame>> {
        while !self.done {
            let Some(frame) = self.frames.received()? else { break };
            if let Some(frame) = self.read(frame)? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Tells the server how far we are; with `reply`, it answers with a keepalive at once.
    ///
    /// Dropping the future does not undo the report: what is left of it goes out with the next call.
    ///
    /// # Errors
    /// `connection-lost` when the server is gone.
    pub(crate) async fn report(&mut self, progress: Progress, reply: bool) -> Result<()> {
        let output = self.frames.output();
        output.put_u8(COPY_DATA);
        output.put_u32(STANDBY_STATUS_BYTES);
        output.put_u8(STANDBY_STATUS);
        output.put_u64(progress.write.0);
        output.put_u64(progress.flush.0);
        output.put_u64(progress.apply.0);
        // The time is only shown in a view of the server; zero keeps the clock out of here.
        output.put_i64(0);
        output.put_u8(u8::from(reply));
        self.frames.flush("report").await
    }

    /// Ends the stream in good order and closes the connection. Reports before it have reached the server.
    ///
    /// # Errors
    /// As [`WalStream::next`].
    pub(crate) async fn finish(mut self) -> Result<()> {
        frontend::copy_done(self.frames.output());
        self.frames.flush("finish").await?;
        loop {
            match self.frames.next("finish").await? {
                Frame::Message(Message::ReadyForQuery(_)) => break,
                Frame::Message(Message::ErrorResponse(body)) => {
                    return Err(error::from_response(&body, "finish"));
                }
                // What the server sent before it read our end; the slot still holds it.
                Frame::CopyData(_)
                | Frame::Message(
                    Message::CopyDone
                    | Message::CommandComplete(_)
                    | Message::NoticeResponse(_)
                    | Message::ParameterStatus(_)
                    | Message::RowDescription(_)
                    | Message::DataRow(_),
                ) => {}
                Frame::CopyBoth | Frame::Message(_) => return Err(unexpected("finish")),
            }
        }
        self.frames.close().await;
        Ok(())
    }

    /// What a frame says, if it says anything to a reader.
    fn read(&mut self, frame: Frame) -> Result<Option<WalFrame>> {
        match frame {
            Frame::CopyData(content) => parse(content).map(Some),
            Frame::Message(Message::CopyDone | Message::CommandComplete(_)) => {
                self.done = true;
                Ok(None)
            }
            Frame::Message(Message::ErrorResponse(body)) => Err(error::from_response(&body, "stream")),
            Frame::Message(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => Ok(None),
            Frame::CopyBoth | Frame::Message(_) => Err(unexpected("stream")),
        }
    }
}

fn parse(mut content: Bytes) -> Result<WalFrame> {
    match content.first() {
        Some(&XLOG_DATA) if content.len() > XLOG_DATA_HEADER_BYTES => {
            content.advance(1);
            let start = Lsn(content.get_u64());
            let sent = Lsn(content.get_u64());
            let sent_at = content.get_i64();
            Ok(WalFrame::Data { start, sent, sent_at, payload: content })
        }
        Some(&KEEPALIVE) if content.len() > KEEPALIVE_BYTES => {
            content.advance(1);
            Ok(WalFrame::Keepalive {
                sent: Lsn(content.get_u64()),
                sent_at: content.get_i64(),
                reply_wanted: content.get_u8() != 0,
            })
        }
        _ => Err(Error::new(code::STREAM_MALFORMED, "a frame of the stream is of no known kind")
            .with("bytes", content.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_and_cut_ones_refused() {
        let mut data = vec![b'w'];
        for number in [1_u64, 2, 3] {
            data.extend(number.to_be_bytes());
        }
        data.extend(b"xyz");
        assert_eq!(
            parse(data.clone().into()).unwrap(),
            WalFrame::Data { start: Lsn(1), sent: Lsn(2), sent_at: 3, payload: Bytes::from_static(b"xyz") }
        );
        let mut keepalive = vec![b'k'];
        keepalive.extend(7_u64.to_be_bytes());
        keepalive.extend(8_u64.to_be_bytes());
        keepalive.push(1);
        assert_eq!(
            parse(keepalive.clone().into()).unwrap(),
            WalFrame::Keepalive { sent: Lsn(7), sent_at: 8, reply_wanted: true }
        );
        for cut in [&data[..24], &keepalive[..17], b"", b"z12345678901234567890"] {
            assert_eq!(parse(Bytes::copy_from_slice(cut)).unwrap_err().code(), code::STREAM_MALFORMED);
        }
    }
}
