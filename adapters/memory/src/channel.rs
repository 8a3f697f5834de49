//! A channel: its messages by lane, and what each subscription has of them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;
use tidegate_broker::seats::{Member, Seat, Step, next_epoch, steps};
use tidegate_broker::unsettled::{End, Given, Place, Unsettled};
use tidegate_core::error::code;
use tidegate_core::port::{Attempt, Delivery, Token};
use tidegate_core::{Channel, Error, Keep, Lane, Message, Name, Position, Result, Start};
use tokio::sync::Notify;

/// How many of a channel's latest messages are known by their ids.
const IDS_MAX: usize = 100_000;
/// How many messages of a lane may be unsettled before no new ones are given.
const UNSETTLED_MAX: usize = 10_000;

/// What is known of one channel.
#[derive(Debug)]
pub(crate) struct ChannelState {
    pub(crate) channel: Channel,
    /// Something came, was settled, or changed hands.
    pub(crate) changed: Arc<Notify>,
    pub(crate) subscriptions: BTreeMap<Name, SubscriptionState>,
    lanes: Vec<BTreeMap<Place, Kept>>,
    messages: u64,
    bytes: u64,
    last: Place,
    /// The latest message that is not kept any more.
    removed_to: Place,
    ids: HashMap<Id, Place, RandomState>,
    ids_in_order: VecDeque<Id>,
}

/// Source and id: what makes two messages the same one.
type Id = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Kept {
    message: Arc<Message>,
    size: u64,
    at: i64,
}

/// What became of a message that is to be stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Stored {
        place: Place,
        duplicate: bool,
    },
    /// There is no room now.
    Full,
}

impl ChannelState {
    pub(crate) fn new(channel: &Channel) -> Self {
        Self {
            lanes: (0..channel.lanes).map(|_| BTreeMap::new()).collect(),
            channel: channel.clone(),
            changed: Arc::default(),
            subscriptions: BTreeMap::new(),
            messages: 0,
            bytes: 0,
            last: 0,
            removed_to: 0,
            ids: HashMap::default(),
            ids_in_order: VecDeque::new(),
        }
    }

    /// How many messages are kept.
    pub(crate) fn messages(&self) -> u64 {
        self.messages
    }

    pub(crate) fn put(&mut self, message: &Message, now: i64) -> Result<Put> {
        if self.subscriptions.is_empty() && self.channel.keep == Keep::UntilSettled {
            return Err(Error::new(
                code::SUBSCRIPTION_MISSING,
                format!(
                    "channel {} has no subscription, and keeps nothing for later ones",
                    self.channel.name
                ),
            ));
        }
        let id = (Arc::clone(&message.source), message.dedupe_id());
        if let Some(place) = self.ids.get(&id) {
            return Ok(Put::Stored { place: *place, duplicate: true });
        }
        let size = message.size() as u64;
        if size > self.channel.bytes_max {
            return Err(Error::new(
                code::BODY_TOO_LARGE,
                format!("the message is larger than all that channel {} may keep", self.channel.name),
            ));
        }
        if !self.has_room(size) {
            self.drop_old(now);
            if !self.has_room(size) {
                return Ok(Put::Full);
            }
        }
        self.last += 1;
        (self.messages, self.bytes) = (self.messages + 1, self.bytes + size);
        let lane = message.lane(self.channel.lanes);
        let kept = Kept { message: Arc::new(message.clone()), size, at: now };
        self.lanes[lane.0 as usize].insert(self.last, kept);
        self.ids.insert(id.clone(), self.last);
        self.ids_in_order.push_back(id);
        if self.ids_in_order.len() > IDS_MAX
            && let Some(oldest) = self.ids_in_order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        Ok(Put::Stored { place: self.last, duplicate: false })
    }

    fn has_room(&self, size: u64) -> bool {
        self.messages < self.channel.messages_max && self.bytes + size <= self.channel.bytes_max
    }

