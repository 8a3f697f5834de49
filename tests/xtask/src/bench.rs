//! `cargo xtask bench`: how fast it is, beside others. The benchmarks themselves are the program `tidegate-bench`.

use std::process::ExitCode;

use crate::{stream, workspace};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// `flow` or `verify`, and their options; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "BENCH")]
    rest: Vec<String>,
}

/// Always an optimised build: there is nothing to learn from another.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let words: Vec<&str> = arguments.rest.iter().map(String::as_str).collect();
    let all = [&["run", "--quiet", "--release", "--package", "tidegate-bench", "--"], &words[..]].concat();
    let ended = stream::run(&mut workspace::cargo(&all), None, |_| ())
        .map_err(|e| format!("cargo could not be run: {e}"))?;
    Ok(if ended.status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
