//! What came of the steps, counted.

use std::fmt;

/// Counts of tests, and the failed ones by name. A gate counts as one test.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) skipped: usize,
    pub(crate) failures: Vec<String>,
}

impl Tally {
    pub(crate) fn passed() -> Tally {
        Tally { passed: 1, ..Tally::default() }
    }

    pub(crate) fn failed(name: impl Into<String>) -> Tally {
        Tally { failures: vec![name.into()], ..Tally::default() }
    }

    /// One gate: passed without findings, else failed with each of them printed.
    pub(crate) fn gate(name: &str, findings: &[String]) -> Tally {
        for finding in findings {
            println!("{name}: {finding}");
        }
        if findings.is_empty() { Tally::passed() } else { Tally::failed(name) }
    }

    pub(crate) fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
    }

    /// Takes `count` tests that reported success although they ended at once for want of their service.
    pub(crate) fn turn_into_skips(&mut self, count: usize) {
        self.passed = self.passed.saturating_sub(count);
        self.skipped += count;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failures.len(), self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_everything() {
        let mut tally = Tally { passed: 5, skipped: 1, failures: vec!["a".to_owned()] };
        tally.add(Tally::passed());
        tally.add(Tally::failed("b"));
        tally.turn_into_skips(2);
        assert_eq!(tally.to_string(), "4 passed, 2 failed, 3 skipped");
    }
}
