//! Turns frames of the stream into changes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::{Changes, Error, Mark, Op, Position, Result, RowWriter, Table};
use tokio::time::Instant;

use crate::binary::time::Timestamp;
use crate::change_feed::relations::{Mapped, Relations};
use crate::change_feed::spill::{self, Spill};
use crate::lsn::Lsn;
use crate::pgoutput::{Message, Old, Parser, Relation, Tuple};
use crate::wire::WalFrame;

/// What one call gives at most, and the size of a piece of a large transaction.
const BYTES_MAX: usize = 4 << 20;
const CHANGES_MAX: usize = 20_000;
/// What open transactions may have in memory together, and one of them beside while a piece of it comes.
const OPEN_BYTES_MAX: usize = 16 << 20;

#[derive(Debug)]
pub(crate) struct Reader {
    tables: Vec<Arc<Table>>,
    parser: Parser,
    relations: Relations,
    /// Frames not yet read.
    pending: VecDeque<WalFrame>,
    /// What was read; the last transaction may not be closed.
    changes: Changes,
    /// The transaction that is being read.
    current: Option<Current>,
    /// Transactions that have not ended, by number.
    open: HashMap<u32, Open>,
    /// Tables of which rows came that lack a column, by place and the column's: from before it, or from after it.
    short: Vec<(usize, usize)>,
    /// The number of the transaction that the stream is in.
    streamed: Option<u32>,
    /// A streamed transaction that has ended and is being delivered.
    delivery: Option<(Current, spill::Reader)>,
    /// A full transaction number near those that come.
    reference: u64,
    /// Everything before was read.
    position: Lsn,
    /// How far the server is, as it said last.
    sent: Lsn,
    heard: Instant,
}

/// A transaction that has not ended, with the tables as it sees them.
#[derive(Debug, Default)]
struct Open {
    spill: Spill,
    relations: Relations,
    /// Tables that it made others, by the (sub)transaction that did. If that is rolled back, nothing has happened.
    errors: BTreeMap<u32, Error>,
}

/// A transaction whose end is known.
#[derive(Clone, Debug)]
struct Current {
    mark: Mark,
    /// The position of its pieces but the last.
    within: Lsn,
    end: Lsn,
    committed_at: i64,
    /// Places of its first change that was not handed over.
    first: usize,
    bytes: usize,
    /// A piece was handed over.
    is_torn: bool,
}

impl Reader {
    pub(crate) fn new(tables: &[Arc<Table>], reference: u64, from: Lsn) -> Self {
        Self {
            tables: tables.to_vec(),
            parser: Parser::new(),
            relations: Relations::new(),
            pending: VecDeque::new(),
            changes: Changes::new(),
            current: None,
            open: HashMap::new(),
            short: Vec::new(),
            streamed: None,
            delivery: None,
            reference,
            position: from,
            sent: from,
            heard: Instant::now(),
        }
    }

    /// Every change before this is handed over, or will be with the next call of [`Reader::hand_over`].
    pub(crate) fn position(&self) -> Lsn {
        self.position
    }

    /// How far the server was when it was last heard.
    pub(crate) fn sent(&self) -> Lsn {
        self.sent
    }

    /// How long no change has come.
    pub(crate) fn quiet(&self) -> Duration {
        self.heard.elapsed()
    }

    /// A table of which rows came that lack a column, by place and the column's, until it was looked up.
    pub(crate) fn short(&self) -> Option<(usize, usize)> {
        self.short.last().copied()
    }

    pub(crate) fn looked_up(&mut self) {
        self.short.pop();
    }

    /// Whether more is to be taken from the stream: what is read at once, and not what would wait here.
    pub(crate) fn has_room(&self) -> bool {
        self.delivery.is_none() && !self.is_full()
    }

    pub(crate) fn add(&mut self, batch: Vec<WalFrame>) {
        // Once a batch: a look at the clock can cost as much as a change.
        if batch.iter().any(|frame| matches!(frame, WalFrame::Data { .. })) {
            self.heard = Instant::now();
        }
        self.pending.extend(batch);
    }

    fn is_full(&self) -> bool {
        self.changes.bytes() >= BYTES_MAX || self.changes.count() >= CHANGES_MAX
    }

