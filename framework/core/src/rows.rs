//! Rows on the move: one contiguous buffer, in the source's own encoding.
//!
//! A row is framed as PostgreSQL frames a tuple of a binary copy: the number of cells (16 bits), then for each cell its length (32 bits,
//! big endian) and its bytes. Lengths below zero are the other two states of a cell. The frame is that one because
//! it is as small as any, and rows of the most frequent source then pass through without being taken apart. Cells
//! are decoded only by who needs them: a mapping, a digest, a sink of another kind.

use std::fmt;

use crate::error::{Error, Result, code};
use crate::table::Shape;
use crate::value::Value;

const NULL: i32 = -1;
const UNCHANGED: i32 = -2;

/// A cell has three states: a value, null, or "as it was before", which is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// Null.
    Null,
    /// The change did not touch it and the source did not send it.
    Unchanged,
    /// A value, in the encoding of its rows.
    Bytes(&'a [u8]),
}

/// One row: a view into a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Row<'a>(&'a [u8]);

impl<'a> Row<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// `stream-malformed` if the cells do not fill the frame exactly.
    pub fn parse(frame: &'a [u8]) -> Result<Self> {
        if frame_length(frame) == Some(frame.len()) { Ok(Self(frame)) } else { Err(malformed()) }
    }

    /// A frame that a [`RowWriter`] of this crate wrote.
    pub(crate) fn written(frame: &'a [u8]) -> Self {
        Self(frame)
    }

    /// The frame.
    pub fn frame(self) -> &'a [u8] {
        self.0
    }

    /// How many cells it has.
    pub fn len(self) -> usize {
        usize::from(u16::from_be_bytes([self.0[0], self.0[1]]))
    }

    /// Whether it has no cells.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The cells, in order.
    pub fn cells(self) -> Cells<'a> {
        Cells { rest: &self.0[2..] }
    }

    /// The cell at a place; [`Cell::Unchanged`] beyond the last.
    pub fn cell(self, at: usize) -> Cell<'a> {
        self.cells().nth(at).unwrap_or(Cell::Unchanged)
    }

    /// Whether any cell was not sent.
    pub fn is_partial(self) -> bool {
        self.cells().any(|cell| cell == Cell::Unchanged)
    }
}

impl fmt::Debug for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No payload in logs: only the states.
        f.debug_list()
            .entries(self.cells().map(|cell| match cell {
                Cell::Null => "null".to_owned(),
                Cell::Unchanged => "unchanged".to_owned(),
                Cell::Bytes(bytes) => format!("{} bytes", bytes.len()),
            }))
            .finish()
    }
}

/// The cells of a row.
#[derive(Clone, Debug)]
pub struct Cells<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    fn next(&mut self) -> Option<Cell<'a>> {
        let (length, rest) = self.rest.split_first_chunk::<4>()?;
        match i32::from_be_bytes(*length) {
            NULL => {
                self.rest = rest;
                Some(Cell::Null)
            }
            UNCHANGED => {
                self.rest = rest;
                Some(Cell::Unchanged)
            }
            length => {
                let (bytes, rest) = rest.split_at(usize::try_from(length).ok()?);
                self.rest = rest;
                Some(Cell::Bytes(bytes))
            }
        }
    }
}

/// How many bytes the frame at the start of a buffer has, if it is there whole and well formed.
pub fn frame_length(buffer: &[u8]) -> Option<usize> {
    let count = u16::from_be_bytes(*buffer.first_chunk::<2>()?);
    let mut at = 2;
    for _ in 0..count {
        let length = i32::from_be_bytes(*buffer.get(at..)?.first_chunk::<4>()?);
        at += 4;
        match length {
            NULL | UNCHANGED => {}
            length => at += usize::try_from(length).ok()?,
        }
    }
    (at <= buffer.len()).then_some(at)
}

/// Appends one frame, cell by cell, to any buffer.
#[derive(Debug)]
pub struct RowWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    count: u16,
}

