//! Messages as headers and a body, as the NATS binding of CloudEvents has them in its binary mode; and what NATS says of a
//! message in the subject to answer to.

use std::str::FromStr as _;

use async_nats::header::{HeaderMap, HeaderName, HeaderValue, NATS_MESSAGE_ID};
use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use tidegate_broker::unsettled::Place;
use tidegate_core::error::code;
use tidegate_core::{Error, Lane, Message, Name, Result};

/// What stands before the name of an attribute of CloudEvents.
const ATTRIBUTE: &str = "ce-";
const CONTENT_TYPE: &str = "content-type";
/// What stands before the names of NATS's own headers.
const OWN: &str = "nats-";
/// What is not put into a header as it is. The binding says so of attributes, and headers are no different.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The stream of a channel. Streams may not have dots, and channels have no such character.
pub(crate) fn stream(channel: &Name) -> String {
    format!("tidegate-{}", channel.as_str().replace('.', "~"))
}

/// The subject of a lane; of any lane, if there is none.
pub(crate) fn subject(channel: &Name, lane: Option<Lane>) -> String {
    match lane {
        Some(lane) => format!("tidegate.{channel}.{}", lane.0),
        None => format!("tidegate.{channel}.*"),
    }
}

/// The headers of a message, with the one by which the server knows it again.
pub(crate) fn encode(message: &Message) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let mut put = |name: &str, value: &str| {
        let name = HeaderName::from_str(name);
        let value = HeaderValue::from_str(&utf8_percent_encode(value, ENCODED).to_string());
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Error::new(code::MESSAGE_INVALID, "a header cannot be carried by NATS"));
        };
        headers.insert(name, value);
        Ok(())
    };
    for (name, value) in message.attributes() {
        put(&[ATTRIBUTE, name].concat(), &value)?;
    }
    for (name, value) in message.headers.iter() {
        put(name, value)?;
    }
    headers.insert(NATS_MESSAGE_ID, id(message));
    Ok(headers)
}

/// A message of headers and a body.
pub(crate) fn decode(headers: Option<&HeaderMap>, body: Bytes) -> Result<Message> {
    let (mut attributes, mut others) = (Vec::new(), Vec::new());
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        let lower = name.to_ascii_lowercase();
        if lower.starts_with(OWN) {
            continue;
        }
        let value = values.first().map(HeaderValue::as_str).unwrap_or_default();
        let value = percent_decode_str(value).decode_utf8().map_err(|error| {
            Error::new(code::MESSAGE_INVALID, format!("the header {name} is no UTF-8")).because(error)
        })?;
        match lower.strip_prefix(ATTRIBUTE) {
            Some(attribute) => attributes.push((attribute.to_owned(), value)),
            // Whoever sends a message in one piece says so here.
            None if lower == CONTENT_TYPE => attributes.push(("datacontenttype".to_owned(), value)),
            None => others.push((name.to_owned(), value)),
        }
    }
    let attributes = attributes.iter().map(|(name, value)| (&**name, &**value));
    Message::decode(attributes, others.iter().map(|(name, value)| (&**name, &**value)), body)
}

/// The id of a message among those of a channel.
fn id(message: &Message) -> String {
    // What is encoded has no space.
    let encoded = |text| utf8_percent_encode(text, ENCODED);
    format!("{} {}", encoded(&message.source), encoded(&message.dedupe_id()))
}

/// What NATS says of a message that a consumer gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delivered<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) place: Place,
    /// Which of the consumer's messages it is, from 1.
    pub(crate) number: u64,
    /// In microseconds since 1970.
    pub(crate) stored_at: i64,
}

impl<'a> Delivered<'a> {
    /// Of the subject to answer to: `$JS.ACK`, since 2.2 with a domain and an account, then stream, consumer, how often it was
    /// given, its sequence, the consumer's, its time and how many follow.
    pub(crate) fn of(reply: &'a str) -> Option<Self> {
        let words: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let words = if words.len() == 7 { &words[..] } else { words.get(2..9)? };
        let [_, consumer, _, place, number, nanos, _] = *words else { return None };
        Some(Self {
            consumer,
            place: place.parse().ok()?,
            number: number.parse().ok()?,
            stored_at: nanos.parse::<i64>().ok()? / 1_000,
        })
    }
}

#[cfg(test)]
mod tests {
    use tidegate_conformance::{Part, golden, golden_channel};

    use super::*;

    #[test]
    fn a_message_is_what_the_page_says_and_is_read_back() {
        let channel = golden_channel().unwrap();
        let carry = |message: &Message| {
            let headers = encode(message)?;
            let subject = subject(&channel.name, Some(message.lane(channel.lanes)));
            let mut parts: Vec<Part> = vec![("subject", String::new(), subject.into())];
            let mut named: Vec<Part> = headers
                .iter()
                .map(|(name, values)| ("header", name.to_string(), values[0].as_str().into()))
                .collect();
            // The client sends them in any order.
            named.sort();
            parts.append(&mut named);
            parts.push(("payload", String::new(), message.data.to_vec()));
            Ok((parts, decode(Some(&headers), message.data.clone())?))
        };
        golden("NATS", carry).unwrap();
    }

    #[test]
    fn a_whole_event_is_read() {
        let message = Message::with_id("7", "/shop", "order placed");
        let mut whole = HeaderMap::new();
        whole.insert("Content-Type", "application/cloudevents+json");
        assert_eq!(decode(Some(&whole), message.to_json().into()).unwrap(), message);
        assert_eq!(decode(None, Bytes::new()).unwrap_err().code(), code::MESSAGE_INVALID);
    }

    #[test]
    fn channels_are_apart_and_so_are_ids() {
        let name = |text: &str| Name::new(text).unwrap();
        assert_eq!(stream(&name("orders.placed")), "tidegate-orders~placed");
        assert_eq!(subject(&name("orders.placed"), Some(Lane(3))), "tidegate.orders.placed.3");
        assert_eq!(subject(&name("orders"), None), "tidegate.orders.*");
        let id = |source: &str, number: &str| id(&Message::with_id(number, source, "t"));
        assert_ne!(id("a b", "c"), id("a", "b c"));
    }

    #[test]
    fn what_nats_says_of_a_message_is_read_in_both_forms() {
        let right = Some(Delivered { consumer: "c", place: 70, number: 3, stored_at: 1_700_000_000_123_456 });
        assert_eq!(Delivered::of("$JS.ACK.s.c.1.70.3.1700000000123456789.0"), right);
        assert_eq!(Delivered::of("$JS.ACK._.hash.s.c.1.70.3.1700000000123456789.0.token"), right);
        for wrong in ["$JS.ACK.s.c.1.x.3.1.0", "$JS.ACK.s.c", "_INBOX.1"] {
            assert_eq!(Delivered::of(wrong), None, "{wrong}");
        }
    }
}
