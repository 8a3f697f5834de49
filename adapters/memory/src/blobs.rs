//! Keeps large bodies in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tidegate_core::port::Blobs;
use tidegate_core::{Clock, Result, SystemClock};

/// Blobs in memory, for all who have a copy of it.
#[derive(Clone)]
pub struct MemoryBlobs {
    blobs: Arc<Mutex<HashMap<String, (i64, Bytes)>>>,
    clock: Arc<dyn Clock>,
}

impl Default for MemoryBlobs {
    fn default() -> Self {
        Self { blobs: Arc::default(), clock: SystemClock::shared() }
    }
}

impl std::fmt::Debug for MemoryBlobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryBlobs").field("blobs", &self.lock().len()).finish_non_exhaustive()
    }
}

impl MemoryBlobs {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (i64, Bytes)>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn put(&self, name: &str, data: Bytes) -> Result<()> {
        self.lock().insert(name.to_owned(), (self.clock.now(), data));
        Ok(())
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        Ok(self.lock().get(name).map(|(_, data)| data.clone()))
    }

    async fn purge(&self, before: i64) -> Result<usize> {
        let mut blobs = self.lock();
        let count = blobs.len();
        blobs.retain(|_, (at, _)| *at >= before);
        Ok(count - blobs.len())
    }
}
