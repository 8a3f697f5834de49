//! Messages of AMQP 1.0, as its binding of CloudEvents has them in its binary mode and clients of JMS understand them.

use bytes::Bytes;
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Data, Header, Message as Amqp, MessageAnnotations, MessageId,
    Properties,
};
use fe2o3_amqp::types::primitives::{Binary, OrderedMap, SimpleValue, Symbol, Value};
use tidegate_core::error::code;
use tidegate_core::{Error, Message, Result};

use crate::json;
use crate::server::Server;

/// What stands before the name of an attribute of CloudEvents: a colon is no part of a name in JMS.
const ATTRIBUTE: &str = "cloudEvents_";
/// The same from programs that keep to the letter of the binding.
const ATTRIBUTE_TOO: &str = "cloudEvents:";
/// How the names of a server's own properties begin, and those that clients of JMS see beside ours and may send on.
const OWN: [&str; 5] = ["_AMQ", "__AMQ", "JMSX", "JMS_AMQP_", "NATIVE_MESSAGE_ID"];
/// The attribute that is a property of AMQP.
const CONTENT_TYPE: &str = "datacontenttype";
/// The annotation that says what kind of message it is for JMS.
const JMS_KIND: &str = "x-opt-jms-msg-type";
const JMS_OBJECT: i8 = 1;
const JMS_BYTES: i8 = 3;
/// An object of a program in Java: reading one runs code of its maker's choice.
const JAVA_OBJECT: &str = "application/x-java-serialized-object";
/// How the media type of a body begins that is a whole CloudEvent.
const WHOLE: &str = "application/cloudevents";
/// The source of a message of another program that names none.
const SOURCE: &str = "amqp";
/// What kind it is if it says none.
const KIND: &str = "amqp.message";
/// The header that has what a message is to be answered at: the name of a queue, or of a topic with what says so before it.
const REPLY_TO: &str = "reply_to";
const TOPIC: &str = "topic://";
const QUEUE: &str = "queue://";
/// The annotation that says what that is for JMS; without one it is taken for a queue.
const JMS_REPLY_KIND: &str = "x-opt-jms-reply-to";
const JMS_QUEUE: i8 = 0;
const JMS_TOPIC: i8 = 1;
const JMS_TEMPORARY_TOPIC: i8 = 3;

/// Survives the server.
pub(crate) fn durable() -> Header {
    Header { durable: true, ..Header::default() }
}

/// A message as it is sent to an address. Its id, type, subject and correlation are properties too, for people and other
/// programs: a subject is the group, so that those who share a queue of their own get one subject's in order. Our own queues
/// have one reader and never look at groups.
pub(crate) fn encode(server: Server, message: &Message, address: String) -> Amqp<Data> {
    let text = |text: &str| SimpleValue::String(text.to_owned());
    let mut named = OrderedMap::new();
    let mut properties = Properties {
        message_id: Some(MessageId::String(message.id.to_string())),
        to: Some(address),
        subject: Some(message.kind.to_string()),
        correlation_id: message.correlation_id.as_ref().map(|id| MessageId::String(id.to_string())),
        group_id: message.subject.as_ref().map(|subject| subject.to_string()),
        ..Properties::default()
    };
    for (name, value) in message.attributes() {
        // The type of such a property has no other letters.
        if name == CONTENT_TYPE && value.is_ascii() {
            properties.content_type = Some(Symbol::from(&*value));
        } else {
            named.insert([ATTRIBUTE, name].concat(), text(&value));
        }
    }
    for (name, value) in message.headers.iter() {
        named.insert(name.to_owned(), text(value));
    }
    // Clients of JMS know text by its media type, but for bytes they want to be told.
    let is_text = message.datacontenttype.as_deref().is_some_and(is_text);
    let mut notes = OrderedMap::new();
    if !is_text {
        notes.insert(OwnedKey::from(JMS_KIND), Value::Byte(JMS_BYTES));
    }
    if let Some(reply_to) = message.headers.get(REPLY_TO).filter(|reply_to| !reply_to.is_empty()) {
        let (name, what, kind) = match reply_to.strip_prefix(TOPIC) {
            Some(name) => (name, TOPIC, JMS_TOPIC),
            None => (reply_to, QUEUE, JMS_QUEUE),
        };
        properties.reply_to = Some(match server {
            Server::Artemis => name.to_owned(),
            // It does not look at what is noted beside it.
            Server::Classic => [what, name].concat(),
        });
        notes.insert(OwnedKey::from(JMS_REPLY_KIND), Value::Byte(kind));
    }
    Amqp {
        header: Some(durable()),
        delivery_annotations: None,
        message_annotations: (!notes.is_empty()).then_some(MessageAnnotations(notes)),
        properties: Some(properties),
        application_properties: Some(ApplicationProperties(named)),
        body: Data(Binary::from(message.data.to_vec())),
        footer: None,
    }
}

