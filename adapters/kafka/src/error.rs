//! Everything Kafka and its library can say, mapped to the codes of the framework.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tidegate_core::Error;
use tidegate_core::error::{Code, Verdict, code};

/// An error of a call that was sent, or may have been.
pub(crate) fn from_driver(error: KafkaError, operation: &'static str) -> Error {
    let (code, verdict, sentence) = match &error {
        // Here the library reads certificates.
        KafkaError::ClientCreation(text) if text.contains("ssl") => {
            (code::TLS_FAILED, Verdict::Never, "the certificates cannot be used")
        }
        KafkaError::ClientCreation(_) | KafkaError::ClientConfig(..) => {
            (code::URL_INVALID, Verdict::Never, "the kafka URL cannot be used")
        }
        error => error.rdkafka_error_code().map_or(OTHER, meaning),
    };
    Error::new(code, sentence).verdict_is(verdict).with("operation", operation).because(said(&error))
}

/// An error of the server about one thing of several.
pub(crate) fn from_code(error: RDKafkaErrorCode, operation: &'static str) -> Error {
    let (code, verdict, sentence) = meaning(error);
    Error::new(code, sentence).verdict_is(verdict).with("operation", operation).because(error.to_string())
}

/// Whether the server was not reached yet: to be asked again.
pub(crate) fn is_waiting(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as E;
    matches!(
        error.rdkafka_error_code(),
        Some(
            E::OperationTimedOut
                | E::BrokerTransportFailure
                | E::AllBrokersDown
                | E::Resolve
                | E::RequestTimedOut
                | E::LeaderNotAvailable
                | E::NotLeaderForPartition
                | E::NetworkException
                | E::BrokerNotAvailable
                | E::DestroyBroker
                | E::UnknownLeaderEpoch
                | E::FencedLeaderEpoch
                | E::OffsetNotAvailable
                | E::ListenerNotFound
                | E::KafkaStorageError
        )
    )
}

/// Whether the server says that there is no such topic.
pub(crate) fn is_missing(error: &KafkaError) -> bool {
    error.rdkafka_error_code().is_some_and(|error| meaning(error).0 == code::CHANNEL_MISSING)
}

fn said(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, text, name, _) => format!("{name}: {text}"),
        error => error.to_string(),
    }
}

const OTHER: (Code, Verdict, &str) =
    (code::STORE_FAILED, Verdict::Unknown, "the server's answer is not what was expected");

/// The code, whether it may have been done, and what happened in a sentence.
fn meaning(error: RDKafkaErrorCode) -> (Code, Verdict, &'static str) {
    use RDKafkaErrorCode as E;
    match error {
        E::Authentication | E::SaslAuthenticationFailed | E::UnsupportedSASLMechanism => {
            (code::ACCESS_DENIED, Verdict::Never, "the server refuses the user or the password")
        }
        E::TopicAuthorizationFailed | E::ClusterAuthorizationFailed | E::GroupAuthorizationFailed => {
            (code::ACCESS_DENIED, Verdict::Never, "the user may not do this")
        }
        E::SSL => (code::TLS_FAILED, Verdict::Never, "no trusted connection to the server"),
        E::UnknownTopicOrPartition | E::UnknownTopic | E::UnknownPartition | E::UnknownTopicId => {
            (code::CHANNEL_MISSING, Verdict::Never, "there is no such topic, or partition of it")
        }
        E::MessageSizeTooLarge | E::InvalidMessageSize | E::MessageBatchTooLarge => (
            code::BODY_TOO_LARGE,
            Verdict::Never,
            "the message is larger than the server takes (max.message.bytes)",
        ),
        E::InvalidReplicationFactor | E::InvalidPartitions | E::InvalidConfig | E::PolicyViolation => {
            (code::CONFIG_INVALID, Verdict::Never, "the server refuses the settings of the channel")
        }
        E::NotEnoughReplicas => (
            code::UNREACHABLE,
            Verdict::Retry,
            "fewer servers have the channel than are to have it (min.insync.replicas)",
        ),
        E::QueueFull => (code::LIMIT_REACHED, Verdict::Retry, "too much is on its way to the server"),
        E::MessageTimedOut | E::OperationTimedOut | E::RequestTimedOut | E::PurgeQueue | E::PurgeInflight => {
            (code::TIMED_OUT, Verdict::Unknown, "the server did not answer in time")
        }
        E::BrokerTransportFailure | E::AllBrokersDown | E::Resolve | E::NetworkException => {
            (code::CONNECTION_LOST, Verdict::Unknown, "the connection was lost")
        }
        _ => OTHER,
    }
}