impl<'a> RowWriter<'a> {
    /// Starts a frame at the end of a buffer.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend([0, 0]);
        Self { out, start, count: 0 }
    }

    /// Appends a cell.
    pub fn cell(&mut self, cell: Cell<'_>) {
        match cell {
            Cell::Null => self.out.extend(NULL.to_be_bytes()),
            Cell::Unchanged => self.out.extend(UNCHANGED.to_be_bytes()),
            Cell::Bytes(bytes) => {
                self.out.extend(i32::try_from(bytes.len()).unwrap_or(i32::MAX).to_be_bytes());
                self.out.extend_from_slice(bytes);
            }
        }
        self.count += 1;
    }

    /// Appends a value in the canonical encoding.
    pub fn value(&mut self, value: &Value<'_>) {
        if *value == Value::Null {
            return self.cell(Cell::Null);
        }
        let at = self.out.len();
        self.out.extend([0; 4]);
        value.encode(self.out);
        let length = i32::try_from(self.out.len() - at - 4).unwrap_or(i32::MAX);
        self.out[at..at + 4].copy_from_slice(&length.to_be_bytes());
        self.count += 1;
    }

    /// Ends the frame.
    pub fn finish(self) {
        self.out[self.start..self.start + 2].copy_from_slice(&self.count.to_be_bytes());
    }
}

/// A key: the frame of a row that has the key's cells alone, in the source's encoding.
///
/// Compare keys with [`Shape::key_of`], not by these bytes: a store may have several encodings of equal values. The
/// order is one of bytes, for collections.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Box<[u8]>")]
pub struct Key(pub Box<[u8]>);

impl TryFrom<Box<[u8]>> for Key {
    type Error = Error;

    /// Reads a key that was kept or carried.
    fn try_from(frame: Box<[u8]>) -> Result<Self> {
        Row::parse(&frame)?;
        Ok(Self(frame))
    }
}

impl Key {
    /// The key as a row of its cells.
    pub fn row(&self) -> Row<'_> {
        Row(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.row().fmt(f)
    }
}

/// Rows in one contiguous buffer.
#[derive(Clone, Default)]
pub struct Rows {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Rows {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows of frames that stand one behind the other.
    ///
    /// # Errors
    /// `stream-malformed` if the bytes are not whole frames.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        let (mut ends, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            at += frame_length(&bytes[at..]).ok_or_else(malformed)?;
            ends.push(at);
        }
        Ok(Self { bytes, ends })
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of all frames, one after another.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The frames of some rows, one behind the other.
    pub fn frames(&self, which: std::ops::Range<usize>) -> &[u8] {
        let end = |rows: usize| if rows == 0 { 0 } else { self.ends[rows - 1] };
        &self.bytes[end(which.start)..end(which.end)]
    }

    /// Forgets the rows and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Appends a row that stands elsewhere.
    pub fn push(&mut self, row: Row<'_>) {
        self.bytes.extend_from_slice(row.0);
        self.end();
    }

    /// Appends a row cell by cell.
    pub fn push_with(&mut self, write: impl FnOnce(&mut RowWriter<'_>)) {
        let mut writer = RowWriter::new(&mut self.bytes);
        write(&mut writer);
        writer.finish();
        self.end();
    }

    /// Appends a row of values in the canonical encoding.
    pub fn push_values<'v>(&mut self, values: impl IntoIterator<Item = Value<'v>>) {
        self.push_with(|row| values.into_iter().for_each(|value| row.value(&value)));
    }

    fn end(&mut self) {
        self.ends.push(self.bytes.len());
    }

    /// The row at a place.
    ///
    /// # Panics
    /// If there is none.
    pub fn row(&self, at: usize) -> Row<'_> {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        Row(&self.bytes[start..self.ends[at]])
    }

    /// The rows, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        (0..self.len()).map(|at| self.row(at))
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rows({} rows, {} bytes)", self.len(), self.bytes.len())
    }
}

