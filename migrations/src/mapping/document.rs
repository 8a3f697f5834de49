//! Documents as expressions see them: plain values in place of Extended JSON.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value as Json};
use tidegate_core::error::code;
use tidegate_core::{Error, Result, text};

/// The fields of what has no plain form, and what MongoDB calls its types.
const UNPLAIN: &[(&str, &str)] = &[
    ("$timestamp", "timestamp"),
    ("$regularExpression", "regex"),
    ("$code", "javascript"),
    ("$symbol", "symbol"),
    ("$undefined", "undefined"),
    ("$minKey", "minKey"),
    ("$maxKey", "maxKey"),
];

/// A value in a document, read from its canonical Extended JSON.
#[derive(Debug, PartialEq)]
pub(crate) enum Field<'a> {
    Null,
    Bool(bool),
    Int32(i32),
    Int64(i64),
    Double(f64),
    /// Digit for digit, without an exponent.
    Decimal(String),
    Text(&'a str),
    /// 24 hexadecimal digits.
    ObjectId(&'a str),
    Uuid(uuid::Uuid),
    Bytes(Vec<u8>),
    Date(DateTime<Utc>),
    List(&'a [Json]),
    /// A sub-document; also a value of a type that has no plain form, which is the one field of its Extended JSON.
    Object(&'a Map<String, Json>),
}

impl<'a> Field<'a> {
    pub(crate) fn of(json: &'a Json) -> Self {
        match json {
            Json::Null => Field::Null,
            Json::Bool(v) => Field::Bool(*v),
            Json::String(v) => Field::Text(v),
            // Bare numbers stand only inside of what has no plain form.
            Json::Number(v) => v.as_i64().map_or(Field::Double(v.as_f64().unwrap_or(f64::NAN)), Field::Int64),
            Json::Array(list) => Field::List(list),
            Json::Object(fields) => wrapped(fields).unwrap_or(Field::Object(fields)),
        }
    }

    /// What MongoDB calls its type.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Field::Null => "null",
            Field::Bool(_) => "bool",
            Field::Int32(_) => "int",
            Field::Int64(_) => "long",
            Field::Double(_) => "double",
            Field::Decimal(_) => "decimal",
            Field::Text(_) => "string",
            Field::ObjectId(_) => "objectId",
            Field::Uuid(_) => "uuid",
            Field::Bytes(_) => "binData",
            Field::Date(_) => "date",
            Field::List(_) => "array",
            Field::Object(fields) => UNPLAIN
                .iter()
                .find(|(name, _)| fields.contains_key(*name))
                .map_or("object", |(_, word)| *word),
        }
    }

    fn seen(self) -> cel::Value {
        match self {
            Field::Null => cel::Value::Null,
            Field::Bool(v) => v.into(),
            Field::Int32(v) => i64::from(v).into(),
            Field::Int64(v) => v.into(),
            Field::Double(v) => v.into(),
            Field::Decimal(v) => v.into(),
            Field::Text(v) | Field::ObjectId(v) => v.to_owned().into(),
            Field::Uuid(v) => v.to_string().into(),
            Field::Bytes(v) => cel::Value::Bytes(Arc::new(v)),
            Field::Date(v) => cel::Value::Timestamp(v.fixed_offset()),
            Field::List(list) => {
                cel::Value::List(Arc::new(list.iter().map(|item| Field::of(item).seen()).collect()))
            }
            Field::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| (name.clone(), Field::of(value).seen()));
                fields.collect::<HashMap<_, _>>().into()
            }
        }
    }
}

