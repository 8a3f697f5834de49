//! Who has which lane of a subscription: a record that every member reads, and changes with what is its own to do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::seats::{Member, Seat, Step, next_epoch, steps};
use crate::settings::Settings;
use tidegate_core::lane::Lane;

/// How much longer than its owner believes a lane is left to it.
const LATE: Duration = Duration::from_millis(250);

/// The members of a subscription, and their seats.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seating {
    next: Member,
    /// How often each member has written: one that stands still is dead.
    members: BTreeMap<Member, u64>,
    seats: Vec<SeatRecord>,
}

/// One lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SeatRecord {
    owner: Option<Member>,
    epoch: u64,
    /// The owner is to give it up.
    asked: Option<Asked>,
}

/// A wish for a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    /// How long the owner may finish what it has in hand, from when it reads this.
    millis: u64,
    /// Rises when the owner takes more time.
    number: u64,
}

impl Asked {
    fn time(self) -> Duration {
        Duration::from_millis(self.millis)
    }
}

/// What a member has seen of the record, and when: by its own clock, so that no two clocks are compared.
#[derive(Debug, Default)]
pub(super) struct Watch {
    beats: BTreeMap<Member, (u64, Duration)>,
    asks: BTreeMap<(Lane, u64), (Asked, Duration)>,
}

/// A lane that the member knows to be its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mine {
    pub(super) epoch: u64,
    /// Nothing of it is in hand, and everything is written.
    pub(super) is_free: bool,
    /// Until when it is to be kept.
    pub(super) held_until: Duration,
}

/// A lane that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) lane: Lane,
    pub(super) epoch: u64,
    /// Its owner was gone, or did not give it up.
    pub(super) by_force: bool,
}

/// What a member did, once the record is written, and what it saw.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tended {
    pub(super) taken: Vec<Taken>,
    pub(super) given_up: Vec<Lane>,
    /// These are somebody else's, written or not.
    pub(super) lost: Vec<Lane>,
    /// These are to be given up, with when, written or not.
    pub(super) revoked: Vec<(Lane, Duration)>,
    /// There is something to write.
    pub(super) is_changed: bool,
}

impl Seating {
    pub(super) fn new(lanes: u32) -> Self {
        Self { next: 1, members: BTreeMap::new(), seats: (0..lanes).map(|_| SeatRecord::default()).collect() }
    }

    /// Makes a member.
    pub(super) fn join(&mut self) -> Member {
        let me = self.next;
        self.next += 1;
        self.members.insert(me, 0);
        me
    }

    /// Ends a membership: its seats are free.
    pub(super) fn leave(&mut self, me: Member) {
        self.members.remove(&me);
        for seat in self.seats.iter_mut().filter(|seat| seat.owner == Some(me)) {
            (seat.owner, seat.asked) = (None, None);
        }
    }

    /// Says that the member lives.
    pub(super) fn beat(&mut self, me: Member) {
        *self.members.entry(me).or_default() += 1;
    }

