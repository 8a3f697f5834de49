//! The messages of one lane that a subscription has been given and has not settled, for brokers that keep
//! subscriptions themselves.
//!
//! It decides what comes next: what waits comes before what is new, and behind a message that waits, those of its
//! subject wait as well, while all others flow.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;
use tidegate_core::port::Settlement;
use tidegate_core::{Capabilities, How};

/// Where a message stands in its lane: later ones have higher places.
pub type Place = u64;

/// A message that is not settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its subject.
    pub key: Option<Arc<str>>,
    /// How often it was tried in vain.
    pub attempts: u32,
    /// When it may come again, in microseconds since 1970.
    pub due: i64,
    /// The number of the delivery that is in hand; `None` if it waits.
    pub delivery: Option<u64>,
}

/// A delivery that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// The message.
    pub place: Place,
    /// The number of the delivery.
    pub number: u64,
    /// How often it was tried in vain before.
    pub attempts: u32,
}

/// How a delivery ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The message is settled.
    Done,
    /// It was tried in vain and may come again at this time.
    Failed {
        /// In microseconds since 1970.
        due: i64,
    },
    /// It was not tried, and may come again at once.
    Untried,
}

impl End {
    /// What a settlement means for a broker of these capabilities; `now` in microseconds since 1970.
    ///
    /// # Errors
    /// Why it keeps no dead letters.
    pub fn of(settlement: &Settlement, now: i64, capabilities: &Capabilities) -> Result<Self, &'static str> {
        Ok(match settlement {
            Settlement::Ack => Self::Done,
            Settlement::DeadLetter { .. } => match capabilities.dead_letter {
                How::No(why) => return Err(why),
                How::Native | How::Emulated(_) => Self::Done,
            },
            Settlement::Release => Self::Untried,
            Settlement::Retry { after } => {
                let after = i64::try_from(after.as_micros()).unwrap_or(i64::MAX);
                Self::Failed { due: now.saturating_add(after) }
            }
        })
    }
}

/// What is not settled of one lane.
///
/// ```
/// use tidegate_broker::unsettled::{End, Unsettled};
/// let mut lane = Unsettled::new(0);
/// let key = Some("order-17".into());
/// let first = lane.admit(1, key.clone()).expect("nothing waits");
/// lane.end(first.number, End::Failed { due: 50 });
/// assert!(lane.admit(2, key).is_none(), "the second one waits behind the first");
/// assert!(lane.admit(3, None).is_some(), "others flow");
/// assert_eq!(lane.again(49), None);
/// assert_eq!(lane.again(50).map(|given| (given.place, given.attempts)), Some((1, 1)));
/// assert_eq!(lane.again(50).map(|given| given.place), Some(2));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Unsettled {
    /// Everything up to here was given to this lane.
    read_to: Place,
    entries: BTreeMap<Place, Entry>,
    /// Places by the number of the delivery.
    in_hand: HashMap<u64, Place, RandomState>,
    /// What waits, by subject.
    waiting: HashMap<Arc<str>, BTreeSet<Place>, RandomState>,
    /// What waits and may come: the first of each subject, and all without one. By the time it is due.
    heads: BTreeSet<(i64, Place)>,
    next_number: u64,
}

impl Unsettled {
    /// A lane of which everything up to `read_to` is settled.
    pub fn new(read_to: Place) -> Self {
        Self { read_to, ..Self::default() }
    }

    /// A lane as it was kept: with what is not settled up to `read_to`. Nothing of it is in hand.
    pub fn restore(read_to: Place, entries: impl IntoIterator<Item = (Place, Entry)>) -> Self {
        let mut lane = Self::new(read_to);
        for (place, entry) in entries {
            lane.entries.insert(place, Entry { delivery: None, ..entry });
            lane.wait(place);
        }
        lane
    }

    /// Everything up to here was given to this lane.
    pub fn read_to(&self) -> Place {
        self.read_to
    }

    /// Takes note of the next message of the lane. `None` if it has to wait for an earlier one of its subject.
    pub fn admit(&mut self, place: Place, key: Option<Arc<str>>) -> Option<Given> {
        debug_assert!(place > self.read_to, "messages come in order");
        self.read_to = place;
        let has_to_wait = key.as_ref().is_some_and(|key| self.waiting.contains_key(key));
        self.entries.insert(place, Entry { key, attempts: 0, due: 0, delivery: None });
        if has_to_wait {
            self.wait(place);
            return None;
        }
        Some(self.give(place))
    }

    /// Takes note of the next message of the lane, which was tried before and may come at this time, not earlier.
    pub fn admit_later(&mut self, place: Place, key: Option<Arc<str>>, due: i64) {
        debug_assert!(place > self.read_to, "messages come in order");
        self.read_to = place;
        self.entries.insert(place, Entry { key, attempts: 0, due, delivery: None });
        self.wait(place);
    }

