//! The canonical value model: what a cell means, whatever store it comes from.
//!
//! Every adapter maps its own types to [`Type`] and its own bytes to [`Value`], exactly or not at all. Two stores
//! are joined through this model, so that n stores need n mappings and not n².

use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, Result, code};
use crate::text;

/// What the values of a column are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Type {
    /// True or false.
    Bool,
    /// A signed integer of 16, 32 or 64 bits.
    Int {
        /// 16, 32 or 64.
        bits: u8,
    },
    /// A binary floating point number of 32 or 64 bits.
    Float {
        /// 32 or 64.
        bits: u8,
    },
    /// An exact decimal number. Without a precision its size is only known row by row.
    Decimal {
        /// Significant digits, if declared.
        precision: Option<u32>,
        /// Digits after the point, if declared. May be negative.
        scale: Option<i32>,
    },
    /// Unicode text.
    Text,
    /// Bytes.
    Bytes,
    /// A universally unique identifier.
    Uuid,
    /// A day of the proleptic Gregorian calendar.
    Date,
    /// A time of day without a zone.
    Time,
    /// A day and a time without a zone.
    Timestamp,
    /// An instant.
    TimestampTz,
    /// JSON kept as text, with its order and its duplicates.
    Json,
    /// A list of values of one type, possibly nested.
    Array(Box<Type>),
    /// A whole document of a document store, as canonical Extended JSON.
    Document,
    /// Each value has a type of its own (SQLite columns without a declared type, MongoDB fields).
    Any,
    /// Known only to its own store, by the name it has there. It travels in that store's encoding alone.
    Native(Box<str>),
}

impl Type {
    /// Its name in conversions and reports.
    pub fn word(&self) -> &str {
        match self {
            Type::Bool => "bool",
            Type::Int { .. } => "int",
            Type::Float { .. } => "float",
            Type::Decimal { .. } => "numeric",
            Type::Text => "text",
            Type::Bytes => "bytes",
            Type::Uuid => "uuid",
            Type::Date => "date",
            Type::Time => "time",
            Type::Timestamp => "timestamp",
            Type::TimestampTz => "timestamptz",
            Type::Json => "json",
            Type::Array(items) => items.word(),
            Type::Document => "document",
            Type::Any => "any",
            Type::Native(name) => name,
        }
    }

    /// Whether a column of this type can hold a value. Null is held by every type; whether the column allows it is
    /// the column's.
    pub fn holds(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (_, Value::Null) | (Type::Any, _) => true,
            (Type::Int { bits }, Value::Int(v)) => {
                *bits >= 64 || (*v >> (bits - 1) == 0 || *v >> (bits - 1) == -1)
            }
            (Type::Array(items), Value::Array(list)) => list.iter().all(|item| items.holds(item)),
            (Type::Bool, Value::Bool(_))
            | (Type::Float { bits: 32 }, Value::Float32(_))
            | (Type::Float { bits: 64 }, Value::Float(_))
            | (Type::Decimal { .. }, Value::Decimal(_))
            | (Type::Text, Value::Text(_))
            | (Type::Bytes, Value::Bytes(_))
            | (Type::Uuid, Value::Uuid(_))
            | (Type::Date, Value::Date(_))
            | (Type::Time, Value::Time(_))
            | (Type::Timestamp, Value::Timestamp(_))
            | (Type::TimestampTz, Value::TimestampTz(_))
            | (Type::Json | Type::Document, Value::Json(_)) => true,
            _ => false,
        }
    }
}

