//! Sends messages on to where they belong, by what is in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use tidegate_core::error::code;
use tidegate_core::{Error, Message};

use crate::filter::Filter;
use crate::sender::Sender;
use crate::service::Failure;

/// Where messages go: the first route whose filter takes a message has it.
///
/// As a handler it sends each message on as it is, and settles it when it is stored there:
/// `Handlers::new().handle(router.into_handler())`. Its order per subject holds, since one message of a subject is handled at a time.
#[derive(Debug, Default)]
pub struct Router {
    routes: Vec<(Filter, Sender)>,
    others: Others,
    dropped: Arc<AtomicU64>,
}

/// What becomes of a message that no route takes.
#[derive(Debug, Default)]
enum Others {
    /// It is a failure, and so becomes a dead letter.
    #[default]
    Fail,
    Drop,
    Send(Sender),
}

impl Router {
    /// No routes. A message that none takes becomes a dead letter, unless something else is said.
    pub fn new() -> Self {
        Self::default()
    }

    /// One route more, behind the others.
    #[must_use]
    pub fn route(mut self, filter: Filter, to: Sender) -> Self {
        self.routes.push((filter, to));
        self
    }

    /// What no route takes goes here.
    #[must_use]
    pub fn otherwise(mut self, to: Sender) -> Self {
        self.others = Others::Send(to);
        self
    }

    /// What no route takes is dropped, and counted.
    #[must_use]
    pub fn drop_others(mut self) -> Self {
        self.others = Others::Drop;
        self
    }

    /// The count of what was dropped.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }

    /// What a service handles messages with.
    pub fn into_handler(
        self,
    ) -> impl Fn(Message) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync + 'static {
        let router = Arc::new(self);
        move |message| {
            let router = Arc::clone(&router);
            Box::pin(async move { router.send_on(message).await })
        }
    }

    async fn send_on(&self, message: Message) -> Result<(), Failure> {
        let mut to = None;
        for (filter, sender) in &self.routes {
            if filter.takes(&message).map_err(Failure::never)? {
                to = Some(sender);
                break;
            }
        }
        let to = match (to, &self.others) {
            (Some(to), _) | (None, Others::Send(to)) => to,
            (None, Others::Drop) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            (None, Others::Fail) => {
                let what = format!("no route takes messages of the kind {} like this one", message.kind);
                return Err(Failure::never(Error::new(code::CONFIG_INVALID, what)));
            }
        };
        Ok(to.send(message).await?)
    }
}
