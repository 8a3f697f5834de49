//! A server's own folder, and the end of those whose owner is gone.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::account::{Account, is_root};
use crate::process::Lifetime;
use crate::{Error, Result, Service};

/// A folder that goes away with its value, unless it is kept.
#[derive(Debug)]
pub(crate) struct Folder {
    folder: Option<TempDir>,
    path: PathBuf,
    /// Held while the owner lives, so that a later process can tell what was left behind.
    _owner: Option<File>,
}

impl Folder {
    /// Makes a folder that `account` (or this user) owns.
    pub(crate) fn create(service: Service, account: Option<Account>, lifetime: Lifetime) -> Result<Folder> {
        let root = root();
        let parent = match lifetime {
            Lifetime::Process => root.join("run"),
            Lifetime::Background => root.join("background"),
        };
        let failed = || format!("no folder for a server in {}", parent.display());
        fs::create_dir_all(&parent).map_err(Error::io(failed()))?;
        if lifetime == Lifetime::Process {
            sweep(&parent);
        }
        let prefix = format!("{service}-");
        let folder =
            tempfile::Builder::new().prefix(&prefix).tempdir_in(&parent).map_err(Error::io(failed()))?;
        let path = folder.path().to_owned();
        let owner = File::create(path.join(OWNER)).map_err(Error::io(failed()))?;
        owner.lock().map_err(Error::io(failed()))?;
        give(&path, account)?;
        Ok(Folder { folder: Some(folder), path, _owner: Some(owner) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder where it is.
    pub(crate) fn keep(&mut self) {
        if let Some(folder) = self.folder.take() {
            let _path = folder.keep();
        }
    }
}

const OWNER: &str = "owner.lock";

/// Servers run under an account that may not enter root's home, and a socket's path has a limit of 107 bytes: so this is
/// the temporary folder, not the cache.
fn root() -> PathBuf {
    let name = format!("tidegate-{}", rustix::process::geteuid().as_raw());
    let temporary = std::env::temp_dir();
    let fits = temporary.as_os_str().len() < 40 && (!is_root() || everybody_may_enter(&temporary));
    if fits { temporary.join(name) } else { Path::new("/tmp").join(name) }
}

fn everybody_may_enter(folder: &Path) -> bool {
    folder
        .ancestors()
        .all(|folder| fs::metadata(folder).is_ok_and(|data| data.permissions().mode() & 0o001 != 0))
}

/// Removes folders whose owner died without doing so. A young folder may not have its lock yet.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_none_or(|age| age < Duration::from_secs(60)) {
            continue;
        }
        let abandoned = match File::open(path.join(OWNER)) {
            Ok(owner) => owner.try_lock().is_ok(),
            Err(_) => true,
        };
        if abandoned {
            let _gone_already = fs::remove_dir_all(&path);
        }
    }
}

/// Makes `account` the owner of `path`.
pub(crate) fn give(path: &Path, account: Option<Account>) -> Result<()> {
    let Some(account) = account else { return Ok(()) };
    chown(path, Some(account.uid), Some(account.gid))
        .map_err(Error::io(format!("{} could not be given away", path.display())))
}

/// Copies a tree of folders and files with their permissions; `account` owns the copy.
pub(crate) fn copy(from: &Path, to: &Path, account: Option<Account>) -> Result<()> {
    let failed = || format!("{} could not be copied", from.display());
    fs::create_dir_all(to).map_err(Error::io(failed()))?;
    for entry in fs::read_dir(from).map_err(Error::io(failed()))? {
        let entry = entry.map_err(Error::io(failed()))?;
        let target = to.join(entry.file_name());
        if entry.file_type().map_err(Error::io(failed()))?.is_dir() {
            copy(&entry.path(), &target, account)?;
        } else {
            fs::copy(entry.path(), &target).map_err(Error::io(failed()))?;
            give(&target, account)?;
        }
    }
    let permissions = fs::metadata(from).map_err(Error::io(failed()))?.permissions();
    fs::set_permissions(to, permissions).map_err(Error::io(failed()))?;
    give(to, account)
}
