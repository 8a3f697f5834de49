//! Writes values of the canonical model in the server's binary form, exactly or not at all.

use bytes::BytesMut;
use tidegate_core::error::code;
use tidegate_core::{Error, Result, Type, Value};

use crate::binary::array::{Dimension, put_array};
use crate::binary::time::{Date, Time, Timestamp};
use crate::binary::{self, numeric::put_numeric};
use crate::form::{Form, numeric_modifier};

/// What a column of the target takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The number of its type; of a domain, that of the type below it.
    pub(crate) oid: u32,
    /// The modifier of the type: a length, a scale; -1 for none.
    pub(crate) modifier: i32,
    /// What its values are.
    pub(crate) kind: Type,
    /// Of an array, the type of its elements.
    pub(crate) element: Option<u32>,
}

/// Appends a value that is not null.
///
/// # Errors
/// `value-unfit` if the column cannot hold exactly this value.
pub(crate) fn put_value(out: &mut BytesMut, taken: &Taken, value: &Value<'_>) -> Result<()> {
    let form = Form::of(taken.oid, &taken.kind);
    if let (Form::Array, Value::Array(list)) = (form, value) {
        return put_list(out, taken, list);
    }
    put(out, form, taken.modifier, value)
}

fn put(out: &mut BytesMut, form: Form, modifier: i32, value: &Value<'_>) -> Result<()> {
    match (form, value) {
        (Form::Bool, Value::Bool(v)) => binary::put_bool(out, *v),
        (Form::Int2, Value::Int(v)) => {
            binary::put_int2(out, (*v).try_into().map_err(|_| out_of_range(form))?)
        }
        (Form::Int4, Value::Int(v)) => {
            binary::put_int4(out, (*v).try_into().map_err(|_| out_of_range(form))?)
        }
        (Form::Int8, Value::Int(v)) => binary::put_int8(out, *v),
        (Form::Oid, Value::Int(v)) => binary::put_oid(out, (*v).try_into().map_err(|_| out_of_range(form))?),
        (Form::Float4, Value::Float32(v)) => binary::put_float4(out, *v),
        (Form::Float8, Value::Float32(v)) => binary::put_float8(out, (*v).into()),
        (Form::Float8, Value::Float(v)) => binary::put_float8(out, *v),
        (Form::Numeric, Value::Decimal(v)) => decimal(out, modifier, v)?,
        (Form::Numeric, Value::Int(v)) => decimal(out, modifier, &v.to_string())?,
        (Form::Text, Value::Text(v) | Value::Json(v)) => binary::put_text(out, short(v, modifier)?)?,
        (Form::Bpchar | Form::Xml, Value::Text(v)) => binary::put_text(out, v)?,
        (Form::Char, Value::Text(v)) => match binary::char_of(v) {
            Some(byte) => binary::put_char(out, byte),
            None => return Err(unfit("a text is longer than one character")),
        },
        (Form::Bytes, Value::Bytes(v)) => binary::put_bytea(out, v),
        (Form::Uuid, Value::Uuid(v)) => binary::put_uuid(out, *v),
        (Form::Date, Value::Date(v)) => match *v {
            i32::MAX => Date::INFINITY,
            i32::MIN => Date::MINUS_INFINITY,
            days => Date::from_unix_days(days.into())?,
        }
        .put(out),
        (Form::Time, Value::Time(v)) => {
            if !(0..=86_400_000_000).contains(v) {
                return Err(out_of_range(form));
            }
            Time(whole(*v, modifier)?).put(out);
        }
        (Form::Timestamp, Value::Timestamp(v)) | (Form::TimestampTz, Value::TimestampTz(v)) => match *v {
            Value::INFINITY => Timestamp::INFINITY,
            Value::NEG_INFINITY => Timestamp::MINUS_INFINITY,
            micros => Timestamp::from_unix_micros(whole(micros, modifier)?)?,
        }
        .put(out),
        (Form::Json, Value::Json(v) | Value::Text(v)) => binary::put_text(out, v)?,
        (Form::Jsonb, Value::Json(v) | Value::Text(v)) => binary::put_jsonb(out, v)?,
        _ => {
            return Err(unfit(format!("a value of kind {} does not fit its column", value.kind())));
        }
    }
    Ok(())
}

/// The server would cut spaces that are beyond the declared length.
fn short(text: &str, modifier: i32) -> Result<&str> {
    let length = modifier.checked_sub(4).and_then(|length| usize::try_from(length).ok());
    match length.filter(|length| text.chars().nth(*length).is_some()) {
        Some(length) => Err(unfit(format!("a text is longer than {length} characters"))),
        None => Ok(text),
    }
}

