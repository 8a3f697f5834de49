//! `tidegate migrate pause|resume|skip|recopy|set`: wishes, kept in the state, which the runner grants within a second.

use std::process::ExitCode;

use tidegate_core::error::code;
use tidegate_core::{Error, Result};
use tidegate_flow::follow::{self, Record};
use tidegate_flow::run::{STATUS, WISHES, Wishes, change, read};
use tidegate_flow::verify::Report;
use tidegate_flow::{MaxRate, Status};

use super::status::VERIFIED;

use crate::render::say;
use crate::settings::{Settings, WORKERS_MAX};

/// The names of tables as the migration knows them.
async fn known(settings: &Settings, tables: &[String]) -> Result<Vec<String>> {
    let state = settings.state().await?;
    let record = follow::known(state.as_ref(), &settings.name).await?;
    if record.is_empty() {
        return Err(Error::new(code::STATE_MISSING, format!("there is no migration {}", settings.name))
            .hint("check --name, --to and --state"));
    }
    tables.iter().map(|wanted| find(&record, wanted)).collect()
}

/// The table that is meant: the one of this whole name, or else the only one of this name in any schema.
fn find(record: &Record, wanted: &str) -> Result<String> {
    if record.contains_key(wanted) {
        return Ok(wanted.to_owned());
    }
    let called: Vec<&str> = record
        .iter()
        .filter(|(_, known)| known.source.name.is_called(wanted))
        .map(|(name, _)| name.as_str())
        .collect();
    match called.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => {
            let all: Vec<&str> = record.keys().map(String::as_str).collect();
            Err(Error::new(code::TABLE_MISSING, format!("the migration has no table {wanted}"))
                .hint(format!("it has: {}", all.join(", "))))
        }
        several => Err(Error::new(code::CONFIG_INVALID, format!("{wanted} is the name of several tables"))
            .hint(format!("name one with its schema: {}", several.join(", ")))),
    }
}

async fn wish(settings: &Settings, said: &str, json: bool, wish: impl Fn(&mut Wishes)) -> Result<ExitCode> {
    let state = settings.state().await?;
    change(state.as_ref(), &settings.name, WISHES, wish).await?;
    let (status, _) = read::<Status>(state.as_ref(), &settings.name, STATUS).await?;
    let when = if status.running { "in force within a second" } else { "in force with the next run" };
    if json {
        let name = settings.name.as_str();
        say!("{}", serde_json::json!({"name": name, "wish": said, "running": status.running}));
    }
    eprintln!("{said}; {when}");
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn pause(
    settings: &Settings,
    tables: &[String],
    pause: bool,
    json: bool,
) -> Result<ExitCode> {
    let tables = known(settings, tables).await?;
    let said = if pause { "the crawl is to pause" } else { "the crawl is to go on" };
    wish(settings, said, json, |wishes| {
        if tables.is_empty() {
            wishes.paused = pause;
        }
        for table in &tables {
            if pause {
                wishes.paused_tables.insert(table.clone());
            } else {
                wishes.paused_tables.remove(table);
            }
        }
    })
    .await
}

pub(super) async fn skip(settings: &Settings, tables: &[String], json: bool) -> Result<ExitCode> {
    let tables = known(settings, tables).await?;
    let said = format!("to be left out: {}", tables.join(", "));
    wish(settings, &said, json, |wishes| tables.iter().for_each(|table| wishes.skip(table))).await
}

pub(super) async fn recopy(settings: &Settings, tables: &[String], json: bool) -> Result<ExitCode> {
    let tables = known(settings, tables).await?;
    // What was compared before says nothing about the table any more.
    let state = settings.state().await?;
    change(state.as_ref(), &settings.name, VERIFIED, |report: &mut Option<Report>| *report = None).await?;
    let said = format!("to be crawled anew: {}", tables.join(", "));
    wish(settings, &said, json, |wishes| tables.iter().for_each(|table| wishes.recopy(table))).await
}

pub(super) async fn set(settings: &Settings, knob: &str, json: bool) -> Result<ExitCode> {
    known(settings, &[]).await?;
    let knob = Knob::read(knob)?;
    let said = match knob {
        Knob::MaxRate(_) => "the limit is to change",
        Knob::Workers(_) => "the number of workers is to change",
    };
    wish(settings, said, json, |wishes| match knob {
        Knob::MaxRate(rate) => wishes.max_rate = rate,
        Knob::Workers(workers) => wishes.workers = Some(workers),
    })
    .await
}

/// What can be changed while a migration runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knob {
    MaxRate(MaxRate),
    Workers(usize),
}

