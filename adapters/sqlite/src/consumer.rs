//! Takes messages from a subscription.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tidegate_broker::seats::{Member, steps};
use tidegate_broker::unsettled::{End, Given, Unsettled};
use tidegate_core::error::code;
use tidegate_core::port::{Attempt, Consumer, Delivery, Leftover, Settle, Signal, Token};
use tidegate_core::{Error, Lane, Position, Result, Subscription};
use tokio::sync::oneshot;

use crate::broker::Link;
use crate::broker::hand::{Hand, HandLane, SettleJob};
use crate::broker::membership::{Leave, Tend, table};
use crate::broker::read::{self, Kept};
use crate::broker::topology::Joined;
use crate::broker::writer::{micros, never_answered, pending, unsigned};
use crate::settle::SqliteSettle;

/// How many messages of a lane may be unsettled before no new ones are given.
const UNSETTLED_MAX: usize = 10_000;
/// How many messages that come again are taken at once.
const AGAIN_MAX: usize = 100;
/// How often to look for what other processes have done: often while something happens, seldom when nothing does.
const IDLE_MIN: Duration = Duration::from_millis(1);
const IDLE_MAX: Duration = Duration::from_millis(50);
/// How often at most, and at least, to look who has which lane.
const SEATS_MIN: Duration = Duration::from_millis(20);
const SEATS_MAX: Duration = Duration::from_millis(200);

/// What a consumer and its settlers know of its lanes.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) subscription: i64,
    lanes: Mutex<BTreeMap<Lane, Held>>,
    /// Lanes that a settler found to be lost, of which the consumer has not told yet.
    lost: Mutex<BTreeSet<Lane>>,
}

/// A lane that this consumer has.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) epoch: u64,
    pub(crate) unsettled: Unsettled,
    /// Another one is to have it.
    is_revoked: bool,
}

impl Shared {
    pub(crate) fn new(subscription: i64) -> Self {
        Self { subscription, lanes: Mutex::default(), lost: Mutex::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<Lane, Held>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets lanes that are somebody else's, or not as they are known here.
    pub(crate) fn lose(&self, lost: impl IntoIterator<Item = Lane>) {
        let mut lanes = self.lock();
        let known = lost.into_iter().filter(|lane| lanes.remove(lane).is_some());
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).extend(known);
    }

    /// What was lost since the last call.
    fn take_lost(&self) -> Vec<Lane> {
        let lost = std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner));
        lost.into_iter().collect()
    }

    fn in_hand(&self) -> usize {
        self.lock().values().map(|held| held.unsettled.in_hand()).sum()
    }

    /// Forgets all lanes, and says how much was in hand.
    pub(crate) fn cut_off(&self) -> usize {
        let in_hand = self.in_hand();
        self.lock().clear();
        in_hand
    }
}

pub(crate) struct SqliteConsumer {
    link: Arc<Link>,
    shared: Arc<Shared>,
    channel: i64,
    me: Member,
    subscription: Subscription,
    reader: SqliteConnection,
    /// What the file's version was when it was looked at last.
    version: i64,
    /// When the seats were looked at last.
    looked: Option<Duration>,
    is_gone: bool,
    is_closed: bool,
    turn: usize,
    // What a call has begun and a later one goes on with, should it be dropped.
    news: VecDeque<Signal>,
    again: Vec<(Lane, u64, Given)>,
    filling: Option<Filling>,
    ready: VecDeque<Delivery>,
}

/// Deliveries that are being noted as in hand.
struct Filling {
    deliveries: Vec<Delivery>,
    lanes: Vec<Lane>,
    answer: oneshot::Receiver<Result<BTreeSet<Lane>>>,
}

impl SqliteConsumer {
    pub(crate) fn new(
        link: Arc<Link>,
        shared: Arc<Shared>,
        joined: Joined,
        subscription: &Subscription,
        reader: SqliteConnection,
    ) -> Self {
        Self {
            link,
            shared,
            channel: joined.channel,
            me: unsigned(joined.member),
            subscription: subscription.clone(),
            reader,
            version: 0,
            looked: None,
            is_gone: false,
            is_closed: false,
            turn: 0,
            news: VecDeque::new(),
            again: Vec::new(),
            filling: None,
            ready: VecDeque::new(),
        }
    }

