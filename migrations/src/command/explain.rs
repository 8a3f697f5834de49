//! `tidegate explain`.

use std::process::ExitCode;

use crate::render::say;
use tidegate_core::error::{Code, code};
use tidegate_core::{Error, Result};

pub(super) fn explain(text: Option<&str>, json: bool) -> Result<ExitCode> {
    let Some(text) = text else {
        if json {
            let codes = Code::all().iter().map(|code| (code.name(), format!("TG{:04}", code.number())));
            say!("{}", serde_json::Value::from_iter(codes));
        } else {
            Code::all().iter().for_each(|code| say!("{code}"));
        }
        return Ok(ExitCode::SUCCESS);
    };
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
            let near = Code::all().iter().map(|code| code.name()).filter(|name| name.contains(text));
            let near: Vec<_> = near.collect();
            let near =
                if near.is_empty() { String::new() } else { format!("; perhaps {}", near.join(" or ")) };
            Err(Error::new(code::CONFIG_INVALID, format!("there is no error {text:?}"))
                .hint(format!("tidegate explain lists them{near}")))
        }
    }
}
