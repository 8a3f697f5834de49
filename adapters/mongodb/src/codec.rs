//! Cells in BSON, and how a document lies in a row.
//!
//! A cell is a value as it stands in a document: one byte for its type, then its bytes. The cell of a whole document
//! has no byte for its type. A collection is described as two columns, `_id` and `document`. One that a
//! migration created for the columns of a table is read back, as its target, as those columns.
//!
//! An `_id` of a type that the model does not have is its canonical Extended JSON; an ObjectId is its 24 hexadecimal
//! digits as text, and a string that reads like one says that it is a string: `{"$string":"…"}`. So `_id`s that differ
//! have values that differ.

use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::{CString, cstr};
use mongodb::bson::{RawBson, RawBsonRef, RawDocument, RawDocumentBuf};
use tidegate_core::error::code;
use tidegate_core::{Cell, Codec, Column, Encoding, Error, Result, Row, RowWriter, Table, Type, Value, text};

use crate::{documents, extended};

/// The encoding of this adapter's rows.
pub(crate) const BSON: Encoding = Encoding("bson");
/// The column of the whole document.
pub(crate) const DOCUMENT: &str = "document";

/// Reads [`BSON`].
#[derive(Debug)]
pub(crate) struct Bson;

impl Codec for Bson {
    fn encoding(&self) -> Encoding {
        BSON
    }

    fn value<'a>(&self, column: &Column, cell: &'a [u8]) -> Result<Value<'a>> {
        let mut text = String::new();
        if is_whole(column) {
            extended::document(whole(cell)?, &mut text)?;
            return Ok(Value::Json(text.into()));
        }
        with_element(cell, |held| match (&column.kind, held) {
            // A key is never null elsewhere.
            (Type::Any, RawBsonRef::Null) => Ok(Value::Json("null".into())),
            (Type::Any, RawBsonRef::String(digits)) if ObjectId::parse_str(digits).is_ok() => {
                Ok(Value::Json(format!("{{\"$string\":\"{digits}\"}}").into()))
            }
            (Type::Any, held) => match documents::scalar(held) {
                Some(value) => Ok(value),
                None => {
                    extended::canonical(held, &mut text)?;
                    Ok(Value::Json(text.into()))
                }
            },
            (kind, held) => documents::read(kind, held).map_err(|reason| {
                Error::new(code::VALUE_UNFIT, format!("a field {reason}")).with("column", &column.name)
            }),
        })
    }

    fn key(&self, _: &Column, cell: &[u8], out: &mut Vec<u8>) -> Result<()> {
        with_element(cell, |held| identity(held, out))
    }
}

fn is_whole(column: &Column) -> bool {
    column.native == DOCUMENT
}

/// Whether rows of a table are whole documents.
pub(crate) fn is_of_documents(table: &Table) -> bool {
    table.columns.len() == 2 && table.columns[0].name == "_id" && is_whole(&table.columns[1])
}

/// The bytes of a whole document.
pub(crate) fn whole(cell: &[u8]) -> Result<&RawDocument> {
    RawDocument::from_bytes(cell).map_err(extended::unreadable)
}

/// Appends a document as a row, and gives the names of the fields that are no columns.
pub(crate) fn push_row(
    table: &Table,
    document: &RawDocument,
    row: &mut RowWriter<'_>,
) -> Result<Vec<String>> {
    let id = id_of(document)?;
    if is_of_documents(table) {
        row.cell(Cell::Bytes(&element(id)));
        row.cell(Cell::Bytes(document.as_bytes()));
        return Ok(Vec::new());
    }
    let mut surplus = Vec::new();
    let mut cells: Vec<Option<Vec<u8>>> = vec![None; table.columns.len()];
    if !place_key(table, id, &mut cells)? {
        surplus.push("_id".to_owned());
    }
    for field in document {
        let (name, value) = field.map_err(extended::unreadable)?;
        if name.as_str() == "_id" {
            continue;
        }
        match table.position(name.as_str()).filter(|at| !table.key.contains(at)) {
            Some(at) => cells[at] = (value != RawBsonRef::Null).then(|| element(value)),
            None => surplus.push(name.as_str().to_owned()),
        }
    }
    for cell in &cells {
        row.cell(cell.as_deref().map_or(Cell::Null, Cell::Bytes));
    }
    Ok(surplus)
}

