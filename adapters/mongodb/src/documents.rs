//! Values as they are held in documents.

use mongodb::bson::oid::ObjectId;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, DateTime, RawArrayBuf, RawBson, RawBsonRef};
use tidegate_core::{Type, Value, text};

use crate::{decimal, extended, json};

const DAY_MILLIS: i64 = 86_400_000;

/// A value in the form in which a column of that type is held.
///
/// # Errors
/// Why it would not be held exactly.
pub(crate) fn hold(kind: &Type, value: &Value<'_>) -> Result<RawBson, &'static str> {
    Ok(match (kind, value) {
        (_, Value::Null) => RawBson::Null,
        (Type::Any, value) => by_itself(value)?,
        (Type::Bool, Value::Bool(v)) => RawBson::Boolean(*v),
        (Type::Int { bits: ..=32 }, Value::Int(v)) => {
            RawBson::Int32(i32::try_from(*v).map_err(|_| "it has more than 32 bits")?)
        }
        (Type::Int { .. }, Value::Int(v)) => RawBson::Int64(*v),
        (Type::Float { .. }, Value::Float(_) | Value::Float32(_)) => by_itself(value)?,
        (Type::Decimal { .. }, Value::Decimal(v)) => RawBson::Decimal128(decimal::pack(v)?),
        (Type::Text, value) => RawBson::String(as_text(value)?),
        (Type::Bytes, Value::Bytes(_)) | (Type::Uuid, Value::Uuid(_)) => by_itself(value)?,
        (
            Type::Date | Type::Timestamp | Type::TimestampTz,
            Value::Date(_) | Value::Timestamp(_) | Value::TimestampTz(_),
        ) => by_itself(value)?,
        (Type::Json | Type::Document, Value::Json(v)) => json::parse(v)?,
        (Type::Array(item), Value::Array(list)) => {
            let mut held = RawArrayBuf::new();
            for value in list {
                // A list of lists has the type of its innermost items in some stores.
                let kind = if matches!(value, Value::Array(_)) && !matches!(**item, Type::Array(_)) {
                    kind
                } else {
                    item
                };
                held.push(hold(kind, value)?);
            }
            RawBson::Array(held)
        }
        _ => return Err("it is not of the column's type"),
    })
}

/// The form of a value whose column says nothing.
fn by_itself(value: &Value<'_>) -> Result<RawBson, &'static str> {
    Ok(match value {
        Value::Null => RawBson::Null,
        Value::Bool(v) => RawBson::Boolean(*v),
        Value::Int(v) => RawBson::Int64(*v),
        Value::Float32(v) => RawBson::Double(f64::from(*v)),
        Value::Float(v) => RawBson::Double(*v),
        Value::Decimal(v) => RawBson::Decimal128(decimal::pack(v)?),
        Value::Text(v) => RawBson::String(v.as_ref().to_owned()),
        Value::Bytes(v) => RawBson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: v.to_vec() }),
        Value::Uuid(v) => RawBson::Binary(Binary { subtype: extended::UUID, bytes: v.to_vec() }),
        Value::Date(i32::MAX | i32::MIN) => return Err("a date here is not infinite"),
        Value::Date(v) => RawBson::DateTime(DateTime::from_millis(i64::from(*v) * DAY_MILLIS)),
        Value::Timestamp(Value::INFINITY | Value::NEG_INFINITY)
        | Value::TimestampTz(Value::INFINITY | Value::NEG_INFINITY) => {
            return Err("a date here is not infinite");
        }
        Value::Timestamp(v) | Value::TimestampTz(v) if v % 1_000 != 0 => {
            return Err("a date here has whole milliseconds");
        }
        Value::Timestamp(v) | Value::TimestampTz(v) => RawBson::DateTime(DateTime::from_millis(v / 1_000)),
        Value::Json(v) => json::parse(v)?,
        Value::Array(list) => {
            let mut held = RawArrayBuf::new();
            for value in list {
                held.push(by_itself(value)?);
            }
            RawBson::Array(held)
        }
        _ => return Err("it has no form here"),
    })
}