/// The value that an object with one field stands for, if it stands for one that has a plain form.
fn wrapped(fields: &Map<String, Json>) -> Option<Field<'_>> {
    let mut all = fields.iter();
    let ((name, held), None) = (all.next()?, all.next()) else { return None };
    Some(match name.as_str() {
        "$numberInt" => Field::Int32(held.as_str()?.parse().ok()?),
        "$numberLong" => Field::Int64(held.as_str()?.parse().ok()?),
        "$numberDouble" => Field::Double(held.as_str()?.parse().ok()?),
        "$numberDecimal" => Field::Decimal(text::decimal(held.as_str()?)),
        "$oid" => Field::ObjectId(held.as_str()?),
        // A key that would be taken for an ObjectId.
        "$string" => Field::Text(held.as_str()?),
        // A date beyond the 262,000 years that a timestamp has stays what it is, and fits no column of dates.
        "$date" => {
            let millis = held.get("$numberLong")?.as_str()?.parse().ok()?;
            Field::Date(DateTime::from_timestamp_millis(millis)?)
        }
        "$binary" => {
            let bytes = BASE64_STANDARD.decode(held.get("base64")?.as_str()?).ok()?;
            match (held.get("subType")?.as_str()?, uuid::Uuid::from_slice(&bytes)) {
                ("04", Ok(id)) => Field::Uuid(id),
                _ => Field::Bytes(bytes),
            }
        }
        _ => return None,
    })
}

/// The fields of a document.
pub(crate) fn fields(document: &str) -> Result<Map<String, Json>> {
    serde_json::from_str(document).map_err(unreadable)
}

/// A document, or a value of one, as expressions see it.
pub(super) fn seen(text: &str, is_whole: bool) -> Result<cel::Value> {
    // The fields of a whole document never stand for one value.
    if is_whole {
        return Ok(Field::Object(&fields(text)?).seen());
    }
    let json: Json = serde_json::from_str(text).map_err(unreadable)?;
    Ok(Field::of(&json).seen())
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::new(code::TRANSFORM_FAILED, "a document cannot be read").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> cel::Value {
        seen(text, false).unwrap()
    }

    #[test]
    fn values_are_plain() {
        for (text, value) in [
            (r#"{"$numberInt":"5"}"#, cel::Value::Int(5)),
            (r#"{"$numberLong":"-9223372036854775808"}"#, cel::Value::Int(i64::MIN)),
            (r#"{"$numberDouble":"0.1"}"#, cel::Value::Float(0.1)),
            (r#"{"$numberDouble":"-Infinity"}"#, cel::Value::Float(f64::NEG_INFINITY)),
            (r#"{"$numberDecimal":"1.05E+3"}"#, "1050".to_owned().into()),
            (r#"{"$oid":"0a0a0a0a0a0a0a0a0a0a0a0a"}"#, "0a0a0a0a0a0a0a0a0a0a0a0a".to_owned().into()),
            (r#"{"$binary":{"base64":"AP8=","subType":"00"}}"#, cel::Value::Bytes(Arc::new(vec![0, 255]))),
            (
                r#"{"$binary":{"base64":"AAAAAAAAAAAAAAAAAAAAAQ==","subType":"04"}}"#,
                "00000000-0000-0000-0000-000000000001".to_owned().into(),
            ),
            (
                r#"{"$date":{"$numberLong":"-1"}}"#,
                cel::Value::Timestamp(DateTime::from_timestamp_millis(-1).unwrap().fixed_offset()),
            ),
            (r#"[null,true,"$x"]"#, vec![cel::Value::Null, true.into(), "$x".to_owned().into()].into()),
        ] {
            assert_eq!(plain(text), value, "{text}");
        }
    }

    #[test]
    fn what_stands_for_no_plain_value_stays_an_object() {
        for text in [
            r#"{"$numberInt":"x"}"#,
            r#"{"$date":{"$numberLong":"9223372036854775807"}}"#,
            r#"{"$minKey":1}"#,
            r#"{"$oid":"00","more":null}"#,
            "{}",
        ] {
            assert!(matches!(plain(text), cel::Value::Map(_)), "{text}");
        }
        assert!(matches!(seen(r#"{"$oid":"00"}"#, true), Ok(cel::Value::Map(_))), "a whole document");
        assert!(seen("[]", true).is_err());
    }
}