/// The server would round to the declared precision.
fn whole(micros: i64, modifier: i32) -> Result<i64> {
    let unit =
        u32::try_from(modifier).ok().filter(|places| *places < 6).map_or(1, |places| 10_i64.pow(6 - places));
    if micros % unit == 0 { Ok(micros) } else { Err(unfit("a time is more precise than its column")) }
}

/// The server would round to the declared scale.
fn decimal(out: &mut BytesMut, modifier: i32, text: &str) -> Result<()> {
    if let Some((precision, scale)) = numeric_modifier(modifier)
        && text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.".contains(&byte))
    {
        let (whole, fraction) = text.trim_start_matches(['+', '-']).split_once('.').unwrap_or((text, ""));
        let whole = whole.trim_start_matches(['+', '-', '0']);
        let fraction = fraction.trim_end_matches('0');
        let digits = i64::try_from(whole.len()).unwrap_or(i64::MAX);
        let zeros = whole.len() - whole.trim_end_matches('0').len();
        let too_fine = if scale >= 0 {
            i64::try_from(fraction.len()).unwrap_or(i64::MAX) > scale.into()
        } else {
            !fraction.is_empty() || !whole.is_empty() && (zeros as i64) < -i64::from(scale)
        };
        if too_fine || digits > i64::from(precision) - i64::from(scale) {
            return Err(unfit(format!("a number does not fit numeric({precision},{scale})")));
        }
    }
    put_numeric(out, text)
}

fn put_list(out: &mut BytesMut, taken: &Taken, list: &[Value<'_>]) -> Result<()> {
    let mut kind = &taken.kind;
    while let Type::Array(inner) = kind {
        kind = inner;
    }
    let element = taken.element.ok_or_else(|| unfit("an array of unknown elements"))?;
    let mut dimensions = Vec::new();
    let mut level: Vec<&Value<'_>> = list.iter().collect();
    dimensions.push(level.len());
    while level.iter().any(|value| matches!(value, Value::Array(_))) {
        let mut next = Vec::new();
        let mut length = None;
        for value in &level {
            let Value::Array(inner) = value else { return Err(ragged()) };
            if *length.get_or_insert(inner.len()) != inner.len() {
                return Err(ragged());
            }
            next.extend(inner);
        }
        dimensions.push(length.unwrap_or(0));
        level = next;
    }
    let dimensions: Vec<Dimension> = dimensions
        .into_iter()
        .map(|length| Dimension { length: i32::try_from(length).unwrap_or(i32::MAX), lower: 1 })
        .collect();
    let elements: Vec<Option<&Value<'_>>> =
        level.into_iter().map(|value| (*value != Value::Null).then_some(value)).collect();
    let form = Form::of(element, kind);
    put_array(out, element, &dimensions, &elements, |out, value| put(out, form, taken.modifier, value))
}

fn ragged() -> Error {
    unfit("the lists of a list are not of one length")
}

fn out_of_range(form: Form) -> Error {
    unfit(format!("a number is out of the range of {form:?}"))
}

fn unfit(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(code::VALUE_UNFIT, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_would_be_rounded_is_refused() {
        let modifier = (5 << 16 | 2) + 4;
        for (text, fits) in
            [("1.20", true), ("999.99", true), ("1000", false), ("0.125", false), ("-1.10", true)]
        {
            let mut out = BytesMut::new();
            assert_eq!(decimal(&mut out, modifier, text).is_ok(), fits, "{text}");
        }
        assert!(whole(1_500, 3).is_err() && whole(1_000, 3).is_ok() && whole(1, -1).is_ok());
    }

    /// Found by reading: of a text that is too long by spaces alone the server cuts them, and says nothing.
    #[test]
    fn a_text_that_would_be_cut_is_refused() {
        for (text, fits) in [("éé", true), ("éé ", false), ("", true)] {
            let mut out = BytesMut::new();
            let value = Value::Text(text.into());
            assert_eq!(put(&mut out, Form::Text, 4 + 2, &value).is_ok(), fits, "{text:?}");
        }
    }

    #[test]
    fn every_byte_of_a_char_has_a_text_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        for byte in 0..=u8::MAX {
            let text = binary::char_text(&[byte]).unwrap().into_owned();
            let mut out = BytesMut::new();
            put(&mut out, Form::Char, -1, &Value::Text(text.clone().into())).unwrap();
            assert_eq!(out[..], [byte]);
            assert!(seen.insert(text));
        }
        for longer in ["ab", "é", "\\101", "\\37", "\\999", "\\+77"] {
            assert!(
                put(&mut BytesMut::new(), Form::Char, -1, &Value::Text(longer.into())).is_err(),
                "{longer}"
            );
        }
    }
}
