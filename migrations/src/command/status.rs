//! `tidegate migrate status`.

use std::process::ExitCode;
use std::time::Duration;

use tidegate_core::error::{Code, Kind, code};
use tidegate_core::{Error, Result, SystemClock};
use tidegate_flow::run::{QUIET, STATUS, WISHES, Wishes, read};
use tidegate_flow::{Status, TableState, verify};

use crate::progress::{Rates, eta, state_word};
use crate::render::{changes, count, say, table};
use crate::settings::Settings;

/// The record of the last verification.
pub(super) const VERIFIED: &str = "verified";
/// A verification older than this is called stale.
const STALE: i64 = 24 * 3600 * 1_000_000;

pub(super) async fn status(settings: &Settings, watch: bool, json: bool) -> Result<ExitCode> {
    let state = settings.state().await?;
    let mut rates = Rates::default();
    loop {
        let (mut status, version) = read::<Status>(state.as_ref(), &settings.name, STATUS).await?;
        if version == 0 {
            return Err(Error::new(code::STATE_MISSING, format!("there is no migration {}", settings.name))
                .hint("check --name, --to and --state; `tidegate migrate run` starts one"));
        }
        if is_forgotten(&status) {
            // What nobody looks at grows; a source that cannot be asked leaves what the last run saw.
            match kept(settings, &status).await {
                Ok(Kept { held_bytes, used }) => (status.held_bytes, status.held_used) = (held_bytes, used),
                // Another run would end by it.
                Err(error) if error.kind() == Kind::Lost => {
                    (status.running, status.error) = (false, Some(error.line()));
                    (status.held_bytes, status.held_used) = (0, 0.0);
                }
                Err(_) => {}
            }
        }
        let (wishes, _) = read::<Wishes>(state.as_ref(), &settings.name, WISHES).await?;
        let (verified, _) = read::<Option<verify::Report>>(state.as_ref(), &settings.name, VERIFIED).await?;
        let (rate, _) = rates.take(&status);
        if json {
            say!("{}", document(settings, &status, &wishes, verified.as_ref(), rate));
        } else {
            print(settings, &status, &wishes, verified.as_ref(), rate);
        }
        if !watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What a source keeps for a migration, and how much of what it may that is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub(super) held_bytes: u64,
    pub(super) used: f64,
}

/// Asks the source what it keeps.
pub(super) async fn kept(settings: &Settings, status: &Status) -> Result<Kept> {
    let strain = settings.source.examiner().await?.strain(&settings.name, &status.place()).await?;
    let most = settings.options.held_bytes_max.max(1);
    Ok(Kept {
        held_bytes: strain.held_bytes,
        used: strain.used.unwrap_or(0.0).max(strain.held_bytes as f64 / most as f64),
    })
}

/// Whether no runner keeps the record up to date; one that was killed has not said so.
fn is_forgotten(status: &Status) -> bool {
    let silent = SystemClock::shared().now().saturating_sub(status.at);
    !status.running || Duration::from_micros(silent.max(0).cast_unsigned()) > QUIET
}

/// Whether somebody runs a migration now.
pub(super) async fn is_run(settings: &Settings) -> Result<bool> {
    let state = settings.state().await?;
    let (status, version) = read::<Status>(state.as_ref(), &settings.name, STATUS).await?;
    Ok(version > 0 && !is_forgotten(&status))
}

fn word(status: &Status, wishes: &Wishes) -> &'static str {
    match state_word(status) {
        "live" | "catching-up" | "crawling" | "waiting" if is_forgotten(status) => "stopped",
        "crawling" if wishes.paused => "paused",
        word => word,
    }
}

/// Whether no other run can go on after it.
fn is_over(code: Code) -> bool {
    code.kind() == Kind::Lost && ![code::LEASE_LOST, code::CHECKPOINT_MOVED].contains(&code)
}

/// What can be done next.
fn next(status: &Status, verified: Option<&verify::Report>) -> Vec<String> {
    let ended_by = status.error.as_deref().filter(|_| !status.running).and_then(Code::of_line);
    if let Some((code, _)) = ended_by.filter(|(code, _)| is_over(*code)) {
        return vec![format!("tidegate explain {}", code.name())];
    }
    let mut next = Vec::new();
    for table in status.tables.iter().filter(|table| table.state == TableState::Failed) {
        next.push(format!("tidegate migrate recopy --table {}", table.source));
    }
    if !status.running {
        next.push("tidegate migrate run".to_owned());
    } else if status.is_crawled() && verified.is_none_or(|report| !report.equal) {
        next.push("tidegate migrate verify".to_owned());
    }
    next
}

/// Whether a table stopped that was compared before.
fn is_overtaken(status: &Status, report: &verify::Report) -> bool {
    let mut failed = status.tables.iter().filter(|table| table.state == TableState::Failed);
    failed.any(|table| !report.stopped.contains(&table.source))
}