/// A value, borrowed from the bytes it was read from where possible.
///
/// Instants and times count microseconds; dates count days since 1970-01-01. [`Value::INFINITY`] and
/// [`Value::NEG_INFINITY`] are the two infinite dates and instants that PostgreSQL has.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value<'a> {
    /// No value.
    Null,
    /// True or false.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A 32 bit float, kept apart so that its text does not grow digits.
    Float32(f32),
    /// A 64 bit float.
    Float(f64),
    /// A decimal number as text: optional sign, digits, optional point and digits; or `NaN`, `Infinity`, `-Infinity`.
    Decimal(Cow<'a, str>),
    /// Text.
    Text(Cow<'a, str>),
    /// Bytes.
    Bytes(Cow<'a, [u8]>),
    /// A UUID.
    Uuid([u8; 16]),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since midnight.
    Time(i64),
    /// Microseconds since 1970-01-01 00:00, without a zone.
    Timestamp(i64),
    /// Microseconds since 1970-01-01 00:00 UTC.
    TimestampTz(i64),
    /// JSON text.
    Json(Cow<'a, str>),
    /// A list.
    Array(Vec<Value<'a>>),
}

impl Value<'_> {
    /// The microseconds (or, cut to 32 bits, days) that stand for `infinity`.
    pub const INFINITY: i64 = i64::MAX;
    /// The microseconds (or, cut to 32 bits, days) that stand for `-infinity`.
    pub const NEG_INFINITY: i64 = i64::MIN;

    /// A copy that borrows nothing.
    pub fn into_owned(self) -> Value<'static> {
        match self {
            Value::Null => Value::Null,
            Value::Bool(v) => Value::Bool(v),
            Value::Int(v) => Value::Int(v),
            Value::Float32(v) => Value::Float32(v),
            Value::Float(v) => Value::Float(v),
            Value::Decimal(v) => Value::Decimal(Cow::Owned(v.into_owned())),
            Value::Text(v) => Value::Text(Cow::Owned(v.into_owned())),
            Value::Bytes(v) => Value::Bytes(Cow::Owned(v.into_owned())),
            Value::Uuid(v) => Value::Uuid(v),
            Value::Date(v) => Value::Date(v),
            Value::Time(v) => Value::Time(v),
            Value::Timestamp(v) => Value::Timestamp(v),
            Value::TimestampTz(v) => Value::TimestampTz(v),
            Value::Json(v) => Value::Json(Cow::Owned(v.into_owned())),
            Value::Array(list) => Value::Array(list.into_iter().map(Value::into_owned).collect()),
        }
    }

    /// The word for what this is, in errors.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Int(_) => "integer",
            Value::Float32(_) | Value::Float(_) => "float",
            Value::Decimal(_) => "decimal",
            Value::Text(_) => "text",
            Value::Bytes(_) => "bytes",
            Value::Uuid(_) => "uuid",
            Value::Date(_) => "date",
            Value::Time(_) => "time",
            Value::Timestamp(_) => "timestamp",
            Value::TimestampTz(_) => "timestamptz",
            Value::Json(_) => "json",
            Value::Array(_) => "array",
        }
    }

    /// Appends the canonical bytes: one tag, then the payload. Equal values have equal bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::Null => out.push(0),
            Value::Bool(v) => out.extend([1, u8::from(*v)]),
            Value::Int(v) => tagged(out, 2, &v.to_be_bytes()),
            Value::Float32(v) => tagged(out, 3, &v.to_be_bytes()),
            Value::Float(v) => tagged(out, 4, &v.to_be_bytes()),
            Value::Decimal(v) => tagged(out, 5, v.as_bytes()),
            Value::Text(v) => tagged(out, 6, v.as_bytes()),
            Value::Bytes(v) => tagged(out, 7, v),
            Value::Uuid(v) => tagged(out, 8, v),
            Value::Date(v) => tagged(out, 9, &v.to_be_bytes()),
            Value::Time(v) => tagged(out, 10, &v.to_be_bytes()),
            Value::Timestamp(v) => tagged(out, 11, &v.to_be_bytes()),
            Value::TimestampTz(v) => tagged(out, 12, &v.to_be_bytes()),
            Value::Json(v) => tagged(out, 13, v.as_bytes()),
            Value::Array(list) => {
                out.push(14);
                for item in list {
                    let at = out.len();
                    out.extend([0; 4]);
                    item.encode(out);
                    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
                    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
                }
            }
        }
    }

    /// Reads what [`Value::encode`] wrote.
    ///
    /// # Errors
    /// `stream-malformed` if the bytes are not of that form.
    pub fn decode(bytes: &[u8]) -> Result<Value<'_>> {
        let (&tag, rest) = bytes.split_first().ok_or_else(|| malformed("an empty cell"))?;
        Ok(match tag {
            0 => Value::Null,
            1 => Value::Bool(array::<1>(rest)?[0] != 0),
            2 => Value::Int(i64::from_be_bytes(array(rest)?)),
            3 => Value::Float32(f32::from_be_bytes(array(rest)?)),
            4 => Value::Float(f64::from_be_bytes(array(rest)?)),
            5 => Value::Decimal(Cow::Borrowed(text(rest)?)),
            6 => Value::Text(Cow::Borrowed(text(rest)?)),
            7 => Value::Bytes(Cow::Borrowed(rest)),
            8 => Value::Uuid(array(rest)?),
            9 => Value::Date(i32::from_be_bytes(array(rest)?)),
            10 => Value::Time(i64::from_be_bytes(array(rest)?)),
            11 => Value::Timestamp(i64::from_be_bytes(array(rest)?)),
            12 => Value::TimestampTz(i64::from_be_bytes(array(rest)?)),
            13 => Value::Json(Cow::Borrowed(text(rest)?)),
            14 => {
                let mut list = Vec::new();
                let mut rest = rest;
                while !rest.is_empty() {
                    let (length, after) =
                        rest.split_first_chunk::<4>().ok_or_else(|| malformed("a cut list"))?;
                    let length = u32::from_be_bytes(*length) as usize;
                    let item = after.get(..length).ok_or_else(|| malformed("a cut list item"))?;
                    list.push(Value::decode(item)?);
                    rest = &after[length..];
                }
                Value::Array(list)
            }
            other => return Err(malformed(format!("an unknown tag {other}"))),
        })
    }
}