    /// What waits and is due by now, one at a time.
    pub fn again(&mut self, now: i64) -> Option<Given> {
        let head = *self.heads.first().filter(|(due, _)| *due <= now)?;
        let place = head.1;
        self.heads.remove(&head);
        if let Some(key) = self.entries[&place].key.clone() {
            let waiting = self.waiting.entry(Arc::clone(&key)).or_default();
            waiting.remove(&place);
            match waiting.first() {
                Some(next) => _ = self.heads.insert((self.entries[next].due, *next)),
                None => _ = self.waiting.remove(&key),
            }
        }
        Some(self.give(place))
    }

    /// When the next message that waits is due.
    pub fn next_due(&self) -> Option<i64> {
        self.heads.first().map(|(due, _)| *due)
    }

    /// Ends a delivery that is in hand: the place of its message; `None` if it is not in hand.
    pub fn end(&mut self, number: u64, end: End) -> Option<Place> {
        let place = self.in_hand.remove(&number)?;
        match end {
            End::Done => _ = self.entries.remove(&place),
            End::Failed { due } => {
                if let Some(entry) = self.entries.get_mut(&place) {
                    (entry.attempts, entry.due) = (entry.attempts.saturating_add(1), due);
                }
                self.wait(place);
            }
            End::Untried => self.wait(place),
        }
        Some(place)
    }

    /// Ends everything that is in hand, as failed now or as untried, and says how much it was.
    pub fn end_all(&mut self, end: End) -> usize {
        let mut numbers: Vec<u64> = self.in_hand.keys().copied().collect();
        numbers.sort_unstable();
        numbers.iter().filter(|number| self.end(**number, end).is_some()).count()
    }

    /// The message of a delivery that is in hand.
    pub fn place(&self, number: u64) -> Option<Place> {
        self.in_hand.get(&number).copied()
    }

    /// Whether an earlier message of its subject waits by now: a delivery that nobody has seen yet is better given back.
    pub fn is_overtaken(&self, number: u64) -> bool {
        let Some(place) = self.in_hand.get(&number) else { return false };
        let key = self.entries.get(place).and_then(|entry| entry.key.as_ref());
        let first = key.and_then(|key| self.waiting.get(key)).and_then(BTreeSet::first);
        first.is_some_and(|first| first < place)
    }

    /// What is known of a message that is not settled.
    pub fn entry(&self, place: Place) -> Option<&Entry> {
        self.entries.get(&place)
    }

    /// What is not settled of what was given, in order of its place.
    pub fn entries(&self) -> impl Iterator<Item = (Place, &Entry)> {
        self.entries.iter().map(|(place, entry)| (*place, entry))
    }

    /// The first message that is not settled, of those given.
    pub fn first(&self) -> Option<Place> {
        self.entries.first_key_value().map(|(place, _)| *place)
    }

    /// How many deliveries are in hand.
    pub fn in_hand(&self) -> usize {
        self.in_hand.len()
    }