/// Places the cells of a key. An `_id` that has not the fields of the key's columns stands whole in the first of them, the
/// others are null, as they never are in a key, and the answer is `false`.
fn place_key(table: &Table, id: RawBsonRef<'_>, cells: &mut [Option<Vec<u8>>]) -> Result<bool> {
    let Some((&first, rest)) = table.key.split_first() else { return Ok(true) };
    if !rest.is_empty()
        && let Some(document) = id.as_document()
    {
        let fields = document.iter().collect::<Result<Vec<_>, _>>().map_err(extended::unreadable)?;
        let names = table.key_columns().map(|column| column.name.as_str());
        if names.eq(fields.iter().map(|(name, _)| name.as_str())) {
            for (&at, (_, value)) in table.key.iter().zip(fields) {
                cells[at] = Some(element(value));
            }
            return Ok(true);
        }
    }
    cells[first] = Some(element(id));
    Ok(rest.is_empty())
}

/// Appends the key of a document by its `_id`, and says whether it has the fields of the key's columns.
pub(crate) fn push_key(table: &Table, id: RawBsonRef<'_>, key: &mut RowWriter<'_>) -> Result<bool> {
    let mut cells: Vec<Option<Vec<u8>>> = vec![None; table.columns.len()];
    let is_whole = place_key(table, id, &mut cells)?;
    for &at in &table.key {
        key.cell(cells[at].as_deref().map_or(Cell::Null, Cell::Bytes));
    }
    Ok(is_whole)
}

/// The `_id` of a key that was read from this store.
pub(crate) fn id_of_key(table: &Table, key: Row<'_>) -> Result<RawBson> {
    let mut fields = RawDocumentBuf::new();
    let is_one = table.key.len() == 1 || key.cell(1) == Cell::Null;
    for (&at, cell) in table.key.iter().zip(key.cells()) {
        let Cell::Bytes(bytes) = cell else {
            return Err(Error::new(code::STREAM_MALFORMED, "a key has a cell without a value"));
        };
        let value = with_element(bytes, |held| Ok(RawBson::from(held)))?;
        if is_one {
            return Ok(value);
        }
        fields.append(name(&table.columns[at].name)?, value);
    }
    Ok(RawBson::Document(fields))
}

/// A name as it stands in a document.
pub(crate) fn name(name: &str) -> Result<CString> {
    CString::try_from(name).map_err(|e| {
        Error::new(code::MAPPING_INVALID, format!("the name {name:?} cannot be a field's")).because(e)
    })
}

/// The `_id` of a document.
pub(crate) fn id_of(document: &RawDocument) -> Result<RawBsonRef<'_>> {
    document
        .get("_id")
        .map_err(extended::unreadable)?
        .ok_or_else(|| Error::new(code::STREAM_MALFORMED, "a document has no _id"))
}

/// A value as a cell.
pub(crate) fn element<'a>(value: impl Into<RawBsonRef<'a>> + 'a) -> Vec<u8> {
    let mut document = RawDocumentBuf::new();
    document.append(cstr!(""), value);
    let bytes = document.into_bytes();
    let mut cell = Vec::with_capacity(bytes.len() - 6);
    cell.push(bytes[4]);
    cell.extend_from_slice(&bytes[6..bytes.len() - 1]);
    cell
}

