//! What was measured: rows, as a table for people and as JSON for everything else.

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

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
        self.note = Some(note.into());
        self
    }
}

/// All rows of a run, with where they were measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The machine, the servers and the sizes, in words.
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

`cargo xtask bench flow --json report.json` measures; `cargo xtask bench page --json report.json` writes this page from
the report. Ours and the peer do the same work in turn, on the same servers in the same run. A ratio above one says
that ours is better, whatever the unit; the bar is what the ratio has to be at least.

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

    /// The page of speeds.
    pub fn page(&self) -> String {
        let mut text = INTRODUCTION.to_owned();
        for condition in &self.conditions {
            text.push_str(&format!("- {condition}\n"));
        }
        text.push_str(&format!("\n| {} |\n|---|---|--:|---|--:|--:|--:|---|\n", HEADERS.join(" | ")));
        for row in &self.rows {
            text.push_str(&format!("| {} |\n", row.cells().join(" | ")));
        }
        for row in self.rows.iter().filter(|row| row.note.is_some()) {
            let note = row.note.as_deref().unwrap_or_default();
            text.push_str(&format!("\n- `{}` against {}: {note}\n", row.work, row.against));
        }
        text
    }
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
}
