//! `cargo xtask proof`: what Tidegate promises, shown. The proofs themselves are the program `tidegate-proof`.

use std::process::ExitCode;

use crate::outcome::Tally;
use crate::test::Run;
use crate::{stream, workspace};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// `sim` and its options; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROOF")]
    rest: Vec<String>,
}

/// The whole proof, in an optimised build.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let mut words = vec!["run", "--quiet", "--release", "--package", "tidegate-proof", "--"];
    words.extend(arguments.rest.iter().map(String::as_str));
    let mut command = workspace::cargo(&words);
    let ended =
        stream::run(&mut command, None, |_| ()).map_err(|e| format!("cargo could not be run: {e}"))?;
    Ok(if ended.status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The short form, in the build that the tests have.
pub(crate) fn short(run: &Run) -> Tally {
    let words =
        ["run", "--quiet", "--package", "tidegate-proof", "--", "sim", "--n", "50000", "--hunt", "20000"];
    let mut command = workspace::cargo(&words);
    command.envs(run.environment.iter().cloned());
    match stream::run(&mut command, None, |_| ()) {
        Ok(ended) if ended.status.success() => Tally::passed(),
        Ok(ended) => Tally::gate("proof", &[format!("`cargo {}`: {}", words.join(" "), ended.status)]),
        Err(cause) => Tally::gate("proof", &[format!("cargo could not be run: {cause}")]),
    }
}
