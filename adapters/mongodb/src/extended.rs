//! BSON as text: canonical Extended JSON, which loses nothing, and plain JSON for what was JSON before.
//!
//! Extended JSON has one text for the number 5 and for a document whose only field is called `$numberInt`. Here a field
//! that is called as the first field of a value's text, or so behind more `$`, has one `$` more.

use std::fmt::Write as _;

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{RawBsonRef, RawDocument};
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

/// Appends a document as canonical Extended JSON, in its order.
pub(crate) fn document(document: &RawDocument, out: &mut String) -> Result<()> {
    fields(document, Form::Canonical, out)
}

/// Appends a value as canonical Extended JSON.
pub(crate) fn canonical(value: RawBsonRef<'_>, out: &mut String) -> Result<()> {
    write(value, Form::Canonical, out)
}

/// Appends a value as JSON whose numbers are bare.
pub(crate) fn plain(value: RawBsonRef<'_>, out: &mut String) -> Result<()> {
    write(value, Form::Plain, out)
}

/// The first fields of the texts of values.
const TAGS: [&str; 15] = [
    "numberInt",
    "numberLong",
    "numberDouble",
    "numberDecimal",
    "oid",
    "date",
    "timestamp",
    "binary",
    "symbol",
    "code",
    "regularExpression",
    "undefined",
    "minKey",
    "maxKey",
    // A key that would be taken for an ObjectId (see `codec`).
    "string",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Canonical,
    Plain,
}

fn fields(document: &RawDocument, form: Form, out: &mut String) -> Result<()> {
    out.push('{');
    for (at, field) in document.iter().enumerate() {
        let (key, value) = field.map_err(unreadable)?;
        if at > 0 {
            out.push(',');
        }
        name(key.as_str(), out)?;
        out.push(':');
        write(value, form, out)?;
    }
    out.push('}');
    Ok(())
}

/// Appends the name of a field, so that its document is not taken for a value.
fn name(name: &str, out: &mut String) -> Result<()> {
    if name.starts_with('$') && TAGS.contains(&name.trim_start_matches('$')) {
        return string(&format!("${name}"), out);
    }
    string(name, out)
}

fn write(value: RawBsonRef<'_>, form: Form, out: &mut String) -> Result<()> {
    match value {
        RawBsonRef::Null => out.push_str("null"),
        RawBsonRef::Boolean(v) => out.push_str(if v { "true" } else { "false" }),
        RawBsonRef::String(v) => string(v, out)?,
        RawBsonRef::Document(v) => fields(v, form, out)?,
        RawBsonRef::Array(v) => {
            out.push('[');
            for (at, item) in v.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write(item.map_err(unreadable)?, form, out)?;
            }
            out.push(']');
        }
        RawBsonRef::Int32(v) if form == Form::Plain => push(out, format_args!("{v}")),
        RawBsonRef::Int64(v) if form == Form::Plain => push(out, format_args!("{v}")),
        RawBsonRef::Double(v) if form == Form::Plain && v.is_finite() => push(out, format_args!("{v:?}")),
        RawBsonRef::Decimal128(v) if form == Form::Plain => push(out, format_args!("{v}")),
        RawBsonRef::Int32(v) => push(out, format_args!("{{\"$numberInt\":\"{v}\"}}")),
        RawBsonRef::Int64(v) => push(out, format_args!("{{\"$numberLong\":\"{v}\"}}")),
        RawBsonRef::Double(v) => push(out, format_args!("{{\"$numberDouble\":\"{}\"}}", double(v))),
        RawBsonRef::Decimal128(v) => push(out, format_args!("{{\"$numberDecimal\":\"{v}\"}}")),
        RawBsonRef::ObjectId(v) => push(out, format_args!("{{\"$oid\":\"{}\"}}", v.to_hex())),
        RawBsonRef::DateTime(v) => {
            push(out, format_args!("{{\"$date\":{{\"$numberLong\":\"{}\"}}}}", v.timestamp_millis()));
        }
        RawBsonRef::Timestamp(v) => {
            push(out, format_args!("{{\"$timestamp\":{{\"t\":{},\"i\":{}}}}}", v.time, v.increment));
        }
        RawBsonRef::Binary(v) => {
            push(
                out,
                format_args!(
                    "{{\"$binary\":{{\"base64\":\"{}\",\"subType\":\"{:02x}\"}}}}",
                    base64(v.bytes),
                    u8::from(v.subtype)
                ),
            );
        }
        RawBsonRef::Symbol(v) => {
            out.push_str("{\"$symbol\":");
            string(v, out)?;
            out.push('}');
        }
        RawBsonRef::JavaScriptCode(v) => {
            out.push_str("{\"$code\":");
            string(v, out)?;
            out.push('}');
        }
        RawBsonRef::JavaScriptCodeWithScope(v) => {
            out.push_str("{\"$code\":");
            string(v.code, out)?;
            out.push_str(",\"$scope\":");
            fields(v.scope, form, out)?;
            out.push('}');
        }
        RawBsonRef::RegularExpression(v) => {
            out.push_str("{\"$regularExpression\":{\"pattern\":");
            string(v.pattern.as_str(), out)?;
            out.push_str(",\"options\":");
            string(v.options.as_str(), out)?;
            out.push_str("}}");
        }
        RawBsonRef::Undefined => out.push_str("{\"$undefined\":true}"),
        RawBsonRef::MinKey => out.push_str("{\"$minKey\":1}"),
        RawBsonRef::MaxKey => out.push_str("{\"$maxKey\":1}"),
        RawBsonRef::DbPointer(_) => {
            return Err(Error::new(code::VALUE_UNFIT, "a value of the withdrawn type DBPointer has no text"));
        }
    }
    Ok(())
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = out.write_fmt(text);
}

