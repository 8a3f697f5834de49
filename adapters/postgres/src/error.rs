//! Everything the server, the driver or the network can say, mapped to the codes of the framework.
//!
//! The text of a server's message depends on its language; the state, the routine and the names of settings in
//! the text do not. Only those are looked at.

use std::error::Error as StdError;
use std::io;

use postgres_protocol::message::backend::ErrorResponseBody;
use tidegate_core::Error;
use tidegate_core::error::{Code, Verdict, code};

/// What a server says when it refuses, from either client.
#[derive(Debug, Default)]
struct Refusal {
    state: String,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    routine: Option<String>,
    table: Option<String>,
    column: Option<String>,
    constraint: Option<String>,
}

/// An error of tokio-postgres, met while doing `operation`.
pub(crate) fn from_driver(error: tokio_postgres::Error, operation: &'static str) -> Error {
    if let Some(database) = error.as_db_error() {
        return from_refusal(
            Refusal {
                state: database.code().code().to_owned(),
                message: database.message().to_owned(),
                detail: database.detail().map(str::to_owned),
                hint: database.hint().map(str::to_owned),
                routine: database.routine().map(str::to_owned),
                table: database.table().map(str::to_owned),
                column: database.column().map(str::to_owned),
                constraint: database.constraint().map(str::to_owned),
            },
            operation,
        );
    }
    if error.is_closed() {
        return lost(operation).because(error);
    }
    if let Some(inner) = error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        // An I/O error cannot be cloned out of its owner; its kind and text say all that is in it.
        return from_io(io::Error::new(inner.kind(), inner.to_string()), operation);
    }
    // The driver does not show its kinds; its texts are its own and stand in its source.
    let text = error.to_string();
    let code = if text.starts_with("authentication error") || text.starts_with("invalid configuration") {
        code::ACCESS_DENIED
    } else if text.starts_with("error performing TLS") {
        code::TLS_FAILED
    } else {
        code::INTERNAL
    };
    Error::new(code, "the driver could not do what it was asked").with("operation", operation).because(error)
}

/// An `ErrorResponse` read by our own client.
pub(crate) fn from_response(body: &ErrorResponseBody, operation: &'static str) -> Error {
    use fallible_iterator::FallibleIterator as _;

    let mut refusal = Refusal::default();
    let mut fields = body.fields();
    // A malformed tail is no reason to hide what the head said.
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => refusal.state = value,
            b'M' => refusal.message = value,
            b'D' => refusal.detail = Some(value),
            b'H' => refusal.hint = Some(value),
            b'R' => refusal.routine = Some(value),
            b't' => refusal.table = Some(value),
            b'c' => refusal.column = Some(value),
            b'n' => refusal.constraint = Some(value),
            _ => {}
        }
    }
    from_refusal(refusal, operation)
}

/// An error of the socket or of TLS on a connection that had been usable.
pub(crate) fn from_io(error: io::Error, operation: &'static str) -> Error {
    if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
        return from_tls(error, operation);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::NotFound
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::AddrNotAvailable => Error::new(code::UNREACHABLE, "the server does not answer")
            .with("operation", operation)
            .because(error),
        io::ErrorKind::TimedOut => Error::new(code::TIMED_OUT, "the server did not answer in time")
            .with("operation", operation)
            .because(error),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            Error::new(code::STREAM_MALFORMED, "the server sent what its protocol does not know")
                .with("operation", operation)
                .because(error)
        }
        _ => lost(operation).because(error),
    }
}

/// An error before there was a connection: whatever it was, nothing has been done and it may be tried again.
pub(crate) fn from_connect(error: io::Error) -> Error {
    if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
        return from_tls(error, "connect");
    }
    Error::new(code::UNREACHABLE, "the server does not answer").with("operation", "connect").because(error)
}

/// The other side is gone.
pub(crate) fn lost(operation: &'static str) -> Error {
    Error::new(code::CONNECTION_LOST, "the server closed the connection").with("operation", operation)
}

fn from_tls(error: io::Error, operation: &'static str) -> Error {
    let text = error.to_string();
    let hint = if text.contains("CaUsedAsEndEntity") {
        "the server shows a certificate that is its own authority; issue the server a certificate signed by an \
         authority and name the authority in sslrootcert, or use sslmode=require"
    } else if text.contains("UnknownIssuer") {
        "name the certificate of the server's authority in sslrootcert"
    } else if text.contains("NotValidForName") || text.contains("not valid for name") {
        "use the name that stands in the server's certificate, or sslmode=verify-ca"
    } else {
        "look at the server's certificate and at sslmode"
    };
    Error::new(code::TLS_FAILED, "no trusted connection to the server")
        .with("operation", operation)
        .hint(hint)
        .because(error)
}

/// Nobody knows whether a commit that was not answered was done. One that the server refused was not.
pub(crate) fn unsure(error: Error) -> Error {
    match error.code() {
        code::CONNECTION_LOST | code::TIMED_OUT | code::UNREACHABLE => error.verdict_is(Verdict::Unknown),
        _ => error,
    }
}

