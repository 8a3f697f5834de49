//! `tidegate config`.

use std::process::ExitCode;

use tidegate_core::error::code;
use tidegate_core::{Endpoint, Error, Result};

use crate::arguments::{Common, ConfigVerb};
use crate::mapping::Mapping;
use crate::render::say;
use crate::settings::File;

pub(super) fn config(verb: &ConfigVerb, common: &Common) -> Result<ExitCode> {
    match verb {
        ConfigVerb::Schema => {
            let schema = schemars::schema_for!(File);
            let text = serde_json::to_string_pretty(&schema)
                .map_err(|e| Error::new(code::INTERNAL, "the schema cannot be written").because(e))?;
            say!("{text}");
        }
        ConfigVerb::Check => {
            let path = common.config.as_deref().ok_or_else(|| {
                Error::new(code::CONFIG_INVALID, "which file is to be checked is not said")
                    .hint("tidegate config check -c FILE")
            })?;
            let file = File::read(path)?;
            for url in [&file.source.url, &file.target.url, &file.run.state].into_iter().flatten() {
                Endpoint::parse(url)?;
            }
            if let Some(url) = &file.run.via {
                Endpoint::parse(url)?;
            }
            Mapping::compile(&file.map)?;
            say!("{} is valid", path.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
