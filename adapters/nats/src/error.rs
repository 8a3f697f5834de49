//! Everything NATS and its client can say, mapped to the codes of the framework.

use std::io;

use async_nats::jetstream::context::{PublishError, PublishErrorKind, RequestError, RequestErrorKind};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{ConnectError, ConnectErrorKind};
use tidegate_core::Error;
use tidegate_core::error::{Code, Verdict, code};

/// An error before there was a connection: nothing was done.
pub(crate) fn from_connect(error: ConnectError) -> Error {
    let mut source = std::error::Error::source(&error);
    let mut is_tls = error.kind() == ConnectErrorKind::Tls;
    while let Some(cause) = source {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        is_tls |= cause.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>());
        source = cause.source();
    }
    let (code, sentence) = match error.kind() {
        _ if is_tls => (code::TLS_FAILED, "no trusted connection to the server"),
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            (code::ACCESS_DENIED, "the server refuses the user, the password, the token or the key")
        }
        ConnectErrorKind::ServerParse => (code::URL_INVALID, "the nats URL cannot be used"),
        _ => (code::UNREACHABLE, "the server does not answer"),
    };
    let error = Error::new(code, sentence).with("operation", "connect").because(error);
    match code {
        code::TLS_FAILED => error.hint("name the certificate of the server's authority with ?ca=FILE"),
        _ => error,
    }
}

/// An error of a request that has no answer of JetStream's own; `has_jetstream` is what the server says of itself.
pub(crate) fn from_request(error: &RequestError, has_jetstream: bool, operation: &'static str) -> Error {
    let made = match error.kind() {
        RequestErrorKind::NoResponders if !has_jetstream => without_jetstream(),
        RequestErrorKind::NoResponders => Error::new(code::UNREACHABLE, "JetStream is not ready"),
        RequestErrorKind::TimedOut => Error::new(code::TIMED_OUT, "JetStream did not answer in time"),
        RequestErrorKind::InvalidSubject | RequestErrorKind::Other => {
            Error::new(code::CONNECTION_LOST, "the connection was lost")
        }
    };
    made.with("operation", operation).because(error.to_string())
}

fn without_jetstream() -> Error {
    Error::new(code::CAPABILITY_MISSING, "this NATS server has no JetStream, which keeps messages")
        .hint("enable it for the server and the account: jetstream { store_dir: … }")
}

/// An error of something that was published.
pub(crate) fn from_publish(error: PublishError, operation: &'static str) -> Error {
    let source = std::error::Error::source(&error);
    if let Some(refusal) = source.and_then(|source| source.downcast_ref::<jetstream::Error>()) {
        return from_server(refusal, operation);
    }
    let made = match error.kind() {
        PublishErrorKind::StreamNotFound => Error::new(
            code::UNREACHABLE,
            "no stream takes the message: it is gone, or has no leader just now",
        ),
        PublishErrorKind::TimedOut => Error::new(code::TIMED_OUT, "JetStream did not answer in time"),
        PublishErrorKind::MaxPayloadExceeded => {
            Error::new(code::BODY_TOO_LARGE, "the message is larger than the server's max_payload")
                .hint("raise max_payload in the server's configuration, or publish less at once")
        }
        _ => Error::new(code::CONNECTION_LOST, "the connection was lost"),
    };
    made.with("operation", operation).because(error)
}

/// What JetStream refused.
pub(crate) fn from_server(error: &jetstream::Error, operation: &'static str) -> Error {
    let said = error.to_string();
    let (code, verdict, sentence) = match error.error_code() {
        ErrorCode::JETSTREAM_NOT_ENABLED
        | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
        | ErrorCode::NO_ACCOUNT => return without_jetstream().with("operation", operation).because(said),
        refused => refusal(refused, &said),
    };
    let made = Error::new(code, sentence).verdict_is(verdict).with("operation", operation).because(said);
    match code {
        code::NAME_TAKEN => made.hint("streams of Tidegate have the subjects tidegate.> to themselves"),
        code::LIMIT_REACHED => made.hint(
            "make room: remove streams, or raise max_file_store or the account's limits; consumers need some, too, to note what they settle",
        ),
        _ => made,
    }
}

