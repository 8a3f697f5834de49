//! Connections to one file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Endpoint, Error, Result};

use crate::error::During;

/// The oldest version with every correction of WAL mode that we rely on.
const VERSION_MIN: (u32, u32, u32) = (3, 51, 3);

/// How long a statement waits for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Rows that the driver reads ahead.
const ROWS_AHEAD: usize = 1_000;

/// The file that a URL names.
pub(crate) fn path(endpoint: &Endpoint) -> Result<PathBuf> {
    let path = endpoint.path();
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.is_empty() || path == ":memory:" {
        return Err(Error::new(code::URL_INVALID, "a sqlite URL names a file, as in sqlite:shop.db"));
    }
    Ok(path.into())
}

/// A connection that writes nothing, to a file that is there.
pub(crate) async fn reader(path: &Path) -> Result<SqliteConnection> {
    exists(path)?;
    connect(options(path).pragma("query_only", "ON")).await
}

/// A connection that writes, to a file that is there.
pub(crate) async fn writer(path: &Path) -> Result<SqliteConnection> {
    exists(path)?;
    connect(options(path)).await
}

/// A connection that writes. A file that is not there is made, in WAL mode; so is an empty one, whose maker was killed.
pub(crate) async fn creator(path: &Path) -> Result<SqliteConnection> {
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0) {
        return writer(path).await;
    }
    require_folder(path)?;
    connect(options(path).create_if_missing(true).journal_mode(SqliteJournalMode::Wal)).await
}

/// Refuses a file that cannot be made where it is to be.
pub(crate) fn require_folder(path: &Path) -> Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        Some(folder) => {
            Err(Error::new(code::URL_INVALID, format!("there is no folder {}", folder.display()))
                .hint("make the folder first, or correct the URL"))
        }
        None => Ok(()),
    }
}

/// Refuses a source whose readers would make its writers fail.
pub(crate) async fn require_wal(connection: &mut SqliteConnection) -> Result<()> {
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(connection)
        .await
        .during("read the journal mode")?;
    if mode == "wal" { Ok(()) } else { Err(not_wal(&mode)) }
}

fn not_wal(mode: &str) -> Error {
    Error::new(code::JOURNAL_MODE, format!("the source's journal mode is {mode}, and has to be wal"))
        .hint("run PRAGMA journal_mode=WAL on the source; its programs go on working as they are")
}

/// What tells this file from another one at the same place; it survives writes and VACUUM, not a replacement.
/// `None` if there is none.
pub(crate) fn file_number(path: &Path) -> Result<Option<u64>> {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let what = format!("the file {} cannot be looked at", path.display());
            return Err(Error::new(code::STORE_FAILED, what).verdict_is(Verdict::Retry).because(error));
        }
    };
    #[cfg(unix)]
    return Ok(Some(std::os::unix::fs::MetadataExt::ino(&meta)));
    #[cfg(not(unix))]
    return Ok(Some(u64::from(!meta.is_file())));
}

fn exists(path: &Path) -> Result<()> {
    if path.is_file() { Ok(()) } else { Err(missing(path)) }
}

pub(crate) fn missing(path: &Path) -> Error {
    Error::new(code::URL_INVALID, format!("there is no database file at {}", path.display()))
}

fn options(path: &Path) -> SqliteConnectOptions {
    // Foreign keys are the source's to keep: its cascades arrive as changes of their own.
    SqliteConnectOptions::new()
        .filename(PathBuf::from(path))
        .foreign_keys(false)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .row_buffer_size(ROWS_AHEAD)
        .disable_statement_logging()
}

async fn connect(options: SqliteConnectOptions) -> Result<SqliteConnection> {
    let mut connection = options.connect().await.during("open the file")?;
    let version: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(&mut connection)
        .await
        .during("ask for the version")?;
    if let Err(error) = check_version(&version) {
        let _ = connection.close().await;
        return Err(error);
    }
    Ok(connection)
}

fn check_version(version: &str) -> Result<()> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    if (next(), next(), next()) >= VERSION_MIN {
        return Ok(());
    }
    Err(Error::new(code::VERSION_UNSUPPORTED, format!("this program has SQLite {version}; 3.51.3 is needed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A power cut is not to be had in a test; what makes the file outlive one is.
    #[tokio::test]
    async fn a_commit_is_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.db");
        std::fs::write(&path, "").unwrap();
        let mut connection = connect(options(&path)).await.unwrap();
        // FULL is 2.
        let is: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut connection).await.unwrap();
        assert_eq!(is, 2);
    }

    /// Found by killing: the file stayed without WAL mode, and was refused when it was read.
    #[tokio::test]
    async fn a_file_whose_maker_was_killed_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new.db");
        std::fs::write(&path, "").unwrap();
        require_wal(&mut creator(&path).await.unwrap()).await.unwrap();
    }

    #[test]
    fn older_libraries_are_refused() {
        for (version, is_good) in [
            ("3.51.3", true),
            ("3.54.1", true),
            ("4.0.0", true),
            ("3.51.2", false),
            ("3.9.9", false),
            ("", false),
        ] {
            assert_eq!(check_version(version).is_ok(), is_good, "{version}");
        }
    }
}
