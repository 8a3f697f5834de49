//! `cargo xtask ci`: the gates alone.

use std::process::ExitCode;

use crate::gates::{self, GATES};
use crate::test::{Run, report};

/// Gates that need more than a toolchain and the registries, and what each needs.
const FULL: &[(&str, &str)] = &[
    ("advisories", "an advisory database and cargo-deny"),
    ("msrv", "the oldest supported toolchain"),
    ("features", "cargo-hack"),
    ("semver", "a published version to compare with"),
    ("fuzzing", "a nightly toolchain"),
];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Also names the gates that need more than this machine is sure to have.
    #[arg(long)]
    full: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    gates::provision();
    let mut tally = Run::default().steps(GATES.iter());
    let mut not_run = Vec::new();
    if arguments.full {
        for (name, needs) in FULL {
            println!("{name} needs {needs}");
            not_run.push((*name).to_owned());
        }
        tally.skipped += FULL.len();
    }
    report(&tally, &not_run);
    Ok(if tally.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
