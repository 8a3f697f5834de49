//! Everything a server of AMQP 1.0 and the driver can say, mapped to the codes of the framework.

use fe2o3_amqp::connection::{ConnectionStopReason, OpenError};
use fe2o3_amqp::link::{
    DetachError, IllegalLinkStateError, LinkStateError, ReceiverAttachError, RecvError, SendError,
    SenderAttachError, SessionStopReason,
};
use fe2o3_amqp::session::BeginError;
use fe2o3_amqp::transaction::{ControllerSendError, PostError};
use fe2o3_amqp::types::definitions::{self, AmqpError, ConnectionError, ErrorCondition, LinkError};
use tidegate_core::Error;
use tidegate_core::error::{Code, Verdict, code};

/// An error of the driver, and what the server said, if it did.
pub(crate) trait Said: std::fmt::Display {
    fn said(&self) -> Option<&definitions::Error>;
}

macro_rules! said {
    ($($error:ty: $($variant:pat => $said:expr),*;)*) => {$(
        impl Said for $error {
            fn said(&self) -> Option<&definitions::Error> {
                match self {
                    $($variant => $said,)*
                    _ => None,
                }
            }
        }
    )*};
}

said! {
    OpenError: Self::RemoteClosedWithError(error) => Some(error);
    BeginError: Self::RemoteEndedWithError(error) => Some(error), Self::ConnectionStopped(why) => stopped(why);
    ReceiverAttachError: Self::RemoteClosedWithError(error) => Some(error), Self::SessionStopped(why) => ended(why);
    SenderAttachError: Self::RemoteClosedWithError(error) => Some(error), Self::SessionStopped(why) => ended(why);
    LinkStateError: Self::RemoteClosedWithError(error) | Self::RemoteDetachedWithError(error) => Some(error),
        Self::SessionStopped(why) => ended(why);
    DetachError: Self::RemoteClosedWithError(error) | Self::RemoteDetachedWithError(error) => Some(error),
        Self::SessionStopped(why) => ended(why);
    SendError: Self::LinkStateError(error) => error.said(), Self::Detached(error) => error.said();
    PostError: Self::LinkStateError(error) => error.said(), Self::Detached(error) => error.said();
    RecvError: Self::LinkStateError(error) => error.said();
    ControllerSendError: Self::Rejected(rejected) => rejected.error.as_ref();
    IllegalLinkStateError: Self::SessionStopped(why) => ended(why);
}

fn ended(why: &SessionStopReason) -> Option<&definitions::Error> {
    match why {
        SessionStopReason::RemoteEndedWithError(error) => Some(error),
        SessionStopReason::ConnectionStopped(why) => stopped(why),
        _ => None,
    }
}

fn stopped(why: &ConnectionStopReason) -> Option<&definitions::Error> {
    match why {
        ConnectionStopReason::RemoteClosedWithError(error) => Some(error),
        _ => None,
    }
}

/// An error of a call that was sent, or may have been.
pub(crate) fn from_driver(error: &impl Said, operation: &'static str) -> Error {
    let (code, verdict, sentence) = meaning(error.said());
    Error::new(code, sentence).verdict_is(verdict).with("operation", operation).because(error.to_string())
}

/// What the server answered, where it refused.
pub(crate) fn from_server(said: Option<&definitions::Error>, operation: &'static str) -> Error {
    let (code, verdict, sentence) = match meaning(said) {
        (code::CONNECTION_LOST, ..) => (code::STORE_FAILED, Verdict::Unknown, "the server refused"),
        known => known,
    };
    let error = Error::new(code, sentence).verdict_is(verdict).with("operation", operation);
    match said {
        Some(said) => error.because(said.to_string()),
        None => error,
    }
}

