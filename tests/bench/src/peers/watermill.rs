//! Watermill, of Go: the program of `peers/watermill` does what it is asked, and says how long that took.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use xxhash_rust::xxh3::xxh3_64;

use crate::Result;
use crate::load::Load;
use crate::peers::{finish_blocking, kept, succeeded};

/// The versions of its modules, of which the report says the first.
const MODULES: &str = include_str!("../../peers/watermill/go.mod");
/// Everything that the program follows from.
const SOURCES: [&str; 4] = [
    MODULES,
    include_str!("../../peers/watermill/go.sum"),
    include_str!("../../peers/watermill/main.go"),
    include_str!("../../peers/watermill/brokers.go"),
];
/// For all messages of a run.
const LIMIT: Duration = Duration::from_secs(900);

/// The program, ready to be run.
#[derive(Clone, Debug)]
pub struct Watermill(PathBuf);

/// What it is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Send all messages.
    Publish,
    /// Take all messages.
    Consume,
}

impl Watermill {
    /// Finds it, or has it built by Go.
    pub fn find(may_fetch: bool) -> Result<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/watermill");
        let name = format!("watermill-{:016x}", xxh3_64(SOURCES.concat().as_bytes()));
        let folder = kept::folder(&name, may_fetch, |folder| {
            let beside = tempfile::tempdir()?;
            let mut go = tidegate_services::go_command(beside.path())?;
            go.args(["build", "-o"]).arg(folder.join("peer")).arg(".").current_dir(source);
            finish_blocking(&mut go)
        })?;
        Ok(Self(folder.join("peer")))
    }

    /// Its version.
    pub fn version() -> &'static str {
        let line =
            MODULES.lines().find_map(|line| line.trim().strip_prefix("github.com/ThreeDotsLabs/watermill v"));
        line.unwrap_or("unknown")
    }

    /// Sends or takes the messages of a topic that is there, at a broker's URL: how many a second.
    pub async fn run(&self, url: &str, doing: Doing, topic: &str, load: Load) -> Result<f64> {
        let (broker, address) = url.split_once("://").ok_or("a URL has no scheme")?;
        let doing = match doing {
            Doing::Publish => "publish",
            Doing::Consume => "consume",
        };
        let mut command = Command::new(&self.0);
        command.args([broker, address, doing, topic, &load.count.to_string(), &load.bytes.to_string()]);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(LIMIT, output).await??;
        succeeded(command.as_std(), &output)?;
        let said = String::from_utf8_lossy(&output.stdout);
        let nanos = said.trim().strip_prefix("done ").and_then(|nanos| nanos.parse::<f64>().ok());
        let nanos = nanos.ok_or_else(|| format!("Watermill's program said {said}"))?;
        Ok(load.count as f64 * 1e9 / nanos.max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_module() {
        assert!(Watermill::version().split('.').count() == 3, "{}", Watermill::version());
    }
}
