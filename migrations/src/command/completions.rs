//! `tidegate completions` and `tidegate man`.

use std::process::ExitCode;

use clap::CommandFactory;
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::arguments::Arguments;
use crate::render::say;

pub(super) fn completions(shell: clap_complete::Shell) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "tidegate", &mut text);
    say!("{}", String::from_utf8_lossy(&text).trim_end());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man() -> Result<ExitCode> {
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(Arguments::command());
    page.render(&mut text)
        .map_err(|e| Error::new(code::INTERNAL, "the manual page cannot be written").because(e))?;
    say!("{}", String::from_utf8_lossy(&text).trim_end());
    Ok(ExitCode::SUCCESS)
}