    /// Whether there is a transaction, or a piece of one, to be handed over.
    pub(crate) fn has_something(&self) -> bool {
        !self.changes.transactions().is_empty()
    }

    /// Reads what is there, until there is enough.
    pub(crate) fn read(&mut self) -> Result<()> {
        loop {
            self.deliver()?;
            if self.is_full() || self.delivery.is_some() {
                break;
            }
            let Some(frame) = self.pending.pop_front() else { break };
            self.take(&frame)?;
        }
        // A transaction that goes on is cut when it is large, or when what stands before it would wait for it.
        if let Some(current) = &mut self.current
            && (self.changes.bytes() - current.bytes >= BYTES_MAX
                || self.changes.count() - current.first >= CHANGES_MAX
                || self.pending.is_empty() && !self.changes.transactions().is_empty())
            && self.changes.count() > current.first
        {
            current.is_torn = true;
            let within = Position::from_u64(current.within.0);
            self.changes.end(current.mark, within, current.committed_at, false);
            (current.first, current.bytes) = (self.changes.count(), self.changes.bytes());
        }
        Ok(())
    }

    /// Gives what was read. The transaction that goes on begins anew in the next buffer.
    pub(crate) fn hand_over(&mut self, out: &mut Changes) {
        if !self.has_something() {
            return;
        }
        if out.is_empty() && self.current.as_ref().is_none_or(|c| c.first == self.changes.count()) {
            *out = std::mem::take(&mut self.changes);
        } else {
            let all = std::mem::take(&mut self.changes);
            for transaction in all.transactions() {
                for change in all.of(transaction) {
                    out.push_rows(change.table, change.op, change.row, change.old_key);
                }
                out.end(
                    transaction.mark,
                    transaction.position.clone(),
                    transaction.committed_at,
                    transaction.ends,
                );
            }
            let open = self.current.as_ref().map_or(all.count(), |current| current.first);
            for at in open..all.count() {
                let change = all.change(at);
                self.changes.push_rows(change.table, change.op, change.row, change.old_key);
            }
        }
        if let Some(current) = &mut self.current {
            (current.first, current.bytes) = (0, 0);
        }
    }

    /// Goes on with the streamed transaction that has ended.
    fn deliver(&mut self) -> Result<()> {
        let Some((current, reader)) = &mut self.delivery else { return Ok(()) };
        if self.changes.bytes() >= BYTES_MAX {
            return Ok(());
        }
        let before = self.changes.count();
        let goes_on = reader.fill(&mut self.changes, BYTES_MAX)?;
        if goes_on {
            current.is_torn = true;
            self.changes.end(current.mark, Position::from_u64(current.within.0), current.committed_at, false);
            return Ok(());
        }
        if current.is_torn || self.changes.count() > before {
            self.changes.end(current.mark, Position::from_u64(current.end.0), current.committed_at, true);
        }
        self.position = self.position.max(current.end);
        self.delivery = None;
        Ok(())
    }

