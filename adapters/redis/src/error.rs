//! Everything Redis and its driver can say, mapped to the codes of the framework.

use std::io;

use redis::{ErrorKind, RedisError};
use tidegate_core::Error;
use tidegate_core::error::{Code, Verdict, code};

/// An error of a call that was sent, or may have been.
pub(crate) fn from_driver(error: RedisError, operation: &'static str) -> Error {
    let (code, verdict, sentence) = meaning(&error);
    Error::new(code, sentence).verdict_is(verdict).with("operation", operation).because(said(&error))
}

/// An error before there was a connection: nothing was done.
pub(crate) fn from_connect(error: RedisError) -> Error {
    let (code, _, sentence) = meaning(&error);
    let (code, sentence) = match code {
        _ if error.detail().is_some_and(|detail| detail.contains("DB index")) => {
            (code::URL_INVALID, "the server has no database of that number")
        }
        code::ACCESS_DENIED | code::TLS_FAILED | code::VERSION_UNSUPPORTED => (code, sentence),
        _ => (code::UNREACHABLE, "the server does not answer"),
    };
    let said = said(&error);
    let asks_for_one = said.contains("CertificateRequired");
    let error = Error::new(code, sentence).with("operation", "connect").because(said);
    match code {
        code::TLS_FAILED if asks_for_one => {
            error.hint("the server wants a certificate of the client's own: ?cert=FILE&key=FILE")
        }
        code::TLS_FAILED => error.hint("name the certificate of the server's authority with ?ca=FILE"),
        _ => error,
    }
}

fn said(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        // The driver would show the answer, which may be what stands in a message.
        _ if is_unread(error) => error.category().to_owned(),
        _ => error.to_string(),
    }
}

/// Whether there is an answer that cannot be read.
fn is_unread(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Parse | ErrorKind::UnexpectedReturnType)
}

/// The code, whether it may have been done, and what happened in a sentence.
fn meaning(error: &RedisError) -> (Code, Verdict, &'static str) {
    if let Some(said) = error.code() {
        return refusal(said);
    }
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    let is_tls = io.and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<rustls::Error>())
        || !is_unread(error) && error.to_string().to_lowercase().contains("certificate");
    if is_tls {
        (code::TLS_FAILED, Verdict::Never, "no trusted connection to the server")
    } else if error.kind() == ErrorKind::AuthenticationFailed {
        (code::ACCESS_DENIED, Verdict::Never, "the server refuses the user or the password")
    } else if error.is_timeout() {
        (code::TIMED_OUT, Verdict::Unknown, "the server did not answer in time")
    } else if error.is_io_error() || error.is_connection_dropped() {
        (code::CONNECTION_LOST, Verdict::Unknown, "the connection was lost")
    } else {
        (code::STORE_FAILED, Verdict::Unknown, "the server's answer is not what was expected")
    }
}

/// What the server's own words mean. All but the last are said before anything is done.
fn refusal(said: &str) -> (Code, Verdict, &'static str) {
    match said {
        "NOAUTH" | "WRONGPASS" => {
            (code::ACCESS_DENIED, Verdict::Never, "the server refuses the user or the password")
        }
        "NOPERM" => (code::ACCESS_DENIED, Verdict::Never, "the user may not do this"),
        "OOM" => (code::LIMIT_REACHED, Verdict::Retry, "the server has no memory left"),
        "MISCONF" => (code::STORE_FAILED, Verdict::Retry, "the server cannot write to its disk"),
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => {
            (code::UNREACHABLE, Verdict::Retry, "the server is not ready")
        }
        "READONLY" => (code::UNREACHABLE, Verdict::Retry, "the server is a replica"),
        "BUSY" => (code::UNREACHABLE, Verdict::Retry, "the server is busy with a script"),
        "NOREPLICAS" => {
            (code::UNREACHABLE, Verdict::Retry, "the server has not the replicas that it is to have")
        }
        "MOVED" | "ASK" => (code::CAPABILITY_MISSING, Verdict::Never, "the server is a node of a cluster"),
        _ => (code::STORE_FAILED, Verdict::Unknown, "the server refused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_before_it_began_is_not_unknown() {
        for (said, code, verdict) in [
            ("OOM", code::LIMIT_REACHED, Verdict::Retry),
            ("WRONGPASS", code::ACCESS_DENIED, Verdict::Never),
            ("MISCONF", code::STORE_FAILED, Verdict::Retry),
            ("LOADING", code::UNREACHABLE, Verdict::Retry),
            ("WRONGTYPE", code::STORE_FAILED, Verdict::Unknown),
        ] {
            let error = redis::make_extension_error(said.to_owned(), Some("words".to_owned()));
            let error = from_driver(error, "append");
            assert_eq!((error.code(), error.verdict()), (code, verdict), "{said}");
            assert!(format!("{error:?}").contains("words"), "{error:?}");
        }
        let lost = RedisError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(from_driver(lost, "append").code(), code::CONNECTION_LOST);
        let refused = RedisError::from(io::Error::from(io::ErrorKind::ConnectionRefused));
        let refused = from_connect(refused);
        assert_eq!((refused.code(), refused.verdict()), (code::UNREACHABLE, Verdict::Retry));
    }
}