    /// The place behind which something new begins.
    pub(crate) fn place(&self, start: &Start) -> Result<Place> {
        Ok(match start {
            Start::Earliest => 0,
            Start::Latest => self.last,
            Start::After(position) => {
                let place = position.to_u64().unwrap_or(0);
                if place < self.removed_to || place > self.last {
                    return Err(Error::new(
                        code::POSITION_GONE,
                        format!("channel {} cannot begin after position {position}", self.channel.name),
                    )
                    .with("position", position));
                }
                place
            }
        })
    }

    /// The next messages of a lane behind a place, with when each was stored.
    pub(crate) fn next(&self, lane: Lane, after: Place) -> impl Iterator<Item = (Place, &Message, i64)> {
        let kept = self.lanes.get(lane.0 as usize).into_iter().flat_map(move |kept| kept.range(after + 1..));
        kept.map(|(place, kept)| (*place, &*kept.message, kept.at))
    }

    /// Registers a subscription, if it is not.
    pub(crate) fn register(&mut self, name: &Name, start: &Start, generation: u64) -> Result<()> {
        if self.subscriptions.contains_key(name) {
            return Ok(());
        }
        let read_to = self.place(start)?;
        let state = SubscriptionState {
            generation,
            members: BTreeMap::new(),
            seats: (0..self.channel.lanes).map(|lane| Seat::free(Lane(lane))).collect(),
            lanes: self.lanes.iter().map(|_| Unsettled::new(read_to)).collect(),
            held_until: vec![0; self.lanes.len()],
        };
        self.subscriptions.insert(name.clone(), state);
        Ok(())
    }

    /// Removes a subscription and what nobody else needs.
    pub(crate) fn unregister(&mut self, name: &Name, now: i64) {
        if self.subscriptions.remove(name).is_none() {
            return;
        }
        for lane in 0..self.lanes.len() {
            let places: Vec<Place> = self.lanes[lane].keys().copied().collect();
            places.into_iter().for_each(|place| self.drop_if_settled(lane, place, now));
        }
        self.changed.notify_waiters();
    }

    /// Forgets a message that every subscription has settled, if its time is over.
    fn drop_if_settled(&mut self, lane: usize, place: Place, now: i64) {
        let Some(kept) = self.lanes[lane].get(&place) else { return };
        let is_over = match self.channel.keep {
            Keep::UntilSettled => true,
            Keep::AtLeast(time) => kept.at.saturating_add(micros(time)) <= now,
        };
        let is_settled = |state: &SubscriptionState| {
            let lane = &state.lanes[lane];
            place <= lane.read_to() && lane.entry(place).is_none()
        };
        if is_over && self.subscriptions.values().all(is_settled) {
            self.bytes -= kept.size;
            self.messages -= 1;
            self.removed_to = self.removed_to.max(place);
            self.lanes[lane].remove(&place);
        }
    }

    /// Forgets what was kept for its time alone.
    fn drop_old(&mut self, now: i64) {
        if !matches!(self.channel.keep, Keep::AtLeast(_)) {
            return;
        }
        for lane in 0..self.lanes.len() {
            while let Some(place) = self.lanes[lane].keys().next().copied() {
                self.drop_if_settled(lane, place, now);
                if self.lanes[lane].contains_key(&place) {
                    break;
                }
            }
        }
    }

