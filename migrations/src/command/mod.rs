//! One file a verb.

mod abort;
mod asked;
mod channel;
mod completions;
mod config;
mod demo;
mod dlq;
mod doctor;
mod explain;
mod infer;
mod knobs;
mod noted;
mod plan;
mod question;
mod run;
mod serve;
mod status;
mod verify;

use std::process::ExitCode;

use tidegate_core::{Error, Result};

use crate::arguments::{Arguments, Carrier, Ends, Flags, Migrate, Moved, RoleWord, Verb};
use crate::registry::Registry;
use crate::settings::{Settings, named_source};

/// What to do where nothing was named to look at.
const DOCTOR_OF_WHAT: &str =
    "give --broker URL for a broker alone; for a migration --from URL and --to URL, or a file with --config";

/// Does what the command line says.
pub(crate) async fn dispatch(arguments: Arguments, registry: &Registry) -> Result<ExitCode> {
    let Arguments { common, verb } = arguments;
    let settings = |flags: &Flags| Settings::new(&common, flags, registry);
    let of = |ends: &Ends| settings(&ends.into());
    let carried =
        |ends: &Ends, carrier: &Carrier| settings(&Flags { carrier: carrier.clone(), ..ends.into() });
    let moving = |ends: &Ends, moved: &Moved| settings(&Flags { moved: moved.clone(), ..ends.into() });
    let json = common.json;
    match &verb {
        Verb::Demo { seconds, dir } => demo::demo(*seconds, dir.as_deref(), json).await,
        Verb::Plan { flags, infer: Some(documents) } => {
            infer::infer(&common, flags, registry, *documents).await
        }
        Verb::Plan { flags, infer: None } => plan::show(&settings(flags)?, json).await,
        Verb::Migrate(verb) => match verb {
            Migrate::Run { flags, listen, until, role } => {
                let settings = settings(flags)?;
                match role {
                    RoleWord::Target => serve::serve(&settings, *until, *listen).await,
                    role => run::run(&settings, *role, *until, *listen, &common).await,
                }
            }
            Migrate::Status { ends, watch } => status::status(&of(ends)?, *watch, json).await,
            Migrate::Pause { ends, tables } => knobs::pause(&of(ends)?, tables, true, json).await,
            Migrate::Resume { ends, tables } => knobs::pause(&of(ends)?, tables, false, json).await,
            Migrate::Skip { ends, tables } => knobs::skip(&of(ends)?, tables, json).await,
            Migrate::Recopy { ends, tables } => knobs::recopy(&of(ends)?, tables, json).await,
            Migrate::Set { ends, knob } => knobs::set(&of(ends)?, knob, json).await,
            Migrate::Verify { ends, moved, limit } => {
                verify::verify(&moving(ends, moved)?, *limit, &common).await
            }
            Migrate::Abort { ends, carrier, source_only: false, yes } => {
                abort::abort(&carried(ends, carrier)?, *yes, json).await
            }
            Migrate::Abort { ends, carrier: _, source_only: true, yes } => {
                let (name, source) = named_source(&common, ends, registry)?;
                abort::abort_source(&name, source.as_ref(), *yes, json).await
            }
        },
        Verb::Doctor { broker: Some(url), .. } => doctor::broker(registry, url, &common).await,
        Verb::Doctor { broker: None, ends, carrier } => {
            let is_bare = common.config.is_none() && ends.from.is_none() && ends.to.is_none();
            let or_broker = |error: Error| if is_bare { error.hint(DOCTOR_OF_WHAT) } else { error };
            doctor::doctor(&carried(ends, carrier).map_err(or_broker)?, json).await
        }
        Verb::Grants { side, user, url } => doctor::grants(registry, url, *side, user.as_deref(), json).await,
        Verb::Dlq(verb) => dlq::dlq(verb, registry, &common).await,
        Verb::Channel(verb) => channel::channel(verb, registry, &common).await,
        Verb::Config(verb) => config::config(verb, &common),
        Verb::Explain { code } => explain::explain(code.as_deref(), json),
        Verb::Completions { shell } => completions::completions(*shell),
        Verb::Man => completions::man(),
    }
}
