//! Runs every example and compares what it prints with what it promises.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use regex::Regex;
use serde::Deserialize;
use tidegate_services::Service;

use crate::outcome::Tally;
use crate::test::Run;
use crate::{stream, workspace};

/// `expected.toml` of an example.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    /// For the shell, in the root of the workspace; programs of the workspace are called by their names.
    command: String,
    /// After that many seconds it is killed and has failed.
    limit_seconds: u64,
    /// A regular expression that the output has to match somewhere (`.` stays within its line).
    output: String,
    /// Services with which it is run once more each, their URL in `$BROKER`, which is empty at first.
    #[serde(default)]
    brokers: Vec<String>,
}

pub(crate) fn run(run: &Run) -> Tally {
    let path = match run.built() {
        Ok(built) => path(&built.programs),
        Err(cause) => return Tally::failed(format!("examples: {cause}")),
    };
    let mut tally = Tally::default();
    for folder in folders(&workspace::root().join("examples")) {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("-- example {name}");
        match check(&folder, run, &path) {
            Ok(()) => tally.add(Tally::passed()),
            Err(cause) => {
                println!("example {name}: {cause}");
                tally.add(Tally::failed(format!("example {name}: {cause}")));
            }
        }
    }
    tally
}

fn folders(examples: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(examples).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

/// Where the shell looks for programs: among those of the workspace first.
fn path(programs: &BTreeMap<String, PathBuf>) -> OsString {
    let ours = programs.values().filter_map(|program| program.parent()).take(1).map(Path::to_owned);
    let others = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(ours.chain(std::env::split_paths(&others))).unwrap_or(others)
}

fn check(folder: &Path, run: &Run, path: &OsStr) -> Result<(), String> {
    let text = fs::read_to_string(folder.join("expected.toml"))
        .map_err(|cause| format!("expected.toml: {cause}"))?;
    let expected: Expected = toml::from_str(&text).map_err(|cause| format!("expected.toml: {cause}"))?;
    let pattern = Regex::new(&expected.output).map_err(|cause| format!("expected.toml: {cause}"))?;
    let mut urls = vec![OsString::new()];
    for name in &expected.brokers {
        let service: Service = name.parse().map_err(|cause| format!("expected.toml: {cause}"))?;
        match run.url(service) {
            Some(url) => urls.push(url),
            None => println!("without {service}, which is not there"),
        }
    }
    urls.iter().try_for_each(|url| once(&expected, &pattern, url, run, path))
}

fn once(expected: &Expected, pattern: &Regex, url: &OsStr, run: &Run, path: &OsStr) -> Result<(), String> {
    let mut command = Command::new("sh");
    command
        .args(["-c", &expected.command])
        .current_dir(workspace::root())
        .envs(run.environment.iter().cloned())
        .env("BROKER", url)
        .env("PATH", path);
    let on = if url.is_empty() { String::new() } else { format!("on {}: ", url.display()) };
    let mut output = String::new();
    let limit = Duration::from_secs(expected.limit_seconds);
    let ended = stream::run(&mut command, Some(limit), |line| {
        output.push_str(line);
        output.push('\n');
    });
    let ended = ended.map_err(|cause| cause.to_string())?;
    if ended.timed_out {
        return Err(format!("{on}not done after {limit:?}"));
    }
    if !ended.status.success() {
        return Err(format!("{on}{}", ended.status));
    }
    if pattern.is_match(&output) { Ok(()) } else { Err(format!("{on}the output does not match `{pattern}`")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(expected: &str) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("expected.toml"), expected).unwrap();
        check(folder.path(), &Run::default(), &path(&BTreeMap::new()))
    }

    #[test]
    fn an_example_keeps_its_promise_or_fails() {
        assert_eq!(
            outcome("command = 'echo moved 3 rows'\nlimit_seconds = 5\noutput = '(?m)^moved \\d+ rows$'"),
            Ok(())
        );
        for (expected, cause) in [
            ("command = 'echo moved'\nlimit_seconds = 5\noutput = 'verified'", "does not match"),
            ("command = 'echo verified; exit 4'\nlimit_seconds = 5\noutput = 'verified'", "exit status: 4"),
            ("command = 'echo verified; sleep 60'\nlimit_seconds = 1\noutput = 'verified'", "not done after"),
            ("command = 'true'\nlimit_seconds = 1\noutput = '('", "expected.toml"),
            ("command = 'true'\nlimit = 1\noutput = ''", "expected.toml"),
            ("command = 'true'\nlimit_seconds = 1\noutput = ''\nbrokers = ['pigeons']", "pigeons"),
        ] {
            assert!(outcome(expected).unwrap_err().contains(cause), "{expected}");
        }
    }

    #[test]
    fn an_example_without_a_promise_fails() {
        let folder = tempfile::tempdir().unwrap();
        let cause = check(folder.path(), &Run::default(), OsStr::new("")).unwrap_err();
        assert!(cause.contains("expected.toml"), "{cause}");
    }
}
