//! Who reads which lane of a subscription, for brokers that decide it themselves.
//!
//! There is one seat a lane. Members take free seats until they have their share, and ask those who have more than
//! theirs to give some up. Nobody decides for the others: each member looks at the same table and does its own steps,
//! so that no leader is needed, and a member that is gone is only somebody whose seats are free.

use std::collections::BTreeMap;

use tidegate_core::lane::Lane;

/// The number of a member of a subscription.
pub type Member = u64;

/// The seat of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The lane.
    pub lane: Lane,
    /// Who has it.
    pub owner: Option<Member>,
    /// Rises with every taking: what was done under an earlier one is void.
    pub epoch: u64,
    /// When the owner has to have given it up, in microseconds since 1970, if it was asked to.
    pub give_up_by: Option<i64>,
}

impl Seat {
    /// A seat that nobody ever had.
    pub fn free(lane: Lane) -> Self {
        Self { lane, owner: None, epoch: 0, give_up_by: None }
    }
}

/// The epoch of the next ownership of a lane, behind one of `before`, now being microseconds since 1970. What is noted elsewhere
/// under an ownership is void under a later one, also where everything about earlier ones is forgotten: of a subscription that is
/// registered again, or of a broker that has taken the place of another one. So it is the time in
/// milliseconds, or more.
pub fn next_epoch(before: u64, now: i64) -> u64 {
    before.saturating_add(1).max(u64::try_from(now / 1_000).unwrap_or(0))
}

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Takes the seat, with an epoch of its own.
    Take(Lane),
    /// Asks its owner to give it up.
    Ask(Lane),
}

/// The steps of `me`, one of `members`, which are sorted and alive.
pub fn steps(me: Member, members: &[Member], seats: &[Seat], now: i64) -> Vec<Step> {
    let Ok(rank) = members.binary_search(&me) else { return Vec::new() };
    let share = |rank: usize| seats.len() / members.len() + usize::from(rank < seats.len() % members.len());
    let is_free = |seat: &&Seat| {
        seat.owner.is_none_or(|owner| members.binary_search(&owner).is_err())
            || seat.owner != Some(me) && seat.give_up_by.is_some_and(|by| by <= now)
    };
    let mut kept: BTreeMap<Member, Vec<Lane>> = BTreeMap::new();
    for seat in seats.iter().filter(|seat| seat.give_up_by.is_none()) {
        if let Some(owner) = seat.owner {
            kept.entry(owner).or_default().push(seat.lane);
        }
    }
    let mine = kept.get(&me).map_or(0, Vec::len);
    let wanted = share(rank).saturating_sub(mine);
    let mut steps: Vec<Step> =
        seats.iter().filter(is_free).take(wanted).map(|seat| Step::Take(seat.lane)).collect();
    if steps.len() < wanted {
        // Down to the owner's share and never below, so that it does not matter how many ask.
        for (rank, member) in members.iter().enumerate() {
            let lanes = kept.get(member).map_or(&[][..], Vec::as_slice);
            steps.extend(lanes.iter().skip(share(rank)).map(|lane| Step::Ask(*lane)));
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table on which everybody does their steps in turn.
    struct Table {
        seats: Vec<Seat>,
        members: Vec<Member>,
        now: i64,
    }

    impl Table {
        fn new(lanes: u32) -> Self {
            Self {
                seats: (0..lanes).map(|lane| Seat::free(Lane(lane))).collect(),
                members: Vec::new(),
                now: 0,
            }
        }

        fn seat(&mut self, lane: Lane) -> &mut Seat {
            &mut self.seats[lane.0 as usize]
        }

        /// Whether anybody did something. An owner that is asked gives up at once, if `polite`.
        fn round(&mut self, polite: bool) -> bool {
            let mut moved = false;
            self.now += 1;
            for me in self.members.clone() {
                for step in steps(me, &self.members, &self.seats, self.now) {
                    moved = true;
                    let by = self.now + 5;
                    match step {
                        Step::Take(lane) => {
                            let seat = self.seat(lane);
                            *seat =
                                Seat { owner: Some(me), epoch: seat.epoch + 1, give_up_by: None, ..*seat };
                        }
                        Step::Ask(lane) => {
                            let seat = self.seat(lane);
                            assert!(seat.give_up_by.is_none(), "nobody is asked twice");
                            seat.give_up_by = Some(by);
                        }
                    }
                }
                for seat in self.seats.iter_mut().filter(|seat| polite && seat.owner == Some(me)) {
                    if seat.give_up_by.is_some() {
                        (seat.owner, seat.give_up_by, moved) = (None, None, true);
                    }
                }
            }
            moved || self.seats.iter().any(|seat| seat.give_up_by.is_some())
        }

        fn settle(&mut self, polite: bool) -> Vec<usize> {
            for _ in 0..50 {
                if !self.round(polite) {
                    let count = |m: &Member| self.seats.iter().filter(|seat| seat.owner == Some(*m)).count();
                    return self.members.iter().map(count).collect();
                }
            }
            panic!("seats never come to rest: {:?}", self.seats);
        }
    }

    #[test]
    fn everybody_gets_their_share_whoever_comes_and_goes() {
        for polite in [true, false] {
            let mut table = Table::new(8);
            for (members, shares) in [
                (vec![1], vec![8]),
                (vec![1, 2], vec![4, 4]),
                (vec![1, 2, 3], vec![3, 3, 2]),
                (vec![2, 3], vec![4, 4]),
                (vec![2, 3, 4, 5, 6, 7, 8, 9, 10], vec![1, 1, 1, 1, 1, 1, 1, 1, 0]),
                (vec![10], vec![8]),
            ] {
                table.members = members;
                assert_eq!(table.settle(polite), shares, "members {:?}, polite {polite}", table.members);
            }
        }
    }

    #[test]
    fn nothing_moves_without_need() {
        let mut table = Table::new(4);
        table.members = vec![1, 2];
        table.settle(true);
        let before = table.seats.clone();
        table.settle(true);
        assert_eq!(table.seats, before);
    }

    /// The time in milliseconds, unless the one before was that already.
    #[test]
    fn epochs_rise_whatever_the_clock_says_and_whatever_is_forgotten() {
        let now = 1_700_000_000_000_999;
        for (before, now, epoch) in [
            (0, now, 1_700_000_000_000),
            (1_699_999_999_999, now, 1_700_000_000_000),
            (1_700_000_000_000, now, 1_700_000_000_001),
            (1_700_000_000_007, now, 1_700_000_000_008),
            (5, 0, 6),
            (0, -1, 1),
        ] {
            assert_eq!(next_epoch(before, now), epoch, "behind {before} at {now}");
        }
    }

    #[test]
    fn who_is_no_member_does_nothing() {
        assert!(steps(9, &[1, 2], &[Seat::free(Lane(0))], 0).is_empty());
    }
}