    /// What there is to say now, if there is anything.
    async fn step(&mut self, max: usize, out: &mut Vec<Delivery>) -> Result<Option<Signal>> {
        loop {
            self.finish_filling().await?;
            if self.is_gone {
                let text = format!("{} of {} is gone", self.subscription.name, self.subscription.channel);
                return Ok(Some(Signal::Cancelled(Error::new(code::SUBSCRIPTION_GONE, text))));
            }
            if self.hand_over(max, out) {
                return Ok(Some(Signal::Messages));
            }
            let lost = self.shared.take_lost();
            if !lost.is_empty() {
                self.looked = None;
                return Ok(Some(Signal::LanesLost(lost)));
            }
            if let Some(signal) = self.news.pop_front() {
                return Ok(Some(signal));
            }
            if self.link.is_closing() {
                return Ok(Some(Signal::Drained));
            }
            self.version = read::version(&mut self.reader).await?;
            if self.is_time_to_look() {
                self.look().await?;
                let has_lost = !self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
                if self.is_gone || has_lost || !self.news.is_empty() {
                    continue;
                }
            }
            self.fill(max).await?;
            if self.filling.is_none() {
                return Ok(None);
            }
        }
    }

    /// Gives what is ready, except what was lost meanwhile. What became ready for a call that was dropped may have been
    /// overtaken since, by an earlier message of its subject that is to come again: then it goes back, behind that.
    fn hand_over(&mut self, max: usize, out: &mut Vec<Delivery>) -> bool {
        let mut lanes = self.shared.lock();
        let (before, mut ends) = (out.len(), Vec::new());
        while out.len() - before < max
            && let Some(delivery) = self.ready.pop_front()
        {
            let Token { lane, epoch, number } = delivery.token;
            let Some(held) = lanes.get_mut(&lane).filter(|held| held.epoch == epoch) else { continue };
            if !held.unsettled.is_overtaken(number) {
                out.push(delivery);
            } else if let Some(place) = held.unsettled.end(number, End::Untried) {
                ends.push((lane, epoch, place, End::Untried));
            }
        }
        if !ends.is_empty() {
            let (channel, subscription) = (self.channel, self.shared.subscription);
            let now = self.link.clock.now();
            // Should there be no room for it, a crash would count an attempt that was none.
            self.link.tell(SettleJob { channel, subscription, me: self.me, ends, now });
        }
        out.len() > before
    }

    async fn finish_filling(&mut self) -> Result<()> {
        let Some(filling) = &mut self.filling else { return Ok(()) };
        let answer = (&mut filling.answer).await.unwrap_or_else(|_| Err(never_answered()));
        let Some(filling) = self.filling.take() else { return Ok(()) };
        match answer {
            Ok(lost) => {
                let is_here = |delivery: &Delivery| !lost.contains(&delivery.token.lane);
                self.ready.extend(filling.deliveries.into_iter().filter(is_here));
                self.shared.lose(lost);
                Ok(())
            }
            Err(error) => {
                // Whether it was noted or not: the lanes are taken anew, as they stand in the file.
                self.shared.lose(filling.lanes);
                Err(error)
            }
        }
    }

    fn is_time_to_look(&self) -> bool {
        let since = self.looked.map(|looked| self.link.clock.elapsed().saturating_sub(looked));
        since.is_none_or(|since| since >= SEATS_MIN)
    }

    /// Looks who has which lane, and does what has to be done about it.
    async fn look(&mut self) -> Result<()> {
        let now = self.link.clock.now();
        let (seats, members) = table(&mut self.reader, self.shared.subscription, now).await?;
        self.looked = Some(self.link.clock.elapsed());
        if seats.is_empty() {
            self.is_gone = true;
            self.shared.lock().clear();
            return Ok(());
        }
        let (mut lost, mut revoked, mut has_to_tend) = (BTreeSet::new(), Vec::new(), false);
        for seat in &seats {
            let mut lanes = self.shared.lock();
            let Some(held) = lanes.get_mut(&seat.lane) else {
                has_to_tend |= seat.owner == Some(self.me);
                continue;
            };
            if seat.owner != Some(self.me) || seat.epoch != held.epoch {
                lost.insert(seat.lane);
                continue;
            }
            let Some(by) = seat.give_up_by else { continue };
            has_to_tend |= by <= now || held.unsettled.in_hand() == 0;
            if !std::mem::replace(&mut held.is_revoked, true) {
                revoked.push((seat.lane, by));
            }
        }
        let has_lost = !lost.is_empty();
        self.shared.lose(lost);
        if let Some(until) = revoked.iter().map(|(_, by)| *by).min() {
            let lanes = revoked.iter().map(|(lane, _)| *lane).collect();
            self.news.push_back(Signal::LanesRevoked { lanes, until });
        }
        has_to_tend |= has_lost
            || members.binary_search(&self.me).is_err()
            || !steps(self.me, &members, &seats, now).is_empty();
        if has_to_tend { self.tend(now).await } else { Ok(()) }
    }

