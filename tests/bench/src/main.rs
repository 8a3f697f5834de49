//! `tidegate-bench`: run it through `cargo xtask bench`.

#![allow(clippy::print_stdout, reason = "this is a program for people")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidegate_bench::ground::Size;
use tidegate_bench::report::Report;
use tidegate_bench::{FLOW, Result, run};

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
    /// Writes the page of speeds from a report.
    Page {
        /// The report.
        #[arg(long)]
        json: PathBuf,
        /// The page.
        #[arg(long, default_value = "docs/reference/speed.md")]
        page: PathBuf,
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
    let (options, works) = match arguments.bench {
        Bench::Flow(options) => (options, FLOW),
        Bench::Page { json, page } => {
            let report: Report = serde_json::from_slice(&std::fs::read(json)?)?;
            if let Some(folder) = page.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(page, report.page())?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    if let Some(unknown) = options.only.iter().find(|only| !works.contains(&only.as_str())) {
        return Err(format!("there is no work {unknown}; there are {}", works.join(", ")).into());
    }
    let is_wanted = |work: &&str| options.only.is_empty() || options.only.iter().any(|only| only == work);
    let works: Vec<&str> = works.iter().copied().filter(is_wanted).collect();
    let mut size = if options.quick { Size::QUICK } else { Size::FULL };
    size.rows = options.rows.unwrap_or(size.rows);
    size.rounds = options.rounds.unwrap_or(size.rounds).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(run(&works, size))?;
    write(&report, options.json)?;
    println!("{}", report.table());
    let missed = !options.quick && report.rows.iter().any(|row| row.holds == Some(false));
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn write(report: &Report, path: Option<PathBuf>) -> Result<()> {
    if let Some(path) = path {
        std::fs::write(path, serde_json::to_string_pretty(report)?)?;
    }
    Ok(())
}
