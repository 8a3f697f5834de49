//! Functions, and types with one method, that handle messages.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::{BoxFuture, FutureExt as _};
use tidegate_core::{Ids, Message, Result};

use super::extract::{Context, FromContext, FromMessage, Info};
use super::failure::{Failure, IntoEnded};

/// How a handler ended: with a reply or without, or why it failed.
pub(crate) type Ended = Result<Option<Message>, Failure>;

/// Makes replies.
#[derive(Clone, Debug)]
pub struct Replies {
    pub(crate) ids: Arc<dyn Ids>,
    pub(crate) source: Arc<str>,
}

/// What handles messages of one kind: an async function of what it wants to know ([`FromContext`]) and of the message as its
/// last argument ([`FromMessage`]), or a type that implements [`Handle`].
///
/// `Args` is found by the compiler.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot handle messages",
    label = "no handler",
    note = "a handler is an async fn whose last argument is Json<T>, Arc<Message> or Message, and which returns (), Json<R>, or a Result of them; or a type that implements Handle<T>"
)]
pub trait Handler<Args, S>: Send + Sync + 'static {
    /// The kind of messages that it handles; `None` for all that no other handler takes.
    const KIND: Option<&'static str>;

    /// Reads the message and starts.
    ///
    /// # Errors
    /// If the message cannot be read.
    fn start(
        &self,
        context: &Context<'_, S>,
        replies: &Replies,
    ) -> Result<BoxFuture<'static, Result<Option<Message>, Failure>>>;
}

macro_rules! functions {
    ($(($($wanted:ident),*);)*) => {$(
        impl<F, Fut, S, B, $($wanted,)*> Handler<($($wanted,)* B,), S> for F
        where
            F: Fn($($wanted,)* B) -> Fut + Send + Sync + 'static,
            Fut: Future<Output: IntoEnded> + Send + 'static,
            B: FromMessage,
            $($wanted: FromContext<S>,)*
        {
            const KIND: Option<&'static str> = B::KIND;

            fn start(&self, context: &Context<'_, S>, replies: &Replies) -> Result<BoxFuture<'static, Ended>> {
                let body = B::from_message(&context.delivery.message)?;
                let future = self($($wanted::from_context(context)?,)* body);
                let replies = replies.clone();
                Ok(async move { future.await.into_ended(&*replies.ids, &replies.source) }.boxed())
            }
        }
    )*};
}

functions! {
    ();
    (A1);
    (A1, A2);
    (A1, A2, A3);
    (A1, A2, A3, A4);
    (A1, A2, A3, A4, A5);
}

/// A type that handles messages, where a function has too little room.
///
/// ```
/// use tidegate_runtime::{Failure, Handle, Info, Json};
/// # use serde::Deserialize;
/// # #[derive(Deserialize)]
/// # struct OrderPlaced { order: String }
/// # impl tidegate_runtime::Typed for OrderPlaced { const KIND: &str = "order.placed.v1"; }
///
/// struct Ledger;
///
/// #[async_trait::async_trait]
/// impl Handle<Json<OrderPlaced>> for Ledger {
///     async fn handle(&self, Json(placed): Json<OrderPlaced>, info: Info) -> Result<(), Failure> {
///         println!("{} in {}", placed.order, info.channel);
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait Handle<B: FromMessage>: Send + Sync + 'static {
    /// Handles a message.
    async fn handle(&self, message: B, info: Info) -> Result<(), Failure>;
}

/// Tells a type with a method from a function.
#[derive(Debug)]
pub struct ByMethod<B>(B);

impl<H, B, S> Handler<ByMethod<B>, S> for Arc<H>
where
    H: Handle<B>,
    B: FromMessage + Send + 'static,
{
    const KIND: Option<&'static str> = B::KIND;

    fn start(&self, context: &Context<'_, S>, _: &Replies) -> Result<BoxFuture<'static, Ended>> {
        let message = B::from_message(&context.delivery.message)?;
        let info = Info::from_context(context)?;
        let handler = Self::clone(self);
        Ok(async move { handler.handle(message, info).await.map(|()| None) }.boxed())
    }
}
