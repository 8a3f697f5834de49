//! Asks before something goes that does not come back.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::render::plain;

/// Nobody can be asked without a terminal.
pub(super) fn require_answer(what: &str, yes: bool) -> Result<()> {
    if yes || std::io::stdin().is_terminal() {
        return Ok(());
    }
    let text = format!("{what} has to be agreed to, and nobody can be asked");
    Err(Error::new(code::CONFIG_INVALID, text).hint("give --yes"))
}

/// Asks whoever is there.
pub(super) fn agree(yes: bool, question: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    let _ = write!(std::io::stderr(), "{} [yes/no] ", plain(question));
    let broken = |e: std::io::Error| Error::new(code::INTERNAL, "the terminal cannot be read").because(e);
    std::io::stderr().flush().map_err(broken)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(broken)?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(Error::new(code::STOPPED, "nothing was changed").hint("answer yes, or give --yes"))
}