fn is_text(media: &str) -> bool {
    let media = media.split(';').next().unwrap_or_default().trim();
    media.starts_with("text/")
        || media.ends_with("+json")
        || media.ends_with("+xml")
        || ["application/json", "application/xml"].contains(&media)
}

/// A message of one that came; or why it is none, with its body as it is.
pub(crate) fn decode(came: Amqp<Body<Value>>) -> std::result::Result<Message, (Error, Bytes)> {
    let note = |name| came.message_annotations.as_ref().and_then(|known| known.get(&OwnedKey::from(name)));
    let kind = note(JMS_KIND);
    let mut properties = came.properties.unwrap_or_default();
    let is_topic = matches!(note(JMS_REPLY_KIND), Some(Value::Byte(JMS_TOPIC | JMS_TEMPORARY_TOPIC)));
    properties.reply_to = properties.reply_to.map(|name| {
        // ActiveMQ Classic names what it is as well.
        let name = name.strip_prefix(QUEUE).or_else(|| name.strip_prefix(TOPIC)).unwrap_or(&name);
        if is_topic { [TOPIC, name].concat() } else { name.to_owned() }
    });
    let mut media = properties.content_type.as_ref().map(|kind| kind.as_str().to_owned());
    let is_object = kind == Some(&Value::Byte(JMS_OBJECT)) || media.as_deref() == Some(JAVA_OBJECT);
    let (data, own_media) = body(came.body).map_err(|error| (error, Bytes::new()))?;
    if is_object {
        let error = Error::new(code::MESSAGE_INVALID, "the message is an object of Java: it is never read");
        return Err((error, data));
    }
    if media.is_none() {
        media = own_media.map(str::to_owned);
    }
    read(&properties, came.application_properties, media, data.clone()).map_err(|error| (error, data))
}

fn read(
    properties: &Properties,
    named: Option<ApplicationProperties>,
    media: Option<String>,
    data: Bytes,
) -> Result<Message> {
    let (mut attributes, mut others) = (Vec::new(), Vec::new());
    for (name, value) in named.map(|named| named.0).unwrap_or_default() {
        if OWN.iter().any(|own| name.starts_with(own)) {
            continue;
        }
        let value = text(&name, &value)?;
        match name.strip_prefix(ATTRIBUTE).or_else(|| name.strip_prefix(ATTRIBUTE_TOO)) {
            Some(attribute) => attributes.push((attribute.to_owned(), value)),
            None => others.push((name, value)),
        }
    }
    if let Some(address) = &properties.reply_to
        && others.iter().all(|(name, _)| name != REPLY_TO)
    {
        others.push((REPLY_TO.to_owned(), address.clone()));
    }
    let is_whole = media.as_deref().is_some_and(|media| media.starts_with(WHOLE));
    if attributes.is_empty() && !is_whole {
        attributes = foreign(properties, &mut others)?;
    }
    attributes.extend(media.map(|media| (CONTENT_TYPE.to_owned(), media)));
    Message::decode(
        attributes.iter().map(|(name, value)| (&**name, &**value)),
        others.iter().map(|(name, value)| (&**name, &**value)),
        data,
    )
}

/// The attributes of a message that is no CloudEvent, such as a client of JMS sends. Its other properties become headers, with
/// names that every broker can carry.
fn foreign(properties: &Properties, others: &mut [(String, String)]) -> Result<Vec<(String, String)>> {
    let own = properties.message_id.as_ref().map(id).ok_or_else(|| {
        Error::new(code::MESSAGE_INVALID, "the message has neither attributes of CloudEvents nor an id")
    })?;
    let mut attributes = vec![
        ("id".to_owned(), own),
        ("source".to_owned(), SOURCE.to_owned()),
        ("type".to_owned(), properties.subject.clone().unwrap_or_else(|| KIND.to_owned())),
    ];
    attributes.extend(properties.group_id.clone().map(|group| ("subject".to_owned(), group)));
    attributes
        .extend(properties.correlation_id.as_ref().map(|known| ("correlationid".to_owned(), id(known))));
    if let Some(made) = &properties.creation_time {
        attributes.push(("time".to_owned(), json::time(made.milliseconds())?));
    }
    for (name, _) in others.iter_mut() {
        *name = portable(name);
    }
    others.sort();
    if let Some(twice) = others.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let text = format!("several properties of the message would be the header {}", twice[0].0);
        return Err(Error::new(code::MESSAGE_INVALID, text));
    }
    Ok(attributes)
}