/// An error before there was a connection: nothing was done.
pub(crate) fn from_connect(error: &OpenError) -> Error {
    let (code, sentence) = match (error, meaning(error.said())) {
        (OpenError::SaslError { .. }, _) | (_, (code::ACCESS_DENIED, ..)) => {
            (code::ACCESS_DENIED, "the server refuses the user or the password")
        }
        (OpenError::ProtocolHeaderMismatch(_), _) => {
            (code::VERSION_UNSUPPORTED, "the server does not speak AMQP 1.0")
        }
        // Said when a server knows none of the ways to log in that are left, or when a listener wants TLS.
        (OpenError::NotImplemented(_), _) => {
            (code::ACCESS_DENIED, "the server has no such way to log in: users need a name and a password")
        }
        _ => (code::UNREACHABLE, "the server does not answer"),
    };
    // What is in the answer of a login is the server's; nothing of it is a secret, and nothing of it helps.
    Error::new(code, sentence).with("operation", "connect").because(error.to_string())
}

/// Nothing was heard for as long as an answer may take.
pub(crate) fn timed_out(operation: &'static str) -> Error {
    Error::new(code::TIMED_OUT, "the server did not answer in time").with("operation", operation)
}

/// The server gives no credit to send anything.
pub(crate) fn blocked() -> Error {
    Error::new(code::LIMIT_REACHED, "the server takes no messages: an address is full, or its disk is").hint(
        "look at its log, max-disk-usage and the limits of its addresses; consumers go on and make room",
    )
}

/// Whether what was asked for is not there.
pub(crate) fn is_missing(error: &Error) -> bool {
    error.code() == code::CHANNEL_MISSING
}

/// The code, whether it may have been done, and what happened in a sentence.
fn meaning(said: Option<&definitions::Error>) -> (Code, Verdict, &'static str) {
    match said.map(|said| &said.condition) {
        Some(ErrorCondition::AmqpError(AmqpError::NotFound | AmqpError::ResourceDeleted)) => {
            (code::CHANNEL_MISSING, Verdict::Never, "an address or a queue of the channel is not there")
        }
        Some(ErrorCondition::AmqpError(AmqpError::UnauthorizedAccess)) => {
            (code::ACCESS_DENIED, Verdict::Never, "the user may not do this")
        }
        Some(ErrorCondition::AmqpError(AmqpError::ResourceLimitExceeded)) => (
            code::LIMIT_REACHED,
            Verdict::Retry,
            "an address of the channel is full, and its policy is to refuse",
        ),
        Some(ErrorCondition::LinkError(LinkError::MessageSizeExceeded)) => {
            (code::BODY_TOO_LARGE, Verdict::Never, "the message is larger than the server takes")
        }
        Some(ErrorCondition::ConnectionError(ConnectionError::ConnectionForced)) => {
            (code::CONNECTION_LOST, Verdict::Unknown, "the server closed the connection")
        }
        _ => (code::CONNECTION_LOST, Verdict::Unknown, "the connection was lost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_has_a_code_and_a_verdict() {
        for (condition, code, verdict) in [
            (AmqpError::NotFound, code::CHANNEL_MISSING, Verdict::Never),
            (AmqpError::UnauthorizedAccess, code::ACCESS_DENIED, Verdict::Never),
            (AmqpError::ResourceLimitExceeded, code::LIMIT_REACHED, Verdict::Retry),
            (AmqpError::InternalError, code::CONNECTION_LOST, Verdict::Unknown),
        ] {
            let said = definitions::Error::new(condition, "words".to_owned(), None);
            let error = from_driver(&LinkStateError::RemoteClosedWithError(said), "publish");
            assert_eq!((error.code(), error.verdict()), (code, verdict), "{error:?}");
            assert!(format!("{error:?}").contains("words"), "{error:?}");
        }
        let said = definitions::Error::new(AmqpError::InternalError, None, None);
        assert_eq!(from_server(Some(&said), "x").code(), code::STORE_FAILED);
        assert_eq!(from_driver(&LinkStateError::RemoteClosed, "x").verdict(), Verdict::Unknown);
    }

    #[test]
    fn before_there_was_a_connection_nothing_was_done() {
        let refused = from_connect(&OpenError::Io(std::io::Error::other("Connection refused")));
        assert_eq!((refused.code(), refused.verdict()), (code::UNREACHABLE, Verdict::Retry));
        let said = definitions::Error::new(AmqpError::UnauthorizedAccess, None, None);
        assert_eq!(from_connect(&OpenError::RemoteClosedWithError(said)).code(), code::ACCESS_DENIED);
    }
}
