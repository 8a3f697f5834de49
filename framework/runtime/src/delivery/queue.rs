//! Which of the messages in hand may be handled next: one at a time of each subject, in their order.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;
use tidegate_core::Lane;
use tidegate_core::port::{Delivery, Token};

/// What is handled in order: a subject of a lane, or one message alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Subject(Lane, Arc<str>),
    Alone(Token),
}

impl Key {
    pub(crate) fn of(delivery: &Delivery) -> Self {
        match &delivery.message.subject {
            Some(subject) => Key::Subject(delivery.token.lane, Arc::clone(subject)),
            None => Key::Alone(delivery.token),
        }
    }

    fn lane(&self) -> Lane {
        match self {
            Key::Subject(lane, _) => *lane,
            Key::Alone(token) => token.lane,
        }
    }
}

/// What is known of a key that is not idle.
#[derive(Debug, Default)]
struct Waiting {
    deliveries: VecDeque<Delivery>,
    is_running: bool,
    /// A message that failed and is to come again: nothing else of the key is handled before.
    again: Option<Again>,
}

/// A message by what is the same each time that it comes, and the ownership of its lane. Under a later one everything that
/// is not settled comes again, in its order.
#[derive(Debug)]
struct Again {
    source: Arc<str>,
    id: Arc<str>,
    epoch: u64,
}

impl Again {
    fn of(delivery: &Delivery) -> Self {
        let message = &delivery.message;
        Self { source: Arc::clone(&message.source), id: message.dedupe_id(), epoch: delivery.token.epoch }
    }

    /// Whether this one has to go back.
    fn is_behind(&self, delivery: &Delivery) -> bool {
        let message = &delivery.message;
        self.epoch == delivery.token.epoch
            && !(self.source == message.source && self.id == message.dedupe_id())
    }
}

impl Waiting {
    fn is_idle(&self) -> bool {
        self.deliveries.is_empty() && !self.is_running && self.again.is_none()
    }
}

/// The messages in hand that are not handled yet.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    keys: HashMap<Key, Waiting, RandomState>,
    /// Keys whose first message may be handled.
    ready: VecDeque<Key>,
    /// Lanes of which nothing is handled yet.
    closed: HashSet<Lane>,
    len: usize,
}

impl Queue {
    /// How many messages wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes a message, or gives it back: one that came while an earlier one of its subject is to come again.
    pub(crate) fn offer(&mut self, delivery: Delivery) -> Result<(), Token> {
        let key = Key::of(&delivery);
        let is_open = !self.closed.contains(&key.lane());
        let waiting = self.keys.entry(key.clone()).or_default();
        if waiting.again.as_ref().is_some_and(|again| again.is_behind(&delivery)) {
            return Err(delivery.token);
        }
        waiting.again = None;
        waiting.deliveries.push_back(delivery);
        self.len += 1;
        if is_open && !waiting.is_running && waiting.deliveries.len() == 1 {
            self.ready.push_back(key);
        }
        Ok(())
    }

    /// Whether there is a message that may be handled next.
    pub(crate) fn has_ready(&mut self) -> bool {
        while let Some(key) = self.ready.front() {
            // A key may stand here since before its lane was closed, or forgotten.
            let waiting = self.keys.get(key).filter(|waiting| !waiting.is_running);
            let is_ready = waiting.is_some_and(|waiting| !waiting.deliveries.is_empty());
            if is_ready && !self.closed.contains(&key.lane()) {
                return true;
            }
            self.ready.pop_front();
        }
        false
    }

    /// The next message to be handled; its key is busy until it is told otherwise.
    pub(crate) fn next(&mut self) -> Option<(Key, Delivery)> {
        if !self.has_ready() {
            return None;
        }
        let key = self.ready.pop_front()?;
        let waiting = self.keys.get_mut(&key)?;
        let delivery = waiting.deliveries.pop_front()?;
        waiting.is_running = true;
        self.len -= 1;
        Some((key, delivery))
    }

