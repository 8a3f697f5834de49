//! Messages as headers and a body, as the AMQP binding of CloudEvents has them in its binary mode.

use std::borrow::Cow;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use tidegate_core::error::code;
use tidegate_core::{Error, Message, Result};

/// What stands before the name of an attribute of CloudEvents.
const ATTRIBUTE: &str = "cloudEvents_";
/// The same from programs that keep to the letter of the binding.
const ATTRIBUTE_TOO: &str = "cloudEvents:";
/// What stands before the names of the server's own headers.
const OWN: &str = "x-";
/// The attribute that is a property of AMQP.
const CONTENT_TYPE: &str = "datacontenttype";
/// Survives the server.
const PERSISTENT: u8 = 2;

/// The properties of a message. Its id is one of them too, for people and other programs.
pub(crate) fn encode(message: &Message) -> BasicProperties {
    let mut headers = FieldTable::default();
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    for (name, value) in message.attributes() {
        match name {
            CONTENT_TYPE if value.len() <= usize::from(u8::MAX) => {
                properties = properties.with_content_type(value.into_owned().into());
            }
            name => {
                headers.insert([ATTRIBUTE, name].concat().into(), text_value(&value));
            }
        }
    }
    for (name, value) in message.headers.iter() {
        headers.insert(name.into(), text_value(value));
    }
    if message.id.len() <= usize::from(u8::MAX) {
        properties = properties.with_message_id((*message.id).into());
    }
    properties.with_headers(headers)
}

fn text_value(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// A message of properties and a body.
pub(crate) fn decode(properties: &BasicProperties, body: Bytes) -> Result<Message> {
    let (mut attributes, mut headers) = (Vec::new(), Vec::new());
    if let Some(kind) = properties.content_type() {
        attributes.push((CONTENT_TYPE, Cow::Borrowed(kind.as_str())));
    }
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        let name = name.as_str();
        if name.starts_with(OWN) {
            continue;
        }
        let value = text(name, value)?;
        match name.strip_prefix(ATTRIBUTE).or_else(|| name.strip_prefix(ATTRIBUTE_TOO)) {
            Some(attribute) => attributes.push((attribute, value)),
            None => headers.push((name, value)),
        }
    }
    let attributes = attributes.iter().map(|(name, value)| (*name, &**value));
    Message::decode(attributes, headers.iter().map(|(name, value)| (*name, &**value)), body)
}

fn text<'a>(name: &str, value: &'a AMQPValue) -> Result<Cow<'a, str>> {
    Ok(match value {
        AMQPValue::LongString(text) => {
            let text = std::str::from_utf8(text.as_bytes()).map_err(|error| {
                Error::new(code::MESSAGE_INVALID, format!("the header {name} is no UTF-8")).because(error)
            })?;
            Cow::Borrowed(text)
        }
        AMQPValue::ShortString(text) => Cow::Borrowed(text.as_str()),
        AMQPValue::Boolean(value) => value.to_string().into(),
        AMQPValue::ShortShortInt(value) => value.to_string().into(),
        AMQPValue::ShortShortUInt(value) => value.to_string().into(),
        AMQPValue::ShortInt(value) => value.to_string().into(),
        AMQPValue::ShortUInt(value) => value.to_string().into(),
        AMQPValue::LongInt(value) => value.to_string().into(),
        AMQPValue::LongUInt(value) => value.to_string().into(),
        AMQPValue::LongLongInt(value) => value.to_string().into(),
        AMQPValue::Float(value) => value.to_string().into(),
        AMQPValue::Double(value) => value.to_string().into(),
        AMQPValue::Void => Cow::Borrowed(""),
        other => {
            let text = format!("the header {name} is neither text nor a number: {:?}", other.get_type());
            return Err(Error::new(code::MESSAGE_INVALID, text));
        }
    })
}

#[cfg(test)]
mod tests {
    use lapin::types::ShortString;
    use tidegate_conformance::{Part, golden, golden_channel};

    use super::*;
    use crate::queues::exchange;

    #[test]
    fn a_message_is_what_the_page_says_and_is_read_back() {
        let channel = golden_channel().unwrap();
        let carry = |message: &Message| {
            let properties = encode(message);
            let text = |text: Option<&ShortString>| text.map(|text| text.as_str().into()).unwrap_or_default();
            let mut parts: Vec<Part> = vec![
                ("exchange", String::new(), exchange(&channel.name).as_str().into()),
                ("routing key", String::new(), message.lane(channel.lanes).0.to_string().into()),
            ];
            let mut put = |name: &str, value: Vec<u8>| {
                parts.push(("property", name.to_owned(), value));
            };
            if properties.content_type().is_some() {
                put("content_type", text(properties.content_type().as_ref()));
            }
            put("delivery_mode", properties.delivery_mode().unwrap_or_default().to_string().into());
            put("message_id", text(properties.message_id().as_ref()));
            for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
                let AMQPValue::LongString(value) = value else { panic!("{name} is {value:?}") };
                parts.push(("header", name.to_string(), value.as_bytes().to_vec()));
            }
            parts.push(("body", String::new(), message.data.to_vec()));
            Ok((parts, decode(&properties, message.data.clone())?))
        };
        golden("RabbitMQ", carry).unwrap();
    }

    #[test]
    fn what_other_programs_write_is_read() {
        let mut headers = FieldTable::default();
        for (name, value) in [("cloudEvents:id", "7"), ("cloudEvents:source", "s"), ("cloudEvents:type", "t")]
        {
            headers.insert(name.into(), text_value(value));
        }
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(3));
        headers.insert("count".into(), AMQPValue::LongInt(-5));
        let properties = BasicProperties::default().with_headers(headers.clone());
        let message = decode(&properties, Bytes::new()).unwrap();
        assert_eq!((&*message.id, message.headers.get("count"), message.headers.len()), ("7", Some("-5"), 1));
        headers.insert("odd".into(), AMQPValue::FieldTable(FieldTable::default()));
        let error = decode(&BasicProperties::default().with_headers(headers), Bytes::new()).unwrap_err();
        assert!(error.code() == code::MESSAGE_INVALID && error.message().contains("odd"), "{error}");
    }
}
