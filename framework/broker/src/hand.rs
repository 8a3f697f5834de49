//! What one consumer has of its lanes: messages that were fetched ahead, messages in hand, and what it has not been told
//! yet. For adapters that fetch before they are asked.
//!
//! Everything here is done in one piece and waits for nothing: whoever holds the lock of a [`Hand`] can go away at any
//! other point without losing a message.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::unsettled::{End, Given, Place, Unsettled};
use tidegate_core::lane::Lane;
use tidegate_core::message::Message;
use tidegate_core::port::{Attempt, Delivery, Signal, Token};
use tidegate_core::position::Position;

/// How many messages of a lane may be unsettled before no new ones are given.
pub const UNSETTLED_MAX: usize = 10_000;
/// How many bytes of messages a consumer keeps before it fetches no more.
pub const BYTES_MAX: usize = 32 << 20;

/// How large a message is supposed to be before one has come.
const SUPPOSED: usize = 256 << 10;

/// A message as it was fetched.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Where it stands in its lane.
    pub place: Place,
    /// The message.
    pub message: Arc<Message>,
    /// When it was stored, in microseconds since 1970.
    pub stored_at: Option<i64>,
    /// How often it was tried, as the broker knows it, with the delivery that is to be made.
    pub attempt: Attempt,
    /// Whether the place is a position of the broker.
    pub has_position: bool,
}

/// A lane that this consumer has.
struct Held {
    epoch: u64,
    unsettled: Unsettled,
    /// What is unsettled.
    messages: HashMap<Place, Fetched, RandomState>,
    /// What was not given yet, in its order.
    fresh: VecDeque<Fetched>,
    /// Until when those are not to come that were put off before this consumer had the lane.
    put_off: BTreeMap<Place, i64>,
    /// Another one is to have it: nothing more is given.
    is_revoked: bool,
}

/// What a consumer has of its lanes.
pub struct Hand {
    window: usize,
    lanes: BTreeMap<Lane, Held>,
    bytes: usize,
    /// How large a message is, in the mean of those that came lately.
    mean: usize,
    turn: usize,
    news: VecDeque<Signal>,
}

impl fmt::Debug for Hand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hand").field("lanes", &self.lanes.keys()).field("bytes", &self.bytes).finish()
    }
}

impl Hand {
    /// Has no lanes. At most `window` deliveries are in hand at once.
    pub fn new(window: usize) -> Self {
        Self { window, lanes: BTreeMap::new(), bytes: 0, mean: SUPPOSED, turn: 0, news: VecDeque::new() }
    }

    /// A lane is this consumer's from now on, under a new epoch, with what is not settled of it and the messages of that.
    pub fn gain(&mut self, lane: Lane, epoch: u64, unsettled: Unsettled, messages: Vec<Fetched>) {
        self.drop_lane(lane);
        self.bytes += messages.iter().map(|fetched| fetched.message.size()).sum::<usize>();
        let messages = messages.into_iter().map(|fetched| (fetched.place, fetched)).collect();
        let (fresh, put_off) = (VecDeque::new(), BTreeMap::new());
        self.lanes.insert(lane, Held { epoch, unsettled, messages, fresh, put_off, is_revoked: false });
        match self.news.back_mut() {
            Some(Signal::LanesGained(lanes)) => lanes.push(lane),
            _ => self.news.push_back(Signal::LanesGained(vec![lane])),
        }
    }

    /// Another one is to have these lanes, at `until` at the latest. What was not given yet of them is forgotten.
    pub fn revoke(&mut self, lanes: impl IntoIterator<Item = Lane>, until: i64) {
        let mut told = Vec::new();
        for lane in lanes {
            let Some(held) = self.lanes.get_mut(&lane).filter(|held| !held.is_revoked) else { continue };
            held.is_revoked = true;
            self.bytes -= held.fresh.drain(..).map(|fetched| fetched.message.size()).sum::<usize>();
            told.push(lane);
        }
        if !told.is_empty() {
            self.news.push_back(Signal::LanesRevoked { lanes: told, until });
        }
    }

