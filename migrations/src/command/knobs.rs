//! `tidegate migrate pause|resume|skip|recopy|set`: wishes, kept in the state, which the runner grants within a second.

use std::process::ExitCode;

use tidegate_core::error::code;
use tidegate_core::{Error, Result};
use tidegate_flow::run::{STATUS, WISHES, Wishes, change, read};
use tidegate_flow::verify::Report;
use tidegate_flow::{MaxRate, Status};

use super::status::VERIFIED;

use crate::render::say;
use crate::settings::{Settings, WORKERS_MAX};

/// The names of tables as the status has them.
async fn known(settings: &Settings, tables: &[String]) -> Result<Vec<String>> {
    let state = settings.state().await?;
    let (status, version) = read::<Status>(state.as_ref(), &settings.name, STATUS).await?;
    if version == 0 {
        return Err(Error::new(code::STATE_MISSING, format!("there is no migration {}", settings.name))
            .hint("check --name, --to and --state"));
    }
    let find = |wanted: &String| {
        let tables = status.tables.iter().map(|table| &table.source);
        let mut fits = tables.filter(|name| *name == wanted || name.ends_with(&format!(".{wanted}")));
        fits.next().cloned().ok_or_else(|| {
            let known: Vec<_> = status.tables.iter().map(|table| table.source.as_str()).collect();
            Error::new(code::TABLE_MISSING, format!("the migration has no table {wanted}"))
                .hint(format!("it has: {}", known.join(" ")))
        })
    };
    tables.iter().map(find).collect()
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

fn named(tables: &[String]) -> Result<()> {
    if tables.is_empty() {
        return Err(
            Error::new(code::CONFIG_INVALID, "--table is missing").hint("name the table: --table orders")
        );
    }
    Ok(())
}

pub(super) async fn skip(settings: &Settings, tables: &[String], json: bool) -> Result<ExitCode> {
    named(tables)?;
    let tables = known(settings, tables).await?;
    wish(settings, "the table is to be left out", json, |wishes| {
        tables.iter().for_each(|table| *wishes.skips.entry(table.clone()).or_default() += 1);
    })
    .await
}

pub(super) async fn recopy(settings: &Settings, tables: &[String], json: bool) -> Result<ExitCode> {
    named(tables)?;
    let tables = known(settings, tables).await?;
    // What was compared before says nothing about the table any more.
    let state = settings.state().await?;
    change(state.as_ref(), &settings.name, VERIFIED, |report: &mut Option<Report>| *report = None).await?;
    wish(settings, "the table is to be crawled anew", json, |wishes| {
        tables.iter().for_each(|table| *wishes.recopies.entry(table.clone()).or_default() += 1);
    })
    .await
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
    use super::*;

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
