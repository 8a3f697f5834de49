//! Frames in and out of a link, with nothing lost when a caller stops waiting.

use bytes::{Buf as _, Bytes, BytesMut};
use postgres_protocol::message::backend::Message;
use tidegate_core::error::code;
use tidegate_core::{Error, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::error;
use crate::link::Link;

/// Room to read into; what arrives during one pause of a busy stream fits mostly.
const READ_BYTES: usize = 256 * 1024;

/// The server's own limit for one value is 1 GB; a row of several is cut by its allocation limit of the same size.
const FRAME_BYTES_MAX: usize = (1 << 30) + (1 << 20);

/// Before the role is proven, whoever answers may not make us hold much.
pub(crate) const STARTUP_BYTES_MAX: usize = 64 * 1024;

const COPY_BOTH_RESPONSE: u8 = b'W';
const COPY_DATA: u8 = b'd';
const HEADER_BYTES: usize = 5;

/// One message of the server.
pub(crate) enum Frame {
    /// Both sides may now send copy data.
    CopyBoth,
    /// The content of one copy message.
    CopyData(Bytes),
    /// Anything the ordinary protocol knows.
    Message(Message),
}

/// A link with its half-read and half-written frames.
#[derive(Debug)]
pub(crate) struct Frames {
    link: Link,
    input: BytesMut,
    output: BytesMut,
    frame_bytes_max: usize,
}

impl Frames {
    pub(crate) fn new(link: Link) -> Self {
        Self {
            link,
            input: BytesMut::with_capacity(READ_BYTES),
            output: BytesMut::with_capacity(1024),
            frame_bytes_max: STARTUP_BYTES_MAX,
        }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// From here on the server is known, and may send what is large.
    pub(crate) fn trust(&mut self) {
        self.frame_bytes_max = FRAME_BYTES_MAX;
    }

    /// Where messages are written before [`Frames::flush`].
    pub(crate) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Sends what was written. Dropping the future keeps the rest for the next call.
    pub(crate) async fn flush(&mut self, operation: &'static str) -> Result<()> {
        while !self.output.is_empty() {
            let sent =
                self.link.write(&self.output).await.map_err(|error| error::from_io(error, operation))?;
            if sent == 0 {
                return Err(error::lost(operation));
            }
            self.output.advance(sent);
        }
        self.link.flush().await.map_err(|error| error::from_io(error, operation))
    }

    /// The next frame. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self, operation: &'static str) -> Result<Frame> {
        // A report whose sending was dropped half-way goes first: the server waits for its other half.
        if !self.output.is_empty() {
            self.flush(operation).await?;
        }
        loop {
            if let Some(frame) = self.received()? {
                return Ok(frame);
            }
            // Asking for the whole room moves half a frame to the front instead of growing for ever.
            self.input.reserve(READ_BYTES);
            let read = self
                .link
                .read_buf(&mut self.input)
                .await
                .map_err(|error| error::from_io(error, operation))?;
            if read == 0 {
                return Err(error::lost(operation));
            }
        }
    }

    /// The next frame that is here in full already.
    pub(crate) fn received(&mut self) -> Result<Option<Frame>> {
        let Some(header) = self.input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [tag, length @ ..] = *header;
        // The length counts itself but not the tag.
        let total = u32::from_be_bytes(length) as usize + 1;
        if !(HEADER_BYTES..=self.frame_bytes_max).contains(&total) {
            return Err(Error::new(
                code::STREAM_MALFORMED,
                "a message of the server has an impossible length",
            )
            .with("tag", tag.escape_ascii())
            .with("bytes", total));
        }
        if self.input.len() < total {
            // Room for a large frame at once; doubling would copy it several times over.
            self.input.reserve(total - self.input.len());
            return Ok(None);
        }
        Ok(Some(match tag {
            COPY_DATA => {
                let mut frame = self.input.split_to(total);
                frame.advance(HEADER_BYTES);
                Frame::CopyData(frame.freeze())
            }
            COPY_BOTH_RESPONSE => {
                self.input.advance(total);
                Frame::CopyBoth
            }
            _ => {
                // Parsed from a piece of its own, so that a malformed one cannot reach into the next.
                let mut frame = self.input.split_to(total);
                match Message::parse(&mut frame) {
                    Ok(Some(message)) => Frame::Message(message),
                    Ok(None) => return Err(unexpected("parse")),
                    Err(error) => return Err(error::from_io(error, "parse").with("tag", tag.escape_ascii())),
                }
            }
        }))
    }

    /// Sends what is left and closes the link; whether the server still listens does not matter any more.
    pub(crate) async fn close(mut self) {
        postgres_protocol::message::frontend::terminate(&mut self.output);
        if self.flush("close").await.is_ok() {
            let _ = self.link.shutdown().await;
        }
    }
}

/// The server sent what has no place here.
pub(crate) fn unexpected(operation: &'static str) -> Error {
    Error::new(code::STREAM_MALFORMED, "the server sent a message that has no place here")
        .with("operation", operation)
}
