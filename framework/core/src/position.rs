//! Where a source is: positions in its history, and proofs of the instant a chunk was read at.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::error::{Error, Result, code};

/// A place in a source's history. Opaque; places of one history compare bytewise, later being greater.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
#[serde(from = "Vec<u8>", into = "Vec<u8>")]
pub struct Position(Form);

/// Each message of a broker has one, and a number needs no memory of its own.
#[derive(Clone)]
enum Form {
    Number([u8; 8]),
    Bytes(Arc<[u8]>),
}

impl Default for Form {
    fn default() -> Self {
        Self::Bytes(Arc::default())
    }
}

impl PartialEq for Position {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Position {}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl Hash for Position {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes().hash(state);
    }
}

impl From<Vec<u8>> for Position {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

impl From<Position> for Vec<u8> {
    fn from(position: Position) -> Self {
        position.bytes().to_vec()
    }
}

impl Position {
    /// A position of these bytes.
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(Form::Bytes(bytes.into()))
    }

    /// The bytes, as they are stored.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Form::Number(bytes) => bytes,
            Form::Bytes(bytes) => bytes,
        }
    }

    /// A position that is a number (a log address, a journal number).
    pub fn from_u64(number: u64) -> Self {
        Self(Form::Number(number.to_be_bytes()))
    }

    /// The number of a position made by [`Position::from_u64`].
    pub fn to_u64(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.bytes().try_into().ok()?))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_u64() {
            Some(number) => write!(f, "{number:#x}"),
            None => self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// As it is displayed.
impl std::str::FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::new(code::CONFIG_INVALID, format!("{text:?} is no position"));
        if let Some(number) = text.strip_prefix("0x") {
            return u64::from_str_radix(number, 16).map(Self::from_u64).map_err(|_| invalid());
        }
        let pairs = text.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
            u8::from_str_radix(pair, 16).ok()
        });
        let bytes: Option<Vec<u8>> = pairs.collect();
        bytes.filter(|bytes| !bytes.is_empty()).map(Self::new).ok_or_else(invalid)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What tells one transaction of a source from another in an [`AsOf`]: PostgreSQL's 64 bit transaction id,
/// MongoDB's cluster time, SQLite's journal number.
pub type Mark = u64;

/// The instant a chunk was read at, and the proof of which: it tells for any change whether the chunk's rows already
/// show it.
///
/// A log position alone cannot tell: a transaction can stand in the log before it is visible to readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsOf {
    /// Once the feed has delivered up to here, every change that the rows show has been delivered.
    pub barrier: Position,
    /// Changes with a mark of this or higher are not shown.
    pub upper: Mark,
    /// Marks below `upper` that are not shown either: transactions that were under way. Sorted.
    pub in_flight: Vec<Mark>,
}

impl AsOf {
    /// Whether rows read at this instant show the change with this mark.
    pub fn shows(&self, mark: Mark) -> bool {
        mark < self.upper && self.in_flight.binary_search(&mark).is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_displayed_is_read_back() {
        for position in [Position::from_u64(0), Position::from_u64(u64::MAX), Position::new(vec![0, 255, 16])]
        {
            assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        }
        for text in ["", "0x", "0xg", "abc", "zz", "0x10000000000000000"] {
            assert_eq!(text.parse::<Position>().unwrap_err().code(), code::CONFIG_INVALID, "{text}");
        }
    }

    #[test]
    fn numbers_compare_as_numbers() {
        assert!(Position::from_u64(255) < Position::from_u64(256));
        assert_eq!(Position::from_u64(7).to_u64(), Some(7));
        assert!(Position::default() < Position::from_u64(0), "the empty position is before all");
    }

    #[test]
    fn a_transaction_under_way_is_not_shown() {
        let as_of = AsOf { barrier: Position::default(), upper: 10, in_flight: vec![4, 7] };
        let shown: Vec<Mark> = (3..12).filter(|mark| as_of.shows(*mark)).collect();
        assert_eq!(shown, [3, 5, 6, 8, 9]);
    }
}
