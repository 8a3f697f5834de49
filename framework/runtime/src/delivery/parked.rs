//! Subjects that have dead letters, and so are not handled: in the store, since whoever has their lane next has to know.
//!
//! Of each lane there is one record: the subjects, and of each its dead letters in their order. Only the owner of the lane writes
//! it, at the place of the lane where it changes: when a message becomes a dead letter, and when a copy of one is met there
//! again. So what is stored behind a dead letter is never handled before it, however late anybody looks. The record has the epoch
//! of its owner, who writes it when the lane is taken: an owner of before can change nothing any more.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tidegate_core::error::code;
use tidegate_core::port::{StateStore, Token};
use tidegate_core::{Error, FlowName, Lane, Message, Name, Result};
use xxhash_rust::xxh3::xxh3_64;

use crate::dead_letter::Reason;
use crate::flow::flow;

/// How many dead letters of a lane are known one by one: all of them are written with each one more. Of those beyond it only the
/// number is: they are let go in the order in which they are replayed.
const LISTED_MAX: usize = 1_000;
/// How much of what a handler said is kept here.
const ERROR_CHARS: usize = 200;

/// What is known of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Under which ownership of the lane it was written.
    epoch: u64,
    subjects: BTreeMap<String, Subject>,
}

/// The dead letters of a subject.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Subject {
    letters: Vec<Letter>,
    /// How many there are beside these.
    #[serde(default)]
    more: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Letter {
    source: String,
    id: String,
    reason: Reason,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    error: String,
}

impl Letter {
    fn is(&self, message: &Message) -> bool {
        *self.id == *message.id && *self.source == *message.source
    }
}

/// What a message of a subject that has dead letters is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rank {
    /// The subject has none.
    Free,
    /// It is a copy of the first of them.
    First,
    /// It is to be one, for this reason.
    Dead(Reason, String),
}

/// The parked subjects of one subscription.
pub(crate) struct Parked {
    store: Arc<dyn StateStore>,
    flow: FlowName,
    channel: Name,
    lanes: Mutex<HashMap<Lane, (u64, Record)>>,
    /// Whose subjects are counted here.
    ours: Mutex<HashSet<Lane>>,
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parked").field("channel", &self.channel).finish_non_exhaustive()
    }
}

impl Parked {
    /// # Errors
    /// None for any name of a service: what does not fit into the name of a record is cut, and told apart by a hash.
    pub(crate) fn new(store: Arc<dyn StateStore>, service: &str, channel: Name) -> Result<Self> {
        let flow = flow("service", service)?;
        Ok(Self { store, flow, channel, lanes: Mutex::default(), ours: Mutex::default() })
    }

    /// Reads what is parked of a lane that was taken over, and makes the record this owner's.
    ///
    /// # Errors
    /// `lease-lost` if somebody has the lane under a later ownership.
    pub(crate) async fn load(&self, lane: Lane, epoch: u64) -> Result<()> {
        self.lock().remove(&lane);
        self.change(lane, epoch, |_| ()).await?;
        self.ours.lock().unwrap_or_else(PoisonError::into_inner).insert(lane);
        Ok(())
    }