/// How many tables were compared, if not all.
fn of_tables(status: &Status, report: &verify::Report) -> String {
    let all = status.tables.iter().filter(|table| table.state != TableState::Skipped).count() as u64;
    if report.tables < all { format!(", in {} of {all} tables", report.tables) } else { String::new() }
}

fn throttle(status: &Status, wishes: &Wishes) -> Option<String> {
    if !status.running {
        return Some("nobody runs it".to_owned());
    }
    if wishes.paused {
        return Some("paused on request".to_owned());
    }
    if !wishes.paused_tables.is_empty() {
        let tables: Vec<_> = wishes.paused_tables.iter().map(String::as_str).collect();
        return Some(format!("paused on request: {}", tables.join(", ")));
    }
    let rows = wishes.max_rate.rows.map(|rate| format!("max_rate={rate}"));
    rows.or_else(|| wishes.max_rate.bytes.map(|rate| format!("max_rate={rate}B/s")))
}

fn document(
    settings: &Settings,
    status: &Status,
    wishes: &Wishes,
    verified: Option<&verify::Report>,
    rate: f64,
) -> serde_json::Value {
    let tables: Vec<_> = status
        .tables
        .iter()
        .map(|table| {
            serde_json::json!({
                "source": table.source, "target": table.target, "state": table.state, "error": table.error,
                "rows_estimated": table.rows_estimated, "rows_crawled": table.rows_crawled,
                "chunks_done": table.chunks_done, "chunks_total": table.chunks_estimated.max(table.chunks_done),
                "changes_applied": table.changes,
            })
        })
        .collect();
    let eta = eta(status, rate).map(|(low, high)| serde_json::json!({"low": low, "high": high}));
    let verify = verified.map(|report| {
        serde_json::json!({
            "at": report.at, "tables": report.tables, "compared": report.compared, "missing": report.missing, "extra": report.extra,
            "different": report.different, "stale": status.at - report.at > STALE || is_overtaken(status, report),
        })
    });
    serde_json::json!({
        "name": settings.name.as_str(), "state": word(status, wishes), "epoch": 1, "running": status.running,
        "error": status.error, "throttle": throttle(status, wishes),
        "workers": status.workers,
        "held": {"bytes": status.held_bytes, "used": status.held_used},
        "lag": (!is_forgotten(status))
            .then(|| serde_json::json!({"bytes": status.behind, "seconds": status.lag_seconds()})),
        "eta_seconds": eta, "tables": tables, "verify": verify, "next": next(status, verified),
    })
}

fn print(
    settings: &Settings,
    status: &Status,
    wishes: &Wishes,
    verified: Option<&verify::Report>,
    rate: f64,
) {
    say!("{}: {}", settings.name, word(status, wishes));
    if let Some(error) = &status.error {
        let is_lost = Code::of_line(error).is_some_and(|(code, _)| code.kind() == Kind::Lost);
        let how = match (status.running, is_lost) {
            (true, _) => "broke, and is tried again",
            (false, true) => "its place is lost",
            (false, false) => "ended by",
        };
        say!("{how}: {error}");
    }
    let lag = if is_forgotten(status) {
        "lag unknown, since nobody runs it".to_owned()
    } else {
        format!("lag {:.1} s, {} bytes", status.lag_seconds(), count(status.behind))
    };
    say!(
        "{lag}; {} applied; throttle: {}",
        changes(status.changes_applied),
        throttle(status, wishes).unwrap_or_else(|| "none".to_owned())
    );
    if is_forgotten(status) && status.held_bytes > 0 {
        say!(
            "the source keeps {} bytes for it, {:.0} % of what it may, while nobody runs it",
            count(status.held_bytes),
            status.held_used * 100.0
        );
    }
    if let Some((low, high)) = eta(status, rate).filter(|eta| *eta != (0, 0)) {
        say!("eta {low}-{high} s (est.)");
    }
    let rows = status.tables.iter().map(|t| {
        vec![
            t.source.clone(),
            t.target.clone(),
            serde_json::to_value(t.state)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default(),
            format!("{} of ~{}", count(t.rows_crawled), count(t.rows_estimated.max(t.rows_crawled))),
            count(t.changes),
            t.error.clone().unwrap_or_default(),
        ]
    });
    say!("{}", table(&["table", "target", "state", "rows", "changes", ""], rows.collect()));
    match verified {
        Some(report) if is_overtaken(status, report) => say!("verified: not since a table stopped"),
        Some(report) if report.equal => {
            say!("verified: {} rows equal{}", count(report.compared), of_tables(status, report));
        }
        Some(report) => say!(
            "verified: {} missing, {} extra, {} different{}",
            count(report.missing),
            count(report.extra),
            count(report.different),
            of_tables(status, report)
        ),
        None => say!("verified: not yet"),
    }
    for next in next(status, verified) {
        say!("next: {next}");
    }
}
