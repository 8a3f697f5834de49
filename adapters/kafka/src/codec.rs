//! Messages as records, in the binary mode of CloudEvents' binding for Kafka, and places as partitions and offsets.

use std::sync::Arc;

use bytes::Bytes;
use rdkafka::Timestamp;
use rdkafka::message::{Header, Headers as _, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use tidegate_broker::hand::Fetched;
use tidegate_broker::unsettled::Place;
use tidegate_core::error::code;
use tidegate_core::port::Attempt;
use tidegate_core::{Channel, Error, Headers, Lane, Message, Name, Result};

/// What stands before the name of an attribute.
const ATTRIBUTE: &str = "ce_";
/// The header of the body's media type.
const CONTENT_TYPE: &str = "content-type";
/// How many bits of a place are its offset, and one more.
const OFFSET_BITS: u32 = 54;

/// The place of a message.
pub(crate) fn place(lane: Lane, offset: i64) -> Place {
    u64::from(lane.0) << OFFSET_BITS | offset.cast_unsigned().saturating_add(1)
}

/// The lane of a place, and the offset behind it.
pub(crate) fn offset_behind(place: Place) -> (Lane, i64) {
    let lane = u32::try_from(place >> OFFSET_BITS).unwrap_or(u32::MAX);
    (Lane(lane), (place & ((1 << OFFSET_BITS) - 1)).cast_signed())
}

/// The record of a message: its key is the subject, its value the body.
pub(crate) fn encode<'a>(channel: &'a Channel, message: &'a Message) -> FutureRecord<'a, str, [u8]> {
    let mut record = FutureRecord::to(channel.name.as_str())
        .partition(message.lane(channel.lanes).0.cast_signed())
        .payload(&*message.data)
        .headers(headers(message));
    record.key = message.subject.as_deref();
    record
}

fn headers(message: &Message) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new();
    for (name, value) in message.attributes() {
        let name =
            if name == "datacontenttype" { CONTENT_TYPE.to_owned() } else { [ATTRIBUTE, name].concat() };
        headers = headers.insert(Header { key: &name, value: Some(value.as_bytes()) });
    }
    for (name, value) in message.headers.iter() {
        headers = headers.insert(Header { key: name, value: Some(value.as_bytes()) });
    }
    headers
}

/// A message of a record; what is none comes as [`Message::undecodable`].
pub(crate) fn fetched(channel: &Name, lane: Lane, record: &impl rdkafka::Message) -> Fetched {
    let place = place(lane, record.offset());
    let body = || Bytes::copy_from_slice(record.payload().unwrap_or_default());
    let message = decode(record, body())
        .unwrap_or_else(|error| Message::undecodable(channel, lane, place, &error, body()));
    let message = Arc::new(message);
    let stored_at = match record.timestamp() {
        Timestamp::LogAppendTime(millis) => Some(millis.saturating_mul(1_000)),
        // That is the clock of whoever sent it.
        Timestamp::CreateTime(_) | Timestamp::NotAvailable => None,
    };
    Fetched { place, message, stored_at, attempt: Attempt::AtLeast(1), has_position: true }
}

fn decode(record: &impl rdkafka::Message, body: Bytes) -> Result<Message> {
    // As many as most messages have.
    let (mut attributes, mut headers) = (Vec::with_capacity(12), Vec::new());
    let all = record.headers().into_iter().flat_map(|headers| headers.iter());
    for Header { key, value } in all {
        // Other programs may give no value.
        let value = std::str::from_utf8(value.unwrap_or_default());
        let value =
            value.map_err(|_| Error::new(code::MESSAGE_INVALID, format!("the header {key:?} is no UTF-8")));
        match key.strip_prefix(ATTRIBUTE) {
            Some(attribute) => attributes.push((attribute, value?)),
            None if key.eq_ignore_ascii_case(CONTENT_TYPE) => attributes.push(("datacontenttype", value?)),
            // What only Kafka can carry is not carried on.
            None if Headers::default().set(key, "").is_err() => {}
            None => headers.push((key, value?)),
        }
    }
    Message::decode(attributes, headers, body)
}

