//! Rows that the target lacks, until they were read again from the source and written.
//!
//! The target notes them with the batch that could not write them, so that none is lost with this process. A hole is
//! filled as a chunk is: its row is read at one instant, and written when the feed has passed that instant, unless a
//! newer change of it came in between; then it is read once more.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_core::Key;

/// Keys read again at the same time.
const READ_MAX: usize = 1_000;

/// A row that is kept out so often, for so long, is kept out for good: what is unique in the target is not in the
/// source. Where it is, the other row leaves with a change that is on its way.
const KEPT_OUT: (u32, Duration) = (10, Duration::from_secs(10));

/// A hole: its table, and its key in the source's encoding.
pub(crate) type Hole = (usize, Key);

#[derive(Debug)]
struct Wait {
    /// It is being read, or on its way to the target.
    under_way: bool,
    /// Not to be read before.
    due: Duration,
    /// How often it was kept out, and since when.
    kept_out: (u32, Duration),
}

/// The holes that a run knows.
#[derive(Debug, Default)]
pub(crate) struct Holes {
    waits: BTreeMap<Hole, Wait>,
    /// None is due before.
    idle_until: Duration,
}

impl Holes {
    pub(crate) fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.waits.len()
    }

    /// Takes one in. One that is under way already is filled by what is under way: it was read later.
    pub(crate) fn add(&mut self, hole: Hole, now: Duration) {
        self.idle_until = Duration::ZERO;
        self.waits.entry(hole).or_insert(Wait { under_way: false, due: now, kept_out: (0, now) });
    }

    /// Holes of one table that are to be read now, at least one and at most `limit` of that table. They are under way from
    /// here on.
    pub(crate) fn take(
        &mut self,
        now: Duration,
        limit: impl Fn(usize) -> usize,
    ) -> Option<(usize, Vec<Key>)> {
        if now < self.idle_until {
            return None;
        }
        self.idle_until =
            self.waits.values().filter(|w| !w.under_way).map(|w| w.due).min().unwrap_or(Duration::MAX);
        let is_due = |(_, wait): &(&Hole, &mut Wait)| !wait.under_way && wait.due <= now;
        let mut due = self.waits.iter_mut().filter(is_due).peekable();
        let table = due.peek()?.0.0;
        let taken = due.filter(|(hole, _)| hole.0 == table).take(limit(table).clamp(1, READ_MAX));
        let keys = taken.map(|(hole, wait)| {
            wait.under_way = true;
            hole.1.clone()
        });
        Some((table, keys.collect()))
    }

    /// What was read of these is of no use: they are to be read again.
    pub(crate) fn again(&mut self, table: usize, keys: Vec<Key>, due: Duration) {
        self.idle_until = self.idle_until.min(due);
        for key in keys {
            if let Some(wait) = self.waits.get_mut(&(table, key)) {
                (wait.under_way, wait.due) = (false, due);
            }
        }
    }

    /// These are holes no more.
    pub(crate) fn filled(&mut self, table: usize, keys: Vec<Key>) {
        for key in keys {
            self.waits.remove(&(table, key));
        }
    }

    /// These were kept out again. Gives one that is kept out for good.
    pub(crate) fn kept_out(
        &mut self,
        table: usize,
        keys: Vec<Key>,
        now: Duration,
        due: Duration,
    ) -> Option<Key> {
        self.idle_until = self.idle_until.min(due);
        let mut hopeless = None;
        for key in keys {
            let Some(wait) = self.waits.get_mut(&(table, key.clone())) else { continue };
            let (times, since) = &mut wait.kept_out;
            if *times == 0 {
                *since = now;
            }
            *times += 1;
            if *times >= KEPT_OUT.0 && now.saturating_sub(*since) >= KEPT_OUT.1 {
                hopeless = Some(key.clone());
            }
            (wait.under_way, wait.due) = (false, due);
        }
        hopeless
    }

    /// A table takes no part, or begins anew.
    pub(crate) fn forget(&mut self, table: usize) {
        self.waits.retain(|hole, _| hole.0 != table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Key {
        Key([0, 1, 0, 0, 0, 1, byte].into())
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_hole_is_read_until_it_is_filled() {
        let mut holes = Holes::default();
        holes.add((0, key(1)), at(0));
        holes.add((1, key(1)), at(0));
        assert_eq!(holes.take(at(0), |_| READ_MAX), Some((0, vec![key(1)])));
        holes.add((0, key(1)), at(0));
        assert_eq!(
            holes.take(at(0), |_| READ_MAX),
            Some((1, vec![key(1)])),
            "what is under way is not read twice"
        );
        assert_eq!(holes.take(at(0), |_| READ_MAX), None);
        holes.again(0, vec![key(1)], at(2));
        assert_eq!(holes.take(at(1), |_| READ_MAX), None, "not before its time");
        assert_eq!(holes.take(at(2), |_| READ_MAX), Some((0, vec![key(1)])));
        holes.filled(0, vec![key(1)]);
        holes.forget(1);
        assert!(holes.is_empty());
        (0..3).for_each(|byte| holes.add((0, key(byte)), at(3)));
        for byte in 0..3 {
            assert_eq!(
                holes.take(at(3), |_| 0),
                Some((0, vec![key(byte)])),
                "rows may be as large as a chunk"
            );
        }
    }

    #[test]
    fn only_what_is_kept_out_often_and_long_is_kept_out_for_good() {
        let mut holes = Holes::default();
        holes.add((0, key(1)), at(0));
        for times in 1..30 {
            assert_eq!(holes.kept_out(0, vec![key(1)], at(5), at(5)), None, "{times} times at once");
        }
        assert_eq!(holes.kept_out(0, vec![key(1)], at(15), at(15)), Some(key(1)));
        assert_eq!(holes.len(), 1, "it is still a hole");
    }
}
