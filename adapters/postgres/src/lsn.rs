//! Positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use tidegate_core::Error;
use tidegate_core::error::code;

/// A byte position in the write-ahead log of one server, written `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lsn(pub(crate) u64);

impl Lsn {
    /// No position: the server means "wherever the slot stands", we mean "nothing seen".
    pub(crate) const ZERO: Self = Self(0);

    /// How many bytes of log lie between an earlier position and this one; none when it is not earlier.
    pub(crate) fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let half = |text: &str| {
            let digits = (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
        };
        text.split_once('/').and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?))).ok_or_else(
            || {
                Error::new(code::STREAM_MALFORMED, "this is not a position in a write-ahead log")
                    .with("text", text)
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_as_it_is_written() {
        for (text, number) in [("0/0", 0), ("0/1A", 26), ("1/0", 1 << 32), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(text.parse::<Lsn>().unwrap(), Lsn(number));
            assert_eq!(Lsn(number).to_string(), text);
        }
        for text in ["", "/", "1", "1/", "/1", "1/G", "+1/1", "1/123456789", "1/1/1"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
        assert_eq!(Lsn(5).bytes_since(Lsn(2)), 3);
        assert_eq!(Lsn(2).bytes_since(Lsn(5)), 0);
    }
}
