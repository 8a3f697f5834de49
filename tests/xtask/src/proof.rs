//! `cargo xtask proof`: what Tidegate promises, shown. The proofs themselves are the program `tidegate-proof`.

use std::process::ExitCode;

use crate::outcome::Tally;
use crate::test::Run;
use crate::{stream, workspace};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// `sim` or `kill`, and its options; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROOF")]
    rest: Vec<String>,
}

/// Histories, and histories a planted bug, of the short form.
const SIM: &[&str] = &["sim", "--n", "50000", "--hunt", "20000"];
/// Kills of the short form.
const KILLS: [&[&str]; 2] = [&["kill", "--n", "5"], &["kill", "--n", "5", "--pair", "postgres-mongodb"]];

/// The whole proof, in an optimised build.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let words: Vec<&str> = arguments.rest.iter().map(String::as_str).collect();
    Ok(if prove(&words, &["--release"], &Run::default())? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The short form, in the build that the tests have.
pub(crate) fn short(run: &Run) -> Tally {
    let mut tally = Tally::default();
    for words in [&[SIM][..], &KILLS[..]].concat() {
        tally.add(match prove(words, &[], run) {
            Ok(true) => Tally::passed(),
            Ok(false) => Tally::gate("proof", &[format!("`cargo xtask proof {}` failed", words.join(" "))]),
            Err(cause) => Tally::gate("proof", &[cause]),
        });
    }
    tally
}

/// Builds what a proof needs and runs it.
fn prove(words: &[&str], profile: &[&str], run: &Run) -> Result<bool, String> {
    let cargo = |words: &[&str]| {
        let mut command = workspace::cargo(words);
        command.envs(run.environment.iter().cloned());
        let ended =
            stream::run(&mut command, None, |_| ()).map_err(|e| format!("cargo could not be run: {e}"))?;
        Ok::<bool, String>(ended.status.success())
    };
    let mut program = Vec::new();
    if words.first() == Some(&"kill") && !words.contains(&"--program") {
        let build = [&["build", "--package", "tidegate-migrations"], profile].concat();
        if !cargo(&build)? {
            return Ok(false);
        }
        let folder = if profile.is_empty() { "debug" } else { "release" };
        let path = workspace::metadata()?.target_directory.join(folder).join("tidegate");
        program = vec!["--program".to_owned(), path.into_string()];
    }
    let program: Vec<&str> = program.iter().map(String::as_str).collect();
    let run = [&["run", "--package", "tidegate-proof"], profile, &["--"], words, &program].concat();
    cargo(&run)
}
