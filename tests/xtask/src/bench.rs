//! `cargo xtask bench`: how fast it is, beside others. The benchmarks themselves are the program `tidegate-bench`.

use std::process::ExitCode;

use crate::outcome::Tally;
use crate::test::Run;
use crate::{stream, workspace};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// `flow`, `verify` or `page`, and their options; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "BENCH")]
    rest: Vec<String>,
}

/// What the test command runs: every work once, with tiny sizes. It fails if a work does not move what it is to move,
/// and never because of a time.
const QUICK: [&[&str]; 2] = [&["flow", "--quick"], &["verify", "--quick"]];

/// Always an optimised build: there is nothing to learn from another.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let words: Vec<&str> = arguments.rest.iter().map(String::as_str).collect();
    let done = bench(&words, &["--release"], &Run::default())?;
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The smoke form, in the build that the tests have.
pub(crate) fn quick(run: &Run) -> Tally {
    let mut tally = Tally::default();
    for words in QUICK {
        tally.add(match bench(words, &[], run) {
            Ok(true) => Tally::passed(),
            Ok(false) => Tally::gate("bench", &[format!("`cargo xtask bench {}` failed", words.join(" "))]),
            Err(cause) => Tally::gate("bench", &[cause]),
        });
    }
    tally
}

/// Builds what the works run, the program of migrations among it, and runs them.
fn bench(words: &[&str], profile: &[&str], run: &Run) -> Result<bool, String> {
    let cargo = |words: &[&str]| {
        let mut command = workspace::cargo(words);
        command.envs(run.environment.iter().cloned());
        let ended =
            stream::run(&mut command, None, |_| ()).map_err(|e| format!("cargo could not be run: {e}"))?;
        Ok::<bool, String>(ended.status.success())
    };
    if words.first() == Some(&"flow") {
        let build = [&["build", "--package", "tidegate-migrations"], profile].concat();
        if !cargo(&build)? {
            return Ok(false);
        }
    }
    cargo(&[&["run", "--package", "tidegate-bench"], profile, &["--"], words].concat())
}
