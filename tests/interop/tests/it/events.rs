//! Messages with everything that a binding has to carry, and how other programs tell of them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value as Json, json};
use tidegate::prelude::*;

/// By their ids: everything at once, nothing beside what is needed, and text.
pub(crate) fn samples() -> Vec<Message> {
    let mut full = Message::with_id("1", "https://shop.example/orders", "order.placed.v1")
        .with_subject("Käse \"17\" 100%20")
        .with_time(1_700_000_000_123_456)
        .with_data("application/octet-stream", vec![0, 255, 10, 13, 128])
        .with_header("region", "Österreich 東京 🚚")
        .unwrap()
        .with_header("note", "50%41 \"off\"")
        .unwrap()
        .with_header("empty", "")
        .unwrap();
    full.dataschema = Some("https://shop.example/order/2".into());
    full.correlation_id = Some("cart-9".into());
    full.causation_id = Some("click-3".into());
    full.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    full.tenant = Some("mühle".into());
    full.extensions.set("partitionkey", "köln").unwrap();
    let bare = Message::with_id("2", "shop", "ping");
    let text = Message::with_id("3", "/shop", "order.noted.v1")
        .with_subject("order-17")
        .with_data("application/json", r#"{"größe":1}"#);
    vec![full, bare, text]
}

/// As other programs tell of a message.
pub(crate) fn told(message: &Message) -> Json {
    let attributes = message.attributes();
    let attributes = attributes.map(|(name, value)| (name.to_string(), Json::from(&*value)));
    let headers = message.headers.iter().map(|(name, value)| (name.to_owned(), Json::from(value)));
    json!({
        "attributes": attributes.collect::<Map<_, _>>(),
        "headers": headers.collect::<Map<_, _>>(),
        "body": BASE64.encode(&message.data),
    })
}

/// The same with the lane that it is in.
pub(crate) fn told_with_lane(message: &Message, lanes: u32) -> Json {
    let mut told = told(message);
    told["lane"] = message.lane(lanes).0.into();
    told
}

/// What was seen, by ids.
pub(crate) fn by_id(seen: Json) -> Vec<Json> {
    let Json::Array(mut seen) = seen else { panic!("no list: {seen}") };
    seen.sort_by_key(|one| one["attributes"]["id"].as_str().unwrap_or_default().to_owned());
    seen
}
