//! What people read: errors, tables, numbers.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use tidegate_core::Error;
use tidegate_core::error::Kind;

/// Prints a line of the answer.
macro_rules! say {
    () => { $crate::render::answer(format_args!("")) };
    ($($text:tt)*) => { $crate::render::answer(format_args!($($text)*)) };
}
pub(crate) use say;

/// Whether a part of the answer could not be written.
static IS_CUT: AtomicBool = AtomicBool::new(false);

/// Whether the answer is whole, as far as anybody wanted to have it.
pub(crate) fn is_whole() -> bool {
    !IS_CUT.load(Ordering::Relaxed)
}

/// A text without what a terminal obeys: control characters may stand in keys and values. They are written as JSON has
/// them, so that an answer in JSON stays what it is.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let is_obeyed = |c: char| c.is_control() && !['\n', '\t'].contains(&c);
    if !text.contains(is_obeyed) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_obeyed(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out.into()
}

/// Prints a line of what is told beside the answer.
pub(crate) fn tell(line: std::fmt::Arguments<'_>) {
    // Whoever does not read it has had enough.
    let _ = writeln!(std::io::stderr().lock(), "{}", plain(&line.to_string()));
}

/// Whoever does not read the answer to its end (`| head`) has had enough. Anything else is said.
pub(crate) fn answer(line: std::fmt::Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout().lock(), "{}", plain(&line.to_string()))
        && error.kind() != std::io::ErrorKind::BrokenPipe
        && !IS_CUT.swap(true, Ordering::Relaxed)
    {
        tell(format_args!("the answer cannot be written: {error}"));
    }
}

/// The exit status of a kind of error, as the book's table of exit statuses has it.
pub(crate) fn exit_status(kind: Kind) -> u8 {
    match kind {
        Kind::Usage => 2,
        Kind::Refused => 3,
        Kind::Difference => 4,
        Kind::Unreachable => 5,
        Kind::Held => 6,
        Kind::Stopped => 7,
        _ => 1,
    }
}

/// Prints an error: what happened, its facts and causes, what to do.
pub(crate) fn failure(error: &Error, json: bool) -> ExitCode {
    failure_with(error, json, exit_status(error.kind()))
}

/// The same, with an exit status of the caller's choice.
pub(crate) fn failure_with(error: &Error, json: bool, status: u8) -> ExitCode {
    if json {
        let facts: serde_json::Map<_, _> = error
            .context()
            .iter()
            .map(|(name, value)| (name.clone().into_owned(), value.clone().into()))
            .collect();
        let document = serde_json::json!({"error": {
            "code": format!("TG{:04}", error.code().number()), "name": error.code().name(),
            "message": error.message(), "facts": facts, "hint": error.hint_text(), "exit": status,
        }});
        say!("{document}");
    }
    // Who asked for the end was not failed.
    let word = if error.kind() == Kind::Stopped { "" } else { "error: " };
    tell(format_args!("{word}{error}"));
    for (name, value) in error.context() {
        tell(format_args!("  {name}: {value}"));
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        tell(format_args!("  caused by: {inner}"));
        cause = inner.source();
    }
    if let Some(hint) = error.hint_text() {
        tell(format_args!("hint: {hint}"));
    }
    tell(format_args!("more: tidegate explain {}", error.code().name()));
    ExitCode::from(status)
}

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 change`, `2,000 changes`.
pub(crate) fn changes(number: u64) -> String {
    format!("{} change{}", count(number), if number == 1 { "" } else { "s" })
}

/// A table without lines, for a terminal or a pipe.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    // What is long in the last column would make every other row as long.
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        for (text, shown) in [("a\tb\nç", "a\tb\nç"), ("\0\r\u{1b}[2J\u{9b}", r"\u0000\u000d\u001b[2J\u009b")]
        {
            assert_eq!(plain(text), shown);
        }
    }

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")] {
            assert_eq!(count(number), text);
        }
        let texts = [0, 1, 2_000].map(changes);
        assert_eq!(texts, ["0 changes", "1 change", "2,000 changes"]);
    }
}
