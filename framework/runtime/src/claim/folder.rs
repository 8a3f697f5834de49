//! Large bodies as files of a folder.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::Blobs;
use tidegate_core::{Error, Result};

/// The ending of a file that is not whole yet.
const PART: &str = "part";

/// Blobs as files of one folder, which all processes of one user see: a local one, or one of the network.
#[derive(Clone, Debug)]
pub struct FolderBlobs(PathBuf);

impl FolderBlobs {
    /// The folder, which is made if it is not there.
    ///
    /// # Errors
    /// `store-failed` if it cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|error| failed("make", &folder, error))?;
        Ok(Self(folder))
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        let is_good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if !(1..=100).contains(&name.len()) || !name.bytes().all(is_good) {
            return Err(Error::new(code::CONFIG_INVALID, format!("{name:?} is no name of a blob")));
        }
        Ok(self.0.join(name))
    }
}

fn failed(what: &str, path: &Path, error: std::io::Error) -> Error {
    Error::new(code::STORE_FAILED, format!("cannot {what} {}", path.display()))
        .because(error)
        .verdict_is(Verdict::Retry)
}

/// Runs what waits for the disk where it keeps nobody waiting.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|e| Err(Error::new(code::INTERNAL, "the work with a file ended").because(e)))
}

/// Writes a file that is whole as soon as it has its name, and is there after the power went.
fn write(path: &Path, data: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    let mut part = tempfile::Builder::new()
        .suffix(&format!(".{PART}"))
        .tempfile_in(folder)
        .map_err(|e| failed("write to", folder, e))?;
    let written = part.write_all(data).and_then(|()| part.as_file().sync_all());
    written.map_err(|error| failed("write", path, error))?;
    part.persist(path).map_err(|error| failed("write", path, error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| failed("write", path, error))
}

#[async_trait]
impl Blobs for FolderBlobs {
    async fn put(&self, name: &str, data: Bytes) -> Result<()> {
        let path = self.path(name)?;
        blocking(move || write(&path, &data)).await
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.path(name)?;
        blocking(move || match fs::read(&path) {
            Ok(data) => Ok(Some(data.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, error)),
        })
        .await
    }

    async fn purge(&self, before: i64) -> Result<usize> {
        let folder = self.0.clone();
        let before = UNIX_EPOCH + Duration::from_micros(u64::try_from(before).unwrap_or(0));
        blocking(move || {
            let mut count = 0;
            for entry in fs::read_dir(&folder).map_err(|error| failed("read", &folder, error))? {
                let path = entry.map_err(|error| failed("read", &folder, error))?.path();
                let Ok(at) = fs::metadata(&path).and_then(|data| data.modified()) else { continue };
                // What somebody began to write, and died over, goes as well.
                if at < before && fs::remove_file(&path).is_ok() && path.extension().is_none() {
                    count += 1;
                }
            }
            Ok(count)
        })
        .await
    }
}
