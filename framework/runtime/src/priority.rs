//! Three levels of urgency: who sends says which, and who reads takes from them by shares.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_core::{Channel, Name, Result};
use tokio::sync::Notify;

/// How urgent messages are. Each level is a channel of its own beside the others: `orders.high`, `orders`, `orders.low`.
///
/// Where all three have messages, of 21 that are handled 16 are high, 4 are normal and 1 is low; where one has none, the others
/// share what it leaves. Order per subject holds within a level and not between them.
///
/// ```
/// use tidegate_core::Channel;
/// use tidegate_runtime::Priority;
///
/// let orders = Channel::new("orders")?;
/// assert_eq!(Priority::High.channel(&orders)?.name.as_str(), "orders.high");
/// assert_eq!(Priority::Normal.channel(&orders)?, orders);
/// # Ok::<(), tidegate_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Before the others.
    High,
    /// As most are.
    Normal,
    /// When there is room.
    Low,
}

impl Priority {
    /// All of them, the most urgent one first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The channel of the messages of this level.
    ///
    /// # Errors
    /// `config-invalid` if the channel's name leaves no room for the ending.
    pub fn channel(self, of: &Channel) -> Result<Channel> {
        let mut channel = of.clone();
        match self {
            Priority::High => channel.name = Name::new(format!("{}.high", of.name))?,
            Priority::Normal => {}
            Priority::Low => channel.name = Name::new(format!("{}.low", of.name))?,
        }
        Ok(channel)
    }
}

/// How many of a round a level has.
const SHARES: [u32; 3] = [16, 4, 1];

/// Whose turn it is among the levels that one member reads. They share what one of them would have alone: so many handlers at
/// once, so many a second.
#[derive(Debug)]
pub(crate) struct Turns {
    state: Mutex<State>,
    /// Wakes a level that had to wait.
    changed: [Notify; 3],
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    /// How many handlers of each level run.
    running: [usize; 3],
    /// What each has left of this round.
    left: [u32; 3],
    /// Who has messages and waits for a turn.
    waits: [bool; 3],
    /// When the next handler may be started, by the clock.
    start_at: Duration,
}

impl Turns {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: Mutex::new(State { left: SHARES, ..State::default() }),
            changed: Default::default(),
            limit,
        }
    }

    /// Asks for a turn: whether it is this level's. If it is not, the level is woken when it may be.
    fn ask(&self, level: usize) -> bool {
        let mut state = self.lock();
        state.waits[level] = true;
        if state.running.iter().sum::<usize>() >= self.limit {
            return false;
        }
        if state.left[level] == 0 {
            let others = (0..SHARES.len()).filter(|other| *other != level);
            if others.clone().any(|other| state.waits[other] && state.left[other] > 0) {
                // One of those has the turn.
                drop(state);
                others.for_each(|other| self.changed[other].notify_one());
                return false;
            }
            state.left = SHARES;
        }
        state.left[level] -= 1;
        state.running[level] += 1;
        true
    }

    /// This level has no use for a turn now.
    fn pass(&self, level: usize) {
        if std::mem::take(&mut self.lock().waits[level]) {
            self.wake(level);
        }
    }

    /// So many handlers of this level have ended.
    fn end(&self, level: usize, count: usize) {
        self.lock().running[level] -= count;
        self.wake(level);
    }

    fn wake(&self, but: usize) {
        let waits = self.lock().waits;
        let woken = (0..SHARES.len()).filter(|level| *level != but && waits[*level]);
        woken.for_each(|level| self.changed[level].notify_one());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One level's part in the turns. Dropping it gives back what it has.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) turns: Arc<Turns>,
    pub(crate) level: usize,
}

impl Part {
    pub(crate) fn ask(&self) -> bool {
        self.turns.ask(self.level)
    }

    pub(crate) fn pass(&self) {
        self.turns.pass(self.level);
    }

    pub(crate) fn end(&self) {
        self.turns.end(self.level, 1);
    }

    /// Returns when it may be its turn. Cancel safe.
    pub(crate) async fn changed(&self) {
        self.turns.changed[self.level].notified().await;
    }

    /// Has messages, and cannot take a turn yet.
    pub(crate) fn want(&self) {
        self.turns.lock().waits[self.level] = true;
    }

    /// How long all of them have to wait before the next handler is started.
    pub(crate) fn pause(&self, now: Duration) -> Option<Duration> {
        self.turns.lock().start_at.checked_sub(now).filter(|pause| !pause.is_zero())
    }

    /// A handler is started: the next one is not before `interval` is over.
    pub(crate) fn started(&self, now: Duration, interval: Duration) {
        let mut state = self.turns.lock();
        state.start_at = state.start_at.max(now.saturating_sub(interval)) + interval;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let running = self.turns.lock().running[self.level];
        self.turns.end(self.level, running);
        self.turns.pass(self.level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes turns, by asking in this order again and again: how many each level got.
    fn take(turns: &Turns, asking: &[usize], count: u32) -> [u32; 3] {
        let mut got = [0; 3];
        for level in asking.iter().cycle() {
            if got.iter().sum::<u32>() == count {
                break;
            }
            if turns.ask(*level) {
                got[*level] += 1;
                turns.end(*level, 1);
            }
        }
        got
    }

    #[test]
    fn who_waits_gets_its_share_and_what_others_leave() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let turns = Turns::new(4);
            // All of them wait before the first has a turn.
            order.iter().for_each(|level| turns.lock().waits[*level] = true);
            assert_eq!(take(&turns, &order, 210), [160, 40, 10], "{order:?}");
        }
        let turns = Turns::new(4);
        assert_eq!(take(&turns, &[2], 100), [0, 0, 100]);
        turns.pass(2);
        let [high, normal, _] = take(&turns, &[0, 1], 200);
        assert!((155..=165).contains(&high), "{high} and {normal}");
    }

    #[test]
    fn no_more_run_than_the_limit_says_and_who_goes_gives_back() {
        let turns = Arc::new(Turns::new(2));
        let part = |level| Part { turns: Arc::clone(&turns), level };
        let (high, low) = (part(0), part(2));
        assert!(low.ask() && low.ask() && !high.ask() && !low.ask());
        drop(low);
        assert!(high.ask() && high.ask() && !high.ask());
        high.end();
        assert!(high.ask());
    }
}
