//! `tidegate-proof`: what Tidegate promises, shown. Run it through `cargo xtask proof`.

mod fault;
mod plant;
mod sim;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Shows what Tidegate promises.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    proof: Proof,
}

#[derive(Debug, Subcommand)]
enum Proof {
    /// Simulated histories with a fault at every call, and the planted bugs that they must catch.
    Sim {
        /// How many histories.
        #[arg(long, default_value_t = 20_000)]
        n: u64,
        /// The first seed. With --n 1 exactly that history is replayed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Histories for each planted bug at most.
        #[arg(long, default_value_t = 20_000)]
        hunt: u64,
        /// Where to write the report as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
    },
}

#[allow(clippy::print_stdout, reason = "this is a program for people")]
fn main() -> ExitCode {
    let Proof::Sim { n, seed, hunt, json } = Arguments::parse().proof;
    let mut report = sim::run(seed, n, None);
    report.planted = sim::hunt(seed, hunt);
    let text = serde_json::to_string_pretty(&report).unwrap_or_default();
    println!("{text}");
    if let Some(path) = json
        && let Err(e) = std::fs::write(&path, &text)
    {
        println!("cannot write {}: {e}", path.display());
        return ExitCode::FAILURE;
    }
    // A run proves nothing about a path that it did not take.
    let untaken: Vec<_> = if n >= 1_000 {
        sim::PATHS
            .iter()
            .filter(|path| !report.coverage.get(**path).is_some_and(|times| *times > 0))
            .collect()
    } else {
        Vec::new()
    };
    if !untaken.is_empty() {
        println!("sim: never happened: {untaken:?}");
    }
    let missed: Vec<_> = report.planted.iter().filter(|(_, caught)| !**caught).map(|(bug, _)| bug).collect();
    println!(
        "sim: {} histories, {} red; {} of {} planted bugs caught",
        report.n,
        report.red.len(),
        report.planted.len() - missed.len(),
        report.planted.len()
    );
    if report.is_clean() && missed.is_empty() && untaken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
