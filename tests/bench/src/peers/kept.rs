//! What a peer consists of, fetched once and kept in the cache of the servers.

use std::path::{Path, PathBuf};

use tidegate_services::cache_folder;

use crate::Result;

/// The folder `name` of the cache. It is filled by `make` if it is not there and may be fetched; until it is whole it
/// has another name.
pub(crate) fn folder(name: &str, may_fetch: bool, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = cache_folder().join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    if !may_fetch {
        return Err(format!("{name} is not in the cache; a run without --quick fetches it").into());
    }
    std::fs::create_dir_all(cache_folder())?;
    let unfinished = tempfile::Builder::new().prefix(&format!("{name}.")).tempdir_in(cache_folder())?;
    make(unfinished.path())?;
    match std::fs::rename(unfinished.path(), &folder) {
        // Somebody else was faster.
        Err(_) if folder.is_dir() => {}
        renamed => renamed?,
    }
    Ok(folder)
}
