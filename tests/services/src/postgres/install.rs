//! The programs of PostgreSQL: found, or installed from Debian's package.

use std::fs;
use std::path::{Path, PathBuf};

use crate::debian::{can_install, install_postgresql, run};
use crate::service::may_provision;
use crate::{Missing, Result, Service};

const PREFERRED: u32 = 15;

/// The folder of `postgres`, `initdb` and `psql`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Programs(PathBuf);

impl Programs {
    pub(crate) fn path(&self, program: &str) -> PathBuf {
        self.0.join(program)
    }

    /// As in `15.18`, for the name of what is kept by version.
    pub(crate) fn version(&self) -> Result<String> {
        let text = run(std::process::Command::new(self.path("postgres")).arg("--version"))?;
        let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        Ok(version.unwrap_or("unknown").to_owned())
    }
}

/// Finds the programs: `TIDEGATE_POSTGRES_BIN`, the folder of Debian's package (15 first, else the newest), the path.
pub(crate) fn locate() -> std::result::Result<Programs, Missing> {
    let given = std::env::var_os("TIDEGATE_POSTGRES_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = given.into_iter().chain(packaged()).chain(std::env::split_paths(&path));
    let complete =
        |folder: &PathBuf| ["postgres", "initdb", "psql"].iter().all(|name| folder.join(name).is_file());
    folders.into_iter().find(complete).map(Programs).ok_or_else(|| Missing {
        service: Service::Postgresql,
        what: "no folder with postgres, initdb and psql was found".to_owned(),
        hint: format!(
            "install postgresql-{PREFERRED}, or name the folder in TIDEGATE_POSTGRES_BIN, or a server in {}",
            Service::Postgresql.url_variable()
        ),
    })
}

pub(crate) fn provision() -> Result<Programs> {
    match locate() {
        Err(_) if can_install() => {
            install_postgresql(&format!("postgresql-{PREFERRED}"))?;
            Ok(locate()?)
        }
        found => Ok(found?),
    }
}

pub(crate) fn programs() -> Result<Programs> {
    if may_provision() { provision() } else { Ok(locate()?) }
}

fn packaged() -> Vec<PathBuf> {
    let folders = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<u32> =
        folders.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    versions.sort_by_key(|version| std::cmp::Reverse((*version == PREFERRED, *version)));
    versions
        .iter()
        .map(|version| Path::new("/usr/lib/postgresql").join(version.to_string()).join("bin"))
        .collect()
}
