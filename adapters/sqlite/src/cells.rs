//! Values between SQLite and the canonical model.

use std::borrow::Cow;

use sqlx::Decode;
use sqlx::Row as _;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteRow};
use sqlx::{Arguments, TypeInfo, ValueRef};
use tidegate_core::error::code;
use tidegate_core::{Cell, Column, Error, Result, Row, RowWriter, Rows, Type, Value, text};

/// What a column does to a value that is stored in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Affinity {
    Blob = 0x41,
    Text = 0x42,
    Numeric = 0x43,
    Integer = 0x44,
    Real = 0x45,
}

impl Affinity {
    /// By the rules of SQLite, in their order. In a strict table the same words mean the same.
    pub(crate) fn of(declared: &str) -> Self {
        let declared = declared.split(" COLLATE ").next().unwrap_or_default().to_ascii_uppercase();
        let has = |words: &[&str]| words.iter().any(|word| declared.contains(word));
        if has(&["INT"]) {
            Self::Integer
        } else if has(&["CHAR", "CLOB", "TEXT"]) {
            Self::Text
        } else if declared.is_empty() || has(&["BLOB"]) {
            Self::Blob
        } else if has(&["REAL", "FLOA", "DOUB"]) {
            Self::Real
        } else {
            Self::Numeric
        }
    }

    /// Why a value would not be stored as it is.
    fn alters(self, value: &Value<'_>) -> Option<&'static str> {
        match (self, value) {
            (Self::Blob, _) | (_, Value::Null | Value::Bytes(_)) => None,
            (Self::Text, Value::Text(_)) => None,
            (Self::Text, _) => Some("a number becomes text in this column"),
            (_, Value::Text(text)) => is_number(text).then_some("this text becomes a number in this column"),
            (Self::Real, Value::Float(v)) => {
                (*v == 0.0 && v.is_sign_negative()).then_some("-0.0 becomes 0.0 in this column")
            }
            (Self::Real, _) => Some("an integer becomes a float in this column"),
            (_, Value::Float(v)) => (v.trunc() == *v && v.abs() < I64_END)
                .then_some("this float becomes an integer in this column"),
            _ => None,
        }
    }
}

/// Beyond the integers of 64 bits: a float stays one from here on.
const I64_END: f64 = 9_223_372_036_854_775_808.0;

/// Whether SQLite takes a text for a number.
fn is_number(text: &str) -> bool {
    let text = text.trim_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) && text.parse::<f64>().is_ok()
}

/// A value in one of SQLite's classes, bit for bit what it was.
///
/// # Errors
/// Why there is none.
pub(crate) fn stored<'v>(column: &Column, value: Value<'v>) -> Result<Value<'v>, &'static str> {
    let owned = |text: String| Value::Text(Cow::Owned(text));
    Ok(match value {
        Value::Null => Value::Null,
        // Of another store's types some have no class here: without their names values that differ would be one.
        value if column.kind == Type::Any && Affinity::of(&column.native) == Affinity::Text => {
            owned(text::any(&value))
        }
        Value::Bool(v) => Value::Int(i64::from(v)),
        Value::Float32(v) if v.is_nan() => return Err("SQLite stores NaN as null"),
        Value::Float(v) if v.is_nan() => return Err("SQLite stores NaN as null"),
        Value::Float32(v) => Value::Float(f64::from(v)),
        Value::Decimal(v) | Value::Json(v) => Value::Text(v),
        Value::Uuid(_) => owned(value.to_string()),
        Value::Date(v) => owned(text::date(v)),
        Value::Time(v) => owned(text::time(v)),
        Value::Timestamp(v) => owned(text::timestamp(v)),
        Value::TimestampTz(v) => owned(text::timestamp_tz(v)),
        Value::Array(list) => {
            owned(text::list(&list).ok_or("a list holds a number that JSON does not have")?)
        }
        same => same,
    })
}

/// Binds a value for a column of that affinity.
///
/// # Errors
/// Why it would not be stored exactly.
pub(crate) fn bind(
    arguments: &mut SqliteArguments,
    column: &Column,
    value: Value<'_>,
    affinity: Affinity,
) -> Result<(), &'static str> {
    let value = stored(column, value)?;
    if let Some(reason) = affinity.alters(&value) {
        return Err(reason);
    }
    bind_stored(arguments, value)
}

/// Binds the cells of a key that was read from this file.
pub(crate) fn bind_key(arguments: &mut SqliteArguments, key: Row<'_>) -> Result<()> {
    for cell in key.cells() {
        let value = match cell {
            Cell::Bytes(bytes) => Value::decode(bytes)?,
            _ => return Err(Error::new(code::STREAM_MALFORMED, "a key has a cell without a value")),
        };
        bind_stored(arguments, value).map_err(|reason| Error::new(code::STREAM_MALFORMED, reason))?;
    }
    Ok(())
}

