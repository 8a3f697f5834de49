//! `tidegate completions`.

use std::process::ExitCode;

use clap::CommandFactory;
use tidegate_core::Result;

use crate::arguments::Arguments;

pub(super) fn completions(shell: clap_complete::Shell) -> Result<ExitCode> {
    clap_complete::generate(shell, &mut Arguments::command(), "tidegate", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}
