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
pub mod ours;
pub mod peers;
pub mod report;
pub mod work;

/// Whatever went wrong: a benchmark only says so.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// What a benchmark gives.
pub type Result<T> = std::result::Result<T, Error>;

use ground::{Ground, Size};
use report::Report;

/// Works of a live migration, in the order in which they run.
pub const FLOW: &[&str] =
    &["crawl-null", "crawl-pg", "crawl-random", "drain-null", "drain-null-tls", "drain-pg"];

/// Runs works by their names.
///
/// # Errors
/// The first thing that went wrong with our own side, or with the servers.
pub async fn run(works: &[&str], size: Size) -> Result<Report> {
    let ground = Ground::prepare(size).await?;
    let mut report = Report { conditions: conditions(&ground).await?, rows: Vec::new() };
    let wants = |work: &str| works.contains(&work);
    if wants("crawl-null") {
        report.rows.extend(work::crawl::to_nothing(&ground).await?);
    }
    if wants("crawl-pg") {
        report.rows.extend(work::crawl::to_postgres(&ground).await?);
    }
    if wants("crawl-random") {
        report.rows.extend(work::crawl::at_random(&ground).await?);
    }
    let drains = work::drain::Wanted {
        plain: wants("drain-null"),
        tls: wants("drain-null-tls"),
        applied: wants("drain-pg"),
    };
    if drains.plain || drains.tls || drains.applied {
        report.rows.extend(work::drain::run(&ground, drains).await?);
    }
    Ok(report)
}

async fn conditions(ground: &Ground) -> Result<Vec<String>> {
    let cores = std::thread::available_parallelism()?;
    let version: String =
        ground::connect(&ground.source.url()).await?.query_one("SHOW server_version", &[]).await?.get(0);
    let Size { rows, rounds, .. } = ground.size;
    Ok(vec![
        format!("{cores} cores, which both servers, ours and the peer share; PostgreSQL {version}, fsync on"),
        format!("a table of {rows} rows of about 250 bytes; a backlog of {} changes", ground.size.changes()),
        format!("medians of {rounds} runs of each side in turn, with the least and the most"),
    ])
}
