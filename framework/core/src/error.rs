//! The one public error type.
//!
//! An error answers what a caller needs in order to go on: its [`Kind`] (what to do next), its [`Verdict`]
//! (may the same call be made again), its [`Code`] (where the page is) and a hint.

mod record;

use std::borrow::Cow;
use std::fmt;

pub use crate::code::{self, Code};

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Named by what the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Correct the command line, the configuration or the URL.
    Usage,
    /// A guard refused and nothing was changed: remove what it names, then ask again.
    Refused,
    /// Wait for the server, or look at the network.
    Unreachable,
    /// Correct credentials, grants or certificates.
    Denied,
    /// Somebody else does this work already.
    Held,
    /// History or ownership is gone: this run cannot go on where it was. Start over or re-crawl.
    Lost,
    /// One table, row or value cannot be carried: decide about it; the others go on.
    Data,
    /// Two sides differ.
    Difference,
    /// Ended before its end, and can go on.
    Stopped,
    /// Anything else: read the message, then the log.
    Failed,
}

/// Whether the same call may be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Verdict {
    /// It had no effect and may succeed later.
    Retry,
    /// It had no effect and will fail again.
    Never,
    /// It may have had its effect: look before doing it again, or do it idempotently.
    Unknown,
}

/// What went wrong, with everything a person or a caller needs to go on.
///
/// `Display` is one line without the source; walk [`std::error::Error::source`] for the rest.
///
/// ```
/// use tidegate_core::{Error, error::code};
/// let error = Error::new(code::KEY_MISSING, "table audit has no primary key")
///     .with("table", "public.audit")
///     .hint("add a primary key, or leave the table out");
/// assert_eq!(error.to_string(), "TG0021 key-missing: table audit has no primary key");
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    code: Code,
    verdict: Verdict,
    message: Cow<'static, str>,
    context: Vec<(Cow<'static, str>, String)>,
    hint: Option<Cow<'static, str>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of this code, saying in one lower-case sentence what happened.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            code,
            verdict: code.verdict(),
            message: message.into(),
            context: Vec::new(),
            hint: None,
            source: None,
        }))
    }

    /// Adds a named fact: the table, the position, the server.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl fmt::Display) -> Self {
        self.0.context.push((name.into(), value.to_string()));
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Keeps what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Replaces the verdict that the code implies.
    #[must_use]
    pub fn verdict_is(mut self, verdict: Verdict) -> Self {
        self.0.verdict = verdict;
        self
    }

    /// The same once more, for several who are to be told of one failure. Its cause stays with the first.
    #[must_use]
    pub fn again(&self) -> Self {
        Self(Box::new(Inner {
            code: self.0.code,
            verdict: self.0.verdict,
            message: self.0.message.clone(),
            context: self.0.context.clone(),
            hint: self.0.hint.clone(),
            source: None,
        }))
    }

    /// The stable code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What the caller does next.
    pub fn kind(&self) -> Kind {
        self.0.code.kind()
    }

    /// Whether the same call may be made again.
    pub fn verdict(&self) -> Verdict {
        self.0.verdict
    }

    /// What happened, without the code.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The named facts, in the order they were added.
    pub fn context(&self) -> &[(Cow<'static, str>, String)] {
        &self.0.context
    }

    /// The error in one line with its facts, for records that keep only text:
    /// `TG0050 value-unfit: … (key: id=3, column: total)`.
    pub fn line(&self) -> String {
        let facts: Vec<String> =
            self.0.context.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let line = if facts.is_empty() { self.to_string() } else { format!("{self} ({})", facts.join(", ")) };
        // A fact may be a value of somebody's data, and not every store keeps this one in a text.
        line.replace('\0', "\u{fffd}")
    }

    /// What to do, if more can be said than the code's page says.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.message)
    }
}

/// All of it in one line: what a program prints whose `main` returns an error.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        for (name, value) in &self.0.context {
            write!(f, " {name}={value}")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, "; caused by: {source}")?;
        }
        if let Some(hint) = &self.0.hint {
            write!(f, "; hint: {hint}")?;
        }
        write!(f, "; more: tidegate explain {}", self.0.code.name())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_pointer_sized_and_keeps_what_it_is_told() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        let error = Error::new(code::UNREACHABLE, "no answer")
            .with("server", "db:5432")
            .because(std::io::Error::other("refused"))
            .hint("start it");
        assert_eq!(
            Code::of_line(&error.line()),
            Some((code::UNREACHABLE, "no answer (server: db:5432)")),
            "a line can be taken apart again"
        );
        assert_eq!(Code::of_line("somebody: else"), None);
        assert_eq!(error.verdict(), Verdict::Retry);
        assert_eq!(error.kind(), Kind::Unreachable);
        assert_eq!(
            format!("{error:?}"),
            "TG0010 unreachable: no answer server=db:5432; caused by: refused; hint: start it; \
             more: tidegate explain unreachable"
        );
        assert_eq!(error.hint_text(), Some("start it"));
    }
}
