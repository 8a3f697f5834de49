//! A name belongs to one source and one target: another target is refused, and an abort takes nothing from anybody else.

use std::time::{Duration, Instant};

use rstest::rstest;
use tidegate_services::{mongodb as documents, postgres};

use crate::columns::{verb, wait};
use crate::pairs::psql;
use crate::runner::Runner;
use crate::{Outcome, shop, sqlite, sqlite_rows, tidegate};

const ROWS: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'a'), (2, 'b')";
const NAME: &str = "names";
const TAKEN: &str = "TG0039 name-taken: what the source keeps for migration names is for another target";
const TAKEN_HINTS: [&str; 2] = ["--name of its own", "tidegate migrate abort --source-only --name names"];

fn run(from: &str, to: &str) -> Outcome {
    verb(NAME, from, to, &["run", "--until", "caught-up"])
}

/// An abort that looks at the source alone.
fn abort_source(from: &str) -> Outcome {
    tidegate(&["migrate", "abort", "--source-only", "--yes", "--from", from, "--name", NAME])
}

fn start(from: &str, to: &str) -> Runner {
    let runner = Runner::start(from, to, &["--name", NAME]);
    wait(NAME, from, to, |status| status["state"] == "live");
    runner
}

/// Waits until a query of a file gives this.
#[track_caller]
fn arrives(file: &std::path::Path, sql: &str, rows: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while sqlite_rows(file, sql) != rows {
        assert!(Instant::now() < deadline, "{:?}", sqlite_rows(file, sql));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_second_target_of_one_name_is_refused_and_nothing_is_changed() {
    let (folder, from, to) = shop(ROWS);
    let (source, second) = (folder.path().join("shop.db"), folder.path().join("second.db"));
    run(&from, &to).ended(0);
    let other = format!("sqlite:{}", second.display());
    let capture = sqlite_rows(&source, "SELECT flow || acknowledged || seal FROM tidegate_capture");
    for _ in 0..2 {
        run(&from, &other).failed(3, TAKEN, &TAKEN_HINTS);
        assert!(!second.exists(), "nothing was made");
        assert_eq!(
            sqlite_rows(&source, "SELECT flow || acknowledged || seal FROM tidegate_capture"),
            capture
        );
    }
    verb("another", &from, &other, &["run", "--until", "verified"]).ended(0);
    sqlite(&source, "INSERT INTO t VALUES (3, 'c')");
    verb(NAME, &from, &to, &["run", "--until", "verified"]).ended(0);
}

/// Found by reading: a state that is kept elsewhere took another target for the one that it was of.
#[test]
fn another_target_is_refused_also_with_the_same_state() {
    let (folder, from, to) = shop(ROWS);
    let url = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    let (state, other) = (url("state.db"), url("second.db"));
    let verb = |to: &str, words: &[&str]| verb(NAME, &from, to, &[words, &["--state", &state]].concat());
    let run = ["run", "--until", "caught-up"];
    verb(&to, &run).ended(0);
    verb(&other, &run).failed(3, TAKEN, &TAKEN_HINTS);
    verb(&to, &run).ended(0);
    // What the target remembers is forgotten too, so that it can begin anew.
    verb(&to, &["abort", "--yes"]).ended(0);
    sqlite(&folder.path().join("new.db"), "DELETE FROM t");
    verb(&to, &["run", "--until", "verified"]).ended(0);
}

/// Found by reading: the source was cleaned before anybody looked whether there was such a migration.
#[test]
fn an_abort_with_another_target_leaves_a_running_migration_alone() {
    let (folder, from, to) = shop(ROWS);
    let mut runner = start(&from, &to);
    let other = format!("sqlite:{}", folder.path().join("second.db").display());
    verb(NAME, &from, &other, &["abort", "--yes"]).failed(
        3,
        "TG0031 state-missing: there is no migration names",
        &["check --name, --to and --state", "--source-only"],
    );
    verb(NAME, &from, &to, &["abort", "--yes"]).failed(6, "TG0033 lease-held", &[]);
    sqlite(&folder.path().join("shop.db"), "INSERT INTO t VALUES (3, 'c')");
    arrives(&folder.path().join("new.db"), "SELECT id FROM t ORDER BY id", &["1", "2", "3"]);
    assert!(runner.is_running());
    runner.signal("-TERM");
    runner.end().ended(7);
    verb(NAME, &from, &to, &["run", "--until", "verified"]).ended(0);
}

#[test]
fn an_abort_of_a_target_that_was_given_up_leaves_the_source_to_the_other() {
    let (folder, from, to) = shop(ROWS);
    let other = format!("sqlite:{}", folder.path().join("second.db").display());
    run(&from, &to).ended(0);
    abort_source(&from).ended(0);
    run(&from, &other).ended(0);
    run(&from, &to).failed(3, TAKEN, &TAKEN_HINTS);
    let answer = verb(NAME, &from, &to, &["abort", "--yes"]).ended(0);
    assert!(answer.err.contains("is for another target, and was left as it is"), "{}", answer.err);
    verb(NAME, &from, &to, &["status"]).failed(3, "TG0031 state-missing", &[]);
    sqlite(&folder.path().join("shop.db"), "INSERT INTO t VALUES (3, 'c')");
    verb(NAME, &from, &other, &["run", "--until", "verified"]).ended(0);
}

/// Found by trying: the lease was asked for where no runner had one, and the source cleaned under it.
#[test]
fn an_abort_that_is_not_given_the_runners_state_is_refused() {
    let (folder, from, to) = shop(ROWS);
    let state = format!("sqlite:{}", folder.path().join("state.db").display());
    let runner = Runner::start(&from, &to, &["--name", NAME, "--state", &state]);
    let words = ["migrate", "status", "--from", &from, "--to", &to, "--state", &state, "--name", NAME];
    let deadline = Instant::now() + Duration::from_secs(30);
    while !tidegate(&words).out.contains("live") {
        assert!(Instant::now() < deadline, "it does not go live");
        std::thread::sleep(Duration::from_millis(100));
    }
    verb(NAME, &from, &to, &["abort", "--yes"]).failed(
        6,
        "TG0033 lease-held: somebody runs migration names",
        &[],
    );
    sqlite(&folder.path().join("shop.db"), "INSERT INTO t VALUES (3, 'c')");
    arrives(&folder.path().join("new.db"), "SELECT count(*) FROM t", &["3"]);
    runner.signal("-TERM");
    runner.end().ended(7);
}

/// Found by trying: it was said to be removed where there was nothing.
#[test]
fn an_abort_says_what_it_removed() {
    let (folder, from, to) = shop(ROWS);
    run(&from, &to).ended(0);
    let other = format!("sqlite:{}", folder.path().join("other.db").display());
    sqlite(
        &folder.path().join("other.db"),
        "PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY)",
    );
    let abort = |words: &[&str]| {
        tidegate(&[&["--json", "migrate", "abort", "--yes", "--name", NAME], words].concat())
    };
    let answer = abort(&["--from", &other, "--to", &to]).ended(0);
    assert_eq!(answer.json()["removed_from_source"], false);
    assert!(answer.err.contains("this source keeps nothing for migration names"), "{}", answer.err);
    for removed in [true, false] {
        let answer = abort(&["--source-only", "--from", &from]).ended(0);
        assert_eq!(answer.json()["removed_from_source"], removed);
    }
}

/// What had been applied to it is nowhere: to begin anew has to be said.
#[test]
fn a_target_that_was_dropped_begins_anew_only_after_an_abort_of_the_source() {
    let (folder, from, to) = shop(ROWS);
    run(&from, &to).ended(0);
    for rest in ["new.db", "new.db-wal", "new.db-shm"] {
        let _ = std::fs::remove_file(folder.path().join(rest));
    }
    run(&from, &to).failed(3, TAKEN, &TAKEN_HINTS);
    verb(NAME, &from, &to, &["abort", "--yes"]).failed(3, "TG0031 state-missing", &["--source-only"]);
    let words = ["migrate", "abort", "--source-only", "--from", &from];
    tidegate(&[&words[..], &["--name", NAME]].concat()).failed(
        2,
        "TG0001 config-invalid: an abort has to be agreed to",
        &["--yes"],
    );
    tidegate(&[&words[..], &["--yes"]].concat()).failed(
        2,
        "TG0001 config-invalid: which migration is not said",
        &["give --name"],
    );
    abort_source(&from).ended(0);
    assert!(
        sqlite_rows(
            &folder.path().join("shop.db"),
            "SELECT name FROM sqlite_schema WHERE name LIKE 'tidegate%'"
        )
        .is_empty()
    );
    verb(NAME, &from, &to, &["run", "--until", "verified"]).ended(0);
}

/// The file does not tell who reads it; its seal does.
#[rstest]
#[case::alone(false)]
#[case::beside_another(true)]
fn an_abort_of_the_source_alone_is_refused_while_somebody_runs_it(#[case] is_beside: bool) {
    let (folder, from, to) = shop(ROWS);
    if is_beside {
        // It keeps the journal and its triggers in place.
        let other = format!("sqlite:{}", folder.path().join("second.db").display());
        verb("another", &from, &other, &["run", "--until", "caught-up"]).ended(0);
    }
    let mut runner = start(&from, &to);
    let held = "TG0033 lease-held: somebody runs migration names";
    abort_source(&from).failed(6, held, &["stop its runner first"]);
    assert!(runner.is_running());
    // One that stands still is not seen. It finds what was done when it goes on.
    runner.signal("-STOP");
    abort_source(&from).ended(0);
    runner.signal("-CONT");
    let error = if is_beside { "TG0042 source-replaced" } else { "TG0044 journal-lost" };
    runner.end().failed(1, error, &[]);
}

/// The record of what is about to be is written first, so that there is no moment that keeps it from going on.
#[test]
fn a_runner_that_was_killed_at_its_start_starts_again() {
    for millis in [10, 20, 60, 120, 250] {
        let (_folder, from, to) = shop(ROWS);
        let runner = Runner::start(&from, &to, &["--name", NAME]);
        std::thread::sleep(Duration::from_millis(millis));
        drop(runner);
        verb(NAME, &from, &to, &["run", "--until", "verified"]).ended(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_for_one_target_and_is_not_dropped_under_its_reader() {
    let Some(server) = postgres::shared().await else { return };
    let from = server.create_database("names").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    let (to, other) = (url("new.db"), url("second.db"));
    let rows = |sql: &str| sqlite_rows(&folder.path().join("new.db"), sql);
    tokio::task::block_in_place(|| {
        psql(&from, "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')");
        let name = format!("names_{}", std::process::id());
        let named = |to: &str, words: &[&str]| verb(&name, &from, to, words);
        let abort_source =
            || tidegate(&["migrate", "abort", "--source-only", "--yes", "--from", &from, "--name", &name]);
        let runner = Runner::start(&from, &to, &["--name", &name]);
        wait(&name, &from, &to, |status| status["state"] == "live");
        named(&other, &["run", "--until", "caught-up"]).failed(3, "TG0039 name-taken", &["--source-only"]);
        named(&other, &["abort", "--yes"]).failed(3, "TG0031 state-missing", &[]);
        psql(&from, "INSERT INTO t VALUES (2, 'b')");
        arrives(&folder.path().join("new.db"), "SELECT id FROM t ORDER BY id", &["1", "2"]);
        // It stands still, and the server still has its connection.
        runner.signal("-STOP");
        abort_source().failed(6, "TG0033 lease-held: somebody reads the slot", &["slot: tidegate_names_"]);
        psql(
            &from,
            &format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'tidegate_{name}'"
            ),
        );
        std::thread::sleep(Duration::from_millis(500));
        abort_source().ended(0);
        psql(&from, "INSERT INTO t VALUES (3, 'c')");
        runner.signal("-CONT");
        let ended = runner.end().ended(1);
        let named_errors = ["TG0042 source-replaced", "TG0040 slot-lost", "TG0041 slot-recreated"];
        assert!(named_errors.iter().any(|name| ended.err.contains(name)), "{}", ended.err);
        assert_eq!(rows("SELECT id FROM t ORDER BY id"), ["1", "2"], "it did not go on over the gap");
        let left = format!(
            "DO $$ BEGIN IF EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'tidegate_{name}') OR EXISTS (SELECT FROM pg_publication) THEN RAISE 'something was left'; END IF; END $$"
        );
        psql(&from, &left);
    });
}

/// A log that is there anyway is for one target too.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_target_of_documents_is_refused() {
    let Some(server) = documents::shared().await else { return };
    let from = server.database("names");
    crate::replaced::insert(&from, 1..5).await;
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    let (to, other) = (url("new.db"), url("second.db"));
    tokio::task::block_in_place(|| {
        run(&from, &to).ended(0);
        run(&from, &other).failed(3, TAKEN, &TAKEN_HINTS);
        assert!(!folder.path().join("second.db").exists(), "nothing was made");
        verb(NAME, &from, &to, &["run", "--until", "verified"]).ended(0);
        abort_source(&from).ended(0);
        run(&from, &other).ended(0);
        run(&from, &to).failed(3, TAKEN, &TAKEN_HINTS);
    });
}

/// A transaction that stays open for some seconds: a slot is made when it has ended.
fn stay_open(url: &str, seconds: u32) -> std::process::Child {
    let sql = format!("BEGIN; INSERT INTO t VALUES (100, 'late'); SELECT pg_sleep({seconds}); COMMIT");
    let mut command = std::process::Command::new("psql");
    command.args(["--no-psqlrc", "--quiet", "--dbname", url, "--command", &sql]);
    let child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    child
}

/// Found by testing: with a prepared transaction at the source the first start waited without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_says_that_it_waits_for_open_transactions() {
    let Some(server) = postgres::shared().await else { return };
    let from = server.create_database("waits").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let to = format!("sqlite:{}", folder.path().join("new.db").display());
    tokio::task::block_in_place(|| {
        psql(&from, "CREATE TABLE t (id int PRIMARY KEY, v text)");
        let name = format!("waits_{}", std::process::id());
        let mut open = stay_open(&from, 6);
        let ended = verb(&name, &from, &to, &["run", "--until", "verified"]).ended(0);
        open.wait().unwrap();
        let said: Vec<_> =
            ended.err.lines().filter(|line| line.contains("waiting for the transactions")).collect();
        assert_eq!(said.len(), 1, "{}", ended.err);
        for word in ["pg_prepared_xacts", "pg_stat_activity", "nothing is lost"] {
            assert!(said[0].contains(word), "{word:?} is not in: {}", said[0]);
        }
        verb(&name, &from, &to, &["abort", "--yes"]).ended(0);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_was_killed_while_its_slot_was_made_starts_again() {
    let Some(server) = postgres::shared().await else { return };
    let from = server.create_database("killed").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let to = format!("sqlite:{}", folder.path().join("new.db").display());
    tokio::task::block_in_place(|| {
        psql(&from, "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')");
        let name = format!("killed_{}", std::process::id());
        let mut open = stay_open(&from, 14);
        let runner = Runner::start(&from, &to, &["--name", &name]);
        std::thread::sleep(Duration::from_secs(2));
        drop(runner);
        verb(&name, &from, &to, &["run", "--until", "verified"]).ended(0);
        open.wait().unwrap();
        verb(&name, &from, &to, &["abort", "--yes"]).ended(0);
    });
}

#[rstest]
#[case::at_once(0)]
#[case::one_after_the_other(1000)]
#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_begin_while_the_slot_is_made_one_is_refused(#[case] millis: u64) {
    let Some(server) = postgres::shared().await else { return };
    let from = server.create_database(&format!("both{millis}")).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    let (to, other) = (url("new.db"), url("second.db"));
    tokio::task::block_in_place(|| {
        psql(&from, "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')");
        let name = format!("both{millis}_{}", std::process::id());
        let mut open = stay_open(&from, 6);
        let until = ["--name", &name, "--until", "caught-up"];
        let first = Runner::start(&from, &to, &until);
        std::thread::sleep(Duration::from_millis(millis));
        let runners = [first, Runner::start(&from, &other, &until)];
        let mut ended = runners.map(Runner::end);
        open.wait().unwrap();
        ended.sort_by_key(|ended| ended.status);
        let [won, lost] = ended;
        won.ended(0);
        lost.failed(3, "TG0039 name-taken", &[]);
        let results = [&to, &other].map(|to| verb(&name, &from, to, &["run", "--until", "verified"]).status);
        assert!(results.contains(&0) && results.contains(&3), "{results:?}");
        let won = if results[0] == 0 { &to } else { &other };
        verb(&name, &from, won, &["abort", "--yes"]).ended(0);
    });
}
