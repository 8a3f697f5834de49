//! Everything MongoDB and its driver can say, mapped to the codes of the framework.

use std::fmt;

use mongodb::bson::{Bson, Document};
use mongodb::error::{
    Error as DriverError, ErrorKind, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT,
    WriteFailure,
};
use tidegate_core::error::{Code, Verdict, code};
use tidegate_core::{Error, Result};

/// A key, or the values of a unique index, are there already.
pub(crate) const DUPLICATE_KEY: i32 = 11000;

/// Says what was being done when the driver failed.
pub(crate) trait During<T> {
    /// Maps the driver's error.
    fn during(self, operation: &'static str) -> Result<T>;
}

impl<T> During<T> for Result<T, DriverError> {
    fn during(self, operation: &'static str) -> Result<T> {
        self.map_err(|error| from_driver(error, operation))
    }
}

/// The number that the server gave, if it was the server that refused.
pub(crate) fn number(error: &DriverError) -> Option<i32> {
    refusal(error).map(|(number, ..)| number)
}

/// The number, its name and the message of the server, if it was the server that refused.
fn refusal(error: &DriverError) -> Option<(i32, &str, &str)> {
    match &*error.kind {
        ErrorKind::Command(refused) => Some((refused.code, &refused.code_name, &refused.message)),
        ErrorKind::Write(WriteFailure::WriteError(refused)) => {
            Some((refused.code, refused.code_name.as_deref().unwrap_or_default(), &refused.message))
        }
        ErrorKind::Write(WriteFailure::WriteConcernError(refused)) => {
            Some((refused.code, &refused.code_name, &refused.message))
        }
        ErrorKind::InsertMany(refused) => {
            let first = refused.write_errors.as_ref().and_then(|all| all.first());
            let first = first
                .map(|one| (one.code, one.code_name.as_deref().unwrap_or_default(), one.message.as_str()));
            let concern = refused.write_concern_error.as_ref();
            first.or(concern.map(|one| (one.code, one.code_name.as_str(), one.message.as_str())))
        }
        _ => None,
    }
}

/// The driver's error as what the server or the driver says, in a line: its own text has the server's whole answer with it.
#[derive(Debug)]
struct Said(DriverError);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match refusal(&self.0) {
            Some((number, "", message)) => write!(f, "{message} ({number})"),
            Some((number, name, message)) => write!(f, "{name} ({number}): {message}"),
            None => fmt::Display::fmt(&self.0.kind, f),
        }
    }
}

impl std::error::Error for Said {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0)
    }
}

/// An error of the driver, met while doing `operation`.
pub(crate) fn from_driver(error: DriverError, operation: &'static str) -> Error {
    let number = number(&error);
    let (code, sentence) = match number {
        Some(number) => meaning(number, &error.to_string()),
        None => without_number(&error),
    };
    let unknown = error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT);
    let transient = error.contains_label(TRANSIENT_TRANSACTION_ERROR);
    let verdict = match number {
        _ if unknown => Some(Verdict::Unknown),
        _ if transient => Some(Verdict::Retry),
        Some(number) => verdict_of(number),
        None => None,
    };
    finish(Error::new(code, sentence), code, verdict, operation, number).because(Said(error))
}

/// The first refusal in an answer to a command with several writes, if there is one.
pub(crate) fn from_answer(answer: &Document, operation: &'static str) -> Option<Error> {
    let refused = match (answer.get_array("writeErrors"), answer.get_document("writeConcernError")) {
        (Ok(refused), _) => refused.first().and_then(Bson::as_document),
        (_, Ok(refused)) => Some(refused),
        _ => None,
    }?;
    let number = refused.get_i32("code").unwrap_or(0);
    let text = refused.get_str("errmsg").unwrap_or_default();
    let (code, sentence) = meaning(number, text);
    let error = Error::new(code, sentence);
    Some(finish(error, code, verdict_of(number), operation, Some(number)).because(text.to_owned()))
}

fn first_refusal(answer: &Document) -> Option<&Document> {
    answer.get_array("writeErrors").ok()?.first()?.as_document()
}

/// Whether a write was refused because a document has its key, or its values in a unique index.
pub(crate) fn is_duplicate(answer: &Result<Document, DriverError>) -> bool {
    let number = match answer {
        Ok(answer) => first_refusal(answer).and_then(|refused| refused.get_i32("code").ok()),
        Err(error) => number(error),
    };
    number == Some(DUPLICATE_KEY)
}

/// Whether a write was refused because another document has its values in a unique index that is not the `_id`'s.
pub(crate) fn is_kept_out(answer: &Result<Document, DriverError>) -> bool {
    let names_id = |text: &str| text.contains(" index: _id_ ");
    match answer {
        Ok(answer) => first_refusal(answer).is_some_and(|refused| {
            let is_of_id = match refused.get_document("keyPattern") {
                Ok(index) => index.keys().eq(["_id"]),
                Err(_) => refused.get_str("errmsg").is_ok_and(names_id),
            };
            refused.get_i32("code").is_ok_and(|number| number == DUPLICATE_KEY) && !is_of_id
        }),
        Err(error) => number(error) == Some(DUPLICATE_KEY) && !names_id(&error.to_string()),
    }
}

