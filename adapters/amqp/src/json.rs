//! Values of AMQP 1.0 as JSON: what a client of JMS sends as a map, a list or a single value.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fe2o3_amqp::types::primitives::{Uuid, Value};
use serde_json::{Map, Number, Value as Json};
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

/// How deep lists and maps may be in each other: what is deeper is no data that somebody meant.
const DEPTH_MAX: usize = 64;

/// A value as the text of JSON. Bytes are written in base64, times as in RFC 3339.
pub(crate) fn bytes(value: &Value) -> Result<Bytes> {
    let text = serde_json::to_vec(&json(value, DEPTH_MAX)?);
    Ok(text.map_err(|error| unfit("a value").because(error))?.into())
}

fn unfit(what: &str) -> Error {
    Error::new(code::MESSAGE_INVALID, format!("{what} of the message cannot be written as JSON"))
}

fn json(value: &Value, depth: usize) -> Result<Json> {
    let depth = depth.checked_sub(1).ok_or_else(|| unfit("what is so deep"))?;
    let all = |values: &[Value]| values.iter().map(|value| json(value, depth)).collect::<Result<Vec<_>>>();
    let float = |number: f64| Number::from_f64(number).map(Json::Number).ok_or_else(|| unfit("a number"));
    Ok(match value {
        Value::Null => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Ubyte(value) => (*value).into(),
        Value::Ushort(value) => (*value).into(),
        Value::Uint(value) => (*value).into(),
        Value::Ulong(value) => (*value).into(),
        Value::Byte(value) => (*value).into(),
        Value::Short(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Long(value) => (*value).into(),
        // Its own digits, not those of the nearest number that is twice as precise.
        Value::Float(value) => float(value.to_string().parse().map_err(|_| unfit("a number"))?)?,
        Value::Double(value) => float(value.into_inner())?,
        Value::Char(value) => value.to_string().into(),
        Value::Timestamp(value) => time(value.milliseconds())?.into(),
        Value::Uuid(value) => uuid(value).into(),
        Value::Binary(value) => base64(value).into(),
        Value::String(value) => value.as_str().into(),
        Value::Symbol(value) => value.as_str().into(),
        Value::List(values) => all(values)?.into(),
        Value::Array(values) => all(&values.0)?.into(),
        Value::Map(values) => {
            let mut map = Map::new();
            for (name, value) in values.iter() {
                let (Value::String(name) | Value::Symbol(fe2o3_amqp::types::primitives::Symbol(name))) = name
                else {
                    return Err(unfit("a name in a map that is no text"));
                };
                map.insert(name.clone(), json(value, depth)?);
            }
            map.into()
        }
        Value::Described(_) | Value::Decimal32(_) | Value::Decimal64(_) | Value::Decimal128(_) => {
            return Err(unfit("a decimal or a described value"));
        }
    })
}

/// A time as in RFC 3339, of milliseconds since 1970.
pub(crate) fn time(millis: i64) -> Result<String> {
    let time = jiff::Timestamp::from_millisecond(millis).map_err(|error| unfit("a time").because(error))?;
    Ok(time.to_string())
}

/// As people write it: 8-4-4-4-12.
pub(crate) fn uuid(uuid: &Uuid) -> String {
    let digits: String = uuid.as_inner().iter().map(|byte| format!("{byte:02x}")).collect();
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
