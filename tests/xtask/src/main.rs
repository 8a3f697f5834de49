//! The commands of the workspace: `cargo xtask <command>`.
//!
//! One file a command. A new gate or a new step of the test command is one line in [`gates::GATES`] or
//! [`test::STEPS`].

#![allow(clippy::print_stdout, reason = "a command line program talks on stdout")]

mod bench;
mod ci;
mod conformance;
mod docs;
mod examples;
mod gates;
mod libtest;
mod licences;
mod outcome;
mod proof;
mod services;
mod stream;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The commands of the workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts the real servers and runs every gate, test and example.
    Test(test::Arguments),
    /// The real servers alone, for working on one adapter.
    Services(services::Arguments),
    /// Simulations with faults, and the planted bugs that they must catch.
    Proof(proof::Arguments),
    /// What every adapter has to do, done by one of them.
    Conformance(conformance::Arguments),
    /// How fast it is, beside others.
    Bench(bench::Arguments),
    /// The rules of the tree, and its ten longest files.
    Tidy,
    /// The book.
    Docs,
    /// The gates without the tests.
    Ci(ci::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Test(arguments) => test::run(&arguments),
        Command::Services(arguments) => services::run(&arguments),
        Command::Proof(arguments) => proof::run(&arguments),
        Command::Conformance(arguments) => conformance::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Tidy => tidy::run(),
        Command::Docs => docs::run(),
        Command::Ci(arguments) => ci::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(cause) => {
            eprintln!("error: {cause}");
            ExitCode::from(2)
        }
    }
}
