//! The ledger outside of the system: what was published, delivered and settled, and what is wrong with it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidegate_core::port::{Delivery, Sent, Settled, Settlement, Token};
use tidegate_core::{Error, Message, Result, error::code};

/// What is known of everything that was published and delivered.
#[derive(Debug, Default)]
pub struct Oracle {
    book: Mutex<Book>,
    /// Whether what is published again after an answer that was lost may be stored twice.
    may_repeat: bool,
}

#[derive(Debug, Default)]
struct Book {
    messages: HashMap<Arc<str>, Published>,
    /// The ids of a subject's messages, in the order in which they were published.
    keys: HashMap<Arc<str>, Vec<Arc<str>>>,
    subscriptions: HashMap<String, Seen>,
    faults: Vec<String>,
}

#[derive(Debug)]
struct Published {
    message: Message,
    state: State,
    /// Its place among the messages of its subject.
    version: usize,
    /// It may be stored twice: once where it belongs, and once behind what was published with it.
    is_repeated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It was given to a producer that has not answered.
    Open,
    /// It may be stored: a producer did not know, or was asked once more without having answered.
    Unknown,
    Stored,
    Refused,
}

/// What one subscription has seen.
#[derive(Debug, Default)]
struct Seen {
    /// Everything that came at least once.
    came: HashSet<Arc<str>>,
    acked: HashSet<Arc<str>>,
    /// Acknowledged, with the answer still to come.
    acking: HashSet<Arc<str>>,
    /// Acknowledged, and whether it is done nobody can say: it may come again, or not.
    unknown: HashSet<Arc<str>>,
    in_hand: HashMap<(u64, Token), Arc<str>>,
    /// Given back, with the answer still to come: what stands before them may come again meanwhile.
    leaving: HashSet<(u64, Token)>,
    /// Deliveries of what was settled before. They are no fault as long as settling them is lost: the consumer may have
    /// had them since before its lane went to another one.
    suspects: HashMap<(u64, Token), String>,
    /// The first message of a subject that is not acknowledged.
    firsts: HashMap<Arc<str>, usize>,
    /// The last message of a subject that is acknowledged.
    lasts: HashMap<Arc<str>, usize>,
}

