//! What handles the messages of one channel, and how.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tidegate_core::channel::WINDOW;
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use super::extract::Context;
use super::handler::{Ended, Handler, Replies};
use crate::policy::Policy;

/// How many handlers of a consumer run at once, if nothing is said.
const CONCURRENCY: usize = 64;

/// A handler without its type.
pub(crate) trait Erased<S>: Send + Sync {
    fn start(&self, context: &Context<'_, S>, replies: &Replies) -> Result<BoxFuture<'static, Ended>>;
}

struct Typeless<H, Args>(H, std::marker::PhantomData<fn() -> Args>);

impl<S, Args, H: Handler<Args, S>> Erased<S> for Typeless<H, Args> {
    fn start(&self, context: &Context<'_, S>, replies: &Replies) -> Result<BoxFuture<'static, Ended>> {
        self.0.start(context, replies)
    }
}

/// The handlers of the messages of one channel, by their kinds, and how they are called.
pub struct Handlers<S = ()> {
    by_kind: HashMap<&'static str, Arc<dyn Erased<S>>>,
    others: Option<Arc<dyn Erased<S>>>,
    ignores_others: bool,
    has_priorities: bool,
    /// A kind that two handlers want.
    twice: Option<&'static str>,
    policy: Policy,
    members: usize,
    concurrency: usize,
    window: usize,
    interval: Duration,
}

impl<S> Clone for Handlers<S> {
    fn clone(&self) -> Self {
        Self {
            by_kind: self.by_kind.clone(),
            others: self.others.clone(),
            policy: self.policy.clone(),
            ..*self
        }
    }
}

impl<S> fmt::Debug for Handlers<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.by_kind.keys().collect();
        f.debug_struct("Handlers")
            .field("kinds", &kinds)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl<S: 'static> Default for Handlers<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: 'static> Handlers<S> {
    /// No handlers.
    pub fn new() -> Self {
        Self {
            by_kind: HashMap::new(),
            others: None,
            ignores_others: false,
            has_priorities: false,
            twice: None,
            policy: Policy::default(),
            members: 1,
            concurrency: CONCURRENCY,
            window: WINDOW,
            interval: Duration::ZERO,
        }
    }

    /// One handler more. Its last argument says which messages it gets: those of the kind of `Json<T>`, or with `Message`
    /// all that no other handler gets.
    #[must_use]
    pub fn handle<H: Handler<Args, S>, Args: 'static>(mut self, handler: H) -> Self {
        let handler: Arc<dyn Erased<S>> =
            Arc::new(Typeless(handler, std::marker::PhantomData::<fn() -> Args>));
        let before = match H::KIND {
            Some(kind) => self.by_kind.insert(kind, handler),
            None => self.others.replace(handler),
        };
        if before.is_some() {
            self.twice = Some(H::KIND.unwrap_or("any other"));
        }
        self
    }

    /// Settles messages of kinds that nothing handles, instead of making dead letters of them.
    #[must_use]
    pub fn ignore_others(mut self) -> Self {
        self.ignores_others = true;
        self
    }

    /// What happens to a message whose handler fails.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Handles the messages of three channels, of which each is a level of [`Priority`](crate::Priority): `orders.high`, `orders` and
    /// `orders.low`. They share concurrency and rate; each has its own dead letters. Order per subject holds within a level.
    #[must_use]
    pub fn with_priorities(mut self) -> Self {
        self.has_priorities = true;
        self
    }

    /// So many consumers in this process, each with a task of its own, that share the lanes with those of other processes.
    #[must_use]
    pub fn with_members(mut self, members: usize) -> Self {
        self.members = members.max(1);
        self
    }

    /// At most so many handlers of a consumer run at once, each for another subject.
    #[must_use]
    pub fn with_concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency.max(1);
        self
    }

    /// At most so many messages are in hand of a consumer.
    #[must_use]
    pub fn with_window(mut self, window: usize) -> Self {
        self.window = window.max(1);
        self
    }

    /// Each consumer starts at most so many handlers a second.
    #[must_use]
    pub fn with_rate(mut self, per_second: u32) -> Self {
        self.interval = Duration::from_secs(1) / per_second.max(1);
        self
    }

    pub(crate) fn find(&self, kind: &str) -> Option<&Arc<dyn Erased<S>>> {
        self.by_kind.get(kind).or(self.others.as_ref())
    }

    /// The kinds that have a handler of their own.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = &'static str> {
        self.by_kind.keys().copied()
    }

    pub(crate) fn ignores_others(&self) -> bool {
        self.ignores_others
    }

    pub(crate) fn has_priorities(&self) -> bool {
        self.has_priorities
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn members(&self) -> usize {
        self.members
    }

    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency
    }

    pub(crate) fn window(&self) -> usize {
        self.window
    }

    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    /// Whether they can be used together.
    pub(crate) fn check(&self) -> Result<()> {
        match self.twice {
            Some(kind) => Err(Error::new(
                code::CONFIG_INVALID,
                format!("two handlers want messages of the kind {kind}"),
            )),
            None if self.by_kind.is_empty() && self.others.is_none() => {
                Err(Error::new(code::CONFIG_INVALID, "there is no handler")
                    .hint("add one: Handlers::new().handle(handler)"))
            }
            None => Ok(()),
        }
    }
}
