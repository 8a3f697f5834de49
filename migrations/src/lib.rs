//! The program `tidegate` as a library, so that a user's own stores get every verb.
//!
//! ```no_run
//! use tidegate_migrations::{Registry, run};
//!
//! fn main() -> std::process::ExitCode {
//!     let registry = Registry::standard();
//!     // registry.add("acme", |endpoint| …);
//!     run(registry)
//! }
//! ```

mod arguments;
mod command;
mod listen;
mod mapping;
mod progress;
mod registry;
mod render;
mod sample;
mod settings;

pub use registry::Registry;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::arguments::Arguments;

/// Reads the command line, does what it says, and gives the exit status.
pub fn run(registry: Registry) -> ExitCode {
    // Usage errors print themselves and end with 2, help and version with 0: clap's own words and codes.
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    log_to_stderr(&arguments);
    let json = arguments.common.json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            return render::failure(
                &tidegate_core::Error::new(tidegate_core::code::INTERNAL, e.to_string()),
                json,
            );
        }
    };
    let outcome = runtime.block_on(command::dispatch(arguments, &registry));
    // Readers of files and servers may be in the middle of something that no longer matters.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    match outcome {
        Ok(_) if !render::is_whole() => ExitCode::FAILURE,
        Ok(code) => code,
        Err(error) => render::failure(&error, json),
    }
}

fn log_to_stderr(arguments: &Arguments) {
    let level = match (arguments.common.quiet, arguments.common.verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        _ => "debug",
    };
    let filter = EnvFilter::builder()
        .with_default_directive(tracing_subscriber::filter::LevelFilter::WARN.into())
        // All of ours begin with this word. The clients of NATS and RabbitMQ log as errors what their adapters ask, and tell of.
        .parse_lossy(format!("warn,async_nats=off,lapin=off,tidegate={level}"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // Whoever does not read it has had enough.
        .log_internal_errors(false)
        .try_init();
}

/// Compiles the programs that the pages show.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../docs/operating/mapping.md")]
    struct Mapping;
    #[doc = include_str!("../../docs/programs.md")]
    struct Programs;
}
