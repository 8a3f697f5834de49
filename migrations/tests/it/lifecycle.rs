//! A migration from its start to its end, by the program alone.

use std::time::{Duration, Instant};

use crate::runner::Runner;
use crate::{shop, sqlite, sqlite_rows, tidegate};

const MANY: &str = "CREATE TABLE orders (id INTEGER PRIMARY KEY, note TEXT);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
    INSERT INTO orders SELECT i, 'order ' || i FROM n";

/// Waits until the status is so.
#[track_caller]
fn wait(from: &str, to: &str, enough: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let answer = tidegate(&["--json", "migrate", "status", "--from", from, "--to", to]);
        let known = answer.status == 0;
        if known && enough(&answer.json()) {
            return answer.json();
        }
        assert!(Instant::now() < deadline, "the status does not become so: {answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn it_runs_stops_goes_on_is_compared_and_ends() {
    let (folder, from, to) = shop(MANY);
    let ends = ["--from", from.as_str(), "--to", to.as_str()];
    let verb = |words: &[&str]| tidegate(&[&["migrate"], words, &ends].concat());

    let runner = Runner::start(&from, &to, &[]);
    let status = wait(&from, &to, |status| status["state"] == "live");
    assert_eq!(status["tables"][0]["rows_crawled"], 20_000);

    // A change while it runs arrives.
    sqlite(
        &folder.path().join("shop.db"),
        "UPDATE orders SET note = 'new' WHERE id = 7; DELETE FROM orders WHERE id = 8",
    );
    wait(&from, &to, |status| {
        status["tables"][0]["changes_applied"].as_u64() >= Some(2) && status["state"] == "live"
    });
    let report = tidegate(&[&["--json", "migrate", "verify"], &ends[..]].concat()).ended(0).json();
    assert_eq!((&report["equal"], &report["compared"]), (&true.into(), &19_999.into()));

    // A second runner is refused, after it has waited for the first one's lease to end.
    tidegate(&[&["migrate", "run", "--until", "caught-up"], &ends[..]].concat()).failed(
        6,
        "TG0033 lease-held",
        &[],
    );

    // Told to stop, it ends with 7 and goes on later.
    runner.signal("-TERM");
    runner.end().failed(7, "TG0071 stopped", &["hint: the same command goes on from here"]);
    sqlite(&folder.path().join("shop.db"), "INSERT INTO orders VALUES (30000, 'while nobody ran')");
    verb(&["run", "--until", "verified"]).ended(0);

    // A planted difference is found, by key and column, and healed by copying again.
    sqlite(
        &folder.path().join("new.db"),
        "UPDATE orders SET note = 'drift' WHERE id = 9; DELETE FROM orders WHERE id = 10; INSERT INTO orders VALUES (-1, 'x')",
    );
    let report = tidegate(&[&["--json", "migrate", "verify"], &ends[..]].concat()).ended(4).json();
    let rows: Vec<_> = report["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["key"]["id"].as_str().unwrap(), row["kind"].as_str().unwrap()))
        .collect();
    let mut sorted = rows.clone();
    sorted.sort();
    assert_eq!(sorted, [("-1", "extra"), ("10", "missing"), ("9", "different")]);
    // The list may be shorter; what is counted stays.
    let report =
        tidegate(&[&["--json", "migrate", "verify", "--limit", "1"], &ends[..]].concat()).ended(4).json();
    assert_eq!(report["rows"].as_array().unwrap().len(), 1);
    assert_eq!((&report["missing"], &report["extra"]), (&1.into(), &1.into()));
    assert!(verb(&["verify", "--limit", "2"]).ended(4).out.contains("and more; --limit N lists N of them"));
    verb(&["recopy", "--table", "orders"]).ended(0);
    verb(&["run", "--until", "verified"]).ended(0);

    // Aborted, nothing of it is left on the source.
    verb(&["abort", "--yes"]).ended(0);
    verb(&["status"]).failed(3, "TG0031 state-missing", &[]);
    verb(&["run", "--until", "caught-up"]).failed(3, "TG0024 target-not-empty", &[]);
}

/// Found by reading: the guard was off for every table of a migration that had run before.
#[test]
fn a_table_that_joins_later_finds_rows_that_are_not_the_migrations() {
    let (folder, from, to) = shop(
        "CREATE TABLE a (id INTEGER PRIMARY KEY); INSERT INTO a VALUES (1);
         CREATE TABLE b (id INTEGER PRIMARY KEY); INSERT INTO b VALUES (1)",
    );
    let run = |more: &[&str]| {
        let words = ["migrate", "run", "--until", "caught-up", "--from", &from, "--to", &to, "--table", "a"];
        tidegate(&[&words, more].concat())
    };
    run(&[]).ended(0);
    let target = folder.path().join("new.db");
    sqlite(&target, "CREATE TABLE b (id INTEGER PRIMARY KEY); INSERT INTO b VALUES (7)");
    let joins = ["--table", "b"];
    run(&joins).failed(3, "TG0024 target-not-empty: table b has rows already", &["table: b"]);
    assert_eq!(sqlite_rows(&target, "SELECT id FROM b"), ["7"]);
    run(&[]).ended(0);
    run(&[&joins[..], &["--allow-non-empty"]].concat()).ended(0);
    assert_eq!(sqlite_rows(&target, "SELECT id FROM b ORDER BY id"), ["1", "7"]);
    // From then on it is one of the migration.
    run(&joins).ended(0);
}

#[test]
fn knobs_hold_across_runs_and_a_skipped_table_is_left_out() {
    let (_folder, from, to) =
        shop(&format!("{MANY}; CREATE TABLE more (id INTEGER PRIMARY KEY); INSERT INTO more VALUES (1)"));
    let ends = ["--from", from.as_str(), "--to", to.as_str()];
    let verb = |words: &[&str]| tidegate(&[&["migrate"], words, &ends].concat());
    verb(&["run", "--until", "caught-up"]).ended(0);
    verb(&["skip", "--table", "more"]).ended(0);
    verb(&["set", "max_rate=1000"]).ended(0);
    verb(&["set", "max_rate=fast"]).failed(
        2,
        "TG0001 config-invalid: \"max_rate=fast\" cannot be set",
        &["max_rate=ROWS"],
    );
    verb(&["pause", "--table", "nothing"]).failed(
        3,
        "TG0020 table-missing: the migration has no table nothing",
        &["hint: it has: more, orders"],
    );
    verb(&["pause"]).ended(0);
    let runner = Runner::start(&from, &to, &[]);
    let status = wait(&from, &to, |status| status["tables"][0]["state"] == "skipped");
    assert_eq!(status["throttle"], "paused on request");
    drop(runner);
}

#[test]
fn workers_and_the_rate_change_while_it_runs() {
    let (_folder, from, to) = shop(MANY);
    let verb = |words: &[&str]| tidegate(&[&["migrate"], words, &["--from", &from, "--to", &to]].concat());
    verb(&["run", "--until", "caught-up"]).ended(0);
    verb(&["set", "max_rate=1kB/s"]).ended(0);
    verb(&["recopy", "--table", "orders"]).ended(0);
    let runner = Runner::start(&from, &to, &[]);
    let status = wait(&from, &to, |status| status["state"] == "crawling");
    assert_eq!(status["throttle"], "max_rate=1000B/s");
    verb(&["set", "workers=3"]).ended(0);
    wait(&from, &to, |status| status["workers"] == 3);
    verb(&["set", "max_rate=0"]).ended(0);
    wait(&from, &to, |status| status["state"] == "live");
    runner.signal("-TERM");
    runner.end().ended(7);
    verb(&["verify"]).ended(0);
}

#[test]
fn a_source_that_was_restored_is_not_followed() {
    let (folder, from, to) = shop(MANY);
    let words = ["migrate", "run", "--from", &from, "--to", &to, "--until", "caught-up"];
    let file = folder.path().join("shop.db");
    tidegate(&words).ended(0);
    sqlite(&file, "PRAGMA wal_checkpoint(TRUNCATE)");
    let backup = folder.path().join("backup.db");
    std::fs::copy(&file, &backup).unwrap();
    sqlite(&file, "UPDATE orders SET note = 'later'");
    tidegate(&words).ended(0);
    for rest in ["shop.db-wal", "shop.db-shm"] {
        let _ = std::fs::remove_file(folder.path().join(rest));
    }
    std::fs::copy(&backup, &file).unwrap();
    tidegate(&words).failed(1, "TG0042 source-replaced", &[]);
}

/// A chunk ends with the row that reaches its bytes.
#[test]
fn chunks_have_as_many_bytes_as_the_configuration_says() {
    let (folder, from, to) = shop("CREATE TABLE orders (id INTEGER PRIMARY KEY, note TEXT)");
    let rows = (0..50).map(|id| format!("({id}, 'a note')")).collect::<Vec<_>>().join(", ");
    sqlite(&folder.path().join("shop.db"), &format!("INSERT INTO orders VALUES {rows}"));
    let file = folder.path().join("small.toml");
    std::fs::write(&file, "[copy]\nchunk_bytes = 1\n").unwrap();
    let words = ["-c", file.to_str().unwrap(), "migrate", "run", "--until", "caught-up"];
    tidegate(&[&words[..], &["--from", &from, "--to", &to]].concat()).ended(0);
    let status = wait(&from, &to, |status| status["tables"][0]["state"] == "live");
    let chunks = status["tables"][0]["chunks_done"].as_u64();
    assert!(chunks >= Some(50), "{chunks:?} chunks for 50 rows");
}

/// Found by trying: a run that was to compare waited for ever.
#[test]
fn a_migration_without_a_table_left_has_nothing_to_compare() {
    let (_folder, from, to) = shop("CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)");
    let verb = |words: &[&str]| tidegate(&[&["migrate"], words, &["--from", &from, "--to", &to]].concat());
    verb(&["run", "--until", "caught-up"]).ended(0);
    verb(&["skip", "--table", "t"]).ended(0);
    for words in [&["run", "--until", "verified"][..], &["verify"]] {
        let answer = verb(words).ended(0);
        assert!(answer.out.contains("equal: 0 rows compared"), "{}", answer.out);
    }
}

/// Found by trying: both sides were called equal beside a table that had stopped.
#[test]
fn what_was_verified_before_a_table_stopped_is_not_said_again() {
    let (folder, from, to) =
        shop("CREATE TABLE t (id INTEGER PRIMARY KEY, n TEXT); INSERT INTO t VALUES (1, 'a')");
    let verb = |words: &[&str]| tidegate(&[&["migrate"], words, &["--from", &from, "--to", &to]].concat());
    verb(&["run", "--until", "verified"]).ended(0);
    sqlite(&folder.path().join("shop.db"), "INSERT INTO t VALUES (2, CAST(x'ff' AS TEXT))");
    verb(&["run", "--until", "caught-up"]).ended(1);
    let status = verb(&["status"]).ended(0);
    assert!(status.out.contains("verified: not since a table stopped"), "{}", status.out);
    let words = ["--json", "migrate", "status", "--from", &from, "--to", &to];
    assert_eq!(tidegate(&words).ended(0).json()["verify"]["stale"], true);
    let report = verb(&["verify"]).ended(4);
    assert!(
        report.out.contains("not compared: t stopped") && !report.out.contains("and more"),
        "{}",
        report.out
    );
}

/// Found by trying: a table that stopped ended the run, with the others half crawled and nothing compared; and one value
/// that could not be read ended the comparison of all tables.
#[test]
fn what_is_wrong_with_one_table_keeps_no_other_from_being_crawled_and_compared() {
    let (folder, from, to) = shop(&format!(
        "{MANY}; CREATE TABLE bad (id INTEGER PRIMARY KEY, n TEXT);
         INSERT INTO bad VALUES (1, CAST(x'ff' AS TEXT)); CREATE TABLE late (id INTEGER PRIMARY KEY, n TEXT);
         INSERT INTO late VALUES (1, 'a')"
    ));
    let verb = |words: &[&str]| tidegate(&[&["migrate"], words, &["--from", &from, "--to", &to]].concat());
    verb(&["run", "--until", "verified"]).failed(
        1,
        "TG0050 value-unfit: table bad stopped",
        &["recopy --table bad"],
    );
    let status = wait(&from, &to, |status| status["tables"][2]["state"] == "live");
    assert_eq!(status["tables"][2]["rows_crawled"], 20_000, "{status}");
    assert_eq!(status["verify"]["compared"], 20_001, "{status}");

    sqlite(&folder.path().join("new.db"), "UPDATE late SET n = CAST(x'ff' AS TEXT)");
    let report = verb(&["verify"]).ended(4);
    for words in ["not compared: bad stopped", "not compared to the end: late: TG00", "20,00"] {
        assert!(report.out.contains(words), "{words:?} is not in: {}", report.out);
    }
}

/// Found by a newcomer: rows that were still to come were called missing, a crawl that nobody ran went on, and the plan of
/// a migration that had begun was refused because of its own rows.
#[test]
fn a_migration_that_was_stopped_in_the_middle_is_shown_as_what_it_is() {
    let (folder, from, to) = shop(MANY);
    let verb = |words: &[&str]| tidegate(&[words, &["--from", &from, "--to", &to]].concat());
    let file = folder.path().join("shop.toml");
    std::fs::write(&file, "[copy]\nchunk_rows = 200\n").unwrap();
    verb(&["migrate", "run", "--until", "caught-up"]).ended(0);
    verb(&["migrate", "verify"]).ended(0);
    verb(&["migrate", "set", "max_rate=1000"]).ended(0);
    verb(&["migrate", "recopy", "--table", "orders"]).ended(0);
    let status = verb(&["migrate", "status"]).ended(0);
    assert!(status.out.contains("verified: not yet"), "{}", status.out);
    let runner = Runner::start(&from, &to, &["-c", file.to_str().unwrap()]);
    wait(&from, &to, |status| {
        let crawled = status["tables"][0]["rows_crawled"].as_u64();
        status["state"] == "crawling" && crawled > Some(0) && crawled < Some(10_000)
    });
    runner.signal("-TERM");
    let stopped = runner.end();
    assert!(!stopped.err.contains("error:"), "who asked for the end was not failed: {}", stopped.err);

    let status = verb(&["migrate", "status"]).ended(0);
    assert!(status.out.contains("shop_to_new: stopped"), "{}", status.out);
    let report = verb(&["migrate", "verify"]).ended(4);
    assert!(report.out.contains("not compared to the end: orders: "), "{}", report.out);
    assert!(report.out.contains("of ~20,000 rows are crawled"), "{}", report.out);
    assert!(!report.out.contains("missing: "), "{}", report.out);
    let plan = verb(&["plan"]).ended(0);
    assert!(plan.out.contains("the migration has begun, and goes on with a run"), "{}", plan.out);
}

/// Found by trying: the line was cut behind the rate, and nobody saw the lag and the end.
#[test]
fn a_terminal_of_80_columns_shows_the_lag_and_the_end() {
    let (folder, from, to) = shop(MANY);
    let file = folder.path().join("shop.toml");
    std::fs::write(&file, "[copy]\nchunk_rows = 200\n").unwrap();
    let run = [
        "-c",
        file.to_str().unwrap(),
        "migrate",
        "run",
        "--until",
        "caught-up",
        "--from",
        &from,
        "--to",
        &to,
    ];
    tidegate(&run).ended(0);
    for verb in [&["set", "max_rate=8000"], &["recopy", "--table=orders"]] {
        tidegate(&[&["migrate"], &verb[..], &run[6..]].concat()).ended(0);
    }
    let drawn = crate::on_terminal(80, &run);
    let crawling: Vec<_> =
        drawn.iter().filter(|line| line.starts_with("crawling") && line.contains("eta")).collect();
    let is_whole = |line: &&String| {
        ["%", " rows, ", "/s, ", "lag ", "eta "].iter().all(|part| line.contains(part))
            && line.trim_end().ends_with(" s")
    };
    assert!(crawling.iter().any(is_whole), "{drawn:#?}");
    assert!(
        drawn.iter().all(|line| line.chars().count() <= 80 || !line.starts_with("crawling")),
        "{drawn:#?}"
    );
}

/// Found by trying: the screen stayed empty for as long as it took.
#[test]
fn a_comparison_says_how_far_it_has_got() {
    let (folder, from, to) = shop(MANY);
    let ends = ["--from", from.as_str(), "--to", to.as_str()];
    let run = |until| tidegate(&[&["migrate", "run", "--until", until], &ends[..]].concat());
    run("caught-up").ended(0);
    // A row that differs is read again and again.
    sqlite(&folder.path().join("new.db"), "UPDATE orders SET note = 'other' WHERE id = 7");
    let verify = [&["migrate", "verify"], &ends[..]].concat();
    let is_said = |line: &String| line.contains("comparing: orders, ") && line.contains(",000 rows read");
    let drawn = crate::on_terminal(80, &verify);
    assert!(drawn.iter().any(is_said), "{drawn:#?}");
    assert!(drawn.last().unwrap().contains("next: "), "{drawn:#?}");
    let found = tidegate(&verify).ended(4).out;
    assert!(
        found.starts_with("nobody runs this migration: "),
        "what explains the rest is not first: {found}"
    );
    for quiet in ["--json", "--quiet"] {
        let drawn = crate::on_terminal(80, &[&[quiet], &verify[..]].concat());
        assert!(!drawn.iter().any(is_said), "{drawn:#?}");
    }
    let lines = run("verified").ended(4).err;
    assert!(lines.lines().any(|line| line.starts_with("comparing: orders, ")), "{lines}");
}

/// Found by trying: the plan named no type for the target's column.
#[test]
fn a_column_without_a_type_is_any_on_both_sides() {
    let (_folder, from, to) = crate::shop("CREATE TABLE t (id INTEGER PRIMARY KEY, v)");
    let plan = crate::tidegate(&["plan", "--from", &from, "--to", &to]).ended(0);
    let line = plan.out.lines().find(|line| line.contains(" any")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["v", "any", "->", "any"]);
}
