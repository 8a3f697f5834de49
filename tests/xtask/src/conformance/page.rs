//! The page that says which broker does what.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Row;
use crate::workspace::{self, TextFile};

const INTRODUCTION: &str = "# What every broker does

What a broker promises is a list of properties, and each adapter shows each property of the first table against the real server,
or declares why it cannot, and refuses. A suite that cannot fail shows nothing: each of them has a planted bug that it has to catch.
This page is written from the suite's own rows, of one run or, with `--with FILE`, of several:

```console
$ cargo xtask conformance --page docs/reference/conformance.md
```

*yes*: it was shown. *no*: declared, with the reason below, and refused with `capability-missing` by whoever asks for it.
—: it speaks of a network, and nothing is between the broker and whoever uses it.

";

const ELSEWHERE: &str = "
## Shown by tests of their own

What needs more than the suite can ask of every server is shown by these tests, of the adapters that are named; those of
`interop` are with programs in Java and Python.

| property | | test | of |
|---|---|---|---|
";

const ABSENT: &str = "
## Shown by nothing

Two properties are of what is not there. *E46* on Kafka: a server whose disk is full ends by itself, so that it is one that was killed (A10, E42). *G55*, a
release and the one before it on one broker: there is none before this one.
";

/// Properties that need what the suite has no hook for, with the functions that show them.
const TESTS: &[(&str, &str, &[&str])] = &[
    (
        "E43",
        "a certificate that nobody vouches for is refused",
        &["tls_is_verified", "users_and_certificates_are_checked"],
    ),
    (
        "E46",
        "without room it refuses, and goes on when there is some",
        &[
            "a_server_that_is_short_of_disk_is_told_so",
            "a_server_that_is_short_of_memory_is_told_so",
            "a_disk_without_room_is_named",
        ],
    ),
    (
        "G53",
        "settings that lose messages are named",
        &[
            "what_loses_messages_is_named",
            "settings_that_lose_messages_are_named",
            "the_password_that_everybody_knows_is_warned_of",
            "unsafe_settings_are_named",
            "a_server_that_does_not_wait_for_its_disk_is_warned_of",
        ],
    ),
    (
        "H59",
        "other programs read our messages and write theirs",
        &[
            "other_programs_read_and_write",
            "qpid_jms_reads_our_messages",
            "messages_of_qpid_jms_are_read",
            "artemis_own_client_reads_our_messages",
            "activemq_own_client_reads_our_messages",
            "messages_of_artemis_own_client_are_read",
            "messages_of_activemq_own_client_are_read",
            "java_reads_our_events_over_kafka",
            "java_writes_events_for_us_over_kafka",
            "python_reads_our_events_over_nats",
            "python_writes_events_for_us_over_nats",
            "python_reads_our_events_over_rabbitmq",
            "python_writes_events_for_us_over_rabbitmq",
            "python_reads_our_events_over_redis",
            "python_writes_events_for_us_over_redis",
        ],
    ),
];

/// The page of these rows: a table of the properties, the reasons of what is declared, and what is shown elsewhere.
pub(super) fn page(rows: &[Row]) -> String {
    let mut adapters: Vec<&str> = Vec::new();
    let mut cases: Vec<(&str, &str)> = Vec::new();
    let mut cells = BTreeMap::new();
    let mut reasons: BTreeMap<&str, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for row in rows {
        if !adapters.contains(&row.adapter.as_str()) {
            adapters.push(&row.adapter);
        }
        if !cases.iter().any(|(id, _)| *id == row.id) {
            cases.push((&row.id, &row.rule));
        }
        let word = match row.outcome.as_str() {
            "passed" => "yes",
            "refused-as-declared" => "no",
            "not-applicable" => "—",
            "failed" => "FAILED",
            _ => "not run",
        };
        if word == "no" {
            reasons.entry(&row.adapter).or_default().entry(&row.detail).or_default().push(&row.id);
        }
        cells.insert((row.id.as_str(), row.adapter.as_str()), word);
    }
    let mut page = INTRODUCTION.to_owned();
    let line = |page: &mut String, cells: &[&str]| _ = writeln!(page, "| {} |", cells.join(" | "));
    line(&mut page, &[&["property", ""], &adapters[..]].concat());
    line(&mut page, &vec!["---"; adapters.len() + 2]);
    for (id, rule) in cases {
        let words = adapters.iter().map(|adapter| cells.get(&(id, *adapter)).copied().unwrap_or("not run"));
        let words: Vec<&str> = [id, rule].into_iter().chain(words).collect();
        line(&mut page, &words);
    }
    page.push_str("\n## What is declared\n\n| broker | properties | why not |\n|---|---|---|\n");
    for (adapter, reasons) in reasons {
        for (why, ids) in reasons {
            line(&mut page, &[adapter, &ids.join(", "), why]);
        }
    }
    page.push_str(ELSEWHERE);
    let files = workspace::text_files();
    for (id, rule, tests) in TESTS {
        for test in *tests {
            line(&mut page, &[id, rule, &format!("`{test}`"), &homes(&files, test).join(", ")]);
        }
    }
    page.push_str(ABSENT);
    page
}

/// Where a test of this name is: the adapters, or the programs in other languages.
fn homes<'f>(files: &'f [TextFile], test: &str) -> Vec<&'f str> {
    let definition = format!("fn {test}(");
    let has_it = |file: &&TextFile| file.path.ends_with(".rs") && file.text.contains(&definition);
    let home = |file: &'f TextFile| match file.path.strip_prefix("adapters/") {
        Some(path) => path.split('/').next(),
        None => file.path.starts_with("tests/interop/").then_some("interop"),
    };
    let mut homes: Vec<_> = files.iter().filter(has_it).filter_map(home).collect();
    homes.sort_unstable();
    homes.dedup();
    homes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, adapter: &str, outcome: &str, detail: &str) -> Row {
        let [id, adapter, outcome, detail] = [id, adapter, outcome, detail].map(str::to_owned);
        Row { rule: format!("rule of {id}"), id, adapter, outcome, detail }
    }

    #[test]
    fn a_page_says_what_was_shown_and_what_is_declared() {
        let page = page(&[
            row("A1", "memory", "passed", ""),
            row("A2", "memory", "refused-as-declared", "dedupe: no: it forgets"),
            row("A1", "redis", "failed", "lost"),
        ]);
        for line in [
            "| property |  | memory | redis |",
            "| A1 | rule of A1 | yes | FAILED |",
            "| A2 | rule of A2 | no | not run |",
            "| memory | A2 | dedupe: no: it forgets |",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}: {page}");
        }
    }

    #[test]
    fn every_test_that_is_named_is_there() {
        let files = workspace::text_files();
        for test in TESTS.iter().flat_map(|(_, _, tests)| *tests) {
            assert!(!homes(&files, test).is_empty(), "no adapter has {test}");
        }
    }
}
