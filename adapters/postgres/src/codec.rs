//! Reads cells in the server's binary form.

use std::borrow::Cow;

use tidegate_core::error::code;
use tidegate_core::{Codec, Column, Encoding, Error, Result, Type, Value};

use crate::binary::array::{Array, Dimension};
use crate::binary::network::{Inet, mac};
use crate::binary::time::{Date, Interval, Time, TimeTz, Timestamp};
use crate::binary::{self, bits::bits, numeric::numeric};
use crate::form::Form;

/// The encoding of cells as the server sends them in binary form.
pub(crate) const ENCODING: Encoding = Encoding("postgres-binary");

/// Reads [`ENCODING`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Binary;

impl Codec for Binary {
    fn encoding(&self) -> Encoding {
        ENCODING
    }

    fn has_values(&self, column: &Column) -> bool {
        Form::of(column.native_id, &column.kind) != Form::Opaque
    }

    fn value<'a>(&self, column: &Column, cell: &'a [u8]) -> Result<Value<'a>> {
        value(Form::of(column.native_id, &column.kind), &column.kind, cell)
            .map_err(|error| error.with("column", &column.name))
    }

    fn key(&self, column: &Column, cell: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let form = Form::of(column.native_id, &column.kind);
        if form.is_plain_key() {
            out.extend_from_slice(cell);
            return Ok(());
        }
        match form {
            Form::Float4 => {
                let number = binary::float4(cell)?;
                let number = if number.is_nan() { f32::NAN } else { number + 0.0 };
                out.extend(number.to_be_bytes());
            }
            Form::Float8 => {
                let number = binary::float8(cell)?;
                let number = if number.is_nan() { f64::NAN } else { number + 0.0 };
                out.extend(number.to_be_bytes());
            }
            // The server keeps no zero groups at either end, so that equal numbers differ in their scale alone.
            Form::Numeric => match cell {
                [head @ .., _, _] if head.len() == 6 => out.extend_from_slice(head),
                [a, b, c, d, e, f, _, _, digits @ ..] => {
                    out.extend([*a, *b, *c, *d, *e, *f]);
                    out.extend_from_slice(digits);
                }
                _ => drop(numeric(cell)?),
            },
            Form::Bpchar => {
                let end = cell.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
                out.extend_from_slice(&cell[..end]);
            }
            _ => {
                // The server compares intervals with months of 30 days and days of 24 hours.
                let Interval { months, days, micros } = Interval::read(cell)?;
                let days = i128::from(months) * 30 + i128::from(days);
                out.extend((days * 86_400_000_000 + i128::from(micros)).to_be_bytes());
            }
        }
        Ok(())
    }
}

fn value<'a>(form: Form, kind: &Type, cell: &'a [u8]) -> Result<Value<'a>> {
    Ok(match form {
        Form::Bool => Value::Bool(binary::bool(cell)?),
        Form::Int2 => Value::Int(binary::int2(cell)?.into()),
        Form::Int4 => Value::Int(binary::int4(cell)?.into()),
        Form::Int8 => Value::Int(binary::int8(cell)?),
        Form::Oid => Value::Int(binary::oid(cell)?.into()),
        Form::Float4 => Value::Float32(binary::float4(cell)?),
        Form::Float8 => Value::Float(binary::float8(cell)?),
        Form::Numeric => Value::Decimal(Cow::Owned(numeric(cell)?)),
        Form::Text | Form::Bpchar => Value::Text(Cow::Borrowed(binary::text(cell)?)),
        Form::Char => Value::Text(binary::char_text(cell)?),
        Form::Bytes => Value::Bytes(Cow::Borrowed(cell)),
        Form::Uuid => Value::Uuid(binary::uuid(cell)?),
        Form::Date => Value::Date(match Date::read(cell)? {
            Date::INFINITY => i32::MAX,
            Date::MINUS_INFINITY => i32::MIN,
            date => date.unix_days().and_then(|days| i32::try_from(days).ok()).ok_or_else(too_far)?,
        }),
        Form::Time => Value::Time(Time::read(cell)?.0),
        Form::Timestamp => Value::Timestamp(micros(cell)?),
        Form::TimestampTz => Value::TimestampTz(micros(cell)?),
        Form::Json => Value::Json(Cow::Borrowed(binary::text(cell)?)),
        Form::Jsonb => Value::Json(Cow::Borrowed(binary::jsonb(cell)?)),
        Form::Xml => Value::Text(Cow::Borrowed(binary::text(cell)?)),
        Form::Money => Value::Text(Cow::Owned(money(binary::money(cell)?))),
        Form::TimeTz => Value::Text(Cow::Owned(TimeTz::read(cell)?.to_string())),
        Form::Interval => Value::Text(Cow::Owned(Interval::read(cell)?.to_string())),
        Form::Inet => Value::Text(Cow::Owned(Inet::read(cell)?.to_string())),
        Form::Mac => Value::Text(Cow::Owned(mac(cell)?)),
        Form::Bits => Value::Text(Cow::Owned(bits(cell)?)),
        Form::Array => list(kind, cell)?,
        Form::Opaque => {
            return Err(Error::new(code::VALUE_UNFIT, "values of this type are known to PostgreSQL alone"));
        }
    })
}

