//! What a handler can ask for: the message in its own type, and what is known beside it.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_core::error::code;
use tidegate_core::port::{Attempt, Delivery};
use tidegate_core::{Error, Headers, Ids, Lane, Message, Name, Position, Result};

/// The media type of JSON.
const JSON: &str = "application/json";

/// A type that is the body of messages of one kind.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tidegate_runtime::Typed;
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderPlaced {
///     order: String,
///     total: u64,
/// }
///
/// impl Typed for OrderPlaced {
///     const KIND: &str = "order.placed.v1";
///
///     // All that happens to one order is handled in its order.
///     fn subject(&self) -> Option<String> {
///         Some(self.order.clone())
///     }
/// }
/// ```
pub trait Typed {
    /// What kind of message it is: `type` in CloudEvents. Its version belongs to it.
    const KIND: &'static str;

    /// What the message is about: its ordering key. Messages without one are handled in any order.
    fn subject(&self) -> Option<String> {
        None
    }
}

/// A body in JSON: as the last argument of a handler what the message says, as its result what is replied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: Typed + Serialize> Json<T> {
    /// A message with this body.
    ///
    /// # Errors
    /// `message-invalid` if the value cannot be written as JSON.
    pub fn to_message(&self, ids: &dyn Ids, source: &str) -> Result<Message> {
        let body = serde_json::to_vec(&self.0).map_err(|error| {
            let what = format!("a message of the kind {} cannot be written as JSON", T::KIND);
            Error::new(code::MESSAGE_INVALID, what).because(error)
        })?;
        let message = Message::new(ids, source, T::KIND).with_data(JSON, body);
        Ok(match self.0.subject() {
            Some(subject) => message.with_subject(subject),
            None => message,
        })
    }
}

/// What the service was given with [`Service::with_state`](crate::Service::with_state).
#[derive(Clone, Copy, Debug)]
pub struct State<S>(pub S);

/// Where a delivery comes from, and how often it was tried.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Info {
    /// The channel.
    pub channel: Name,
    /// The subscription.
    pub subscription: Name,
    /// The lane.
    pub lane: Lane,
    /// How often the message was tried, this time included.
    pub attempt: Attempt,
    /// Where it is stored, on brokers that have positions.
    pub position: Option<Position>,
    /// When it was stored, by the broker's clock, in microseconds since 1970.
    pub stored_at: Option<i64>,
}

/// All that is known when a handler is called.
#[derive(Debug)]
#[non_exhaustive]
pub struct Context<'a, S> {
    /// The message in hand.
    pub delivery: &'a Delivery,
    /// Where it was published.
    pub channel: &'a Name,
    /// Who gets it.
    pub subscription: &'a Name,
    /// What the service was given.
    pub state: &'a S,
}

/// What can stand in a handler before its last argument.
#[diagnostic::on_unimplemented(
    message = "a handler cannot ask for `{Self}`",
    label = "not known beside a message",
    note = "before its last argument a handler may have State<S>, Info, Attempt, Headers, or a type that implements FromContext"
)]
pub trait FromContext<S>: Sized {
    /// Takes it out of what is known. A message for which that fails becomes a dead letter.
    ///
    /// # Errors
    /// What is missing.
    fn from_context(context: &Context<'_, S>) -> Result<Self>;
}

/// What can be the last argument of a handler.
#[diagnostic::on_unimplemented(
    message = "a handler cannot read a message as `{Self}`",
    label = "no body",
    note = "the last argument of a handler is Json<T>, where T implements Typed and serde's Deserialize, Arc<Message>, or Message"
)]
pub trait FromMessage: Sized {
    /// The kind of messages that it reads; `None` for all that no other handler takes.
    const KIND: Option<&'static str>;

    /// Reads a message. One for which that fails becomes a dead letter.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn from_message(message: &Arc<Message>) -> Result<Self>;
}

impl FromMessage for Message {
    const KIND: Option<&'static str> = None;

    fn from_message(message: &Arc<Message>) -> Result<Self> {
        Ok(Self::clone(message))
    }
}

/// Without a copy of it.
impl FromMessage for Arc<Message> {
    const KIND: Option<&'static str> = None;

    fn from_message(message: &Self) -> Result<Self> {
        Ok(Self::clone(message))
    }
}

impl<T: Typed + DeserializeOwned> FromMessage for Json<T> {
    const KIND: Option<&'static str> = Some(T::KIND);

    fn from_message(message: &Arc<Message>) -> Result<Self> {
        serde_json::from_slice(&message.data).map(Json).map_err(|error| {
            // What serde says may have values of the body in it, and this goes into logs.
            let what = match error.classify() {
                serde_json::error::Category::Data => "its values are not those of the kind",
                serde_json::error::Category::Eof => "it ends too early",
                serde_json::error::Category::Io | serde_json::error::Category::Syntax => "it is no JSON",
            };
            let place = format!("line {}, column {}", error.line(), error.column());
            let what = format!("the body is no {}: {what} ({place})", T::KIND);
            Error::new(code::MESSAGE_INVALID, what).because(error)
        })
    }
}

impl<S: Clone> FromContext<S> for State<S> {
    fn from_context(context: &Context<'_, S>) -> Result<Self> {
        Ok(State(context.state.clone()))
    }
}

impl<S> FromContext<S> for Attempt {
    fn from_context(context: &Context<'_, S>) -> Result<Self> {
        Ok(context.delivery.attempt)
    }
}

impl<S> FromContext<S> for Headers {
    fn from_context(context: &Context<'_, S>) -> Result<Self> {
        Ok(context.delivery.message.headers.clone())
    }
}

impl<S> FromContext<S> for Info {
    fn from_context(context: &Context<'_, S>) -> Result<Self> {
        let delivery = context.delivery;
        Ok(Info {
            channel: context.channel.clone(),
            subscription: context.subscription.clone(),
            lane: delivery.token.lane,
            attempt: delivery.attempt,
            position: delivery.position.clone(),
            stored_at: delivery.stored_at,
        })
    }
}