    fn take(&mut self, frame: &WalFrame) -> Result<()> {
        let payload = match frame {
            WalFrame::Keepalive { sent, .. } => {
                self.sent = self.sent.max(*sent);
                if self.current.is_none() {
                    self.position = self.position.max(*sent);
                }
                return Ok(());
            }
            WalFrame::Data { payload, .. } => payload,
        };
        match self.parser.parse(payload)? {
            Message::Begin { final_lsn, committed_at, xid } => {
                self.current = Some(self.current(xid, final_lsn, Lsn::ZERO, committed_at));
            }
            Message::Commit { end_lsn, .. } => {
                if let Some(current) = self.current.take()
                    && (current.is_torn || self.changes.count() > current.first)
                {
                    self.changes.end(current.mark, Position::from_u64(end_lsn.0), current.committed_at, true);
                }
                self.position = self.position.max(end_lsn);
            }
            Message::Relation(relation) => self.describe(&relation)?,
            Message::Insert { xid, relation, new } => {
                self.change(xid, relation, Op::Insert, Some(new), None)?;
            }
            Message::Update { xid, relation, old, new } => {
                self.change(xid, relation, Op::Update, Some(new), old)?;
            }
            Message::Delete { xid, relation, old } => {
                self.change(xid, relation, Op::Delete, None, Some(old))?;
            }
            Message::Truncate { xid, relations, .. } => {
                relations.iter().try_for_each(|of| self.change(xid, of, Op::Truncate, None, None))?;
            }
            Message::StreamStart { xid, .. } => {
                self.open.entry(xid).or_default();
                self.streamed = Some(xid);
            }
            Message::StreamStop => {
                self.streamed = None;
                self.bound()?;
            }
            Message::StreamAbort { xid, subxid } if xid == subxid => drop(self.open.remove(&xid)),
            Message::StreamAbort { xid, subxid } => {
                if let Some(open) = self.open.get_mut(&xid) {
                    open.spill.void(subxid);
                    open.errors.remove(&subxid);
                    // As the server does: it describes every table anew to what is left of the transaction.
                    open.relations.clear();
                }
            }
            Message::StreamCommit { xid, lsn, end_lsn, committed_at } => {
                let Open { spill, relations, errors } = self.open.remove(&xid).unwrap_or_default();
                if let Some(error) = errors.into_values().next() {
                    return Err(error);
                }
                // The server says again how a table looks only when that changes.
                self.relations.extend(relations);
                let current = self.current(xid, lsn, end_lsn, committed_at);
                self.delivery = Some((current, spill.read()?));
            }
            Message::Origin { .. } | Message::Type { .. } | Message::Emitted { .. } => {}
        }
        Ok(())
    }

    /// Takes what a table is like from here on.
    fn describe(&mut self, relation: &Relation<'_>) -> Result<()> {
        let mapped = Mapped::new(&self.tables, relation);
        if let Ok(Some(Mapped { table, lacks: Some(column), .. })) = &mapped {
            self.short.push((*table, *column));
        }
        let streamed = self.streamed.and_then(|top| Some((top, self.open.get_mut(&top)?)));
        let Some((top, open)) = streamed else {
            self.relations.insert(relation.oid, mapped?.map(Arc::new));
            return Ok(());
        };
        let mapped = mapped.unwrap_or_else(|error| {
            open.errors.entry(relation.xid.unwrap_or(top)).or_insert(error);
            None
        });
        open.relations.insert(relation.oid, mapped.map(Arc::new));
        Ok(())
    }

    fn current(&mut self, xid: u32, commit: Lsn, end: Lsn, committed_at: i64) -> Current {
        Current {
            mark: self.widen(xid),
            // Behind the transaction before, which may end just where this commit begins, as may where a flow began.
            within: Lsn(commit.max(self.position).0 + 1),
            end,
            committed_at: Timestamp(committed_at).unix_micros().unwrap_or(0),
            first: self.changes.count(),
            bytes: self.changes.bytes(),
            is_torn: false,
        }
    }

    /// The full number of a transaction: the one nearest to those before it.
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is meant")]
    fn widen(&mut self, xid: u32) -> Mark {
        let distance = xid.wrapping_sub(self.reference as u32).cast_signed();
        let full = self.reference.wrapping_add_signed(distance.into());
        self.reference = self.reference.max(full);
        full
    }

