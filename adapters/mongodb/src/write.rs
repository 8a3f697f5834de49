//! Turns rows into the statements that write them.

use std::ops::Range;

use mongodb::bson::raw::{CString, cstr};
use mongodb::bson::{Binary, RawArrayBuf, RawBson, RawDocument, RawDocumentBuf};
use tidegate_core::error::code;
use tidegate_core::port::{Batch, Route, TableBatch};
use tidegate_core::{Cell, Error, Key, Result, Row, Value};

use crate::{codec, documents, extended};

/// How many statements one transaction has at most.
pub(crate) const STATEMENTS_LIMIT: usize = 1_000;
/// How many bytes one transaction has at most, unless one document has more: a command is a document itself.
const BYTES_LIMIT: usize = 8 << 20;

/// What a statement does; statements of one kind and table go in one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Delete,
    Upsert,
    Update,
}

/// One write.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) kind: Kind,
    pub(crate) table: usize,
    pub(crate) body: RawDocumentBuf,
    /// The place among the rows of its kind in the batch. Its key is cut from there when a hole has to be named.
    pub(crate) row: usize,
}

impl Statement {
    /// What finds its document.
    pub(crate) fn filter(&self) -> Result<&RawDocument> {
        self.body.get_document("q").map_err(extended::unreadable)
    }

    /// The statement that removes its document.
    pub(crate) fn removal(&self) -> Result<Self> {
        let body = removal(self.filter()?.to_owned());
        Ok(Self { kind: Kind::Delete, table: self.table, body, row: self.row })
    }

    /// The statement that removes a document that is in no batch.
    pub(crate) fn removal_of(table: usize, document: &RawDocument) -> Result<Self> {
        let body = removal(by_id(codec::id_of(document)?.into()));
        Ok(Self { kind: Kind::Delete, table, body, row: 0 })
    }
}

/// One route, with the names of its fields.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) route: Route,
    pub(crate) collection: String,
    names: Vec<CString>,
    /// Rows are whole documents and go through as they are.
    is_of_documents: bool,
}

impl Writer {
    pub(crate) fn new(route: &Route) -> Result<Self> {
        let is_of_documents =
            route.shape.codec.encoding() == codec::BSON && codec::is_of_documents(&route.shape.table);
        Ok(Self {
            route: route.clone(),
            collection: route.target.name.to_string(),
            names: route.target.columns.iter().map(|c| codec::name(&c.name)).collect::<Result<_>>()?,
            is_of_documents,
        })
    }

    /// The documents of full rows.
    pub(crate) fn documents(&self, batch: &TableBatch) -> Result<Vec<RawDocumentBuf>> {
        batch.upserts.iter().map(|row| self.document(row)).collect()
    }

    /// The statement that puts a document in place.
    pub(crate) fn upsert(&self, table: usize, row: usize, document: RawDocumentBuf) -> Result<Statement> {
        let id = RawBson::from(codec::id_of(&document)?);
        let mut body = RawDocumentBuf::new();
        body.append(cstr!("q"), by_id(id));
        if has_dollars(&document)? {
            body.append(cstr!("u"), replacement(document));
        } else {
            body.append(cstr!("u"), document);
        }
        body.append(cstr!("upsert"), true);
        Ok(Statement { kind: Kind::Upsert, table, body, row })
    }

    /// The statements of deletions.
    pub(crate) fn deletes(&self, table: usize, batch: &TableBatch, out: &mut Vec<Statement>) -> Result<()> {
        for (row, key) in batch.deletes.iter().enumerate() {
            let body = removal(by_id(self.id(key)?));
            out.push(Statement { kind: Kind::Delete, table, body, row });
        }
        Ok(())
    }

