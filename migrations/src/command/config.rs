//! `tidegate config`.

use std::process::ExitCode;

use tidegate_core::error::code;
use tidegate_core::{Endpoint, Error, FlowName, Result};

use crate::arguments::{Common, ConfigVerb};
use crate::mapping::{Mapping, table_name};
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
            file.run.name.as_ref().map(FlowName::new).transpose()?;
            if let Some(url) = &file.run.via {
                Endpoint::parse(url)?;
            }
            Mapping::compile(&file.map)?;
            let names = file.map.iter().filter_map(|map| map.to.as_ref()).chain(&file.source.tables);
            names.into_iter().try_for_each(|name| table_name(name).map(drop))?;
            if common.json {
                say!("{}", serde_json::json!({"file": path.display().to_string(), "valid": true}));
            } else {
                say!("{} is valid", path.display());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