/// What an error is by its reason: a server that went away in the midst of a login is not one that refused it, as the library
/// has it.
fn rightly(error: RDKafkaErrorCode, reason: &str) -> RDKafkaErrorCode {
    match error {
        RDKafkaErrorCode::Authentication if reason.contains("handshake failed: Local:") => {
            RDKafkaErrorCode::BrokerTransportFailure
        }
        error => error,
    }
}

/// What the clients of a broker heard on their own: why they cannot connect is told to nobody who calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard(Arc<Mutex<Option<(RDKafkaErrorCode, String)>>>);

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Option<(RDKafkaErrorCode, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was answered.
    pub(crate) fn clear(&self) {
        *self.lock() = None;
    }

    /// Why no server was reached; `None` if waiting may help.
    pub(crate) fn refusal(&self) -> Option<Error> {
        let heard = self.lock();
        let (error, reason) = heard.as_ref()?;
        let (code, verdict, sentence) = meaning(*error);
        if verdict != Verdict::Never {
            return None;
        }
        let error = Error::new(code, sentence).with("operation", "connect").because(reason.clone());
        Some(match code {
            code::TLS_FAILED => error.hint(
                "name the certificate of the server's authority with ?ca=FILE; a server without TLS is kafka://",
            ),
            _ => error,
        })
    }

    /// No server was reached, and nobody knows more.
    pub(crate) fn unreachable(&self, operation: &'static str, has_tls: bool, error: &KafkaError) -> Error {
        let reason = self.lock().as_ref().map_or_else(|| error.to_string(), |(_, reason)| reason.clone());
        Error::new(code::UNREACHABLE, "the server does not answer")
            .with("operation", operation)
            .hint(if has_tls {
                "a server without TLS is kafka://"
            } else {
                "a server that speaks TLS is kafkas://"
            })
            .because(reason)
    }
}

impl ClientContext for Heard {
    fn log(&self, _: RDKafkaLogLevel, about: &str, text: &str) {
        tracing::debug!(about, text, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(error) = error.rdkafka_error_code().map(|error| rightly(error, reason)) else { return };
        let mut heard = self.lock();
        // That all servers are away is said after each of them has said why.
        let is_worse = match &*heard {
            Some((known, _)) if meaning(*known).1 == Verdict::Never => false,
            Some(_) => error != RDKafkaErrorCode::AllBrokersDown,
            None => true,
        };
        if is_worse && !matches!(error, RDKafkaErrorCode::PartitionEOF | RDKafkaErrorCode::AutoOffsetReset) {
            *heard = Some((error, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Heard {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_not_unknown() {
        use RDKafkaErrorCode as E;
        for (said, code, verdict) in [
            (E::MessageSizeTooLarge, code::BODY_TOO_LARGE, Verdict::Never),
            (E::TopicAuthorizationFailed, code::ACCESS_DENIED, Verdict::Never),
            (E::NotEnoughReplicas, code::UNREACHABLE, Verdict::Retry),
            (E::PurgeQueue, code::TIMED_OUT, Verdict::Unknown),
            (E::NotEnoughReplicasAfterAppend, code::STORE_FAILED, Verdict::Unknown),
        ] {
            let error = from_driver(KafkaError::MessageProduction(said), "append");
            assert_eq!((error.code(), error.verdict()), (code, verdict), "{said:?}");
        }
    }

    #[test]
    fn a_refusal_is_not_covered_by_what_follows_from_it() {
        let heard = Heard::default();
        heard.error(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert!(heard.refusal().is_none());
        heard.error(KafkaError::Global(RDKafkaErrorCode::Authentication), "SASL authentication error");
        heard.error(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert_eq!(heard.refusal().unwrap().code(), code::ACCESS_DENIED);
        heard.clear();
        assert!(heard.refusal().is_none());
    }

    /// As a consumer was told once in fifty restarts, which ended it.
    #[test]
    fn who_went_away_in_a_login_refused_nobody() {
        let heard = Heard::default();
        let login = KafkaError::Global(RDKafkaErrorCode::Authentication);
        let reason = |why| {
            format!("SASL SCRAM-SHA-256 mechanism handshake failed: {why}: broker's supported mechanisms: ")
        };
        heard.error(login.clone(), &reason("Local: Broker transport failure"));
        assert!(heard.refusal().is_none());
        heard.error(login, &reason("Broker: Unsupported SASL mechanism"));
        assert_eq!(heard.refusal().unwrap().code(), code::ACCESS_DENIED);
    }
}