    /// The statements of rows that were sent in part.
    pub(crate) fn updates(&self, table: usize, batch: &TableBatch, out: &mut Vec<Statement>) -> Result<()> {
        for (place, row) in batch.updates.iter().enumerate() {
            let key = self.route.shape.cut_key(row);
            let id = self.id(key.row())?;
            let mut set = RawDocumentBuf::new();
            if !self.is_of_documents {
                for (at, cell) in row.cells().enumerate() {
                    if cell != Cell::Unchanged && !self.is_key(at) {
                        set.append(self.names[at].clone(), self.held(at, cell, key.row())?);
                    }
                }
            }
            let mut change = RawDocumentBuf::new();
            if !set.is_empty() {
                change.append(cstr!("$set"), set);
            } else {
                // Whether the row is there has to be found out all the same.
                let mut same = RawDocumentBuf::new();
                same.append(cstr!("_id"), id.clone());
                change.append(cstr!("$setOnInsert"), same);
            }
            let mut body = RawDocumentBuf::new();
            body.append(cstr!("q"), by_id(id));
            body.append(cstr!("u"), change);
            out.push(Statement { kind: Kind::Update, table, body, row: place });
        }
        Ok(())
    }

    /// The key of a statement of this batch, as the source has it.
    pub(crate) fn key(&self, batch: &Batch, statement: &Statement) -> Result<Key> {
        let part = batch.tables.iter().find(|part| part.table == statement.table);
        let part =
            part.ok_or_else(|| Error::new(code::INTERNAL, "a statement is of no table of its batch"))?;
        Ok(match statement.kind {
            Kind::Delete => Key(part.deletes.row(statement.row).frame().into()),
            Kind::Upsert => self.route.shape.cut_key(part.upserts.row(statement.row)),
            Kind::Update => self.route.shape.cut_key(part.updates.row(statement.row)),
        })
    }

    fn is_key(&self, at: usize) -> bool {
        self.route.shape.table.key.contains(&at)
    }

    fn document(&self, row: Row<'_>) -> Result<RawDocumentBuf> {
        if self.is_of_documents {
            let Cell::Bytes(bytes) = row.cell(1) else { return Err(self.not_full()) };
            return Ok(codec::whole(bytes)?.to_owned());
        }
        let key = self.route.shape.cut_key(row);
        let mut document = RawDocumentBuf::new();
        document.append(cstr!("_id"), self.id(key.row())?);
        for (at, cell) in row.cells().enumerate().filter(|(at, _)| !self.is_key(*at)) {
            document.append(self.names[at].clone(), self.held(at, cell, key.row())?);
        }
        Ok(document)
    }

    /// The `_id` of a key: the value of its only column, or a document of its columns.
    fn id(&self, key: Row<'_>) -> Result<RawBson> {
        if self.is_of_documents {
            return codec::id_of_key(&self.route.shape.table, key);
        }
        let places = &self.route.shape.table.key;
        let mut fields = RawDocumentBuf::new();
        for (&at, cell) in places.iter().zip(key.cells()) {
            let held = self.held(at, cell, key)?;
            if places.len() > 1 {
                fields.append(self.names[at].clone(), held);
            } else if matches!(held, RawBson::Array(_)) {
                return Err(self.unfit(at, "list", "an _id is not a list", key));
            } else {
                return Ok(held);
            }
        }
        Ok(RawBson::Document(fields))
    }

    fn held(&self, at: usize, cell: Cell<'_>, key: Row<'_>) -> Result<RawBson> {
        let value = self.route.shape.value(at, cell).map_err(|error| self.blame(error, key))?;
        let (Some(value), Some(column)) = (value, self.route.target.columns.get(at)) else {
            return Err(self.not_full());
        };
        if self.route.shape.table.columns[at].is_strange(&value) {
            return Err(self.unfit(at, value.kind(), "the text column of the source has bytes in it", key));
        }
        documents::hold(&column.kind, &value)
            .map_err(|reason| self.unfit(at, Value::kind(&value), reason, key))
    }

    /// Names the table of an error that the server gave; of one that is gone or another one it speaks as of a change.
    pub(crate) fn refused(&self, error: Error) -> Error {
        match error.code() {
            code::SCHEMA_CHANGED => self.route.table_missing().because(error),
            _ => error.with("table", &self.route.target.name),
        }
    }

    fn not_full(&self) -> Error {
        Error::new(code::ROW_HOLE, "a full row has a cell that was not sent")
            .with("table", &self.route.target.name)
    }

    fn unfit(&self, at: usize, kind: &str, reason: &str, key: Row<'_>) -> Error {
        let column = self.route.target.columns.get(at).map_or("?", |column| column.name.as_str());
        let message = format!("a {kind} does not fit {}.{column}: {reason}", self.route.target.name);
        self.blame(Error::new(code::VALUE_UNFIT, message).with("column", column), key)
    }

