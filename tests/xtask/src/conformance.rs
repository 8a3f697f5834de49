//! `cargo xtask conformance <adapter>`: what every adapter has to do, done by one of them. The suite itself is the crate
//! `tidegate-conformance`; an adapter that is checked has a test target of that name.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::libtest::Reader;
use crate::outcome::Tally;
use crate::test::{Run, report};
use crate::{stream, workspace};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The adapter, as its folder is called.
    adapter: String,
    /// quick (for every commit), full (some minutes) or soak.
    #[arg(long, default_value = "quick")]
    size: String,
    /// Writes a row a case to this file: what came of it and why.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// These cases alone: A1,B14
    #[arg(long, value_name = "CASES")]
    only: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let packages = checked()?;
    let package = format!("tidegate-{}", arguments.adapter);
    if !packages.contains(&package) {
        let known: Vec<_> = packages.iter().filter_map(|name| name.strip_prefix("tidegate-")).collect();
        return Err(format!(
            "`{}` has no conformance target (there are: {})",
            arguments.adapter,
            known.join(", ")
        ));
    }
    let mut words = vec!["--size".to_owned(), arguments.size.clone()];
    if let Some(file) = &arguments.json {
        // The target runs in the folder of its package.
        let file = std::path::absolute(file).map_err(|cause| format!("{}: {cause}", file.display()))?;
        words.extend(["--json".to_owned(), file.display().to_string()]);
    }
    words.extend(arguments.only.iter().flat_map(|only| ["--only".to_owned(), only.clone()]));
    let tally = suite(&package, &words, &Run::default());
    report(&tally, &[]);
    Ok(if tally.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every adapter, at once: they wait more than they work.
pub(crate) fn quick(run: &Run) -> Tally {
    let packages = match checked() {
        Ok(packages) => packages,
        Err(cause) => return Tally::failed(format!("conformance: {cause}")),
    };
    // Built before, so that no two of them build the same.
    let mut build = workspace::cargo(&["test", "--quiet", "--no-run", "--test", "conformance"]);
    packages.iter().for_each(|package| _ = build.args(["--package", package]));
    if !stream::run(&mut build, None, |_| ()).is_ok_and(|ended| ended.status.success()) {
        return Tally::failed("conformance: could not be built");
    }
    let words = ["--size".to_owned(), "quick".to_owned()];
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let suites: Vec<_> =
            packages.iter().map(|package| scope.spawn(|| suite(package, &words, run))).collect();
        for (package, suite) in packages.iter().zip(suites) {
            let failed = || Tally::failed(format!("conformance of {package}"));
            tally.add(suite.join().unwrap_or_else(|_| failed()));
        }
    });
    tally
}

fn suite(package: &str, words: &[String], run: &Run) -> Tally {
    let mut command: Command =
        workspace::cargo(&["test", "--quiet", "--package", package, "--test", "conformance", "--"]);
    command.args(words).envs(run.environment.iter().cloned());
    let mut reader = Reader::default();
    match stream::run(&mut command, None, |line| reader.line(line)) {
        Ok(ended) => reader.finish(&format!("conformance of {package}"), ended.status.success()),
        Err(cause) => Tally::failed(format!("conformance of {package}: cargo could not be run: {cause}")),
    }
}

/// The packages that have the target.
fn checked() -> Result<Vec<String>, String> {
    let metadata = workspace::metadata()?;
    let has_target = |package: &&cargo_metadata::Package| {
        package.targets.iter().any(|target| target.name == "conformance" && target.is_test())
    };
    let packages = metadata.workspace_packages();
    Ok(packages.into_iter().filter(has_target).map(|package| package.name.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_found_by_their_target() {
        let packages = checked().unwrap();
        for name in ["tidegate-memory", "tidegate-sqlite"] {
            assert!(packages.iter().any(|package| package == name), "{packages:?}");
        }
        let arguments = |adapter: &str| Arguments {
            adapter: adapter.to_owned(),
            size: "quick".to_owned(),
            json: None,
            only: None,
        };
        let cause = run(&arguments("nothing")).unwrap_err();
        assert!(cause.starts_with("`nothing` has no conformance target (there are: "), "{cause}");
    }
}
