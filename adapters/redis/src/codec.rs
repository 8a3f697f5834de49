//! Messages as fields of an entry, and places as its id.

use std::borrow::Cow;

use bytes::Bytes;
use redis::Value;
use tidegate_broker::unsettled::Place;
use tidegate_core::error::code;
use tidegate_core::{Error, Message, Result};

/// What stands before the name of an attribute of CloudEvents.
const ATTRIBUTE: &str = "ce_";
/// The name of the body's field.
const BODY: &str = "data";
/// The field that says of a body that it is a whole message.
const CONTENT_TYPE: &str = "content-type";
/// How many bits of a place are the number within a millisecond.
const NUMBER_BITS: u32 = 20;

/// The fields of a message: names and values in turn.
pub(crate) fn encode(message: &Message) -> Vec<Cow<'_, [u8]>> {
    let mut fields = Vec::new();
    for (name, value) in message.attributes() {
        fields.push(Cow::Owned([ATTRIBUTE, name].concat().into_bytes()));
        fields.push(match value {
            Cow::Borrowed(value) => Cow::Borrowed(value.as_bytes()),
            Cow::Owned(value) => Cow::Owned(value.into_bytes()),
        });
    }
    for (name, value) in message.headers.iter() {
        fields.extend([Cow::Borrowed(name.as_bytes()), Cow::Borrowed(value.as_bytes())]);
    }
    fields.extend([Cow::Borrowed(BODY.as_bytes()), Cow::Borrowed(&*message.data)]);
    fields
}

/// A message of the fields of an entry; without one, why, and the body as it came.
pub(crate) fn decode(fields: Vec<Value>) -> std::result::Result<Message, (Error, Bytes)> {
    let (mut attributes, mut headers, mut body) = (Vec::new(), Vec::new(), Bytes::new());
    let mut failed = None;
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match (text(name), value) {
            (Ok(name), Value::BulkString(value)) if name == BODY => body = value.into(),
            (Ok(name), value) => match (text(value), name.strip_prefix(ATTRIBUTE)) {
                (Ok(value), Some(attribute)) => attributes.push((attribute.to_owned(), value)),
                // Whoever writes a message in one piece says so here.
                (Ok(value), None) if name == CONTENT_TYPE => {
                    attributes.push(("datacontenttype".to_owned(), value))
                }
                (Ok(value), None) => headers.push((name, value)),
                (Err(error), _) => failed = Some(error),
            },
            (Err(error), _) => failed = Some(error),
        }
    }
    if let Some(error) = failed {
        return Err((error, body));
    }
    fn pairs(all: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
        all.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
    Message::decode(pairs(&attributes), pairs(&headers), body.clone()).map_err(|error| (error, body))
}

/// The id of a message among those of a channel.
pub(crate) fn name(message: &Message) -> String {
    // No attribute has a control character.
    format!("{}\n{}", message.source, message.dedupe_id())
}

/// The id of an entry.
pub(crate) fn entry_id(place: Place) -> String {
    format!("{}-{}", place >> NUMBER_BITS, place & ((1 << NUMBER_BITS) - 1))
}

/// The place of an entry by its id.
pub(crate) fn place(id: &str) -> Result<Place> {
    let unknown = || Error::new(code::STREAM_MALFORMED, format!("the id {id:?} of an entry is no place"));
    let (millis, number) = id.split_once('-').ok_or_else(unknown)?;
    let millis: u64 = millis.parse().map_err(|_| unknown())?;
    let number: u64 = number.parse().map_err(|_| unknown())?;
    if millis >> (u64::BITS - NUMBER_BITS) != 0 || number >> NUMBER_BITS != 0 {
        return Err(unknown());
    }
    Ok(millis << NUMBER_BITS | number)
}

/// When the entry of a place was stored, in microseconds since 1970.
pub(crate) fn stored_at(place: Place) -> i64 {
    i64::try_from(place >> NUMBER_BITS).unwrap_or(i64::MAX).saturating_mul(1_000)
}

/// The first place of this time.
pub(crate) fn place_at(time: i64) -> Place {
    u64::try_from(time / 1_000).unwrap_or(0) << NUMBER_BITS
}

pub(crate) fn bytes(value: Value) -> Result<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        other => Err(unexpected(&other, "bytes were")),
    }
}

/// Something else came than was expected; it is not shown, since it may be what stands in a message.
pub(crate) fn unexpected(came: &Value, expected: &'static str) -> Error {
    let kind = match came {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) => "bytes",
        Value::SimpleString(_) | Value::Okay | Value::VerbatimString { .. } => "text",
        Value::Array(_) | Value::Set(_) => "a list",
        Value::Map(_) => "a map",
        Value::ServerError(_) => "an error",
        _ => "something else",
    };
    Error::new(code::STREAM_MALFORMED, format!("{kind} came where {expected} expected"))
}

pub(crate) fn text(value: Value) -> Result<String> {
    String::from_utf8(bytes(value)?)
        .map_err(|_| Error::new(code::MESSAGE_INVALID, "a field's name or an attribute is no UTF-8"))
}

#[cfg(test)]
mod tests {
    use tidegate_conformance::{Part, golden, golden_channel};

    use super::*;
    use crate::log::key;

    fn fields(message: &Message) -> Vec<Value> {
        encode(message).into_iter().map(|part| Value::BulkString(part.into_owned())).collect()
    }

    #[test]
    fn an_entry_is_what_the_page_says_and_is_read_back() {
        let channel = golden_channel().unwrap();
        let carry = |message: &Message| {
            let stream = key(&channel.name, &format!("lane:{}", message.lane(channel.lanes).0));
            let mut parts: Vec<Part> = vec![("stream", String::new(), stream.into())];
            let fields = fields(message);
            for pair in fields.chunks(2) {
                parts.push(("field", text(pair[0].clone())?, bytes(pair[1].clone())?));
            }
            Ok((parts, decode(fields).map_err(|(error, _)| error)?))
        };
        golden("Redis", carry).unwrap();
    }

    #[test]
    fn a_whole_event_is_read_and_what_is_none_is_kept() {
        let message = Message::with_id("7", "/shop", "order.placed");
        let field = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let whole = [CONTENT_TYPE, "application/cloudevents+json", BODY, &message.to_json()].map(field);
        assert_eq!(decode(whole.into()).unwrap(), message);
        let lacking = vec![Value::BulkString(b"data".to_vec()), Value::BulkString(vec![0xff])];
        let (error, body) = decode(lacking).unwrap_err();
        assert_eq!((error.code(), &body[..]), (code::MESSAGE_INVALID, &[0xff][..]));
    }

    #[test]
    fn places_are_ids_and_sort_like_them() {
        for id in ["0-1", "1764440000000-0", "1764440000000-1048575"] {
            assert_eq!(entry_id(place(id).unwrap()), id);
        }
        assert!(place("5-9").unwrap() < place("6-0").unwrap());
        for id in ["1-1048576", "99999999999999999-0", "x-1", "7"] {
            assert!(place(id).is_err(), "{id}");
        }
        assert_eq!(stored_at(place("1764440000123-4").unwrap()), 1_764_440_000_123_000);
        assert_eq!(entry_id(place_at(1_764_440_000_123_999)), "1764440000123-0");
    }
}