    async fn tend(&mut self, now: i64) -> Result<()> {
        let held = |(lane, held): (&Lane, &Held)| (*lane, (held.epoch, held.unsettled.in_hand() == 0));
        let held = self.shared.lock().iter().map(held).collect();
        let tended = self
            .link
            .ask(Tend {
                subscription: self.shared.subscription,
                me: self.me,
                held,
                now,
                until: now.saturating_add(micros(self.link.settings.lease)),
                grace: micros(self.link.settings.grace),
            })
            .await?;
        self.is_gone = tended.is_gone;
        let mut lanes = self.shared.lock();
        let mut lost = Vec::new();
        for lane in tended.given_up {
            if lanes.remove(&lane).is_some_and(|held| held.unsettled.in_hand() > 0) {
                lost.push(lane);
            }
        }
        let gained: Vec<Lane> = tended.taken.iter().map(|taken| taken.lane).collect();
        for taken in tended.taken {
            let unsettled = Unsettled::restore(taken.read_to, taken.entries);
            lanes.insert(taken.lane, Held { epoch: taken.epoch, unsettled, is_revoked: false });
        }
        drop(lanes);
        self.news.extend((!lost.is_empty()).then_some(Signal::LanesLost(lost)));
        self.news.extend((!gained.is_empty()).then_some(Signal::LanesGained(gained)));
        Ok(())
    }

    /// Takes what is there for this consumer in hand, as far as there is room.
    async fn fill(&mut self, max: usize) -> Result<()> {
        let now = self.link.clock.now();
        let mut room = self.subscription.window.saturating_sub(self.shared.in_hand()).min(max);
        // What comes again is taken out first, and kept here until it is noted.
        let mine: Vec<(Lane, u64, u64, usize)> = {
            let mut lanes = self.shared.lock();
            for (lane, held) in lanes.iter_mut().filter(|(_, held)| !held.is_revoked) {
                while room > 0
                    && self.again.len() < AGAIN_MAX
                    && let Some(given) = held.unsettled.again(now)
                {
                    self.again.push((*lane, held.epoch, given));
                    room -= 1;
                }
            }
            let is_open = |held: &Held| !held.is_revoked && held.unsettled.len() < UNSETTLED_MAX;
            let lane = |(lane, held): (&Lane, &Held)| {
                let free = UNSETTLED_MAX - held.unsettled.len();
                (*lane, held.epoch, held.unsettled.read_to(), free)
            };
            lanes.iter().filter(|(_, held)| is_open(held)).map(lane).collect()
        };
        let again = read::at(&mut self.reader, self.again.iter().map(|(_, _, given)| given.place)).await?;
        // A fair share of each lane first, beginning where the last call has not been; then whatever there is.
        self.turn = self.turn.wrapping_add(1);
        let (mut new, mut left) = (Vec::new(), room);
        let share = room.div_ceil(mine.len().max(1));
        for at in 0..mine.len() {
            let (lane, epoch, read_to, free) = mine[self.turn.wrapping_add(at) % mine.len()];
            let count = if mine.len() == 1 { left } else { share.max(left / (mine.len() - at)) };
            let count = count.min(left).min(free);
            if count > 0 {
                let kept = read::next(&mut self.reader, self.channel, lane, read_to, count).await?;
                left -= kept.len();
                new.push((lane, epoch, read_to, kept));
            }
        }
        if again.is_empty() && new.iter().all(|(.., kept)| kept.is_empty()) {
            return Ok(());
        }
        let permit = self.link.reserve().await?;
        // From here on nothing waits: what is taken in memory is noted in the file in the same order.
        let mut lanes = self.shared.lock();
        let mut hands: BTreeMap<Lane, HandLane> = BTreeMap::new();
        let mut deliveries = Vec::new();
        for (lane, epoch, given) in self.again.drain(..) {
            let is_mine = lanes.get(&lane).is_some_and(|held| held.epoch == epoch);
            let kept = again.binary_search_by_key(&given.place, |kept| kept.place);
            if let (true, Ok(at)) = (is_mine, kept) {
                hands.entry(lane).or_default().again.push(given.place);
                deliveries.push(delivery(lane, epoch, given, again[at].clone()));
            }
        }
        for (lane, epoch, read_to, kept) in new {
            let Some(held) = lanes.get_mut(&lane) else { continue };
            if held.epoch != epoch || held.unsettled.read_to() != read_to {
                continue;
            }
            for kept in kept {
                let given = held.unsettled.admit(kept.place, kept.message.subject.clone());
                hands.entry(lane).or_default().new.push((kept.place, given.is_some()));
                deliveries.extend(given.map(|given| delivery(lane, epoch, given, kept)));
            }
        }
        for (lane, hand) in &mut hands {
            if let Some(held) = lanes.get(lane) {
                (hand.epoch, hand.read_to) = (held.epoch, held.unsettled.read_to());
            }
        }
        let noted = hands.keys().copied().collect();
        let subscription = self.shared.subscription;
        let (job, answer) = pending(Hand { subscription, me: self.me, lanes: hands });
        permit.send(job);
        self.filling = Some(Filling { deliveries, lanes: noted, answer });
        Ok(())
    }

