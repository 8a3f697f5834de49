//! `cargo xtask docs`: the book, with mdBook.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::workspace;

/// The version that is fetched where none is installed.
const VERSION: &str = "0.5.4";

/// Makes the book and says where it is.
pub(crate) fn run() -> Result<ExitCode, String> {
    let program = program()?;
    let status = Command::new(&program)
        .arg("build")
        .arg(workspace::root().join("docs"))
        .status()
        .map_err(|e| format!("{} could not be run: {e}", program.display()))?;
    if !status.success() {
        return Err(format!("the book could not be made: {status}"));
    }
    println!("the book: {}", workspace::root().join("target/book/index.html").display());
    Ok(ExitCode::SUCCESS)
}

/// The program: the one that is installed, or one that is built once and kept beside the build's other files.
fn program() -> Result<PathBuf, String> {
    if Command::new("mdbook").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok(PathBuf::from("mdbook"));
    }
    let folder = workspace::root().join("target/mdbook");
    let program = folder.join("bin/mdbook");
    if !program.exists() {
        let status = workspace::cargo(&["install", "--locked", "--version", VERSION, "--root"])
            .arg(&folder)
            .arg("mdbook")
            .status()
            .map_err(|e| format!("cargo could not be run: {e}"))?;
        if !status.success() {
            return Err(format!("mdBook {VERSION} could not be built: {status}"));
        }
    }
    Ok(program)
}
