//! The progress of a run: a bar on a terminal, plain lines elsewhere.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tidegate_flow::{Status, TableState};

use crate::render::count;

/// Rates are taken over this long.
const RATE_OVER: Duration = Duration::from_secs(10);
/// Where there is no terminal a line is printed this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Rates and what follows from them.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    samples: VecDeque<(i64, u64, u64)>,
}

impl Rates {
    /// Takes in a status and gives rows a second and changes a second.
    pub(crate) fn take(&mut self, status: &Status) -> (f64, f64) {
        if is_waiting(status) {
            // Nothing is written meanwhile, whatever was before.
            self.samples.clear();
            return (0.0, 0.0);
        }
        let over = i64::try_from(RATE_OVER.as_micros()).unwrap_or(i64::MAX);
        self.samples.push_back((status.at, status.run_rows, status.changes_applied));
        while self.samples.len() > 2 && self.samples.front().is_some_and(|(at, ..)| status.at - at > over) {
            self.samples.pop_front();
        }
        let Some((at, rows, changes)) = self.samples.front() else { return (0.0, 0.0) };
        let seconds = ((status.at - at) as f64 / 1e6).max(1e-3);
        if self.samples.len() < 2 {
            return (0.0, 0.0);
        }
        let rate = |now: u64, then: &u64| now.saturating_sub(*then) as f64 / seconds;
        (rate(status.run_rows, rows), rate(status.changes_applied, changes))
    }
}

/// Seconds until the crawl ends, as a range: the estimate of rows is one, and the rate varies.
pub(crate) fn eta(status: &Status, rows_per_second: f64) -> Option<(u64, u64)> {
    if status.is_crawled() {
        return Some((0, 0));
    }
    let left: u64 = status
        .tables
        .iter()
        .filter(|table| matches!(table.state, TableState::NotStarted | TableState::Crawling))
        .map(|table| table.rows_estimated.saturating_sub(table.rows_crawled))
        .sum();
    if rows_per_second < 1.0 {
        return None;
    }
    let seconds = left as f64 / rows_per_second;
    Some(((seconds * 0.8) as u64, (seconds * 1.5).ceil() as u64 + 1))
}

/// Whether a run that broke is tried again: it waits for a side to come back.
fn is_waiting(status: &Status) -> bool {
    status.running && status.error.is_some()
}

/// The word for what a flow is doing.
pub(crate) fn state_word(status: &Status) -> &'static str {
    if status.tables.is_empty() {
        "planned"
    } else if is_waiting(status) {
        "waiting"
    } else if status.error.is_some() && !status.running {
        "failed"
    } else if !status.is_crawled() {
        "crawling"
    } else if status.is_level() {
        "live"
    } else {
        "catching-up"
    }
}

/// Shows a status as it changes.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    rates: Rates,
    said: Option<(Duration, &'static str)>,
    quiet: bool,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = (std::io::stderr().is_terminal() && !quiet).then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix:<11} {bar:20} {percent:>3}% {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, rates: Rates::default(), said: None, quiet }
    }

    pub(crate) fn show(&mut self, status: &Status, elapsed: Duration) {
        let (rows_rate, changes_rate) = self.rates.take(status);
        let word = state_word(status);
        let crawled: u64 = status.tables.iter().map(|table| table.rows_crawled).sum();
        let estimated: u64 =
            status.tables.iter().map(|table| table.rows_estimated.max(table.rows_crawled)).sum();
        let rest = match (eta(status, rows_rate), status.error.as_deref().filter(|_| is_waiting(status))) {
            (_, Some(error)) => format!("; {error}"),
            (Some((0, 0)), None) => String::new(),
            (Some((low, high)), None) => format!(", eta {low}-{high} s (est.)"),
            (None, None) => ", eta unknown".to_owned(),
        };
        let message = format!(
            "{} of ~{} rows, {}/s, {} changes, {}/s, lag {:.1} s{rest}",
            count(crawled),
            count(estimated),
            count(rows_rate as u64),
            count(status.changes_applied),
            count(changes_rate as u64),
            status.lag_seconds(),
        );
        if let Some(bar) = &self.bar {
            bar.set_length(estimated.max(1));
            bar.set_position(if status.is_crawled() { estimated.max(1) } else { crawled });
            bar.set_prefix(word);
            bar.set_message(message);
        } else if !self.quiet
            && self.said.is_none_or(|(at, said)| said != word || elapsed.saturating_sub(at) >= LINE_EVERY)
        {
            self.said = Some((elapsed, word));
            eprintln!("{word}: {message}");
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            // It stays where it is: the run may have been stopped in the middle.
            bar.abandon();
        }
    }
}
