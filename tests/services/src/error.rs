//! Why a server could not be had.

use std::fmt;
use std::io;

use crate::Service;

/// The result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// A service that this machine cannot give, with the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The service.
    pub service: Service,
    /// What is missing.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not available: {} ({})", self.service, self.what, self.hint)
    }
}

impl std::error::Error for Missing {}

/// Why a server could not be started, killed or asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The service cannot be had on this machine.
    Missing(Missing),
    /// The server belongs to somebody else (its URL was given), so this program does not kill or restart it.
    NotOurs {
        /// The service.
        service: Service,
    },
    /// A step failed.
    Failed {
        /// What was tried and what came back.
        what: String,
    },
}

impl Error {
    pub(crate) fn failed(what: impl Into<String>) -> Self {
        Error::Failed { what: what.into() }
    }

    /// For `map_err`: what was tried, then the cause.
    pub(crate) fn io(what: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |cause| Error::Failed { what: format!("{what}: {cause}") }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Missing(missing) => missing.fmt(f),
            Error::NotOurs { service } => {
                write!(
                    f,
                    "this {service} server was given by {}: it is not ours to kill or restart",
                    service.url_variable()
                )
            }
            Error::Failed { what } => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

impl From<Missing> for Error {
    fn from(missing: Missing) -> Self {
        Error::Missing(missing)
    }
}
