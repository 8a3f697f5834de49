//! A source that keeps more and more for a migration: warned of, stopped in time, unharmed.

use std::time::{Duration, Instant};

use ::mongodb::bson::{Document, doc};
use tidegate_services::postgres::Options;
use tidegate_services::{Service, mongodb, skipped};

use crate::columns::{verb, wait};
use crate::pairs::psql;
use crate::runner::Runner;
use crate::{Outcome, shop, sqlite, sqlite_rows, tidegate};

const T: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'a')";
const NAME: &str = "danger";

/// A configuration that lets the source keep a million bytes.
fn bounded(folder: &tempfile::TempDir) -> String {
    let file = folder.path().join("bounded.toml");
    std::fs::write(&file, "[limits]\nheld_bytes_max = 1000000\n").unwrap();
    file.display().to_string()
}

/// Writes about 30 KB into the journal.
fn write(file: &std::path::Path) {
    sqlite(
        file,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
         INSERT INTO t (v) SELECT 'v' FROM n",
    );
}

/// Writes until the runner has ended, as an application does that knows nothing of it.
#[track_caller]
fn write_until_ended(file: &std::path::Path, mut runner: Runner) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(60);
    while runner.is_running() {
        assert!(Instant::now() < deadline, "nothing stops it");
        write(file);
        std::thread::sleep(Duration::from_millis(500));
    }
    runner.end()
}

/// Warned, then stopped by name with the way out; the source takes writes.
#[track_caller]
fn stopped(ended: Outcome, file: &std::path::Path) {
    let ended = ended.failed(3, "TG0072 source-in-danger", &["held_bytes", "used_percent"]);
    assert!(ended.err.contains("the source keeps much log for this flow"), "not warned: {}", ended.err);
    assert_eq!(sqlite_rows(file, "SELECT * FROM pragma_integrity_check"), ["ok"]);
    write(file);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_target_is_gone_stops_before_its_source_is_in_danger() {
    let Some(server) = crate::operating::server(Options::default()).await else { return };
    let to = server.create_database("danger").await.unwrap();
    let (folder, from, _) = tokio::task::block_in_place(|| shop(T));
    let file = folder.path().join("shop.db");
    let config = bounded(&folder);
    let runner = Runner::start(&from, &to, &["--name", NAME, "-c", &config, "--timeout", "10m"]);
    tokio::task::block_in_place(|| wait(NAME, &from, &to, |status| status["state"] == "live"));
    server.kill().await;
    tokio::task::block_in_place(|| stopped(write_until_ended(&file, runner), &file));
    // With the target back and the bound raised it catches up, and the journal is short again.
    server.restart().await.unwrap();
    tokio::task::block_in_place(|| {
        verb(NAME, &from, &to, &["run", "--until", "verified"]).ended(0);
        verb(NAME, &from, &to, &["abort", "--yes"]).ended(0);
        let left = "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'tidegate%'";
        assert_eq!(sqlite_rows(&file, left), ["0"]);
    });
}

#[test]
fn a_reading_half_that_nobody_answers_stops_before_its_source_is_in_danger() {
    let (folder, from, to) = shop(T);
    let file = folder.path().join("shop.db");
    let config = bounded(&folder);
    let via = format!("sqlite:{}?lease_ms=1000&grace_ms=200", folder.path().join("broker.db").display());
    let half = |role| {
        let words = ["--name", NAME, "-c", &config, "--via", &via, "--role", role, "--timeout", "10m"];
        Runner::start(&from, &to, &words)
    };
    let (source, target) = (half("source"), half("target"));
    wait(NAME, &from, &to, |status| status["state"] == "live");
    drop(target);
    stopped(write_until_ended(&file, source), &file);
}

#[test]
fn a_journal_that_grows_while_nobody_runs_is_told_of() {
    let (folder, from, to) = shop(T);
    let file = folder.path().join("shop.db");
    let config = bounded(&folder);
    verb(NAME, &from, &to, &["run", "--until", "caught-up"]).ended(0);
    for _ in 0..60 {
        write(&file);
    }
    let words = ["-c", &config, "doctor", "--from", &from, "--to", &to, "--name", NAME];
    let doctor = tidegate(&words).ended(0);
    for word in ["kept for danger", "% of what it may", "tidegate migrate abort"] {
        assert!(doctor.out.contains(word), "{word:?} is not in: {}", doctor.out);
    }
    let status = verb(NAME, &from, &to, &["status"]).ended(0);
    assert!(status.out.contains("the source keeps"), "{}", status.out);
    // Where the bound is far away it is told of, and nothing is to be mended.
    let words = ["--json", "doctor", "--from", &from, "--to", &to, "--name", NAME];
    let findings = tidegate(&words).ended(0).json();
    let kept = |of: &serde_json::Value| of["what"] == "kept for danger" && of["weight"] == "good";
    assert!(findings[0]["findings"].as_array().unwrap().iter().any(kept), "{findings}");
    verb(NAME, &from, &to, &["run", "--until", "verified"]).ended(0);
}

/// Found by testing: what the source keeps for it was no longer told, and the way out was to be another run.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_lost_while_nobody_runs_is_told_of() {
    let options = Options::default().with_setting("max_slot_wal_keep_size", "1MB");
    let Some(server) = crate::operating::server(options).await else { return };
    let outgrow = |from: &str| {
        for _ in 0..3 {
            psql(from, "UPDATE t SET v = v || 'x'");
            psql(from, "SELECT pg_switch_wal()");
        }
        psql(from, "CHECKPOINT");
    };
    let drop_slot = |from: &str| psql(from, "SELECT pg_drop_replication_slot('tidegate_danger')");
    let ways: [&dyn Fn(&str); 2] = [&outgrow, &drop_slot];
    for (number, lose) in ways.into_iter().enumerate() {
        let from = server.create_database(&format!("danger{number}")).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let to = format!("sqlite:{}", folder.path().join("new.db").display());
        tokio::task::block_in_place(|| {
            psql(&from, T);
            verb(NAME, &from, &to, &["run", "--until", "caught-up"]).ended(0);
            let status = verb(NAME, &from, &to, &["status"]).ended(0);
            assert!(status.out.contains("next: tidegate migrate run"), "{}", status.out);
            lose(&from);
            let status = verb(NAME, &from, &to, &["status"]).ended(0);
            for word in ["danger: failed", "TG0040 slot-lost", "next: tidegate explain slot-lost"] {
                assert!(status.out.contains(word), "{word:?} is not in: {}", status.out);
            }
            assert!(!status.out.contains("next: tidegate migrate run"), "{}", status.out);
            let status = verb(NAME, &from, &to, &["status", "--json"]).ended(0).json();
            assert!(status["error"].as_str().unwrap().contains("slot-lost"), "{status}");
            verb(NAME, &from, &to, &["run", "--until", "caught-up"]).failed(1, "TG0040 slot-lost", &[]);
            verb(NAME, &from, &to, &["abort", "--yes"]).ended(0);
        });
    }
}

