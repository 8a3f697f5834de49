//! What a store of timers has to do.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use tidegate_core::FlowName;
use tidegate_core::port::{Due, StateStore, Timer, Timers};

/// A store, opened once more: its timers, and the records beside them.
pub type OpenTimers = Arc<dyn Fn() -> (Arc<dyn Timers>, Arc<dyn StateStore>) + Send + Sync>;

/// One rule of the contract.
#[derive(Clone, Copy)]
pub struct TimerCase {
    /// What it is called.
    pub id: &'static str,
    /// The rule.
    pub rule: &'static str,
    /// Panics if the store breaks the rule.
    pub run: fn(OpenTimers, FlowName) -> BoxFuture<'static, ()>,
}

impl std::fmt::Debug for TimerCase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.id, self.rule)
    }
}

/// Every rule of the contract of `Timers`.
pub const TIMER_CASES: &[TimerCase] = &[
    case("T1", "a timer that was put is seen by whoever opens the store", |open, flow| {
        seen(open, flow).boxed()
    }),
    case("T2", "what is due comes the earliest first, not too early and not too much", |open, flow| {
        order(open, flow).boxed()
    }),
    case("T3", "what was given is hidden for a while, and then comes again", |open, flow| {
        hidden(open, flow).boxed()
    }),
    case("T4", "what is put again is another setting", |open, flow| again(open, flow).boxed()),
    case("T5", "an owner of before ends nothing that was put later", |open, flow| fenced(open, flow).boxed()),
    case("T6", "what was cancelled does not come", |open, flow| cancelled(open, flow).boxed()),
    case("T7", "flows are apart, and are forgotten with their timers", |open, flow| {
        apart(open, flow).boxed()
    }),
];

const fn case(
    id: &'static str,
    rule: &'static str,
    run: fn(OpenTimers, FlowName) -> BoxFuture<'static, ()>,
) -> TimerCase {
    TimerCase { id, rule, run }
}

/// Runs all of them.
///
/// # Panics
/// If the store breaks its contract.
pub async fn keeps_timers(open: OpenTimers) {
    for case in TIMER_CASES {
        let flow = FlowName::new(format!("timers_{}", case.id.to_lowercase())).expect("a good name");
        (case.run)(Arc::clone(&open), flow).await;
    }
}

const HIDE: Duration = Duration::from_secs(60);
/// The same in microseconds.
const HIDE_US: i64 = 60_000_000;

async fn put(timers: &dyn Timers, flow: &FlowName, id: &str, at: i64) {
    let timer = Timer { id: id.to_owned(), at, value: format!("{id} at {at}") };
    timers.put(flow, &timer).await.expect("a timer is set");
}

async fn due(timers: &dyn Timers, flow: &FlowName, upto: i64) -> Vec<Due> {
    timers.due(flow, upto, 100, HIDE).await.expect("timers are given")
}

fn ids(due: &[Due]) -> Vec<&str> {
    due.iter().map(|due| &*due.timer.id).collect()
}

async fn seen(open: OpenTimers, flow: FlowName) {
    let (one, _) = open();
    assert!(due(&*one, &flow, i64::MAX / 2).await.is_empty(), "there is none yet");
    put(&*one, &flow, "a", 1_000).await;
    let (other, _) = open();
    let given = due(&*other, &flow, 1_000).await;
    assert_eq!(given.len(), 1, "another one sees it");
    assert_eq!(given[0].timer, Timer { id: "a".into(), at: 1_000, value: "a at 1000".into() });
    assert!(one.done(&flow, given[0].number).await.expect("it is ended"), "and may end it");
    let (last, _) = open();
    assert!(due(&*last, &flow, 1_000 + 2 * HIDE_US).await.is_empty(), "for everybody");
}

async fn order(open: OpenTimers, flow: FlowName) {
    let (timers, _) = open();
    for (id, at) in [("c", 3_000), ("a", 1_000), ("d", 4_000), ("b", 2_000), ("long past", -5)] {
        put(&*timers, &flow, id, at).await;
    }
    assert!(due(&*timers, &flow, -6).await.is_empty(), "too early");
    let first = timers.due(&flow, 3_000, 2, HIDE).await.expect("timers are given");
    assert_eq!(ids(&first), ["long past", "a"], "the earliest, and no more than that");
    assert_eq!(ids(&due(&*timers, &flow, 3_000).await), ["b", "c"]);
    assert!(due(&*timers, &flow, 3_999).await.is_empty(), "too early by a microsecond");
    assert_eq!(ids(&due(&*timers, &flow, 4_000).await), ["d"]);
}

