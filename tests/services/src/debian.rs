//! What Debian's packages give, where this process may install them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account::is_root;
use crate::service::may_provision;
use crate::{Error, Result, cache};

/// Runs a command to its end and gives its output; a failure names the command and its last lines.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = format!("`{}`", command.get_program().display());
    let output = command.output().map_err(Error::io(&name))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(Error::failed(format!(
        "{name} ended with {}: {}",
        output.status,
        last_lines(&String::from_utf8_lossy(&text))
    )))
}

/// The end of a log, for an error.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Whether packages can be installed here.
pub(crate) fn can_install() -> bool {
    is_root() && Path::new("/usr/bin/apt-get").exists()
}

/// The path of a program of a Debian package, which is installed first where this process may do that.
///
/// # Errors
/// It is not there and cannot be installed.
pub fn program(name: &str, package: &str) -> Result<PathBuf> {
    if let Some(found) = find(name) {
        return Ok(found);
    }
    if !(may_provision() && can_install()) {
        return Err(Error::failed(format!("{name} is not installed (Debian's package {package})")));
    }
    install(&[package])?;
    find(name).ok_or_else(|| Error::failed(format!("the package {package} has no program {name}")))
}

/// Makes sure of what building the workspace needs beside Rust and a C compiler: the library for Kafka is built by make, in
/// C and C++, with the headers of OpenSSL.
///
/// # Errors
/// Something is not there and cannot be installed.
pub fn provision_build() -> Result<()> {
    let has_headers = || {
        let asked = Command::new("pkg-config").args(["--exists", "openssl"]).status();
        asked.is_ok_and(|status| status.success())
    };
    let tools = [("make", "make"), ("c++", "g++"), ("pkg-config", "pkg-config")];
    let mut lacking: Vec<&str> =
        tools.iter().filter(|(tool, _)| find(tool).is_none()).map(|(_, package)| *package).collect();
    if !has_headers() {
        lacking.push("libssl-dev");
    }
    if lacking.is_empty() {
        return Ok(());
    }
    if !can_install() {
        let text = format!("building needs what is not installed: Debian's packages {}", lacking.join(", "));
        return Err(Error::failed(text));
    }
    install(&lacking)
}

/// A program on the path.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Installs packages, one process at a time; fetches the lists only if the first try finds no candidate.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let _lock = cache::lock("apt")?;
    announce(&format!("installing {}", packages.join(" ")));
    if apt_get(&[], "install", packages).is_ok() {
        return Ok(());
    }
    apt_get(&[], "update", &[])?;
    apt_get(&[], "install", packages)
}

/// Installs a package whose servers (`units`) the system would start, now and at every start of the machine: here it does
/// neither.
pub(crate) fn install_stopped(package: &str, units: &[&str]) -> Result<()> {
    const POLICY: &str = "/usr/sbin/policy-rc.d";
    let _lock = cache::lock("policy-rc.d")?;
    // The packages' own scripts ask this file whether they may start what they installed; 101 forbids it.
    let policy = File::options().write(true).create_new(true).mode(0o755).open(POLICY);
    let installed = match policy {
        Ok(mut file) => {
            let written = file.write_all(b"#!/bin/sh\nexit 101\n").map_err(Error::io(POLICY));
            drop(file);
            let installed = written.and_then(|()| install(&[package]));
            fs::remove_file(POLICY).map_err(Error::io(POLICY))?;
            installed
        }
        // Somebody else's: this system starts nothing anyway, or by rules that are not ours to change.
        Err(_) => install(&[package]),
    };
    if find("systemctl").is_some() {
        let _no_such_unit =
            Command::new("systemctl").args(["--quiet", "disable", "--now"]).args(units).output();
    }
    installed
}

/// Installs the server without the cluster that the package would create and start on the default port.
pub(crate) fn install_postgresql(package: &str) -> Result<()> {
    install(&["postgresql-common"])?;
    let configuration = Path::new("/etc/postgresql-common/createcluster.conf");
    let before = fs::read_to_string(configuration).unwrap_or_default();
    let write = |text: &str| fs::write(configuration, text).map_err(Error::io(configuration.display()));
    write(&format!("{before}\ncreate_main_cluster = false\n"))?;
    let installed = install(&[package]);
    write(&before)?;
    installed
}

/// Unpacks one package of another suite into `target`; the system's own lists and packages stay as they are.
pub(crate) fn unpack_from_suite(suite: &str, package: &str, target: &Path) -> Result<()> {
    let _lock = cache::lock("apt")?;
    announce(&format!("fetching {package}"));
    let folder = tempfile::tempdir().map_err(Error::io("no temporary folder"))?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    for name in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(path(name)).map_err(Error::io("no temporary folder"))?;
    }
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let source = format!("deb [signed-by={keyring}] {} {suite} main\n", mirror()?);
    fs::write(path("suite.list"), source).map_err(Error::io("no sources file"))?;
    let options = [
        format!("Dir::Etc::sourcelist={}", path("suite.list")),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", path("lists")),
        format!("Dir::Cache={}", path("cache")),
        "APT::Sandbox::User=root".to_owned(),
    ];
    let options: Vec<&str> = options.iter().flat_map(|option| ["-o", option]).collect();
    apt_get(&options, "update", &[])?;
    run(Command::new("apt-get")
        .args(&options)
        .args(["-qq", "download", package])
        .current_dir(folder.path()))?;
    for file in fs::read_dir(folder.path()).map_err(Error::io("no temporary folder"))?.flatten() {
        if file.path().extension().is_some_and(|end| end == "deb") {
            run(Command::new("dpkg").arg("-x").arg(file.path()).arg(target))?;
        }
    }
    Ok(())
}

/// The mirror that this system already uses; the first one of Debian's own main component.
fn mirror() -> Result<String> {
    let filters = ["Created-By: Packages", "Origin: Debian", "Component: main"];
    let list =
        || run(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]).args(filters));
    let mut uris = list()?;
    if uris.trim().is_empty() && can_install() {
        apt_get(&[], "update", &[])?;
        uris = list()?;
    }
    let uri = uris.lines().find(|uri| !uri.contains("security"));
    uri.map(str::to_owned).ok_or_else(|| Error::failed("apt knows no Debian mirror (`apt-get update` first)"))
}

fn apt_get(options: &[&str], verb: &str, packages: &[&str]) -> Result<()> {
    let quiet = ["-qq", "-y", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold"];
    let mut command = Command::new("apt-get");
    command.args(options).args(quiet).arg(verb).args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut command).map(drop)
}

/// A line for whoever waits: fetching may take a minute.
pub(crate) fn announce(what: &str) {
    #[allow(clippy::print_stderr, reason = "there is no log here, and the wait needs a reason")]
    {
        eprintln!("tidegate-services: {what}");
    }
}
