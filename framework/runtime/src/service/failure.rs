//! How handling a message ends.

use std::any::Any;
use std::fmt;

use tidegate_core::error::Verdict;
use tidegate_core::{Ids, Message, Result};

use super::extract::{Json, Typed};

/// Why a message was not handled. Any error becomes one by `?`, and the message is tried again; unless it is an error of
/// Tidegate whose verdict is *never*.
pub struct Failure {
    error: Box<dyn std::error::Error + Send + Sync>,
    is_final: bool,
}

impl Failure {
    /// The message will fail again whenever it is tried: it is exhausted at once.
    pub fn never(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { error: error.into(), is_final: true }
    }

    /// The message may succeed later.
    pub fn retry(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { error: error.into(), is_final: false }
    }

    /// What it is in a few words that are the same each time: the name of an error of Tidegate, else that it is another one.
    pub(crate) fn kind(&self) -> &'static str {
        self.error.downcast_ref::<tidegate_core::Error>().map_or("_OTHER", |error| error.code().name())
    }

    /// Whether it will fail again.
    pub fn is_final(&self) -> bool {
        self.is_final
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let ours = (&error as &dyn Any).downcast_ref::<tidegate_core::Error>();
        let is_final = ours.is_some_and(|error| error.verdict() == Verdict::Never);
        Self { error: error.into(), is_final }
    }
}

/// The error and what caused it, on one line.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        let mut source = self.error.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure").field("error", &self.error).field("is_final", &self.is_final).finish()
    }
}

/// What a handler may return.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    label = "neither an end nor a reply",
    note = "a handler returns (), Json<R> as a reply, or a Result of one of them whose error is an error or Failure"
)]
pub trait IntoEnded {
    /// The reply, if there is one: of what the handler was called with it is made by `ids`, from this source.
    ///
    /// # Errors
    /// Why the message was not handled.
    fn into_ended(self, ids: &dyn Ids, source: &str) -> Result<Option<Message>, Failure>;
}

impl IntoEnded for () {
    fn into_ended(self, _: &dyn Ids, _: &str) -> Result<Option<Message>, Failure> {
        Ok(None)
    }
}

impl<R: Typed + serde::Serialize> IntoEnded for Json<R> {
    fn into_ended(self, ids: &dyn Ids, source: &str) -> Result<Option<Message>, Failure> {
        Ok(Some(self.to_message(ids, source)?))
    }
}

impl<T: IntoEnded, E: Into<Failure>> IntoEnded for Result<T, E> {
    fn into_ended(self, ids: &dyn Ids, source: &str) -> Result<Option<Message>, Failure> {
        self.map_err(Into::into)?.into_ended(ids, source)
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::error::code;
    use tidegate_core::{Error, SystemIds};

    use super::*;

    #[test]
    fn an_error_says_whether_to_try_again() {
        let io = || std::io::Error::other("away");
        assert!(!Failure::from(io()).is_final() && Failure::never(io()).is_final());
        assert!(Failure::from(Error::new(code::MESSAGE_INVALID, "no")).is_final());
        assert!(!Failure::from(Error::new(code::UNREACHABLE, "away")).is_final());
        let failed: Result<(), std::io::Error> = Err(io());
        assert!(!failed.into_ended(&SystemIds, "s").unwrap_err().is_final());
        let caused = Failure::from(Error::new(code::UNREACHABLE, "no server").because(io()));
        assert_eq!(caused.to_string(), "TG0010 unreachable: no server: away");
    }
}
