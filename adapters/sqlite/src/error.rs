//! Everything SQLite and its driver can say, mapped to the codes of the framework.

use tidegate_core::error::{Code, Verdict, code};
use tidegate_core::{Error, Result};

/// Says what was being done when the driver failed.
pub(crate) trait During<T> {
    /// Maps the driver's error.
    fn during(self, operation: &'static str) -> Result<T>;
}

impl<T> During<T> for Result<T, sqlx::Error> {
    fn during(self, operation: &'static str) -> Result<T> {
        self.map_err(|error| from_driver(error, operation))
    }
}

/// The extended result code, if SQLite itself refused.
pub(crate) fn result_code(error: &sqlx::Error) -> Option<u32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// A unique index or the key has the values already.
pub(crate) fn is_unique_violation(error: &sqlx::Error) -> bool {
    matches!(result_code(error), Some(1555 | 2067 | 2579))
}

/// Any constraint, or a value of a class that the column does not take.
pub(crate) fn is_constraint(error: &sqlx::Error) -> bool {
    matches!(result_code(error).map(|code| code & 0xff), Some(19 | 20))
}

/// An error of the driver, met while doing `operation`.
pub(crate) fn from_driver(error: sqlx::Error, operation: &'static str) -> Error {
    let Some(number) = result_code(&error) else {
        return Error::new(code::INTERNAL, "the driver could not do what it was asked")
            .with("operation", operation)
            .because(error);
    };
    let text = error.as_database_error().map(|e| e.message().to_owned()).unwrap_or_default();
    let (code, verdict, sentence, hint) = meaning(number, &text);
    let mut mapped =
        Error::new(code, sentence).with("operation", operation).with("sqlite", number).because(error);
    if let Some(verdict) = verdict {
        mapped = mapped.verdict_is(verdict);
    }
    if let Some(hint) = hint {
        mapped = mapped.hint(hint);
    }
    mapped
}

type Meaning = (Code, Option<Verdict>, &'static str, Option<&'static str>);

/// The code of a result code, the verdict where the code's own does not fit, the sentence and the way out.
fn meaning(number: u32, text: &str) -> Meaning {
    const WRITABLE: Option<&str> =
        Some("make the file, its folder and the -wal and -shm files beside it readable and writable");
    match number {
        1032 => {
            return (code::SOURCE_REPLACED, None, "the file was moved or replaced while it was open", None);
        }
        3091 => return (code::VALUE_UNFIT, None, "a column does not take a value of this class", None),
        _ => {}
    }
    match number & 0xff {
        1 if text.starts_with("no such table") => {
            (code::TABLE_MISSING, None, "the table does not exist", None)
        }
        1 if text.starts_with("no such column") => {
            (code::SCHEMA_CHANGED, None, "the table is not what it was", None)
        }
        3 | 23 => (code::ACCESS_DENIED, None, "access to the file is denied", WRITABLE),
        5 | 6 => {
            (code::STORE_FAILED, Some(Verdict::Retry), "another program keeps the database locked", None)
        }
        7 => (code::LIMIT_REACHED, None, "there is not enough memory", None),
        8 => (code::ACCESS_DENIED, None, "the database cannot be written", WRITABLE),
        11 => (code::STORE_FAILED, None, "the database file is damaged", Some("run PRAGMA integrity_check")),
        13 => (code::LIMIT_REACHED, None, "the disk is full", Some("make room on the disk of the file")),
        14 => (code::ACCESS_DENIED, None, "the database file cannot be opened", WRITABLE),
        17 => (code::SCHEMA_CHANGED, None, "the table is not what it was", None),
        18 => (code::BODY_TOO_LARGE, None, "a value or a statement is too large", None),
        19 => (code::CONSTRAINT_VIOLATED, None, "a row breaks a constraint", None),
        20 => (code::VALUE_UNFIT, None, "a column does not take a value of this class", None),
        26 => (code::URL_INVALID, None, "the file is not a SQLite database", None),
        _ => (code::STORE_FAILED, None, "the database refused", None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_code_has_its_meaning() {
        for (number, text, code, verdict) in [
            (1, "no such table: t", code::TABLE_MISSING, None),
            (1, "no such column: x", code::SCHEMA_CHANGED, None),
            (1, "near \"x\": syntax error", code::STORE_FAILED, None),
            (3, "", code::ACCESS_DENIED, None),
            (5, "database is locked", code::STORE_FAILED, Some(Verdict::Retry)),
            (261, "", code::STORE_FAILED, Some(Verdict::Retry)),
            (517, "", code::STORE_FAILED, Some(Verdict::Retry)),
            (6, "", code::STORE_FAILED, Some(Verdict::Retry)),
            (7, "", code::LIMIT_REACHED, None),
            (8, "", code::ACCESS_DENIED, None),
            (1032, "", code::SOURCE_REPLACED, None),
            (10, "", code::STORE_FAILED, None),
            (11, "", code::STORE_FAILED, None),
            (13, "", code::LIMIT_REACHED, None),
            (14, "", code::ACCESS_DENIED, None),
            (17, "", code::SCHEMA_CHANGED, None),
            (18, "", code::BODY_TOO_LARGE, None),
            (1299, "", code::CONSTRAINT_VIOLATED, None),
            (2067, "", code::CONSTRAINT_VIOLATED, None),
            (3091, "", code::VALUE_UNFIT, None),
            (20, "", code::VALUE_UNFIT, None),
            (26, "", code::URL_INVALID, None),
        ] {
            let (found, found_verdict, ..) = meaning(number, text);
            assert_eq!((found, found_verdict), (code, verdict), "{number} {text}");
        }
    }
}
