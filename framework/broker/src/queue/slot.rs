//! A value that one at a time holds: a queue with one message in it, whose holder stands at the head of its line. A channel's
//! record is in one, and the book of a lane.
//!
//! To write is to send a copy, to wait until it comes back, and to remove those before it. So there are several copies where a
//! holder went away in the midst of it: the last one counts. A queue without any says nothing about who stands where in its
//! line, so that whoever has waited for a while sends an empty copy, older than all others: it comes to who holds the slot.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use tokio::sync::Notify;

use crate::seats::next_epoch;
use tidegate_core::clock::Clock;
use tidegate_core::error::{Error, Result, code};

/// How long nothing comes before an empty copy is sent.
const ASK_AFTER: Duration = Duration::from_millis(50);
/// How long to wait for whoever holds it when the system takes nothing.
const BLOCKED: Duration = Duration::from_millis(500);
/// How long to wait for a copy that is there before it is looked again.
const LOOK: Duration = Duration::from_millis(10);
/// How long a copy that is there may take to come.
const COME: Duration = Duration::from_secs(5);
/// What an empty copy says of somebody who has less than a fair share.
const CALL: &[u8] = b"call";

/// Which of several copies is the last: the holder's number, then the copy's. What a holder of before sent and was stored late
/// does not come after what its successor wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number {
    holder: u64,
    copy: u64,
}

impl Number {
    /// The first of the next holder, now being microseconds since 1970.
    fn next_holder(self, now: i64) -> Self {
        Self { holder: next_epoch(self.holder, now), copy: 0 }
    }

    /// The next of the same holder.
    fn next(self) -> Self {
        Self { copy: self.copy.saturating_add(1), ..self }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.holder, self.copy)
    }
}

impl FromStr for Number {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let (holder, copy) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Self { holder: holder.parse()?, copy: copy.parse()? })
    }
}

/// A message in the queue of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Which it is: carried with the value. One of somebody else's is the default.
    pub number: Number,
    /// The value.
    pub value: Bytes,
    /// What the line it came over names it by.
    pub tag: u64,
}

/// A place in the line of a slot's queue. Dropped, it is left: what came over it goes back to the queue before the next one in
/// line gets anything. An error of a call means that the line is of no use any more, unless its code is `limit-reached`.
#[async_trait]
pub trait Line: Send {
    /// Waits for a copy, in the order of the queue; none comes before everybody who stood in line earlier is gone. Dropping the
    /// call loses nothing.
    async fn next(&mut self) -> Result<Copy>;

    /// How many copies are in the queue and have not come, of those that are this one's to get. At 0 all the others can be had
    /// from [`next`](Self::next) at once.
    async fn left(&mut self) -> Result<u64>;

    /// Sends a copy, and returns when it is stored. Dropped, it may be.
    ///
    /// # Errors
    /// `limit-reached` if the system takes nothing for now.
    async fn store(&mut self, number: Number, value: &[u8]) -> Result<()>;

    /// Removes copies that came.
    async fn remove(&mut self, tags: &[u64]) -> Result<()>;

    /// Leaves the line, and returns when the next one may have the slot.
    async fn leave(self: Box<Self>) -> Result<()>;
}

/// A slot that is held, as long as this is not dropped.
pub(super) struct Slot {
    line: Box<dyn Line>,
    clock: Arc<dyn Clock>,
    /// What came and was not removed.
    came: Vec<Copy>,
    /// The copy that counts, and the one that is written next.
    number: Number,
    next: Number,
    value: Bytes,
}