fn as_text(value: &Value<'_>) -> Result<String, &'static str> {
    Ok(match value {
        Value::Date(v) => text::date(*v),
        Value::Time(v) => text::time(*v),
        Value::Timestamp(v) => text::timestamp(*v),
        Value::TimestampTz(v) => text::timestamp_tz(*v),
        Value::Array(list) => text::list(list).ok_or("a list holds a number that JSON does not have")?,
        // These texts are those of the values themselves.
        Value::Float32(v) => format!("{v:?}"),
        Value::Float(v) => format!("{v:?}"),
        other => other.to_string(),
    })
}

/// The value that is read back from a field of a column of that type.
///
/// # Errors
/// Why there is none.
pub(crate) fn read(kind: &Type, held: RawBsonRef<'_>) -> Result<Value<'static>, &'static str> {
    const UNREADABLE: &str = "it cannot be read back";
    let json = |held: RawBsonRef<'_>| -> Result<Value<'static>, &'static str> {
        let mut out = String::new();
        extended::plain(held, &mut out).map_err(|_| UNREADABLE)?;
        Ok(Value::Json(out.into()))
    };
    Ok(match (kind, held) {
        (Type::Json | Type::Document, RawBsonRef::Null) => Value::Null,
        (Type::Json | Type::Document, held) => json(held)?,
        (Type::Array(item), RawBsonRef::Array(list)) => {
            let mut values = Vec::new();
            for held in list {
                values.push(read(item, held.map_err(|_| UNREADABLE)?)?);
            }
            Value::Array(values)
        }
        (_, RawBsonRef::Array(list)) => {
            let items = list.into_iter().map(|held| read(&Type::Any, held.map_err(|_| UNREADABLE)?));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        (kind, RawBsonRef::DateTime(v)) => {
            let millis = v.timestamp_millis();
            let micros = millis.checked_mul(1_000).ok_or(UNREADABLE);
            match kind {
                Type::Date if millis % DAY_MILLIS == 0 => {
                    Value::Date(i32::try_from(millis / DAY_MILLIS).map_err(|_| UNREADABLE)?)
                }
                Type::Timestamp => Value::Timestamp(micros?),
                _ => Value::TimestampTz(micros?),
            }
        }
        // The text of its digits is another value.
        (Type::Text, held @ RawBsonRef::ObjectId(_)) => json(held)?,
        (_, held) => scalar(held).map_or_else(|| json(held), Ok)?,
    })
}

/// The value of what is neither a list nor a document, if the model has one.
pub(crate) fn scalar(held: RawBsonRef<'_>) -> Option<Value<'static>> {
    Some(match held {
        RawBsonRef::Null => Value::Null,
        RawBsonRef::Boolean(v) => Value::Bool(v),
        RawBsonRef::Int32(v) => Value::Int(i64::from(v)),
        RawBsonRef::Int64(v) => Value::Int(v),
        RawBsonRef::Double(v) => Value::Float(v),
        RawBsonRef::String(v) => Value::Text(v.to_owned().into()),
        RawBsonRef::Binary(v) if v.subtype == extended::UUID => Value::Uuid(v.bytes.try_into().ok()?),
        RawBsonRef::Binary(v) if v.subtype == BinarySubtype::Generic => Value::Bytes(v.bytes.to_vec().into()),
        RawBsonRef::DateTime(v) => Value::TimestampTz(v.timestamp_millis().checked_mul(1_000)?),
        RawBsonRef::Decimal128(v) => Value::Decimal(text::decimal(&v.to_string()).into()),
        RawBsonRef::ObjectId(v) => Value::Text(hex(v).into()),
        _ => return None,
    })
}

fn hex(id: ObjectId) -> String {
    id.to_hex()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_comes_back() {
        let text = |value: &str| Value::Text(value.to_owned().into());
        for (kind, value, back) in [
            (Type::Bool, Value::Bool(true), None),
            (Type::Int { bits: 32 }, Value::Int(-5), None),
            (Type::Int { bits: 64 }, Value::Int(i64::MIN), None),
            (Type::Float { bits: 32 }, Value::Float32(0.1), Some(Value::Float(f64::from(0.1_f32)))),
            (Type::Decimal { precision: None, scale: None }, Value::Decimal("-1.00".into()), None),
            (Type::Text, text("né\0"), None),
            (Type::Text, Value::Date(0), Some(text("1970-01-01"))),
            (Type::Text, Value::TimestampTz(1), Some(text("1970-01-01 00:00:00.000001Z"))),
            (Type::Bytes, Value::Bytes((&b"\0\xff"[..]).into()), None),
            (Type::Uuid, Value::Uuid([7; 16]), None),
            (Type::Date, Value::Date(-1), None),
            (Type::TimestampTz, Value::TimestampTz(-1_000), None),
            (
                Type::Json,
                Value::Json("{\"b\": 1, \"a\": 1.50}".into()),
                Some(Value::Json("{\"b\":1,\"a\":1.50}".into())),
            ),
            (
                Type::Array(Box::new(Type::Int { bits: 32 })),
                Value::Array(vec![Value::Int(1), Value::Null]),
                None,
            ),
            (Type::Any, Value::Int(3), None),
        ] {
            let held = hold(&kind, &value).unwrap();
            let found = read(&kind, held.as_raw_bson_ref()).unwrap();
            assert_eq!(found, back.unwrap_or(value), "{kind:?}");
            let again = hold(&kind, &found).unwrap();
            assert_eq!(again, held, "{kind:?} is not the same when it is written again");
        }
    }

    /// Found by reading: another value was read as the one that had been written, so that a verification held them equal.
    #[test]
    fn what_is_not_what_was_written_is_read_as_something_else() {
        let list = |held: RawBson| {
            let mut list = RawArrayBuf::new();
            list.push(held);
            RawBson::Array(list)
        };
        let at = |millis| RawBson::DateTime(DateTime::from_millis(millis));
        let text = |digits: &str| Value::Text(digits.to_owned().into());
        let (id, day) = (ObjectId::from_bytes([10; 12]), Value::Date(1));
        for (kind, written, held) in [
            (Type::Text, text(&id.to_hex()), RawBson::ObjectId(id)),
            (
                Type::Array(Box::new(Type::Text)),
                Value::Array(vec![text(&id.to_hex())]),
                list(RawBson::ObjectId(id)),
            ),
            (Type::Text, text("5"), RawBson::Int32(5)),
            (Type::Date, day, at(DAY_MILLIS + 36_000_000)),
            (Type::Int { bits: 32 }, Value::Int(5), RawBson::Double(5.0)),
            (Type::Int { bits: 32 }, Value::Int(1), RawBson::Boolean(true)),
            (Type::Float { bits: 64 }, Value::Float(5.0), RawBson::Int32(5)),
            (Type::Decimal { precision: None, scale: None }, Value::Decimal("5".into()), RawBson::Int32(5)),
            (Type::Json, Value::Json("5".into()), RawBson::Double(5.0)),
        ] {
            let back = hold(&kind, &written).unwrap();
            let back = read(&kind, back.as_raw_bson_ref()).unwrap();
            assert_ne!(read(&kind, held.as_raw_bson_ref()), Ok(back), "{kind:?} {held:?}");
        }
        // Integers are what they are in whatever width.
        assert_eq!(read(&Type::Int { bits: 32 }, RawBsonRef::Int64(5)), Ok(Value::Int(5)));
        // A date that the model does not have is not infinite.
        for kind in [Type::Timestamp, Type::TimestampTz, Type::Date] {
            assert!(read(&kind, at(i64::MAX - DAY_MILLIS).as_raw_bson_ref()).is_err(), "{kind:?}");
        }
    }

    #[test]
    fn what_would_be_changed_is_refused() {
        for (kind, value) in [
            (Type::Int { bits: 32 }, Value::Int(1 << 31)),
            (Type::TimestampTz, Value::TimestampTz(1_001)),
            (Type::TimestampTz, Value::TimestampTz(Value::INFINITY)),
            (Type::Date, Value::Date(i32::MAX)),
            (
                Type::Decimal { precision: None, scale: None },
                Value::Decimal("1.0000000000000000000000000000000000".into()),
            ),
            (Type::Bool, Value::Int(1)),
        ] {
            assert!(hold(&kind, &value).is_err(), "{value:?}");
        }
    }
}