    /// This consumer gave a lane up, or it is somebody else's. What is in hand of it is void.
    pub fn lose(&mut self, lanes: impl IntoIterator<Item = Lane>) {
        let mut told = Vec::new();
        for lane in lanes {
            if self.drop_lane(lane).is_some_and(|held| held.unsettled.in_hand() > 0 || !held.is_revoked) {
                told.push(lane);
            }
        }
        if !told.is_empty() {
            self.news.push_back(Signal::LanesLost(told));
        }
    }

    /// The connection was lost and is there again: all lanes are to be gained anew.
    pub fn reconnected(&mut self) {
        self.lanes.clear();
        self.bytes = 0;
        self.news.push_back(Signal::Reconnected);
    }

    fn drop_lane(&mut self, lane: Lane) -> Option<Held> {
        let held = self.lanes.remove(&lane)?;
        let messages = held.messages.values().chain(&held.fresh);
        self.bytes -= messages.map(|fetched| fetched.message.size()).sum::<usize>();
        Some(held)
    }

    /// Takes a message that was fetched for a lane under this epoch; whether it was wanted.
    pub fn arrive(&mut self, lane: Lane, epoch: u64, fetched: Fetched) -> bool {
        let Some(held) = self.lanes.get_mut(&lane).filter(|held| held.epoch == epoch && !held.is_revoked)
        else {
            return false;
        };
        let (place, size) = (fetched.place, fetched.message.size());
        let old = if place > held.unsettled.read_to() {
            held.line_up(fetched)
        } else if held.unsettled.entry(place).is_some() {
            held.messages.insert(place, fetched)
        } else {
            // It is settled.
            return false;
        };
        self.mean = (self.mean * 7 + size) / 8;
        self.bytes = self.bytes + size - old.map_or(0, |old| old.message.size());
        true
    }

    /// The same for a message that is not to come before this time.
    pub fn arrive_later(&mut self, lane: Lane, epoch: u64, fetched: Fetched, due: i64) -> bool {
        let place = fetched.place;
        if !self.arrive(lane, epoch, fetched) {
            return false;
        }
        if let Some(held) = self.lanes.get_mut(&lane) {
            held.put_off.insert(place, due);
        }
        true
    }

    /// What of a lane is in hand, or was tried in vain, or is not to come yet: each message with how often it was tried in
    /// vain, when it may come again, and whether it is in hand.
    pub fn tried(&self, lane: Lane) -> impl Iterator<Item = (&Message, u32, i64, bool)> {
        let held = self.lanes.get(&lane);
        held.into_iter().flat_map(|held| {
            held.unsettled.entries().filter_map(|(place, entry)| {
                let fetched = held.messages.get(&place)?;
                let attempts = fetched.attempt.and(entry.attempts).number().saturating_sub(1);
                let is_in_hand = entry.delivery.is_some();
                let is_tried = is_in_hand || attempts > 0 || entry.due > 0;
                is_tried.then_some((&*fetched.message, attempts, entry.due, is_in_hand))
            })
        })
    }

    /// Under which epoch a lane is there, behind which place messages of it are worth fetching, and how many.
    pub fn wanted(&self, lane: Lane) -> Option<(u64, Place, usize)> {
        let held = self.lanes.get(&lane).filter(|held| !held.is_revoked)?;
        let read_to = held.unsettled.read_to();
        let last = held.fresh.back().map_or(read_to, |fetched| fetched.place);
        if self.bytes >= BYTES_MAX || held.unsettled.len() >= UNSETTLED_MAX {
            return Some((held.epoch, last, 0));
        }
        let lanes = self.lanes.len().max(1);
        let share = self.window.div_ceil(lanes);
        // As many as fit, of the size that they have: whoever fetches has all of them in memory at once.
        let fits = ((BYTES_MAX - self.bytes) / self.mean.max(1) / lanes).max(1);
        Some((held.epoch, last, (2 * share).max(16).saturating_sub(held.fresh.len()).min(fits)))
    }

    /// How many deliveries may be in hand.
    pub fn window(&self) -> usize {
        self.window
    }

    /// The lanes that are there.
    pub fn lanes(&self) -> impl Iterator<Item = Lane> {
        self.lanes.keys().copied()
    }

    /// What is not settled of a lane.
    pub fn unsettled(&self, lane: Lane) -> Option<&Unsettled> {
        self.lanes.get(&lane).map(|held| &held.unsettled)
    }

    /// How many deliveries are in hand.
    pub fn in_hand(&self) -> usize {
        self.lanes.values().map(|held| held.unsettled.in_hand()).sum()
    }

