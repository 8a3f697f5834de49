//! Programs for Java's virtual machine: the machine itself, and jars by their coordinates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::debian::{self, announce, can_install, install, run};
use crate::{Error, Result, cache};

/// The oldest version that runs all of them.
const OLDEST: u32 = 17;
const RUNTIME: &str = "default-jre-headless";
/// The same with a compiler: what is given as its source is compiled when it is run.
const COMPILER: &str = "default-jdk-headless";
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1";

/// The jars of one program.
#[derive(Debug)]
pub(crate) struct Jars {
    /// The folder of the cache.
    pub(crate) entry: &'static str,
    /// `group:artifact:version`; what these need comes along.
    pub(crate) coordinates: &'static [&'static str],
}

impl Jars {
    /// The virtual machine and the folder of the jars, where both are here.
    pub(crate) fn locate(&self) -> Option<(PathBuf, PathBuf)> {
        let home = cache::folder().join(self.entry);
        if home.is_dir() { Some((machine()?, home)) } else { None }
    }

    /// Installs the virtual machine and fetches the jars; `finish` is given both, before the folder counts as whole.
    pub(crate) fn fetch(&self, finish: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<()> {
        let machine = had(machine, RUNTIME)?;
        self.made(|folder| finish(&machine, folder)).map(drop)
    }

    /// A virtual machine that compiles as well, and the folder of the jars, where both are here.
    pub(crate) fn locate_library(&self) -> Option<(PathBuf, PathBuf)> {
        let home = cache::folder().join(self.entry);
        if home.is_dir() { Some((compiler()?, home)) } else { None }
    }

    /// The same, installed and fetched first if need be.
    pub(crate) fn fetch_library(&self) -> Result<(PathBuf, PathBuf)> {
        Ok((had(compiler, COMPILER)?, self.made(|_| Ok(()))?))
    }

    fn made(&self, finish: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        cache::entry(self.entry, |folder| {
            announce(&format!("fetching {}", self.coordinates[0]));
            fs::write(folder.join("pom.xml"), self.project()).map_err(Error::io("no project file"))?;
            maven(folder, "copy-dependencies", &["-DoutputDirectory=libs", "-DincludeScope=runtime"])?;
            finish(folder)
        })
    }

    /// Unpacks those files of one fetched jar that match `pattern` into a folder of `home`.
    pub(crate) fn unpack(home: &Path, artifact: &str, pattern: &str, folder: &str) -> Result<()> {
        let arguments = [
            format!("-DincludeArtifactIds={artifact}"),
            format!("-Dmdep.unpack.includes={pattern}"),
            format!("-DoutputDirectory={folder}"),
        ];
        maven(home, "unpack-dependencies", &arguments.each_ref().map(String::as_str))
    }

    /// A project that is nothing but its dependencies.
    fn project(&self) -> String {
        let dependencies: String = self.coordinates.iter().map(|coordinate| dependency(coordinate)).collect();
        format!(
            "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
             <groupId>tidegate</groupId><artifactId>jars</artifactId><version>1</version>\
             <dependencies>{dependencies}</dependencies></project>\n"
        )
    }
}

fn maven(project: &Path, goal: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(debian::program("mvn", "maven")?);
    command.args(["--quiet", "--batch-mode", &format!("{PLUGIN}:{goal}")]).args(arguments);
    run(command.current_dir(project)).map(drop)
}

fn dependency(coordinate: &str) -> String {
    let names = ["groupId", "artifactId", "version"];
    let parts =
        names.iter().zip(coordinate.split(':')).map(|(name, part)| format!("<{name}>{part}</{name}>"));
    format!("<dependency>{}</dependency>", parts.collect::<String>())
}

/// What starts `class`, or the program of a source file, with the jars in `home`: for a short life on a shared machine, with lines of log on its output.
/// `asked` may say otherwise.
pub(crate) fn arguments(home: &Path, class: &str, asked: &[String]) -> Vec<String> {
    let mut arguments = [
        "-Xmx512m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:-UsePerfData",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.extend(asked.iter().cloned());
    arguments.extend(["-cp".to_owned(), home.join("libs/*").display().to_string(), class.to_owned()]);
    arguments
}

/// What is found, or comes with a package.
fn had(find: impl Fn() -> Option<PathBuf>, package: &str) -> Result<PathBuf> {
    if let Some(found) = find() {
        return Ok(found);
    }
    if can_install() {
        install(&[package])?;
    }
    find().ok_or_else(|| {
        Error::failed(format!("Java {OLDEST} or newer is needed (Debian's package {package})"))
    })
}

fn machine() -> Option<PathBuf> {
    machines().find(|java| is_new_enough(java))
}

/// One that has its compiler beside it.
fn compiler() -> Option<PathBuf> {
    let compiles =
        |java: &PathBuf| java.canonicalize().is_ok_and(|java| java.with_file_name("javac").is_file());
    machines().filter(compiles).find(|java| is_new_enough(java))
}

fn is_new_enough(java: &Path) -> bool {
    version(java).is_some_and(|version| version >= OLDEST)
}

/// Virtual machines: `JAVA_HOME`, the path, Debian's folder.
fn machines() -> impl Iterator<Item = PathBuf> {
    let named = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    let packaged = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
    let packaged = packaged.map(|entry| entry.path().join("bin/java"));
    named.into_iter().chain(debian::find("java")).chain(packaged)
}

fn version(java: &Path) -> Option<u32> {
    let output = Command::new(java).arg("-version").output().ok()?;
    parse(&String::from_utf8_lossy(&output.stderr))
}

/// As in `openjdk version "17.0.15" 2025-04-15`; before 9 the versions began with 1.
fn parse(text: &str) -> Option<u32> {
    let version = text.split_once('"')?.1;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found() {
        assert_eq!(parse("openjdk version \"17.0.15\" 2025-04-15\n"), Some(17));
        assert_eq!(parse("openjdk version \"21\" 2023-09-19\n"), Some(21));
        assert_eq!(parse("java version \"1.8.0_402\"\n"), Some(1));
        assert_eq!(parse("no such program"), None);
    }

    #[test]
    fn a_coordinate_becomes_a_dependency() {
        let expected =
            "<dependency><groupId>g</groupId><artifactId>a</artifactId><version>1</version></dependency>";
        assert_eq!(dependency("g:a:1"), expected);
    }
}
