//! Messages: CloudEvents 1.0, with our extensions and headers beside them.
//!
//! A message in binary mode is a map of attributes, a map of headers and the body as it is. A broker that has
//! headers carries the attributes with the prefix of its binding (`ce_` on Kafka) and the headers as they are.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::channel::Name;
use crate::error::{Error, Result, code};
use crate::ids::Ids;
use crate::lane::Lane;
use crate::structured;

/// How many headers a message may have.
pub const HEADERS_MAX: usize = 128;
/// How long all headers and attributes of a message may be together, names included.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// The version of CloudEvents that is written.
pub const SPEC_VERSION: &str = "1.0";

/// The header that tells a copy, made to be handled once more, from the message that it is a copy of.
pub const COPY: &str = "tg_copy";

/// The kind of a message that stands in the place of one that cannot be read.
pub const UNDECODABLE: &str = "tidegate.undecodable.v1";

/// One event, command or reply.
///
/// ```
/// use tidegate_core::{Message, SystemIds};
/// let message = Message::new(&SystemIds, "shop/orders", "order.placed")
///     .with_subject("order-17")
///     .with_data("application/json", r#"{"total":12}"#)
///     .with_header("region", "eu")?;
/// assert_eq!(message.lane(8), message.clone().lane(8));
/// message.check()?;
/// # Ok::<(), tidegate_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Unique together with [`source`](Self::source): the same id of the same source is the same message.
    pub id: Arc<str>,
    /// Who made it, as a URI reference.
    pub source: Arc<str>,
    /// What kind of message it is, `type` in CloudEvents.
    pub kind: Arc<str>,
    /// What it is about. Messages with one subject are delivered in order; those without one in any.
    pub subject: Option<Arc<str>>,
    /// When it happened, in microseconds since 1970-01-01 00:00 UTC.
    pub time: Option<i64>,
    /// The contract that the body follows.
    pub dataschema: Option<Arc<str>>,
    /// The media type of the body.
    pub datacontenttype: Option<Arc<str>>,
    /// What belongs together: equal in every message that one request caused, however remotely.
    pub correlation_id: Option<Arc<str>>,
    /// The id of the message that caused this one.
    pub causation_id: Option<Arc<str>>,
    /// The W3C trace context.
    pub traceparent: Option<Arc<str>>,
    /// Whose message it is.
    pub tenant: Option<Arc<str>>,
    /// Attributes of CloudEvents that we do not know: kept, so that others find them behind us.
    pub extensions: Headers,
    /// The application's own headers.
    pub headers: Headers,
    /// The body.
    pub data: Bytes,
}

impl Message {
    /// A message of this kind with a new id, and with nothing else.
    pub fn new(ids: &dyn Ids, source: impl Into<Arc<str>>, kind: impl Into<Arc<str>>) -> Self {
        Self::with_id(ids.next().to_string(), source, kind)
    }

    /// A message with an id that is known: one that is made again from what it was made from before.
    pub fn with_id(id: impl Into<Arc<str>>, source: impl Into<Arc<str>>, kind: impl Into<Arc<str>>) -> Self {
        Self {
            id: id.into(),
            source: source.into(),
            kind: kind.into(),
            subject: None,
            time: None,
            dataschema: None,
            datacontenttype: None,
            correlation_id: None,
            causation_id: None,
            traceparent: None,
            tenant: None,
            extensions: Headers::default(),
            headers: Headers::default(),
            data: Bytes::new(),
        }
    }

    /// What stands in the place of a message that cannot be read, of the kind [`UNDECODABLE`]: its body as it came, and why as
    /// the header `tg_error`. So it is delivered, and whoever handles messages can put it aside.
    pub fn undecodable(channel: &Name, lane: Lane, place: u64, why: &Error, body: Bytes) -> Self {
        let mut message = Self::with_id(format!("{channel}/{}/{place}", lane.0), "tidegate", UNDECODABLE);
        let why: String = why.to_string().chars().filter(|c| !c.is_control()).collect();
        // A name that every broker can carry.
        let _ = message.headers.set("tg_error", why);
        message.data = body;
        message
    }

