//! `tidegate explain`.

use std::process::ExitCode;

use crate::render::say;
use tidegate_core::error::{Code, code};
use tidegate_core::{Error, Result};

pub(super) fn explain(text: &str, json: bool) -> Result<ExitCode> {
    match Code::find(text) {
        Some(code) => {
            let page = code.page().trim_end();
            if json {
                let number = format!("TG{:04}", code.number());
                say!("{}", serde_json::json!({"code": number, "name": code.name(), "page": page}));
            } else {
                say!("{page}");
            }
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let known: Vec<_> = Code::all().iter().map(|code| code.name()).collect();
            Err(Error::new(code::CONFIG_INVALID, format!("there is no error {text:?}"))
                .hint(format!("known: {}", known.join(" "))))
        }
    }
}