/// Gives the value of a cell.
pub(crate) fn with_element<T>(cell: &[u8], take: impl FnOnce(RawBsonRef<'_>) -> Result<T>) -> Result<T> {
    let malformed = || Error::new(code::STREAM_MALFORMED, "a cell is not a BSON value");
    let (kind, value) = cell.split_first().ok_or_else(malformed)?;
    let length = i32::try_from(cell.len() + 6).map_err(|_| malformed())?;
    let mut bytes = Vec::with_capacity(cell.len() + 6);
    bytes.extend(length.to_le_bytes());
    bytes.extend([*kind, 0]);
    bytes.extend_from_slice(value);
    bytes.push(0);
    let document = RawDocumentBuf::from_bytes(bytes).map_err(extended::unreadable)?;
    let (_, held) = document.iter().next().ok_or_else(malformed)?.map_err(extended::unreadable)?;
    take(held)
}

/// Appends bytes that are equal exactly for values that the server holds to be equal: `1`, `1.0` and `NumberLong(1)`
/// are.
pub(crate) fn identity(value: RawBsonRef<'_>, out: &mut Vec<u8>) -> Result<()> {
    let number = |text: &str, out: &mut Vec<u8>| {
        let text = text::decimal(text);
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        out.push(1);
        out.extend_from_slice(if text == "-0" { "0" } else { text }.as_bytes());
    };
    match value {
        RawBsonRef::Int32(v) => number(&v.to_string(), out),
        RawBsonRef::Int64(v) => number(&v.to_string(), out),
        RawBsonRef::Decimal128(v) => {
            let text = v.to_string();
            number(if text.ends_with("NaN") { "NaN" } else { &text }, out);
        }
        RawBsonRef::Double(v) if v.is_nan() => number("NaN", out),
        RawBsonRef::Double(v) if v.is_infinite() => {
            number(if v > 0.0 { "Infinity" } else { "-Infinity" }, out)
        }
        // With so many digits the text is exact.
        RawBsonRef::Double(v) => number(&format!("{v:.1074}"), out),
        RawBsonRef::String(v) | RawBsonRef::Symbol(v) => {
            out.push(2);
            out.extend_from_slice(v.as_bytes());
        }
        RawBsonRef::Document(v) => {
            out.push(3);
            for field in v {
                let (name, value) = field.map_err(extended::unreadable)?;
                out.extend_from_slice(name.as_str().as_bytes());
                out.push(0);
                nested(value, out)?;
            }
        }
        RawBsonRef::Array(v) => {
            out.push(4);
            for item in v {
                nested(item.map_err(extended::unreadable)?, out)?;
            }
        }
        other => {
            out.push(5);
            out.extend(element(other));
        }
    }
    Ok(())
}

fn nested(value: RawBsonRef<'_>, out: &mut Vec<u8>) -> Result<()> {
    let at = out.len();
    out.extend([0; 4]);
    identity(value, out)?;
    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::Decimal128;

    fn key(value: RawBson) -> Vec<u8> {
        let mut out = Vec::new();
        Bson.key(&Column::new("_id", Type::Any), &element(value.as_raw_bson_ref()), &mut out).unwrap();
        out
    }

    #[test]
    fn numbers_that_are_equal_have_one_identity() {
        let decimal = |text: &str| RawBson::Decimal128(text.parse::<Decimal128>().unwrap());
        let one = key(RawBson::Int32(1));
        for same in [RawBson::Int64(1), RawBson::Double(1.0), decimal("1"), decimal("1.00"), decimal("10E-1")]
        {
            assert_eq!(key(same), one);
        }
        assert_eq!(key(RawBson::Double(-0.0)), key(RawBson::Int32(0)));
        assert_eq!(key(RawBson::Double(1e18)), key(RawBson::Int64(1_000_000_000_000_000_000)));
        assert_eq!(key(decimal("1E+3")), key(RawBson::Int32(1000)));
        assert_eq!(key(decimal("0.5")), key(RawBson::Double(0.5)));
        for other in [RawBson::Int32(2), RawBson::String("1".into()), decimal("1.01"), RawBson::Boolean(true)]
        {
            assert_ne!(key(other), one);
        }
        assert_ne!(key(decimal("0.1")), key(RawBson::Double(0.1)));
    }

    #[test]
    fn ids_have_values() {
        let value = |held: RawBson| {
            Bson.value(&Column::new("_id", Type::Any), &element(held.as_raw_bson_ref())).unwrap().into_owned()
        };
        assert_eq!(value(RawBson::Int32(7)), Value::Int(7));
        assert_eq!(
            value(RawBson::ObjectId(ObjectId::from_bytes([10; 12]))),
            Value::Text("0a".repeat(12).into())
        );
        assert_eq!(
            value(RawBson::String("0a".repeat(12))),
            Value::Json(format!("{{\"$string\":\"{}\"}}", "0a".repeat(12)).into())
        );
        let mut alike = mongodb::bson::RawDocumentBuf::new();
        alike.append(mongodb::bson::raw::cstr!("$string"), "0a".repeat(12));
        assert_eq!(
            value(RawBson::Document(alike)),
            Value::Json(format!("{{\"$$string\":\"{}\"}}", "0a".repeat(12)).into())
        );
        assert_eq!(value(RawBson::Null), Value::Json("null".into()));
        assert_eq!(value(RawBson::MinKey), Value::Json("{\"$minKey\":1}".into()));
    }
}