/// `orderId` becomes `orderid`, and what is neither a letter nor a digit an underscore.
fn portable(name: &str) -> String {
    let lower = name.chars().flat_map(char::to_lowercase);
    lower.map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' }).collect()
}

fn id(of: &MessageId) -> String {
    match of {
        MessageId::String(text) => text.clone(),
        MessageId::Ulong(number) => number.to_string(),
        MessageId::Uuid(uuid) => json::uuid(uuid),
        MessageId::Binary(bytes) => json::base64(bytes),
    }
}

/// The body as bytes, and the media type of what it was made to.
fn body(body: Body<Value>) -> Result<(Bytes, Option<&'static str>)> {
    const TEXT: &str = "text/plain";
    const JSON: &str = "application/json";
    Ok(match body {
        Body::Data(parts) => {
            let mut parts = parts.into_iter().map(|part| part.0.into_vec());
            let first = parts.next().unwrap_or_default();
            (parts.fold(first, |all, part| [all, part].concat()).into(), None)
        }
        Body::Empty | Body::Value(AmqpValue(Value::Null)) => (Bytes::new(), None),
        Body::Value(value) => match value.0 {
            Value::String(text) => (text.into(), Some(TEXT)),
            Value::Binary(bytes) => (bytes.into_vec().into(), None),
            other => (json::bytes(&other)?, Some(JSON)),
        },
        Body::Sequence(parts) => {
            let values: Vec<Value> = parts.into_iter().flat_map(|part| part.0).collect();
            (json::bytes(&Value::List(values))?, Some(JSON))
        }
    })
}

fn text(name: &str, value: &SimpleValue) -> Result<String> {
    Ok(match value {
        SimpleValue::String(text) => text.clone(),
        SimpleValue::Symbol(text) => text.as_str().to_owned(),
        SimpleValue::Null => String::new(),
        SimpleValue::Bool(value) => value.to_string(),
        SimpleValue::Ubyte(value) => value.to_string(),
        SimpleValue::Ushort(value) => value.to_string(),
        SimpleValue::Uint(value) => value.to_string(),
        SimpleValue::Ulong(value) => value.to_string(),
        SimpleValue::Byte(value) => value.to_string(),
        SimpleValue::Short(value) => value.to_string(),
        SimpleValue::Int(value) => value.to_string(),
        SimpleValue::Long(value) => value.to_string(),
        SimpleValue::Float(value) => value.to_string(),
        SimpleValue::Double(value) => value.to_string(),
        SimpleValue::Char(value) => value.to_string(),
        SimpleValue::Timestamp(value) => json::time(value.milliseconds())?,
        SimpleValue::Uuid(uuid) => json::uuid(uuid),
        _ => {
            let text = format!("the property {name} is neither text nor a number");
            return Err(Error::new(code::MESSAGE_INVALID, text));
        }
    })
}

#[cfg(test)]
mod tests {
    use fe2o3_amqp::types::messaging::{AmqpSequence, Batch};
    use fe2o3_amqp::types::primitives::Timestamp;
    use tidegate_conformance::{Part, golden, golden_channel};

    use super::*;

    /// As it comes when it is sent as it is.
    fn sent(message: &Message) -> Amqp<Body<Value>> {
        sent_to(Server::Artemis, message, "to".to_owned())
    }

    fn sent_to(server: Server, message: &Message, to: String) -> Amqp<Body<Value>> {
        let sent = encode(server, message, to);
        Amqp {
            header: sent.header,
            delivery_annotations: None,
            message_annotations: sent.message_annotations,
            properties: sent.properties,
            application_properties: sent.application_properties,
            body: Body::Data(Batch::new(vec![sent.body])),
            footer: None,
        }
    }

