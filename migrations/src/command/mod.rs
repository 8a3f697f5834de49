//! One file a verb.

mod abort;
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

use tidegate_core::Result;

use crate::arguments::{Arguments, Carrier, Ends, Flags, Migrate, Moved, RoleWord, Verb};
use crate::registry::Registry;
use crate::settings::{Settings, named_source};

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
        Verb::Doctor { broker: Some(url), .. } => doctor::broker(registry, url, json).await,
        Verb::Doctor { broker: None, ends, carrier } => doctor::doctor(&carried(ends, carrier)?, json).await,
        Verb::Grants { side, user, url } => doctor::grants(registry, url, *side, user.as_deref(), json).await,
        Verb::Dlq(verb) => dlq::dlq(verb, registry, json).await,
        Verb::Channel(verb) => channel::channel(verb, registry, json).await,
        Verb::Config(verb) => config::config(verb, &common),
        Verb::Explain { code } => explain::explain(code.as_deref(), json),
        Verb::Completions { shell } => completions::completions(*shell),
        Verb::Man => completions::man(),
    }
}
