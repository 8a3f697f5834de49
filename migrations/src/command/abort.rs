//! `tidegate migrate abort`.

use std::process::ExitCode;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::{Catalog, StateStore, Store};
use tidegate_core::{Error, FlowName, Result, SystemClock};
use tidegate_flow::run::STATUS;
use tidegate_flow::seal;

use super::question::{agree, require_answer};
use crate::render::{say, tell};
use crate::settings::Settings;

/// Who holds the lease meanwhile, and for how long at most.
const HOLDER: &str = "abort";
const LEASE: Duration = Duration::from_secs(60);

pub(super) async fn abort(settings: &Settings, yes: bool, json: bool) -> Result<ExitCode> {
    require_answer("an abort", yes)?;
    let name = &settings.name;
    // The target has records of its own, wherever the state is.
    let (state, target) = (settings.state().await?, settings.target.state().await?);
    if !state.flows().await?.contains(name) && !target.flows().await?.contains(name) {
        return Err(Error::new(code::STATE_MISSING, format!("there is no migration {name}")).hint(
            "check --name, --to and --state; if its target is gone for good: tidegate migrate abort --source-only",
        ));
    }
    agree(
        yes,
        &format!("Remove what migration {name} made on {} and forget its state?", settings.source.location()),
    )?;
    // A runner has its lease where it has its record.
    if state.get(name, STATUS).await?.is_none() {
        refuse_if_kept(name, settings.source.catalog().await?.as_ref()).await?;
    }
    // Nobody may be running it, and nobody may start it meanwhile.
    state.hold(name, HOLDER, LEASE).await?;
    let removed = match remove(settings, target.as_ref()).await {
        Ok(removed) => removed,
        Err(error) => {
            // It may go on. What kept the abort from its end comes first.
            let _ = state.release(name, HOLDER).await;
            return Err(error);
        }
    };
    target.forget(name).await?;
    state.forget(name).await?;
    answer(name, removed == Removed::Own, json);
    match removed {
        Removed::Own => {
            tell(format_args!(
                "removed from the source, and the state is gone; the target's rows are as they were"
            ));
        }
        Removed::Anothers => tell(format_args!(
            "the state is gone; what the source keeps under the name {name} is for another target, and was left as it is"
        )),
        Removed::Nothing => tell(format_args!(
            "the state is gone; this source keeps nothing for migration {name}. If it was from another one, remove what \
             that one keeps: tidegate migrate abort --source-only --name {name} --from URL"
        )),
    }
    Ok(ExitCode::SUCCESS)
}

/// Whose that was which the source keeps under the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removed {
    Own,
    Anothers,
    Nothing,
}

/// Removes what was made on the source and the broker, unless it is another target's.
async fn remove(settings: &Settings, target: &dyn StateStore) -> Result<Removed> {
    let source = settings.source.catalog().await?;
    let mut removed = Removed::Own;
    match seal::check(&settings.name, source.as_ref(), target).await {
        Err(error) if error.code() == code::NAME_TAKEN => return Ok(Removed::Anothers),
        // An older copy has what was made on the source, unless it is from before that, or another database.
        Err(error) if error.code() == code::SOURCE_REPLACED => {
            if source.sealed(&settings.name).await?.is_none() {
                removed = Removed::Nothing;
            }
        }
        checked => checked?,
    }
    source.clean(&settings.name).await?;
    if let Some(via) = &settings.via {
        via.forget(&settings.name).await?;
    }
    Ok(removed)
}

/// For a target that is gone for good.
pub(super) async fn abort_source(
    name: &FlowName,
    source: &dyn Store,
    yes: bool,
    json: bool,
) -> Result<ExitCode> {
    require_answer("an abort", yes)?;
    agree(
        yes,
        &format!("Remove what {} keeps for migration {name}, whatever its target is?", source.location()),
    )?;
    let catalog = source.catalog().await?;
    refuse_if_kept(name, catalog.as_ref()).await?;
    let is_known = catalog.sealed(name).await?.is_some();
    // Also without a seal: it is what is made last.
    catalog.clean(name).await?;
    answer(name, is_known, json);
    if is_known {
        tell(format_args!(
            "removed from the source; a target that is still there has its rows and its state"
        ));
    } else {
        tell(format_args!(
            "the source keeps nothing for a migration {name}, or it had only begun to: it keeps nothing now"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

async fn refuse_if_kept(name: &FlowName, source: &dyn Catalog) -> Result<()> {
    tell(format_args!("looking for some seconds whether somebody runs it"));
    if seal::is_kept(name, source, SystemClock::shared().as_ref()).await? {
        return Err(Error::new(
            code::LEASE_HELD,
            format!("somebody runs migration {name}: its seal is changed"),
        )
        .hint("stop its runner first"));
    }
    Ok(())
}

fn answer(name: &FlowName, removed: bool, json: bool) {
    if json {
        say!("{}", serde_json::json!({"name": name.as_str(), "removed_from_source": removed}));
    }
}
