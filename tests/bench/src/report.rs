//! What was measured: rows, as a table for people and as JSON for everything else.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// What several runs gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The most.
    pub max: f64,
}

/// Figures of one side, a figure a run.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// One figure, that nobody measured: a limit.
    pub fn of(figure: f64) -> Self {
        Self(vec![figure])
    }

    /// Takes the figure of one run, if it counts.
    pub fn push_if(&mut self, counts: bool, figure: f64) {
        if counts {
            self.0.push(figure);
        }
    }

    /// The spread of all runs; `None` if there was none.
    pub fn spread(&self) -> Option<Spread> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len().checked_sub(1)? / 2;
        let median = f64::midpoint(sorted[middle], sorted[sorted.len() / 2]);
        Some(Spread { min: sorted[0], median, max: sorted[sorted.len() - 1] })
    }
}

/// Which figures are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// High ones: rates.
    Higher,
    /// Low ones: times and sizes.
    Lower,
}

/// One work beside one peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The short name of the work.
    pub work: String,
    /// What the figures are.
    pub unit: String,
    /// Ours.
    pub ours: Option<Spread>,
    /// Who else did the work.
    pub against: String,
    /// Theirs.
    pub theirs: Option<Spread>,
    /// How many times better ours is, by the medians.
    pub ratio: Option<f64>,
    /// What the ratio has to be at least.
    pub bar: f64,
    /// Whether it is; `None` if it was not measured.
    pub holds: Option<bool>,
    /// Why it was not measured, or what else there is to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Row {
    /// Ours and a peer's.
    pub fn new(work: &str, unit: &str, ours: &Samples, against: &str, theirs: &Samples, bar: f64) -> Self {
        Self::with(work, unit, Better::Higher, ours, against, theirs, bar)
    }

    /// Ours and a peer's, where low figures are good.
    pub fn lower(work: &str, unit: &str, ours: &Samples, against: &str, theirs: &Samples, bar: f64) -> Self {
        Self::with(work, unit, Better::Lower, ours, against, theirs, bar)
    }

    fn with(
        work: &str,
        unit: &str,
        better: Better,
        ours: &Samples,
        against: &str,
        theirs: &Samples,
        bar: f64,
    ) -> Self {
        let (ours, theirs) = (ours.spread(), theirs.spread());
        let ratio = ours.zip(theirs).map(|(ours, theirs)| match better {
            Better::Higher => ours.median / theirs.median,
            Better::Lower => theirs.median / ours.median,
        });
        Self {
            work: work.to_owned(),
            unit: unit.to_owned(),
            ours,
            against: against.to_owned(),
            theirs,
            ratio,
            bar,
            holds: ratio.map(|ratio| ratio >= bar),
            note: None,
        }
    }

    /// With something that the figures do not say.
    #[must_use]
    pub fn with_note(mut self, note: impl Into<String>) -> Self {
        let note = note.into();
        self.note = Some(self.note.map_or(note.clone(), |before| format!("{before}; {note}")));
        self
    }

    /// With the reason where the peer could not be had.
    #[must_use]
    pub fn measured_or<T>(self, peer: &crate::Result<T>) -> Self {
        match peer {
            Ok(_) => self,
            Err(error) => self.with_note(format!("not measured: {error}")),
        }
    }
}

/// All rows of a run, with where they were measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Which of the benchmarks.
    pub bench: String,
    /// Where.
    pub machine: Machine,
    /// The servers and peers that took part, with their versions.
    pub versions: BTreeMap<String, String>,
    /// The sizes, in words.
    pub conditions: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

fn figure(value: f64) -> String {
    let text = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), ""), |(whole, rest)| (whole, rest));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    if rest.is_empty() { grouped } else { format!("{grouped}.{rest}") }
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or_else(
        || "not run".to_owned(),
        |s| {
            if s.min == s.max {
                figure(s.median)
            } else {
                format!("{} ({}–{})", figure(s.median), figure(s.min), figure(s.max))
            }
        },
    )
}

const INTRODUCTION: &str = "\
# Speed

How fast live migrations and brokers are, beside what else does the same work. Both do it in turn, on the same servers in the
same run. A figure is the median of all runs, with the least and the most in brackets. A ratio above one says that ours is
better, whatever the unit, and the bar is what the ratio has to be at least. This page is written from the reports of the
benchmarks:

```console
$ cargo xtask bench flow --json flow.json
$ cargo xtask bench verify --json verify.json
$ cargo xtask bench brokers --json brokers.json
$ cargo xtask bench page --json flow.json --json verify.json --json brokers.json --out docs/reference/speed.md
```
";

const HEADERS: [&str; 8] = ["work", "unit", "ours", "against", "theirs", "ratio", "bar", "holds"];

