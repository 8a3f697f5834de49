//! Messages in one piece: the JSON format of CloudEvents 1.0, "structured mode". Others may send it, and tools show it.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::error::{Error, Result, code};
use crate::message::{Headers, Message};

/// The media type of a message in one piece.
pub const MEDIA_TYPE: &str = "application/cloudevents+json";

/// The member that holds our headers, which CloudEvents has no place for.
const HEADERS: &str = "headers";

impl Message {
    /// The message as one line of JSON, with its headers in a member `headers`.
    pub fn to_json(&self) -> String {
        // Nothing of it can fail.
        serde_json::to_string(&Event(self)).unwrap_or_default()
    }

    /// Whether its body is JSON, where its media type says so.
    ///
    /// # Errors
    /// `message-invalid`, with the place in the body.
    pub fn check_json(&self) -> Result<()> {
        if !self.datacontenttype.as_deref().is_some_and(is_json) {
            return Ok(());
        }
        serde_json::from_slice::<serde::de::IgnoredAny>(&self.data).map(drop).map_err(|error| {
            let media_type = self.datacontenttype.as_deref().unwrap_or_default();
            Error::new(code::MESSAGE_INVALID, format!("the body is not {media_type}: {error}"))
        })
    }

    /// A message of the JSON format.
    ///
    /// # Errors
    /// `message-invalid` if it is no JSON object, or no message.
    pub fn from_json(text: &[u8]) -> Result<Self> {
        let invalid = |what: &str| Error::new(code::MESSAGE_INVALID, what.to_owned());
        let Members { members, twice } = serde_json::from_slice(text)
            .map_err(|error| invalid("it is no JSON object, as a message in one piece is").because(error))?;
        if let Some(name) = twice {
            return Err(invalid(&format!("the member {name} stands twice")));
        }
        if members.contains_key("data") && members.contains_key("data_base64") {
            return Err(invalid("it has both data and data_base64"));
        }
        if !members.contains_key("specversion") {
            return Err(invalid("it has no specversion, as a message in one piece has"));
        }
        let (mut attributes, mut headers) = (Vec::new(), Headers::default());
        for (name, value) in &members {
            match name.as_str() {
                "data" | "data_base64" => {}
                HEADERS => {
                    let all: BTreeMap<String, String> = serde_json::from_str(value.get())
                        .map_err(|error| invalid("its headers are no object of texts").because(error))?;
                    for (name, value) in all {
                        headers.set(&name, value)?;
                    }
                }
                name => attributes.extend(attribute(value)?.map(|value| (name, value))),
            }
        }
        let is_json = attributes
            .iter()
            .find(|(name, _)| *name == "datacontenttype")
            .is_none_or(|(_, media_type)| is_json(media_type));
        let data = match (members.get("data_base64"), members.get("data")) {
            (Some(data), _) => {
                let text: String = serde_json::from_str(data.get())
                    .map_err(|error| invalid("its data_base64 is no text").because(error))?;
                let decoded = STANDARD.decode(text);
                decoded.map_err(|error| invalid("its data_base64 is no base64").because(error))?.into()
            }
            (None, Some(data)) if is_json => Bytes::copy_from_slice(data.get().as_bytes()),
            (None, Some(data)) => match serde_json::from_str::<String>(data.get()) {
                Ok(text) => text.into(),
                Err(_) => Bytes::copy_from_slice(data.get().as_bytes()),
            },
            (None, None) => Bytes::new(),
        };
        let attributes = attributes.iter().map(|(name, value)| (*name, value.as_str()));
        Self::decode(attributes, headers.iter(), data)
    }
}

/// The value of an attribute as a text, none of one that is null.
fn attribute(value: &RawValue) -> Result<Option<String>> {
    match serde_json::from_str(value.get()) {
        Ok(serde_json::Value::String(text)) => Ok(Some(text)),
        Ok(serde_json::Value::Null) => Ok(None),
        Ok(serde_json::Value::Bool(_) | serde_json::Value::Number(_)) => Ok(Some(value.get().to_owned())),
        _ => Err(Error::new(code::MESSAGE_INVALID, "an attribute is neither text, number nor truth value")),
    }
}

/// Whether a body of this media type is a whole message.
pub(crate) fn is_whole(media_type: &str) -> bool {
    media_type.split(';').next().is_some_and(|bare| bare.trim().eq_ignore_ascii_case(MEDIA_TYPE))
}

fn is_json(media_type: &str) -> bool {
    let media_type = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media_type.ends_with("/json") || media_type.ends_with("+json")
}

/// The members of an object, and one that stands there twice: which of both is meant nobody knows.
struct Members {
    members: BTreeMap<String, Box<RawValue>>,
    twice: Option<String>,
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let (mut members, mut twice) = (BTreeMap::new(), None);
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if members.insert(name.clone(), value).is_some() {
                        twice = Some(name);
                    }
                }
                Ok(Members { members, twice })
            }
        }
        deserializer.deserialize_map(Each)
    }
}

struct Event<'a>(&'a Message);

impl Serialize for Event<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let message = self.0;
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in message.attributes() {
            map.serialize_entry(name, &*value)?;
        }
        if !message.headers.is_empty() {
            let headers: BTreeMap<&str, &str> = message.headers.iter().collect();
            map.serialize_entry(HEADERS, &headers)?;
        }
        match body(message) {
            Body::None => {}
            Body::Json(json) => map.serialize_entry("data", &json)?,
            Body::Text(text) => map.serialize_entry("data", text)?,
            Body::Bytes(text) => map.serialize_entry("data_base64", &text)?,
        }
        map.end()
    }
}