/// For people: reports, errors and the keys in a verification's list.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Bool(v) => v.fmt(f),
            Value::Int(v) => v.fmt(f),
            Value::Float32(v) => v.fmt(f),
            Value::Float(v) => v.fmt(f),
            Value::Decimal(v) | Value::Text(v) | Value::Json(v) => f.write_str(v),
            Value::Bytes(v) => v.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Value::Uuid(v) => uuid::Uuid::from_bytes(*v).fmt(f),
            Value::Date(v) => f.write_str(&text::date(*v)),
            Value::Time(v) => f.write_str(&text::time(*v)),
            Value::Timestamp(v) => f.write_str(&text::timestamp(*v)),
            Value::TimestampTz(v) => f.write_str(&text::timestamp_tz(*v)),
            Value::Array(list) => f.debug_list().entries(list.iter().map(|v| v.to_string())).finish(),
        }
    }
}

fn tagged(out: &mut Vec<u8>, tag: u8, payload: &[u8]) {
    out.push(tag);
    out.extend_from_slice(payload);
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| malformed(format!("{} bytes where {N} belong", bytes.len())))
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|e| malformed("text that is not UTF-8").because(e))
}

fn malformed(what: impl fmt::Display) -> Error {
    Error::new(code::STREAM_MALFORMED, format!("a canonical value holds {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_a_round_trip() {
        let all = [
            Value::Null,
            Value::Bool(true),
            Value::Int(i64::MIN),
            Value::Float32(-0.0),
            Value::Float(f64::MAX),
            Value::Decimal("-1.00".into()),
            Value::Text("né\0".into()),
            Value::Bytes((&b"\0\xff"[..]).into()),
            Value::Uuid([7; 16]),
            Value::Date(i32::MAX),
            Value::Time(86_400_000_000),
            Value::Timestamp(Value::NEG_INFINITY),
            Value::TimestampTz(1),
            Value::Json("{\"a\":1,\"a\":2}".into()),
            Value::Array(vec![Value::Null, Value::Array(vec![Value::Int(1)])]),
        ];
        for value in all {
            let mut bytes = Vec::new();
            value.encode(&mut bytes);
            assert_eq!(Value::decode(&bytes).unwrap(), value);
        }
    }

    #[test]
    fn malformed_bytes_are_an_error() {
        for bytes in [&[][..], &[2, 1], &[99], &[14, 0, 0, 0, 9, 0], &[6, 0xff]] {
            assert_eq!(Value::decode(bytes).unwrap_err().code(), code::STREAM_MALFORMED, "{bytes:?}");
        }
    }
}
