//! Brokers with one bug each, around the one in memory. Each has to be caught by the case that is meant for it.
//!
//! - `broker`, `producer`, `consumer`, `settle`: the ports, with bugs
//! - `network`: what is between them and the broker, and can be made to fail

mod broker;
mod consumer;
mod network;
mod producer;
mod settle;

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidegate_conformance::{CASES, Outcome, Size, run};
use tidegate_core::error::Code;
use tidegate_core::port::Delivery;
use tidegate_core::{Error, Scope};
use tokio::time::Instant;

pub(crate) use broker::Planted;
pub(crate) use network::MemoryNetwork;

use network::Way;

use crate::memory::Memory;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    LosesConfirmed,
    AnswersBackwards,
    BlamesTheNeighbour,
    MakesMissingChannels,
    TooLargeTakesNeighbours,
    UnknownSaysRefused,
    StoresAfterClose,
    HasNoLimits,
    DropsEmptyHeaders,
    ForgetsOnKill,
    SplitsNothing,
    SharesSubscriptions,
    ForgetsAbsentees,
    UnregisterLeavesStorage,
    CrashSettles,
    AttemptStaysOne,
    LostSaysUnknown,
    OldEpochSettles,
    RedeliversSettled,
    ReleaseCounts,
    CancelLoses,
    IgnoresWindow,
    DotsAreUnderscores,
    StartsEarlier,
    PassesOverWhatIsGone,
    LookingKeeps,
    ListsHalf,
    ShufflesBatches,
    RetryGoesToTheBack,
    DeliversWhatItLost,
    ReconnectDropsInHand,
    RetryBlocksAll,
    RetriesBackwards,
    OtherLanes,
    EpochsFall,
    ExtendPretends,
    DeadLetterPretends,
    RetryComesLate,
    StoresForNobody,
    CopiesAreDuplicates,
    CloseSettles,
    NamesAreShort,
    LosesReplies,
    RetryComesEarly,
    CutsDeadLetters,
    KeepsTasks,
    VerifyIsQuiet,
    UrgentComesLast,
    LosesWhatWasCarried,
    ForgetsTraces,
    TimeoutSaysStored,
    RemembersAbsence,
    ReconnectsHastily,
    StrangersFindNothing,
    RemovalIsQuiet,
    StoresInNothing,
}

/// Every bug and the case that is meant for it.
const BUGS: &[(Bug, &str)] = &[
    (Bug::LosesConfirmed, "A1"),
    (Bug::AnswersBackwards, "A2"),
    (Bug::BlamesTheNeighbour, "A3"),
    (Bug::MakesMissingChannels, "A4"),
    (Bug::TooLargeTakesNeighbours, "A5"),
    (Bug::UnknownSaysRefused, "A6"),
    (Bug::StoresAfterClose, "A7"),
    (Bug::HasNoLimits, "A8"),
    (Bug::DropsEmptyHeaders, "A9"),
    (Bug::ForgetsOnKill, "A10"),
    (Bug::SplitsNothing, "B11"),
    (Bug::SharesSubscriptions, "B12"),
    (Bug::ForgetsAbsentees, "B13"),
    (Bug::UnregisterLeavesStorage, "B14"),
    (Bug::EpochsFall, "B14"),
    (Bug::CrashSettles, "B15"),
    (Bug::AttemptStaysOne, "B15"),
    (Bug::LostSaysUnknown, "B16"),
    (Bug::OldEpochSettles, "B17"),
    (Bug::RedeliversSettled, "B18"),
    (Bug::ReleaseCounts, "B19"),
    (Bug::CancelLoses, "B20"),
    (Bug::IgnoresWindow, "B21"),
    (Bug::DotsAreUnderscores, "B22"),
    (Bug::StartsEarlier, "B23"),
    (Bug::PassesOverWhatIsGone, "B23"),
    (Bug::LookingKeeps, "B62"),
    (Bug::ListsHalf, "B63"),
    (Bug::ShufflesBatches, "C24"),
    (Bug::RetryGoesToTheBack, "C25"),
    (Bug::DeliversWhatItLost, "C26"),
    (Bug::ReconnectDropsInHand, "C27"),
    (Bug::RetryBlocksAll, "C28"),
    (Bug::RetriesBackwards, "C29"),
    (Bug::OtherLanes, "C30"),
    (Bug::RetryComesEarly, "D31"),
    (Bug::RetryComesLate, "D31"),
    (Bug::RetryComesLate, "D32"),
    (Bug::AttemptStaysOne, "D33"),
    (Bug::StoresForNobody, "D34"),
    (Bug::AttemptStaysOne, "D35"),
    (Bug::CutsDeadLetters, "D36"),
    (Bug::CopiesAreDuplicates, "D37"),
    (Bug::ExtendPretends, "D38"),
    (Bug::OldEpochSettles, "D39"),
    (Bug::EpochsFall, "D39"),
    (Bug::ReconnectDropsInHand, "E40"),
    (Bug::TimeoutSaysStored, "E41"),
    (Bug::RemembersAbsence, "E42"),
    (Bug::StrangersFindNothing, "E43"),
    (Bug::RemovalIsQuiet, "E44"),
    (Bug::StoresInNothing, "E44"),
    (Bug::ReconnectsHastily, "E45"),
    (Bug::ReleaseCounts, "F47"),
    (Bug::CloseSettles, "F48"),
    (Bug::CrashSettles, "F49"),
    (Bug::KeepsTasks, "F50"),
    (Bug::NamesAreShort, "F51"),
    (Bug::DeadLetterPretends, "G52"),
    (Bug::VerifyIsQuiet, "G54"),
    (Bug::UrgentComesLast, "H56"),
    (Bug::LosesReplies, "H57"),
    (Bug::LosesWhatWasCarried, "H58"),
    (Bug::ForgetsTraces, "H60"),
    (Bug::AttemptStaysOne, "H61"),
];