impl Knob {
    /// Reads `max_rate=5000`, `max_rate=20MB/s` or `workers=4`.
    fn read(text: &str) -> Result<Self> {
        let unknown = || {
            Error::new(code::CONFIG_INVALID, format!("{text:?} cannot be set")).hint(
                "known: max_rate=ROWS or max_rate=20MB/s (kB, MB, GB), how fast is crawled at most, 0 for no limit; \
                 workers=N, reads at the same time, from 1 to 64",
            )
        };
        let (name, value) = text.split_once('=').ok_or_else(unknown)?;
        let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
        let number: u64 = digits.parse().map_err(|_| unknown())?;
        let limit = (number > 0).then_some(number);
        let bytes =
            |unit: u64| MaxRate { bytes: limit.map(|number| number.saturating_mul(unit)), rows: None };
        match (name, &value[digits.len()..]) {
            ("max_rate", "") => Ok(Knob::MaxRate(MaxRate { rows: limit, bytes: None })),
            ("max_rate", "kB/s") => Ok(Knob::MaxRate(bytes(1_000))),
            ("max_rate", "MB/s") => Ok(Knob::MaxRate(bytes(1_000_000))),
            ("max_rate", "GB/s") => Ok(Knob::MaxRate(bytes(1_000_000_000))),
            ("workers", "") if (1..=WORKERS_MAX).contains(&number) => {
                Ok(Knob::Workers(usize::try_from(number).map_err(|_| unknown())?))
            }
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::{Table, TableName};
    use tidegate_flow::follow::Known;

    use super::*;

    /// Found by trying: the first table whose name ended so was taken, also over the one that was meant.
    #[test]
    fn the_table_that_is_meant_is_found_or_asked_for() {
        let known = |name: TableName| {
            let table = Table {
                name: name.clone(),
                native_id: 0,
                columns: Vec::new(),
                key: Vec::new(),
                rows_estimated: 0,
                bytes_estimated: 0,
            };
            (name.to_string(), Known { source: table.clone(), target: table })
        };
        let names =
            [("", "a.orders"), ("", "orders"), ("public", "lines"), ("old", "lines"), ("public", "one")];
        let record: Record = names.map(|(schema, name)| known(TableName::new(schema, name))).into();
        for (wanted, found) in [
            ("orders", Ok("orders")),
            ("a.orders", Ok("a.orders")),
            ("one", Ok("public.one")),
            ("old.lines", Ok("old.lines")),
            ("lines", Err("lines is the name of several tables")),
            ("rders", Err("the migration has no table rders")),
        ] {
            let answer = find(&record, wanted);
            let answer = answer.as_deref().map_err(|error| error.message().to_owned());
            assert_eq!(answer, found.map_err(str::to_owned), "{wanted}");
        }
    }

    #[test]
    fn a_knob_is_read_or_refused_with_what_is_known() {
        let rate = |rows, bytes| Knob::MaxRate(MaxRate { rows, bytes });
        for (text, knob) in [
            ("max_rate=5000", rate(Some(5_000), None)),
            ("max_rate=20MB/s", rate(None, Some(20_000_000))),
            ("max_rate=0", rate(None, None)),
            ("workers=4", Knob::Workers(4)),
        ] {
            assert_eq!(Knob::read(text).unwrap(), knob, "{text}");
        }
        for text in ["max_rate", "max_rate=fast", "max_rate=20 miles", "workers=0", "workers=65", "colour=1"]
        {
            let error = Knob::read(text).unwrap_err();
            assert!(error.hint_text().unwrap().contains("workers=N"), "{text}");
        }
    }
}
