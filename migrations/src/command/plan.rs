//! `tidegate plan`, and the guard before a run.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use indicatif::DecimalBytes;
use tidegate_core::error::code;
use tidegate_core::port::{Obstacle, Selection, StateStore};
use tidegate_core::{Column, Error, FlowName, Result, TableName, Type};
use tidegate_flow::follow::{Record, known};
use tidegate_flow::run::{STATUS, WISHES, Wishes, read};
use tidegate_flow::{Plan, Status, TableState, TableStatus, Wanted, plan};

use crate::render::{count, say, table};
use crate::settings::Settings;

/// Conversions of types that no column has: a name that was meant otherwise would change nothing, in silence.
pub(super) fn unused_conversions(wanted: &Wanted, plan: &Plan) -> Vec<Obstacle> {
    let columns = plan.tables.iter().flat_map(|planned| &planned.route.shape.table.columns);
    let used: BTreeSet<&str> = columns.flat_map(Column::conversion_names).collect();
    // The columns of a table that is refused are not known here.
    let is_whole = plan.obstacles.iter().all(|obstacle| obstacle.table.is_none());
    let unused = wanted.conversions.keys().filter(|name| is_whole && !used.contains(name.as_str()));
    let error = |name: &String| {
        let text = format!("the conversion of {name} is of no use: no column that is moved has this type");
        Error::new(code::MAPPING_INVALID, text).hint("types are called as in the plan without the conversion")
    };
    unused.map(|name| Obstacle { table: None, column: None, error: error(name) }).collect()
}

/// Works the plan out. Tables that are left out are none that the mapping may not name.
async fn make(settings: &Settings, wanted: &Wanted, left_out: &BTreeSet<TableName>) -> Result<Plan> {
    if matches!(&wanted.tables, Selection::These(names) if names.is_empty()) {
        return Ok(Plan { tables: Vec::new(), obstacles: Vec::new() });
    }
    let source = settings.source.catalog().await?;
    let target = settings.target.catalog().await?;
    let mut plan = plan(source.as_ref(), target.as_ref(), wanted).await?;
    if let Some(mapping) = &settings.mapping {
        let planned = plan.tables.iter().map(|planned| &planned.route.shape.table.name);
        let planned = planned.chain(left_out);
        let names: Vec<_> = planned.chain(plan.obstacles.iter().filter_map(|o| o.table.as_ref())).collect();
        let unknown = mapping.unknown(&names).into_iter();
        plan.obstacles.extend(unknown.map(|error| Obstacle { table: None, column: None, error }));
    }
    Ok(plan)
}

/// The tables of a flow that ran before, where none are named: what its source got since is no part of it.
pub(super) fn of_flow(record: &Record, named: Selection) -> Selection {
    match named {
        Selection::All if !record.is_empty() => {
            Selection::These(record.values().map(|known| known.source.name.clone()).collect())
        }
        named => named,
    }
}

/// Tables of a flow that ran before and that take no part any more: they stopped, or were to be left out. What is wrong
/// with one of them stands in nobody's way.
pub(super) async fn left_out(
    state: &dyn StateStore,
    name: &FlowName,
    record: &Record,
) -> Result<BTreeSet<TableName>> {
    let status = read::<Status>(state, name, STATUS).await?.0;
    let wishes = read::<Wishes>(state, name, WISHES).await?.0;
    let is_out = |table: &&TableStatus| matches!(table.state, TableState::Failed | TableState::Skipped);
    let mut out: BTreeSet<String> = wishes.skips_open().into_keys().collect();
    out.extend(status.tables.iter().filter(is_out).map(|table| table.source.clone()));
    let recopied = wishes.recopies_open();
    let out = out.iter().filter(|name| !recopied.contains_key(*name));
    Ok(out.filter_map(|name| Some(record.get(name)?.source.name.clone())).collect())
}

/// Takes tables out of what is wanted of a flow that ran before, with what is said of them.
pub(super) fn without(wanted: &mut Wanted, record: &Record, left_out: &BTreeSet<TableName>) {
    let is_out = |name: &TableName| left_out.iter().any(|out| out.is_called(&name.to_string()));
    wanted.tables = match of_flow(record, std::mem::take(&mut wanted.tables)) {
        Selection::These(names) => Selection::These(names.into_iter().filter(|name| !is_out(name)).collect()),
        Selection::All => Selection::All,
    };
    // What the mapping says of them is not for this plan.
    wanted.names.retain(|name, _| !left_out.iter().any(|out| out.is_called(name)));
}

/// The plan, or the error of its first obstacle with all of them named.
pub(super) async fn make_clear(
    settings: &Settings,
    wanted: &Wanted,
    record: &Record,
    left_out: &BTreeSet<TableName>,
) -> Result<Plan> {
    let plan = make(settings, wanted, left_out).await?;
    let mut plan = plan.resumed(record, settings.source.catalog().await?.as_ref());
    if plan.obstacles.is_empty() {
        return Ok(plan);
    }
    let obstacles = std::mem::take(&mut plan.obstacles);
    let more = obstacles.len() - 1;
    let texts: Vec<String> = obstacles.iter().skip(1).map(ToString::to_string).collect();
    let first = obstacles.into_iter().next().map(|Obstacle { table, column, error }| {
        let has = |error: &Error, fact: &str| error.context().iter().any(|(known, _)| known == fact);
        let error = match table {
            Some(table) if !has(&error, "table") => error.with("table", table),
            _ => error,
        };
        match column {
            Some(column) if !has(&error, "column") => error.with("column", column),
            _ => error,
        }
    });
    let first = first.unwrap_or_else(|| Error::new(code::INTERNAL, "an obstacle without an error"));
    Err(if more == 0 { first } else { first.with("and", texts.join("\n       ")) })
}