    /// These lanes are to be somebody else's, who counts them from then on.
    pub(crate) fn leave(&self, lanes: &[Lane]) {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner).retain(|lane| !lanes.contains(lane));
    }

    /// How many subjects wait behind a dead letter in the lanes that are this process's.
    pub(crate) fn subjects(&self) -> usize {
        let ours = self.ours.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock().iter().filter(|(lane, _)| ours.contains(lane)).map(|(_, (_, r))| r.subjects.len()).sum()
    }

    /// What this message of a subject is to be. A copy is one that was replayed.
    pub(crate) fn rank(&self, lane: Lane, subject: &str, message: &Message, is_copy: bool) -> Rank {
        let behind =
            || Rank::Dead(Reason::Behind, "an earlier message of its subject is a dead letter".into());
        let lanes = self.lock();
        let parked = lanes.get(&lane).and_then(|(_, record)| record.subjects.get(subject));
        let Some(parked) = parked else { return Rank::Free };
        match parked.letters.iter().position(|letter| letter.is(message)) {
            Some(0) if is_copy => Rank::First,
            Some(_) if is_copy => behind(),
            // It was noted, and could not be published or settled.
            Some(at) => Rank::Dead(parked.letters[at].reason, parked.letters[at].error.clone()),
            None if is_copy && parked.letters.is_empty() => Rank::First,
            // It was handled, and taken off the list; that was not settled in time.
            None if is_copy && parked.more == 0 => Rank::Free,
            None => behind(),
        }
    }

    /// Notes that a message is a dead letter. It may be noted already.
    pub(crate) async fn park(
        &self,
        token: Token,
        subject: &str,
        message: &Message,
        reason: Reason,
        error: &str,
    ) -> Result<()> {
        self.change(token.lane, token.epoch, |record| {
            let listed: usize = record.subjects.values().map(|subject| subject.letters.len()).sum();
            let parked = record.subjects.entry(subject.to_owned()).or_default();
            if parked.letters.iter().any(|letter| letter.is(message)) {
                return;
            }
            if listed >= LISTED_MAX || parked.more > 0 {
                parked.more += 1;
                return;
            }
            let error = if reason == Reason::Behind { "" } else { error };
            parked.letters.push(Letter {
                source: message.source.to_string(),
                id: message.id.to_string(),
                reason,
                error: error.chars().take(ERROR_CHARS).collect(),
            });
        })
        .await
    }

    /// Notes that a message is none any more.
    pub(crate) async fn release(&self, token: Token, subject: &str, message: &Message) -> Result<()> {
        self.change(token.lane, token.epoch, |record| {
            let Some(parked) = record.subjects.get_mut(subject) else { return };
            match parked.letters.iter().position(|letter| letter.is(message)) {
                Some(at) => drop(parked.letters.remove(at)),
                None if parked.letters.is_empty() => parked.more = parked.more.saturating_sub(1),
                None => {}
            }
            if parked.letters.is_empty() && parked.more == 0 {
                record.subjects.remove(subject);
            }
        })
        .await
    }

    /// Changes a record, as it is in the store, unless it has a later owner.
    async fn change(&self, lane: Lane, epoch: u64, change: impl Fn(&mut Record)) -> Result<()> {
        let mut known = self.lock().get(&lane).cloned();
        loop {
            let (version, before) = match known.take() {
                Some(known) => known,
                None => self.read(lane).await?,
            };
            if before.epoch > epoch {
                return Err(Error::new(code::LEASE_LOST, format!("lane {} has another owner", lane.0)));
            }
            let mut record = Record { epoch, ..before.clone() };
            change(&mut record);
            let version = if record == before {
                version
            } else {
                let text = serde_json::to_string(&record)
                    .map_err(|e| Error::new(code::INTERNAL, "a record cannot be written").because(e))?;
                match self.store.put(&self.flow, &self.key(lane), &text, version).await? {
                    Some(version) => version,
                    // Another call of this member, or another owner.
                    None => continue,
                }
            };
            self.know(lane, (version, record));
            return Ok(());
        }
    }

    async fn read(&self, lane: Lane) -> Result<(u64, Record)> {
        let Some(found) = self.store.get(&self.flow, &self.key(lane)).await? else {
            return Ok((0, Record::default()));
        };
        let record = serde_json::from_str(&found.value).map_err(|error| {
            let what = format!("the record {} cannot be read", self.key(lane));
            Error::new(code::STATE_NEWER, what).because(error)
        })?;
        Ok((found.version, record))
    }

    /// Another call may have written later and been here before.
    fn know(&self, lane: Lane, found: (u64, Record)) {
        let mut lanes = self.lock();
        if lanes.get(&lane).is_none_or(|known| known.0 <= found.0) {
            lanes.insert(lane, found);
        }
    }

    fn key(&self, lane: Lane) -> String {
        let channel = self.channel.as_str();
        let readable = &channel[..channel.len().min(50)];
        format!("parked/{}/{readable}/{:016x}", lane.0, xxh3_64(channel.as_bytes()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Lane, (u64, Record)>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::port::Store as _;
    use tidegate_memory::MemoryStore;

    use super::*;

    const LANE: Lane = Lane(3);

    async fn parked(store: &MemoryStore, epoch: u64) -> Parked {
        let state = store.state().await.unwrap();
        let parked = Parked::new(state, "billing.eu-1", Name::new("orders").unwrap()).unwrap();
        parked.load(LANE, epoch).await.unwrap();
        parked
    }

    fn token(epoch: u64) -> Token {
        Token { lane: LANE, epoch, number: 1 }
    }

    fn message(id: &str) -> Message {
        Message::with_id(id, "shop", "t")
    }

    fn behind() -> Rank {
        Rank::Dead(Reason::Behind, "an earlier message of its subject is a dead letter".into())
    }

    #[tokio::test]
    async fn dead_letters_of_a_subject_are_let_go_in_their_order_and_the_next_owner_knows() {
        let store = MemoryStore::new("s");
        let first = parked(&store, 1).await;
        first.park(token(1), "k", &message("1"), Reason::Refused, "no money").await.unwrap();
        for _ in 0..2 {
            first.park(token(1), "k", &message("2"), Reason::Behind, "").await.unwrap();
        }
        let second = parked(&store, 2).await;
        for (id, is_copy, rank) in [
            ("1", true, Rank::First),
            ("1", false, Rank::Dead(Reason::Refused, "no money".into())),
            ("2", true, behind()),
            ("3", false, behind()),
            ("0", true, Rank::Free),
        ] {
            assert_eq!(second.rank(LANE, "k", &message(id), is_copy), rank, "{id}");
        }
        let other = Message::with_id("1", "crm", "t");
        assert_eq!(second.rank(LANE, "k", &other, false), behind(), "the same id is another message there");
        assert_eq!(second.rank(LANE, "other", &message("3"), false), Rank::Free);
        second.release(token(2), "k", &other).await.unwrap();
        second.release(token(2), "k", &message("1")).await.unwrap();
        assert_eq!(second.rank(LANE, "k", &message("2"), true), Rank::First);
        second.release(token(2), "k", &message("2")).await.unwrap();
        assert_eq!(second.rank(LANE, "k", &message("5"), false), Rank::Free);
    }

    #[tokio::test]
    async fn an_owner_of_before_changes_nothing() {
        let store = MemoryStore::new("s");
        let first = parked(&store, 1).await;
        let second = parked(&store, 2).await;
        let late = first.park(token(1), "k", &message("1"), Reason::Refused, "late").await;
        assert_eq!(late.unwrap_err().code(), code::LEASE_LOST);
        second.park(token(2), "k", &message("2"), Reason::Refused, "").await.unwrap();
        // It knows nothing of that one, and has nothing to write.
        first.release(token(1), "k", &message("2")).await.unwrap();
        assert_eq!(parked(&store, 3).await.rank(LANE, "k", &message("2"), true), Rank::First);
    }

    #[tokio::test]
    async fn more_than_are_listed_are_counted() {
        let store = MemoryStore::new("s");
        let parked = parked(&store, 1).await;
        {
            let mut lanes = parked.lock();
            let (_, record) = lanes.get_mut(&LANE).unwrap();
            let letter = |n: usize| Letter {
                source: "shop".into(),
                id: n.to_string(),
                reason: Reason::Behind,
                error: String::new(),
            };
            let letters = (0..LISTED_MAX).map(letter).collect();
            record.subjects.insert("other".into(), Subject { letters, more: 0 });
        }
        for id in ["a", "b"] {
            parked.park(token(1), "k", &message(id), Reason::Exhausted, "").await.unwrap();
        }
        assert_eq!(parked.rank(LANE, "k", &message("c"), false), behind());
        for id in ["a", "b"] {
            assert_eq!(parked.rank(LANE, "k", &message(id), true), Rank::First, "as they are replayed");
            parked.release(token(1), "k", &message(id)).await.unwrap();
        }
        assert_eq!(parked.rank(LANE, "k", &message("c"), false), Rank::Free);
    }
}
