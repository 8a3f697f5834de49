//! `tidegate-bench`: run it through `cargo xtask bench`.

#![allow(clippy::print_stdout, reason = "this is a program for people")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidegate_bench::ground::Size;
use tidegate_bench::report::{Report, page};
use tidegate_bench::work::broker;
use tidegate_bench::{FLOW, Result, VERIFY, run, run_brokers};
use tidegate_services::{Service, skipped};

/// As the bar of a comparison is meant.
const VERIFY_ROWS: u64 = 2_250_000;
/// Twice what the backlog changes.
const BROKER_ROWS: u64 = 500_000;

/// Measures.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// The works of a live migration.
    Flow(Options),
    /// Comparing both sides.
    Verify(Options),
    /// Carrying messages.
    Brokers {
        #[command(flatten)]
        options: Options,
        /// Only this broker; may be given more than once.
        #[arg(long, value_name = "BROKER")]
        broker: Vec<String>,
    },
    /// Writes the page of speeds from reports.
    Page {
        /// A report; may be given more than once.
        #[arg(long)]
        json: Vec<PathBuf>,
        /// The page.
        #[arg(long, default_value = "docs/reference/speed.md")]
        out: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Options {
    /// Tiny sizes and one run: shows that everything works, and no speed.
    #[arg(long)]
    quick: bool,
    /// Only this work; may be given more than once.
    #[arg(long, value_name = "WORK")]
    only: Vec<String>,
    /// Where to write the report as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Rows of the table.
    #[arg(long)]
    rows: Option<u64>,
    /// Runs of each side.
    #[arg(long)]
    rounds: Option<usize>,
}

fn main() -> ExitCode {
    match start(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            println!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                println!("  because: {error}");
                cause = error.source();
            }
            ExitCode::from(2)
        }
    }
}

fn start(arguments: Arguments) -> Result<ExitCode> {
    let (bench, options, works, rows, brokers) = match arguments.bench {
        Bench::Flow(options) => ("flow", options, FLOW, Size::FULL.rows, Vec::new()),
        Bench::Verify(options) => ("verify", options, VERIFY, VERIFY_ROWS, Vec::new()),
        Bench::Brokers { options, broker: only } => {
            let brokers = chosen("broker", &broker::names(), &only)?;
            ("brokers", options, broker::WORKS, BROKER_ROWS, brokers)
        }
        Bench::Page { json, out } => {
            let read = |path: &PathBuf| Ok(serde_json::from_slice(&std::fs::read(path)?)?);
            let reports = json.iter().map(read).collect::<Result<Vec<Report>>>()?;
            if let Some(folder) = out.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(out, page(&reports))?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    if brokers.is_empty() && skipped(Service::Postgresql) {
        return Ok(ExitCode::SUCCESS);
    }
    let works = chosen("work", works, &options.only)?;
    let mut size = if options.quick { Size::QUICK } else { Size { rows, ..Size::FULL } };
    size.rows = options.rows.unwrap_or(size.rows);
    size.rounds = options.rounds.unwrap_or(size.rounds).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let write = |report: &Report| write(report, options.json.as_deref());
    let report = runtime.block_on(async {
        match bench {
            "brokers" => run_brokers(&brokers, &works, size, write).await,
            _ => run(bench, &works, size, write).await,
        }
    })?;
    if options.quick {
        println!("{}everything arrived", report.list());
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", report.table());
    let missed = report.rows.iter().any(|row| row.holds == Some(false));
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Those that were asked for, in their order; all, if none was.
fn chosen(what: &str, all: &[&'static str], only: &[String]) -> Result<Vec<&'static str>> {
    if let Some(unknown) = only.iter().find(|only| !all.contains(&only.as_str())) {
        return Err(format!("there is no {what} {unknown}; there are {}", all.join(", ")).into());
    }
    let is_wanted = |name: &&str| only.is_empty() || only.iter().any(|only| only == name);
    Ok(all.iter().copied().filter(is_wanted).collect())
}

fn write(report: &Report, path: Option<&Path>) -> Result<()> {
    if let Some(path) = path {
        std::fs::write(path, serde_json::to_string_pretty(report)?)?;
    }
    if let Some(last) = report.rows.last() {
        eprintln!("measured: {}", last.work);
    }
    Ok(())
}
