//! `cargo xtask conformance <adapter>…`: what every adapter has to do, done by some of them. The suite itself is the crate
//! `tidegate-conformance`; an adapter that is checked has a test target of that
//! name, or, where a package has several, one of `conformance-` and its name.

mod page;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};

use crate::libtest::Reader;
use crate::outcome::Tally;
use crate::test::{Run, report};
use crate::{stream, workspace};

/// How many suites run at once: they wait more than they work, and with all of them at once messages come late.
const AT_ONCE: usize = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The adapters by their names; without a name all of them.
    adapters: Vec<String>,
    /// quick (for every commit), full (some minutes) or soak.
    #[arg(long, default_value = "quick")]
    size: String,
    /// Writes a row a case and adapter to this file: what came of it and why.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Makes the book's page of such rows, from this run's.
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// Rows of earlier runs, for the adapters that this one does not have.
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// These cases alone: A1,B14
    #[arg(long, value_name = "CASES")]
    only: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let known = checked()?;
    if let Some(strange) = arguments.adapters.iter().find(|adapter| !known.contains(adapter)) {
        return Err(format!("`{strange}` has no conformance target (there are: {})", known.join(", ")));
    }
    let built = workspace::build()?;
    let folder = tempfile::tempdir().map_err(|cause| cause.to_string())?;
    let (mut tally, mut rows) = (Tally::default(), Vec::new());
    let asked = &arguments.adapters;
    for adapter in if asked.is_empty() { &known } else { asked } {
        let suite = built.suites.get(adapter).ok_or_else(|| format!("{adapter} was not built"))?;
        let mut command = suite.command(&arguments.size);
        // The suite runs in the folder of its package.
        let file = folder.path().join(adapter);
        command.arg("--json").arg(&file);
        command.args(arguments.only.iter().flat_map(|only| ["--only", only]));
        tally.add(check(adapter, &mut command, &Run::default()));
        rows.extend(read(&file));
    }
    for file in &arguments.with {
        let earlier = read(file);
        if earlier.is_empty() {
            return Err(format!("{} has no rows", file.display()));
        }
        let is_new = |row: &Row| !rows.iter().any(|known: &Row| known.adapter == row.adapter);
        let earlier: Vec<_> = earlier.into_iter().filter(is_new).collect();
        rows.extend(earlier);
    }
    let write = |file: &Path, text: String| {
        std::fs::write(file, text).map_err(|cause| format!("{}: {cause}", file.display()))
    };
    if let Some(file) = &arguments.json {
        write(file, serde_json::to_string_pretty(&rows).map_err(|cause| cause.to_string())? + "\n")?;
    }
    if let Some(file) = &arguments.page {
        write(file, page::page(&rows))?;
    }
    report(&tally, &[]);
    Ok(if tally.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the suite says of a case, done by one adapter.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Row {
    id: String,
    rule: String,
    adapter: String,
    outcome: String,
    detail: String,
}

/// The rows of a suite; none of one that did not come to its end, which is told elsewhere.
fn read(file: &Path) -> Vec<Row> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Every adapter, as many at once as do not make each other late.
pub(crate) fn quick(run: &Run) -> Tally {
    let suites = match run.built() {
        Ok(built) => &built.suites,
        Err(cause) => return Tally::failed(format!("conformance: {cause}")),
    };
    let waiting = Mutex::new(suites.iter());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((adapter, suite)) = next() {
                    let found = check(adapter, &mut suite.command("quick"), run);
                    tally.lock().unwrap_or_else(PoisonError::into_inner).add(found);
                }
            });
        }
    });
    tally.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn check(adapter: &str, command: &mut Command, run: &Run) -> Tally {
    command.envs(run.environment.iter().cloned());
    let name = format!("conformance of {adapter}");
    let mut reader = Reader::of(&name);
    match stream::run(command, None, |line| reader.line(line)) {
        Ok(ended) => reader.finish(&name, ended.status.success()),
        Err(cause) => Tally::failed(format!("{name}: it could not be run: {cause}")),
    }
}

/// The adapters that have a target.
fn checked() -> Result<Vec<String>, String> {
    let metadata = workspace::metadata()?;
    let packages = metadata.workspace_packages().into_iter();
    let of = |package: &cargo_metadata::Package| {
        let checked = package.targets.iter().filter_map(|target| workspace::checked(&package.name, target));
        checked.collect::<Vec<_>>()
    };
    Ok(packages.flat_map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_found_by_their_target() {
        let adapters = checked().unwrap();
        for name in ["memory", "sqlite", "artemis", "activemq"] {
            assert!(adapters.iter().any(|adapter| adapter == name), "{adapters:?}");
        }
        let arguments = |adapter: &str| Arguments {
            adapters: vec![adapter.to_owned()],
            size: "quick".to_owned(),
            json: None,
            page: None,
            with: Vec::new(),
            only: None,
        };
        let cause = run(&arguments("nothing")).unwrap_err();
        assert!(cause.starts_with("`nothing` has no conformance target (there are: "), "{cause}");
    }
}