    /// When the next message that waits is due, if there is room for it.
    pub fn next_due(&self) -> Option<i64> {
        if self.in_hand() >= self.window {
            return None;
        }
        let open = self.lanes.values().filter(|held| !held.is_revoked);
        open.filter_map(|held| held.unsettled.next_due()).min()
    }

    /// The first thing that the consumer was not told yet.
    pub fn news(&mut self) -> Option<Signal> {
        self.news.pop_front()
    }

    /// Gives at most `max` messages, as far as the window has room: of each lane first what comes again, then what is
    /// new. Each lane has a fair share, beginning where the last call has not been; then there is whatever is left.
    pub fn give(&mut self, now: i64, max: usize, out: &mut Vec<Delivery>) {
        let room = self.window.saturating_sub(self.in_hand()).min(max);
        let open: Vec<Lane> =
            self.lanes.iter().filter(|(_, held)| !held.is_revoked).map(|(lane, _)| *lane).collect();
        if room == 0 || open.is_empty() {
            return;
        }
        let end = out.len() + room;
        self.turn = self.turn.wrapping_add(1);
        for share in [room.div_ceil(open.len()), room] {
            for at in 0..open.len() {
                let lane = open[self.turn.wrapping_add(at) % open.len()];
                let upto = end.min(out.len() + share);
                let Some(held) = self.lanes.get_mut(&lane) else { continue };
                while out.len() < upto
                    && let Some(given) = held.next(now)
                {
                    out.extend(held.delivery(lane, given));
                }
            }
        }
    }

    /// Whether a delivery that nobody has seen yet is still to be given: its lane is there, and no earlier message of its
    /// subject waits by now. One that is not goes back, untried.
    pub fn confirm(&mut self, token: Token) -> bool {
        let Some(held) = self.lanes.get_mut(&token.lane).filter(|held| held.epoch == token.epoch) else {
            return false;
        };
        if held.unsettled.is_overtaken(token.number) {
            held.unsettled.end(token.number, End::Untried);
            return false;
        }
        held.unsettled.place(token.number).is_some()
    }

    /// Ends a delivery: the place of its message, or `None` if it is not in hand.
    pub fn end(&mut self, token: Token, end: End) -> Option<Place> {
        let held = self.lanes.get_mut(&token.lane).filter(|held| held.epoch == token.epoch)?;
        let place = held.unsettled.end(token.number, end)?;
        if end == End::Done
            && let Some(gone) = held.messages.remove(&place)
        {
            self.bytes -= gone.message.size();
        }
        Some(place)
    }

    /// The place of a delivery that is in hand.
    pub fn place(&self, token: Token) -> Option<Place> {
        let held = self.lanes.get(&token.lane).filter(|held| held.epoch == token.epoch)?;
        held.unsettled.place(token.number)
    }

    /// Ends everything that is in hand, and says how much it was.
    pub fn end_all(&mut self, end: End) -> usize {
        self.lanes.values_mut().map(|held| held.unsettled.end_all(end)).sum()
    }
}

impl Held {
    /// Takes a message that is to be given; the one of the same place, if it was there already.
    fn line_up(&mut self, fetched: Fetched) -> Option<Fetched> {
        // Nearly all come in their order.
        if self.fresh.back().is_none_or(|last| last.place < fetched.place) {
            self.fresh.push_back(fetched);
            return None;
        }
        match self.fresh.binary_search_by_key(&fetched.place, |known| known.place) {
            Ok(at) => return Some(std::mem::replace(&mut self.fresh[at], fetched)),
            Err(at) => self.fresh.insert(at, fetched),
        }
        None
    }

    fn next(&mut self, now: i64) -> Option<Given> {
        if let Some(given) = self.unsettled.again(now) {
            return Some(given);
        }
        while self.unsettled.len() < UNSETTLED_MAX {
            let fetched = self.fresh.pop_front()?;
            let (place, key) = (fetched.place, fetched.message.subject.clone());
            self.messages.insert(place, fetched);
            if let Some(due) = self.put_off.remove(&place).filter(|due| *due > now) {
                self.unsettled.admit_later(place, key, due);
            } else if let Some(given) = self.unsettled.admit(place, key) {
                return Some(given);
            }
        }
        None
    }

