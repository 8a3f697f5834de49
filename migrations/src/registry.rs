//! Which stores and brokers the program knows, in plain sight.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_core::port::{Broker, Store, Transform};
use tidegate_core::{Codec, Endpoint, Result};

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
        for (schemes, open) in tidegate::open::STORES {
            schemes.iter().for_each(|scheme| registry.add(scheme, open));
        }
        for (schemes, open) in tidegate::open::BROKERS {
            schemes.iter().for_each(|scheme| registry.add_broker(scheme, open));
        }
        registry.codecs = tidegate::open::codecs();
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

fn find<T: ?Sized>(
    known: &BTreeMap<String, Arc<Open<T>>>,
    what: &str,
    endpoint: &Endpoint,
) -> Result<Arc<T>> {
    match known.get(endpoint.scheme()) {
        Some(open) => open(endpoint),
        None => Err(tidegate::open::unknown(what, endpoint, known.keys().map(String::as_str))),
    }
}
