//! The record of what the mapping says of each table, in words.

use std::collections::BTreeMap;

use tidegate_core::error::code;
use tidegate_core::port::{Selection, StateStore};
use tidegate_core::{Error, Result, TableName};
use tidegate_flow::follow::Record;
use tidegate_flow::run::{WISHES, Wishes, change, read};
use tidegate_flow::{Plan, Wanted};

use crate::settings::Settings;

const MAPPING: &str = "mapping";

type Words = BTreeMap<String, String>;

/// Finds that the rows that were moved were made as the mapping makes them now. A table that is to be crawled anew may be
/// made otherwise. Comes before the plan, whose guards would say what follows from it.
pub(super) async fn require_same(
    settings: &Settings,
    state: &dyn StateStore,
    record: &Record,
    wanted: &Wanted,
) -> Result<()> {
    let noted = read::<Words>(state, &settings.name, MAPPING).await?.0;
    let recopied = read::<Wishes>(state, &settings.name, WISHES).await?.0.recopies_open();
    for (table, known) in record {
        let is_other = noted.get(table).is_some_and(|noted| *noted != words(settings, &known.source.name));
        if is_other && !recopied.contains_key(table) && is_wanted(wanted, &known.source.name) {
            let what = format!(
                "the rows of table {table} were moved by another filter or other computed columns; nothing was changed"
            );
            let hint = format!(
                "go on with the mapping as it was, best with one -c FILE for every command, or have all its rows moved by \
                 the new one: tidegate migrate recopy --table {table}, and run again"
            );
            return Err(Error::new(code::MAPPING_INVALID, what).hint(hint).with("table", table));
        }
    }
    Ok(())
}

/// Keeps on record what the mapping says of the tables of a plan.
pub(super) async fn note(settings: &Settings, state: &dyn StateStore, plan: &Plan) -> Result<()> {
    let noted = read::<Words>(state, &settings.name, MAPPING).await?.0;
    let mut now = noted.clone();
    for table in plan.tables.iter().map(|planned| &planned.route.shape.table.name) {
        now.insert(table.to_string(), words(settings, table));
    }
    if now != noted {
        change(state, &settings.name, MAPPING, |record| *record = now.clone()).await?;
    }
    Ok(())
}

fn words(settings: &Settings, table: &TableName) -> String {
    settings.mapping.as_ref().and_then(|mapping| mapping.words(table)).unwrap_or_default()
}

fn is_wanted(wanted: &Wanted, table: &TableName) -> bool {
    let is_named = match &wanted.tables {
        Selection::All => true,
        Selection::These(names) => names.iter().any(|name| table.is_called(&name.to_string())),
    };
    is_named && !wanted.exclude.iter().any(|name| table.is_called(name))
}
