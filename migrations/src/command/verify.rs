//! `tidegate migrate verify`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::{Selection, StateStore};
use tidegate_core::{Error, Result, SystemClock, TableName};
use tidegate_flow::follow::{Record, known};
use tidegate_flow::run::{STATUS, change, read};
use tidegate_flow::verify::{Kind, Reading, Report, Verification, verify as both_sides};
use tidegate_flow::{Gauge, Status, TableState, TableStatus};

use super::status::{self, VERIFIED};
use super::{noted, plan};
use crate::arguments::Common;
use crate::progress::while_comparing;
use crate::render::{count, say};
use crate::settings::Settings;

pub(super) async fn verify(settings: &Settings, limit: usize, common: &Common) -> Result<ExitCode> {
    let reading = Arc::default();
    let comparing = compare(settings, None, &reading);
    let report = while_comparing(&reading, common.quiet || common.json, comparing).await?;
    show(report, status::is_run(settings).await?, limit, common.json)
}

/// Compares both sides, while a run goes on in this process or none does, and keeps what was found on record.
pub(super) async fn compare(
    settings: &Settings,
    run: Option<&Gauge>,
    reading: &Arc<Reading>,
) -> Result<Report> {
    let state = settings.state().await?;
    let clock = SystemClock::shared();
    let status = match run {
        // What a run has on record is older than what it knows.
        Some(gauge) => gauge.read(clock.as_ref()),
        None => read::<Status>(state.as_ref(), &settings.name, STATUS).await?.0,
    };
    let record = known(state.as_ref(), &settings.name).await?;
    let mut wanted = settings.wanted.clone();
    wanted.allow_non_empty = true;
    let is_unfinished =
        |table: &&TableStatus| matches!(table.state, TableState::NotStarted | TableState::Crawling);
    let takes_no_part = |table: &&TableStatus| {
        is_unfinished(table) || matches!(table.state, TableState::Failed | TableState::Skipped)
    };
    let left_out = status.tables.iter().filter(takes_no_part).filter_map(|table| record.get(&table.source));
    let left_out: BTreeSet<TableName> = left_out.map(|known| known.source.name.clone()).collect();
    plan::without(&mut wanted, &record, &left_out);
    let failed = status.tables.iter().filter(|table| table.state == TableState::Failed);
    let stopped: Vec<String> = failed.map(|table| table.source.clone()).collect();
    let unfinished = status.tables.iter().filter(is_unfinished).map(|table| {
        let why =
            format!("{} of ~{} rows are crawled", count(table.rows_crawled), count(table.rows_estimated));
        (table.source.clone(), why)
    });
    let unread: BTreeMap<String, String> = unfinished.collect();
    if matches!(&wanted.tables, Selection::These(names) if names.is_empty()) {
        let (equal, at) = (stopped.is_empty() && unread.is_empty(), clock.now());
        let report = Report { equal, complete: true, stopped, unread, at, ..Report::default() };
        note(state.as_ref(), settings, &report).await?;
        return Ok(report);
    }
    noted::require_same(settings, state.as_ref(), &record, &wanted).await?;
    let mut plan = plan::make_clear(settings, &wanted, &Record::new(), &left_out).await?;
    if let Some(obstacle) = plan.elsewhere(&record).into_iter().next() {
        return Err(obstacle.error);
    }
    // It may have been named without its schema.
    plan.tables.retain(|planned| !left_out.contains(&planned.route.shape.table.name));
    let verification = Verification {
        name: &settings.name,
        source: settings.source.as_ref(),
        target: settings.target.as_ref(),
        routes: &plan.routes(),
        run,
        patience: settings.timeout,
        clock: clock.as_ref(),
        reading: Arc::clone(reading),
    };
    let mut report = both_sides(&verification, &state).await?;
    report.equal &= stopped.is_empty() && unread.is_empty();
    report.stopped = stopped;
    report.unread.extend(unread);
    note(state.as_ref(), settings, &report).await?;
    Ok(report)
}

/// Keeps what was found on record.
async fn note(state: &dyn StateStore, settings: &Settings, report: &Report) -> Result<()> {
    let mut kept = report.clone();
    kept.rows.truncate(1_000);
    change(state, &settings.name, VERIFIED, |record: &mut Option<Report>| *record = Some(kept.clone()))
        .await?;
    Ok(())
}

/// Shows what was found; `is_run` says whether somebody runs the migration.
pub(super) fn show(mut report: Report, is_run: bool, limit: usize, json: bool) -> Result<ExitCode> {
    let is_cut = report.rows.len() > limit || !report.complete;
    report.rows.truncate(limit);
    if json {
        let text = serde_json::to_string(&report)
            .map_err(|e| Error::new(code::INTERNAL, "the report cannot be written").because(e))?;
        say!("{text}");
    } else if report.equal {
        say!("equal: {} rows compared, 0 missing, 0 extra, 0 different", count(report.compared));
    } else {
        if !is_run {
            say!(
                "nobody runs this migration: what has changed at the source since it was stopped is not in the target"
            );
        }
        for row in &report.rows {
            let key: Vec<_> = row.key.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let kind = match row.kind {
                Kind::Missing => "missing",
                Kind::Extra => "extra",
                Kind::Different => "different",
                Kind::Unsettled => "unsettled",
            };
            say!("{kind}: {} {} {}", row.table, key.join(", "), row.columns.join(", "));
        }
        if is_cut {
            say!("and more; --limit N lists N of them");
        }
        for table in &report.stopped {
            say!("not compared: {table} stopped; next: tidegate migrate recopy --table {table}");
        }
        for (table, why) in &report.unread {
            say!("not compared to the end: {table}: {why}");
        }
        say!(
            "{} rows compared: {} missing, {} extra, {} different, {} unsettled",
            count(report.compared),
            count(report.missing),
            count(report.extra),
            count(report.different),
            count(report.unsettled)
        );
        if is_run {
            let tables: BTreeSet<String> = report.rows.iter().map(|row| row.table.to_string()).collect();
            tables.iter().for_each(|table| say!("next: tidegate migrate recopy --table {table}"));
        } else {
            say!("next: tidegate migrate run --until verified");
        }
    }
    // A row that does not settle is no proof of a difference, and none of equality either.
    Ok(ExitCode::from(if report.equal { 0 } else { 4 }))
}
