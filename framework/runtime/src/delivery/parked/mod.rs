//! Subjects that have dead letters, and so are not handled: in the store, since whoever has their lane next has to know.
//!
//! Of each lane there is one record: the subjects, and of each which of its dead letters are dead still. A dead letter has a number,
//! the next one of its subject, and says it in a header; so a subject takes a line of the record, however many of its messages are
//! dead. Only the owner of the lane writes it, at the place of the lane where it changes: when a message becomes a dead letter, and
//! when a copy of one is met there again. So what is stored behind a dead letter is never handled before it, however late anybody
//! looks. The record has the epoch of its owner, who writes it when the lane is taken: an owner of before can change nothing any
//! more. What several ask for at once is written at once.

mod record;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidegate_core::error::code;
use tidegate_core::port::{StateStore, Token};
use tidegate_core::{Error, FlowName, Lane, Message, Name, Result};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use crate::dead_letter::Reason;
use crate::flow::flow;
use record::{Change, IsInHand, Letter, Place, Record};

/// How much of what a handler said is kept here.
const ERROR_CHARS: usize = 200;

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

/// What is known of a lane, as which version, and what is to be written of it next.
#[derive(Default)]
struct Known {
    record: Option<(u64, Record)>,
    asked: Vec<Asked>,
    /// One writes at a time.
    writing: Arc<tokio::sync::Mutex<()>>,
}

struct Asked {
    epoch: u64,
    change: Change,
    tell: oneshot::Sender<Result<Option<Place>>>,
}

