//! `tidegate migrate verify`.

use std::process::ExitCode;

use tidegate_core::error::code;
use tidegate_core::{Error, Result, SystemClock};
use tidegate_flow::Gauge;
use tidegate_flow::follow::Record;
use tidegate_flow::run::change;
use tidegate_flow::verify::{Kind, Report, Verification, verify};

use super::plan;
use super::status::VERIFIED;
use crate::render::count;
use crate::settings::Settings;

/// Compares both sides, while a run goes on in this process or none does, and keeps what was found on record.
pub(super) async fn compare(settings: &Settings, run: Option<&Gauge>) -> Result<Report> {
    let state = settings.state().await?;
    let mut wanted = settings.wanted.clone();
    wanted.allow_non_empty = true;
    let plan = plan::make_clear(settings, &wanted, &Record::new()).await?;
    let clock = SystemClock::shared();
    let verification = Verification {
        name: &settings.name,
        source: settings.source.as_ref(),
        target: settings.target.as_ref(),
        routes: &plan.routes(),
        run,
        patience: settings.timeout,
        clock: clock.as_ref(),
    };
    let report = verify(&verification, &state).await?;
    let mut kept = report.clone();
    kept.rows.truncate(1_000);
    change(state.as_ref(), &settings.name, VERIFIED, |record: &mut Option<Report>| {
        *record = Some(kept.clone())
    })
    .await?;
    Ok(report)
}

#[allow(clippy::print_stdout, reason = "the report is the answer")]
pub(super) fn show(mut report: Report, limit: usize, json: bool) -> Result<ExitCode> {
    let is_cut = report.rows.len() > limit || !report.complete;
    report.rows.truncate(limit);
    if json {
        let text = serde_json::to_string(&report)
            .map_err(|e| Error::new(code::INTERNAL, "the report cannot be written").because(e))?;
        println!("{text}");
    } else if report.equal {
        println!("equal: {} rows compared, 0 missing, 0 extra, 0 different", count(report.compared));
    } else {
        for row in &report.rows {
            let key: Vec<_> = row.key.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let kind = match row.kind {
                Kind::Missing => "missing",
                Kind::Extra => "extra",
                Kind::Different => "different",
                Kind::Unsettled => "unsettled",
            };
            println!("{kind}: {} {} {}", row.table, key.join(", "), row.columns.join(", "));
        }
        if is_cut {
            println!("and more; --limit N lists N of them");
        }
        println!(
            "{} rows compared: {} missing, {} extra, {} different, {} unsettled",
            count(report.compared),
            count(report.missing),
            count(report.extra),
            count(report.different),
            count(report.unsettled)
        );
        println!("next: tidegate migrate recopy --table TABLE");
    }
    // A row that does not settle is no proof of a difference, and none of equality either.
    Ok(ExitCode::from(if report.equal { 0 } else { 4 }))
}