impl Slot {
    /// Waits until it is one's turn, at most for so long. Meanwhile whoever holds it is told of each call.
    ///
    /// # Errors
    /// `unreachable` if somebody else holds it all that time, `limit-reached` if that cannot be found out: nothing was ever
    /// written, and the system takes nothing now. Nothing was done.
    pub(super) async fn take(
        mut line: Box<dyn Line>,
        clock: Arc<dyn Clock>,
        mut limit: Option<Duration>,
        call: &Notify,
    ) -> Result<Self> {
        let begin = clock.elapsed();
        let mut blocked = None;
        let mut has_asked = false;
        let first = loop {
            let waited = clock.elapsed().saturating_sub(begin);
            if limit.is_some_and(|limit| waited >= limit) {
                return Err(blocked.unwrap_or_else(|| {
                    let text = "it is held by somebody who does not give it back";
                    Error::new(code::UNREACHABLE, text).hint(
                        "whoever holds it loses it when its connection ends: look at the consumers of its queue",
                    )
                }));
            }
            let pause =
                if has_asked { limit.map_or(Duration::MAX, |limit| limit - waited) } else { ASK_AFTER };
            let asked: &[u8] = tokio::select! {
                biased;
                copy = line.next() => break copy?,
                () = call.notified() => CALL,
                () = clock.sleep(pause), if pause < Duration::MAX => b"",
            };
            if has_asked && asked.is_empty() {
                continue;
            }
            match line.store(Number::default(), asked).await {
                Ok(()) => has_asked = true,
                Err(error) if error.code() == code::LIMIT_REACHED => {
                    // Whoever holds it may give it back still.
                    blocked.get_or_insert(error);
                    limit = limit.map(|limit| limit.min(clock.elapsed().saturating_sub(begin) + BLOCKED));
                }
                Err(error) => return Err(error),
            }
        };
        let number = Number::default();
        let mut slot = Self { line, clock, came: vec![first], number, next: number, value: Bytes::new() };
        slot.gather().await?;
        slot.number = slot.came.iter().map(|copy| copy.number).max().unwrap_or_default();
        slot.next = slot.number.next_holder(slot.clock.now());
        let last = slot.came.iter().find(|copy| copy.number == slot.number);
        // An empty one of somebody who asked may say that he called.
        if slot.number > Number::default() {
            slot.value = last.map(|copy| copy.value.clone()).unwrap_or_default();
        }
        slot.tidy().await?;
        Ok(slot)
    }

    /// The number of whoever holds it: higher than those of all before who have written.
    pub(super) fn holder(&self) -> u64 {
        self.next.holder
    }

