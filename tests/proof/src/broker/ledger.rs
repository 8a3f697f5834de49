//! The book that is kept outside of everything: what was confirmed, what was handled and in which order, and which dead letters
//! there are; and what is wrong with it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tidegate_conformance::Oracle;
use tidegate_core::port::{Delivery, Sent};
use tidegate_core::{Message, Result};
use tidegate_runtime::dead_letter::{self, Reason};
use tidegate_runtime::{Json, Typed};

/// Who handles the messages; the subscription has this name.
pub(super) const SERVICE: &str = "handling";
/// What the handler says of what it can never handle.
pub(super) const CAUSE: &str = "nobody can handle this";
/// How often it is tried.
pub(super) const ATTEMPTS: u32 = 4;
/// How many faults are told one by one.
const TOLD: usize = 10;

/// What a message is: the next of its subject.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) subject: String,
    pub(super) number: u64,
    /// Whether its handler fails however often it is tried.
    pub(super) is_poison: bool,
}

impl Typed for Step {
    const KIND: &str = "proof.step.v1";

    fn subject(&self) -> Option<String> {
        Some(self.subject.clone())
    }
}

impl Step {
    fn id(&self) -> Arc<str> {
        format!("{}/{}", self.subject, self.number).into()
    }

    pub(super) fn message(&self) -> Result<Message> {
        let mut message = Json(self.clone()).to_message(&tidegate_core::SystemIds, "proof")?;
        message.id = self.id();
        Ok(message)
    }
}

/// What is known of everything that was published on one channel. It is told by the publisher, by the handler, and by
/// [`Observed`](super::observed::Observed) what goes over the port.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The rules of the port: what its producers, consumers and settlements say has to fit together.
    pub(super) oracle: Oracle,
    /// Whether what is published again is stored once.
    knows_again: bool,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    steps: HashMap<Arc<str>, Known>,
    /// The highest number of each subject that was handled.
    lasts: HashMap<String, u64>,
    handled: u64,
    found: Found,
}

/// What is known of one message.
#[derive(Debug)]
struct Known {
    step: Step,
    is_confirmed: bool,
    /// How often the answer to its publishing was lost: so often more may it be stored.
    again: u64,
    handled: u64,
    /// How often it was given to a consumer.
    came: u64,
    /// How often it came so that it was to become a dead letter.
    due: u64,
    /// How often its dead letter was published, and the answer to that was lost.
    letters: u64,
    unknown: u64,
}

/// What came out, and what is wrong with it.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Found {
    /// Messages that the broker confirmed.
    pub(super) confirmed: u64,
    /// Messages that were handled, and how often one was that had been.
    pub(super) handled: u64,
    pub(super) again: u64,
    /// Answers of producers that were lost.
    pub(super) unknown: u64,
    /// Messages that nobody can handle, and their dead letters that came twice for a reason.
    pub(super) poison: u64,
    pub(super) letters_again: u64,
    /// Confirmed, and neither handled nor a dead letter.
    pub(super) lost: u64,
    /// Handled for the first time behind a later one of the subject.
    pub(super) inverted: u64,
    /// Poison without a dead letter, with a second one or another cause; and dead letters of what can be handled.
    pub(super) misparked: u64,
    /// Handled or dead, and never published.
    pub(super) invented: u64,
    /// Whether a rule of the port was broken.
    pub(super) at_port: u64,
    /// The first faults, for people.
    pub(super) faults: Vec<String>,
}

impl Found {
    fn tell(&mut self, text: String) {
        if self.faults.len() < TOLD {
            self.faults.push(text);
        }
    }

    pub(super) fn add(&mut self, other: &Found) {
        for (all, one) in [
            (&mut self.confirmed, other.confirmed),
            (&mut self.handled, other.handled),
            (&mut self.again, other.again),
            (&mut self.unknown, other.unknown),
            (&mut self.poison, other.poison),
            (&mut self.letters_again, other.letters_again),
            (&mut self.lost, other.lost),
            (&mut self.inverted, other.inverted),
            (&mut self.misparked, other.misparked),
            (&mut self.invented, other.invented),
            (&mut self.at_port, other.at_port),
        ] {
            *all += one;
        }
        other.faults.iter().for_each(|fault| self.tell(fault.clone()));
    }