/// Each on a thread of its own, so that the sum of their waits is not what this test takes.
#[test]
fn every_planted_bug_is_caught_by_the_case_that_is_meant_for_it() {
    let hunt = |(bug, id): (Bug, &'static str)| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let cases: Vec<_> = CASES.iter().filter(|case| case.id == id).copied().collect();
        assert_eq!(cases.len(), 1, "{id}");
        let rows =
            runtime.unwrap().block_on(run(&mut Memory::new(Some(bug)), &cases, Size::Quick, |_, _| ()));
        (bug, rows.into_iter().next().unwrap())
    };
    let mut missed = Vec::new();
    for part in BUGS.chunks(17) {
        let rows: Vec<_> = std::thread::scope(|scope| {
            let hunts: Vec<_> = part.iter().map(|bug| scope.spawn(|| hunt(*bug))).collect();
            hunts.into_iter().map(|hunt| hunt.join().unwrap()).collect()
        });
        for (bug, row) in rows {
            println!("{bug:?}: {} {:?} {}", row.id, row.outcome, row.detail);
            if row.outcome != Outcome::Failed {
                missed.push(format!("{bug:?}: {row:?}"));
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// A network that is made to fail is no bug: where nothing else is wrong, the cases pass over it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_in_memory_is_no_bug() {
    let over_it = ["D39", "E41", "E42", "E43", "E45"];
    let cases: Vec<_> = CASES.iter().filter(|case| over_it.contains(&case.id)).copied().collect();
    assert_eq!(cases.len(), over_it.len());
    // What is wrong with it, none of these asks.
    let mut fixture = Memory::new(Some(Bug::ForgetsOnKill));
    let rows = run(&mut fixture, &cases, Size::Quick, |_, _| ()).await;
    assert!(rows.iter().all(|row| row.outcome == Outcome::Passed), "{rows:#?}");
}

/// Every case has a bug that it catches: one that cannot fail shows nothing.
#[test]
fn every_case_has_a_bug() {
    let without: Vec<_> =
        CASES.iter().map(|case| case.id).filter(|id| !BUGS.iter().any(|(_, known)| known == id)).collect();
    assert!(without.is_empty(), "{without:?}");
}

/// What survives a producer or a consumer.
#[derive(Debug, Default)]
struct SharedState {
    number: AtomicU64,
    late: Mutex<Scope>,
    settled: Mutex<VecDeque<Delivery>>,
}

/// What a consumer and its settlers share.
struct Kept {
    shared: Arc<SharedState>,
    way: Way,
    /// In hand, as far as it matters to a bug.
    in_hand: Mutex<Vec<Delivery>>,
    /// What comes later, from here and not from the broker.
    later: Mutex<Vec<(Instant, Delivery)>>,
    /// Nothing comes before this.
    blocked: Mutex<Option<Instant>>,
}

impl Kept {
    fn new(shared: Arc<SharedState>, way: Way) -> Self {
        Self { shared, way, in_hand: Mutex::default(), later: Mutex::default(), blocked: Mutex::default() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn planted(code: Code) -> Error {
    Error::new(code, "planted")
}