    /// As a client of JMS sends it.
    fn jms(kind: i8, body: Body<Value>) -> Amqp<Body<Value>> {
        let annotation = (OwnedKey::from(JMS_KIND), Value::Byte(kind));
        Amqp {
            header: Some(durable()),
            delivery_annotations: None,
            message_annotations: Some(MessageAnnotations(OrderedMap::from_iter([annotation]))),
            properties: Some(Properties {
                message_id: Some(MessageId::String("ID:9".to_owned())),
                to: Some("tidegate.orders/3".to_owned()),
                subject: Some("placed".to_owned()),
                reply_to: Some("answers".to_owned()),
                correlation_id: Some(MessageId::Ulong(4)),
                creation_time: Some(Timestamp::from_milliseconds(1_500)),
                group_id: Some("order-1".to_owned()),
                ..Properties::default()
            }),
            application_properties: None,
            body,
            footer: None,
        }
    }

    fn value(value: Value) -> Body<Value> {
        Body::Value(AmqpValue(value))
    }

    #[test]
    fn a_message_is_what_the_page_says_and_is_read_back() {
        let channel = golden_channel().unwrap();
        let carry = |server: Server, message: &Message| {
            let to = server.address(&channel.name, message.lane(channel.lanes));
            let sent = sent_to(server, message, to);
            let mut parts: Vec<Part> = Vec::new();
            let mut put = |what, name: &str, value: String| parts.push((what, name.to_owned(), value.into()));
            put("header", "durable", sent.header.as_ref().unwrap().durable.to_string());
            for note in sent.message_annotations.clone().unwrap_or_default().0 {
                let (OwnedKey::Symbol(name), Value::Byte(value)) = note else { panic!("{note:?}") };
                put("annotation", name.as_str(), value.to_string());
            }
            let properties = sent.properties.clone().unwrap();
            let known = Properties {
                message_id: properties.message_id.clone(),
                to: properties.to.clone(),
                subject: properties.subject.clone(),
                reply_to: properties.reply_to.clone(),
                correlation_id: properties.correlation_id.clone(),
                content_type: properties.content_type.clone(),
                group_id: properties.group_id.clone(),
                ..Properties::default()
            };
            assert_eq!(properties, known, "a property that the page does not show");
            for (name, value) in [
                ("message-id", known.message_id.as_ref().map(id)),
                ("to", known.to),
                ("subject", known.subject),
                ("reply-to", known.reply_to),
                ("correlation-id", known.correlation_id.as_ref().map(id)),
                ("content-type", known.content_type.map(|media| media.as_str().to_owned())),
                ("group-id", known.group_id),
            ] {
                if let Some(value) = value {
                    put("property", name, value);
                }
            }
            for (name, value) in sent.application_properties.clone().unwrap().0 {
                put("application property", &name, text(&name, &value)?);
            }
            let Body::Data(data) = &sent.body else { panic!("the body is {:?}", sent.body) };
            parts.extend(data.iter().map(|part| ("data", String::new(), part.0.to_vec())));
            Ok((parts, decode(sent).map_err(|(error, _)| error)?))
        };
        golden("Artemis", |message| carry(Server::Artemis, message)).unwrap();
        golden("ActiveMQ Classic", |message| carry(Server::Classic, message)).unwrap();
    }

    #[test]
    fn bytes_are_told_from_text_and_odd_media_types_are_kept() {
        let mut message = Message::with_id("7", "/shop", "picture").with_data("image/png", vec![0, 255]);
        let found = sent(&message);
        let kinds: Vec<_> = found.message_annotations.clone().unwrap().0.into_iter().collect();
        assert_eq!(kinds, [(OwnedKey::from(JMS_KIND), Value::Byte(JMS_BYTES))]);
        assert_eq!(decode(found).unwrap(), message);
        message.datacontenttype = Some("text/ß".into());
        assert_eq!(decode(sent(&message)).unwrap(), message);
        message.datacontenttype = None;
        assert_eq!(decode(sent(&message)).unwrap(), message);
    }

