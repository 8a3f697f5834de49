//! `tidegate-proof`: what Tidegate promises, shown. Run it through `cargo xtask proof`.

mod carried;
mod cut;
mod fault;
mod kill;
mod made;
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
    /// Real servers and the real program, killed at random moments while an application writes.
    Kill {
        /// How many kills.
        #[arg(long, default_value_t = 5)]
        n: u64,
        /// From which kind of store to which.
        #[arg(long, value_enum, default_value = "postgres-postgres")]
        pair: kill::Pair,
        /// What the random moments follow from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The program `tidegate`.
        #[arg(long)]
        program: PathBuf,
        /// Where to write the report as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
    },
}

#[allow(clippy::print_stdout, reason = "this is a program for people")]
fn main() -> ExitCode {
    let (text, clean, line, json) = match Arguments::parse().proof {
        Proof::Sim { n, seed, hunt, json } => {
            let mut report = sim::run(seed, n, None);
            report.planted = sim::hunt(seed, hunt);
            let line = report.line();
            (serde_json::to_string_pretty(&report), report.is_clean(), line, json)
        }
        Proof::Kill { n, pair, seed, program, json } => {
            let runtime =
                match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(e) => {
                        println!("no runtime: {e}");
                        return ExitCode::FAILURE;
                    }
                };
            match runtime.block_on(kill::run(&program, pair, seed, n)) {
                Ok(report) => {
                    let line = report.line();
                    (serde_json::to_string_pretty(&report), report.is_clean(), line, json)
                }
                Err(e) => {
                    println!("kill: {e}");
                    return ExitCode::FAILURE;
                }
            }
        }
    };
    let text = text.unwrap_or_default();
    println!("{text}");
    if let Some(path) = json
        && let Err(e) = std::fs::write(&path, &text)
    {
        println!("cannot write {}: {e}", path.display());
        return ExitCode::FAILURE;
    }
    println!("{line}");
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
