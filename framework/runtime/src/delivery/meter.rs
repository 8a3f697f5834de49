//! What is measured of one channel of a service.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;
use prometheus_client::metrics::histogram::Histogram;
use tidegate_core::port::{Delivery, Token};

use super::counts::Counts;
use super::parked::Parked;
use crate::dead_letter::Reason;
use crate::trace::Place;

/// The upper bounds of how long handlers take, in seconds.
const SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0];

/// The reasons of dead letters, in the order in which they are counted.
const REASONS: [Reason; 6] = [
    Reason::Exhausted,
    Reason::Refused,
    Reason::Undecodable,
    Reason::Unhandled,
    Reason::Unclaimed,
    Reason::Behind,
];

/// What is measured of the messages that one handler gets.
#[derive(Debug)]
pub(crate) struct OfKind {
    pub(crate) handled: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) seconds: Histogram,
}

impl Default for OfKind {
    fn default() -> Self {
        Self { handled: AtomicU64::new(0), retried: AtomicU64::new(0), seconds: Histogram::new(SECONDS) }
    }
}

/// What is measured of one channel of a service, in this process.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) place: Arc<Place>,
    pub(crate) counts: Counts,
    /// By the kinds that have a handler of their own: what comes in a message makes no new ones.
    kinds: HashMap<&'static str, OfKind>,
    others: OfKind,
    dead: [AtomicU64; REASONS.len()],
    in_hand: Mutex<Vec<Weak<InHand>>>,
    parked: Option<Arc<Parked>>,
}

impl Meter {
    pub(crate) fn new(
        place: Arc<Place>,
        kinds: impl Iterator<Item = &'static str>,
        parked: Option<Arc<Parked>>,
    ) -> Self {
        Self {
            place,
            counts: Counts::default(),
            kinds: kinds.map(|kind| (kind, OfKind::default())).collect(),
            others: OfKind::default(),
            dead: Default::default(),
            in_hand: Mutex::default(),
            parked,
        }
    }

    pub(crate) fn handled(&self, kind: &str) {
        self.counts.handled();
        self.of(kind).handled.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn retried(&self, kind: &str) {
        self.counts.retried();
        self.of(kind).retried.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn took(&self, kind: &str, time: Duration) {
        self.of(kind).seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn dead(&self, reason: Reason) {
        self.counts.dead();
        if let Some(at) = REASONS.iter().position(|known| *known == reason) {
            self.dead[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn of(&self, kind: &str) -> &OfKind {
        self.kinds.get(kind).unwrap_or(&self.others)
    }

    /// What is measured by kind; what no handler names is `other`.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (&'static str, &OfKind)> {
        let mut kinds: Vec<_> = self.kinds.iter().map(|(kind, of)| (*kind, of)).collect();
        kinds.sort_by_key(|(kind, _)| *kind);
        kinds.into_iter().chain([("other", &self.others)])
    }

    /// Dead letters by their reasons.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REASONS.iter().zip(&self.dead).map(|(reason, count)| (reason.word(), count.load(Ordering::Relaxed)))
    }

    /// What a member notes its deliveries in, for as long as it lives.
    pub(crate) fn in_hand(&self) -> Arc<InHand> {
        let (member, mut members) = (Arc::default(), lock(&self.in_hand));
        members.retain(|member| member.strong_count() > 0);
        members.push(Arc::downgrade(&member));
        member
    }

    /// How many messages are in hand, and when the oldest of them was stored.
    pub(crate) fn unsettled(&self) -> (usize, Option<i64>) {
        let members: Vec<_> = lock(&self.in_hand).iter().filter_map(Weak::upgrade).collect();
        members.iter().fold((0, None), |(count, oldest), member| {
            let in_hand = lock(&member.0);
            (count + in_hand.len(), oldest.into_iter().chain(in_hand.values().copied().min()).min())
        })
    }

    /// Whether a delivery is in hand of a member.
    pub(crate) fn has_in_hand(&self, token: Token) -> bool {
        let members: Vec<_> = lock(&self.in_hand).iter().filter_map(Weak::upgrade).collect();
        members.iter().any(|member| lock(&member.0).contains_key(&token))
    }

    /// How many subjects wait behind a dead letter.
    pub(crate) fn subjects_parked(&self) -> usize {
        self.parked.as_ref().map_or(0, |parked| parked.subjects())
    }
}

/// What is in hand of one member, and since when.
#[derive(Debug, Default)]
pub(crate) struct InHand(Mutex<HashMap<Token, i64, RandomState>>);

impl InHand {
    /// It came. How old it is is told by when it was stored, if that is known.
    pub(super) fn take(&self, delivery: &Delivery, now: i64) {
        lock(&self.0).insert(delivery.token, delivery.stored_at.unwrap_or(now).min(now));
    }

    /// It is in hand no more.
    pub(super) fn settled(&self, token: Token) {
        lock(&self.0).remove(&token);
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}