fn from_refusal(refusal: Refusal, operation: &'static str) -> Error {
    let (code, verdict) =
        meaning(&refusal.state, refusal.routine.as_deref().unwrap_or_default(), &refusal.message);
    // The server's message may quote values, never credentials: it stands in one place, the source.
    let mut error =
        Error::new(code, sentence(code)).with("operation", operation).with("sqlstate", &refusal.state);
    for (name, value) in
        [("relation", &refusal.table), ("column", &refusal.column), ("constraint", &refusal.constraint)]
    {
        if let Some(value) = value {
            error = error.with(name, value);
        }
    }
    let is_said = [code::VALUE_UNFIT, code::CONSTRAINT_VIOLATED].contains(&code);
    if is_said {
        // Except here: a row stops its table, which is told in one line without the source. A fact, as the row's key is one.
        error = error.with("said", &refusal.message);
    }
    if let Some(verdict) = verdict {
        error = error.verdict_is(verdict);
    }
    if let Some(hint) = refusal.hint {
        error = error.hint(hint);
    }
    match refusal.detail {
        Some(detail) if is_said => error.because(detail),
        Some(detail) => error.because(format!("{} ({detail})", refusal.message)),
        None if is_said => error,
        None => error.because(refusal.message),
    }
}

/// The code of a state, and the verdict where the code's own does not fit.
fn meaning(state: &str, routine: &str, message: &str) -> (Code, Option<Verdict>) {
    let retry = Some(Verdict::Retry);
    match state {
        "3D000" => return (code::URL_INVALID, None),
        "42501" if routine == "check_enable_rls" => return (code::POLICY_HIDES_ROWS, None),
        "42501" => return (code::ACCESS_DENIED, None),
        "42P01" | "3F000" => return (code::TABLE_MISSING, None),
        // Settings keep their names in every language.
        "55000" if message.contains("wal_level") => return (code::WAL_LEVEL, None),
        "42704" | "55000" | "58P01" if of_a_slot(routine, message) => return (code::SLOT_LOST, None),
        "55006" | "42710" if of_a_slot(routine, message) => return (code::SLOT_UNAVAILABLE, retry),
        "53400" if of_a_slot(routine, message) => return (code::SLOT_UNAVAILABLE, None),
        "53300" if message.contains("max_wal_senders") => return (code::SLOT_UNAVAILABLE, retry),
        "53300" | "57P03" => return (code::UNREACHABLE, None),
        "57014" => return (code::TIMED_OUT, retry),
        "57P01" | "57P02" | "57P04" | "57P05" | "25P03" => return (code::CONNECTION_LOST, None),
        "40003" => return (code::CONNECTION_LOST, None),
        "54000" => return (code::BODY_TOO_LARGE, None),
        "42703" | "42804" | "0A000" if routine == "RevalidateCachedQuery" => {
            return (code::SCHEMA_CHANGED, None);
        }
        "42703" => return (code::SCHEMA_CHANGED, None),
        "0A000" => return (code::CAPABILITY_MISSING, None),
        // A deadlock, a conflict or a lock that was not free: the transaction is gone without a trace.
        "40001" | "40P01" | "55P03" => return (code::STORE_FAILED, retry),
        // A standby that is not promoted yet, or a primary that was set aside: whoever asks again meets the new one.
        "25006" => return (code::STORE_FAILED, retry),
        _ => {}
    }
    match state.get(..2).unwrap_or_default() {
        "08" => (code::CONNECTION_LOST, None),
        "22" => (code::VALUE_UNFIT, None),
        "23" => (code::CONSTRAINT_VIOLATED, None),
        "28" => (code::ACCESS_DENIED, None),
        "53" => (code::LIMIT_REACHED, None),
        _ => (code::STORE_FAILED, None),
    }
}

/// Whether a refusal is about a replication slot and not about a publication, a type or a lock.
fn of_a_slot(routine: &str, message: &str) -> bool {
    routine.contains("Slot")
        || routine == "CreateDecodingContext"
        || routine == "pg_logical_slot_get_changes_guts"
        || matches!(
            routine,
            "WalSndSegmentOpen" | "XLogSendPhysical" | "WALReadRaiseError" | "wal_segment_open"
        )
        || message.contains("max_replication_slots")
}

