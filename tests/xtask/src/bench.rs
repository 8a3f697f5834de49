//! `cargo xtask bench`: how fast it is, beside others. The benchmarks themselves are the program `tidegate-bench`.

use std::process::ExitCode;

use crate::gates;
use crate::outcome::Tally;
use crate::stream::passes;
use crate::test::Run;
use crate::workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// `flow`, `verify`, `brokers` or `page`, and their options; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "BENCH")]
    rest: Vec<String>,
}

/// What the test command runs: every work once, with tiny sizes. It fails if a work does not move what it is to move,
/// and never because of a time.
const QUICK: [&[&str]; 3] = [&["flow", "--quick"], &["verify", "--quick"], &["brokers", "--quick"]];

/// Always an optimised build: there is nothing to learn from another.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    gates::provision();
    let mut build = workspace::cargo(&["build", "--release", "--package", "tidegate-migrations"]);
    let mut bench = workspace::cargo(&["run", "--release", "--package", "tidegate-bench", "--"]);
    bench.args(&arguments.rest);
    // A work runs the program of migrations.
    let is_built = arguments.rest.first().is_none_or(|work| work != "flow") || passes(&mut build)?;
    Ok(if is_built && passes(&mut bench)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The smoke form, in the build that the tests have.
pub(crate) fn quick(run: &Run) -> Tally {
    let mut tally = Tally::default();
    for words in QUICK {
        let passed = run.program("tidegate-bench").and_then(|mut program| passes(program.args(words)));
        tally.add(match passed {
            Ok(true) => Tally::passed(),
            Ok(false) => Tally::gate("bench", &[format!("`cargo xtask bench {}` failed", words.join(" "))]),
            Err(cause) => Tally::gate("bench", &[cause]),
        });
    }
    tally
}
