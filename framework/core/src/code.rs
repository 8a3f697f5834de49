//! The stable codes of errors, each with its name, its kind and its page under `errors/`.

use crate::error::{Kind, Verdict};

/// A stable code: a number users can look up (`TG0010`) and a name they can read (`slot-lost`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(&'static Entry);

#[derive(PartialEq, Eq)]
struct Entry {
    number: u16,
    name: &'static str,
    kind: Kind,
    verdict: Verdict,
    page: &'static str,
}

impl Code {
    /// The number, printed as `TG0010`.
    pub fn number(self) -> u16 {
        self.0.number
    }

    /// The name scripts may match, for example `slot-lost`.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// What the caller does next.
    pub fn kind(self) -> Kind {
        self.0.kind
    }

    /// Whether the same call may be made again, unless the error itself says otherwise.
    pub fn verdict(self) -> Verdict {
        self.0.verdict
    }

    /// The page: what happened, is data safe, what to do.
    pub fn page(self) -> &'static str {
        self.0.page
    }

    /// Finds a code by `TG0010`, `10` or `slot-lost`.
    pub fn find(text: &str) -> Option<Code> {
        let text = text.trim();
        let digits = text.strip_prefix("TG").or_else(|| text.strip_prefix("tg")).unwrap_or(text);
        let number = digits.parse::<u16>().ok();
        ALL.iter().copied().find(|code| Some(code.number()) == number || code.name() == text)
    }

    /// Takes a line apart that an error was kept as ([`Error::line`](crate::Error::line)): its code, and the rest.
    pub fn of_line(line: &str) -> Option<(Code, &str)> {
        let (head, rest) = line.split_once(": ")?;
        let (number, name) = head.split_once(' ')?;
        Self::find(number).filter(|code| code.name() == name).map(|code| (code, rest))
    }

    /// Every code, in order of number.
    pub fn all() -> &'static [Code] {
        ALL
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TG{:04} {}", self.number(), self.name())
    }
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// A page that is missing under `errors/` fails the build.
macro_rules! codes {
    ($($constant:ident = $number:literal, $name:literal, $kind:ident, $verdict:ident;)*) => {
        $(
            #[doc = concat!("`", $name, "`, TG", stringify!($number), ".")]
            pub const $constant: Code = Code(&Entry {
                number: $number,
                name: $name,
                kind: Kind::$kind,
                verdict: Verdict::$verdict,
                page: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/errors/", $name, ".md")),
            });
        )*
        const ALL: &[Code] = &[$($constant),*];
    };
}

codes! {
    // Before anything ran: the words of the user.
    CONFIG_INVALID = 1, "config-invalid", Usage, Never;
    URL_INVALID = 2, "url-invalid", Usage, Never;
    MAPPING_INVALID = 3, "mapping-invalid", Usage, Never;
    // Reaching a server.
    UNREACHABLE = 10, "unreachable", Unreachable, Retry;
    ACCESS_DENIED = 11, "access-denied", Denied, Never;
    TLS_FAILED = 12, "tls-failed", Denied, Never;
    CONNECTION_LOST = 13, "connection-lost", Unreachable, Unknown;
    TIMED_OUT = 14, "timed-out", Unreachable, Unknown;
    // Refused by a guard before the first row.
    TABLE_MISSING = 20, "table-missing", Refused, Never;
    KEY_MISSING = 21, "key-missing", Refused, Never;
    TYPE_REFUSED = 22, "type-refused", Refused, Never;
    TARGET_DIFFERS = 23, "target-differs", Refused, Never;
    TARGET_NOT_EMPTY = 24, "target-not-empty", Refused, Never;
    WAL_LEVEL = 25, "wal-level", Refused, Never;
    SLOT_UNAVAILABLE = 26, "slot-unavailable", Refused, Never;
    REPLICA_SET_REQUIRED = 27, "replica-set-required", Refused, Never;
    JOURNAL_MODE = 28, "journal-mode", Refused, Never;
    VERSION_UNSUPPORTED = 29, "version-unsupported", Refused, Never;
    CAPABILITY_MISSING = 30, "capability-missing", Refused, Never;
    STATE_MISSING = 31, "state-missing", Refused, Never;
    STATE_NEWER = 32, "state-newer", Refused, Never;
    LEASE_HELD = 33, "lease-held", Held, Never;
    KEY_UNFIT = 34, "key-unfit", Refused, Never;
    POLICY_HIDES_ROWS = 35, "policy-hides-rows", Refused, Never;
    CHANNEL_MISSING = 36, "channel-missing", Refused, Never;
    CHANNEL_DIFFERS = 37, "channel-differs", Refused, Never;
    SUBSCRIPTION_MISSING = 38, "subscription-missing", Refused, Never;
    NAME_TAKEN = 39, "name-taken", Refused, Never;
    // While running: history is gone or the source is another one.
    SLOT_LOST = 40, "slot-lost", Lost, Never;
    SLOT_RECREATED = 41, "slot-recreated", Lost, Never;
    SOURCE_REPLACED = 42, "source-replaced", Lost, Never;
    RESUME_TOKEN_EXPIRED = 43, "resume-token-expired", Lost, Never;
    JOURNAL_LOST = 44, "journal-lost", Lost, Never;
    SUBSCRIPTION_GONE = 45, "subscription-gone", Lost, Never;
    POSITION_GONE = 46, "position-gone", Lost, Never;
    BROKER_REPLACED = 47, "broker-replaced", Lost, Never;
    LETTER_MISSING = 48, "letter-missing", Refused, Never;
    // While running: one table or one value.
    VALUE_UNFIT = 50, "value-unfit", Data, Never;
    SCHEMA_CHANGED = 51, "schema-changed", Data, Never;
    ROW_HOLE = 52, "row-hole", Data, Never;
    CONSTRAINT_VIOLATED = 53, "constraint-violated", Data, Never;
    STREAM_MALFORMED = 54, "stream-malformed", Data, Never;
    BODY_TOO_LARGE = 55, "body-too-large", Data, Never;
    MESSAGE_INVALID = 56, "message-invalid", Data, Never;
    TRANSFORM_FAILED = 57, "transform-failed", Data, Never;
    CALL_FAILED = 58, "call-failed", Data, Never;
    BODY_MISSING = 59, "body-missing", Data, Never;
    // Who may write.
    LEASE_LOST = 60, "lease-lost", Lost, Never;
    CHECKPOINT_MOVED = 61, "checkpoint-moved", Lost, Never;
    // The rest.
    DIFFERENCE_FOUND = 70, "difference-found", Difference, Never;
    STOPPED = 71, "stopped", Stopped, Never;
    SOURCE_IN_DANGER = 72, "source-in-danger", Refused, Never;
    LIMIT_REACHED = 73, "limit-reached", Refused, Retry;
    STORE_FAILED = 80, "store-failed", Failed, Never;
    INTERNAL = 99, "internal", Failed, Never;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_number_and_name_and_its_page_answers_three_questions() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::all() {
            assert!(seen.insert(code.number()), "{code} stands twice");
            assert_eq!(Code::find(&format!("TG{:04}", code.number())), Some(*code));
            assert_eq!(Code::find(code.name()), Some(*code));
            for heading in ["## What happened", "## Is data safe", "## What to do"] {
                assert!(code.page().contains(heading), "{code}: its page lacks {heading:?}");
            }
            let title = format!("# TG{:04} {}", code.number(), code.name());
            assert!(code.page().starts_with(&title), "{code}: its page does not start with {title:?}");
        }
        assert_eq!(Code::find("no-such-code"), None);
    }
}