enum Body<'a> {
    None,
    Json(Box<RawValue>),
    Text(&'a str),
    Bytes(String),
}

/// The body in the form in which it is read back. Without a media type it is JSON there.
fn body(message: &Message) -> Body<'_> {
    if message.data.is_empty() {
        return Body::None;
    }
    let is_json = message.datacontenttype.as_deref().is_none_or(is_json);
    match std::str::from_utf8(&message.data) {
        Ok(text) if is_json => {
            // Between its tokens alone, so that the message stays on its line.
            let line = text.replace(['\n', '\r'], " ");
            match RawValue::from_string(line) {
                Ok(json) => Body::Json(json),
                Err(_) => Body::Bytes(STANDARD.encode(&message.data)),
            }
        }
        Ok(text) => Body::Text(text),
        Err(_) => Body::Bytes(STANDARD.encode(&message.data)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(media_type: &str, data: impl Into<Bytes>) -> Message {
        Message::with_id("7", "/shop", "order.placed").with_data(media_type, data)
    }

    #[test]
    fn golden_lines() {
        let order = message("application/json", "{\n \"total\": 12.50 }").with_subject("o-1");
        let order = order.with_time(1_700_000_000_000_000).with_header("region", "eu").unwrap();
        assert_eq!(
            order.to_json(),
            concat!(
                r#"{"specversion":"1.0","id":"7","source":"/shop","type":"order.placed","subject":"o-1","#,
                r#""time":"2023-11-14T22:13:20Z","datacontenttype":"application/json","#,
                r#""headers":{"region":"eu"},"data":{  "total": 12.50 }}"#
            )
        );
        let text = message("text/plain", "a \"line\"");
        assert!(text.to_json().ends_with(r#""datacontenttype":"text/plain","data":"a \"line\""}"#));
        let bytes = message("image/png", vec![0, 255]);
        assert!(bytes.to_json().ends_with(r#""data_base64":"AP8="}"#));
    }

    #[test]
    fn of_two_that_contradict_each_other_none_is_taken() {
        let head = r#"{"specversion":"1.0","source":"s","type":"t""#;
        for (rest, words) in [
            (r#","id":"1","id":"2"}"#, "the member id stands twice"),
            (r#","id":"1","data":1,"data_base64":"AP8="}"#, "it has both data and data_base64"),
        ] {
            let error = Message::from_json(format!("{head}{rest}").as_bytes()).unwrap_err();
            assert_eq!((error.code(), error.message()), (code::MESSAGE_INVALID, words));
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for message in [
            message("application/json", r#"{"a":1e400,"b":[1.10]}"#),
            message("application/vnd.shop+json; charset=utf-8", "17"),
            message("application/json", "{no json"),
            message("text/plain", "17"),
            message("text/plain", "zwei\nZeilen"),
            message("application/octet-stream", vec![0, 159, 146, 150]),
            Message::with_id("8", "s", "t"),
            Message { data: "plain".into(), ..Message::with_id("9", "s", "t") },
            message("a/b", "x").with_header("empty", "").unwrap(),
        ] {
            let line = message.to_json();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(Message::from_json(line.as_bytes()).unwrap(), message, "{line}");
        }
    }

    #[test]
    fn what_others_write_is_read() {
        let theirs =
            br#"{"specversion":"1.0","type":"t","source":"s","id":"1","partitionkey":"k","sequence":7,
            "comexampleothervalue":null,"datacontenttype":"text/xml","data":"<much wow=\"xml\"/>"}"#;
        let message = Message::from_json(theirs).unwrap();
        assert_eq!(message.data, r#"<much wow="xml"/>"#);
        assert_eq!(message.extensions.get("partitionkey"), Some("k"));
        assert_eq!(message.extensions.get("sequence"), Some("7"));
        let implied = br#"{"specversion":"1.0","type":"t","source":"s","id":"1","data":"a text"}"#;
        assert_eq!(
            Message::from_json(implied).unwrap().data,
            r#""a text""#,
            "without a media type it is JSON"
        );
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (text, why) in [
            ("17", "no JSON object"),
            (r#"{"type":"t","source":"s","id":"1"}"#, "no specversion"),
            (r#"{"specversion":"0.3","type":"t","source":"s","id":"1"}"#, "CloudEvents 0.3"),
            (r#"{"specversion":"1.0","source":"s","id":"1"}"#, "type"),
            (r#"{"specversion":"1.0","type":"t","source":"s","id":"1","data_base64":"?"}"#, "no base64"),
            (r#"{"specversion":"1.0","type":"t","source":"s","id":"1","x":[1]}"#, "neither text"),
            (
                r#"{"specversion":"1.0","type":"t","source":"s","id":"1","headers":{"a":1}}"#,
                "no object of texts",
            ),
        ] {
            let error = Message::from_json(text.as_bytes()).unwrap_err();
            assert_eq!(error.code(), code::MESSAGE_INVALID);
            assert!(error.message().contains(why), "{error}");
        }
    }

    #[test]
    fn a_broker_may_carry_it_in_one_piece() {
        let message = message("application/json", "{}").with_subject("k");
        let body = Bytes::from(message.to_json());
        for media_type in [MEDIA_TYPE, "application/cloudevents+json; charset=UTF-8"] {
            let read =
                Message::decode([("datacontenttype", media_type)], [("hop", "1")], body.clone()).unwrap();
            assert_eq!(read, message.clone().with_header("hop", "1").unwrap());
        }
        let batch = [("datacontenttype", "application/cloudevents-batch+json")];
        assert!(Message::decode(batch, [], body).is_err());
    }
}
