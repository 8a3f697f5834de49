//! How fast Tidegate is, beside what else does the same work, on the same servers in the same run.
//!
//! Each work gives a row for each peer. Both sides run in turn; a row has the medians, and a ratio that is above
//! one where ours is better, whatever the unit. A peer that cannot be had is a row that says so.

#![allow(
    clippy::missing_errors_doc,
    reason = "a benchmark fails with whatever went wrong, and nothing is decided by it"
)]

pub mod discard;
pub mod ground;
pub mod load;
pub mod machine;
pub mod ours;
pub mod peers;
pub mod report;
pub mod work;

/// Whatever went wrong: a benchmark only says so.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// What a benchmark gives.
pub type Result<T> = std::result::Result<T, Error>;

use ground::{Ground, Size, Versions};
use machine::Machine;
use report::{Report, Row};

/// Works of a live migration, in the order in which they run.
pub const FLOW: &[&str] = &[
    "crawl-null",
    "crawl-pg",
    "crawl-random",
    "crawl-mongo",
    "drain-null",
    "drain-null-tls",
    "drain-pg",
    "latency",
    "memory",
];

/// The work of comparing.
pub const VERIFY: &[&str] = &["verify"];

/// Runs works by their names. What was measured is told after each, so that a failure loses nothing.
///
/// # Errors
/// The first thing that went wrong with our own side, or with the servers.
pub async fn run(
    bench: &str,
    works: &[&str],
    size: Size,
    mut tell: impl FnMut(&Report) -> Result<()>,
) -> Result<Report> {
    let versions = Versions::default();
    let ground = Ground::prepare(size, versions.clone()).await?;
    let mut report = begin(bench, conditions(size, works));
    let drains = ["drain-null", "drain-null-tls", "drain-pg"];
    let mut has_drained = false;
    for work in works {
        // These share one backlog.
        if drains.contains(work) && std::mem::replace(&mut has_drained, true) {
            continue;
        }
        report.rows.extend(one(&ground, work, works).await.map_err(|error| format!("{work}: {error}"))?);
        report.versions = versions.all();
        tell(&report)?;
    }
    Ok(report)
}

/// Runs works of brokers, as [`run`] does.
///
/// # Errors
/// As [`run`].
pub async fn run_brokers(
    brokers: &[&str],
    works: &[&str],
    size: Size,
    mut tell: impl FnMut(&Report) -> Result<()>,
) -> Result<Report> {
    let versions = Versions::default();
    let mut conditions =
        vec!["messages in windows of 1024, each answered as a whole".to_owned(), rounds(size)];
    if works.contains(&"migrate") {
        conditions.insert(0, format!("a backlog of {} changes of rows of about 250 bytes", size.changes()));
    }
    let mut report = begin("brokers", conditions);
    let mut databases = None;
    for broker in brokers {
        let done = work::broker::run(broker, works, size, &versions, &mut databases, |rows| {
            report.rows.extend(rows);
            report.versions = versions.all();
            tell(&report)
        });
        done.await.map_err(|error| format!("{broker}: {error}"))?;
    }
    Ok(report)
}

fn begin(bench: &str, conditions: Vec<String>) -> Report {
    Report { bench: bench.to_owned(), machine: Machine::here(), conditions, ..Report::default() }
}

async fn one(ground: &Ground, work: &str, works: &[&str]) -> Result<Vec<Row>> {
    let wants = |work: &str| works.contains(&work);
    match work {
        "crawl-null" => work::crawl_null::run(ground).await,
        "crawl-pg" => work::crawl_pg::run(ground).await,
        "crawl-random" => work::crawl_random::run(ground).await,
        "crawl-mongo" => work::crawl_mongo::run(ground).await,
        "latency" => work::latency::run(ground).await,
        "memory" => work::memory::run(ground).await,
        "verify" => work::verify::run(ground).await,
        _ => {
            let wanted = work::drain::Wanted {
                plain: wants("drain-null"),
                tls: wants("drain-null-tls"),
                applied: wants("drain-pg"),
            };
            work::drain::run(ground, wanted).await
        }
    }
}

fn conditions(size: Size, works: &[&str]) -> Vec<String> {
    let mut all = vec![format!("a table of {} rows of about 250 bytes", size.rows)];
    if works.iter().any(|work| work.starts_with("drain")) {
        all.push(format!("a backlog of {} changes", size.changes()));
    }
    all.push(rounds(size));
    all
}

fn rounds(size: Size) -> String {
    let before = if size.warm_up { ", after one of each that does not count" } else { "" };
    format!("runs of each side, in turn: {}{before}", size.rounds)
}
