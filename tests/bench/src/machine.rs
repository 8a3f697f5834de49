//! Where it was measured.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// What the figures depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The model of the processor.
    pub processor: String,
    /// How many cores everything shares.
    pub cores: usize,
    /// How much memory, in MiB.
    pub memory_mib: u64,
    /// The kernel.
    pub kernel: String,
    /// What was built: the commit, and whether the tree differed from it.
    pub commit: String,
    /// Whether the build was an optimised one.
    pub optimised: bool,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start().trim_start_matches(':').trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
        let kib: u64 = memory.trim_end_matches("kB").trim().parse().unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: kib / 1_024,
            kernel: kernel.trim().to_owned(),
            commit: commit(),
            optimised: !cfg!(debug_assertions),
        }
    }
}

/// The version of a package that this program was built with.
pub fn locked(package: &str) -> String {
    let text = include_str!("../../../Cargo.lock");
    let name = format!("name = \"{package}\"");
    let version = text.split("[[package]]").find(|entry| entry.lines().any(|line| line == name));
    let version = version.and_then(|entry| entry.lines().find_map(|line| line.strip_prefix("version = ")));
    version.map_or_else(|| "unknown".to_owned(), |version| version.trim_matches('"').to_owned())
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    match git(&["status", "--porcelain"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}, with changes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_that_are_locked() {
        assert_eq!(locked("tidegate-bench"), env!("CARGO_PKG_VERSION"));
        assert_eq!(locked("nobody"), "unknown");
    }
}