    /// Does what is a member's to do: gives up what it was asked for, takes what is free, asks for what it lacks, forgets
    /// who is dead.
    pub(super) fn tend(
        &mut self,
        me: Member,
        mine: &BTreeMap<Lane, Mine>,
        watch: &mut Watch,
        (elapsed, now): (Duration, i64),
        settings: &Settings,
    ) -> Tended {
        let mut tended = Tended { is_changed: !self.members.contains_key(&me), ..Tended::default() };
        self.members.entry(me).or_default();
        watch.see(self, elapsed);
        let dead: BTreeSet<Member> = self
            .members
            .keys()
            .copied()
            .filter(|member| *member != me && watch.silent_for(*member, elapsed) > settings.lease)
            .collect();
        self.members.retain(|member, _| !dead.contains(member));
        tended.is_changed |= !dead.is_empty();
        for (at, seat) in self.seats.iter_mut().enumerate() {
            let lane = lane(at);
            let known = mine.get(&lane);
            if seat.owner != Some(me) {
                tended.lost.extend(known.map(|_| lane));
                continue;
            }
            let Some(known) = known.filter(|known| known.epoch == seat.epoch) else {
                // Its own, and not known to it: an answer was lost. It is taken anew, under another epoch.
                tended.lost.extend(known.map(|_| lane));
                (seat.owner, seat.asked) = (None, None);
                tended.is_changed = true;
                continue;
            };
            let Some(asked) = seat.asked else { continue };
            let until = watch.asked_at(lane, seat.epoch).unwrap_or(elapsed) + asked.time();
            if known.is_free || until.max(known.held_until) <= elapsed {
                (seat.owner, seat.asked) = (None, None);
                tended.given_up.push(lane);
                tended.is_changed = true;
                continue;
            }
            if known.held_until > until {
                let left = known.held_until - elapsed;
                let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                seat.asked = Some(Asked { millis, number: asked.number + 1 });
                tended.is_changed = true;
            }
            tended.revoked.push((lane, until.max(known.held_until)));
        }
        let members: Vec<Member> = self.members.keys().copied().collect();
        // The steps want one time: that of the member's own clock.
        let time = |at: Duration| i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
        let seats: Vec<Seat> = self
            .seats
            .iter()
            .enumerate()
            .map(|(at, seat)| {
                let asked = seat.asked.map(|asked| {
                    let seen = watch.asked_at(lane(at), seat.epoch).unwrap_or(elapsed);
                    time(seen + asked.time() + LATE)
                });
                Seat { lane: lane(at), owner: seat.owner, epoch: seat.epoch, give_up_by: asked }
            })
            .collect();
        for step in steps(me, &members, &seats, time(elapsed)) {
            tended.is_changed = true;
            match step {
                Step::Take(lane) => {
                    let Some(seat) = self.seats.get_mut(lane.0 as usize) else { continue };
                    let by_force = seat.owner.is_some();
                    *seat = SeatRecord { owner: Some(me), epoch: next_epoch(seat.epoch, now), asked: None };
                    tended.taken.push(Taken { lane, epoch: seat.epoch, by_force });
                }
                Step::Ask(lane) => {
                    let Some(seat) = self.seats.get_mut(lane.0 as usize) else { continue };
                    let millis = u64::try_from(settings.grace.as_millis()).unwrap_or(u64::MAX);
                    seat.asked = Some(Asked { millis, number: 0 });
                }
            }
        }
        tended
    }
}

fn lane(at: usize) -> Lane {
    Lane(u32::try_from(at).unwrap_or(u32::MAX))
}

impl Watch {
    /// Notes what is new in a record.
    fn see(&mut self, seating: &Seating, elapsed: Duration) {
        self.beats.retain(|member, _| seating.members.contains_key(member));
        for (member, beat) in &seating.members {
            let seen = self.beats.entry(*member).or_insert((*beat, elapsed));
            if seen.0 != *beat {
                *seen = (*beat, elapsed);
            }
        }
        let asked: BTreeMap<(Lane, u64), Asked> = seating
            .seats
            .iter()
            .enumerate()
            .filter_map(|(at, seat)| Some(((lane(at), seat.epoch), seat.asked?)))
            .collect();
        self.asks.retain(|which, (seen, _)| asked.get(which) == Some(seen));
        for (which, asked) in asked {
            self.asks.entry(which).or_insert((asked, elapsed));
        }
    }

    fn silent_for(&self, member: Member, elapsed: Duration) -> Duration {
        self.beats.get(&member).map_or(Duration::ZERO, |(_, seen)| elapsed.saturating_sub(*seen))
    }