    #[test]
    fn what_a_message_is_to_be_answered_at_is_told_to_clients_of_jms() {
        for (reply_to, name, kind) in [
            ("answers", "answers", JMS_QUEUE),
            ("topic://tidegate.answers/0", "tidegate.answers/0", JMS_TOPIC),
        ] {
            let message = Message::with_id("7", "/shop", "asked")
                .with_data("text/plain", "x")
                .with_header(REPLY_TO, reply_to)
                .unwrap();
            let mut found = sent(&message);
            assert_eq!(found.properties.as_ref().unwrap().reply_to.as_deref(), Some(name));
            let notes: Vec<_> = found.message_annotations.clone().unwrap().0.into_iter().collect();
            assert_eq!(notes, [(OwnedKey::from(JMS_REPLY_KIND), Value::Byte(kind))]);
            assert_eq!(decode(found.clone()).unwrap(), message);
            let classic = encode(Server::Classic, &message, "to".to_owned());
            let prefix = if kind == JMS_TOPIC { TOPIC } else { QUEUE };
            let reply_to = Some([prefix, name].concat());
            assert_eq!(classic.properties.unwrap().reply_to, reply_to);
            let mut classic = found.clone();
            classic.properties.as_mut().unwrap().reply_to = reply_to;
            classic.application_properties.as_mut().unwrap().0.swap_remove(REPLY_TO);
            assert_eq!(decode(classic).unwrap(), message, "as ActiveMQ Classic gives it");
            // A client of JMS that writes an event says it in its own way alone.
            found.application_properties.as_mut().unwrap().0.swap_remove(REPLY_TO);
            assert_eq!(decode(found).unwrap(), message);
        }
    }

    #[test]
    fn what_clients_of_jms_send_is_a_message() {
        let mut text = jms(5, value(Value::String("größe".to_owned())));
        let named = [
            ("orderId", SimpleValue::Int(7)),
            ("_AMQ_OWN", SimpleValue::Bool(true)),
            ("JMSXDeliveryCount", SimpleValue::Int(1)),
            ("NATIVE_MESSAGE_ID", SimpleValue::String("ID:8".to_owned())),
        ];
        let named = named.map(|(name, value)| (name.to_owned(), value));
        text.application_properties = Some(ApplicationProperties(OrderedMap::from_iter(named)));
        let mut right = Message::with_id("ID:9", SOURCE, "placed")
            .with_subject("order-1")
            .with_time(1_500_000)
            .with_data("text/plain", "größe")
            .with_header("orderid", "7")
            .unwrap()
            .with_header(REPLY_TO, "answers")
            .unwrap();
        right.correlation_id = Some("4".into());
        assert_eq!(decode(text).unwrap(), right);

        let mut bytes = jms(JMS_BYTES, Body::Data(Batch::new(vec![Data::from([1, 2]), Data::from([3])])));
        bytes.properties.get_or_insert_default().content_type =
            Some(Symbol::from("application/octet-stream"));
        let found = decode(bytes).unwrap();
        assert_eq!(
            (&found.data[..], found.datacontenttype.as_deref()),
            (&[1, 2, 3][..], Some("application/octet-stream"))
        );

        let map = [("name", Value::String("a".to_owned())), ("raw", Value::Binary(Binary::from([0xff])))];
        let map = OrderedMap::from_iter(map.map(|(name, value)| (Value::String(name.to_owned()), value)));
        let found = decode(jms(2, value(Value::Map(map)))).unwrap();
        assert_eq!(
            (&found.data[..], found.datacontenttype.as_deref()),
            (&br#"{"name":"a","raw":"/w=="}"#[..], Some("application/json"))
        );

        let stream = Batch::new(vec![AmqpSequence(vec![Value::Long(-5), Value::Null])]);
        assert_eq!(&decode(jms(4, Body::Sequence(stream))).unwrap().data[..], b"[-5,null]");
        assert!(decode(jms(0, Body::Empty)).unwrap().data.is_empty());
    }

    #[test]
    fn objects_and_what_cannot_be_read_are_no_messages() {
        let (error, body) =
            decode(jms(JMS_OBJECT, Body::Data(Batch::new(vec![Data::from([0xac, 0xed])])))).unwrap_err();
        assert!(error.message().contains("object of Java") && body[..] == [0xac, 0xed], "{error}");
        let mut nameless = jms(5, value(Value::String("x".to_owned())));
        nameless.properties.get_or_insert_default().message_id = None;
        let (error, body) = decode(nameless).unwrap_err();
        assert!(error.message().contains("nor an id") && &body[..] == b"x", "{error}");
        let mut twice = jms(5, value(Value::Null));
        let named = ["orderId", "OrderId"].map(|name| (name.to_owned(), SimpleValue::Null));
        twice.application_properties = Some(ApplicationProperties(OrderedMap::from_iter(named)));
        let (error, _) = decode(twice).unwrap_err();
        assert!(error.message().contains("orderid"), "{error}");
    }
}