    /// The message of a key was handled.
    pub(crate) fn done(&mut self, key: &Key) {
        let Some(waiting) = self.keys.get_mut(key) else { return };
        waiting.is_running = false;
        if waiting.is_idle() {
            self.keys.remove(key);
        } else if !waiting.deliveries.is_empty() && !self.closed.contains(&key.lane()) {
            self.ready.push_back(key.clone());
        }
    }

    /// The message of a key failed and is to come again: the later ones of the key, which are to be given back.
    pub(crate) fn again(&mut self, key: &Key, delivery: &Delivery) -> Vec<Token> {
        let Some(waiting) = self.keys.get_mut(key) else { return Vec::new() };
        waiting.is_running = false;
        if matches!(key, Key::Alone(_)) {
            self.keys.remove(key);
            return Vec::new();
        }
        if waiting.deliveries.front().is_some_and(|next| next.token.epoch > delivery.token.epoch) {
            // The lane was lost and gained meanwhile: the message is among these.
            if !self.closed.contains(&key.lane()) {
                self.ready.push_back(key.clone());
            }
            return Vec::new();
        }
        waiting.again = Some(Again::of(delivery));
        self.len -= waiting.deliveries.len();
        waiting.deliveries.drain(..).map(|delivery| delivery.token).collect()
    }

    /// Nothing of a lane is handled until it is opened.
    pub(crate) fn close(&mut self, lane: Lane) {
        self.closed.insert(lane);
    }

    /// What waits of a lane may be handled.
    pub(crate) fn open(&mut self, lane: Lane) {
        if !self.closed.remove(&lane) {
            return;
        }
        let of_lane = self.keys.iter().filter(|(key, waiting)| {
            key.lane() == lane && !waiting.is_running && !waiting.deliveries.is_empty()
        });
        let mut opened: Vec<(Token, Key)> =
            of_lane.map(|(key, waiting)| (waiting.deliveries[0].token, key.clone())).collect();
        opened.sort_by_key(|(token, _)| *token);
        self.ready.extend(opened.into_iter().map(|(_, key)| key));
    }

    /// Forgets what waits of these lanes: what is given back of it. What is being handled stays busy, so that nothing of
    /// its key is handled beside it if the lane comes back.
    pub(crate) fn forget(&mut self, lanes: &[Lane]) -> Vec<Token> {
        let mut tokens = Vec::new();
        self.keys.retain(|key, waiting| {
            if lanes.contains(&key.lane()) {
                tokens.extend(waiting.deliveries.drain(..).map(|delivery| delivery.token));
                waiting.again = None;
            }
            !waiting.is_idle()
        });
        self.len -= tokens.len();
        tokens.sort();
        tokens
    }