    /// What it is about: its ordering key.
    #[must_use]
    pub fn with_subject(mut self, subject: impl Into<Arc<str>>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// When it happened, in microseconds since 1970.
    #[must_use]
    pub fn with_time(mut self, time: i64) -> Self {
        self.time = Some(time);
        self
    }

    /// The body and its media type.
    #[must_use]
    pub fn with_data(mut self, datacontenttype: impl Into<Arc<str>>, data: impl Into<Bytes>) -> Self {
        self.datacontenttype = Some(datacontenttype.into());
        self.data = data.into();
        self
    }

    /// A header more, or another value for one that is there.
    ///
    /// # Errors
    /// `message-invalid` if the name or the value cannot be carried by every broker.
    pub fn with_header(mut self, name: &str, value: impl Into<Arc<str>>) -> Result<Self> {
        self.headers.set(name, value)?;
        Ok(self)
    }

    /// Says that `cause` led to this message: same correlation, trace and tenant.
    #[must_use]
    pub fn caused_by(mut self, cause: &Message) -> Self {
        self.causation_id = Some(Arc::clone(&cause.id));
        self.correlation_id = cause.correlation_id.clone().or_else(|| Some(Arc::clone(&cause.id)));
        self.traceparent = cause.traceparent.clone();
        if let Some(state) = cause.extensions.get("tracestate") {
            // There is room: the name is a good one, and this message has few yet.
            let _ = self.extensions.set("tracestate", state);
        }
        self.tenant = cause.tenant.clone();
        self
    }

    /// The lane that it goes to: that of its subject, so that order holds, else any, by its id.
    ///
    /// # Panics
    /// If there are no lanes.
    pub fn lane(&self, lanes: u32) -> Lane {
        Lane::of(self.subject.as_ref().unwrap_or(&self.id).as_bytes(), lanes)
    }

    /// The id by which a broker knows a message of this source again: its own, and which copy it is. A dead letter that is
    /// replayed keeps its id for whoever handles it, and is no duplicate of the one that failed.
    pub fn dedupe_id(&self) -> Arc<str> {
        match self.headers.get(COPY) {
            Some(copy) => format!("{}\n{copy}", self.id).into(),
            None => Arc::clone(&self.id),
        }
    }

    /// How much room it takes: the body, attributes and headers.
    pub fn size(&self) -> usize {
        let attributes: usize = self.attributes().map(|(name, value)| name.len() + value.len()).sum();
        attributes + self.headers.bytes() + self.data.len()
    }

    /// Whether every broker can carry it. A producer refuses what cannot be carried.
    ///
    /// # Errors
    /// `message-invalid`, naming the attribute.
    pub fn check(&self) -> Result<()> {
        let mut bytes = self.headers.bytes();
        for (name, value) in self.attributes() {
            if value.is_empty() {
                return Err(invalid(format!("the attribute {name} is empty")));
            }
            let is_plain = value.bytes().all(|byte| (b' '..0x7f).contains(&byte));
            if !is_plain && value.chars().any(char::is_control) {
                return Err(invalid(format!("the attribute {name} has a control character")));
            }
            bytes += name.len() + value.len();
        }
        if bytes > HEADER_BYTES_MAX {
            return Err(invalid(format!(
                "headers and attributes are {bytes} bytes, and at most {HEADER_BYTES_MAX} are carried"
            )));
        }
        match self.time {
            Some(time) if jiff::Timestamp::from_microsecond(time).is_err() => {
                Err(invalid("the time is beyond the year 9999"))
            }
            _ => Ok(()),
        }
    }

    /// Whether it is small enough for a broker that carries so many bytes.
    ///
    /// # Errors
    /// `body-too-large`.
    pub fn check_size(&self, bytes_max: usize) -> Result<()> {
        let size = self.size();
        if size <= bytes_max {
            return Ok(());
        }
        let text = format!("a message has {size} bytes, and {bytes_max} are possible");
        Err(Error::new(code::BODY_TOO_LARGE, text).hint(
            "have large bodies go into a store beside the broker: `Claims` of the sender and of the service",
        ))
    }

    /// The attributes of CloudEvents by their names there, without the prefix of a binding.
    pub fn attributes(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        let time = self.time.and_then(|time| jiff::Timestamp::from_microsecond(time).ok());
        let own: [(&str, Option<Cow<'_, str>>); 12] = [
            ("specversion", Some(SPEC_VERSION.into())),
            ("id", Some(Cow::Borrowed(&*self.id))),
            ("source", Some(Cow::Borrowed(&*self.source))),
            ("type", Some(Cow::Borrowed(&*self.kind))),
            ("subject", self.subject.as_deref().map(Cow::from)),
            ("time", time.map(|time| time.to_string().into())),
            ("dataschema", self.dataschema.as_deref().map(Cow::from)),
            ("datacontenttype", self.datacontenttype.as_deref().map(Cow::from)),
            ("correlationid", self.correlation_id.as_deref().map(Cow::from)),
            ("causationid", self.causation_id.as_deref().map(Cow::from)),
            ("traceparent", self.traceparent.as_deref().map(Cow::from)),
            ("tenant", self.tenant.as_deref().map(Cow::from)),
        ];
        let own = own.into_iter().filter_map(|(name, value)| Some((name, value?)));
        own.chain(self.extensions.iter().map(|(name, value)| (name, value.into())))
    }

    /// A message of what a broker carried. Attributes come without the prefix of the binding; a body that is a whole message
    /// says so by its media type ([`structured`]).
    ///
    /// # Errors
    /// `message-invalid` if `id`, `source` or `type` is missing, or something cannot be read.
    pub fn decode<'a>(
        attributes: impl IntoIterator<Item = (&'a str, &'a str)>,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        data: Bytes,
    ) -> Result<Self> {
        let mut message = Self::with_id("", "", "");
        for (name, value) in attributes {
            let text = || Some(Arc::<str>::from(value));
            match name {
                "specversion" if value == SPEC_VERSION => {}
                "specversion" => {
                    return Err(invalid(format!("CloudEvents {value} is not known, only {SPEC_VERSION}")));
                }
                "id" => message.id = value.into(),
                "source" => message.source = value.into(),
                "type" => message.kind = value.into(),
                "subject" => message.subject = text(),
                "time" => {
                    let time: jiff::Timestamp = value
                        .parse()
                        .map_err(|e| invalid(format!("the time {value:?} cannot be read")).because(e))?;
                    message.time = Some(time.as_microsecond());
                }
                "dataschema" => message.dataschema = text(),
                "datacontenttype" => message.datacontenttype = text(),
                "correlationid" => message.correlation_id = text(),
                "causationid" => message.causation_id = text(),
                "traceparent" => message.traceparent = text(),
                "tenant" => message.tenant = text(),
                _ => message.extensions.set(name, value)?,
            }
        }
        let is_bare = message.id.is_empty() && message.source.is_empty() && message.kind.is_empty();
        if is_bare && message.datacontenttype.as_deref().is_some_and(structured::is_whole) {
            message = Self::from_json(&data)?;
        } else {
            message.data = data;
        }
        for (name, value) in headers {
            message.headers.set(name, value)?;
        }
        message.check()?;
        Ok(message)
    }
}

/// Names and values beside the body, in the order of the names. A name is `[a-z][a-z0-9_]{0,63}`: what every broker
/// and every language behind it can carry.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Arc<str>, Arc<str>)>);

impl Headers {
    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    /// Adds a header, or replaces its value.
    ///
    /// # Errors
    /// `message-invalid` if the name has other characters, the value has control characters, or there are too many.
    pub fn set(&mut self, name: &str, value: impl Into<Arc<str>>) -> Result<()> {
        let value = value.into();
        if !is_portable(name) {
            return Err(invalid(format!("the header name {name:?} cannot be carried by every broker"))
                .hint("a name is 1 to 64 of a-z, 0-9 and _, starting with a letter"));
        }
        if value.chars().any(char::is_control) {
            return Err(invalid(format!("the header {name} has a control character in its value")));
        }
        match self.0.binary_search_by(|(known, _)| (**known).cmp(name)) {
            Ok(at) => self.0[at].1 = value,
            Err(_) if self.0.len() == HEADERS_MAX => {
                return Err(invalid(format!("a message has at most {HEADERS_MAX} headers")));
            }
            Err(at) => self.0.insert(at, (name.into(), value)),
        }
        Ok(())
    }

