//! Stores of timers with one bug each, around the one in memory. Each has to be caught by the case that is meant for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_conformance::{OpenTimers, TIMER_CASES};
use tidegate_core::port::{Due, Timer, Timers};
use tidegate_core::{FlowName, Result, Scope};
use tidegate_memory::MemoryStore;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    KeepsToItself,
    GivesTooEarly,
    GivesTheLatestFirst,
    HasNoLimit,
    HidesNothing,
    HidesForGood,
    FirstSettingStays,
    HiddenStaysHidden,
    EndsById,
    CancelPretends,
    CancelIsAlwaysTrue,
    FlowsAreOne,
}

/// Every bug and the case that is meant for it.
const BUGS: &[(Bug, &str)] = &[
    (Bug::KeepsToItself, "T1"),
    (Bug::GivesTooEarly, "T2"),
    (Bug::GivesTheLatestFirst, "T2"),
    (Bug::HasNoLimit, "T2"),
    (Bug::HidesNothing, "T3"),
    (Bug::HidesForGood, "T3"),
    (Bug::FirstSettingStays, "T4"),
    (Bug::HiddenStaysHidden, "T4"),
    (Bug::EndsById, "T5"),
    (Bug::CancelPretends, "T6"),
    (Bug::CancelIsAlwaysTrue, "T6"),
    (Bug::FlowsAreOne, "T7"),
];

/// Whose number it is, and until when an id is hidden.
#[derive(Debug, Default)]
struct Given {
    numbers: HashMap<u64, String>,
    hidden: HashMap<String, i64>,
}

/// Timers with a bug.
#[derive(Debug)]
struct Planted {
    bug: Bug,
    inner: MemoryStore,
    given: Arc<Mutex<Given>>,
}

impl Planted {
    fn flow(&self, flow: &FlowName) -> FlowName {
        let one = || FlowName::new("one").unwrap();
        if self.bug == Bug::FlowsAreOne { one() } else { flow.clone() }
    }
}

#[async_trait]
impl Timers for Planted {
    async fn put(&self, flow: &FlowName, timer: &Timer) -> Result<()> {
        let flow = self.flow(flow);
        if self.bug == Bug::FirstSettingStays && self.inner.cancel(&flow, &timer.id).await? {
            let first = Timer { at: 1_000, ..timer.clone() };
            return self.inner.put(&flow, &first).await;
        }
        self.inner.put(&flow, timer).await
    }

    async fn cancel(&self, flow: &FlowName, id: &str) -> Result<bool> {
        match self.bug {
            Bug::CancelPretends => Ok(true),
            Bug::CancelIsAlwaysTrue => self.inner.cancel(flow, id).await.map(|_| true),
            _ => self.inner.cancel(&self.flow(flow), id).await,
        }
    }

    async fn due(&self, flow: &FlowName, upto: i64, limit: usize, hide: Duration) -> Result<Vec<Due>> {
        let upto_us = if self.bug == Bug::GivesTooEarly { upto + 1 } else { upto };
        let limit = if self.bug == Bug::HasNoLimit { usize::MAX } else { limit };
        let hide = match self.bug {
            Bug::HidesNothing => Duration::ZERO,
            Bug::HidesForGood => Duration::MAX,
            _ => hide,
        };
        let mut due = self.inner.due(&self.flow(flow), upto_us, limit, hide).await?;
        if self.bug == Bug::GivesTheLatestFirst {
            due.reverse();
        }
        let Given { numbers, hidden } = &mut *self.given.lock().unwrap();
        numbers.extend(due.iter().map(|due| (due.number, due.timer.id.clone())));
        if self.bug == Bug::HiddenStaysHidden {
            due.retain(|due| hidden.get(&due.timer.id).is_none_or(|until| *until <= upto));
            hidden.extend(due.iter().map(|due| (due.timer.id.clone(), upto + 60_000_000)));
        }
        Ok(due)
    }

    async fn done(&self, flow: &FlowName, number: u64) -> Result<bool> {
        if self.bug == Bug::EndsById {
            let id = self.given.lock().unwrap().numbers.get(&number).cloned().unwrap_or_default();
            return self.inner.cancel(flow, &id).await;
        }
        self.inner.done(&self.flow(flow), number).await
    }
}

/// Whether a case holds.
async fn holds(open: OpenTimers, id: &str) -> bool {
    let case = *TIMER_CASES.iter().find(|case| case.id == id).unwrap();
    let mut task = Scope::new();
    task.spawn(async move {
        (case.run)(open, FlowName::new("shop").unwrap()).await;
        Ok(())
    });
    task.join().await.is_ok()
}

#[tokio::test]
async fn every_planted_bug_is_caught_and_every_case_has_one() {
    for case in TIMER_CASES {
        let store = MemoryStore::new("s");
        let sound: OpenTimers = Arc::new(move || (Arc::new(store.clone()), Arc::new(store.clone())));
        assert!(holds(sound, case.id).await, "{case:?}");
        assert!(BUGS.iter().any(|(_, id)| *id == case.id), "{case:?} has no bug that it catches");
    }
    for (bug, id) in BUGS {
        let (store, given) = (MemoryStore::new("s"), Arc::default());
        let planted: OpenTimers = Arc::new(move || {
            let inner = if *bug == Bug::KeepsToItself { MemoryStore::new("own") } else { store.clone() };
            (Arc::new(Planted { bug: *bug, inner, given: Arc::clone(&given) }), Arc::new(store.clone()))
        });
        assert!(!holds(planted, id).await, "{bug:?} is not caught by {id}");
    }
}
