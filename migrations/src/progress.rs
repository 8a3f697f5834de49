//! The progress of a run: a bar on a terminal, plain lines elsewhere.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tidegate_flow::verify::Reading;
use tidegate_flow::{Status, TableState};

use crate::render::{changes, count, plain, tell};

/// Rates are taken over this long.
const RATE_OVER: Duration = Duration::from_secs(10);
/// Where there is no terminal a line is printed this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How often a spinner moves.
const SPIN: Duration = Duration::from_millis(100);

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

fn crawled(status: &Status) -> u64 {
    status.tables.iter().map(|table| table.rows_crawled).sum()
}

fn estimated(status: &Status) -> u64 {
    status.tables.iter().map(|table| table.rows_estimated.max(table.rows_crawled)).sum()
}

/// Whether both sides are compared while the run goes on.
fn is_comparing(status: &Status, reading: &Reading) -> bool {
    !is_waiting(status) && !reading.tables().is_empty()
}

/// How far a comparison has got.
fn compared(reading: &Reading) -> String {
    format!("{}, {} rows read", reading.tables().join(", "), count(reading.rows()))
}

/// Shows on a terminal how far a comparison has got, until it ends.
pub(crate) async fn while_comparing<T>(
    reading: &Reading,
    quiet: bool,
    comparing: impl Future<Output = T>,
) -> T {
    if quiet || !std::io::stderr().is_terminal() {
        return comparing.await;
    }
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {wide_msg}");
    spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    tokio::pin!(comparing);
    loop {
        let said = if reading.tables().is_empty() {
            "comparing".to_owned()
        } else {
            format!("comparing: {}", compared(reading))
        };
        spinner.set_message(said);
        spinner.tick();
        tokio::select! {
            biased;
            compared = &mut comparing => {
                // What was found is the answer.
                spinner.finish_and_clear();
                return compared;
            }
            () = tokio::time::sleep(SPIN) => {}
        }
    }
}

/// What there is to say, from all of it to the least that is of use.
fn messages(status: &Status, reading: &Reading, (rows_rate, changes_rate): (f64, f64)) -> [String; 3] {
    let rows = count(crawled(status));
    let of = format!("{rows} of ~{}", count(estimated(status)));
    let rows_rate_said = count(rows_rate as u64);
    let changes = format!("{}, {}/s", changes(status.changes_applied), count(changes_rate as u64));
    let lag = format!("lag {:.1} s", status.lag_seconds());
    if is_comparing(status, reading) {
        let (all, rows) = (compared(reading), count(reading.rows()));
        return [
            format!("{all}, {changes}, {lag}"),
            format!("{all}, {lag}"),
            format!("{rows} rows read, {lag}"),
        ];
    }
    let rest = match (eta(status, rows_rate), status.error.as_deref().filter(|_| is_waiting(status))) {
        (_, Some(error)) => format!("; {}", plain(error)),
        (Some((0, 0)), None) => String::new(),
        (Some((low, high)), None) => format!(", eta ~{low}-{high} s"),
        (None, None) => ", eta unknown".to_owned(),
    };
    // What is written: rows as long as there are some to crawl, then changes.
    let written = |rows: &str| {
        if status.is_crawled() {
            format!("{rows} rows, {changes}, {lag}{rest}")
        } else {
            format!("{rows} rows, {rows_rate_said}/s, {lag}{rest}")
        }
    };
    [format!("{of} rows, {rows_rate_said}/s, {changes}, {lag}{rest}"), written(&of), written(&rows)]
}

/// How wide the bar is, and what is said behind it: the bar goes first, then what is of least use.
fn fitted(status: &Status, reading: &Reading, rates: (f64, f64), columns: usize) -> (usize, String) {
    let messages = messages(status, reading, rates);
    for (message, width) in messages.iter().flat_map(|message| BARS.map(|width| (message, width))) {
        if HEAD + width + usize::from(width > 0) + message.chars().count() <= columns {
            return (width, message.clone());
        }
    }
    let [.., least] = messages;
    (0, least)
}

/// The word of the state and the share that is done.
const HEAD: usize = 17;
/// How wide a bar may be.
const BARS: [usize; 3] = [20, 10, 0];

fn style(width: usize) -> ProgressStyle {
    let bar = if width == 0 { String::new() } else { format!("{{bar:{width}}} ") };
    let style = ProgressStyle::with_template(&format!("{{prefix:<11}} {bar}{{percent:>3}}% {{wide_msg}}"));
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
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
        let bar = (std::io::stderr().is_terminal() && !quiet)
            .then(|| ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr()));
        Self { bar, rates: Rates::default(), said: None, quiet }
    }

    pub(crate) fn show(&mut self, status: &Status, reading: &Reading, elapsed: Duration) {
        let rates = self.rates.take(status);
        let word = if is_comparing(status, reading) { "comparing" } else { state_word(status) };
        if let Some(bar) = &self.bar {
            let (_, columns) = Term::stderr().size();
            let (width, message) = fitted(status, reading, rates, usize::from(columns));
            bar.set_style(style(width));
            bar.set_length(estimated(status).max(1));
            bar.set_position(if status.is_crawled() { estimated(status).max(1) } else { crawled(status) });
            bar.set_prefix(word);
            bar.set_message(message);
        } else if !self.quiet
            && self.said.is_none_or(|(at, said)| said != word || elapsed.saturating_sub(at) >= LINE_EVERY)
        {
            self.said = Some((elapsed, word));
            tell(format_args!("{word}: {}", messages(status, reading, rates)[0]));
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            // It stays where it is: the run may have been stopped in the middle.
            bar.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by trying: at 80 columns the line ended behind the rate, and the lag and the end were never seen.
    #[test]
    fn what_is_of_most_use_is_seen_at_any_width() {
        let table = serde_json::json!({
            "source": "t", "target": "t", "state": "crawling", "error": null, "rows_estimated": 1_206_000, "restarts": 0,
            "changes": 0, "chunks_done": 0, "chunks_estimated": 0, "rows_crawled": 605_432, "ranges_done": 0,
            "ranges_total": 1, "rows_overtaken": 0, "rows_completed": 0,
        });
        let table = serde_json::from_value(table).unwrap();
        let status =
            Status { tables: vec![table], changes_applied: 120_000, running: true, ..Status::default() };
        let line = |columns| fitted(&status, &Reading::default(), (45_783.0, 1_200.0), columns);
        let least = "605,432 rows, 45,783/s, lag 0.0 s, eta ~10-21 s";
        let more = "605,432 of ~1,206,000 rows, 45,783/s, lag 0.0 s, eta ~10-21 s";
        let all = "605,432 of ~1,206,000 rows, 45,783/s, 120,000 changes, 1,200/s, lag 0.0 s, eta ~10-21 s";
        for (columns, width, message) in
            [(64, 0, least), (80, 0, more), (105, 0, all), (120, 10, all), (140, 20, all)]
        {
            assert_eq!(line(columns), (width, message.to_owned()), "{columns}");
        }
        let waiting =
            Status { error: Some("TG0010 unreachable: the server does not answer".to_owned()), ..status };
        let (_, message) = fitted(&waiting, &Reading::default(), (0.0, 0.0), 80);
        assert_eq!(message, "605,432 rows, 0/s, lag 0.0 s; TG0010 unreachable: the server does not answer");
    }
}