#[cfg(test)]
mod tests {
    use rdkafka::message::OwnedMessage;
    use tidegate_conformance::{Part, golden, golden_channel};

    use super::*;

    fn record(headers: Option<OwnedHeaders>, payload: Option<&[u8]>) -> OwnedMessage {
        let payload = payload.map(<[u8]>::to_vec);
        OwnedMessage::new(payload, None, "t".to_owned(), Timestamp::LogAppendTime(5), 3, 7, headers)
    }

    fn read(record: &OwnedMessage) -> Fetched {
        fetched(&Name::new("t").unwrap(), Lane(3), record)
    }

    #[test]
    fn a_record_is_what_the_page_says_and_is_read_back() {
        let channel = golden_channel().unwrap();
        let carry = |message: &Message| {
            let sent = encode(&channel, message);
            let mut parts: Vec<Part> = vec![
                ("topic", String::new(), sent.topic.into()),
                ("partition", String::new(), sent.partition.unwrap().to_string().into()),
            ];
            parts.extend(sent.key.map(|key| ("key", String::new(), key.into())));
            let headers = sent.headers.unwrap();
            parts.extend(
                headers
                    .iter()
                    .map(|header| ("header", header.key.to_owned(), header.value.unwrap().to_vec())),
            );
            parts.push(("value", String::new(), sent.payload.unwrap().to_vec()));
            let read = read(&record(Some(headers), sent.payload)).message;
            Ok((parts, Arc::unwrap_or_clone(read)))
        };
        golden("Kafka", carry).unwrap();
    }

    #[test]
    fn a_record_that_is_a_whole_event_is_read() {
        let message = Message::with_id("7", "/shop", "order.placed")
            .with_subject("order-1")
            .with_data("application/json", r#"{"a":1}"#)
            .with_header("region", "")
            .unwrap();
        let media_type = Header { key: "content-type", value: Some("application/cloudevents+json") };
        let whole = record(Some(OwnedHeaders::new().insert(media_type)), Some(message.to_json().as_bytes()));
        let fetched = read(&whole);
        assert_eq!((&*fetched.message, fetched.stored_at), (&message, Some(5_000)));
        assert_eq!(fetched.place, place(Lane(3), 7));
    }

    #[test]
    fn what_others_write_is_never_too_strange() {
        let cases: [(Option<OwnedHeaders>, Option<&[u8]>); 4] = [
            (None, None),
            (None, Some(b"\xff")),
            (Some(OwnedHeaders::new().insert::<[u8]>(Header { key: "ce_id", value: None })), Some(b"x")),
            (Some(OwnedHeaders::new().insert(Header { key: "ce_id", value: Some(&[0xff_u8][..]) })), None),
        ];
        for (headers, payload) in cases {
            let fetched = read(&record(headers, payload));
            assert_eq!(&*fetched.message.kind, tidegate_core::message::UNDECODABLE);
            assert_eq!(fetched.message.data, payload.unwrap_or_default());
        }
        let mut headers = OwnedHeaders::new();
        for (key, value) in [
            ("ce_specversion", "1.0"),
            ("ce_id", "1"),
            ("ce_source", "s"),
            ("ce_type", "t"),
            ("__TypeId__", "java"),
        ] {
            headers = headers.insert(Header { key, value: Some(value.as_bytes()) });
        }
        headers = headers.insert::<[u8]>(Header { key: "note", value: None });
        let message = read(&record(Some(headers), None)).message;
        assert_eq!((&*message.id, message.headers.get("note"), message.headers.len()), ("1", Some(""), 1));
    }

    #[test]
    fn places_are_offsets_of_lanes() {
        for (lane, offset) in [(0, 0), (7, 41), (1_023, (1 << 53) - 2)] {
            assert_eq!(offset_behind(place(Lane(lane), offset)), (Lane(lane), offset + 1));
        }
        assert_eq!(offset_behind(0), (Lane(0), 0));
        assert!(place(Lane(2), 5) < place(Lane(2), 6) && place(Lane(2), i64::MAX >> 11) < place(Lane(3), 0));
    }
}
