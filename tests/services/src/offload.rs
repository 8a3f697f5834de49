//! Blocking work for asynchronous callers, on a thread of its own, so that it works in any runtime.

use crate::{Error, Result};

pub(crate) async fn offload<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || send.send(work()));
    receive.await.unwrap_or_else(|_| Err(Error::failed("the work on a server panicked")))
}
