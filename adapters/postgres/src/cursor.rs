//! Reading forward through bytes that may be anything.

use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::lsn::Lsn;

/// A place in a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    length: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, length: bytes.len() }
    }

    /// What has not been read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn bytes(&mut self, length: usize, what: &'static str) -> Result<&'a [u8]> {
        let (bytes, rest) = self.bytes.split_at_checked(length).ok_or_else(|| self.cut(what))?;
        self.bytes = rest;
        Ok(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let (bytes, rest) = self.bytes.split_first_chunk().ok_or_else(|| self.cut(what))?;
        self.bytes = rest;
        Ok(*bytes)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8> {
        self.array(what).map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16> {
        self.array(what).map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub(crate) fn i32(&mut self, what: &'static str) -> Result<i32> {
        self.array(what).map(i32::from_be_bytes)
    }

    pub(crate) fn i64(&mut self, what: &'static str) -> Result<i64> {
        self.array(what).map(i64::from_be_bytes)
    }

    pub(crate) fn i16(&mut self, what: &'static str) -> Result<i16> {
        self.array(what).map(i16::from_be_bytes)
    }

    pub(crate) fn lsn(&mut self) -> Result<Lsn> {
        self.array("position").map(u64::from_be_bytes).map(Lsn)
    }

    pub(crate) fn words(&mut self, count: u32, what: &'static str) -> Result<&'a [[u8; 4]]> {
        let length = (count as usize).checked_mul(4).ok_or_else(|| self.cut(what))?;
        let (words, _) = self.bytes(length, what)?.as_chunks();
        Ok(words)
    }

    /// A text up to its zero byte. The server sends it in the encoding we asked for, which is UTF-8.
    pub(crate) fn text(&mut self, what: &'static str) -> Result<&'a str> {
        let length = self.bytes.iter().position(|byte| *byte == 0).ok_or_else(|| self.cut(what))?;
        let text = std::str::from_utf8(&self.bytes[..length])
            .map_err(|error| self.malformed("a text is not UTF-8").with("field", what).because(error))?;
        self.bytes = &self.bytes[length + 1..];
        Ok(text)
    }

    pub(crate) fn end(&self) -> Result<()> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(self.malformed("what was sent is longer than what it says"))
        }
    }

    pub(crate) fn malformed(&self, message: &'static str) -> Error {
        Error::new(code::STREAM_MALFORMED, message)
            .with("offset", self.length - self.bytes.len())
            .with("bytes", self.length)
    }

    fn cut(&self, what: &'static str) -> Error {
        self.malformed("what was sent ends too early").with("field", what)
    }
}