impl Shape {
    /// The value of a cell of a row of this shape; `None` if it was not sent.
    ///
    /// # Errors
    /// As the codec's.
    pub fn value<'a>(&self, column: usize, cell: Cell<'a>) -> Result<Option<Value<'a>>> {
        match cell {
            Cell::Null => Ok(Some(Value::Null)),
            Cell::Unchanged => Ok(None),
            Cell::Bytes(bytes) => self.codec.value(&self.table.columns[column], bytes).map(Some),
        }
    }

    /// Cuts the key out of a full row.
    pub fn cut_key(&self, row: Row<'_>) -> Key {
        let mut frame = Vec::with_capacity(2 + 16 * self.table.key.len());
        let mut writer = RowWriter::new(&mut frame);
        self.table.key.iter().for_each(|&at| writer.cell(row.cell(at)));
        writer.finish();
        Key(frame.into())
    }

    /// The identity of a full row's key: equal bytes exactly for equal keys. Appended to `out`.
    ///
    /// # Errors
    /// As the codec's.
    pub fn identity_of_row(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        // The usual key is one leading column: then no cell is walked over twice.
        self.table.key.iter().try_for_each(|&at| self.identity_cell(at, row.cell(at), out))
    }

    /// The identity of a key, as [`Shape::identity_of_row`].
    ///
    /// # Errors
    /// As the codec's.
    pub fn key_of(&self, key: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        self.table.key.iter().zip(key.cells()).try_for_each(|(&at, cell)| self.identity_cell(at, cell, out))
    }

    fn identity_cell(&self, column: usize, cell: Cell<'_>, out: &mut Vec<u8>) -> Result<()> {
        let Cell::Bytes(bytes) = cell else {
            return Err(Error::new(code::STREAM_MALFORMED, "a key has a cell without a value")
                .with("table", &self.table.name)
                .with("column", &self.table.columns[column].name));
        };
        let at = out.len();
        out.extend([0; 4]);
        self.codec.key(&self.table.columns[column], bytes, out)?;
        let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
        out[at..at + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    /// A key for people: `id=17`, or `a=1, b=x`.
    pub fn show_key(&self, key: Row<'_>) -> String {
        let parts = self.table.key.iter().zip(key.cells()).map(|(&at, cell)| {
            let value = self.value(at, cell).ok().flatten().map_or_else(|| "?".to_owned(), |v| v.to_string());
            format!("{}={value}", self.table.columns[at].name)
        });
        parts.collect::<Vec<_>>().join(", ")
    }
}

fn malformed() -> Error {
    Error::new(code::STREAM_MALFORMED, "a row's cells do not fill its frame")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_states_survive() {
        let mut rows = Rows::new();
        rows.push_with(|row| {
            row.cell(Cell::Null);
            row.cell(Cell::Unchanged);
            row.cell(Cell::Bytes(b""));
            row.cell(Cell::Bytes(b"abc"));
        });
        rows.push_values([Value::Int(1), Value::Null]);
        let first: Vec<_> = rows.row(0).cells().collect();
        assert_eq!(first, [Cell::Null, Cell::Unchanged, Cell::Bytes(b""), Cell::Bytes(b"abc")]);
        assert!(rows.row(0).is_partial() && !rows.row(1).is_partial());
        assert_eq!(frame_length(rows.bytes()), Some(rows.row(0).frame().len()));
        assert!(Row::parse(rows.bytes()).is_err(), "two frames are not one");
        let parsed = Rows::parse(rows.bytes().to_vec()).unwrap();
        assert!(parsed.iter().eq(rows.iter()));
        assert!(Rows::parse(rows.bytes()[..rows.bytes().len() - 1].to_vec()).is_err());
        assert_eq!(rows.iter().len(), 2);
    }

    #[test]
    fn a_cut_frame_has_no_length() {
        let mut rows = Rows::new();
        rows.push_with(|row| row.cell(Cell::Bytes(b"abc")));
        for cut in 0..rows.bytes().len() {
            assert_eq!(frame_length(&rows.bytes()[..cut]), None);
        }
    }
}