/// What the server's own codes mean. All but the last are said before anything is done.
fn refusal(refused: ErrorCode, said: &str) -> (Code, Verdict, &'static str) {
    match refused {
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::MAXIMUM_STREAMS_LIMIT
        | ErrorCode::MAXIMUM_CONSUMERS_LIMIT
        | ErrorCode::STREAM_MAX_STREAM_BYTES_EXCEEDED => {
            (code::LIMIT_REACHED, Verdict::Retry, "a limit of the account or of the server is reached")
        }
        ErrorCode::STREAM_STORE_FAILED if said.contains("maximum") => {
            (code::LIMIT_REACHED, Verdict::Retry, "a limit of the stream is reached")
        }
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            (code::BODY_TOO_LARGE, Verdict::Never, "the message is larger than the stream takes")
        }
        ErrorCode::STREAM_NOT_FOUND => {
            (code::CHANNEL_MISSING, Verdict::Never, "the stream of the channel is gone")
        }
        ErrorCode::STREAM_SUBJECT_OVERLAP => {
            (code::NAME_TAKEN, Verdict::Never, "another stream has the channel's subjects")
        }
        ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED | ErrorCode::STREAM_INVALID_CONFIG => {
            (code::CONFIG_INVALID, Verdict::Never, "the server has no such streams")
        }
        ErrorCode::STREAM_SEALED => (code::STORE_FAILED, Verdict::Never, "the stream is sealed"),
        ErrorCode::CLUSTER_NOT_AVAILABLE
        | ErrorCode::CLUSTER_NOT_ACTIVE
        | ErrorCode::CLUSTER_NOT_LEADER
        | ErrorCode::CLUSTER_NO_PEERS
        | ErrorCode::STREAM_OFFLINE
        | ErrorCode::STREAM_TOO_MANY_REQUESTS => {
            (code::UNREACHABLE, Verdict::Retry, "JetStream is not ready")
        }
        _ => (code::STORE_FAILED, Verdict::Unknown, "the server refused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: u64, text: &str) -> jetstream::Error {
        let json = format!(r#"{{"code":500,"err_code":{code},"description":"{text}"}}"#);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn what_was_refused_before_it_began_is_not_unknown() {
        for (number, text, code, verdict) in [
            (10_039, "not enabled for account", code::CAPABILITY_MISSING, Verdict::Never),
            (10_047, "insufficient storage", code::LIMIT_REACHED, Verdict::Retry),
            (10_077, "maximum messages exceeded", code::LIMIT_REACHED, Verdict::Retry),
            (10_077, "disk", code::STORE_FAILED, Verdict::Unknown),
            (10_054, "too large", code::BODY_TOO_LARGE, Verdict::Never),
            (10_008, "no leader", code::UNREACHABLE, Verdict::Retry),
            (10_065, "overlap", code::NAME_TAKEN, Verdict::Never),
            (10_999, "news", code::STORE_FAILED, Verdict::Unknown),
        ] {
            let refusal = said(number, text);
            let error = from_server(&refusal, "append");
            assert_eq!((error.code(), error.verdict()), (code, verdict), "{number} {text}");
            assert!(format!("{error:?}").contains(text), "{error:?}");
            let published = PublishError::with_source(PublishErrorKind::Other, refusal);
            assert_eq!(from_publish(published, "append").code(), code);
        }
    }

    #[test]
    fn what_has_no_answer_is_told_from_what_nobody_heard() {
        let request = |kind, has| from_request(&RequestError::new(kind), has, "ask");
        assert_eq!(request(RequestErrorKind::NoResponders, false).code(), code::CAPABILITY_MISSING);
        assert_eq!(request(RequestErrorKind::NoResponders, true).verdict(), Verdict::Retry);
        assert_eq!(request(RequestErrorKind::TimedOut, true).verdict(), Verdict::Unknown);
        for (kind, verdict) in [
            (PublishErrorKind::StreamNotFound, Verdict::Retry),
            (PublishErrorKind::TimedOut, Verdict::Unknown),
            (PublishErrorKind::BrokenPipe, Verdict::Unknown),
            (PublishErrorKind::MaxPayloadExceeded, Verdict::Never),
        ] {
            assert_eq!(from_publish(PublishError::new(kind), "append").verdict(), verdict, "{kind}");
        }
    }
}