pub(super) async fn show(settings: &Settings, json: bool) -> Result<ExitCode> {
    // A migration that began already has rows of its own in the target.
    let state = settings.state().await?;
    let record = known(state.as_ref(), &settings.name).await?;
    let out = left_out(state.as_ref(), &settings.name, &record).await?;
    let mut wanted = settings.wanted.clone();
    without(&mut wanted, &record, &out);
    let plan = make(settings, &wanted, &out).await?;
    let mut plan = plan.resumed(&record, settings.source.catalog().await?.as_ref());
    if record.is_empty() {
        let unused = unused_conversions(&wanted, &plan);
        plan.obstacles.extend(unused);
    }
    let refused = !plan.obstacles.is_empty();
    if json {
        say!("{}", document(settings, &plan));
    } else {
        say!("{} -> {}", settings.source.location(), settings.target.location());
        for planned in &plan.tables {
            let (from, to) = (&planned.route.shape.table, &planned.route.target);
            let key: Vec<_> = from.key_columns().map(|column| column.name.as_str()).collect();
            say!();
            let rows = count(from.rows_estimated);
            // Not every store knows what its tables weigh.
            let weight = match from.bytes_estimated {
                0 => String::new(),
                bytes => format!(", ~{}", DecimalBytes(bytes)),
            };
            say!("{} -> {}   ~{rows} rows (est.){weight}, key {}", from.name, to.name, key.join(", "));
            let rows = from.columns.iter().zip(&planned.fits).map(|(column, fit)| {
                vec![
                    format!("  {}", column.name),
                    type_name(&column.native, &column.kind).to_owned(),
                    format!("-> {}", type_name(&fit.native, &fit.kind)),
                    fit.note.clone().unwrap_or_default(),
                ]
            });
            say!("{}", table(&["  column", "source", "target", ""], rows.collect()));
            let mapped = settings.mapping.as_ref().map(|mapping| mapping.lines(&from.name));
            mapped.iter().flatten().for_each(|line| say!("   {line}"));
        }
        if !out.is_empty() {
            let out: Vec<_> = out.iter().map(ToString::to_string).collect();
            say!();
            say!("stopped or left out: {}; back again: tidegate migrate recopy --table NAME", out.join(", "));
        }
        say!();
        if refused {
            for obstacle in &plan.obstacles {
                let facts = facts(obstacle);
                let facts: Vec<_> = facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
                let facts = if facts.is_empty() { String::new() } else { format!(" ({})", facts.join(", ")) };
                say!("refused: {obstacle}{facts}");
                if let Some(hint) = obstacle.error.hint_text() {
                    say!("         {hint}");
                }
            }
            say!("{} refused; nothing was changed", plan.obstacles.len());
        } else {
            let began =
                if record.is_empty() { "" } else { "the migration has begun, and goes on with a run; " };
            say!("{began}nothing stands in the way; nothing was changed");
            say!("next: tidegate migrate run");
        }
    }
    Ok(ExitCode::from(if refused { 3 } else { 0 }))
}

/// What an obstacle's error names beside the table and the column, which stand before it.
fn facts(obstacle: &Obstacle) -> BTreeMap<&str, &str> {
    let facts = obstacle.error.context().iter().map(|(name, value)| (&**name, value.as_str()));
    facts.filter(|(name, _)| !["table", "column"].contains(name)).collect()
}

/// A column of SQLite may have no type.
fn type_name<'a>(native: &'a str, kind: &'a Type) -> &'a str {
    if native.is_empty() { kind.word() } else { native }
}

fn document(settings: &Settings, plan: &Plan) -> serde_json::Value {
    let tables: Vec<_> = plan
        .tables
        .iter()
        .map(|planned| {
            let (from, to) = (&planned.route.shape.table, &planned.route.target);
            let columns: Vec<_> = from
                .columns
                .iter()
                .zip(&planned.fits)
                .map(|(column, fit)| {
                    serde_json::json!({"name": column.name, "source": column.native, "target": fit.native, "note": fit.note})
                })
                .collect();
            let key: Vec<_> = from.key_columns().map(|column| column.name.clone()).collect();
            serde_json::json!({
                "source": from.name.to_string(), "target": to.name.to_string(), "key": key, "columns": columns,
                "rows_estimated": from.rows_estimated, "bytes_estimated": from.bytes_estimated,
            })
        })
        .collect();
    let refusals: Vec<_> = plan
        .obstacles
        .iter()
        .map(|obstacle| {
            serde_json::json!({
                "table": obstacle.table.as_ref().map(ToString::to_string), "column": obstacle.column,
                "code": format!("TG{:04}", obstacle.error.code().number()), "name": obstacle.error.code().name(),
                "message": obstacle.error.message(), "hint": obstacle.error.hint_text(), "facts": facts(obstacle),
            })
        })
        .collect();
    serde_json::json!({
        "name": settings.name.as_str(), "from": settings.source.location(), "to": settings.target.location(),
        "tables": tables, "refusals": refusals,
    })
}
