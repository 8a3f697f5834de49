//! What the stream says: the messages of the server's `pgoutput` plugin, protocol versions 1 and 2.
//!
//! ```text
//!   Begin  Relation? Insert|Update|Delete|Truncate|Message …  Commit            a whole transaction, at its commit
//!   StreamStart(xid)  Relation? Insert|… (each with its xid)  StreamStop        a piece of an open one
//!   StreamCommit(xid) | StreamAbort(xid, subxid)                                its end
//! ```
//!
//! Parsing borrows from the frame and allocates nothing for a row; only a relation, sent once per table and
//! session, has its columns walked on demand too.

mod tuple;

use tidegate_core::Result;

pub(crate) use tuple::{Cell, Columns, Tuple};

use crate::cursor::Cursor;
use crate::lsn::Lsn;

/// Reads messages in order; it has to see every one, since streaming changes how the others are written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parser {
    /// Between stream start and stream stop each change carries the transaction it belongs to.
    in_stream: bool,
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Message<'a> {
    /// A transaction begins; its changes follow up to its commit.
    Begin {
        /// Where its commit record begins.
        final_lsn: Lsn,
        /// When it committed, in microseconds since 2000-01-01 UTC.
        committed_at: i64,
        /// The lower half of its top-level number.
        xid: u32,
    },
    /// A transaction is complete.
    Commit {
        /// Where the commit record begins.
        lsn: Lsn,
        /// Where it ends: the position to go on from.
        end_lsn: Lsn,
        /// When it committed, in microseconds since 2000-01-01 UTC.
        committed_at: i64,
    },
    /// The transaction was replicated to this server from elsewhere.
    Origin {
        /// Its commit position there.
        lsn: Lsn,
        /// The name of the origin.
        name: &'a str,
    },
    /// How a table looks from here on.
    Relation(Relation<'a>),
    /// The name of a type that is not built in.
    Type {
        /// The transaction, when streamed.
        xid: Option<u32>,
        /// Its number.
        oid: u32,
        /// Its schema.
        schema: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// The transaction, when streamed; of a subtransaction, its own number.
        xid: Option<u32>,
        /// The table.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// The transaction, when streamed.
        xid: Option<u32>,
        /// The table.
        relation: u32,
        /// The row as it was, when its identity changed or the table's identity is full.
        old: Option<Old<'a>>,
        /// The row as it is; large columns that did not change are [`Cell::Unchanged`].
        new: Tuple<'a>,
    },
    /// A removed row.
    Delete {
        /// The transaction, when streamed.
        xid: Option<u32>,
        /// The table.
        relation: u32,
        /// What is known of it.
        old: Old<'a>,
    },
    /// Emptied tables.
    Truncate {
        /// The transaction, when streamed.
        xid: Option<u32>,
        /// Tables that refer to these were emptied too.
        cascade: bool,
        /// Their sequences start over.
        restart_identity: bool,
        /// The tables.
        relations: Relations<'a>,
    },
    /// What somebody wrote with `pg_logical_emit_message`.
    Emitted {
        /// The transaction, when streamed and transactional.
        xid: Option<u32>,
        /// It comes with its transaction, and not when that is rolled back.
        transactional: bool,
        /// Where it stands.
        lsn: Lsn,
        /// Whose it is.
        prefix: &'a str,
        /// What it says.
        content: &'a [u8],
    },
    /// A piece of a transaction that is still open.
    StreamStart {
        /// Its top-level number.
        xid: u32,
        /// Whether this is its first piece.
        first: bool,
    },
    /// The end of the piece.
    StreamStop,
    /// A streamed transaction is complete.
    StreamCommit {
        /// Its top-level number.
        xid: u32,
        /// Where the commit record begins.
        lsn: Lsn,
        /// Where it ends.
        end_lsn: Lsn,
        /// When it committed, in microseconds since 2000-01-01 UTC.
        committed_at: i64,
    },
    /// A streamed transaction, or one of its subtransactions, never happened.
    StreamAbort {
        /// The top-level number.
        xid: u32,
        /// What is void: all of it, when the numbers are equal.
        subxid: u32,
    },
}

/// How a table looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Relation<'a> {
    /// The transaction, when streamed.
    pub(crate) xid: Option<u32>,
    /// The number its rows carry.
    pub(crate) oid: u32,
    /// Its schema; `pg_catalog` is sent as an empty text and given back by its name here.
    pub(crate) schema: &'a str,
    /// Its name.
    pub(crate) name: &'a str,
    /// What the old rows of its changes carry.
    pub(crate) identity: Identity,
    /// Its columns, in the order of the cells of its rows.
    pub(crate) columns: Columns<'a>,
}

/// What the old rows of a table's changes carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The primary key.
    Default,
    /// Nothing: updates and deletes are refused by the server.
    Nothing,
    /// Every column.
    Full,
    /// The columns of a chosen index.
    Index,
}

/// A row as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Old<'a> {
    /// Its identity; all other cells are null and mean nothing.
    Key(Tuple<'a>),
    /// All of it.
    Full(Tuple<'a>),
}

impl<'a> Old<'a> {
    /// The cells, whatever they mean.
    pub(crate) fn tuple(self) -> Tuple<'a> {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => tuple,
        }
    }
}

/// The numbers of several tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Relations<'a>(&'a [[u8; 4]]);

