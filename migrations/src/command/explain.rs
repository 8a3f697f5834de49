//! `tidegate explain`.

use std::process::ExitCode;

use tidegate_core::error::{Code, code};
use tidegate_core::{Error, Result};

#[allow(clippy::print_stdout, reason = "the page is the answer")]
pub(super) fn explain(text: &str) -> Result<ExitCode> {
    match Code::find(text) {
        Some(code) => {
            print!("{}", code.page());
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let known: Vec<_> = Code::all().iter().map(|code| code.name()).collect();
            Err(Error::new(code::CONFIG_INVALID, format!("there is no error {text:?}"))
                .hint(format!("known: {}", known.join(" "))))
        }
    }
}