fn sentence(code: Code) -> &'static str {
    match code {
        code::URL_INVALID => "the database does not exist",
        code::POLICY_HIDES_ROWS => "a row-level policy would hide rows",
        code::ACCESS_DENIED => "the server refuses this role",
        code::TABLE_MISSING => "the table does not exist",
        code::WAL_LEVEL => "the server does not log what logical replication needs",
        code::SLOT_LOST => "the replication slot, or the log it needs, is gone",
        code::SLOT_UNAVAILABLE => "no replication slot can be had",
        code::UNREACHABLE => "the server takes no connections now",
        code::TIMED_OUT => "the server gave the statement up",
        code::CONNECTION_LOST => "the server ended the connection",
        code::BODY_TOO_LARGE => "the server cannot hold something this large",
        code::SCHEMA_CHANGED => "the table is not what it was",
        code::CAPABILITY_MISSING => "the server cannot do this",
        code::VALUE_UNFIT => "the server refuses a value",
        code::CONSTRAINT_VIOLATED => "a row breaks a constraint",
        code::LIMIT_REACHED => "the server has run out of something",
        _ => "the server refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_meaning() {
        for (state, routine, message, code, verdict) in [
            ("28P01", "auth_failed", "", code::ACCESS_DENIED, Verdict::Never),
            ("28000", "ClientAuthentication", "", code::ACCESS_DENIED, Verdict::Never),
            ("42501", "aclcheck_error", "", code::ACCESS_DENIED, Verdict::Never),
            ("42501", "check_enable_rls", "", code::POLICY_HIDES_ROWS, Verdict::Never),
            ("3D000", "InitPostgres", "", code::URL_INVALID, Verdict::Never),
            ("57P03", "ProcessStartupPacket", "", code::UNREACHABLE, Verdict::Retry),
            ("53300", "InitProcess", "sorry, too many clients already", code::UNREACHABLE, Verdict::Retry),
            ("53300", "InitProcess", "… max_wal_senders …", code::SLOT_UNAVAILABLE, Verdict::Retry),
            ("53400", "ReplicationSlotCreate", "", code::SLOT_UNAVAILABLE, Verdict::Never),
            ("53400", "FileWrite", "temp_file_limit", code::LIMIT_REACHED, Verdict::Retry),
            ("55006", "ReplicationSlotAcquire", "", code::SLOT_UNAVAILABLE, Verdict::Retry),
            ("55006", "CheckTableNotInUse", "", code::STORE_FAILED, Verdict::Never),
            // It was not there a moment ago: another runner makes it.
            ("42710", "ReplicationSlotCreate", "", code::SLOT_UNAVAILABLE, Verdict::Retry),
            ("42704", "ReplicationSlotAcquire", "", code::SLOT_LOST, Verdict::Never),
            ("42704", "get_publication_oid", "", code::STORE_FAILED, Verdict::Never),
            ("55000", "CreateDecodingContext", "", code::SLOT_LOST, Verdict::Never),
            ("55000", "CheckLogicalDecodingRequirements", "… wal_level …", code::WAL_LEVEL, Verdict::Never),
            ("58P01", "WalSndSegmentOpen", "", code::SLOT_LOST, Verdict::Never),
            ("57P01", "ProcessInterrupts", "", code::CONNECTION_LOST, Verdict::Unknown),
            ("08006", "", "", code::CONNECTION_LOST, Verdict::Unknown),
            ("57014", "ProcessInterrupts", "", code::TIMED_OUT, Verdict::Retry),
            ("22003", "", "", code::VALUE_UNFIT, Verdict::Never),
            ("22P02", "", "", code::VALUE_UNFIT, Verdict::Never),
            ("23505", "", "", code::CONSTRAINT_VIOLATED, Verdict::Never),
            ("42P01", "", "", code::TABLE_MISSING, Verdict::Never),
            ("42703", "", "", code::SCHEMA_CHANGED, Verdict::Never),
            ("40P01", "", "", code::STORE_FAILED, Verdict::Retry),
            ("40001", "", "", code::STORE_FAILED, Verdict::Retry),
            ("25006", "PreventCommandIfReadOnly", "", code::STORE_FAILED, Verdict::Retry),
            ("53100", "", "", code::LIMIT_REACHED, Verdict::Retry),
            ("0A000", "", "", code::CAPABILITY_MISSING, Verdict::Never),
            ("54000", "", "", code::BODY_TOO_LARGE, Verdict::Never),
            ("XX000", "", "", code::STORE_FAILED, Verdict::Never),
            ("", "", "", code::STORE_FAILED, Verdict::Never),
        ] {
            let refusal = Refusal {
                state: state.to_owned(),
                routine: Some(routine.to_owned()),
                message: message.to_owned(),
                ..Refusal::default()
            };
            let error = from_refusal(refusal, "test");
            assert_eq!((error.code(), error.verdict()), (code, verdict), "{state} {routine} {message}");
        }
    }

    #[test]
    fn the_network_has_its_meaning() {
        use io::ErrorKind::*;
        for (kind, code) in [
            (ConnectionRefused, code::UNREACHABLE),
            (UnexpectedEof, code::CONNECTION_LOST),
            (ConnectionReset, code::CONNECTION_LOST),
            (BrokenPipe, code::CONNECTION_LOST),
            (TimedOut, code::TIMED_OUT),
            (InvalidData, code::STREAM_MALFORMED),
        ] {
            assert_eq!(from_io(kind.into(), "test").code(), code, "{kind:?}");
        }
        let tls = io::Error::new(InvalidData, rustls::Error::HandshakeNotComplete);
        assert_eq!(from_connect(tls).code(), code::TLS_FAILED);
        assert_eq!(from_connect(ConnectionReset.into()).verdict(), Verdict::Retry);
    }
}