    /// How many rules were broken. What is lost counts where the broker does not say that it may be.
    pub(super) fn broken(&self, may_lose: bool) -> u64 {
        let lost = if may_lose { 0 } else { self.lost };
        lost + self.inverted + self.misparked + self.invented + self.at_port
    }
}

impl Ledger {
    /// Of a broker that knows again what it has stored, or does not.
    pub(super) fn new(knows_again: bool) -> Self {
        let oracle = if knows_again { Oracle::default() } else { Oracle::default().of_repeats() };
        Self { oracle, knows_again, book: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This is about to be published for the first time.
    pub(super) fn announce(&self, step: &Step) {
        let known = Known {
            step: step.clone(),
            is_confirmed: false,
            again: 0,
            handled: 0,
            came: 0,
            due: 0,
            letters: 0,
            unknown: 0,
        };
        self.lock().steps.insert(step.id(), known);
    }

    /// What a producer answered.
    pub(super) fn answered(&self, batch: &[Message], sent: &[Sent]) {
        let book = &mut *self.lock();
        book.found.unknown += sent.iter().filter(|sent| sent.is_unknown()).count() as u64;
        for (message, sent) in batch.iter().zip(sent) {
            if let Some(known) = book.steps.get_mut(&message.id) {
                known.is_confirmed |= sent.is_stored();
                known.again += u64::from(sent.is_unknown());
            }
        }
    }

    /// What the producer of the dead letters answered.
    pub(super) fn buried(&self, batch: &[Message], sent: &[Sent]) {
        let book = &mut *self.lock();
        for (message, sent) in batch.iter().zip(sent) {
            if let Some(known) = book.steps.get_mut(&message.id) {
                known.letters += 1;
                known.unknown += u64::from(sent.is_unknown());
            }
        }
    }

    /// A consumer was given a message.
    pub(super) fn delivered(&self, delivery: &Delivery) {
        if let Some(known) = self.lock().steps.get_mut(&delivery.message.id) {
            known.came += 1;
            // What is dead already is buried at once, however often it was tried.
            let is_due = known.step.number > 0 || delivery.attempt.number() >= ATTEMPTS || known.letters > 0;
            known.due += u64::from(known.step.is_poison && is_due);
        }
    }

    /// The handler did it.
    pub(super) fn handled(&self, step: &Step) {
        let book = &mut *self.lock();
        let Some(known) = book.steps.get_mut(&step.id()) else {
            book.found.invented += 1;
            book.found.tell(format!("{} was handled, and never published", step.id()));
            return;
        };
        known.handled += 1;
        if known.handled > 1 {
            book.found.again += 1;
            return;
        }
        book.handled += 1;
        match book.lasts.get_mut(&step.subject) {
            Some(last) if *last > step.number => {
                book.found.inverted += 1;
                book.found.tell(format!("{} was handled behind number {last}", step.id()));
            }
            Some(last) => *last = step.number,
            None => _ = book.lasts.insert(step.subject.clone(), step.number),
        }
    }

    /// How many messages were handled.
    pub(super) fn count(&self) -> u64 {
        self.lock().handled
    }

    /// How many that are confirmed wait to be handled, or to be settled.
    pub(super) fn open(&self) -> usize {
        let book = self.lock();
        let is_open = |known: &&Known| !known.step.is_poison && known.is_confirmed && known.handled == 0;
        let waiting = book.steps.values().filter(is_open).count();
        drop(book);
        waiting + self.oracle.missing(SERVICE)
    }

    /// What is to be said when everything is at its end, these are the dead letters, and the broker has
    /// these messages, as far as it can be seen.
    pub(super) fn judge(&self, letters: &[Message], kept: Option<&HashSet<Arc<str>>>) -> Found {
        let book = self.lock();
        let mut found = book.found.clone();
        let mut copies: HashMap<&str, u64> = HashMap::new();
        let mut lasts: HashMap<&str, u64> = HashMap::new();
        for letter in letters {
            let Some(known) = book.steps.get(&letter.id) else {
                found.invented += 1;
                found.tell(format!("{} is a dead letter, and was never published", letter.id));
                continue;
            };
            let count = copies.entry(&letter.id).or_default();
            *count += 1;
            if let Some(wrong) = wrong_cause(&known.step, letter) {
                found.misparked += 1;
                found.tell(wrong);
            }
            let last = lasts.entry(&known.step.subject).or_insert(known.step.number);
            if *count == 1 && *last > known.step.number {
                found.inverted += 1;
                found.tell(format!("{} became a dead letter behind number {last}", letter.id));
            }
            *last = known.step.number.max(*last);
        }
        for (id, known) in &book.steps {
            found.confirmed += u64::from(known.is_confirmed);
            found.handled += u64::from(known.handled > 0);
            found.poison += u64::from(known.step.is_poison && known.is_confirmed);
            let copies = copies.get(&**id).copied().unwrap_or(0);
            match copies {
                0 if !known.is_confirmed => {}
                0 if known.step.is_poison => {
                    found.misparked += 1;
                    found.tell(format!("{id} cannot be handled, and there is no dead letter of it"));
                }
                0 if known.handled == 0 => {
                    found.lost += 1;
                    let last = book.lasts.get(&known.step.subject);
                    let kept = match kept {
                        Some(kept) if kept.contains(id) => "the broker still has it",
                        Some(_) => "the broker has it no more",
                        None => "whether the broker still has it nobody can see",
                    };
                    found.tell(format!(
                        "{id} was confirmed and never handled: it came {} times, the last of its subject that was handled is {last:?}, and {kept}",
                        known.came
                    ));
                }
                0 | 1 => {}
                _ if !self.knows_again && copies <= known.unknown + known.due + known.again => {
                    found.letters_again += copies - 1;
                }
                _ => {
                    found.misparked += 1;
                    found.tell(format!(
                        "there are {copies} dead letters of {id}, and no reason for more than one: it came {} times, {} of them to be a dead letter, which was published {} times, {} of them without an answer",
                        known.came, known.due, known.letters, known.unknown
                    ));
                }
            }
        }
        drop(book);
        if let Some(fault) = self.oracle.verdict(&[SERVICE]) {
            found.at_port += 1;
            found.tell(format!("at the port: {fault}"));
        }
        found
    }
}

/// What is wrong with a dead letter: the first of a poison subject was tried in vain, and the others wait behind it.
fn wrong_cause(step: &Step, letter: &Message) -> Option<String> {
    let header = |name| letter.headers.get(name).unwrap_or_default();
    let (reason, error) = (header(dead_letter::REASON), header(dead_letter::ERROR));
    if !step.is_poison {
        return Some(format!("{} can be handled, and is a dead letter: {reason}: {error}", letter.id));
    }
    let is_right = match step.number {
        0 => reason == Reason::Exhausted.word() && error == CAUSE,
        _ => reason == Reason::Behind.word(),
    };
    (!is_right).then(|| format!("the dead letter {} says {reason}: {error}", letter.id))
}

#[cfg(test)]
mod tests {
    use tidegate_core::error::code;
    use tidegate_core::port::{Attempt, Token};
    use tidegate_core::{Error, Lane};

    use super::*;

    fn step(subject: &str, number: u64) -> Step {
        Step { subject: subject.to_owned(), number, is_poison: subject == "poison" }
    }

    fn letter(step: &Step) -> Message {
        let letter = step.message().unwrap().with_header(dead_letter::REASON, "exhausted").unwrap();
        letter.with_header(dead_letter::ERROR, CAUSE).unwrap()
    }

    /// What is said of so many letters of a message that came with these attempts, if some answers to its letter were lost.
    fn judged(knows_again: bool, attempts: &[u32], lost: usize, letters: usize) -> Found {
        judged_of(&Ledger::new(knows_again), 0, attempts, lost, letters)
    }

    /// The same, if `again` answers to its own publishing were lost before.
    fn judged_of(ledger: &Ledger, again: usize, attempts: &[u32], lost: usize, letters: usize) -> Found {
        let poison = step("poison", 0);
        let message = poison.message().unwrap();
        ledger.announce(&poison);
        let batch = std::slice::from_ref(&message);
        let no_answer = || Sent::Unknown(Error::new(code::TIMED_OUT, "no answer"));
        (0..again).for_each(|_| ledger.answered(batch, &[no_answer()]));
        ledger.answered(batch, &[Sent::Stored { position: None, duplicate: false }]);
        for attempt in attempts {
            let token = Token { lane: Lane(0), epoch: 1, number: u64::from(*attempt) };
            let (message, attempt) = (message.clone(), Attempt::Exact(*attempt));
            ledger.delivered(&Delivery {
                message: Arc::new(message),
                token,
                attempt,
                position: None,
                stored_at: None,
            });
        }
        for _ in 0..lost {
            ledger.buried(batch, &[no_answer()]);
        }
        ledger.judge(&vec![letter(&poison); letters], None)
    }

    #[test]
    fn a_second_letter_needs_a_reason() {
        for (knows_again, attempts, lost, letters, misparked) in [
            (false, &[1, 2, 3, 4][..], 0, 1, 0),
            (false, &[1, 2, 3, 4], 0, 0, 1),
            (false, &[1, 2, 3, 4], 0, 2, 1),
            (false, &[1, 2, 3, 4], 1, 2, 0),
            (false, &[1, 2, 3, 4], 1, 3, 1),
            (false, &[1, 2, 3, 4, 5], 0, 2, 0),
            (true, &[1, 2, 3, 4, 5], 1, 2, 1),
            (true, &[1, 2, 3, 4, 5], 1, 1, 0),
        ] {
            let found = judged(knows_again, attempts, lost, letters);
            assert_eq!(found.misparked, misparked, "{attempts:?}, {lost} lost, {letters}: {found:?}");
        }
    }

    /// Found by killing ActiveMQ Classic: a message that was stored twice came the second time before the answer to its dead
    /// letter did, and then there were two.
    #[test]
    fn a_message_that_may_be_stored_twice_may_have_two_letters() {
        for (again, letters, misparked) in [(0, 2, 1), (1, 2, 0), (1, 3, 1)] {
            let found = judged_of(&Ledger::new(false), again, &[1, 2, 3, 1, 4], 0, letters);
            assert_eq!(found.misparked, misparked, "{again} again, {letters} letters: {found:?}");
        }
    }

    #[test]
    fn what_is_handled_again_is_no_inversion_and_what_is_late_is_one() {
        let ledger = Ledger::new(true);
        let steps: Vec<_> = (0..3).map(|number| step("a", number)).collect();
        steps.iter().for_each(|step| ledger.announce(step));
        for number in [0, 2, 0, 2, 1, 1] {
            ledger.handled(&steps[number]);
        }
        let found = ledger.judge(&[], None);
        assert_eq!((found.handled, found.again, found.inverted), (3, 3, 1), "{found:?}");
    }

    #[test]
    fn letters_of_what_can_be_handled_and_of_what_is_unknown_are_wrong() {
        let ledger = Ledger::new(true);
        let known = step("a", 0);
        ledger.announce(&known);
        let found = ledger.judge(&[letter(&known), letter(&step("poison", 7))], None);
        assert_eq!((found.misparked, found.invented), (1, 1), "{found:?}");
        assert_eq!((found.broken(true), found.broken(false)), (2, 2));
        assert_eq!(Found { lost: 1, ..Found::default() }.broken(true), 0);
    }
}
