//! The output of `cargo test`, read line by line.

use crate::outcome::Tally;

/// Reads the lines of any number of test binaries and doctests.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    tally: Tally,
    binary: String,
    /// The tests announced by a binary that has not printed its result yet.
    open: bool,
    failed: Vec<String>,
    /// The line before named a failed test: what follows may say why.
    has_just_failed: bool,
}

impl Reader {
    /// Reads the output of one binary that cargo does not announce.
    pub(crate) fn of(binary: &str) -> Self {
        Self { binary: binary.to_owned(), ..Self::default() }
    }

    pub(crate) fn line(&mut self, line: &str) {
        let text = line.trim();
        if std::mem::take(&mut self.has_just_failed)
            && line.starts_with("    ")
            && let Some(failed) = self.failed.last_mut()
        {
            *failed = format!("{failed}: {text}");
        }
        if let Some(binary) = text.strip_prefix("Running ").or_else(|| text.strip_prefix("Doc-tests ")) {
            self.close();
            self.binary = binary.split(" (").next().unwrap_or(binary).to_owned();
            if let Some(path) = binary.rsplit_once("(").map(|(_, path)| path.trim_end_matches(')')) {
                let file = path.rsplit('/').next().unwrap_or(path);
                let name = file.rsplit_once('-').map_or(file, |(name, _)| name);
                self.binary = format!("{name} {}", self.binary);
            }
        } else if line.starts_with("running ") && (text.ends_with(" tests") || text.ends_with(" test")) {
            self.close();
            self.open = true;
        } else if let Some(name) = failed_test(line) {
            self.failed.push(name.to_owned());
            self.has_just_failed = true;
        } else if let Some(counts) = text.strip_prefix("test result: ") {
            self.open = false;
            self.result(counts);
        }
    }

    /// The sum; `success` is the exit status of the command.
    pub(crate) fn finish(mut self, name: &str, success: bool) -> Tally {
        self.close();
        if !success && self.tally.failures.is_empty() {
            self.tally.failures.push(format!("{name} (did not get through; see above)"));
        }
        self.tally
    }

    fn result(&mut self, counts: &str) {
        self.tally.passed += count(counts, "passed");
        self.tally.skipped += count(counts, "ignored");
        let failed = count(counts, "failed");
        let mut names: Vec<_> = std::mem::take(&mut self.failed);
        // The count is what holds, should a name have been lost between other lines.
        names.resize_with(failed, || "a test".to_owned());
        self.tally.failures.extend(names.iter().map(|name| format!("{}: {name}", self.binary)));
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            let mut names = std::mem::take(&mut self.failed);
            names.push("ended before its tests did".to_owned());
            self.tally.failures.extend(names.iter().map(|name| format!("{}: {name}", self.binary)));
        }
    }
}

/// `test some::name ... FAILED`; the name of a doctest holds spaces.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// The number before `word` in `ok. 3 passed; 0 failed; 1 ignored; …`.
fn count(counts: &str, word: &str) -> usize {
    let mut before = "";
    for text in counts.split([' ', ';']).filter(|text| !text.is_empty()) {
        if text == word {
            return before.parse().unwrap_or(0);
        }
        before = text;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, success: bool) -> Tally {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        reader.finish("tests", success)
    }

    #[test]
    fn every_binary_is_counted_and_failures_have_names() {
        let tally = read(
            "     Running unittests src/lib.rs (target/debug/deps/shop-0a1b)\n\nrunning 3 tests\n\
             test a::works ... ok\ntest a::breaks ... FAILED\ntest a::later ... ignored, needs b\n\n\
             failures:\n    a::breaks\n\ntest result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out\n\
             \x20  Doc-tests shop\n\nrunning 2 tests\ntest src/lib.rs - f (line 3) ... FAILED\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
            false,
        );
        assert_eq!((tally.passed, tally.skipped), (2, 1));
        assert_eq!(tally.failures, ["shop unittests src/lib.rs: a::breaks", "shop: src/lib.rs - f (line 3)"]);
    }

    #[test]
    fn a_failure_says_why_where_the_next_line_does() {
        let mut reader = Reader::of("conformance of tidegate-x");
        for line in [
            "running 2 tests",
            "test x::A1 it is so ... FAILED",
            "    0.1 s (Failed) it is not",
            "test x::A2 it is too ... ok",
            "    1.1 s",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored;",
        ] {
            reader.line(line);
        }
        let tally = reader.finish("conformance", false);
        let said = "conformance of tidegate-x: x::A1 it is so: 0.1 s (Failed) it is not";
        assert_eq!((tally.passed, tally.failures), (1, vec![said.to_owned()]));
    }

    #[test]
    fn a_binary_that_dies_is_a_failure() {
        let tally = read(
            "Running tests/it.rs (deps/it-1)\nrunning 2 tests\ntest a ... ok\nRunning x (deps/x-1)\n",
            false,
        );
        assert_eq!(tally.failures, ["it tests/it.rs: ended before its tests did"]);
    }

    #[test]
    fn a_command_that_fails_without_tests_is_a_failure() {
        assert_eq!(read("error: could not compile", false).failures.len(), 1);
        assert_eq!(
            read("running 0 tests\ntest result: ok. 0 passed; 0 failed; 0 ignored;", true),
            Tally::default()
        );
    }
}
