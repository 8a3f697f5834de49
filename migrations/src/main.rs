//! The program `tidegate`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate_migrations::run(tidegate_migrations::Registry::standard())
}