    /// Gives a member what is there for it, at most `max`.
    pub(crate) fn give(
        &mut self,
        name: &Name,
        member: Member,
        max: usize,
        window: usize,
        now: i64,
        out: &mut Vec<Delivery>,
    ) {
        self.drop_old(now);
        let Some(state) = self.subscriptions.get_mut(name) else { return };
        let mine: Vec<Seat> = state.seats_of(member).filter(|seat| seat.give_up_by.is_none()).collect();
        let room = window.saturating_sub(state.in_hand(member)).min(max);
        let end = out.len() + room;
        if mine.is_empty() || room == 0 {
            return;
        }
        // A fair share of each lane first, beginning where the last call has not been; then whatever there is.
        let Some(turn) = state.members.get_mut(&member) else { return };
        turn.turn += 1;
        let first = turn.turn;
        for share in [room.div_ceil(mine.len()), room] {
            for at in 0..mine.len() {
                let seat = mine[(first + at) % mine.len()];
                let at = seat.lane.0 as usize;
                let upto = end.min(out.len() + share);
                while out.len() < upto {
                    let lane = &mut state.lanes[at];
                    let Some(given) = lane.again(now).or_else(|| admit(lane, &self.lanes[at])) else { break };
                    let kept = &self.lanes[at][&given.place];
                    out.push(Delivery {
                        message: Arc::clone(&kept.message),
                        token: Token { lane: seat.lane, epoch: seat.epoch, number: given.number },
                        attempt: Attempt::Exact(given.attempts.saturating_add(1)),
                        position: Some(Position::from_u64(given.place)),
                        stored_at: Some(kept.at),
                    });
                }
            }
        }
    }

    /// Whether the delivery was in this member's hand.
    pub(crate) fn settle(
        &mut self,
        name: &Name,
        (member, generation): (Member, u64),
        token: Token,
        end: End,
        now: i64,
    ) -> bool {
        let Some(state) = self.subscriptions.get_mut(name) else { return false };
        let lane = token.lane.0 as usize;
        let holds = |seat: &Seat| seat.owner == Some(member) && seat.epoch == token.epoch;
        if state.generation != generation || !state.seats.get(lane).is_some_and(holds) {
            return false;
        }
        let place = state.lanes[lane].end(token.number, end);
        if let Some(place) = place
            && end == End::Done
        {
            self.drop_if_settled(lane, place, now);
        }
        place.is_some()
    }

    /// Keeps the lane of a delivery for its owner; whether the delivery is in this member's hand.
    pub(crate) fn hold(
        &mut self,
        name: &Name,
        (member, generation): (Member, u64),
        token: Token,
        until: i64,
    ) -> bool {
        let Some(state) = self.subscriptions.get_mut(name) else { return false };
        let lane = token.lane.0 as usize;
        let holds = |seat: &Seat| seat.owner == Some(member) && seat.epoch == token.epoch;
        let is_in_hand = state.generation == generation
            && state.seats.get(lane).is_some_and(holds)
            && state.lanes[lane].place(token.number).is_some();
        if is_in_hand {
            state.held_until[lane] = state.held_until[lane].max(until);
            if let Some(by) = &mut state.seats[lane].give_up_by {
                *by = until.max(*by);
            }
        }
        is_in_hand
    }
}

/// The next new message of a lane that need not wait, while there is room for what has to.
fn admit(lane: &mut Unsettled, messages: &BTreeMap<Place, Kept>) -> Option<Given> {
    while lane.len() < UNSETTLED_MAX {
        let (place, kept) = messages.range(lane.read_to() + 1..).next()?;
        if let Some(given) = lane.admit(*place, kept.message.subject.clone()) {
            return Some(given);
        }
    }
    None
}

/// A subscription.
#[derive(Debug)]
pub(crate) struct SubscriptionState {
    /// Tells a subscription from an earlier one of the same name.
    pub(crate) generation: u64,
    pub(crate) members: BTreeMap<Member, MemberState>,
    pub(crate) seats: Vec<Seat>,
    pub(crate) lanes: Vec<Unsettled>,
    /// Until when the owner of a lane asked to keep it.
    held_until: Vec<i64>,
}

/// What a member has not been told yet, and whose turn it is among its lanes.
#[derive(Debug, Default)]
pub(crate) struct MemberState {
    /// The connection it belongs to.
    pub(crate) connection: u64,
    pub(crate) reconnected: bool,
    pub(crate) lost: Vec<Lane>,
    pub(crate) gained: Vec<Lane>,
    pub(crate) revoked: Vec<(Lane, i64)>,
    turn: usize,
}

