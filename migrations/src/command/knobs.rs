//! `tidegate migrate pause|resume|skip|recopy|set`: wishes, kept in the state, which the runner grants within a second.

use std::process::ExitCode;

use tidegate_core::error::code;
use tidegate_core::{Error, Result};
use tidegate_flow::Status;
use tidegate_flow::run::{STATUS, WISHES, Wishes, change, read};

use crate::settings::Settings;

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

async fn wish(settings: &Settings, said: &str, wish: impl Fn(&mut Wishes)) -> Result<ExitCode> {
    let state = settings.state().await?;
    change(state.as_ref(), &settings.name, WISHES, wish).await?;
    let (status, _) = read::<Status>(state.as_ref(), &settings.name, STATUS).await?;
    let when = if status.running { "in force within a second" } else { "in force with the next run" };
    eprintln!("{said}; {when}");
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn pause(settings: &Settings, tables: &[String], pause: bool) -> Result<ExitCode> {
    let tables = known(settings, tables).await?;
    let said = if pause { "the crawl is to pause" } else { "the crawl is to go on" };
    wish(settings, said, |wishes| {
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

pub(super) async fn skip(settings: &Settings, tables: &[String]) -> Result<ExitCode> {
    named(tables)?;
    let tables = known(settings, tables).await?;
    wish(settings, "the table is to be left out", |wishes| {
        tables.iter().for_each(|table| *wishes.skips.entry(table.clone()).or_default() += 1);
    })
    .await
}

pub(super) async fn recopy(settings: &Settings, tables: &[String]) -> Result<ExitCode> {
    named(tables)?;
    let tables = known(settings, tables).await?;
    wish(settings, "the table is to be crawled anew", |wishes| {
        tables.iter().for_each(|table| *wishes.recopies.entry(table.clone()).or_default() += 1);
    })
    .await
}

pub(super) async fn set(settings: &Settings, knob: &str) -> Result<ExitCode> {
    let unknown = || {
        Error::new(code::CONFIG_INVALID, format!("{knob:?} cannot be set"))
            .hint("known: max_rate=ROWS, rows a second that are crawled at most, 0 for no limit")
    };
    known(settings, &[]).await?;
    let rate: u64 = knob.strip_prefix("max_rate=").and_then(|rate| rate.parse().ok()).ok_or_else(unknown)?;
    wish(settings, "the limit is to change", |wishes| wishes.rows_per_second_max = (rate > 0).then_some(rate))
        .await
}