    /// When the next message that waits is due.
    fn next_due(&self) -> Option<i64> {
        let lanes = self.shared.lock();
        lanes.values().filter(|held| !held.is_revoked).filter_map(|held| held.unsettled.next_due()).min()
    }

    /// Waits until there may be something new, at most so long.
    async fn rest(&mut self, changed: impl Future<Output = ()>, most: Duration) -> Result<()> {
        let clock = Arc::clone(&self.link.clock);
        let mut changed = std::pin::pin!(changed);
        let (until, mut idle) = (clock.elapsed() + most, IDLE_MIN);
        let is_full = self.shared.in_hand() >= self.subscription.window;
        loop {
            let due =
                self.next_due().filter(|_| !is_full).map(|due| u64::try_from(due - clock.now()).unwrap_or(0));
            let left = until.saturating_sub(clock.elapsed());
            let look =
                self.looked.map_or(Duration::ZERO, |at| (at + SEATS_MAX).saturating_sub(clock.elapsed()));
            if left.is_zero() || look.is_zero() || due == Some(0) {
                return Ok(());
            }
            let due = due.map_or(left, Duration::from_micros);
            tokio::select! {
                () = &mut changed => return Ok(()),
                () = clock.sleep(idle.min(left).min(due).min(look)) => {}
            }
            if read::version(&mut self.reader).await? != self.version {
                return Ok(());
            }
            idle = (idle * 2).min(IDLE_MAX);
        }
    }

    /// Gives back what no call has returned. Nobody has seen it, so that nobody has to settle it.
    fn give_back(&mut self) {
        let unseen = self.filling.take().map(|filling| filling.deliveries).unwrap_or_default();
        let mut lanes = self.shared.lock();
        let again = self.again.drain(..).map(|(lane, epoch, given)| (lane, epoch, given.number));
        let ready = self.ready.drain(..).chain(unseen).map(|d| (d.token.lane, d.token.epoch, d.token.number));
        for (lane, epoch, number) in again.chain(ready) {
            if let Some(held) = lanes.get_mut(&lane).filter(|held| held.epoch == epoch) {
                held.unsettled.end(number, End::Untried);
            }
        }
    }
}

fn delivery(lane: Lane, epoch: u64, given: Given, kept: Kept) -> Delivery {
    Delivery {
        message: Arc::new(kept.message),
        token: Token { lane, epoch, number: given.number },
        attempt: Attempt::Exact(given.attempts.saturating_add(1)),
        position: Some(Position::from_u64(kept.place)),
        stored_at: Some(kept.at),
    }
}

#[async_trait]
impl Consumer for SqliteConsumer {
    async fn receive(&mut self, max: usize, wait: Duration, out: &mut Vec<Delivery>) -> Result<Signal> {
        let clock = Arc::clone(&self.link.clock);
        let news = Arc::clone(&self.link.changed);
        let until = clock.elapsed() + wait;
        loop {
            // Listens before it looks, so that what comes in between is not missed.
            let mut changed = std::pin::pin!(news.notified());
            changed.as_mut().enable();
            self.link.check_file()?;
            if let Some(signal) = self.step(max, out).await? {
                return Ok(signal);
            }
            let left = until.saturating_sub(clock.elapsed());
            if left.is_zero() {
                return Ok(Signal::Messages);
            }
            self.rest(changed, left).await?;
        }
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::new(SqliteSettle::new(Arc::clone(&self.link), Arc::clone(&self.shared), self.channel, self.me))
    }

    async fn close(mut self: Box<Self>, deadline: Duration) -> Result<Leftover> {
        let clock = Arc::clone(&self.link.clock);
        let until = clock.elapsed() + deadline;
        self.give_back();
        loop {
            let news = Arc::clone(&self.link.changed);
            let mut changed = std::pin::pin!(news.notified());
            changed.as_mut().enable();
            let left = until.saturating_sub(clock.elapsed());
            if self.shared.in_hand() == 0 || left.is_zero() {
                break;
            }
            tokio::select! {
                () = changed => {}
                () = clock.sleep(left) => {}
            }
        }
        let released = self.shared.cut_off();
        self.is_closed = true;
        let left = self.link.ask(Leave { subscription: self.shared.subscription, me: self.me, tried: false });
        let left = left.await;
        self.link.leave(self.me);
        left.map(|()| Leftover { released })
    }
}

impl Drop for SqliteConsumer {
    /// A consumer that was not closed has crashed: what it had in hand was tried.
    fn drop(&mut self) {
        if !self.is_closed {
            self.shared.cut_off();
            self.link.tell(Leave { subscription: self.shared.subscription, me: self.me, tried: true });
            self.link.leave(self.me);
        }
    }
}