/// The parked subjects of one subscription.
pub(crate) struct Parked {
    store: Arc<dyn StateStore>,
    flow: FlowName,
    channel: Name,
    lanes: Mutex<HashMap<Lane, Known>>,
    /// Whose subjects are counted here.
    ours: Mutex<HashSet<Lane>>,
}

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        if let Some(known) = self.lock().get_mut(&lane) {
            known.record = None;
        }
        self.change(lane, epoch, Change::Own, &|_| false).await?;
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
        let lanes = self.lock();
        let known =
            lanes.iter().filter(|(lane, _)| ours.contains(lane)).filter_map(|(_, k)| k.record.as_ref());
        known.map(|(_, record)| record.subjects.len()).sum()
    }

    /// What this message of a subject is to be. A copy is one that was replayed.
    pub(crate) fn rank(&self, lane: Lane, subject: &str, message: &Message, is_copy: bool) -> Rank {
        let behind =
            || Rank::Dead(Reason::Behind, "an earlier message of its subject is a dead letter".into());
        let lanes = self.lock();
        let record = lanes.get(&lane).and_then(|known| known.record.as_ref());
        let Some(parked) = record.and_then(|(_, record)| record.subjects.get(subject)) else {
            return Rank::Free;
        };
        if !is_copy {
            let is_it = |letter: &&Letter| *letter.id == *message.id && *letter.source == *message.source;
            // It was noted, and could not be published or settled.
            return match parked.open.iter().find(is_it) {
                Some(letter) => Rank::Dead(letter.reason, letter.error.clone()),
                None => behind(),
            };
        }
        match Place::of(message) {
            Some(place) if place.round == parked.round && place.number == parked.first => Rank::First,
            Some(place) if place.round == parked.round && !parked.is_gone(place.number) => behind(),
            // It was handled, and noted as that; that was not settled in time.
            Some(_) => Rank::Free,
            // Of a time when dead letters of the subject had no order.
            None => behind(),
        }
    }

    /// Notes that a message is a dead letter, and which one of its subject. It may be noted already.
    pub(crate) async fn park(
        &self,
        token: Token,
        subject: &str,
        message: &Message,
        is_copy: bool,
        (reason, error): (Reason, &str),
        is_in_hand: &IsInHand<'_>,
    ) -> Result<Option<Place>> {
        let error = if reason == Reason::Behind { "" } else { error };
        let letter = Letter {
            number: 0,
            source: message.source.to_string(),
            id: message.id.to_string(),
            reason,
            error: error.chars().take(ERROR_CHARS).collect(),
            token: Some(token),
        };
        let copy = if is_copy { Place::of(message) } else { None };
        let change = Change::Park { subject: subject.to_owned(), letter, copy };
        self.change(token.lane, token.epoch, change, is_in_hand).await
    }

    /// Notes that a message is none any more.
    pub(crate) async fn release(&self, token: Token, subject: &str, message: &Message) -> Result<()> {
        let change = Change::Release { subject: subject.to_owned(), copy: Place::of(message) };
        self.change(token.lane, token.epoch, change, &|_| true).await.map(drop)
    }

    /// Changes a record, as it is in the store, unless it has a later owner; together with what others ask for meanwhile.
    async fn change(
        &self,
        lane: Lane,
        epoch: u64,
        change: Change,
        is_in_hand: &IsInHand<'_>,
    ) -> Result<Option<Place>> {
        loop {
            let (tell, mut told) = oneshot::channel();
            let writing = {
                let mut lanes = self.lock();
                let known = lanes.entry(lane).or_default();
                known.asked.push(Asked { epoch, change: change.clone(), tell });
                Arc::clone(&known.writing)
            };
            let answered = tokio::select! {
                biased;
                answered = &mut told => answered,
                _turn = writing.lock() => match told.try_recv() {
                    Ok(answer) => Ok(answer),
                    Err(_) => {
                        let asked = self.lock().get_mut(&lane).map(|known| std::mem::take(&mut known.asked));
                        self.write(lane, asked.unwrap_or_default(), is_in_hand).await;
                        told.await
                    }
                },
            };
            // Who had it to write was dropped: nobody knows what came of that, and it may be asked for again.
            if let Ok(answer) = answered {
                return answer;
            }
        }
    }

    /// Writes what was asked for, and tells who asked.
    async fn write(&self, lane: Lane, asked: Vec<Asked>, is_in_hand: &IsInHand<'_>) {
        let (asked, answers) = match self.written(lane, &asked, is_in_hand).await {
            Ok(answers) => (asked, answers),
            Err(error) => {
                asked.into_iter().for_each(|asked| _ = asked.tell.send(Err(error.again())));
                return;
            }
        };
        asked.into_iter().zip(answers).for_each(|(asked, answer)| _ = asked.tell.send(answer));
    }

    async fn written(
        &self,
        lane: Lane,
        asked: &[Asked],
        is_in_hand: &IsInHand<'_>,
    ) -> Result<Vec<Result<Option<Place>>>> {
        let mut known = self.lock().get(&lane).and_then(|known| known.record.clone());
        let mut last = known.as_ref().map(|(_, record)| record.clone());
        loop {
            let (version, before) = match known.take() {
                Some(known) => known,
                None => {
                    let (version, mut record) = self.read(lane).await?;
                    if let Some(last) = last.take() {
                        record.remember(&last);
                    }
                    (version, record)
                }
            };
            let mut record = before.clone();
            let mut answers = Vec::with_capacity(asked.len());
            for Asked { epoch, change, .. } in asked {
                answers.push(if record.epoch > *epoch {
                    Err(Error::new(code::LEASE_LOST, format!("lane {} has another owner", lane.0)))
                } else {
                    record.epoch = *epoch;
                    Ok(record.change(change, is_in_hand))
                });
            }
            let version = if record == before {
                version
            } else {
                let text = serde_json::to_string(&record)
                    .map_err(|e| Error::new(code::INTERNAL, "a record cannot be written").because(e))?;
                match self.store.put(&self.flow, &self.key(lane), &text, version).await? {
                    Some(version) => version,
                    // Another owner, or a call of before whose answer was lost.
                    None => {
                        last = Some(before);
                        continue;
                    }
                }
            };
            if let Some(known) = self.lock().get_mut(&lane) {
                known.record = Some((version, record));
            }
            return Ok(answers);
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

    fn key(&self, lane: Lane) -> String {
        let channel = self.channel.as_str();
        let readable = &channel[..channel.len().min(50)];
        format!("parked/{}/{readable}/{:016x}", lane.0, xxh3_64(channel.as_bytes()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Lane, Known>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use async_trait::async_trait;
    use tidegate_core::port::{Lease, Store as _, Stored};
    use tidegate_memory::MemoryStore;

    use super::*;
    use crate::dead_letter::PLACE;

    const LANE: Lane = Lane(3);

    async fn parked(store: &MemoryStore, epoch: u64) -> Parked {
        let state = store.state().await.unwrap();
        let parked = Parked::new(state, "billing.eu-1", Name::new("orders").unwrap()).unwrap();
        parked.load(LANE, epoch).await.unwrap();
        parked
    }

    /// A delivery under an ownership.
    fn token(epoch: u64, number: u64) -> Token {
        Token { lane: LANE, epoch, number }
    }

    fn message(id: &str) -> Message {
        Message::with_id(id, "shop", "t")
    }

    /// The copy of a dead letter that is replayed.
    fn copy(id: &str, place: Place) -> Message {
        message(id).with_header(PLACE, place.to_string()).unwrap()
    }

    fn behind() -> Rank {
        Rank::Dead(Reason::Behind, "an earlier message of its subject is a dead letter".into())
    }

    /// Parks messages of the subject `k`, each in hand still.
    async fn park(parked: &Parked, epoch: u64, ids: &[&str]) -> Vec<Place> {
        let mut places = Vec::new();
        for (id, number) in ids.iter().zip(1..) {
            let why = (Reason::Refused, "no money");
            let place = parked.park(token(epoch, number), "k", &message(id), false, why, &|_| true).await;
            places.push(place.unwrap().unwrap());
        }
        places
    }

    #[tokio::test]
    async fn dead_letters_of_a_subject_are_let_go_in_their_order_and_the_next_owner_knows() {
        let store = MemoryStore::new("s");
        let first = parked(&store, 1).await;
        let places = park(&first, 1, &["1", "2", "3"]).await;
        assert_eq!(park(&first, 1, &["1", "2", "3"]).await, places, "noted again they are the same");
        let second = parked(&store, 2).await;
        for (message, is_copy, rank) in [
            (copy("1", places[0]), true, Rank::First),
            (copy("2", places[1]), true, behind()),
            (copy("3", places[2]), true, behind()),
            (message("1"), false, Rank::Dead(Reason::Refused, "no money".into())),
            (message("4"), false, behind()),
            (message("1"), true, behind()),
        ] {
            assert_eq!(second.rank(LANE, "k", &message, is_copy), rank, "{message:?}");
        }
        let other = Message::with_id("1", "crm", "t");
        assert_eq!(second.rank(LANE, "k", &other, false), behind(), "the same id is another message there");
        assert_eq!(second.rank(LANE, "other", &message("3"), false), Rank::Free);
        // One in the middle goes for ever; it is not tried, and keeps nobody waiting.
        second.release(token(2, 9), "k", &copy("2", places[1])).await.unwrap();
        assert_eq!(second.rank(LANE, "k", &copy("3", places[2]), true), behind());
        second.release(token(2, 9), "k", &copy("1", places[0])).await.unwrap();
        second.release(token(2, 9), "k", &copy("1", places[0])).await.unwrap();
        assert_eq!(second.rank(LANE, "k", &copy("1", places[0]), true), Rank::Free, "it was handled");
        assert_eq!(second.rank(LANE, "k", &copy("3", places[2]), true), Rank::First);
        second.release(token(2, 9), "k", &copy("3", places[2])).await.unwrap();
        assert_eq!(second.rank(LANE, "k", &message("5"), false), Rank::Free);
        // A copy of before is none of those that are dead now.
        let again = park(&second, 2, &["5"]).await;
        assert_eq!(second.rank(LANE, "k", &copy("1", places[0]), true), Rank::Free);
        second.release(token(2, 9), "k", &copy("1", places[0])).await.unwrap();
        assert_eq!(second.rank(LANE, "k", &copy("5", again[0]), true), Rank::First);
    }

    #[tokio::test]
    async fn an_owner_of_before_changes_nothing() {
        let store = MemoryStore::new("s");
        let first = parked(&store, 1).await;
        let second = parked(&store, 2).await;
        let why = (Reason::Refused, "late");
        let late = first.park(token(1, 1), "k", &message("1"), false, why, &|_| true).await;
        assert_eq!(late.unwrap_err().code(), code::LEASE_LOST);
        let place = park(&second, 2, &["2"]).await[0];
        let late = first.release(token(1, 1), "k", &copy("2", place)).await;
        assert_eq!(late.unwrap_err().code(), code::LEASE_LOST);
        assert_eq!(parked(&store, 3).await.rank(LANE, "k", &copy("2", place), true), Rank::First);
    }

    /// Found by killing a service with thousands of dead letters: one of which only the number was kept came again and was counted
    /// twice, and its subject waited for ever. And of these a later one was handled before an earlier one.
    #[tokio::test]
    async fn however_many_are_dead_each_is_known_and_a_subject_takes_no_more_room() {
        let store = MemoryStore::new("s");
        let first = parked(&store, 1).await;
        let ids: Vec<String> = (0..3_000).map(|id| id.to_string()).collect();
        let mut places = Vec::new();
        for (id, number) in ids.iter().zip(1..) {
            let why = (Reason::Behind, "");
            // The twenty before it are not settled yet.
            let is_in_hand = |token: Token| token.number + 20 >= number;
            let place = first.park(token(1, number), "k", &message(id), false, why, &is_in_hand).await;
            places.push(place.unwrap().unwrap());
        }
        let stored = store.state().await.unwrap().get(&first.flow, &first.key(LANE)).await.unwrap().unwrap();
        assert!(stored.value.len() < 2_000, "{}", stored.value.len());
        // The process dies, and what was not settled comes again.
        let second = parked(&store, 2).await;
        for (id, place) in ids.iter().zip(&places).skip(2_980) {
            let why = (Reason::Behind, "");
            let again = second.park(token(2, 1), "k", &message(id), false, why, &|_| true).await;
            assert_eq!(again.unwrap(), Some(*place));
        }
        assert_eq!(second.rank(LANE, "k", &copy("2999", places[2_999]), true), behind());
        for (id, place) in ids.iter().zip(&places) {
            let copy = copy(id, *place);
            assert_eq!(second.rank(LANE, "k", &copy, true), Rank::First, "{id}");
            second.release(token(2, 1), "k", &copy).await.unwrap();
        }
        assert_eq!(second.rank(LANE, "k", &message("new"), false), Rank::Free);
    }

    /// A store that takes its time, and counts what it writes.
    struct Slow {
        inner: Arc<dyn StateStore>,
        puts: AtomicUsize,
    }

    #[async_trait]
    impl StateStore for Slow {
        async fn get(&self, flow: &FlowName, key: &str) -> Result<Option<Stored>> {
            self.inner.get(flow, key).await
        }

        async fn put(&self, flow: &FlowName, key: &str, value: &str, expected: u64) -> Result<Option<u64>> {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.puts.fetch_add(1, Ordering::Relaxed);
            self.inner.put(flow, key, value, expected).await
        }

        async fn flows(&self) -> Result<Vec<FlowName>> {
            self.inner.flows().await
        }

        async fn forget(&self, flow: &FlowName) -> Result<()> {
            self.inner.forget(flow).await
        }

        async fn hold(&self, flow: &FlowName, holder: &str, time: Duration) -> Result<Lease> {
            self.inner.hold(flow, holder, time).await
        }

        async fn release(&self, flow: &FlowName, holder: &str) -> Result<()> {
            self.inner.release(flow, holder).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_meanwhile_is_written_together_also_if_who_writes_is_dropped() {
        let inner = MemoryStore::new("s").state().await.unwrap();
        let slow = Arc::new(Slow { inner, puts: AtomicUsize::new(0) });
        let store = Arc::clone(&slow) as Arc<dyn StateStore>;
        let parked = Parked::new(store, "billing", Name::new("orders").unwrap()).unwrap();
        parked.load(LANE, 1).await.unwrap();
        let park = async |subject: u64| {
            let why = (Reason::Refused, "no money");
            let subject = subject.to_string();
            parked.park(token(1, 1), &subject, &message("1"), false, why, &|_| true).await.unwrap()
        };
        let all = futures::future::join_all((0..100).map(park));
        let dropped = async {
            tokio::select! {
                _ = park(1_000) => panic!("it takes a while"),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
        };
        let (_, places) = futures::join!(dropped, all);
        assert!(places.iter().all(Option::is_some));
        assert!(slow.puts.load(Ordering::Relaxed) <= 4, "{}", slow.puts.load(Ordering::Relaxed));
        assert!(parked.subjects() >= 100);
    }
}
