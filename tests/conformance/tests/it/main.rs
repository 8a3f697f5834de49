//! The suite itself: it finds what it is to find.

#[cfg(test)]
mod hooks;
#[cfg(test)]
mod log;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod plant;
#[cfg(test)]
mod queue;
#[cfg(test)]
mod timers;

#[cfg(test)]
use tidegate_conformance::{CASES, Fixture, Outcome, Size, run};

/// Runs every case on a broker of its own, some at once.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
fn every_case(fixture: impl Fn() -> Box<dyn Fixture> + Sync) {
    let one = |case| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(run(&mut *fixture(), &[case], Size::Quick, |row, time| {
            println!("{row:?} {time:?}");
        }))
    };
    let mut failed = Vec::new();
    for part in CASES.chunks(8) {
        let rows: Vec<_> = std::thread::scope(|scope| {
            let runs: Vec<_> = part.iter().map(|case| scope.spawn(|| one(*case))).collect();
            runs.into_iter().flat_map(|run| run.join().unwrap()).collect()
        });
        let is_well = |row: &tidegate_conformance::Row| {
            [Outcome::Passed, Outcome::RefusedAsDeclared, Outcome::NotApplicable].contains(&row.outcome)
        };
        failed.extend(rows.into_iter().filter(|row| !is_well(row)));
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
