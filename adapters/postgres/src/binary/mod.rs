//! Values in the binary form of the server: what its `…_send` functions write and its `…_recv` functions read.
//!
//! Reading borrows where it can and refuses what is malformed with `stream-malformed`; writing appends to a
//! buffer and refuses with `value-unfit` what no value of the type is. Neither ever rounds or cuts.
//! [`put_field`] and [`put_null`] add the length that stands before every value in `COPY`, in arrays and in
//! parameters.

pub(crate) mod array;
pub(crate) mod bits;
pub(crate) mod network;
pub(crate) mod numeric;
pub(crate) mod time;

use std::borrow::Cow;

use bytes::{BufMut as _, BytesMut};
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

/// The one version of the binary form of `jsonb` that exists.
const JSONB_VERSION: u8 = 1;

/// Reads a `boolean`.
///
/// # Errors
/// `stream-malformed`, as all readers here.
pub(crate) fn bool(bytes: &[u8]) -> Result<bool> {
    match bytes {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(malformed("boolean", bytes)),
    }
}

/// Defines a reader and a writer of a number of fixed length.
macro_rules! numbers {
    ($($read:ident $write:ident $type:ty, $name:literal;)*) => {
        $(
            #[allow(dead_code, reason = "one pair for each type; not every half is needed")]
            #[doc = concat!("Reads a `", $name, "`.")]
            ///
            /// # Errors
            /// `stream-malformed` when the length is another.
            pub(crate) fn $read(bytes: &[u8]) -> Result<$type> {
                bytes.try_into().map(<$type>::from_be_bytes).map_err(|_| malformed($name, bytes))
            }

            #[allow(dead_code, reason = "one pair for each type; not every half is needed")]
            #[doc = concat!("Writes a `", $name, "`.")]
            pub(crate) fn $write(out: &mut BytesMut, value: $type) {
                out.put_slice(&value.to_be_bytes());
            }
        )*
    };
}

numbers! {
    int2 put_int2 i16, "smallint";
    int4 put_int4 i32, "integer";
    int8 put_int8 i64, "bigint";
    float4 put_float4 f32, "real";
    float8 put_float8 f64, "double precision";
    oid put_oid u32, "oid";
    money put_money i64, "money";
    char put_char u8, "\"char\"";
}

/// Writes a `boolean`.
pub(crate) fn put_bool(out: &mut BytesMut, value: bool) {
    out.put_u8(u8::from(value));
}

/// The text of a `"char"`: nothing for a byte of zero, and `\ooo`, in octal digits, for one above 127, as the server writes it
/// since version 16.
pub(crate) fn char_text(bytes: &[u8]) -> Result<Cow<'_, str>> {
    Ok(match bytes {
        [0] => Cow::Borrowed(""),
        [high @ 128..=u8::MAX] => Cow::Owned(format!("\\{high:03o}")),
        other => Cow::Borrowed(text(other)?),
    })
}

/// The byte whose text this is, if there is one.
pub(crate) fn char_of(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [] => Some(0),
        [one @ 1..=127] => Some(*one),
        [b'\\', octal @ ..] if octal.len() == 3 => {
            u8::from_str_radix(&text[1..], 8).ok().filter(|byte| *byte > 127)
        }
        _ => None,
    }
}

/// Reads a `text`, `varchar`, `bpchar`, `name`, `json`, `xml` or the label of an enum.
///
/// # Errors
/// `stream-malformed` when it is not UTF-8, as in a database without an encoding.
pub(crate) fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|error| malformed("text", bytes).because(error))
}

/// Writes a `text`, `varchar`, `bpchar`, `name`, `json`, `xml` or the label of an enum.
///
/// # Errors
/// `value-unfit` for a zero byte, which no text of the server can hold.
pub(crate) fn put_text(out: &mut BytesMut, value: &str) -> Result<()> {
    if value.as_bytes().contains(&0) {
        return Err(unfit("a text of PostgreSQL cannot hold a zero byte"));
    }
    out.put_slice(value.as_bytes());
    Ok(())
}

