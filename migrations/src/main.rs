//! The program `tidegate`.

use std::process::ExitCode;

/// From this size on the C library maps a buffer by itself, and unmaps it when it is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES: std::ffi::c_int = 1 << 20;

/// Keeps the C library from raising that size to that of the buffers that it sees freed: rows come and go in pieces of
/// megabytes, and what it keeps of them is as much again as is in use.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "there is no safe way, and no other place")]
fn give_memory_back() {
    // SAFETY: it sets a number of the allocator, at any time. A refusal changes nothing.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES) };
}

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    give_memory_back();
    tidegate_migrations::run(tidegate_migrations::Registry::standard())
}
