//! `tidegate completions` and `tidegate man`.

use std::process::ExitCode;

use clap::CommandFactory;
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::arguments::Arguments;

pub(super) fn completions(shell: clap_complete::Shell) -> Result<ExitCode> {
    clap_complete::generate(shell, &mut Arguments::command(), "tidegate", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man() -> Result<ExitCode> {
    let page = clap_mangen::Man::new(Arguments::command());
    page.render(&mut std::io::stdout())
        .map_err(|e| Error::new(code::INTERNAL, "the manual page cannot be written").because(e))?;
    Ok(ExitCode::SUCCESS)
}