    fn asked_at(&self, lane: Lane, epoch: u64) -> Option<Duration> {
        self.asks.get(&(lane, epoch)).map(|(_, seen)| *seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        lease: Duration::from_secs(10),
        grace: Duration::from_secs(5),
        patience: Duration::from_secs(10),
    };

    /// A member with its own clock and its own knowledge.
    struct Me {
        number: Member,
        watch: Watch,
        lanes: BTreeMap<Lane, u64>,
        is_busy: bool,
        held_until: Duration,
        /// What its clock shows at zero.
        offset: Duration,
    }

    impl Me {
        fn join(seating: &mut Seating, offset: u64) -> Self {
            Self {
                number: seating.join(),
                watch: Watch::default(),
                lanes: BTreeMap::new(),
                is_busy: false,
                held_until: Duration::ZERO,
                offset: Duration::from_secs(offset),
            }
        }

        fn tend(&mut self, seating: &mut Seating, seconds: u64) -> Tended {
            self.tend_with(seating, seconds, &SETTINGS)
        }

        fn tend_with(&mut self, seating: &mut Seating, seconds: u64, settings: &Settings) -> Tended {
            let elapsed = self.offset + Duration::from_secs(seconds);
            let mine = |(lane, epoch): (&Lane, &u64)| {
                let (is_free, held_until) = (!self.is_busy, self.held_until);
                (*lane, Mine { epoch: *epoch, is_free, held_until })
            };
            let mine = self.lanes.iter().map(mine).collect();
            seating.beat(self.number);
            let tended = seating.tend(self.number, &mine, &mut self.watch, (elapsed, 0), settings);
            for lane in tended.given_up.iter().chain(&tended.lost) {
                self.lanes.remove(lane);
            }
            self.lanes.extend(tended.taken.iter().map(|taken| (taken.lane, taken.epoch)));
            tended
        }
    }

    #[test]
    fn one_takes_all_and_shares_when_another_one_comes() {
        let mut seating = Seating::new(4);
        let mut first = Me::join(&mut seating, 1_000);
        assert_eq!(first.tend(&mut seating, 0).taken.len(), 4);
        let mut second = Me::join(&mut seating, 0);
        assert!(second.tend(&mut seating, 1).taken.is_empty());
        assert_eq!(first.tend(&mut seating, 2).given_up.len(), 2);
        let taken = second.tend(&mut seating, 3).taken;
        assert!(taken.len() == 2 && taken.iter().all(|taken| !taken.by_force && taken.epoch == 2));
        assert!(!first.tend(&mut seating, 4).is_changed && !second.tend(&mut seating, 4).is_changed);
    }

    #[test]
    fn who_does_not_give_up_in_time_loses_it_and_who_asks_for_time_gets_it() {
        for held in [0, 20] {
            let mut seating = Seating::new(2);
            let mut first = Me::join(&mut seating, 50);
            first.tend(&mut seating, 0);
            first.is_busy = true;
            first.held_until = first.offset + Duration::from_secs(held);
            let mut second = Me::join(&mut seating, 0);
            second.tend(&mut seating, 1);
            let revoked = first.tend(&mut seating, 2).revoked;
            assert_eq!(revoked.len(), 1);
            let mut taken_at = None;
            for second_now in 3..40 {
                // The owner lives and does not look: it only beats.
                seating.beat(first.number);
                if let [taken] = second.tend(&mut seating, second_now).taken[..] {
                    assert!(taken.by_force);
                    taken_at.get_or_insert(second_now);
                }
            }
            // The one who asks counts from when it reads its wish: at 3.
            let right = if held == 0 { 3 + 5 + 1 } else { 3 + 18 + 1 };
            assert_eq!(taken_at, Some(right), "held for {held}");
            assert_eq!(first.tend(&mut seating, 41).lost.len(), 1);
        }
    }

    #[test]
    fn who_is_silent_for_a_lease_is_dead_whatever_the_clocks_say() {
        let mut seating = Seating::new(3);
        let mut first = Me::join(&mut seating, 1_000_000);
        first.tend(&mut seating, 0);
        let mut second = Me::join(&mut seating, 0);
        // Nobody has to give anything up before its lease is over.
        let patient = Settings { grace: Duration::from_secs(60), ..SETTINGS };
        for second_now in 0..=10 {
            assert!(second.tend_with(&mut seating, second_now, &patient).taken.is_empty());
        }
        let taken = second.tend_with(&mut seating, 11, &patient).taken;
        assert_eq!(taken.len(), 3);
        assert!(taken.iter().all(|taken| taken.by_force));
        // It wakes up.
        let tended = first.tend(&mut seating, 12);
        assert_eq!(tended.lost.len(), 3);
        assert!(tended.is_changed, "it is a member again");
    }

    #[test]
    fn what_an_answer_was_lost_of_is_taken_anew() {
        let mut seating = Seating::new(1);
        let mut me = Me::join(&mut seating, 0);
        me.tend(&mut seating, 0);
        me.lanes.clear();
        let tended = me.tend(&mut seating, 1);
        assert_eq!(tended.taken, [Taken { lane: Lane(0), epoch: 2, by_force: false }]);
    }

    #[test]
    fn who_leaves_leaves_free_seats() {
        let mut seating = Seating::new(2);
        let mut first = Me::join(&mut seating, 0);
        first.tend(&mut seating, 0);
        seating.leave(first.number);
        let mut second = Me::join(&mut seating, 0);
        assert!(second.tend(&mut seating, 0).taken.iter().all(|taken| !taken.by_force));
        let text = serde_json::to_string(&seating).unwrap();
        assert_eq!(serde_json::from_str::<Seating>(&text).unwrap(), seating);
    }
}
