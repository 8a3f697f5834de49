//! `tidegate migrate abort`.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::{Error, Result};
use tidegate_flow::run::STATUS;

use crate::settings::Settings;

pub(super) async fn abort(settings: &Settings, yes: bool) -> Result<ExitCode> {
    if !yes && !std::io::stdin().is_terminal() {
        return Err(Error::new(
            code::CONFIG_INVALID,
            "an abort has to be agreed to, and nobody can be asked",
        )
        .hint("give --yes"));
    }
    if !yes && !agreed(settings)? {
        return Err(Error::new(code::STOPPED, "nothing was changed").hint("answer yes, or give --yes"));
    }
    let state = settings.state().await?;
    // Nobody may be running it, and nobody may start it meanwhile.
    state.hold(&settings.name, "abort", Duration::from_secs(60)).await?;
    settings.source.catalog().await?.clean(&settings.name).await?;
    if let Some(via) = &settings.via {
        via.forget(&settings.name).await?;
    }
    let is_known = state.get(&settings.name, STATUS).await?.is_some();
    state.forget(&settings.name).await?;
    if !is_known {
        return Err(Error::new(code::STATE_MISSING, format!("there is no migration {}", settings.name))
            .hint("what a source had for one of this name was removed; check --name, --to and --state"));
    }
    eprintln!("removed from the source, and the state is gone; the target's rows are as they were");
    Ok(ExitCode::SUCCESS)
}

fn agreed(settings: &Settings) -> Result<bool> {
    eprint!(
        "Remove what migration {} made on {} and forget its state? [yes/no] ",
        settings.name,
        settings.source.location()
    );
    let broken = |e: std::io::Error| Error::new(code::INTERNAL, "the terminal cannot be read").because(e);
    std::io::stderr().flush().map_err(broken)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(broken)?;
    Ok(answer.trim() == "yes")
}