fn finish(
    mut error: Error,
    code: Code,
    verdict: Option<Verdict>,
    operation: &'static str,
    number: Option<i32>,
) -> Error {
    error = error.with("operation", operation);
    if let Some(number) = number {
        error = error.with("mongodb", number);
    }
    if let Some(verdict) = verdict {
        error = error.verdict_is(verdict);
    }
    match way_out(code) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn without_number(error: &DriverError) -> (Code, &'static str) {
    match &*error.kind {
        ErrorKind::Authentication { .. } => {
            (code::ACCESS_DENIED, "the server refused the user or the password")
        }
        ErrorKind::ServerSelection { message, .. } if is_denied(message) => {
            (code::ACCESS_DENIED, "the server refused the user or the password")
        }
        ErrorKind::ServerSelection { .. } => (code::UNREACHABLE, "no server answered in time"),
        ErrorKind::DnsResolve { .. } => (code::UNREACHABLE, "the server's name cannot be resolved"),
        ErrorKind::InvalidTlsConfig { .. } => (code::TLS_FAILED, "TLS cannot be set up as the URL says"),
        ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } => {
            (code::CONNECTION_LOST, "the connection was lost")
        }
        ErrorKind::SessionsNotSupported => {
            (code::REPLICA_SET_REQUIRED, "the server is not a member of a replica set")
        }
        ErrorKind::IncompatibleServer { .. } => {
            (code::VERSION_UNSUPPORTED, "the server is too old for what was asked")
        }
        ErrorKind::InvalidArgument { message, .. } if message.contains("change stream") => {
            (code::RESUME_TOKEN_EXPIRED, "the change stream cannot be opened there")
        }
        ErrorKind::MissingResumeToken => (code::STREAM_MALFORMED, "a change has no resume token"),
        ErrorKind::Bson(_) | ErrorKind::InvalidResponse { .. } => {
            (code::STREAM_MALFORMED, "the server's answer cannot be read")
        }
        _ => (code::INTERNAL, "the driver could not do what it was asked"),
    }
}

/// The driver reports a refused user of a background connection as a server that cannot be selected.
fn is_denied(message: &str) -> bool {
    message.contains("Authentication failed") || message.contains("SCRAM failure")
}

/// The code of a number, and the sentence.
fn meaning(number: i32, text: &str) -> (Code, &'static str) {
    match number {
        13 | 18 | 31 | 33 | 8000 => {
            (code::ACCESS_DENIED, "the server refused the user or what it wants to do")
        }
        20 if text.contains("replica set") => {
            (code::REPLICA_SET_REQUIRED, "the server is not a member of a replica set")
        }
        40573 | 123 | 76 | 263 => (code::REPLICA_SET_REQUIRED, "the server is not a member of a replica set"),
        // Where the log does not go back that far the server says so by another number.
        280 if text.contains("resume token was not found") => {
            (code::SOURCE_REPLACED, "the source has no change where the flow stands: it was restored")
        }
        136 | 260 | 280 | 286 => {
            (code::RESUME_TOKEN_EXPIRED, "the server's log does not go back to that place")
        }
        26 => (code::TABLE_MISSING, "the collection does not exist"),
        48 => (code::TARGET_DIFFERS, "a collection of that name exists already"),
        73 => (code::URL_INVALID, "a name of a database or collection cannot be used"),
        175 | 361 => (code::SCHEMA_CHANGED, "the collection is not the one it was"),
        DUPLICATE_KEY | 11001 | 12582 => {
            (code::CONSTRAINT_VIOLATED, "another document has the same values in a unique index")
        }
        121 => (code::CONSTRAINT_VIOLATED, "a document breaks the collection's validation"),
        10334 | 17280 | 17419 | 17420 | 2 if number != 2 || text.contains("too large") => {
            (code::BODY_TOO_LARGE, "a document is larger than the server takes")
        }
        14031 => (code::LIMIT_REACHED, "the disk is full"),
        50 | 64 | 262 => (code::TIMED_OUT, "the server did not answer in time"),
        6 | 7 | 89 | 91 | 189 | 9001 | 10058 | 10107 | 11600..=11602 | 13435 | 13436 => {
            (code::CONNECTION_LOST, "the server is not the primary any more, or stops")
        }
        43 | 237 => (code::CONNECTION_LOST, "the server has forgotten what was being read"),
        133 | 134 | 211 => (code::UNREACHABLE, "the server is not ready yet"),
        112 | 225 | 251 | 24 | 239 | 246 => {
            (code::STORE_FAILED, "another program has the same documents in hand")
        }
        115 | 59 => (code::VERSION_UNSUPPORTED, "the server does not know what was asked"),
        _ => (code::STORE_FAILED, "the server refused"),
    }
}