    /// Writes what stands in it once more: from then on every later holder's number is higher than this one's.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(super) async fn sign(&mut self) -> Result<()> {
        self.write(self.value.clone()).await
    }

    /// What was written last; empty if nothing was.
    pub(super) fn value(&self) -> &[u8] {
        &self.value
    }

    /// Writes another value in the place of this one.
    ///
    /// # Errors
    /// `limit-reached` if the system takes nothing for now: the slot is held still, and the value may be written later, or now.
    /// After any other error it may have been written, and the slot is not held any more.
    pub(super) async fn write(&mut self, value: Bytes) -> Result<()> {
        let number = self.next;
        self.next = number.next();
        self.line.store(number, &value).await?;
        let until = self.clock.elapsed() + COME;
        while self.came.iter().all(|copy| copy.number != number) {
            self.wait(until).await?;
        }
        (self.number, self.value) = (number, value);
        self.tidy().await
    }

    /// Waits for what others send: whether it is a call of somebody in line. It is to be tidied then. Dropping the call loses
    /// nothing.
    pub(super) async fn sent(&mut self) -> Result<bool> {
        let copy = self.line.next().await?;
        let is_call = copy.number == Number::default() && copy.value == CALL;
        self.came.push(copy);
        Ok(is_call)
    }

    /// Gives it back.
    pub(super) async fn leave(self) -> Result<()> {
        self.line.leave().await
    }

    /// Takes everything that is in the queue.
    async fn gather(&mut self) -> Result<()> {
        let until = self.clock.elapsed() + COME;
        while self.line.left().await? > 0 {
            let look = self.clock.elapsed() + LOOK;
            match self.wait(look).await {
                Err(error) if error.code() == code::TIMED_OUT && self.clock.elapsed() < until => {}
                came => came?,
            }
        }
        while let Some(copy) = self.line.next().now_or_never() {
            self.came.push(copy?);
        }
        Ok(())
    }

    /// Waits for a copy.
    async fn wait(&mut self, until: Duration) -> Result<()> {
        let rest = until.saturating_sub(self.clock.elapsed());
        tokio::select! {
            biased;
            copy = self.line.next() => self.came.push(copy?),
            () = self.clock.sleep(rest) => {
                return Err(Error::new(code::TIMED_OUT, "a copy of a value that is there did not come in time"));
            }
        }
        Ok(())
    }

    /// Removes all copies but the one that counts.
    pub(super) async fn tidy(&mut self) -> Result<()> {
        if self.came.iter().any(|copy| copy.number > self.number && copy.number.holder > self.next.holder) {
            // Stop rather than go on beside whoever that is.
            let text = "somebody else has written what is held here";
            return Err(Error::new(code::CONNECTION_LOST, text));
        }
        let kept = self.came.iter().position(|copy| copy.number == self.number);
        let is_kept = |at: usize| Some(at) == kept;
        let old = self.came.iter().enumerate().filter(|(at, _)| !is_kept(*at));
        let old: Vec<u64> = old.map(|(_, copy)| copy.tag).collect();
        if !old.is_empty() {
            self.line.remove(&old).await?;
            self.came.retain(|copy| !old.contains(&copy.tag));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;
    use tidegate_core::clock::SystemClock;

    #[test]
    fn copies_of_a_later_holder_are_later() {
        let numbers = ["0.0", "1.1", "1.10", "2.0"].map(|text| text.parse::<Number>().unwrap());
        assert!(numbers.is_sorted() && numbers.map(|number| number.to_string())[2] == "1.10");
        assert_eq!(
            (numbers[1].next_holder(0), numbers[1].next().to_string()),
            (numbers[3], "1.2".to_owned())
        );
        assert!("x".parse::<Number>().is_err());
    }

    /// A queue in memory: what is ready, who stands in line, and what the first of them has.
    #[derive(Default)]
    struct Queue {
        ready: VecDeque<(Number, Bytes)>,
        line: Vec<u64>,
        in_hand: VecDeque<Copy>,
        tags: u64,
        is_full: bool,
    }

    struct Place {
        queue: Arc<Mutex<Queue>>,
        me: u64,
    }

    impl Place {
        fn stand(queue: &Arc<Mutex<Queue>>) -> Box<Self> {
            let mut open = queue.lock().unwrap();
            open.tags += 1;
            let me = open.tags;
            open.line.push(me);
            Box::new(Self { queue: Arc::clone(queue), me })
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let mut queue = self.queue.lock().unwrap();
            if queue.line.first() == Some(&self.me) {
                while let Some(copy) = queue.in_hand.pop_back() {
                    queue.ready.push_front((copy.number, copy.value));
                }
            }
            queue.line.retain(|place| *place != self.me);
        }
    }

    #[async_trait]
    impl Line for Place {
        async fn next(&mut self) -> Result<Copy> {
            loop {
                {
                    let mut queue = self.queue.lock().unwrap();
                    if queue.line.first() == Some(&self.me)
                        && let Some((number, value)) = queue.ready.pop_front()
                    {
                        queue.tags += 1;
                        let copy = Copy { number, value, tag: queue.tags };
                        queue.in_hand.push_back(copy.clone());
                        return Ok(copy);
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }

        async fn left(&mut self) -> Result<u64> {
            Ok(self.queue.lock().unwrap().ready.len() as u64)
        }

        async fn store(&mut self, number: Number, value: &[u8]) -> Result<()> {
            let mut queue = self.queue.lock().unwrap();
            if queue.is_full {
                return Err(Error::new(code::LIMIT_REACHED, "it is full"));
            }
            queue.ready.push_back((number, Bytes::copy_from_slice(value)));
            Ok(())
        }

        async fn remove(&mut self, tags: &[u64]) -> Result<()> {
            self.queue.lock().unwrap().in_hand.retain(|copy| !tags.contains(&copy.tag));
            Ok(())
        }

        async fn leave(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    async fn take(queue: &Arc<Mutex<Queue>>, limit: Duration) -> Result<Slot> {
        Slot::take(Place::stand(queue), SystemClock::shared(), Some(limit), &Notify::new()).await
    }

    const LIMIT: Duration = Duration::from_millis(500);

    #[tokio::test]
    async fn one_at_a_time_holds_a_slot_that_nobody_has_written() {
        let queue = Arc::<Mutex<Queue>>::default();
        let (first, second) = tokio::join!(take(&queue, LIMIT), take(&queue, LIMIT));
        let mut first = first.unwrap();
        assert_eq!(second.err().map(|error| error.code()), Some(code::UNREACHABLE));
        assert!(first.value().is_empty());
        first.write(Bytes::from_static(b"1")).await.unwrap();
        let (second, ()) = tokio::join!(take(&queue, LIMIT), async { first.leave().await.unwrap() });
        assert_eq!(second.unwrap().value(), b"1");
        assert_eq!(queue.lock().unwrap().ready.len(), 1, "what those who waited sent is gone");
    }

    #[tokio::test]
    async fn the_last_copy_counts_however_they_were_left() {
        let queue = Arc::<Mutex<Queue>>::default();
        for (number, value) in
            [("1.1", "old"), ("1.2", "last"), ("0.0", ""), ("1.2", "twice"), ("1.0", "late")]
        {
            queue.lock().unwrap().ready.push_back((number.parse().unwrap(), value.into()));
        }
        let mut slot = take(&queue, LIMIT).await.unwrap();
        assert_eq!(slot.value(), b"last");
        assert_eq!(queue.lock().unwrap().in_hand.len(), 1);
        // One that its writer is not there any more to remove.
        queue.lock().unwrap().ready.push_back(("1.3".parse().unwrap(), "late".into()));
        slot.write(Bytes::from_static(b"new")).await.unwrap();
        drop(slot);
        assert_eq!(take(&queue, LIMIT).await.unwrap().value(), b"new");
    }

    #[tokio::test]
    async fn a_holder_is_told_who_calls() {
        let queue = Arc::<Mutex<Queue>>::default();
        let mut slot = take(&queue, LIMIT).await.unwrap();
        let call = Notify::new();
        let waiting = Slot::take(Place::stand(&queue), SystemClock::shared(), Some(LIMIT), &call);
        let told = async {
            assert!(!slot.sent().await.unwrap(), "who only waits does not call");
            call.notify_one();
            assert!(slot.sent().await.unwrap());
            slot.tidy().await.unwrap();
            slot.leave().await.unwrap();
        };
        let (taken, ()) = tokio::join!(waiting, told);
        assert!(taken.unwrap().value().is_empty());
    }

    #[tokio::test]
    async fn a_system_that_takes_nothing_is_told_where_nothing_was_written() {
        let queue = Arc::<Mutex<Queue>>::default();
        queue.lock().unwrap().is_full = true;
        let error = take(&queue, LIMIT).await.err();
        assert_eq!(error.map(|error| error.code()), Some(code::LIMIT_REACHED));
        queue.lock().unwrap().ready.push_back(("1.1".parse().unwrap(), "x".into()));
        let mut slot = take(&queue, LIMIT).await.unwrap();
        let written = slot.write(Bytes::from_static(b"y")).await.unwrap_err();
        assert_eq!((written.code(), slot.value()), (code::LIMIT_REACHED, &b"x"[..]));
        queue.lock().unwrap().is_full = false;
        slot.write(Bytes::from_static(b"y")).await.unwrap();
        assert_eq!(slot.value(), b"y");
    }

    /// Two hold one slot, which a system of queues must not let happen: the one that has lost it stops.
    #[tokio::test]
    async fn who_has_lost_a_slot_stops() {
        let queue = Arc::<Mutex<Queue>>::default();
        let mut first = take(&queue, LIMIT).await.unwrap();
        first.write(Bytes::from_static(b"1")).await.unwrap();
        queue.lock().unwrap().ready.push_back(("18446744073709551615.0".parse().unwrap(), "other".into()));
        assert_eq!(first.write(Bytes::from_static(b"2")).await.unwrap_err().code(), code::CONNECTION_LOST);
    }
}