impl<'a> Relations<'a> {
    /// The numbers.
    pub(crate) fn iter(self) -> impl ExactSizeIterator<Item = u32> + 'a {
        self.0.iter().map(|bytes| u32::from_be_bytes(*bytes))
    }
}

impl Parser {
    /// A parser for the start of a stream.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Reads one message.
    ///
    /// # Errors
    /// `stream-malformed`, with the offset in the message. Never panics, whatever the bytes are.
    pub(crate) fn parse<'a>(&mut self, bytes: &'a [u8]) -> Result<Message<'a>> {
        let mut cursor = Cursor::new(bytes);
        let message = self.message(&mut cursor)?;
        cursor.end()?;
        match message {
            Message::StreamStart { .. } => self.in_stream = true,
            Message::StreamStop => self.in_stream = false,
            _ => {}
        }
        Ok(message)
    }

    fn message<'a>(self, cursor: &mut Cursor<'a>) -> Result<Message<'a>> {
        let kind = cursor.u8("kind")?;
        let xid = match kind {
            b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' if self.in_stream => {
                Some(cursor.u32("transaction")?)
            }
            _ => None,
        };
        Ok(match kind {
            b'B' => Message::Begin {
                final_lsn: cursor.lsn()?,
                committed_at: cursor.i64("time")?,
                xid: cursor.u32("transaction")?,
            },
            b'C' => {
                cursor.u8("flags")?;
                Message::Commit {
                    lsn: cursor.lsn()?,
                    end_lsn: cursor.lsn()?,
                    committed_at: cursor.i64("time")?,
                }
            }
            b'O' => Message::Origin { lsn: cursor.lsn()?, name: cursor.text("origin")? },
            b'R' => Message::Relation(relation(xid, cursor)?),
            b'Y' => Message::Type {
                xid,
                oid: cursor.u32("type")?,
                schema: schema(cursor)?,
                name: cursor.text("type name")?,
            },
            b'I' => {
                let relation = cursor.u32("relation")?;
                match cursor.u8("row kind")? {
                    b'N' => Message::Insert { xid, relation, new: Tuple::read(cursor)? },
                    _ => return Err(cursor.malformed("an insert without a new row")),
                }
            }
            b'U' => update(xid, cursor)?,
            b'D' => {
                let relation = cursor.u32("relation")?;
                let kind = cursor.u8("row kind")?;
                match old(kind, cursor)? {
                    Some(old) => Message::Delete { xid, relation, old },
                    None => return Err(cursor.malformed("a delete without an old row")),
                }
            }
            b'T' => {
                let count = cursor.u32("count")?;
                let flags = cursor.u8("flags")?;
                let relations = cursor.words(count, "relation")?;
                Message::Truncate {
                    xid,
                    cascade: flags & 1 != 0,
                    restart_identity: flags & 2 != 0,
                    relations: Relations(relations),
                }
            }
            b'M' => {
                let transactional = cursor.u8("flags")? & 1 != 0;
                let lsn = cursor.lsn()?;
                let prefix = cursor.text("prefix")?;
                let length = cursor.u32("length")?;
                let content = cursor.bytes(length as usize, "content")?;
                // Outside of a transaction the server writes zero for the number.
                let xid = xid.filter(|_| transactional);
                Message::Emitted { xid, transactional, lsn, prefix, content }
            }
            b'S' => Message::StreamStart { xid: cursor.u32("transaction")?, first: cursor.u8("first")? == 1 },
            b'E' => Message::StreamStop,
            b'c' => {
                let xid = cursor.u32("transaction")?;
                cursor.u8("flags")?;
                Message::StreamCommit {
                    xid,
                    lsn: cursor.lsn()?,
                    end_lsn: cursor.lsn()?,
                    committed_at: cursor.i64("time")?,
                }
            }
            b'A' => Message::StreamAbort {
                xid: cursor.u32("transaction")?,
                subxid: cursor.u32("subtransaction")?,
            },
            _ => return Err(cursor.malformed("a message of an unknown kind")),
        })
    }
}

fn relation<'a>(xid: Option<u32>, cursor: &mut Cursor<'a>) -> Result<Relation<'a>> {
    Ok(Relation {
        xid,
        oid: cursor.u32("relation")?,
        schema: schema(cursor)?,
        name: cursor.text("name")?,
        identity: match cursor.u8("identity")? {
            b'd' => Identity::Default,
            b'n' => Identity::Nothing,
            b'f' => Identity::Full,
            b'i' => Identity::Index,
            _ => return Err(cursor.malformed("an unknown replica identity")),
        },
        columns: Columns::read(cursor)?,
    })
}

fn schema<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str> {
    Ok(match cursor.text("schema")? {
        "" => "pg_catalog",
        schema => schema,
    })
}

fn update<'a>(xid: Option<u32>, cursor: &mut Cursor<'a>) -> Result<Message<'a>> {
    let relation = cursor.u32("relation")?;
    let mut kind = cursor.u8("row kind")?;
    let old = old(kind, cursor)?;
    if old.is_some() {
        kind = cursor.u8("row kind")?;
    }
    if kind != b'N' {
        return Err(cursor.malformed("an update without a new row"));
    }
    Ok(Message::Update { xid, relation, old, new: Tuple::read(cursor)? })
}

fn old<'a>(kind: u8, cursor: &mut Cursor<'a>) -> Result<Option<Old<'a>>> {
    Ok(match kind {
        b'K' => Some(Old::Key(Tuple::read(cursor)?)),
        b'O' => Some(Old::Full(Tuple::read(cursor)?)),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
