//! `tidegate-proof`: what Tidegate promises, shown. Run it through `cargo xtask proof`.

mod broker;
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

use clap::builder::PossibleValuesParser;
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
    /// Real brokers, killed at random moments while a service handles what a publisher sends.
    Broker {
        /// How many kills of each.
        #[arg(long, default_value_t = 5)]
        n: u64,
        /// Which brokers [default: all].
        #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(broker::names()))]
        broker: Vec<String>,
        /// What the random moments follow from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
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
        /// A broker that everything goes through, and that is killed too.
        #[arg(long, value_parser = PossibleValuesParser::new(broker::names()))]
        via: Option<String>,
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

/// What came out of a proof.
struct Outcome {
    /// For people.
    text: String,
    /// The report.
    json: String,
    is_clean: bool,
    line: String,
}

#[allow(clippy::print_stdout, reason = "this is a program for people")]
fn main() -> ExitCode {
    let proof = Arguments::parse().proof;
    let (Proof::Sim { json, .. } | Proof::Broker { json, .. } | Proof::Kill { json, .. }) = &proof;
    let json = json.clone();
    let outcome = match prove(proof) {
        Ok(outcome) => outcome,
        Err(e) => {
            println!("{e}");
            return ExitCode::FAILURE;
        }
    };
    println!("{}", outcome.text);
    if let Some(path) = json
        && let Err(e) = std::fs::write(&path, &outcome.json)
    {
        println!("cannot write {}: {e}", path.display());
        return ExitCode::FAILURE;
    }
    println!("{}", outcome.line);
    if outcome.is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn prove(proof: Proof) -> Result<Outcome, String> {
    let runtime = || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.map_err(|e| format!("no runtime: {e}"))
    };
    match proof {
        Proof::Sim { n, seed, hunt, .. } => {
            let mut report = sim::run(seed, n, None);
            report.planted = sim::hunt(seed, hunt);
            let json = serde_json::to_string_pretty(&report).unwrap_or_default();
            Ok(Outcome { text: json.clone(), json, is_clean: report.is_clean(), line: report.line() })
        }
        Proof::Broker { n, broker, seed, .. } => {
            let report = runtime()?.block_on(broker::run(&broker, seed, n));
            let json = serde_json::to_string_pretty(&report).unwrap_or_default();
            Ok(Outcome { text: report.to_string(), json, is_clean: report.is_clean(), line: report.line() })
        }
        Proof::Kill { n, pair, via, seed, program, .. } => {
            let via = via.as_deref().and_then(broker::by_name);
            let report = runtime()?.block_on(kill::run(&program, pair, via, seed, n));
            let report = report.map_err(|e| format!("kill: {e}"))?;
            let json = serde_json::to_string_pretty(&report).unwrap_or_default();
            Ok(Outcome { text: json.clone(), json, is_clean: report.is_clean(), line: report.line() })
        }
    }
}
