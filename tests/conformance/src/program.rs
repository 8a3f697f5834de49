//! The program that an adapter's conformance target is.

#![allow(clippy::print_stdout, reason = "a command line program talks on stdout")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::broker::CASES;
use crate::case::{Case, Outcome, Row, Size, run};
use crate::fixture::Fixture;

#[derive(Debug, Parser)]
struct Arguments {
    /// How much is done.
    #[arg(long, value_enum, default_value = "quick")]
    size: Size,
    /// These cases alone: A1,B14
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Writes the rows of the report to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the suite as a command line program says: exit status 1 if a case failed or was not run. What `RUST_LOG` asks for is
/// written to the standard error.
pub fn program(fixture: impl Fn() -> Box<dyn Fixture>) -> ExitCode {
    let arguments = Arguments::parse();
    if let Ok(filter) = EnvFilter::try_from_default_env() {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(suite(&mut *fixture(), &arguments)),
        Err(error) => Err(error.to_string()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(cause) => {
            eprintln!("error: {cause}");
            ExitCode::from(2)
        }
    }
}

async fn suite(fixture: &mut dyn Fixture, arguments: &Arguments) -> Result<bool, String> {
    let known = |id: &&String| !CASES.iter().any(|case| case.id == **id);
    if let Some(id) = arguments.only.iter().find(known) {
        return Err(format!("there is no case {id}"));
    }
    let is_chosen = |case: &&Case| arguments.only.is_empty() || arguments.only.iter().any(|id| id == case.id);
    let cases: Vec<Case> = CASES.iter().filter(is_chosen).copied().collect();
    // In the words of the test harness, so that whoever reads those can read these.
    println!("\nrunning {} tests", cases.len());
    let rows = run(fixture, &cases, arguments.size, |row, time| {
        let word = match row.outcome {
            Outcome::Passed | Outcome::RefusedAsDeclared | Outcome::NotApplicable => "ok",
            Outcome::Failed | Outcome::NotRun => "FAILED",
        };
        let note = match row.outcome {
            Outcome::Passed => String::new(),
            Outcome::RefusedAsDeclared => " (refused as declared)".to_owned(),
            Outcome::NotApplicable => " (not applicable)".to_owned(),
            Outcome::Failed | Outcome::NotRun => format!(" ({:?})", row.outcome),
        };
        println!("test {}::{} {} ... {word}", row.adapter, row.id, row.rule);
        if !note.is_empty() || !row.detail.is_empty() || time.as_millis() >= 1_000 {
            println!("    {:.1} s{note} {}", time.as_secs_f64(), row.detail);
        }
    })
    .await;
    let count = |outcome: Outcome| rows.iter().filter(|row: &&Row| row.outcome == outcome).count();
    let bad = count(Outcome::Failed) + count(Outcome::NotRun);
    println!(
        "\ntest result: {}. {} passed; {bad} failed; 0 ignored; 0 measured; {} filtered out",
        if bad == 0 { "ok" } else { "FAILED" },
        rows.len() - bad,
        CASES.len() - cases.len()
    );
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(bad == 0)
}
