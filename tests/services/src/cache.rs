//! The folder of what was fetched and prepared, shared by every process of this user.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// `TIDEGATE_CACHE`, else `$XDG_CACHE_HOME/tidegate`, else `~/.cache/tidegate`.
pub fn folder() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("TIDEGATE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("tidegate")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/tidegate")))
        .unwrap_or_else(|| std::env::temp_dir().join("tidegate-cache"))
}

/// Gives the folder `name` of the cache, made by `make` if it is not there yet.
///
/// `make` fills a folder beside it, which is renamed when it is complete: a killed process leaves nothing that looks
/// whole. A lock file lets one process make it while the others wait.
pub(crate) fn entry(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = folder();
    let target = cache.join(name);
    if target.is_dir() {
        return Ok(target);
    }
    let _lock = lock(name)?;
    if target.is_dir() {
        return Ok(target);
    }
    let unfinished = tempfile::Builder::new()
        .prefix(&format!("{name}.unfinished-"))
        .tempdir_in(&cache)
        .map_err(Error::io(format!("no folder in the cache {}", cache.display())))?;
    make(unfinished.path())?;
    fs::rename(unfinished.path(), &target).map_err(Error::io(format!("no folder {}", target.display())))?;
    Ok(target)
}

/// Waits for the lock `name`; it ends with the value, or with the process.
pub(crate) fn lock(name: &str) -> Result<File> {
    let cache = folder();
    fs::create_dir_all(&cache).map_err(Error::io(format!("no cache folder {}", cache.display())))?;
    let path = cache.join(format!("{name}.lock"));
    let file = File::create(&path).map_err(Error::io(format!("no lock file {}", path.display())))?;
    file.lock().map_err(Error::io(format!("{} could not be locked", path.display())))?;
    Ok(file)
}