fn string(text: &str, out: &mut String) -> Result<()> {
    let text = serde_json::to_string(text)
        .map_err(|e| Error::new(code::INTERNAL, "a text cannot be written as JSON").because(e))?;
    out.push_str(&text);
    Ok(())
}

fn double(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        format!("{value:?}")
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            if place > group.len() {
                out.push('=');
            } else {
                out.push(char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]));
            }
        }
    }
    out
}

/// What is said of bytes that are not BSON.
pub(crate) fn unreadable(error: mongodb::bson::error::Error) -> Error {
    Error::new(code::STREAM_MALFORMED, "a document cannot be read").because(error)
}

/// The subtype of universally unique identifiers.
pub(crate) const UUID: BinarySubtype = BinarySubtype::Uuid;

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::{Bson, RawDocumentBuf, doc, oid::ObjectId};

    #[test]
    fn canonical_text_is_that_of_the_specification() {
        let oid = ObjectId::from_bytes([1; 12]);
        let binary = mongodb::bson::Binary { subtype: UUID, bytes: vec![1, 2, 3, 4] };
        let value = doc! { "b": 1_i32, "a": [2_i64, 1.0, f64::NAN], "o": oid, "x": binary, "n": Bson::Null };
        let mut out = String::new();
        document(&RawDocumentBuf::try_from(&value).unwrap(), &mut out).unwrap();
        assert_eq!(
            out,
            r#"{"b":{"$numberInt":"1"},"a":[{"$numberLong":"2"},{"$numberDouble":"1.0"},{"$numberDouble":"NaN"}],"o":{"$oid":"010101010101010101010101"},"x":{"$binary":{"base64":"AQIDBA==","subType":"04"}},"n":null}"#
        );
    }

    /// Found by reading: `{a: {$numberInt: "5"}}` and `{a: 5}` were one text.
    #[test]
    fn a_document_that_looks_like_a_value_has_another_text() {
        use mongodb::bson::{DateTime, Decimal128, RawBson, Timestamp, rawdoc};
        let text = |held: &RawBson, form| {
            let mut out = String::new();
            write(held.as_raw_bson_ref(), form, &mut out).unwrap();
            out
        };
        let values = [
            RawBson::Int32(5),
            RawBson::Int64(5),
            RawBson::Double(f64::NAN),
            RawBson::Decimal128(Decimal128::from_bytes([1; 16])),
            RawBson::ObjectId(ObjectId::from_bytes([1; 12])),
            RawBson::DateTime(DateTime::from_millis(5)),
            RawBson::Timestamp(Timestamp { time: 1, increment: 2 }),
            RawBson::Binary(mongodb::bson::Binary { subtype: UUID, bytes: vec![1] }),
            RawBson::Symbol("x".into()),
            RawBson::JavaScriptCode("x".into()),
            RawBson::RegularExpression(mongodb::bson::Regex {
                pattern: mongodb::bson::raw::cstr!("x").into(),
                options: mongodb::bson::raw::cstr!("").into(),
            }),
            RawBson::Undefined,
            RawBson::MinKey,
            RawBson::MaxKey,
        ];
        let mut seen = std::collections::HashSet::new();
        for value in values {
            let tagged: serde_json::Value = serde_json::from_str(&text(&value, Form::Canonical)).unwrap();
            let (tag, _) = tagged.as_object().unwrap().iter().next().unwrap();
            for name in [tag.clone(), format!("${tag}"), format!("$${tag}")] {
                let name = mongodb::bson::raw::CString::try_from(name).unwrap();
                let mut alike = RawDocumentBuf::new();
                alike.append(name, "5");
                let alike = RawBson::Document(alike);
                let said = text(&alike, Form::Canonical);
                assert!(!said.starts_with(&format!("{{{tag:?}:")) && seen.insert(said), "{alike:?}");
                assert_eq!(text(&alike, Form::Canonical), text(&alike, Form::Plain));
            }
            assert!(seen.insert(text(&value, Form::Canonical)), "{value:?}");
        }
        // Other names stand as they are.
        let other =
            RawBson::Document(rawdoc! { "$ref": "c", "$cash": "5", "$$x": "5", "numberInt": "5", "$": "5" });
        assert_eq!(
            text(&other, Form::Canonical),
            r#"{"$ref":"c","$cash":"5","$$x":"5","numberInt":"5","$":"5"}"#
        );
    }
}
