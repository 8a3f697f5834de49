//! The types of computed columns, and how the answer of an expression becomes a value of one.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tidegate_core::{Type, Value, text};

/// Up to here, a 64 bit float holds every integer.
pub(crate) const FLOAT_INTEGERS_MAX: u64 = 1 << 53;

/// The types that a computed column can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Bool,
    Int16,
    Int32,
    Int64,
    Float64,
    Decimal,
    Text,
    Bytes,
    Uuid,
    Timestamptz,
    Json,
}

impl Kind {
    pub(super) fn of_column(self) -> Type {
        match self {
            Kind::Bool => Type::Bool,
            Kind::Int16 => Type::Int { bits: 16 },
            Kind::Int32 => Type::Int { bits: 32 },
            Kind::Int64 => Type::Int { bits: 64 },
            Kind::Float64 => Type::Float { bits: 64 },
            Kind::Decimal => Type::Decimal { precision: None, scale: None },
            Kind::Text => Type::Text,
            Kind::Bytes => Type::Bytes,
            Kind::Uuid => Type::Uuid,
            Kind::Timestamptz => Type::TimestampTz,
            Kind::Json => Type::Json,
        }
    }

    /// The answer of an expression as a value of this type; the word for what it is instead, if it is not of it.
    pub(super) fn take(self, answer: cel::Value) -> Result<Value<'static>, String> {
        let found = answer.type_of().to_string();
        Ok(match (self, answer) {
            (_, cel::Value::Null) => Value::Null,
            (Kind::Bool, cel::Value::Bool(v)) => Value::Bool(v),
            (Kind::Int16 | Kind::Int32 | Kind::Int64, cel::Value::Int(v)) => Value::Int(v),
            (Kind::Float64, cel::Value::Float(v)) => Value::Float(v),
            (Kind::Float64, cel::Value::Int(v)) if v.unsigned_abs() <= FLOAT_INTEGERS_MAX => {
                Value::Float(v as f64)
            }
            (Kind::Float64, cel::Value::Int(_)) => {
                return Err("an int that no float64 is equal to".to_owned());
            }
            (Kind::Decimal, cel::Value::Int(v)) => Value::Decimal(v.to_string().into()),
            (Kind::Decimal, cel::Value::String(v)) if is_decimal(&v) => Value::Decimal(v.to_string().into()),
            (Kind::Text, cel::Value::String(v)) => Value::Text(v.to_string().into()),
            (Kind::Bytes, cel::Value::Bytes(v)) => Value::Bytes(v.as_ref().clone().into()),
            (Kind::Uuid, cel::Value::String(v)) => {
                Value::Uuid(*uuid::Uuid::parse_str(&v).map_err(|_| "text that is no UUID")?.as_bytes())
            }
            (Kind::Timestamptz, cel::Value::Timestamp(v))
                if v.timestamp_subsec_nanos().is_multiple_of(1_000) =>
            {
                Value::TimestampTz(v.timestamp_micros())
            }
            (Kind::Timestamptz, cel::Value::Timestamp(_)) => {
                return Err("a timestamp with parts of a microsecond".to_owned());
            }
            (Kind::Json, answer) => Value::Json(json(&answer)?.to_string().into()),
            _ => return Err(found),
        })
    }
}

/// An optional sign, digits, and optionally a point and digits; or one of the three words that are numbers.
fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_number =
        [whole, part].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    is_number || ["NaN", "Infinity", "-Infinity"].contains(&text)
}

/// An answer as JSON, fields in the order of their names. What JSON has no form for is text, so that nothing becomes
/// null on its way.
fn json(answer: &cel::Value) -> Result<Json, String> {
    Ok(match answer {
        cel::Value::Null => Json::Null,
        cel::Value::Bool(v) => (*v).into(),
        cel::Value::Int(v) => (*v).into(),
        cel::Value::UInt(v) => (*v).into(),
        cel::Value::Float(v) if v.is_finite() => (*v).into(),
        cel::Value::Float(v) if v.is_nan() => "NaN".into(),
        cel::Value::Float(v) => if *v > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        cel::Value::String(v) => v.as_str().into(),
        cel::Value::Bytes(v) => BASE64_STANDARD.encode(v.as_slice()).into(),
        cel::Value::Timestamp(v) => text::timestamp_tz(v.timestamp_micros()).into(),
        cel::Value::List(list) => Json::Array(list.iter().map(json).collect::<Result<_, _>>()?),
        cel::Value::Map(map) => {
            let fields = map.map.iter().map(|(name, value)| Ok((name.to_string(), json(value)?)));
            let in_order = fields.collect::<Result<BTreeMap<_, _>, String>>()?;
            Json::Object(in_order.into_iter().collect())
        }
        other => return Err(format!("{}, which JSON does not have", other.type_of())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_exactly_or_not_at_all() {
        let text = |text: &str| cel::Value::from(text.to_owned());
        for (kind, answer, taken) in [
            (Kind::Float64, (1_i64 << 53).into(), Ok(Value::Float(9_007_199_254_740_992.0))),
            (Kind::Float64, ((1_i64 << 53) + 1).into(), Err("an int that no float64 is equal to")),
            (Kind::Float64, text("1.0"), Err("string")),
            (Kind::Decimal, text("-0.10"), Ok(Value::Decimal("-0.10".into()))),
            (Kind::Decimal, text("NaN"), Ok(Value::Decimal("NaN".into()))),
            (Kind::Decimal, text("1e5"), Err("string")),
            (Kind::Decimal, text("1."), Err("string")),
            (Kind::Int64, 1.0.into(), Err("float")),
            (Kind::Timestamptz, text("2024-02-29"), Err("string")),
            (Kind::Json, f64::NAN.into(), Ok(Value::Json("\"NaN\"".into()))),
            (Kind::Json, f64::NEG_INFINITY.into(), Ok(Value::Json("\"-Infinity\"".into()))),
            (Kind::Int64, cel::Value::Null, Ok(Value::Null)),
        ] {
            assert_eq!(kind.take(answer), taken.map_err(str::to_owned), "{kind:?}");
        }
    }
}