/// MongoDB forgets by the size of its log, whoever reads it: a run that does not keep up is warned of. Found by reading: it was
/// stopped, and could only lose its place by that.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_nearly_used_up_stops_no_run() {
    if skipped(Service::Mongodb) {
        return;
    }
    let server = mongodb::Server::start(mongodb::Options::default().with_oplog_size_mb(5)).await.unwrap();
    let from = server.database_url("danger");
    let client = ::mongodb::Client::with_uri_str(&from).await.unwrap();
    let items = client.default_database().unwrap().collection::<Document>("t");
    items.insert_one(doc! { "_id": 1, "v": "a" }).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let to = format!("sqlite:{}", folder.path().join("new.db").display());
    let via = format!("sqlite:{}?lease_ms=1000&grace_ms=200", folder.path().join("broker.db").display());
    let half = |role| {
        Runner::start(&from, &to, &["--name", NAME, "--via", &via, "--role", role, "--timeout", "10m"])
    };
    let (mut source, target) = (half("source"), half("target"));
    tokio::task::block_in_place(|| wait(NAME, &from, &to, |status| status["state"] == "live"));
    drop(target);
    let filler = "x".repeat(200_000);
    let deadline = Instant::now() + Duration::from_secs(90);
    let used = || {
        let status = tokio::task::block_in_place(|| verb(NAME, &from, &to, &["status", "--json"]).ended(0));
        status.json()["held"]["used"].as_f64().unwrap()
    };
    let mut n = 0;
    while used() < 0.95 {
        assert!(Instant::now() < deadline && source.is_running(), "it was stopped, or nothing is said");
        n += 1;
        let larger = doc! { "_id": 1, "v": format!("{n}{filler}") };
        items.replace_one(doc! { "_id": 1 }, larger).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // More than one look later.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(source.is_running(), "it was stopped");
    source.signal("-TERM");
    let ended = tokio::task::block_in_place(|| source.end());
    assert!(ended.err.contains("the source will soon forget"), "not warned: {}", ended.err);
}