    fn delivery(&self, lane: Lane, given: Given) -> Option<Delivery> {
        let fetched = self.messages.get(&given.place)?;
        Some(Delivery {
            message: Arc::clone(&fetched.message),
            token: Token { lane, epoch: self.epoch, number: given.number },
            attempt: fetched.attempt.and(given.attempts),
            position: fetched.has_position.then(|| Position::from_u64(given.place)),
            stored_at: fetched.stored_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(place: Place, key: &str) -> Fetched {
        let message = Arc::new(Message::with_id(place.to_string(), "s", "t").with_subject(key));
        Fetched { place, message, stored_at: None, attempt: Attempt::AtLeast(1), has_position: true }
    }

    fn hand(window: usize, lanes: u32) -> Hand {
        let mut hand = Hand::new(window);
        (0..lanes).for_each(|lane| hand.gain(Lane(lane), 1, Unsettled::new(0), Vec::new()));
        assert!(matches!(hand.news(), Some(Signal::LanesGained(gained)) if gained.len() == lanes as usize));
        hand
    }

    fn give(hand: &mut Hand, now: i64, max: usize) -> Vec<Delivery> {
        let mut out = Vec::new();
        hand.give(now, max, &mut out);
        out
    }

    fn ids(deliveries: &[Delivery]) -> Vec<&str> {
        deliveries.iter().map(|delivery| &*delivery.message.id).collect()
    }

    #[test]
    fn what_waits_comes_first_and_holds_its_subject_alone() {
        let mut hand = hand(10, 1);
        for (place, key) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
            assert!(hand.arrive(Lane(0), 1, fetched(place, key)));
        }
        let first = give(&mut hand, 0, 1);
        assert_eq!(ids(&first), ["1"]);
        assert_eq!(hand.end(first[0].token, End::Failed { due: 50 }), Some(1));
        assert_eq!(ids(&give(&mut hand, 49, 10)), ["3"]);
        assert_eq!(hand.next_due(), Some(50));
        let again = give(&mut hand, 50, 10);
        assert_eq!(ids(&again), ["1", "2", "4"]);
        assert_eq!((again[0].attempt, again[1].attempt), (Attempt::AtLeast(2), Attempt::AtLeast(1)));
        assert_eq!(hand.in_hand(), 4);
    }

    #[test]
    fn what_arrives_late_or_twice_is_given_once_and_in_its_order() {
        let mut hand = hand(10, 1);
        for place in [1, 4, 2, 4, 3, 2] {
            assert!(hand.arrive(Lane(0), 1, fetched(place, "a")));
        }
        let came = give(&mut hand, 0, 10);
        assert_eq!(ids(&came), ["1", "2", "3", "4"]);
        // One that is in hand takes the place of itself, and one that is settled is not wanted.
        assert!(hand.arrive(Lane(0), 1, fetched(3, "a")));
        came.iter().for_each(|delivery| _ = hand.end(delivery.token, End::Done));
        assert!(!hand.arrive(Lane(0), 1, fetched(3, "a")));
        assert_eq!(hand.bytes, 0);
    }

    #[test]
    fn no_more_is_given_than_the_window_and_each_lane_has_its_share() {
        let mut hand = hand(4, 2);
        for place in 1..=10 {
            hand.arrive(Lane(0), 1, fetched(place, "a"));
        }
        hand.arrive(Lane(1), 1, fetched(1, "b"));
        let first = give(&mut hand, 0, 10);
        assert_eq!(first.len(), 4);
        assert!(first.iter().any(|delivery| delivery.token.lane == Lane(1)));
        assert!(give(&mut hand, 0, 10).is_empty());
        hand.end(first[0].token, End::Done);
        assert_eq!(give(&mut hand, 0, 10).len(), 1);
        assert_eq!(hand.wanted(Lane(0)).map(|(_, last, _)| last), Some(10));
    }

    #[test]
    fn what_was_put_off_before_comes_at_its_time_with_its_attempts() {
        let mut hand = hand(10, 1);
        let tried = Fetched { attempt: Attempt::AtLeast(3), ..fetched(1, "a") };
        assert!(hand.arrive_later(Lane(0), 1, tried, 50));
        (2..=3).for_each(|place| _ = hand.arrive(Lane(0), 1, fetched(place, ["b", "a"][place as usize - 2])));
        assert_eq!(ids(&give(&mut hand, 49, 10)), ["2"]);
        let open: Vec<_> =
            hand.tried(Lane(0)).map(|(message, tried, due, held)| (&*message.id, tried, due, held)).collect();
        assert_eq!(open, [("1", 2, 50, false), ("2", 0, 0, true)]);
        let again = give(&mut hand, 50, 10);
        assert_eq!((ids(&again), again[0].attempt), (vec!["1", "3"], Attempt::AtLeast(3)));
    }

    #[test]
    fn what_is_lost_is_void_and_what_was_settled_is_not_taken_again() {
        let mut hand = hand(10, 2);
        hand.arrive(Lane(0), 1, fetched(1, "a"));
        let given = give(&mut hand, 0, 10);
        assert!(!hand.arrive(Lane(0), 2, fetched(2, "a")), "another epoch");
        hand.end(given[0].token, End::Done);
        assert!(!hand.arrive(Lane(0), 1, fetched(1, "a")), "settled");
        assert_eq!(hand.bytes, 0);
        hand.arrive(Lane(0), 1, fetched(2, "a"));
        let given = give(&mut hand, 0, 10);
        hand.lose([Lane(0), Lane(7)]);
        assert!(matches!(hand.news(), Some(Signal::LanesLost(lost)) if lost == [Lane(0)]));
        assert_eq!(hand.end(given[0].token, End::Done), None);
        let entries = [(2, Arc::<str>::from("a"))].map(|(place, key)| {
            (place, crate::unsettled::Entry { key: Some(key), attempts: 1, due: 0, delivery: None })
        });
        hand.gain(Lane(0), 2, Unsettled::restore(2, entries), vec![fetched(2, "a")]);
        assert_eq!(hand.end(given[0].token, End::Done), None, "an epoch of before");
        assert_eq!(give(&mut hand, 0, 10)[0].attempt, Attempt::AtLeast(2));
    }

    #[test]
    fn a_lane_that_is_to_go_gives_nothing_more() {
        let mut hand = hand(10, 1);
        (1..=3).for_each(|place| _ = hand.arrive(Lane(0), 1, fetched(place, "a")));
        let given = give(&mut hand, 0, 1);
        hand.revoke([Lane(0)], 99);
        hand.revoke([Lane(0)], 99);
        assert!(matches!(hand.news(), Some(Signal::LanesRevoked { until: 99, .. })));
        assert!(hand.news().is_none(), "it is told once");
        assert!(give(&mut hand, 0, 10).is_empty() && hand.wanted(Lane(0)).is_none());
        assert_eq!(hand.end(given[0].token, End::Done), Some(1));
        hand.lose([Lane(0)]);
        assert!(hand.news().is_none(), "nothing was in hand");
        assert_eq!(hand.bytes, 0);
    }

    /// Found by reading: a thousand messages of 16 MiB were asked for at once.
    #[test]
    fn no_more_is_wanted_than_fits_in_memory() {
        let mut hand = hand(1_000, 2);
        let of = |place, size: usize| {
            let mut fetched = fetched(place, "a");
            Arc::make_mut(&mut fetched.message).data = vec![0; size].into();
            fetched
        };
        let wanted = |hand: &Hand| hand.wanted(Lane(0)).map_or(0, |(_, _, count)| count);
        assert_eq!(wanted(&hand), 64, "nobody knows how large they are");
        (1..=60).for_each(|place| _ = hand.arrive(Lane(0), 1, of(place, 10)));
        assert!(wanted(&hand) > 900, "they are small: {}", wanted(&hand));
        (61..=80).for_each(|place| _ = hand.arrive(Lane(0), 1, of(place, 1 << 20)));
        assert!((1..=10).contains(&wanted(&hand)), "they are large: {}", wanted(&hand));
    }

    #[test]
    fn what_was_overtaken_before_anybody_saw_it_goes_back() {
        let mut hand = hand(10, 1);
        (1..=2).for_each(|place| _ = hand.arrive(Lane(0), 1, fetched(place, "a")));
        let given = give(&mut hand, 0, 10);
        hand.end(given[0].token, End::Failed { due: 5 });
        assert!(!hand.confirm(given[1].token));
        assert_eq!(ids(&give(&mut hand, 5, 10)), ["1", "2"]);
    }
}