/// The verdict where the code's own does not fit.
fn verdict_of(number: i32) -> Option<Verdict> {
    match number {
        112 | 225 | 251 | 24 | 239 | 246 => Some(Verdict::Retry),
        _ => None,
    }
}

fn way_out(code: Code) -> Option<&'static str> {
    match code {
        code::REPLICA_SET_REQUIRED => Some(
            "start mongod with --replSet NAME and run rs.initiate() once; one member is enough, no data is touched",
        ),
        code::RESUME_TOKEN_EXPIRED => {
            Some("start the migration over, with a larger oplog (replSetResizeOplog) at the source")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_meaning() {
        const STANDALONE: &str = "Transaction numbers are only allowed on a replica set member or mongos";
        for (number, text, code, verdict) in [
            (13, "", code::ACCESS_DENIED, None),
            (18, "", code::ACCESS_DENIED, None),
            (20, STANDALONE, code::REPLICA_SET_REQUIRED, None),
            (20, "other", code::STORE_FAILED, None),
            (40573, "", code::REPLICA_SET_REQUIRED, None),
            (136, "", code::RESUME_TOKEN_EXPIRED, None),
            (280, "", code::RESUME_TOKEN_EXPIRED, None),
            (280, "cannot resume stream; the resume token was not found. {}", code::SOURCE_REPLACED, None),
            (286, "", code::RESUME_TOKEN_EXPIRED, None),
            (11000, "", code::CONSTRAINT_VIOLATED, None),
            (121, "", code::CONSTRAINT_VIOLATED, None),
            (10334, "", code::BODY_TOO_LARGE, None),
            (2, "object to insert too large", code::BODY_TOO_LARGE, None),
            (2, "bad value", code::STORE_FAILED, None),
            (26, "", code::TABLE_MISSING, None),
            (361, "", code::SCHEMA_CHANGED, None),
            (112, "", code::STORE_FAILED, Some(Verdict::Retry)),
            (246, "", code::STORE_FAILED, Some(Verdict::Retry)),
            (251, "", code::STORE_FAILED, Some(Verdict::Retry)),
            (10107, "", code::CONNECTION_LOST, None),
            (11601, "operation was interrupted", code::CONNECTION_LOST, None),
            (64, "", code::TIMED_OUT, None),
            (225, "", code::STORE_FAILED, Some(Verdict::Retry)),
            (50, "", code::TIMED_OUT, None),
        ] {
            assert_eq!((meaning(number, text).0, verdict_of(number)), (code, verdict), "{number} {text}");
        }
    }

    /// Found by testing: the server's whole answer stood in it, in numbers.
    #[test]
    fn the_text_of_an_error_is_what_the_server_said() {
        use mongodb::bson::{deserialize_from_document, doc};
        let refused = doc! { "code": 13, "codeName": "Unauthorized", "errmsg": "not authorized on shop" };
        let kinds = [
            ErrorKind::Command(deserialize_from_document(refused.clone()).unwrap()),
            ErrorKind::Write(WriteFailure::WriteError(deserialize_from_document(refused).unwrap())),
        ];
        for kind in kinds {
            let error = from_driver(kind.into(), "x");
            let source = std::error::Error::source(&error).unwrap();
            assert_eq!(source.to_string(), "Unauthorized (13): not authorized on shop");
            assert_eq!((error.code(), source.source().is_none()), (code::ACCESS_DENIED, true));
        }
        let error = from_driver(ErrorKind::SessionsNotSupported.into(), "x");
        let source = std::error::Error::source(&error).unwrap();
        assert!(source.to_string().starts_with("Attempted to start a session"), "{source}");
    }

    #[test]
    fn a_write_that_was_refused_among_others_is_an_error() {
        use mongodb::bson::doc;
        let answer = doc! { "n": 1, "writeErrors": [{ "index": 1, "code": 11000, "errmsg": "dup" }] };
        assert_eq!(from_answer(&answer, "x").map(|e| e.code()), Some(code::CONSTRAINT_VIOLATED));
        assert!(from_answer(&doc! { "n": 1 }, "x").is_none());
    }

    #[test]
    fn a_row_is_kept_out_by_an_index_that_is_not_the_ids() {
        use mongodb::bson::doc;
        let text =
            |index: &str| format!("E11000 duplicate key error collection: a.b index: {index} dup key: {{}}");
        for (refused, expected) in [
            (doc! { "code": 11000, "errmsg": text("_id_"), "keyPattern": { "_id": 1 } }, false),
            (doc! { "code": 11000, "errmsg": text("_id_") }, false),
            (doc! { "code": 11000, "errmsg": text("_id_1_b_1"), "keyPattern": { "_id": 1, "b": 1 } }, true),
            (doc! { "code": 11000, "errmsg": text("b_1") }, true),
            (doc! { "code": 121, "errmsg": "Document failed validation" }, false),
        ] {
            let answer = doc! { "n": 0, "writeErrors": [refused.clone()] };
            assert_eq!(is_kept_out(&Ok(answer)), expected, "{refused}");
        }
        assert!(!is_kept_out(&Ok(doc! { "n": 1 })));
    }
}
