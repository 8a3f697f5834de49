//! The gates that need no server.

use crate::outcome::Tally;
use crate::test::{Run, Step};
use crate::{licences, stream, tidy, workspace};

/// In the order in which they run.
pub(crate) const GATES: &[Step] = &[
    Step { name: "format", about: "cargo fmt --check", needs_services: false, run: format },
    Step { name: "lints", about: "cargo clippy, warnings denied", needs_services: false, run: lints },
    Step { name: "features", about: "what users may leave out", needs_services: false, run: features },
    Step { name: "docs", about: "cargo doc, warnings denied", needs_services: false, run: docs },
    Step { name: "tidy", about: "the rules of the tree", needs_services: false, run: |_| tidy::gate() },
    Step {
        name: "licences",
        about: "licences of what we build on",
        needs_services: false,
        run: |_| licences::gate(),
    },
];

/// Makes sure of what building needs. Where it cannot be had, whatever needs it will say so.
pub(crate) fn provision() {
    if let Err(cause) = tidegate_services::provision_build() {
        println!("{cause}");
    }
}

fn format(_: &Run) -> Tally {
    cargo("format", &["fmt", "--all", "--check"], &[])
}

fn lints(_: &Run) -> Tally {
    let words = ["clippy", "--workspace", "--all-targets", "--features", workspace::ON_REQUEST];
    // Targets that a plain `cargo test` leaves out are left out by `--all-targets` as well.
    let words = [&words[..], &["--test", "conformance*", "--", "-D", "warnings"]].concat();
    cargo("lints", &words, &[])
}

/// What a user may leave out can be left out.
fn features(_: &Run) -> Tally {
    let mut tally = Tally::default();
    for package in ["tidegate", "tidegate-migrations"] {
        let words = ["check", "--quiet", "--package", package, "--no-default-features"];
        tally.add(cargo("features", &words, &[]));
    }
    tally
}

fn docs(_: &Run) -> Tally {
    cargo("docs", &["doc", "--no-deps", "--workspace"], &[("RUSTDOCFLAGS", "-D warnings")])
}

/// A gate that is one cargo command.
fn cargo(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Tally {
    let mut command = workspace::cargo(arguments);
    command.envs(environment.iter().copied());
    match stream::run(&mut command, None, |_| ()) {
        Ok(ended) if ended.status.success() => Tally::passed(),
        Ok(ended) => Tally::gate(name, &[format!("`cargo {}`: {}", arguments.join(" "), ended.status)]),
        Err(cause) => Tally::gate(name, &[format!("cargo could not be run: {cause}")]),
    }
}