fn micros(cell: &[u8]) -> Result<i64> {
    match Timestamp::read(cell)? {
        Timestamp::INFINITY => Ok(Value::INFINITY),
        Timestamp::MINUS_INFINITY => Ok(Value::NEG_INFINITY),
        instant => instant.unix_micros().ok_or_else(too_far),
    }
}

fn too_far() -> Error {
    Error::new(code::VALUE_UNFIT, "a date is too far away")
}

/// Hundredths as a decimal number: `money` in a currency with two places.
fn money(hundredths: i64) -> String {
    let sign = if hundredths < 0 { "-" } else { "" };
    format!("{sign}{}.{:02}", hundredths.unsigned_abs() / 100, hundredths.unsigned_abs() % 100)
}

/// An array as a list, of lists when it has several dimensions.
fn list<'a>(kind: &Type, cell: &'a [u8]) -> Result<Value<'a>> {
    let Type::Array(element) = kind else {
        return Err(Error::new(code::INTERNAL, "an array in a column that is none"));
    };
    let array = Array::read(cell)?;
    // The lower bounds are lost in a list: an array that has others is not this value.
    if array.dimensions().iter().any(|dimension| dimension.lower != 1) {
        return Err(Error::new(code::VALUE_UNFIT, "an array does not begin at 1"));
    }
    let mut element: &Type = element;
    while let Type::Array(inner) = element {
        element = inner;
    }
    let form = Form::of(array.element_oid(), element);
    let mut values = Vec::with_capacity(array.len());
    for cell in array.elements() {
        values.push(cell.map_or(Ok(Value::Null), |cell| value(form, element, cell))?);
    }
    Ok(nest(array.dimensions(), values))
}

fn nest<'a>(dimensions: &[Dimension], mut values: Vec<Value<'a>>) -> Value<'a> {
    for dimension in dimensions.iter().skip(1).rev() {
        let length = usize::try_from(dimension.length).unwrap_or(1).max(1);
        let mut rows = Vec::with_capacity(values.len() / length);
        let mut rest = values.into_iter();
        loop {
            let row: Vec<_> = rest.by_ref().take(length).collect();
            if row.is_empty() {
                break;
            }
            rows.push(Value::Array(row));
        }
        values = rows;
    }
    Value::Array(values)
}

/// The text that the server reads a key's cell from.
pub(crate) fn text_of(column: &Column, cell: &[u8]) -> Result<String> {
    Ok(match Form::of(column.native_id, &column.kind) {
        Form::Bytes => {
            let mut text = String::with_capacity(2 + 2 * cell.len());
            text.push_str("\\x");
            cell.iter().for_each(|byte| text.push_str(&format!("{byte:02x}")));
            text
        }
        Form::Date => Date::read(cell)?.to_string(),
        Form::Time => Time::read(cell)?.to_string(),
        Form::Timestamp => Timestamp::read(cell)?.to_string(),
        Form::TimestampTz => Timestamp::read(cell)?.to_text_utc(),
        Form::Float4 => float(binary::float4(cell)?.into(), binary::float4(cell)?.to_string()),
        Form::Float8 => float(binary::float8(cell)?, binary::float8(cell)?.to_string()),
        form => value(form, &column.kind, cell)?.to_string(),
    })
}

fn float(number: f64, text: String) -> String {
    match (number.is_infinite(), number > 0.0) {
        (true, true) => "Infinity".to_owned(),
        (true, false) => "-Infinity".to_owned(),
        (false, _) => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(oid: u32, kind: Type) -> Column {
        Column { native_id: oid, ..Column::new("c", kind) }
    }

    fn key(oid: u32, kind: Type, cell: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Binary.key(&column(oid, kind), cell, &mut out).unwrap();
        out
    }

    #[test]
    fn equal_keys_have_equal_bytes() {
        let numeric = |text: &str| {
            let mut out = bytes::BytesMut::new();
            binary::numeric::put_numeric(&mut out, text).unwrap();
            key(1700, Type::Decimal { precision: None, scale: None }, &out)
        };
        assert_eq!(numeric("1.0"), numeric("1.000"));
        assert_eq!(numeric("0"), numeric("0.00"));
        assert_ne!(numeric("1.0"), numeric("1.01"));
        assert_ne!(numeric("1"), numeric("10000"));
        assert_eq!(key(1042, Type::Text, b"a  "), key(1042, Type::Text, b"a"));
        assert_ne!(key(25, Type::Text, b"a "), key(25, Type::Text, b"a"));
        let zero = Type::Float { bits: 64 };
        assert_eq!(key(701, zero.clone(), &(-0.0_f64).to_be_bytes()), key(701, zero, &0.0_f64.to_be_bytes()));
    }

    #[test]
    fn arrays_become_lists_of_lists() {
        let mut out = bytes::BytesMut::new();
        let dimensions = [Dimension { length: 2, lower: 1 }, Dimension { length: 2, lower: 1 }];
        let elements = [Some(1), Some(2), None, Some(4)];
        binary::array::put_array(&mut out, 23, &dimensions, &elements, |out, value| {
            binary::put_int4(out, *value);
            Ok(())
        })
        .unwrap();
        let kind = Type::Array(Box::new(Type::Int { bits: 32 }));
        let row = |a, b| Value::Array(vec![a, b]);
        assert_eq!(
            Binary.value(&column(1007, kind), &out).unwrap(),
            row(row(Value::Int(1), Value::Int(2)), row(Value::Null, Value::Int(4)))
        );
    }
}