impl Oracle {
    /// Of a broker that does not know again what it has stored: nothing is wrong with a second copy of a message whose answer
    /// was lost.
    #[must_use]
    pub fn of_repeats(self) -> Self {
        Self { may_repeat: true, ..self }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are about to be published. Again is no news, but that what was refused may come from now on.
    pub fn announce(&self, batch: &[Message]) {
        let book = &mut *self.lock();
        for message in batch {
            if let Some(known) = book.messages.get_mut(&message.id) {
                match known.state {
                    State::Refused => known.state = State::Open,
                    State::Open | State::Unknown => {
                        known.state = State::Unknown;
                        known.is_repeated |= self.may_repeat;
                    }
                    State::Stored => {}
                }
                continue;
            }
            let mut version = 0;
            if let Some(key) = &message.subject {
                let ids = book.keys.entry(Arc::clone(key)).or_default();
                version = ids.len();
                ids.push(Arc::clone(&message.id));
            }
            let published =
                Published { message: message.clone(), state: State::Open, version, is_repeated: false };
            book.messages.insert(Arc::clone(&message.id), published);
        }
    }

    /// What a producer answered.
    ///
    /// # Errors
    /// If there is not one answer a message.
    pub fn answered(&self, batch: &[Message], sent: &[Sent]) -> Result<()> {
        if batch.len() != sent.len() {
            let text = format!("{} answers to {} messages", sent.len(), batch.len());
            return Err(Error::new(code::INTERNAL, text));
        }
        let book = &mut *self.lock();
        for (message, sent) in batch.iter().zip(sent) {
            let Some(published) = book.messages.get_mut(&message.id) else { continue };
            published.state = match (sent, published.state) {
                (Sent::Stored { .. }, _) | (_, State::Stored) => State::Stored,
                (Sent::Refused(_), State::Open | State::Refused) => State::Refused,
                // A refusal after an unknown answer says nothing of that one.
                (Sent::Unknown(_), _) | (Sent::Refused(_), State::Unknown) => State::Unknown,
            };
        }
        Ok(())
    }

    /// A consumer was given a message.
    pub fn delivered(&self, subscription: &str, member: u64, delivery: &Delivery) {
        let book = &mut *self.lock();
        let seen = book.subscriptions.entry(subscription.to_owned()).or_default();
        let id = &delivery.message.id;
        let Some(published) = book.messages.get(id) else {
            book.faults.push(format!("{subscription}: {id} was never published"));
            return;
        };
        if published.message != *delivery.message {
            book.faults.push(format!("{subscription}: {id} is not as it was published"));
        }
        if published.state == State::Refused {
            book.faults.push(format!("{subscription}: {id} was refused, and came"));
        }
        if !seen.came.insert(Arc::clone(id)) && published.is_repeated {
            seen.in_hand.insert((member, delivery.token), Arc::clone(id));
            return;
        }
        if seen.acked.contains(id) {
            let fault = format!("{subscription}: {id} came again after it was settled");
            seen.suspects.insert((member, delivery.token), fault);
            return;
        }
        if let Some(key) = &delivery.message.subject {
            if let Some(last) = seen.lasts.get(key).filter(|last| **last > published.version) {
                let text = format!(
                    "{subscription}: {} came after {} had been settled",
                    delivery.message.data.escape_ascii(),
                    book.messages[&book.keys[key][*last]].message.data.escape_ascii()
                );
                book.faults.push(text);
            }
            let is_here = |(known, token): &(u64, Token)| {
                *known == member && (token.lane, token.epoch) == (delivery.token.lane, delivery.token.epoch)
            };
            let in_hand: HashSet<&Arc<str>> =
                seen.in_hand.iter().filter(|(who, _)| is_here(who)).map(|(_, id)| id).collect();
            let say = |text: &str, other: &Arc<str>| {
                let body = |message: &Message| message.data.escape_ascii().to_string();
                let (this, other) = (body(&delivery.message), body(&book.messages[other].message));
                format!("{subscription}: {this} came {text} {other}")
            };
            let is_later = |(who, other): &(&(u64, Token), &Arc<str>)| {
                let other = &book.messages[*other];
                let is_later =
                    other.message.subject.as_ref() == Some(key) && other.version > published.version;
                is_later && is_here(who) && !seen.leaving.contains(*who)
            };
            let behind = seen.in_hand.iter().find(is_later);
            let mut faults: Vec<String> = behind.map(|(_, other)| say("behind", other)).into_iter().collect();
            let first = seen.firsts.get(key).copied().unwrap_or(0).min(published.version);
            let is_passed_over = |earlier: &&Arc<str>| {
                book.messages[*earlier].state == State::Stored
                    && !seen.acked.contains(*earlier)
                    && !seen.acking.contains(*earlier)
                    && !in_hand.contains(earlier)
            };
            let earlier = book.keys[key][first..published.version].iter().find(is_passed_over);
            faults.extend(earlier.map(|earlier| say("before", earlier)));
            book.faults.extend(faults);
        }
        seen.in_hand.insert((member, delivery.token), Arc::clone(id));
    }

    /// A consumer is about to settle something.
    pub fn settling(&self, subscription: &str, member: u64, batch: &[(Token, Settlement)]) {
        let book = &mut *self.lock();
        let seen = book.subscriptions.entry(subscription.to_owned()).or_default();
        for (token, settlement) in batch {
            let who = (member, *token);
            let Some(id) = seen.in_hand.get(&who) else { continue };
            match settlement {
                Settlement::Ack => _ = seen.acking.insert(Arc::clone(id)),
                _ => _ = seen.leaving.insert(who),
            }
        }
    }

    /// What came of it.
    pub fn settled(
        &self,
        subscription: &str,
        member: u64,
        batch: &[(Token, Settlement)],
        answers: &[Settled],
    ) {
        let book = &mut *self.lock();
        let seen = book.subscriptions.entry(subscription.to_owned()).or_default();
        if batch.len() != answers.len() {
            book.faults.push(format!("{} answers to {} settlements", answers.len(), batch.len()));
        }
        for ((token, settlement), answer) in batch.iter().zip(answers) {
            let who = (member, *token);
            match (answer, seen.suspects.remove(&who)) {
                (Settled::Done, Some(fault)) => book.faults.push(fault),
                (Settled::Lost, _) | (_, None) => {}
                (_, Some(fault)) => _ = seen.suspects.insert(who, fault),
            }
            let Some(id) = seen.in_hand.remove(&who) else { continue };
            seen.leaving.remove(&who);
            if *settlement != Settlement::Ack {
                continue;
            }
            if matches!(answer, Settled::Unknown(_)) {
                seen.unknown.insert(Arc::clone(&id));
            }
            if !answer.is_done() {
                continue;
            }
            seen.unknown.remove(&id);
            seen.acking.remove(&id);
            seen.acked.insert(Arc::clone(&id));
            let published = &book.messages[&id];
            if let Some(key) = &published.message.subject {
                let last = seen.lasts.entry(Arc::clone(key)).or_default();
                *last = published.version.max(*last);
                let ids = &book.keys[key];
                let first = seen.firsts.entry(Arc::clone(key)).or_default();
                while *first < ids.len() && seen.acked.contains(&ids[*first]) {
                    *first += 1;
                }
            }
        }
    }

    /// A consumer is gone, with whatever it had in hand.
    pub fn gone(&self, subscription: &str, member: u64) {
        let book = &mut *self.lock();
        let seen = book.subscriptions.entry(subscription.to_owned()).or_default();
        seen.in_hand.retain(|(who, _), _| *who != member);
        seen.leaving.retain(|(who, _)| *who != member);
        seen.suspects.retain(|(who, _), _| *who != member);
    }

    /// How many messages that are stored a subscription has not acknowledged.
    pub fn missing(&self, subscription: &str) -> usize {
        let book = self.lock();
        let stored = book.messages.iter().filter(|(_, published)| published.state == State::Stored);
        let seen = book.subscriptions.get(subscription);
        let may_be_gone = |seen: &Seen, id| seen.acked.contains(id) || seen.unknown.contains(id);
        stored.filter(|(id, _)| !seen.is_some_and(|seen| may_be_gone(seen, *id))).count()
    }

    /// How many messages a subscription has acknowledged.
    pub fn acked(&self, subscription: &str) -> usize {
        self.lock().subscriptions.get(subscription).map_or(0, |seen| seen.acked.len())
    }

    /// What is wrong, if anything is.
    pub fn verdict(&self, subscriptions: &[&str]) -> Option<String> {
        let mut faults = self.lock().faults.clone();
        for subscription in subscriptions {
            if let Some(seen) = self.lock().subscriptions.get(*subscription) {
                faults.extend(seen.suspects.values().cloned());
            }
            let missing = self.missing(subscription);
            if missing > 0 {
                faults.push(format!("{subscription}: {missing} messages that were confirmed never came"));
            }
        }
        let count = faults.len();
        let first = faults.into_iter().next()?;
        Some(if count == 1 { first } else { format!("{first} (and {} more)", count - 1) })
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::Lane;
    use tidegate_core::port::Attempt;

    use super::*;

    #[test]
    fn a_refusal_counts_unless_it_may_have_been_stored_before() {
        let error = || Error::new(code::UNREACHABLE, "away");
        let (refused, unknown) = (|| Sent::Refused(error()), || Sent::Unknown(error()));
        for (answers, is_fault) in [
            (vec![refused()], true),
            (vec![refused(), refused()], true),
            (vec![unknown(), refused()], false),
            (vec![refused(), unknown(), refused()], false),
        ] {
            let oracle = Oracle::default();
            let message = Message::with_id("1", "test", "t").with_subject("k");
            let batch = std::slice::from_ref(&message);
            let text = format!("{answers:?}");
            for answer in answers {
                oracle.announce(batch);
                oracle.answered(batch, &[answer]).unwrap();
            }
            let token = Token { lane: Lane(0), epoch: 1, number: 1 };
            let (message, attempt) = (message.clone(), Attempt::Exact(1));
            let delivery =
                Delivery { message: Arc::new(message), token, attempt, position: None, stored_at: None };
            oracle.delivered("s", 1, &delivery);
            assert_eq!(oracle.verdict(&["s"]).is_some(), is_fault, "{text}");
        }
    }
}
