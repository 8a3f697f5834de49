//! Subjects that have dead letters, and so are not handled: in the store, since whoever has their lane next has to know.
//!
//! Of each lane there is one record: the subjects, and of each the ids of its dead letters in their order. Only the owner of the
//! lane writes it, at the place of the lane where it changes: when a message becomes a dead letter, and when a copy of
//! one is met there again. So what is stored behind a dead letter is never handled before it, however late anybody looks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidegate_core::error::code;
use tidegate_core::port::StateStore;
use tidegate_core::{Error, FlowName, Lane, Name, Result};

/// How many dead letters a lane may have whose subjects wait for them. Beyond that its messages wait in the channel.
const PARKED_MAX: usize = 10_000;

/// By subject, the ids of its dead letters.
type Record = BTreeMap<String, Vec<String>>;

/// What a message of a subject that has dead letters is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rank {
    /// The subject has none.
    Free,
    /// It is the first of them.
    First,
    /// It is one of them, or comes behind them.
    Behind,
}

/// The parked subjects of one subscription.
pub(crate) struct Parked {
    store: Arc<dyn StateStore>,
    flow: FlowName,
    channel: Name,
    lanes: Mutex<HashMap<Lane, (u64, Record)>>,
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parked").field("channel", &self.channel).finish_non_exhaustive()
    }
}

impl Parked {
    pub(crate) fn new(store: Arc<dyn StateStore>, flow: FlowName, channel: Name) -> Self {
        Self { store, flow, channel, lanes: Mutex::default() }
    }

    /// Reads what is parked of a lane that was taken over.
    pub(crate) async fn load(&self, lane: Lane) -> Result<()> {
        let found = self.read(lane).await?;
        self.know(lane, found);
        Ok(())
    }

    /// What this message of a subject is to be. A copy is one that was replayed.
    pub(crate) fn rank(&self, lane: Lane, subject: &str, id: &str, is_copy: bool) -> Rank {
        let lanes = self.lock();
        let parked = lanes.get(&lane).and_then(|(_, record)| record.get(subject));
        let Some(parked) = parked else { return Rank::Free };
        match parked.iter().position(|known| known == id) {
            Some(0) if is_copy => Rank::First,
            // It was handled, and taken off the list; that was not settled in time.
            None if is_copy => Rank::Free,
            _ => Rank::Behind,
        }
    }

    /// Notes that a message is a dead letter. It may be noted already.
    pub(crate) async fn park(&self, lane: Lane, subject: &str, id: &str) -> Result<()> {
        self.change(lane, |record| {
            if record.values().map(Vec::len).sum::<usize>() >= PARKED_MAX {
                let what = format!("lane {} has {PARKED_MAX} messages parked behind dead letters", lane.0);
                return Err(
                    Error::new(code::LIMIT_REACHED, what).hint("replay or purge them: tidegate dlq list")
                );
            }
            let parked = record.entry(subject.to_owned()).or_default();
            let is_new = !parked.iter().any(|known| known == id);
            if is_new {
                parked.push(id.to_owned());
            }
            Ok(is_new)
        })
        .await
    }

    /// Notes that a message is none any more.
    pub(crate) async fn release(&self, lane: Lane, subject: &str, id: &str) -> Result<()> {
        self.change(lane, |record| {
            let Some(parked) = record.get_mut(subject) else { return Ok(false) };
            let before = parked.len();
            parked.retain(|known| known != id);
            let is_less = parked.len() < before;
            if parked.is_empty() {
                record.remove(subject);
            }
            Ok(is_less)
        })
        .await
    }

    /// Changes a record, as it is in the store.
    async fn change(&self, lane: Lane, change: impl Fn(&mut Record) -> Result<bool>) -> Result<()> {
        let mut known = self.lock().get(&lane).cloned();
        loop {
            let (version, mut record) = match known.take() {
                Some(known) => known,
                None => self.read(lane).await?,
            };
            let version = match change(&mut record)? {
                false => version,
                true => {
                    let text = serde_json::to_string(&record)
                        .map_err(|e| Error::new(code::INTERNAL, "a record cannot be written").because(e))?;
                    match self.store.put(&self.flow, &self.key(lane), &text, version).await? {
                        Some(version) => version,
                        // Another call of this member, or an owner of before who is not heard any more.
                        None => continue,
                    }
                }
            };
            self.know(lane, (version, record));
            return Ok(());
        }
    }

    async fn read(&self, lane: Lane) -> Result<(u64, Record)> {
        let Some(found) = self.store.get(&self.flow, &self.key(lane)).await? else {
            return Ok((0, Record::new()));
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
        format!("parked/{}/{}", lane.0, self.channel)
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

    async fn parked(store: &MemoryStore) -> Parked {
        let state = store.state().await.unwrap();
        Parked::new(state, FlowName::new("billing").unwrap(), Name::new("orders").unwrap())
    }

    #[tokio::test]
    async fn dead_letters_of_a_subject_are_let_go_in_their_order_and_the_next_owner_knows() {
        let store = MemoryStore::new("s");
        let (first, lane) = (parked(&store).await, Lane(3));
        first.load(lane).await.unwrap();
        for id in ["1", "2", "2"] {
            first.park(lane, "k", id).await.unwrap();
        }
        let second = parked(&store).await;
        assert_eq!(second.rank(lane, "k", "9", false), Rank::Free, "it has not looked yet");
        second.load(lane).await.unwrap();
        for (id, is_copy, rank) in [
            ("1", true, Rank::First),
            ("1", false, Rank::Behind),
            ("2", true, Rank::Behind),
            ("3", false, Rank::Behind),
            ("0", true, Rank::Free),
        ] {
            assert_eq!(second.rank(lane, "k", id, is_copy), rank, "{id}");
        }
        assert_eq!(second.rank(lane, "other", "3", false), Rank::Free);
        second.release(lane, "k", "1").await.unwrap();
        assert_eq!(second.rank(lane, "k", "2", true), Rank::First);
        // The owner of before writes on what it does not know: it looks again.
        first.park(lane, "k", "4").await.unwrap();
        assert_eq!(first.rank(lane, "k", "2", true), Rank::First);
        second.release(lane, "k", "2").await.unwrap();
        second.release(lane, "k", "4").await.unwrap();
        assert_eq!(second.rank(lane, "k", "5", false), Rank::Free);
    }
}