fn bind_stored(arguments: &mut SqliteArguments, value: Value<'_>) -> Result<(), &'static str> {
    let added = match value {
        Value::Null => arguments.add(None::<i64>),
        Value::Int(v) => arguments.add(v),
        Value::Float(v) => arguments.add(v),
        Value::Text(v) => arguments.add(v.into_owned()),
        Value::Bytes(v) => arguments.add(v.into_owned()),
        _ => return Err("SQLite has no class for it"),
    };
    added.map_err(|_| "the driver cannot bind it")
}

/// Writes the column of a result.
///
/// # Errors
/// The text is not UTF-8.
fn read(row: &SqliteRow, at: usize, out: &mut RowWriter<'_>) -> Result<(), sqlx::error::BoxDynError> {
    let raw = row.try_get_raw(at)?;
    if raw.is_null() {
        out.cell(Cell::Null);
        return Ok(());
    }
    let class = match raw.type_info().name() {
        "INTEGER" => Class::Integer,
        "REAL" => Class::Real,
        "TEXT" => Class::Text,
        _ => Class::Blob,
    };
    out.value(&match class {
        Class::Integer => Value::Int(<i64 as Decode<'_, Sqlite>>::decode(raw)?),
        Class::Real => Value::Float(<f64 as Decode<'_, Sqlite>>::decode(raw)?),
        Class::Text => Value::Text(<&str as Decode<'_, Sqlite>>::decode(raw)?.into()),
        Class::Blob => Value::Bytes(<&[u8] as Decode<'_, Sqlite>>::decode(raw)?.into()),
    });
    Ok(())
}

enum Class {
    Integer,
    Real,
    Text,
    Blob,
}

/// Appends `count` columns of a result, from `first` on, as a row.
///
/// # Errors
/// The column whose text is not UTF-8; the buffer is unusable then.
pub(crate) fn push(row: &SqliteRow, first: usize, count: usize, out: &mut Rows) -> Result<(), usize> {
    let mut unreadable = None;
    out.push_with(|writer| {
        for at in 0..count {
            if read(row, first + at, writer).is_err() {
                unreadable.get_or_insert(at);
                writer.cell(Cell::Null);
            }
        }
    });
    unreadable.map_or(Ok(()), Err)
}

/// The error for a text that is not UTF-8.
pub(crate) fn not_utf8(table: &tidegate_core::Table, column: usize) -> Error {
    let column = table.columns.get(column).map_or("?", |column| column.name.as_str());
    Error::new(code::VALUE_UNFIT, format!("{}.{column} holds text that is not UTF-8", table.name))
        .with("table", &table.name)
        .with("column", column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinities_follow_the_words_of_the_type() {
        for (declared, affinity) in [
            ("INTEGER", Affinity::Integer),
            ("bigint", Affinity::Integer),
            ("FLOATING POINT", Affinity::Integer),
            ("VARCHAR(20)", Affinity::Text),
            ("TEXT COLLATE NOCASE", Affinity::Text),
            ("", Affinity::Blob),
            ("BLOB", Affinity::Blob),
            ("DOUBLE", Affinity::Real),
            ("DECIMAL(10,2)", Affinity::Numeric),
            ("BOOLEAN", Affinity::Numeric),
            ("DATETIME", Affinity::Numeric),
            ("UUID", Affinity::Numeric),
        ] {
            assert_eq!(Affinity::of(declared), affinity, "{declared}");
        }
    }

    #[test]
    fn a_value_that_would_be_altered_is_refused() {
        use Affinity::{Blob, Integer, Numeric, Real, Text};
        let text = |text: &'static str| Value::Text(text.into());
        for (affinity, value, is_kept) in [
            (Integer, Value::Int(i64::MIN), true),
            (Integer, Value::Bool(true), true),
            (Integer, text("abc"), true),
            (Integer, text("12"), false),
            (Integer, text(" 1e3 "), false),
            (Integer, text("0x10"), true),
            (Integer, text("inf"), true),
            (Integer, Value::Float(1.5), true),
            (Integer, Value::Float(2.0), false),
            (Integer, Value::Float(9.2e18), false),
            (Integer, Value::Float(I64_END), true),
            (Numeric, Value::Float(-I64_END), true),
            (Numeric, Value::Decimal("1.10".into()), false),
            (Numeric, Value::Timestamp(0), true),
            (Text, Value::Decimal("1.10".into()), true),
            (Text, Value::Int(1), false),
            (Text, Value::Uuid([0; 16]), true),
            (Text, Value::Bytes((&b"\0"[..]).into()), true),
            (Real, Value::Float(-0.0), false),
            (Real, Value::Float(0.1), true),
            (Real, Value::Float(f64::INFINITY), true),
            (Real, Value::Float32(0.1), true),
            (Real, Value::Int(1), false),
            (Real, Value::Float(f64::NAN), false),
            (Blob, Value::Float32(f32::NAN), false),
            (Blob, Value::Float(-0.0), true),
            (Blob, Value::Array(vec![Value::Float(f64::INFINITY)]), false),
            (Blob, Value::Null, true),
        ] {
            let mut arguments = SqliteArguments::default();
            let column = Column::new("c", Type::Text);
            assert_eq!(
                bind(&mut arguments, &column, value.clone(), affinity).is_ok(),
                is_kept,
                "{affinity:?} {value:?}"
            );
        }
    }
}
