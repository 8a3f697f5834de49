//! `cargo xtask proof`: what Tidegate promises, shown. The proofs themselves are the program `tidegate-proof`.

use std::process::ExitCode;

use crate::outcome::Tally;
use crate::stream::passes;
use crate::test::Run;
use crate::workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// `sim`, `broker` or `kill`, and its options; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROOF")]
    rest: Vec<String>,
}

/// Histories, and histories a planted bug, of the short form.
const SIM: &[&str] = &["sim", "--n", "50000", "--hunt", "20000"];
/// Kills of the short form: of what starts again within a second, and of one broker that queues.
const KILLS: [&[&str]; 4] = [
    &["broker", "--n", "5", "--broker", "redis,nats"],
    &["kill", "--n", "5"],
    &["kill", "--n", "5", "--pair", "postgres-mongodb"],
    &["kill", "--n", "5", "--via", "nats"],
];
/// What the proofs with real brokers are built with beside what is always there.
const KAFKA: [&str; 2] = ["--features", "tidegate/kafka"];

/// The whole proof, in an optimised build.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let mut words: Vec<&str> = arguments.rest.iter().map(String::as_str).collect();
    let program = workspace::metadata()?.target_directory.join("release/tidegate");
    let features = if words.first() == Some(&"sim") { &[][..] } else { &KAFKA[..] };
    if words.first() == Some(&"kill") && !words.contains(&"--program") {
        let mut build = workspace::cargo(&["build", "--release", "--package", "tidegate-migrations"]);
        if !passes(build.args(features))? {
            return Ok(ExitCode::FAILURE);
        }
        words.extend(["--program", program.as_str()]);
    }
    let mut proof = workspace::cargo(&["run", "--release", "--package", "tidegate-proof"]);
    let done = passes(proof.args(features).arg("--").args(words))?;
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The short form, in the build that the tests have.
pub(crate) fn short(run: &Run) -> Tally {
    let mut tally = Tally::default();
    for words in [&[SIM][..], &KILLS[..]].concat() {
        tally.add(match prove(words, run) {
            Ok(true) => Tally::passed(),
            Ok(false) => Tally::gate("proof", &[format!("`cargo xtask proof {}` failed", words.join(" "))]),
            Err(cause) => Tally::gate("proof", &[cause]),
        });
    }
    tally
}

fn prove(words: &[&str], run: &Run) -> Result<bool, String> {
    let mut command = run.program("tidegate-proof")?;
    command.args(words);
    if words.first() == Some(&"kill") {
        command.arg("--program").arg(run.program("tidegate")?.get_program());
    }
    passes(&mut command)
}
