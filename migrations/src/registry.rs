//! Which stores the program knows, in plain sight.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::{Store, Transform};
use tidegate_core::{Endpoint, Error, Result};

type Open = dyn Fn(&Endpoint) -> Result<Arc<dyn Store>> + Send + Sync;

/// Opens stores by the scheme of their URL.
#[derive(Default)]
pub struct Registry {
    stores: BTreeMap<String, Arc<Open>>,
    transform: Option<Arc<dyn Transform>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.stores.keys()).finish()
    }
}

impl Registry {
    /// A registry that knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A registry with every store that Tidegate brings.
    pub fn standard() -> Self {
        let mut registry = Self::new();
        for scheme in tidegate_sqlite::SCHEMES {
            registry.add(scheme, tidegate_sqlite::open);
        }
        for scheme in tidegate_postgres::SCHEMES {
            registry.add(scheme, tidegate_postgres::open);
        }
        for scheme in tidegate_mongodb::SCHEMES {
            registry.add(scheme, tidegate_mongodb::open);
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
        match self.stores.get(endpoint.scheme()) {
            Some(open) => open(endpoint),
            None => {
                let known: Vec<_> = self.stores.keys().map(|scheme| format!("{scheme}:")).collect();
                Err(Error::new(code::URL_INVALID, format!("no store has the scheme {}:", endpoint.scheme()))
                    .hint(format!("known: {}", known.join(" "))))
            }
        }
    }
}