/// Reads a `jsonb` as the text the server would show.
///
/// # Errors
/// `stream-malformed` for an unknown version or what is not UTF-8.
pub(crate) fn jsonb(bytes: &[u8]) -> Result<&str> {
    match bytes.split_first() {
        Some((&JSONB_VERSION, json)) => text(json),
        _ => Err(malformed("jsonb", bytes)),
    }
}

/// Writes a `jsonb`; the server parses the text.
///
/// # Errors
/// `value-unfit` for a zero byte.
pub(crate) fn put_jsonb(out: &mut BytesMut, json: &str) -> Result<()> {
    out.put_u8(JSONB_VERSION);
    put_text(out, json)
}

/// Reads a `uuid`.
///
/// # Errors
/// `stream-malformed` when the length is another.
pub(crate) fn uuid(bytes: &[u8]) -> Result<[u8; 16]> {
    bytes.try_into().map_err(|_| malformed("uuid", bytes))
}

/// Writes a `uuid`.
pub(crate) fn put_uuid(out: &mut BytesMut, value: [u8; 16]) {
    out.put_slice(&value);
}

/// Writes a `bytea`. Reading one is reading its bytes.
pub(crate) fn put_bytea(out: &mut BytesMut, value: &[u8]) {
    out.put_slice(value);
}

/// Writes what `put` writes, with its length in front.
///
/// # Errors
/// What `put` refuses, and `body-too-large` beyond the 2 GB a length can say. The buffer is then as before.
pub(crate) fn put_field(out: &mut BytesMut, put: impl FnOnce(&mut BytesMut) -> Result<()>) -> Result<()> {
    let start = out.len();
    out.put_i32(0);
    let written = put(out).and_then(|()| {
        i32::try_from(out.len() - start - 4)
            .map_err(|_| Error::new(code::BODY_TOO_LARGE, "a value is longer than the protocol can carry"))
    });
    match written {
        Ok(length) => {
            out[start..start + 4].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Writes the length that means null.
pub(crate) fn put_null(out: &mut BytesMut) {
    out.put_i32(-1);
}

/// The value itself stays out of the error: it may be a secret of the user's.
fn malformed(name: &'static str, bytes: &[u8]) -> Error {
    Error::new(code::STREAM_MALFORMED, "a value is not in the binary form of its type")
        .with("type", name)
        .with("bytes", bytes.len())
}

fn unfit(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(code::VALUE_UNFIT, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_read_as_written_and_refused_at_any_other_length() {
        let mut out = BytesMut::new();
        put_int2(&mut out, -2);
        put_int4(&mut out, -4);
        put_int8(&mut out, i64::MIN);
        put_float8(&mut out, -0.0);
        put_bool(&mut out, true);
        assert_eq!(int2(&out[..2]).unwrap(), -2);
        assert_eq!(int4(&out[2..6]).unwrap(), -4);
        assert_eq!(int8(&out[6..14]).unwrap(), i64::MIN);
        assert!(float8(&out[14..22]).unwrap().is_sign_negative());
        assert!(bool(&out[22..]).unwrap());
        assert!(
            int4(&out[..3]).is_err() && int4(&out[..5]).is_err() && bool(&[2]).is_err() && bool(&[]).is_err()
        );
        assert_eq!(jsonb(b"\x01{}").unwrap(), "{}");
        assert!(jsonb(b"\x02{}").is_err() && jsonb(b"").is_err() && text(&[0xFF]).is_err());
    }

    #[test]
    fn a_refused_field_leaves_no_trace() {
        let mut out = BytesMut::from(&b"x"[..]);
        let error = put_field(&mut out, |out| put_text(out, "a\0b")).unwrap_err();
        assert_eq!(error.code(), code::VALUE_UNFIT);
        assert_eq!(&out[..], b"x");
        put_field(&mut out, |out| put_text(out, "ab")).unwrap();
        put_null(&mut out);
        assert_eq!(&out[..], b"x\0\0\0\x02ab\xFF\xFF\xFF\xFF");
    }
}