    /// Names the table and the row.
    fn blame(&self, error: Error, key: Row<'_>) -> Error {
        error.with("table", &self.route.target.name).with("key", self.route.shape.show_key(key))
    }
}

/// Whether a field at the top of a document begins with `$`: as an update the server takes it for an operator.
fn has_dollars(document: &RawDocument) -> Result<bool> {
    for field in document {
        if field.map_err(extended::unreadable)?.0.as_str().starts_with('$') {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What puts a document in the place of another one, whatever its fields are called.
fn replacement(document: RawDocumentBuf) -> RawArrayBuf {
    let mut literal = RawDocumentBuf::new();
    literal.append(cstr!("$literal"), document);
    let mut stage = RawDocumentBuf::new();
    stage.append(cstr!("$replaceWith"), literal);
    let mut stages = RawArrayBuf::new();
    stages.push(stage);
    stages
}

fn by_id(id: RawBson) -> RawDocumentBuf {
    let mut equal = RawDocumentBuf::new();
    equal.append(cstr!("$eq"), id);
    let mut filter = RawDocumentBuf::new();
    filter.append(cstr!("_id"), equal);
    filter
}

fn removal(filter: RawDocumentBuf) -> RawDocumentBuf {
    let mut body = RawDocumentBuf::new();
    body.append(cstr!("q"), filter);
    body.append(cstr!("limit"), 1_i32);
    body
}

/// Cuts statements into pieces of which each is one transaction. There is always one, for the checkpoint.
pub(crate) fn pieces(statements: &[Statement]) -> Vec<&[Statement]> {
    let places = cut(statements, STATEMENTS_LIMIT, |statement| statement.body.as_bytes().len());
    places.into_iter().map(|places| &statements[places]).collect()
}

/// The places of items that go into one transaction each. There is always one, if it is empty.
pub(crate) fn cut<T>(items: &[T], limit: usize, size: impl Fn(&T) -> usize) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, item) in items.iter().enumerate() {
        let more = size(item);
        if at > start && (at - start == limit || bytes + more > BYTES_LIMIT) {
            cuts.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    cuts.push(start..items.len());
    cuts
}

/// The command of statements that are of one kind and table. It fails if the collection is not this one.
pub(crate) fn command(
    kind: Kind,
    collection: &str,
    identity: &Binary,
    statements: &[Statement],
) -> RawDocumentBuf {
    let mut bodies = RawArrayBuf::new();
    for statement in statements {
        bodies.push(&statement.body);
    }
    let mut command = RawDocumentBuf::new();
    match kind {
        Kind::Delete => {
            command.append(cstr!("delete"), collection);
            command.append(cstr!("deletes"), bodies);
        }
        Kind::Upsert | Kind::Update => {
            command.append(cstr!("update"), collection);
            command.append(cstr!("updates"), bodies);
        }
    }
    command.append(cstr!("collectionUUID"), identity.clone());
    command
}

/// The command that inserts documents into this collection.
pub(crate) fn insertion(
    collection: &str,
    identity: &Binary,
    documents: &[(usize, &RawDocumentBuf)],
) -> RawDocumentBuf {
    let mut bodies = RawArrayBuf::new();
    for (_, document) in documents {
        bodies.push(*document);
    }
    let mut command = RawDocumentBuf::new();
    command.append(cstr!("insert"), collection);
    command.append(cstr!("documents"), bodies);
    command.append(cstr!("collectionUUID"), identity.clone());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(bytes: usize) -> Statement {
        let mut body = RawDocumentBuf::new();
        body.append(cstr!("x"), "x".repeat(bytes));
        Statement { kind: Kind::Upsert, table: 0, body, row: 0 }
    }

    #[test]
    fn a_batch_is_cut_by_count_and_by_bytes() {
        let many: Vec<_> = (0..2_500).map(|_| statement(1)).collect();
        let counts = |all: &[Statement]| pieces(all).iter().map(|piece| piece.len()).collect::<Vec<_>>();
        assert_eq!(counts(&many), [1_000, 1_000, 500]);
        let large: Vec<_> = (0..3).map(|_| statement(5 << 20)).collect();
        assert_eq!(counts(&large), [1, 1, 1]);
        assert_eq!(counts(&[]), [0]);
    }
}