impl MemberState {
    pub(crate) fn new(connection: u64) -> Self {
        Self { connection, ..Self::default() }
    }
}

impl SubscriptionState {
    fn seats_of(&self, member: Member) -> impl Iterator<Item = Seat> {
        self.seats.iter().filter(move |seat| seat.owner == Some(member)).copied()
    }

    /// How many deliveries a member has in hand.
    pub(crate) fn in_hand(&self, member: Member) -> usize {
        self.seats_of(member).map(|seat| self.lanes[seat.lane.0 as usize].in_hand()).sum()
    }

    /// When something happens by itself: a message is due, or a seat has to be given up.
    pub(crate) fn next_time(&self, member: Member) -> Option<i64> {
        let due = self.seats_of(member).filter(|seat| seat.give_up_by.is_none());
        let due = due.filter_map(|seat| self.lanes[seat.lane.0 as usize].next_due());
        due.chain(self.seats.iter().filter_map(|seat| seat.give_up_by)).min()
    }

    /// Gives lanes up, takes and asks for others; whether anything changed.
    pub(crate) fn rebalance(&mut self, me: Member, now: i64, grace: i64) -> bool {
        let mut moved = false;
        for at in 0..self.seats.len() {
            let seat = self.seats[at];
            let Some(by) = seat.give_up_by.filter(|_| seat.owner == Some(me)) else { continue };
            if self.lanes[at].in_hand() == 0 || by <= now {
                self.vacate(at, End::Failed { due: now });
                moved = true;
            }
        }
        let members: Vec<Member> = self.members.keys().copied().collect();
        for step in steps(me, &members, &self.seats, now) {
            moved = true;
            match step {
                Step::Take(lane) => {
                    self.vacate(lane.0 as usize, End::Failed { due: now });
                    let seat = &mut self.seats[lane.0 as usize];
                    (seat.owner, seat.epoch) = (Some(me), next_epoch(seat.epoch, now));
                    if let Some(member) = self.members.get_mut(&me) {
                        member.gained.push(lane);
                    }
                }
                Step::Ask(lane) => {
                    let seat = &mut self.seats[lane.0 as usize];
                    let by = now.saturating_add(grace).max(self.held_until[lane.0 as usize]);
                    seat.give_up_by = Some(by);
                    let owner = seat.owner.and_then(|owner| self.members.get_mut(&owner));
                    if let Some(owner) = owner {
                        owner.revoked.push((lane, by));
                    }
                }
            }
        }
        moved
    }

    /// Frees a seat. Whatever is in hand ends, and its owner learns that it was lost.
    fn vacate(&mut self, at: usize, end: End) {
        let seat = &mut self.seats[at];
        let left = self.lanes[at].end_all(end);
        if let Some(owner) = seat.owner.take().and_then(|owner| self.members.get_mut(&owner)) {
            owner.gained.retain(|lane| *lane != seat.lane);
            owner.revoked.retain(|(lane, _)| *lane != seat.lane);
            if left > 0 {
                owner.lost.push(seat.lane);
            }
        }
        seat.give_up_by = None;
        self.held_until[at] = 0;
    }

    /// Ends a membership and says how many deliveries were in hand.
    pub(crate) fn leave(&mut self, member: Member, end: End) -> usize {
        let in_hand = self.in_hand(member);
        self.members.remove(&member);
        for at in 0..self.seats.len() {
            if self.seats[at].owner == Some(member) {
                self.vacate(at, end);
            }
        }
        in_hand
    }

    /// What a cut of the connection does: everything in hand of its members is void.
    pub(crate) fn cut(&mut self, connection: u64, now: i64) {
        for (member, state) in &mut self.members {
            if state.connection != connection {
                continue;
            }
            state.reconnected = true;
            for seat in self.seats.iter_mut().filter(|seat| seat.owner == Some(*member)) {
                self.lanes[seat.lane.0 as usize].end_all(End::Failed { due: now });
                seat.epoch += 1;
            }
        }
    }
}

pub(crate) fn micros(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
