//! The workspace as cargo and git see it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cargo_metadata::{Message, Metadata, MetadataCommand};

use crate::stream;

/// Features that are off by default, since building them needs more than a C compiler.
pub(crate) const ON_REQUEST: &str = "tidegate-migrations/kafka";

/// The folder of the workspace's manifest.
pub(crate) fn root() -> PathBuf {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_folder.ancestors().nth(2).unwrap_or(crate_folder).to_owned()
}

pub(crate) fn metadata() -> Result<Metadata, String> {
    let mut command = MetadataCommand::new();
    command.manifest_path(root().join("Cargo.toml"));
    command.exec().map_err(|cause| format!("cargo metadata: {cause}"))
}

/// A text file of the tree.
#[derive(Debug)]
pub(crate) struct TextFile {
    /// From the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Every text file that git knows or would take; without git, every one outside of what is built.
pub(crate) fn text_files() -> Vec<TextFile> {
    let root = root();
    let mut command = Command::new("git");
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(&root);
    let paths = match command.output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).split_terminator('\0').map(str::to_owned).collect()
        }
        _ => walk(&root, &root),
    };
    let read = |path: String| Some(TextFile { text: fs::read_to_string(root.join(&path)).ok()?, path });
    paths.into_iter().filter_map(read).collect()
}

fn walk(root: &Path, folder: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if !["target", ".git", "node_modules"].iter().any(|name| entry.file_name() == *name) {
                paths.extend(walk(root, &path));
            }
        } else if let Ok(path) = path.strip_prefix(root) {
            paths.push(path.display().to_string());
        }
    }
    paths.sort();
    paths
}

/// What is built to be run.
#[derive(Debug, Default)]
pub(crate) struct Built {
    /// Programs by their names.
    pub(crate) programs: BTreeMap<String, PathBuf>,
    /// The conformance targets by what they check.
    pub(crate) suites: BTreeMap<String, Suite>,
}

/// A conformance target.
#[derive(Debug)]
pub(crate) struct Suite {
    binary: PathBuf,
    /// Where cargo would run it.
    folder: PathBuf,
}

impl Suite {
    /// Runs it in this size.
    pub(crate) fn command(&self, size: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["--size", size]).current_dir(&self.folder);
        command
    }
}

/// What a conformance target checks: the adapter that its package is called after, or what stands in its own name, where a
/// package has several.
pub(crate) fn checked(package: &str, target: &cargo_metadata::Target) -> Option<String> {
    let own = target.name.strip_prefix("conformance").filter(|_| target.is_test())?;
    let adapter = own.strip_prefix('-').or_else(|| package.strip_prefix("tidegate-"))?;
    Some(adapter.to_owned())
}

/// Builds every program and every conformance target with the features that `cargo test` of the workspace has: asked for
/// package by package, what they build on would be built again for each.
pub(crate) fn build() -> Result<Built, String> {
    let words = ["build", "--workspace", "--features", ON_REQUEST, "--bins", "--test", "conformance*"];
    let mut command = cargo(&words);
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let failed = |cause: io::Error| format!("cargo could not be run: {cause}");
    let mut child = command.spawn().map_err(failed)?;
    let packages = metadata()?.packages;
    let mut built = Built::default();
    let lines = child.stdout.take().map(BufReader::new);
    for message in lines.into_iter().flat_map(Message::parse_stream) {
        let Message::CompilerArtifact(artifact) = message.map_err(failed)? else { continue };
        let Some(binary) = artifact.executable.map(PathBuf::from) else { continue };
        let Some(package) = packages.iter().find(|package| package.id == artifact.package_id) else {
            continue;
        };
        if artifact.target.is_bin() {
            built.programs.insert(artifact.target.name, binary);
        } else if let Some(folder) = artifact.manifest_path.parent() {
            let suite = Suite { binary, folder: folder.into() };
            built.suites.extend(checked(&package.name, &artifact.target).map(|adapter| (adapter, suite)));
        }
    }
    let status = child.wait().map_err(failed)?;
    if status.success() { Ok(built) } else { Err("the programs could not be built".to_owned()) }
}

/// `cargo` in the root, as it would be without us.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = stream::cargo();
    command.args(arguments).current_dir(root());
    command
}
