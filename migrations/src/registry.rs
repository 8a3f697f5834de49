//! Which stores and brokers the program knows, in plain sight.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::{Broker, Store, Transform};
use tidegate_core::{Canonical, Codec, Endpoint, Error, Result};

type Open<T> = dyn Fn(&Endpoint) -> Result<Arc<T>> + Send + Sync;

/// Opens stores and brokers by the scheme of their URL.
#[derive(Default)]
pub struct Registry {
    stores: BTreeMap<String, Arc<Open<dyn Store>>>,
    brokers: BTreeMap<String, Arc<Open<dyn Broker>>>,
    codecs: Vec<Arc<dyn Codec>>,
    transform: Option<Arc<dyn Transform>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.stores.keys()).entries(self.brokers.keys()).finish()
    }
}

impl Registry {
    /// A registry that knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A registry with every store and broker that Tidegate brings, but for those whose feature is off.
    pub fn standard() -> Self {
        let mut registry = Self::new();
        registry.add_codec(Arc::new(Canonical));
        for scheme in tidegate_sqlite::SCHEMES {
            registry.add(scheme, tidegate_sqlite::open);
        }
        #[cfg(feature = "postgres")]
        {
            for scheme in tidegate_postgres::SCHEMES {
                registry.add(scheme, tidegate_postgres::open);
            }
            registry.add_codec(tidegate_postgres::codec());
        }
        #[cfg(feature = "mongodb")]
        {
            for scheme in tidegate_mongodb::SCHEMES {
                registry.add(scheme, tidegate_mongodb::open);
            }
            registry.add_codec(tidegate_mongodb::codec());
        }
        for scheme in tidegate_memory::BROKER_SCHEMES {
            registry.add_broker(scheme, tidegate_memory::open_broker);
        }
        for scheme in tidegate_sqlite::BROKER_SCHEMES {
            registry.add_broker(scheme, tidegate_sqlite::open_broker);
        }
        #[cfg(feature = "kafka")]
        for scheme in tidegate_kafka::BROKER_SCHEMES {
            registry.add_broker(scheme, tidegate_kafka::open_broker);
        }
        #[cfg(feature = "redis")]
        for scheme in tidegate_redis::BROKER_SCHEMES {
            registry.add_broker(scheme, tidegate_redis::open_broker);
        }
        #[cfg(feature = "nats")]
        for scheme in tidegate_nats::BROKER_SCHEMES {
            registry.add_broker(scheme, tidegate_nats::open_broker);
        }
        #[cfg(feature = "rabbitmq")]
        for scheme in tidegate_rabbitmq::BROKER_SCHEMES {
            registry.add_broker(scheme, tidegate_rabbitmq::open_broker);
        }
        registry
    }

    /// Adds a store, or replaces the one that had this scheme.
    pub fn add(
        &mut self,
        scheme: &str,
        open: impl Fn(&Endpoint) -> Result<Arc<dyn Store>> + Send + Sync + 'static,
    ) {
        self.stores.insert(scheme.to_owned(), Arc::new(open));
    }

    /// Adds a broker, or replaces the one that had this scheme.
    pub fn add_broker(
        &mut self,
        scheme: &str,
        open: impl Fn(&Endpoint) -> Result<Arc<dyn Broker>> + Send + Sync + 'static,
    ) {
        self.brokers.insert(scheme.to_owned(), Arc::new(open));
    }

    /// Adds an encoding in which rows may go through a broker; rows in others are refused there.
    pub fn add_codec(&mut self, codec: Arc<dyn Codec>) {
        self.codecs.push(codec);
    }

    pub(crate) fn codecs(&self) -> Vec<Arc<dyn Codec>> {
        self.codecs.clone()
    }

    /// Turns the rows of every source; a mapping in the configuration then sees the rows that this makes.
    pub fn transform(&mut self, transform: impl Transform + 'static) {
        self.transform = Some(Arc::new(transform));
    }

    pub(crate) fn turns_with(&self) -> Option<Arc<dyn Transform>> {
        self.transform.clone()
    }

    /// Opens the store of a URL. Nothing is connected yet.
    ///
    /// # Errors
    /// `url-invalid` if nobody knows the scheme, or the URL is malformed.
    pub fn open(&self, endpoint: &Endpoint) -> Result<Arc<dyn Store>> {
        find(&self.stores, "store", endpoint)
    }

    /// Opens the broker of a URL. Nothing is connected yet.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub fn open_broker(&self, endpoint: &Endpoint) -> Result<Arc<dyn Broker>> {
        find(&self.brokers, "broker", endpoint)
    }
}

/// The schemes that this build has not, each with the feature that brings it.
const LEFT_OUT: &[(&[&str], &str)] = &[
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
];

fn find<T: ?Sized>(
    known: &BTreeMap<String, Arc<Open<T>>>,
    what: &str,
    endpoint: &Endpoint,
) -> Result<Arc<T>> {
    match known.get(endpoint.scheme()) {
        Some(open) => open(endpoint),
        None => {
            let known: Vec<_> = known.keys().map(|scheme| format!("{scheme}:")).collect();
            let left_out = LEFT_OUT.iter().find(|(schemes, _)| schemes.contains(&endpoint.scheme()));
            let left_out = left_out.map(|(_, feature)| {
                format!("; this program was built without the feature {feature} of tidegate-migrations")
            });
            Err(Error::new(code::URL_INVALID, format!("no {what} has the scheme {}:", endpoint.scheme()))
                .hint(format!("known: {}{}", known.join(" "), left_out.unwrap_or_default())))
        }
    }
}