    /// The same for all lanes.
    pub(crate) fn forget_all(&mut self) -> Vec<Token> {
        let lanes: HashSet<Lane> = self.keys.keys().map(Key::lane).collect();
        self.forget(&lanes.into_iter().collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::Message;
    use tidegate_core::port::Attempt;

    use super::*;

    fn delivery(number: u64, subject: &str) -> Delivery {
        let message = Message::with_id(number.to_string(), "s", "t");
        Delivery {
            message: Arc::new(if subject.is_empty() { message } else { message.with_subject(subject) }),
            token: Token { lane: Lane(0), epoch: 1, number },
            attempt: Attempt::Exact(1),
            position: None,
            stored_at: None,
        }
    }

    fn next(queue: &mut Queue) -> Option<(Key, u64)> {
        queue.next().map(|(key, delivery)| (key, delivery.token.number))
    }

    fn numbers(tokens: &[Token]) -> Vec<u64> {
        tokens.iter().map(|token| token.number).collect()
    }

    #[test]
    fn a_subject_is_handled_in_its_order_and_others_beside_it() {
        let mut queue = Queue::default();
        for (number, subject) in [(1, "a"), (2, "a"), (3, "b"), (4, ""), (5, "")] {
            queue.offer(delivery(number, subject)).unwrap();
        }
        let (a, first) = next(&mut queue).unwrap();
        let beside: Vec<_> = std::iter::from_fn(|| next(&mut queue)).map(|(_, number)| number).collect();
        assert_eq!((first, beside), (1, vec![3, 4, 5]));
        assert_eq!(queue.len(), 1);
        queue.done(&a);
        assert_eq!(next(&mut queue), Some((a.clone(), 2)));
        queue.done(&a);
        queue.done(&a);
        assert!(next(&mut queue).is_none() && !queue.keys.contains_key(&a));
    }

    #[test]
    fn what_comes_behind_one_that_failed_goes_back_until_that_one_comes() {
        let mut queue = Queue::default();
        for number in 1..=3 {
            queue.offer(delivery(number, "a")).unwrap();
        }
        let (a, _) = next(&mut queue).unwrap();
        assert_eq!(numbers(&queue.again(&a, &delivery(1, "a"))), [2, 3]);
        assert_eq!(queue.offer(delivery(4, "a")).unwrap_err().number, 4);
        queue.offer(delivery(9, "b")).unwrap();
        assert_eq!(next(&mut queue).map(|(_, number)| number), Some(9));
        queue.offer(delivery(1, "a")).unwrap();
        queue.offer(delivery(2, "a")).unwrap();
        assert_eq!(next(&mut queue), Some((a.clone(), 1)));
        assert_eq!(next(&mut queue), None);
    }

    #[test]
    fn a_lane_that_went_is_forgotten_and_one_being_handled_stays_alone() {
        let mut queue = Queue::default();
        for number in 1..=3 {
            queue.offer(delivery(number, "a")).unwrap();
        }
        let (a, _) = next(&mut queue).unwrap();
        assert_eq!(numbers(&queue.forget(&[Lane(0)])), [2, 3]);
        queue.offer(delivery(1, "a")).unwrap();
        assert_eq!(next(&mut queue), None, "its handler of before still runs");
        queue.done(&a);
        assert_eq!(next(&mut queue), Some((a, 1)));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn what_failed_under_an_ownership_of_before_keeps_nothing_waiting() {
        let later = |number, epoch| {
            let mut delivery = delivery(number, "a");
            delivery.token.epoch = epoch;
            delivery
        };
        let mut queue = Queue::default();
        queue.offer(delivery(1, "a")).unwrap();
        let (a, _) = next(&mut queue).unwrap();
        queue.forget(&[Lane(0)]);
        // It fails when its lane is somebody else's; the lane comes back behind it.
        assert!(queue.again(&a, &delivery(1, "a")).is_empty());
        assert_eq!(queue.offer(delivery(2, "a")).unwrap_err().number, 2);
        queue.offer(later(5, 3)).unwrap();
        assert_eq!(next(&mut queue), Some((a.clone(), 5)));
        // The same with the lane back before it fails.
        queue.offer(later(6, 4)).unwrap();
        assert!(queue.again(&a, &later(5, 3)).is_empty());
        assert_eq!(next(&mut queue), Some((a, 6)));
    }

    #[test]
    fn a_key_that_was_ready_when_its_lane_was_closed_waits() {
        let mut queue = Queue::default();
        queue.offer(delivery(1, "a")).unwrap();
        queue.close(Lane(0));
        assert_eq!(next(&mut queue), None);
        queue.open(Lane(0));
        assert_eq!(next(&mut queue).map(|(_, number)| number), Some(1));
    }

    #[test]
    fn nothing_of_a_closed_lane_is_handled() {
        let mut queue = Queue::default();
        queue.close(Lane(0));
        for (number, subject) in [(1, "a"), (2, "b"), (3, "")] {
            queue.offer(delivery(number, subject)).unwrap();
        }
        assert_eq!(next(&mut queue), None);
        queue.open(Lane(0));
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queue)).map(|(_, number)| number).collect();
        assert_eq!(order, [1, 2, 3]);
        assert!(queue.forget_all().is_empty());
    }
}