    /// How many messages are not settled, of those given.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether everything that was given is settled.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn give(&mut self, place: Place) -> Given {
        self.next_number += 1;
        let number = self.next_number;
        self.in_hand.insert(number, place);
        let mut attempts = 0;
        if let Some(entry) = self.entries.get_mut(&place) {
            entry.delivery = Some(number);
            entry.due = 0;
            attempts = entry.attempts;
        }
        Given { place, number, attempts }
    }

    fn wait(&mut self, place: Place) {
        let Some(entry) = self.entries.get_mut(&place) else { return };
        entry.delivery = None;
        let due = entry.due;
        if let Some(key) = entry.key.clone() {
            let waiting = self.waiting.entry(key).or_default();
            let old = waiting.first().copied();
            waiting.insert(place);
            match old {
                Some(old) if old < place => return,
                Some(old) => _ = self.heads.remove(&(self.entries[&old].due, old)),
                None => {}
            }
        }
        self.heads.insert((due, place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str) -> Option<Arc<str>> {
        Some(key.into())
    }

    #[test]
    fn a_delivery_ends_once() {
        let mut lane = Unsettled::new(10);
        let given = lane.admit(11, key("a")).unwrap();
        assert_eq!((lane.in_hand(), lane.place(given.number)), (1, Some(11)));
        assert_eq!(lane.end(given.number, End::Done), Some(11));
        assert_eq!(lane.end(given.number, End::Done), None);
        assert!(lane.is_empty() && lane.again(i64::MAX).is_none());
        assert_eq!(lane.read_to(), 11);
    }

    #[test]
    fn an_old_delivery_of_a_message_is_not_the_new_one() {
        let mut lane = Unsettled::new(0);
        let old = lane.admit(1, None).unwrap();
        lane.end(old.number, End::Untried);
        let new = lane.again(0).unwrap();
        assert_eq!((new.place, new.attempts), (1, 0), "untried is no attempt");
        assert_eq!(lane.end(old.number, End::Done), None);
        assert_eq!(lane.end(new.number, End::Done), Some(1));
    }

    #[test]
    fn in_hand_ones_that_come_back_come_before_those_behind_them() {
        let mut lane = Unsettled::new(0);
        let given: Vec<_> = (1..=3).map(|place| lane.admit(place, key("a")).unwrap()).collect();
        // The last comes back first: it may come again only behind the others that come back.
        lane.end(given[2].number, End::Untried);
        lane.end(given[0].number, End::Failed { due: 100 });
        lane.end(given[1].number, End::Untried);
        assert!(lane.admit(4, key("a")).is_none());
        assert_eq!(lane.again(99), None);
        assert_eq!(lane.next_due(), Some(100));
        let places: Vec<_> = std::iter::from_fn(|| lane.again(100)).map(|given| given.place).collect();
        assert_eq!(places, [1, 2, 3, 4]);
    }

    #[test]
    fn what_was_taken_and_not_given_away_is_overtaken_by_an_earlier_one_that_comes_back() {
        let mut lane = Unsettled::new(0);
        let [first, second] = [1, 2].map(|place| lane.admit(place, key("a")).unwrap());
        let other = lane.admit(3, key("b")).unwrap();
        assert!(!lane.is_overtaken(second.number));
        lane.end(first.number, End::Failed { due: 5 });
        assert!(lane.is_overtaken(second.number) && !lane.is_overtaken(other.number));
        lane.end(second.number, End::Untried);
        let places: Vec<_> = std::iter::from_fn(|| lane.again(5)).map(|given| given.place).collect();
        assert_eq!(places, [1, 2]);
    }

    #[test]
    fn what_may_come_later_holds_those_behind_it() {
        let mut lane = Unsettled::new(0);
        lane.admit_later(1, key("a"), 50);
        assert!(lane.admit(2, key("a")).is_none() && lane.admit(3, key("b")).is_some());
        assert_eq!((lane.again(49), lane.next_due()), (None, Some(50)));
        let again: Vec<_> = std::iter::from_fn(|| lane.again(50)).map(|given| given.place).collect();
        assert_eq!(again, [1, 2]);
    }

    #[test]
    fn what_is_restored_waits_with_its_attempts() {
        let entry = |due, attempts| Entry { key: key("a"), attempts, due, delivery: Some(9) };
        let mut lane = Unsettled::restore(20, [(5, entry(7, 2)), (9, entry(0, 0))]);
        assert_eq!((lane.len(), lane.in_hand(), lane.first()), (2, 0, Some(5)));
        assert_eq!(lane.again(6), None);
        assert_eq!(lane.again(7).map(|given| (given.place, given.attempts)), Some((5, 2)));
        assert_eq!(lane.again(7).map(|given| given.place), Some(9));
        assert_eq!(lane.end_all(End::Failed { due: 0 }), 2);
        assert_eq!(lane.entry(5).unwrap().attempts, 3);
    }

    /// Whatever happens to deliveries, the first successes of a key come in its order.
    #[test]
    fn order_holds_whatever_fails() {
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let (mut lane, mut now, mut next) = (Unsettled::new(0), 0, 1);
            let mut done: HashMap<u64, Vec<Place>> = HashMap::new();
            while next <= 60 || !lane.is_empty() {
                now += 1;
                let mut batch = Vec::new();
                for _ in 0..random(4) {
                    batch.extend(lane.again(now));
                }
                for _ in 0..random(4) {
                    if next <= 60 {
                        batch.extend(lane.admit(next, key(&(next % 5).to_string())));
                        next += 1;
                    }
                }
                // A handler that holds a key: once one fails, the rest of its key in this batch is given back.
                let mut held = BTreeSet::new();
                for given in batch {
                    let key = given.place % 5;
                    if held.contains(&key) {
                        lane.end(given.number, End::Untried);
                    } else if random(3) == 0 {
                        held.insert(key);
                        let due = now + i64::try_from(random(5)).unwrap();
                        lane.end(given.number, End::Failed { due });
                    } else {
                        lane.end(given.number, End::Done);
                        done.entry(key).or_default().push(given.place);
                    }
                }
            }
            for (key, places) in done {
                let all: Vec<_> = (1..=60).filter(|place| place % 5 == key).collect();
                assert_eq!(places, all, "key {key}");
            }
        }
    }
}
