//! `cargo xtask tidy`: rules of the tree that no compiler checks, and a look at its longest files.

mod dependencies;
mod pages;
mod text;

use std::process::ExitCode;

use crate::outcome::Tally;
use crate::workspace::{self, TextFile};

pub(crate) fn run() -> Result<ExitCode, String> {
    let tally = gate();
    println!("{tally}");
    Ok(if tally.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the report, which never fails, and the findings, which do.
pub(crate) fn gate() -> Tally {
    let files = workspace::text_files();
    println!("the longest files:");
    for (lines, path) in longest(&files) {
        println!("{lines:>6} {path}");
    }
    Tally::gate("tidy", &findings(&files))
}

fn findings(files: &[TextFile]) -> Vec<String> {
    let mut findings = match workspace::metadata() {
        Ok(metadata) => dependencies::findings(&metadata),
        Err(cause) => vec![cause],
    };
    findings.extend(files.iter().flat_map(text::findings));
    findings.extend(pages::findings(files, &workspace::root()));
    findings
}

fn longest(files: &[TextFile]) -> Vec<(usize, &str)> {
    let sources = files.iter().filter(|file| file.path.ends_with(".rs"));
    let mut lengths: Vec<_> = sources.map(|file| (file.text.lines().count(), file.path.as_str())).collect();
    lengths.sort_by(|one, other| other.cmp(one));
    lengths.truncate(10);
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_tree_is_tidy() {
        assert_eq!(findings(&workspace::text_files()), Vec::<String>::new());
    }
}
