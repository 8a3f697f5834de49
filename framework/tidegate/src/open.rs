//! Stores and brokers by their URLs: those whose features are on, in plain sight.

use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::{Broker, Store};
use tidegate_core::{Canonical, Codec, Endpoint, Error, Result};

/// What opens something of a URL. Nothing is connected yet.
pub type Open<T> = fn(&Endpoint) -> Result<Arc<T>>;

/// Every store of this build: its schemes, and what opens it.
pub const STORES: &[(&[&str], Open<dyn Store>)] = &[
    #[cfg(feature = "sqlite")]
    (tidegate_sqlite::SCHEMES, tidegate_sqlite::open),
    #[cfg(feature = "postgres")]
    (tidegate_postgres::SCHEMES, tidegate_postgres::open),
    #[cfg(feature = "mongodb")]
    (tidegate_mongodb::SCHEMES, tidegate_mongodb::open),
];

/// Every broker of this build: its schemes, and what opens it.
pub const BROKERS: &[(&[&str], Open<dyn Broker>)] = &[
    #[cfg(feature = "memory")]
    (tidegate_memory::BROKER_SCHEMES, tidegate_memory::open_broker),
    #[cfg(feature = "sqlite")]
    (tidegate_sqlite::BROKER_SCHEMES, tidegate_sqlite::open_broker),
    #[cfg(feature = "kafka")]
    (tidegate_kafka::BROKER_SCHEMES, tidegate_kafka::open_broker),
    #[cfg(feature = "redis")]
    (tidegate_redis::BROKER_SCHEMES, tidegate_redis::open_broker),
    #[cfg(feature = "nats")]
    (tidegate_nats::BROKER_SCHEMES, tidegate_nats::open_broker),
    #[cfg(feature = "rabbitmq")]
    (tidegate_rabbitmq::BROKER_SCHEMES, tidegate_rabbitmq::open_broker),
    #[cfg(feature = "artemis")]
    (tidegate_amqp::BROKER_SCHEMES, tidegate_amqp::open_broker),
];

/// The schemes that this build has not, each with the feature that brings it.
const LEFT_OUT: &[(&[&str], &str)] = &[
    #[cfg(not(feature = "memory"))]
    (&["memory"], "memory"),
    #[cfg(not(feature = "sqlite"))]
    (&["sqlite"], "sqlite"),
    #[cfg(not(feature = "postgres"))]
    (&["postgres", "postgresql"], "postgres"),
    #[cfg(not(feature = "mongodb"))]
    (&["mongodb", "mongodb+srv"], "mongodb"),
    #[cfg(not(feature = "kafka"))]
    (&["kafka", "kafkas"], "kafka"),
    #[cfg(not(feature = "redis"))]
    (&["redis", "rediss"], "redis"),
    #[cfg(not(feature = "nats"))]
    (&["nats", "tls"], "nats"),
    #[cfg(not(feature = "rabbitmq"))]
    (&["amqp", "amqps"], "rabbitmq"),
    #[cfg(not(feature = "artemis"))]
    (&["artemis", "artemiss", "activemq", "activemqs"], "artemis"),
];

/// Opens the store of a URL. Nothing is connected yet.
///
/// # Errors
/// `url-invalid` if no store of this build has the scheme, or the URL is malformed.
pub fn store(url: &str) -> Result<Arc<dyn Store>> {
    by_scheme(STORES, "store", url)
}

/// Opens the broker of a URL. Nothing is connected yet.
///
/// # Errors
/// As [`store`].
pub fn broker(url: &str) -> Result<Arc<dyn Broker>> {
    by_scheme(BROKERS, "broker", url)
}

/// The encodings in which rows go through a broker.
pub fn codecs() -> Vec<Arc<dyn Codec>> {
    vec![
        Arc::new(Canonical),
        #[cfg(feature = "postgres")]
        tidegate_postgres::codec(),
        #[cfg(feature = "mongodb")]
        tidegate_mongodb::codec(),
    ]
}

fn by_scheme<T: ?Sized>(known: &[(&[&str], Open<T>)], what: &str, url: &str) -> Result<Arc<T>> {
    let endpoint = Endpoint::parse(url)?;
    let found = known.iter().find(|(schemes, _)| schemes.contains(&endpoint.scheme()));
    match found {
        Some((_, open)) => open(&endpoint),
        None => Err(unknown(what, &endpoint, known.iter().flat_map(|(schemes, _)| *schemes).copied())),
    }
}

/// That nothing is known by the scheme of a URL: with what is known, and the feature that is off.
pub fn unknown<'a>(what: &str, endpoint: &Endpoint, known: impl Iterator<Item = &'a str>) -> Error {
    let known: Vec<_> = known.map(|scheme| format!("{scheme}:")).collect();
    let left_out = LEFT_OUT.iter().find(|(schemes, _)| schemes.contains(&endpoint.scheme()));
    let left_out =
        left_out.map(|(_, feature)| format!("; this program was built without the feature {feature}"));
    Error::new(code::URL_INVALID, format!("no {what} has the scheme {}:", endpoint.scheme())).hint(format!(
        "known: {}{}",
        known.join(" "),
        left_out.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_opens_what_its_scheme_says() {
        assert!(store("sqlite:shop.db").unwrap().location().ends_with("shop.db"));
        assert!(broker("sqlite:broker.db").unwrap().location().ends_with("broker.db"));
        let error = store("acme://host/db").unwrap_err();
        assert_eq!((error.code(), error.message()), (code::URL_INVALID, "no store has the scheme acme:"));
        assert!(error.hint_text().unwrap_or_default().starts_with("known: sqlite:"), "{error:?}");
        assert_eq!(broker("shop.db").unwrap_err().code(), code::URL_INVALID);
    }

    #[cfg(not(feature = "kafka"))]
    #[test]
    fn a_feature_that_is_off_is_named() {
        let error = broker("kafka://host").unwrap_err();
        let hint = error.hint_text().unwrap_or_default();
        assert!(hint.ends_with("; this program was built without the feature kafka"), "{hint}");
    }
}
