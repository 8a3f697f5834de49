//! Everything RabbitMQ and its driver can say, mapped to the codes of the framework.

use lapin::ErrorKind;
use lapin::message::Delivery;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use tidegate_core::error::{Code, Verdict, code};
use tidegate_core::{Error, Result};

/// An error of a call that was sent, or may have been.
pub(crate) fn from_driver(error: &lapin::Error, operation: &'static str) -> Error {
    let (code, verdict, sentence) = meaning(error);
    Error::new(code, sentence).verdict_is(verdict).with("operation", operation).because(error.to_string())
}

/// An error before there was a connection: nothing was done.
pub(crate) fn from_connect(error: &lapin::Error) -> Error {
    let said = error.to_string();
    let is_tls = ["certificate", "Certificate", "tls", "TLS", "handshake", "InvalidContentType"]
        .iter()
        .any(|word| said.contains(word));
    let (code, sentence) = match meaning(error) {
        (code::ACCESS_DENIED, ..) => (code::ACCESS_DENIED, "the server refuses the user or the password"),
        (code::CONFIG_INVALID, _, sentence) => (code::CONFIG_INVALID, sentence),
        _ if error.is_io_error() && is_tls => (code::TLS_FAILED, "no trusted connection to the server"),
        _ => (code::UNREACHABLE, "the server does not answer"),
    };
    let error = Error::new(code, sentence).with("operation", "connect").because(said);
    match code {
        code::TLS_FAILED => error.hint("name the certificate of the server's authority with ?ca=FILE"),
        code::CONFIG_INVALID => error.hint("the path of the URL is the virtual host: amqp://host/name"),
        _ => error,
    }
}

/// Nothing was heard for as long as an answer may take.
pub(crate) fn timed_out(operation: &'static str) -> Error {
    Error::new(code::TIMED_OUT, "the server did not answer in time").with("operation", operation)
}

/// What came to a consumer. The server ends one whose queue is gone, or moves.
pub(crate) fn came(delivery: Option<lapin::Result<Delivery>>) -> Result<Delivery> {
    let ended = || {
        let text = "the server ended a consumer: its queue is gone, or moves to another node";
        Error::new(code::CONNECTION_LOST, text)
    };
    delivery.ok_or_else(ended)?.map_err(|error| from_driver(&error, "receive"))
}

/// Whether what was asked for is not there.
pub(crate) fn is_missing(error: &Error) -> bool {
    error.code() == code::CHANNEL_MISSING
}

/// The code, whether it may have been done, and what happened in a sentence.
fn meaning(error: &lapin::Error) -> (Code, Verdict, &'static str) {
    match error.kind() {
        ErrorKind::ProtocolError(said) => match said.kind() {
            AMQPErrorKind::Soft(kind) => soft(kind),
            AMQPErrorKind::Hard(kind) => hard(kind),
        },
        ErrorKind::ChannelsLimitReached => {
            (code::LIMIT_REACHED, Verdict::Retry, "the connection has no room for another channel of AMQP")
        }
        ErrorKind::InvalidConnectionState(_) | ErrorKind::InvalidChannelState(..) => {
            (code::CONNECTION_LOST, Verdict::Retry, "the connection is lost")
        }
        _ => (code::CONNECTION_LOST, Verdict::Unknown, "the connection was lost"),
    }
}

fn soft(kind: &AMQPSoftError) -> (Code, Verdict, &'static str) {
    match kind {
        AMQPSoftError::ACCESSREFUSED => (code::ACCESS_DENIED, Verdict::Never, "the user may not do this"),
        AMQPSoftError::NOTFOUND => {
            (code::CHANNEL_MISSING, Verdict::Never, "an exchange or a queue of the channel is not there")
        }
        AMQPSoftError::PRECONDITIONFAILED => (
            code::CHANNEL_DIFFERS,
            Verdict::Never,
            "an exchange or a queue of the channel was made with other settings",
        ),
        AMQPSoftError::CONTENTTOOLARGE => {
            (code::BODY_TOO_LARGE, Verdict::Never, "the message is larger than the server takes")
        }
        _ => (code::STORE_FAILED, Verdict::Unknown, "the server refused"),
    }
}

fn hard(kind: &AMQPHardError) -> (Code, Verdict, &'static str) {
    match kind {
        AMQPHardError::NOTALLOWED => (
            code::CONFIG_INVALID,
            Verdict::Never,
            "the server has no virtual host of this name, or the user may not use it",
        ),
        AMQPHardError::CONNECTIONFORCED => {
            (code::CONNECTION_LOST, Verdict::Unknown, "the server closed the connection")
        }
        _ => (code::CONNECTION_LOST, Verdict::Unknown, "the server ended the connection"),
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    fn said(kind: impl Into<AMQPErrorKind>) -> lapin::Error {
        ErrorKind::ProtocolError(AMQPError::new(kind.into(), "words".into())).into()
    }

    #[test]
    fn what_the_server_says_has_a_code_and_a_verdict() {
        for (kind, code, verdict) in [
            (AMQPSoftError::ACCESSREFUSED, code::ACCESS_DENIED, Verdict::Never),
            (AMQPSoftError::NOTFOUND, code::CHANNEL_MISSING, Verdict::Never),
            (AMQPSoftError::PRECONDITIONFAILED, code::CHANNEL_DIFFERS, Verdict::Never),
            (AMQPSoftError::CONTENTTOOLARGE, code::BODY_TOO_LARGE, Verdict::Never),
            (AMQPSoftError::RESOURCELOCKED, code::STORE_FAILED, Verdict::Unknown),
        ] {
            let error = from_driver(&said(kind), "publish");
            assert_eq!((error.code(), error.verdict()), (code, verdict), "{error:?}");
            assert!(format!("{error:?}").contains("words"), "{error:?}");
        }
        assert_eq!(from_driver(&said(AMQPHardError::CONNECTIONFORCED), "x").verdict(), Verdict::Unknown);
        assert_eq!(from_connect(&said(AMQPHardError::NOTALLOWED)).code(), code::CONFIG_INVALID);
        assert_eq!(from_connect(&said(AMQPSoftError::ACCESSREFUSED)).code(), code::ACCESS_DENIED);
        assert!(is_missing(&from_driver(&said(AMQPSoftError::NOTFOUND), "x")));
    }

    #[test]
    fn before_there_was_a_connection_nothing_was_done() {
        let io = |text: &str| lapin::Error::from(std::io::Error::other(text.to_owned()));
        let refused = from_connect(&io("Connection refused"));
        assert_eq!((refused.code(), refused.verdict()), (code::UNREACHABLE, Verdict::Retry));
        let tls = from_connect(&io("invalid peer certificate: UnknownIssuer"));
        assert!(tls.code() == code::TLS_FAILED && tls.hint_text().is_some_and(|hint| hint.contains("?ca=")));
    }
}
