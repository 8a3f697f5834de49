//! What the record of a lane says of its subjects, and how it changes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tidegate_core::port::Token;
use tidegate_core::{Message, Result};

use crate::dead_letter::{PLACE, Reason};

/// Whether a delivery is in hand: its message is not known to be settled.
pub(crate) type IsInHand<'a> = dyn Fn(Token) -> bool + Send + Sync + 'a;

/// What is known of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Under which ownership of the lane it was written.
    pub(super) epoch: u64,
    /// How often a subject of it was parked.
    rounds: u64,
    pub(super) subjects: BTreeMap<String, Subject>,
}

/// The dead letters of a subject.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subject {
    /// Which time it is that a subject of the lane is parked: numbers are those of one time.
    pub(super) round: u64,
    /// The number of the first one that is dead still, and that of the next one.
    pub(super) first: u64,
    next: u64,
    /// Which of those between are dead no more, from and to before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    gone: BTreeMap<u64, u64>,
    /// Those whose messages are not known to be settled: they come again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) open: Vec<Letter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Letter {
    #[serde(default)]
    pub(super) number: u64,
    pub(super) source: String,
    pub(super) id: String,
    pub(super) reason: Reason,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) error: String,
    /// The delivery that it became one of under this ownership; nothing of one that has not come again yet.
    #[serde(skip)]
    pub(super) token: Option<Token>,
}

impl Letter {
    fn is(&self, of: &Letter) -> bool {
        self.id == of.id && self.source == of.source
    }
}

/// Which dead letter of its subject one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(super) round: u64,
    pub(super) number: u64,
}

impl Place {
    /// That of a copy, or of what stands for one.
    pub(super) fn of(message: &Message) -> Option<Self> {
        message.headers.get(PLACE)?.parse().ok()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.round, self.number)
    }
}

impl FromStr for Place {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (round, number) = text.split_once('.').unwrap_or((text, ""));
        Ok(Self { round: round.parse()?, number: number.parse()? })
    }
}

impl Subject {
    pub(super) fn is_gone(&self, number: u64) -> bool {
        number < self.first || self.gone.range(..=number).next_back().is_some_and(|(_, end)| number < *end)
    }

    /// The one of this number is dead no more.
    fn end(&mut self, number: u64) {
        if number >= self.next || self.is_gone(number) {
            return;
        }
        let before = self.gone.range(..number).next_back().filter(|(_, end)| **end == number);
        let start = before.map_or(number, |(start, _)| *start);
        let end = self.gone.remove(&(number + 1)).unwrap_or(number + 1);
        self.gone.insert(start, end);
        if let Some(end) = self.gone.remove(&self.first) {
            self.first = end;
        }
    }
}

/// What is asked of a record.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// That it be this owner's.
    Own,
    /// That a message be a dead letter; it is one already if it is a copy of one.
    Park { subject: String, letter: Letter, copy: Option<Place> },
    /// That one be none any more.
    Release { subject: String, copy: Option<Place> },
}

impl Record {
    /// Makes a change: where its dead letter is.
    pub(super) fn change(&mut self, change: &Change, is_in_hand: &IsInHand<'_>) -> Option<Place> {
        match change {
            Change::Own => None,
            Change::Park { subject, letter, copy } => {
                let rounds = &mut self.rounds;
                let parked = self.subjects.entry(subject.clone()).or_insert_with(|| {
                    *rounds += 1;
                    Subject { round: *rounds, ..Subject::default() }
                });
                let is_there = |copy: &Place| {
                    copy.round == parked.round && copy.number < parked.next && !parked.is_gone(copy.number)
                };
                if let Some(copy) = copy.filter(is_there) {
                    return Some(copy);
                }
                let round = parked.round;
                if let Some(known) = parked.open.iter_mut().find(|known| known.is(letter)) {
                    known.token = letter.token;
                    return Some(Place { round, number: known.number });
                }
                // One of before would have come again before this one, had it not been settled.
                parked.open.retain(|known| known.token.is_some_and(is_in_hand));
                let number = parked.next;
                parked.next += 1;
                parked.open.push(Letter { number, ..letter.clone() });
                Some(Place { round, number })
            }
            Change::Release { subject, copy } => {
                let parked = self.subjects.get_mut(subject)?;
                let copy = copy.filter(|copy| copy.round == parked.round)?;
                parked.end(copy.number);
                if parked.first == parked.next {
                    self.subjects.remove(subject);
                }
                None
            }
        }
    }

    /// Takes over what is known of deliveries, which is not written.
    pub(super) fn remember(&mut self, before: &Record) {
        for (name, parked) in &mut self.subjects {
            let Some(before) = before.subjects.get(name).filter(|before| before.round == parked.round) else {
                continue;
            };
            for letter in &mut parked.open {
                let known = before.open.iter().find(|known| known.number == letter.number);
                letter.token = known.and_then(|known| known.token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_are_dead_no_more_take_a_range() {
        let mut subject = Subject { next: 10, ..Subject::default() };
        for number in [3, 5, 4, 8, 3, 12] {
            subject.end(number);
        }
        assert_eq!(subject.gone, BTreeMap::from([(3, 6), (8, 9)]));
        assert!([3, 4, 5, 8].iter().all(|number| subject.is_gone(*number)));
        assert!([0, 2, 6, 7, 9].iter().all(|number| !subject.is_gone(*number)));
        for number in [1, 0, 2] {
            subject.end(number);
        }
        assert_eq!((subject.first, &subject.gone), (6, &BTreeMap::from([(8, 9)])));
    }
}
