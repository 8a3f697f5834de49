//! Messages as text, for records.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tidegate_core::error::code;
use tidegate_core::{Error, Message, Result};

/// A message as it stands in a record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    attributes: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    /// The body in Base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    data: String,
}

impl Kept {
    pub(crate) fn of(message: &Message) -> Self {
        Self {
            attributes: message.attributes().map(|(n, v)| (n.to_owned(), v.into_owned())).collect(),
            headers: message.headers.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
            data: STANDARD.encode(&message.data),
        }
    }

    /// The message as it was.
    pub(crate) fn message(&self) -> Result<Message> {
        let data = STANDARD.decode(&self.data).map_err(|error| {
            Error::new(code::STATE_NEWER, "the body of a message in a record cannot be read").because(error)
        })?;
        fn pairs(of: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
            of.iter().map(|(name, value)| (&**name, &**value))
        }
        Message::decode(pairs(&self.attributes), pairs(&self.headers), data.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was() {
        let mut message = Message::with_id("1", "/shop", "order.placed.v1")
            .with_subject("k\u{e4}se")
            .with_time(1_700_000_000_123_456)
            .with_data("application/octet-stream", vec![0, 255, 10])
            .with_header("region", "eu")
            .unwrap();
        message.extensions.set("tracestate", "a=b").unwrap();
        for message in [message, Message::with_id("1", "/shop", "t")] {
            let text = serde_json::to_string(&Kept::of(&message)).unwrap();
            assert_eq!(serde_json::from_str::<Kept>(&text).unwrap().message().unwrap(), message);
        }
    }
}
