//! The program `tidegate`.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Rows come and go in pieces of megabytes. The C library keeps most of what it once had, by half as much again as is in
/// use; this one gives it back.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    tidegate_migrations::run(tidegate_migrations::Registry::standard())
}