impl Row {
    fn cells(&self) -> [String; 8] {
        let holds = match self.holds {
            Some(true) => "yes",
            Some(false) => "no",
            None => "not run",
        };
        [
            self.work.clone(),
            self.unit.clone(),
            spread(self.ours),
            self.against.clone(),
            spread(self.theirs),
            self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            format!("{:.2}", self.bar),
            holds.to_owned(),
        ]
    }
}

impl Report {
    /// For a terminal.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(HEADERS);
        for row in &self.rows {
            table.add_row(row.cells());
        }
        for at in [2, 4, 5, 6] {
            if let Some(column) = table.column_mut(at) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let mut text = table.to_string();
        for row in &self.rows {
            if let Some(note) = &row.note {
                text.push_str(&format!("\n{} against {}: {note}", row.work, row.against));
            }
        }
        text
    }

    /// What ran, without figures: for sizes that say nothing about speed.
    pub fn list(&self) -> String {
        let line = |row: &Row| {
            let note = row.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
            format!("{} beside {}{note}\n", row.work, row.against)
        };
        self.rows.iter().map(line).collect()
    }

    /// The conditions, one a line.
    fn facts(&self) -> Vec<String> {
        let Machine { processor, cores, memory_mib, kernel, commit, optimised } = &self.machine;
        let versions: Vec<String> =
            self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let build = if *optimised { "optimised build" } else { "build for tests, whose speed says nothing" };
        let mut facts = vec![
            format!("{processor}, {cores} cores, {memory_mib} MiB of memory, Linux {kernel}"),
            format!("{}; every server runs on the same machine, with fsync on", versions.join(", ")),
            format!("commit {commit}, {build}"),
        ];
        facts.extend(self.conditions.iter().cloned());
        facts
    }

    fn section(&self) -> String {
        let mut text = format!("\n## {}\n\n", self.bench);
        for fact in self.facts() {
            text.push_str(&format!("- {fact}\n"));
        }
        text.push_str(&format!("\n| {} |\n|---|---|--:|---|--:|--:|--:|---|\n", HEADERS.join(" | ")));
        for row in &self.rows {
            text.push_str(&format!("| {} |\n", row.cells().join(" | ")));
        }
        // What is the same of several works is said once.
        let mut notes: Vec<(&str, Vec<&str>)> = Vec::new();
        for (row, note) in self.rows.iter().filter_map(|row| Some((row, row.note.as_deref()?))) {
            match notes.iter_mut().find(|(known, _)| *known == note) {
                Some((_, works)) if works.contains(&&*row.work) => {}
                Some((_, works)) => works.push(&row.work),
                None => notes.push((note, vec![&row.work])),
            }
        }
        if !notes.is_empty() {
            text.push('\n');
        }
        for (note, works) in notes {
            text.push_str(&format!("- `{}`: {note}\n", works.join("`, `")));
        }
        text
    }
}

/// The page of speeds.
pub fn page(reports: &[Report]) -> String {
    let mut text = INTRODUCTION.to_owned();
    if reports.iter().all(|report| report.rows.is_empty()) {
        text.push_str("\nNothing was measured for this page yet.\n");
    }
    for report in reports.iter().filter(|report| !report.rows.is_empty()) {
        text.push_str(&report.section());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_above_one_is_better_whatever_the_unit() {
        let samples = |all: &[f64]| Samples(all.to_vec());
        let rate = Row::new("w", "rows/s", &samples(&[10.0, 30.0, 20.0]), "p", &samples(&[10.0]), 1.5);
        assert_eq!((rate.ratio, rate.holds), (Some(2.0), Some(true)));
        let time = Row::lower("w", "s", &samples(&[2.0]), "p", &samples(&[1.0, 3.0]), 1.5);
        assert_eq!((time.ratio, time.holds), (Some(1.0), Some(false)));
        assert_eq!(Row::new("w", "s", &samples(&[2.0]), "p", &samples(&[]), 1.0).holds, None);
        assert_eq!((figure(1_234_567.0), figure(12.345)), ("1 234 567".to_owned(), "12.35".to_owned()));
    }

    #[test]
    fn a_page_says_where_and_what_was_left_out() {
        let ours = Samples::of(2.0);
        let missing: crate::Result<()> = Err("no Java".into());
        let row = Row::new("w", "rows/s", &ours, "p", &Samples::default(), 1.5).measured_or(&missing);
        let machine = Machine { cores: 3, commit: "abc".to_owned(), ..Machine::default() };
        let versions = BTreeMap::from([("PostgreSQL".to_owned(), "15".to_owned())]);
        let report = Report {
            bench: "flow".to_owned(),
            machine,
            versions,
            rows: vec![row.with_note("x")],
            ..Report::default()
        };
        let text = page(&[Report::default(), report]);
        for part in [
            "## flow\n",
            "3 cores",
            "PostgreSQL 15",
            "commit abc",
            "| w | rows/s | 2.00 | p | not run |  | 1.50 | not run |\n",
            "- `w`: not measured: no Java; x\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(page(&[]).ends_with("Nothing was measured for this page yet.\n"));
    }
}
