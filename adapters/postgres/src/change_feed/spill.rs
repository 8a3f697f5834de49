//! Transactions that the server sends before their end: kept in memory, then in a file, until their end is known.
//!
//! A record is the number of the (sub)transaction, the table, the operation and the lengths of two frames, then
//! the frames.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, Write as _};
use std::ops::Range;

use tidegate_core::error::code;
use tidegate_core::{Changes, Error, Op, Result, Row};

const HEADER_BYTES: usize = 4 + 4 + 1 + 4 + 4;

/// One open transaction.
#[derive(Debug, Default)]
pub(crate) struct Spill {
    memory: Vec<u8>,
    file: Option<File>,
    /// Subtransactions that never happened.
    void: HashSet<u32>,
}

impl Spill {
    /// How many bytes it holds in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// Starts a record whose frames the caller appends to the buffer. Returns its place.
    pub(crate) fn begin(&mut self, xid: u32, table: usize, op: Op) -> (usize, &mut Vec<u8>) {
        let at = self.memory.len();
        self.memory.extend(xid.to_be_bytes());
        self.memory.extend(u32::try_from(table).unwrap_or(u32::MAX).to_be_bytes());
        self.memory.push(match op {
            Op::Insert => 0,
            Op::Update => 1,
            Op::Delete => 2,
            Op::Truncate => 3,
        });
        self.memory.extend([0; 8]);
        (at, &mut self.memory)
    }

    /// Ends a record: its row, then its key, were appended.
    pub(crate) fn end(&mut self, at: usize, row: Range<usize>) {
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
        let key = self.memory.len() - row.end;
        self.memory[at + 9..at + 13].copy_from_slice(&length(row.len()));
        self.memory[at + 13..at + 17].copy_from_slice(&length(key));
    }

    /// A subtransaction never happened.
    pub(crate) fn void(&mut self, xid: u32) {
        self.void.insert(xid);
    }

    /// Moves what is in memory to a file.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(tempfile::tempfile().map_err(unwritten)?),
        };
        file.write_all(&self.memory).map_err(unwritten)?;
        self.memory = Vec::new();
        Ok(())
    }

    /// Reads it from its start.
    pub(crate) fn read(self) -> Result<Reader> {
        let file = self.file.map(|mut file| {
            file.rewind().map_err(unwritten)?;
            Ok(BufReader::with_capacity(1 << 18, file))
        });
        Ok(Reader {
            file: file.transpose()?,
            memory: io::Cursor::new(self.memory),
            void: self.void,
            frames: Vec::new(),
        })
    }
}

/// Reads the records of a transaction that was committed.
#[derive(Debug)]
pub(crate) struct Reader {
    file: Option<BufReader<File>>,
    memory: io::Cursor<Vec<u8>>,
    void: HashSet<u32>,
    frames: Vec<u8>,
}

impl Reader {
    /// Appends changes until `out` has grown by so many bytes. Returns whether there are more.
    pub(crate) fn fill(&mut self, out: &mut Changes, bytes: usize) -> Result<bool> {
        let end = out.bytes() + bytes;
        while out.bytes() < end {
            let mut header = [0; HEADER_BYTES];
            if !self.exact(&mut header)? {
                return Ok(false);
            }
            let number =
                |at: usize| header[at..].first_chunk::<4>().map_or(0, |four| u32::from_be_bytes(*four));
            let (row, key) = (number(9) as usize, number(13) as usize);
            let mut frames = std::mem::take(&mut self.frames);
            frames.resize(row + key, 0);
            let is_whole = self.exact(&mut frames)?;
            self.frames = frames;
            if !is_whole {
                return Err(Error::new(code::INTERNAL, "the file of an open transaction is cut"));
            }
            if self.void.contains(&number(0)) {
                continue;
            }
            let op = match header[8] {
                0 => Op::Insert,
                1 => Op::Update,
                2 => Op::Delete,
                _ => Op::Truncate,
            };
            let frame = |range: Range<usize>| {
                (!range.is_empty()).then(|| Row::parse(&self.frames[range])).transpose()
            };
            out.push_rows(number(4) as usize, op, frame(0..row)?, frame(row..row + key)?);
        }
        Ok(true)
    }

    /// Fills the buffer from the file, then from memory; false at the end.
    fn exact(&mut self, buffer: &mut [u8]) -> Result<bool> {
        if buffer.is_empty() {
            return Ok(true);
        }
        if let Some(file) = &mut self.file {
            match file.read_exact(buffer) {
                Ok(()) => return Ok(true),
                // Records end where the file ends, for it is written record by record.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.file = None,
                Err(error) => return Err(unwritten(error)),
            }
        }
        Ok(self.memory.read_exact(buffer).is_ok())
    }
}

fn unwritten(error: io::Error) -> Error {
    Error::new(code::LIMIT_REACHED, "a large open transaction cannot be kept in a file")
        .with("folder", std::env::temp_dir().display())
        .hint("make room in the folder for temporary files (TMPDIR)")
        .because(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::{Cell, Position, RowWriter};

    fn record(spill: &mut Spill, xid: u32, cell: &[u8]) {
        let (at, out) = spill.begin(xid, 1, Op::Insert);
        let start = out.len();
        let mut writer = RowWriter::new(out);
        writer.cell(Cell::Bytes(cell));
        writer.finish();
        let end = out.len();
        spill.end(at, start..end);
    }

    #[test]
    fn a_transaction_is_read_in_order_without_what_is_void() {
        let mut spill = Spill::default();
        record(&mut spill, 7, b"a");
        record(&mut spill, 8, b"b");
        spill.flush().unwrap();
        record(&mut spill, 7, b"c");
        spill.void(8);
        let mut reader = spill.read().unwrap();
        let mut changes = Changes::new();
        while reader.fill(&mut changes, 1).unwrap() {}
        changes.end(7, Position::from_u64(1), 0, true);
        let cells: Vec<_> =
            changes.of(&changes.transactions()[0]).map(|change| change.row.unwrap().cell(0)).collect();
        assert_eq!(cells, [Cell::Bytes(b"a"), Cell::Bytes(b"c")]);
    }
}