async fn hidden(open: OpenTimers, flow: FlowName) {
    let ((one, _), (other, _)) = (open(), open());
    put(&*one, &flow, "a", 1_000).await;
    let given = due(&*one, &flow, 2_000).await;
    assert_eq!(ids(&given), ["a"]);
    assert!(due(&*other, &flow, 2_000 + HIDE_US - 1).await.is_empty(), "somebody has it");
    let again = due(&*other, &flow, 2_000 + HIDE_US).await;
    assert_eq!(again, given, "who had it died, and it is the same still");
    assert!(other.done(&flow, again[0].number).await.expect("it is ended"));
    assert!(due(&*one, &flow, 2_000 + 3 * HIDE_US).await.is_empty(), "it is done");
    assert!(!one.done(&flow, again[0].number).await.expect("there is nothing to end"));
}

async fn again(open: OpenTimers, flow: FlowName) {
    let (timers, _) = open();
    put(&*timers, &flow, "a", 1_000).await;
    let first = due(&*timers, &flow, 1_000).await;
    put(&*timers, &flow, "a", 5_000).await;
    assert!(due(&*timers, &flow, 4_999).await.is_empty(), "its time is another one");
    let second = due(&*timers, &flow, 5_000).await;
    assert_eq!(ids(&second), ["a"], "what was given before hides it not");
    assert_eq!(second[0].timer.value, "a at 5000");
    assert_ne!(first[0].number, second[0].number);
    put(&*timers, &flow, "a", 10).await;
    assert_eq!(due(&*timers, &flow, 5_000).await[0].timer.at, 10, "also an earlier one");
}

async fn fenced(open: OpenTimers, flow: FlowName) {
    let ((one, _), (other, _)) = (open(), open());
    put(&*one, &flow, "a", 1_000).await;
    let old = due(&*one, &flow, 1_000).await[0].number;
    put(&*other, &flow, "a", 2_000).await;
    assert!(!one.done(&flow, old).await.expect("there is nothing to end"), "it was put again");
    let old = due(&*one, &flow, 2_000).await;
    assert_eq!(ids(&old), ["a"], "and is there still");
    assert!(other.cancel(&flow, "a").await.expect("it is cancelled"));
    put(&*other, &flow, "a", 3_000).await;
    assert!(
        !one.done(&flow, old[0].number).await.expect("there is nothing to end"),
        "a number never comes again"
    );
    assert_eq!(ids(&due(&*one, &flow, 3_000).await), ["a"]);
}

async fn cancelled(open: OpenTimers, flow: FlowName) {
    let ((one, _), (other, _)) = (open(), open());
    assert!(!one.cancel(&flow, "a").await.expect("there is nothing to cancel"));
    put(&*one, &flow, "a", 1_000).await;
    put(&*one, &flow, "b", 1_000).await;
    assert!(other.cancel(&flow, "a").await.expect("it is cancelled"));
    assert!(!one.cancel(&flow, "a").await.expect("there is nothing to cancel"));
    let given = due(&*one, &flow, 1_000).await;
    assert_eq!(ids(&given), ["b"]);
    assert!(other.cancel(&flow, "b").await.expect("it is cancelled"), "while somebody has it");
    assert!(!one.done(&flow, given[0].number).await.expect("there is nothing to end"));
    assert!(due(&*one, &flow, 1_000 + 2 * HIDE_US).await.is_empty());
}

async fn apart(open: OpenTimers, flow: FlowName) {
    let (timers, state) = open();
    let other = FlowName::new(format!("{flow}_other")).expect("a good name");
    put(&*timers, &flow, "a", 1_000).await;
    put(&*timers, &other, "a", 1_000).await;
    put(&*timers, &other, "b", 1_000).await;
    assert!(!timers.cancel(&flow, "b").await.expect("there is nothing to cancel"));
    let given = due(&*timers, &flow, 1_000).await;
    assert_eq!(ids(&given), ["a"]);
    assert!(!timers.done(&other, given[0].number).await.expect("there is nothing to end"));
    state.forget(&flow).await.expect("it is forgotten");
    assert!(!timers.cancel(&flow, "a").await.expect("there is nothing to cancel"), "it is forgotten");
    assert_eq!(ids(&due(&*timers, &other, 1_000).await), ["a", "b"]);
}