    fn change(
        &mut self,
        xid: Option<u32>,
        relation: u32,
        op: Op,
        new: Option<Tuple<'_>>,
        old: Option<Old<'_>>,
    ) -> Result<()> {
        let streamed = self.streamed.and_then(|top| Some((top, self.open.get_mut(&top)?)));
        let mapped = match &streamed {
            Some((_, open)) => open.relations.get(&relation).or_else(|| self.relations.get(&relation)),
            None => self.relations.get(&relation),
        };
        let mapped = match mapped {
            Some(Some(mapped)) => Arc::clone(mapped),
            Some(None) => return Ok(()),
            None => {
                let what = "the server sent a change of a table that it has not described";
                return Err(Error::new(code::STREAM_MALFORMED, what).with("relation", relation));
            }
        };
        let old_key = match (new, old) {
            (None, Some(old)) => Some(old.tuple()),
            (Some(new), Some(old)) => Some(old.tuple()).filter(|old| mapped.is_moved(*old, new)),
            _ => None,
        };
        let mut row = |out: &mut RowWriter<'_>| {
            if let Some(new) = new {
                mapped.write_row(new, old, out);
            }
        };
        let mut key = |out: &mut RowWriter<'_>| {
            if let Some(old) = old_key {
                mapped.write_key(old, out);
            }
        };
        let Some((top, Open { spill, .. })) = streamed else {
            let row: Option<&mut dyn FnMut(&mut RowWriter<'_>)> =
                if new.is_some() { Some(&mut row) } else { None };
            let key: Option<&mut dyn FnMut(&mut RowWriter<'_>)> =
                if old_key.is_some() { Some(&mut key) } else { None };
            self.changes.push(mapped.table, op, row, key);
            return Ok(());
        };
        let (at, out) = spill.begin(xid.unwrap_or(top), mapped.table, op);
        let start = out.len();
        if new.is_some() {
            let mut writer = RowWriter::new(out);
            row(&mut writer);
            writer.finish();
        }
        let end = out.len();
        if old_key.is_some() {
            let mut writer = RowWriter::new(out);
            key(&mut writer);
            writer.finish();
        }
        spill.end(at, start..end);
        // The server ends a piece when its own memory is full, which may be far larger.
        if spill.bytes() > OPEN_BYTES_MAX { spill.flush() } else { Ok(()) }
    }

    /// Keeps what open transactions have in memory within its limit.
    fn bound(&mut self) -> Result<()> {
        if self.open.values().map(|open| open.spill.bytes()).sum::<usize>() > OPEN_BYTES_MAX {
            self.open.values_mut().try_for_each(|open| open.spill.flush())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tidegate_core::{Column, TableName, Type};

    const TABLE: u32 = 16_500;

    fn reader() -> Reader {
        let column = |name: &str, kind, native_id| Column { native_id, ..Column::new(name, kind) };
        let table = Table {
            name: TableName::new("public", "t"),
            native_id: TABLE,
            columns: vec![column("id", Type::Int { bits: 64 }, 20), column("v", Type::Text, 25)],
            key: vec![0],
            rows_estimated: 0,
            bytes_estimated: 0,
        };
        Reader::new(&[Arc::new(table)], 700, Lsn(1))
    }

    fn message(kind: u8, parts: &[&[u8]]) -> WalFrame {
        let payload = Bytes::from([&[kind], parts.concat().as_slice()].concat());
        WalFrame::Data { start: Lsn(0), sent: Lsn(0), sent_at: 0, payload }
    }

    const XID: &[u8] = &701_u32.to_be_bytes();

    const SUBXID: &[u8] = &702_u32.to_be_bytes();

    /// The table with its key and these columns of text.
    fn described(xid: &[u8], texts: &[&str]) -> WalFrame {
        let column = |flags: u8, name: &str, oid: u32| {
            [&[flags], name.as_bytes(), &[0], &oid.to_be_bytes(), &[0xFF; 4]].concat()
        };
        let texts: Vec<u8> = texts.iter().flat_map(|name| column(0, name, 25)).collect();
        let count = 1 + u8::try_from(texts.len() / column(0, "v", 25).len()).unwrap();
        let (table, id) = (TABLE.to_be_bytes(), column(1, "id", 20));
        message(b'R', &[xid, &table, b"public\0t\0d", &[0, count], &id, &texts])
    }

    fn inserted(xid: &[u8], id: u64, v: &[u8]) -> WalFrame {
        let length = u32::try_from(v.len()).unwrap().to_be_bytes();
        let id = id.to_be_bytes();
        message(b'I', &[xid, &TABLE.to_be_bytes(), b"N", &[0, 2, b'b', 0, 0, 0, 8], &id, b"b", &length, v])
    }

    /// The values of the second column, of what these frames say.
    fn texts(frames: Vec<WalFrame>) -> Result<Vec<Option<Vec<u8>>>> {
        let (mut reader, mut texts) = (reader(), Vec::new());
        reader.add(frames);
        reader.read()?;
        while reader.delivery.is_some() || reader.has_something() {
            let mut changes = Changes::new();
            reader.hand_over(&mut changes);
            texts.extend((0..changes.count()).map(|at| match changes.change(at).row.unwrap().cell(1) {
                tidegate_core::Cell::Bytes(bytes) => Some(bytes.to_vec()),
                _ => None,
            }));
            reader.read()?;
        }
        Ok(texts)
    }

    /// Found by reading: the description that another transaction had sent since was forgotten, and the server, which took
    /// back the older one, does not send it again. Rows lost the value of the new column.
    #[test]
    fn what_a_savepoint_said_of_a_table_is_gone_with_it() {
        let frames = vec![
            message(b'S', &[XID, &[1]]),
            described(SUBXID, &[]),
            message(b'E', &[]),
            message(b'A', &[XID, SUBXID]),
            message(b'B', &[&[0; 16], &703_u32.to_be_bytes()]),
            described(&[], &["v"]),
            inserted(&[], 1, b"a"),
            message(b'C', &[&[0; 25]]),
            message(b'c', &[XID, &[0; 25]]),
            message(b'B', &[&[0; 16], &704_u32.to_be_bytes()]),
            inserted(&[], 2, b"b"),
            message(b'C', &[&[0; 25]]),
        ];
        assert_eq!(texts(frames).unwrap(), [Some(b"a".to_vec()), Some(b"b".to_vec())]);
    }

    /// The server describes a table once to a streamed transaction, and anew after any savepoint of it was taken back.
    #[test]
    fn a_change_of_a_table_is_an_error_unless_its_savepoint_is_gone() {
        let other = &705_u32.to_be_bytes();
        for (gone, expected) in [(SUBXID, None), (other, Some(code::SCHEMA_CHANGED))] {
            let frames = vec![
                message(b'S', &[XID, &[1]]),
                described(SUBXID, &["v", "w"]),
                message(b'E', &[]),
                message(b'A', &[XID, gone]),
                message(b'S', &[XID, &[0]]),
                described(XID, &["v"]),
                inserted(XID, 1, b"a"),
                message(b'E', &[]),
                message(b'c', &[XID, &[0; 25]]),
            ];
            match expected {
                None => assert_eq!(texts(frames).unwrap(), [Some(b"a".to_vec())]),
                Some(expected) => assert_eq!(texts(frames).unwrap_err().code(), expected),
            }
        }
    }

    /// The server describes every table before its first change: one that is passed over would be a change that is lost.
    #[test]
    fn a_change_of_a_table_that_was_never_described_is_malformed() {
        let other = 16_600_u32.to_be_bytes();
        for xid in [XID, &[]] {
            let read = |frames: &[&WalFrame]| {
                let mut reader = reader();
                if !xid.is_empty() {
                    reader.add(vec![message(b'S', &[XID, &[1]])]);
                }
                reader.add(frames.iter().map(|frame| (*frame).clone()).collect());
                reader.read()
            };
            let described = message(b'R', &[xid, &other, b"public\0other\0d", &[0, 0]]);
            for change in [
                message(b'I', &[xid, &other, b"N", &[0, 1, b'n']]),
                message(b'T', &[xid, &[0, 0, 0, 1], &[0], &other]),
            ] {
                assert_eq!(read(&[&change]).unwrap_err().code(), code::STREAM_MALFORMED);
                // The flow does not have it.
                read(&[&described, &change]).unwrap();
            }
        }
    }

    /// The server sends as much at a time as its `logical_decoding_work_mem` says.
    #[test]
    fn a_piece_of_an_open_transaction_is_bounded_while_it_comes() {
        let mut reader = reader();
        let mut take = |frame: WalFrame| -> usize {
            reader.add(vec![frame]);
            reader.read().unwrap();
            reader.open.values().map(|open| open.spill.bytes()).sum()
        };
        take(message(b'S', &[XID, &[1]]));
        take(described(XID, &["v"]));
        let wide = vec![b'v'; 1 << 20];
        for id in 0..40 {
            let bytes = take(inserted(XID, id, &wide));
            assert!(bytes <= OPEN_BYTES_MAX, "{bytes} bytes are in memory");
        }
        take(message(b'E', &[]));
        take(message(b'c', &[XID, &[0; 25]]));
        let mut rows = 0;
        while reader.delivery.is_some() || reader.has_something() {
            let mut changes = Changes::new();
            reader.hand_over(&mut changes);
            rows += changes.count();
            // Found by reading: with each piece of it more of what comes behind it was taken, and waited in memory.
            assert_eq!(reader.has_room(), reader.delivery.is_none());
            reader.read().unwrap();
        }
        assert_eq!(rows, 40);
    }
}
