//! One file a verb.

mod abort;
mod completions;
mod config;
mod demo;
mod doctor;
mod explain;
mod infer;
mod knobs;
mod plan;
mod run;
mod serve;
mod status;
mod verify;

use std::process::ExitCode;

use tidegate_core::Result;

use crate::arguments::{Arguments, Migrate, RoleWord, Verb};
use crate::registry::Registry;
use crate::settings::{Settings, named_source};

/// Does what the command line says.
pub(crate) async fn dispatch(arguments: Arguments, registry: &Registry) -> Result<ExitCode> {
    let Arguments { common, verb } = arguments;
    let settings = |ends| Settings::new(&common, ends, registry);
    match &verb {
        Verb::Demo { seconds, dir } => demo::demo(*seconds, dir.as_deref(), common.json).await,
        Verb::Plan { ends, infer: Some(documents) } => {
            infer::infer(&common, ends, registry, *documents).await
        }
        Verb::Plan { ends, infer: None } => plan::show(&settings(ends)?, common.json).await,
        Verb::Migrate(verb) => match verb {
            Migrate::Run { ends, listen, until, role } => {
                let settings = settings(ends)?;
                match role {
                    RoleWord::Target => serve::serve(&settings, *until, *listen).await,
                    role => run::run(&settings, *role, *until, *listen, &common).await,
                }
            }
            Migrate::Status { ends, watch } => status::status(&settings(ends)?, *watch, common.json).await,
            Migrate::Pause { ends } => knobs::pause(&settings(ends)?, &ends.tables, true, common.json).await,
            Migrate::Resume { ends } => {
                knobs::pause(&settings(ends)?, &ends.tables, false, common.json).await
            }
            Migrate::Skip { ends } => knobs::skip(&settings(ends)?, &ends.tables, common.json).await,
            Migrate::Recopy { ends } => knobs::recopy(&settings(ends)?, &ends.tables, common.json).await,
            Migrate::Set { ends, knob } => knobs::set(&settings(ends)?, knob, common.json).await,
            Migrate::Verify { ends, limit } => {
                let settings = settings(ends)?;
                let report = verify::compare(&settings, None).await?;
                verify::show(report, status::is_run(&settings).await?, *limit, common.json)
            }
            Migrate::Abort { ends, source_only: false, yes } => {
                abort::abort(&settings(ends)?, *yes, common.json).await
            }
            Migrate::Abort { ends, source_only: true, yes } => {
                let (name, source) = named_source(&common, ends, registry)?;
                abort::abort_source(&name, source.as_ref(), *yes, common.json).await
            }
        },
        Verb::Doctor { ends } => doctor::doctor(&settings(ends)?, common.json).await,
        Verb::Grants { side, user, url } => doctor::grants(registry, url, *side, user, common.json).await,
        Verb::Config(verb) => config::config(verb, &common),
        Verb::Explain { code } => explain::explain(code.as_deref(), common.json),
        Verb::Completions { shell } => completions::completions(*shell),
        Verb::Man => completions::man(),
    }
}