    /// Takes a header away.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| &**known != name);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// Names only: a value may be a secret.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

fn is_portable(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
    (1..=64).contains(&name.len()) && name.as_bytes()[0].is_ascii_lowercase() && name.bytes().all(plain)
}

fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(code::MESSAGE_INVALID, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SystemIds;

    fn full() -> Message {
        let cause = Message::with_id("c", "gate", "asked");
        let mut message = Message::new(&SystemIds, "shop/orders", "order.placed")
            .caused_by(&cause)
            .with_subject("käse")
            .with_time(1_700_000_000_123_456)
            .with_data("application/octet-stream", vec![0, 255, 10]);
        message.dataschema = Some("order/2".into());
        message.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
        message.tenant = Some("acme".into());
        message.extensions.set("partitionkey", "x").unwrap();
        message.with_header("empty", "").unwrap().with_header("text", "ß→").unwrap()
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        let message = full();
        let attributes: Vec<_> = message.attributes().collect();
        let attributes: Vec<_> = attributes.iter().map(|(name, value)| (*name, &**value)).collect();
        let names: Vec<_> = attributes.iter().map(|(name, _)| *name).collect();
        assert_eq!(names[..4], ["specversion", "id", "source", "type"]);
        assert!(attributes.contains(&("time", "2023-11-14T22:13:20.123456Z")));
        assert!(attributes.contains(&("correlationid", "c")) && attributes.contains(&("causationid", "c")));
        let read = Message::decode(attributes, message.headers.iter(), message.data.clone()).unwrap();
        assert_eq!(read, message);
        assert_eq!(read.headers.get("empty"), Some(""));
    }

    #[test]
    fn what_others_lack_is_refused_by_name() {
        let good = [("id", "1"), ("source", "s"), ("type", "t")];
        assert!(Message::decode(good, [], Bytes::new()).is_ok());
        for (at, name) in ["id", "source", "type"].into_iter().enumerate() {
            let mut attributes = good.to_vec();
            attributes.remove(at);
            let error = Message::decode(attributes, [], Bytes::new()).unwrap_err();
            assert_eq!(error.code(), code::MESSAGE_INVALID);
            assert!(error.message().contains(name), "{error}");
        }
        for (name, value) in [("specversion", "0.3"), ("time", "yesterday"), ("subject", ""), ("Ext", "x")] {
            let attributes = [&good[..], &[(name, value)]].concat();
            assert!(Message::decode(attributes, [], Bytes::new()).is_err(), "{name}");
        }
    }

    #[test]
    fn only_portable_headers_are_taken() {
        let long = "a".repeat(64);
        for name in ["a", "tg_dlq_reason", "x9", &long] {
            assert!(Headers::default().set(name, "v").is_ok(), "{name}");
        }
        let longer = "a".repeat(65);
        for name in ["", "A", "9a", "_a", "a-b", "a.b", "ä", "a b", &longer] {
            assert!(Headers::default().set(name, "v").is_err(), "{name:?}");
        }
        assert!(Headers::default().set("a", "line\nbreak").is_err());
        let mut headers = Headers::default();
        for number in 0..HEADERS_MAX {
            headers.set(&format!("h{number}"), "").unwrap();
        }
        assert!(headers.set("one_more", "").is_err() && headers.set("h7", "new").is_ok());
        headers.remove("h7");
        assert_eq!((headers.len(), headers.get("h7"), headers.get("h8")), (HEADERS_MAX - 1, None, Some("")));
    }

    #[test]
    fn too_much_beside_the_body_is_refused() {
        let mut message = full();
        assert!(message.check().is_ok());
        message.headers.set("big", "x".repeat(HEADER_BYTES_MAX)).unwrap();
        assert!(message.check().is_err());
        let mut message = full();
        message.time = Some(i64::MAX);
        assert!(message.check().is_err());
    }

    #[test]
    fn values_of_headers_are_not_shown() {
        let text = format!("{:?}", full().with_header("token", "s3cret").unwrap());
        assert!(text.contains("token") && !text.contains("s3cret"));
    }

    #[test]
    fn one_subject_has_one_lane_whoever_sends() {
        let lane = |message: Message| message.lane(1_000);
        assert_eq!(
            lane(Message::with_id("1", "a", "t").with_subject("k")),
            lane(Message::with_id("2", "b", "u").with_subject("k"))
        );
        assert_eq!(Message::with_id("foobar", "a", "t").lane(1_000), Lane::of(b"foobar", 1_000));
    }
}
