//! A table that gets a column while it is moved.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::pairs::{abort, psql};
use crate::{shop, sqlite, sqlite_rows, tidegate};

const ROWS: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
    INSERT INTO t SELECT i, 'v' || i FROM n";

const ALTER: &str = "ALTER TABLE t ADD COLUMN late TEXT";

/// A runner in the background.
struct Runner(Child);

impl Runner {
    fn start(name: &str, from: &str, to: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(["migrate", "run", "--from", from, "--to", to, "--name", name]);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn verb(name: &str, from: &str, to: &str, words: &[&str]) -> crate::Outcome {
    tidegate(&[&["migrate"], words, &["--from", from, "--to", to, "--name", name]].concat())
}

/// Waits until the status is so.
#[track_caller]
pub(crate) fn wait(name: &str, from: &str, to: &str, enough: impl Fn(&serde_json::Value) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let answer = tidegate(&["--json", "migrate", "status", "--from", from, "--to", to, "--name", name]);
        if answer.status == 0 && enough(&answer.json()) {
            return;
        }
        assert!(Instant::now() < deadline, "the status does not become so: {answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A column is added while the crawl, then the capture, is at work and a writer fills it; the run is killed between the
/// change and the next run. Every value arrives.
fn follow(
    name: &str,
    from: &str,
    to: &str,
    write: impl Fn(&str) + Sync,
    moved: impl Fn(&str) -> Vec<String>,
) {
    let (writes, ending) = (AtomicU64::new(0), AtomicU64::new(0));
    let runner = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut n = 0_u64;
            while ending.load(Ordering::Relaxed) == 0 {
                n += 1;
                write(&format!("UPDATE t SET v = 'w{n}' WHERE id % 97 = {}", n % 97));
                if n == 5 {
                    write(ALTER);
                }
                if n > 5 {
                    write(&format!("UPDATE t SET late = 'l{n}' WHERE id % 89 = {}", n % 89));
                    write(&format!("INSERT INTO t (id, late) VALUES ({}, 'i{n}')", 10_000 + n));
                }
                writes.store(n, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let runner = Runner::start(name, from, to);
        let deadline = Instant::now() + Duration::from_secs(60);
        while writes.load(Ordering::Relaxed) < 40 {
            assert!(Instant::now() < deadline && !writer.is_finished(), "the writer is stuck");
            std::thread::sleep(Duration::from_millis(20));
        }
        wait(name, from, to, |status| status["state"] == "live");
        ending.store(1, Ordering::Relaxed);
        runner
    });
    // Killed, and a second column comes while nobody runs.
    drop(runner);
    write("ALTER TABLE t ADD COLUMN later TEXT");
    write("UPDATE t SET later = 'x' || id WHERE id % 3 = 0");
    verb(name, from, to, &["run", "--until", "verified"]).ended(0);
    assert_eq!(moved("late"), moved("source late"), "row by row");
    assert_eq!(moved("later"), moved("source later"), "row by row");
    assert!(moved("late").len() > 30 && moved("later").len() > 900);
}

fn in_file(url: &str) -> &Path {
    Path::new(url.strip_prefix("sqlite:").unwrap())
}

fn rows_of_file(url: &str, column: &str) -> Vec<String> {
    sqlite_rows(
        in_file(url),
        &format!("SELECT id || ' ' || {column} FROM t WHERE {column} IS NOT NULL ORDER BY id"),
    )
}

fn rows_of_server(url: &str, column: &str) -> Vec<String> {
    let sql = format!("SELECT id || ' ' || {column} FROM t WHERE {column} IS NOT NULL ORDER BY id");
    let words = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--dbname", url, "--command", &sql];
    let output = Command::new("psql").args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Rows of one side or the other: `source late` is the column at the source.
fn rows(
    from: impl Fn(&str) -> Vec<String>,
    to: impl Fn(&str) -> Vec<String>,
) -> impl Fn(&str) -> Vec<String> {
    move |column| match column.strip_prefix("source ") {
        Some(column) => from(column),
        None => to(column),
    }
}

#[test]
fn from_sqlite_to_sqlite() {
    let (_folder, from, to) = shop(ROWS);
    follow(
        "columns",
        &from,
        &to,
        |sql| sqlite(in_file(&from), sql),
        rows(|column| rows_of_file(&from, column), |column| rows_of_file(&to, column)),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn from_sqlite_to_postgres() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let to = server.create_database("columns").await.unwrap();
    tokio::task::block_in_place(|| {
        let (_folder, from, _) = shop(ROWS);
        follow(
            "columns",
            &from,
            &to,
            |sql| sqlite(in_file(&from), sql),
            rows(|column| rows_of_file(&from, column), |column| rows_of_server(&to, column)),
        );
    });
}

const SERVER_ROWS: &str = "CREATE TABLE t (id integer PRIMARY KEY, v text);
    INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 3000) i";

#[tokio::test(flavor = "multi_thread")]
async fn from_postgres_to_postgres() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let (from, to) =
        (server.create_database("columns").await.unwrap(), server.create_database("columns").await.unwrap());
    psql(&from, SERVER_ROWS);
    tokio::task::block_in_place(|| {
        follow(
            "columns_pp",
            &from,
            &to,
            |sql| psql(&from, sql),
            rows(|column| rows_of_server(&from, column), |column| rows_of_server(&to, column)),
        );
        abort("columns_pp", &from, &to);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn from_postgres_to_sqlite() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let from = server.create_database("columns").await.unwrap();
    psql(&from, SERVER_ROWS);
    tokio::task::block_in_place(|| {
        let folder = tempfile::tempdir().unwrap();
        let to = format!("sqlite:{}", folder.path().join("new.db").display());
        follow(
            "columns_ps",
            &from,
            &to,
            |sql| psql(&from, sql),
            rows(|column| rows_of_server(&from, column), |column| rows_of_file(&to, column)),
        );
        abort("columns_ps", &from, &to);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn from_postgres_to_mongodb() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let Some(documents) = tidegate_services::mongodb::shared().await else { return };
    let (from, to) = (server.create_database("columns").await.unwrap(), documents.database("columns"));
    psql(&from, SERVER_ROWS);
    let client = mongodb::Client::with_uri_str(&to).await.unwrap();
    let held = client.default_database().unwrap().collection::<mongodb::bson::Document>("t");
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let in_documents = |column: &str| {
            let wanted = mongodb::bson::doc! { column: { "$ne": mongodb::bson::Bson::Null } };
            let all: Vec<_> = handle.block_on(async {
                let mut all = Vec::new();
                let mut cursor = held.find(wanted).sort(mongodb::bson::doc! { "_id": 1 }).await.unwrap();
                while cursor.advance().await.unwrap() {
                    all.push(cursor.deserialize_current().unwrap());
                }
                all
            });
            let line = |one: &mongodb::bson::Document| {
                format!("{} {}", one.get_i32("_id").unwrap(), one.get_str(column).unwrap())
            };
            all.iter().map(line).collect()
        };
        follow(
            "columns_pm",
            &from,
            &to,
            |sql| psql(&from, sql),
            rows(|column| rows_of_server(&from, column), in_documents),
        );
        abort("columns_pm", &from, &to);
    });
}

/// A default is in rows that no change tells of: the table stops by name, alone, and is copied again.
fn stop_and_recopy(
    name: &str,
    from: &str,
    to: &str,
    write: impl Fn(&str),
    moved: impl Fn(&str) -> Vec<String>,
) {
    write("CREATE TABLE other (id INTEGER PRIMARY KEY)");
    let run = |until: &str| verb(name, from, to, &["run", "--until", until]);
    run("caught-up").ended(0);
    write("ALTER TABLE t ADD COLUMN late TEXT NOT NULL DEFAULT 'none'");
    write("UPDATE t SET late = 'l' || id WHERE id < 10; INSERT INTO other VALUES (1)");
    let table = if from.starts_with("postgres") { "public.t" } else { "t" };
    let recopy = format!("hint: tidegate migrate recopy --table {table}");
    let words = [
        "TG0051 schema-changed: ",
        "stopped: column late was added with a default",
        "What was moved is safe",
        &format!("tidegate migrate recopy --table {table}"),
        recopy.as_str(),
    ];
    let error = format!("TG0017 store-failed: table {table} stopped");
    let stopped = run("caught-up");
    for word in words {
        assert!(stopped.err.contains(word), "{word:?} is not in: {}", stopped.err);
    }
    assert_ne!(stopped.status, 0, "{error}");
    // It stays so, and the runner that is asked for a copy while it runs makes it.
    let runner = Runner::start(name, from, to);
    wait(name, from, to, |status| {
        let states: Vec<_> =
            status["tables"].as_array().unwrap().iter().map(|t| t["state"].as_str().unwrap()).collect();
        status["running"] == true && states.contains(&"failed") && states.contains(&"live")
    });
    verb(name, from, to, &["recopy", "--table", "t"]).ended(0);
    wait(name, from, to, |status| status["state"] == "live");
    write("UPDATE t SET late = 'again' WHERE id = 20");
    drop(runner);
    run("verified").ended(0);
    assert_eq!(moved("late"), moved("source late"));
    assert!(moved("late").contains(&"30 none".to_owned()), "{:?}", moved("late").first());
}

#[test]
fn a_default_stops_a_table_of_a_file_by_name_and_recopy_repairs_it() {
    let (_folder, from, to) = shop(ROWS);
    stop_and_recopy(
        "columns",
        &from,
        &to,
        |sql| sqlite(in_file(&from), sql),
        rows(|column| rows_of_file(&from, column), |column| rows_of_file(&to, column)),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_stops_a_table_of_a_server_by_name_and_recopy_repairs_it() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let (from, to) =
        (server.create_database("columns").await.unwrap(), server.create_database("columns").await.unwrap());
    psql(&from, SERVER_ROWS);
    tokio::task::block_in_place(|| {
        stop_and_recopy(
            "columns_default",
            &from,
            &to,
            |sql| psql(&from, sql),
            rows(|column| rows_of_server(&from, column), |column| rows_of_server(&to, column)),
        );
        abort("columns_default", &from, &to);
    });
}

/// A target that cannot follow says what to do with it, and the copy is made when that was done.
#[test]
fn a_column_that_is_gone_stops_the_table_until_the_target_follows() {
    let (_folder, from, to) = shop(ROWS);
    let run = || verb("columns", &from, &to, &["run", "--until", "caught-up"]);
    run().ended(0);
    sqlite(in_file(&from), "ALTER TABLE t RENAME COLUMN v TO w");
    let stopped = run();
    assert!(stopped.err.contains("TG0051 schema-changed: column v is gone, or renamed"), "{}", stopped.err);
    verb("columns", &from, &to, &["recopy", "--table", "t"]).ended(0);
    let stopped = run();
    for word in ["the target's table t cannot follow", "has the column v more", "by hand"] {
        assert!(stopped.err.contains(word), "{word:?} is not in: {}", stopped.err);
    }
    sqlite(in_file(&to), "ALTER TABLE t RENAME COLUMN v TO w");
    verb("columns", &from, &to, &["recopy", "--table", "t"]).ended(0);
    run().ended(0);
    verb("columns", &from, &to, &["verify"]).ended(0);
    assert_eq!(rows_of_file(&to, "w"), rows_of_file(&from, "w"));
}

/// A column that the target cannot hold stops the table alone, and says how it can be held.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_the_target_refuses_stops_the_table_by_name() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let Some(documents) = tidegate_services::mongodb::shared().await else { return };
    let (from, to) = (server.create_database("columns").await.unwrap(), documents.database("columns"));
    psql(&from, SERVER_ROWS);
    tokio::task::block_in_place(|| {
        let run = |words: &[&str]| verb("columns_refused", &from, &to, &[&["run"], words].concat());
        run(&["--until", "caught-up"]).ended(0);
        psql(&from, "ALTER TABLE t ADD COLUMN at timestamptz; UPDATE t SET at = now()");
        let stopped = run(&["--until", "caught-up"]);
        for word in
            ["TG0051 schema-changed: column at cannot be held by the target", "--convert timestamptz=string"]
        {
            assert!(stopped.err.contains(word), "{word:?} is not in: {}", stopped.err);
        }
        verb("columns_refused", &from, &to, &["recopy", "--table", "t"]).ended(0);
        run(&["--until", "verified", "--convert", "timestamptz=string"]).ended(0);
        abort("columns_refused", &from, &to);
    });
}

/// A mapped table gets columns too: carried as they are, behind or before those that are computed.
#[test]
fn a_mapped_table_follows() {
    let (folder, from, to) = shop(ROWS);
    let file = folder.path().join("map.toml");
    let text = "[[map]]\ntable = \"t\"\nrename = { v = \"w\" }\nfilter = \"row.id != 7\"\n[map.compute]\n\
                twice = { type = \"int64\", value = \"row.id * 2\" }\n";
    std::fs::write(&file, text).unwrap();
    let run = |until: &str| {
        let words = ["run", "--until", until, "--transform", file.to_str().unwrap()];
        verb("columns", &from, &to, &words)
    };
    run("caught-up").ended(0);
    sqlite(in_file(&from), "UPDATE t SET v = 'before' WHERE id = 8");
    sqlite(in_file(&from), ALTER);
    sqlite(in_file(&from), "UPDATE t SET late = 'x' || id WHERE id < 20");
    run("verified").ended(0);
    assert_eq!(rows_of_file(&to, "late").len(), 18, "all but the one that is left out");
    sqlite(
        in_file(&from),
        "ALTER TABLE t ADD COLUMN d INT NOT NULL DEFAULT 3; UPDATE t SET d = 4 WHERE id = 9",
    );
    let stopped = run("caught-up");
    assert!(
        stopped.err.contains("TG0051 schema-changed: column d was added with a default"),
        "{}",
        stopped.err
    );
    verb("columns", &from, &to, &["recopy", "--table", "t"]).ended(0);
    run("verified").ended(0);
    assert_eq!(rows_of_file(&to, "d")[7..9], ["9 4", "10 3"]);
}

/// Found by reading and by trying: `ALTER … TYPE` writes rows anew and the log tells none of them, and two names that were
/// exchanged say nothing of the rows at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_another_one_by_now_stops_its_table_alone() {
    const CHANGES: [(&str, &str, &str); 9] = [
        ("json", "TYPE jsonb", "has another type"),
        ("character(10)", "TYPE text", "has another type"),
        ("numeric(10,3)", "TYPE numeric(10,1)", "has another type"),
        ("numeric", "TYPE numeric(10,1)", "has another type"),
        ("timestamp", "TYPE timestamp(0)", "has another type"),
        ("varchar(20)", "TYPE varchar(10)", "has another type"),
        ("varchar(20)", "TYPE text", ""),
        ("numeric(10,1)", "TYPE numeric(12,1)", ""),
        ("text", "", "columns have exchanged names"),
    ];
    const VALUES: [&str; 9] = ["{}", "a", "1.234", "1.234", "2026-01-01 10:00:00.6", "b", "c", "1.5", "d"];
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let (from, to) =
        (server.create_database("other").await.unwrap(), server.create_database("other").await.unwrap());
    tokio::task::block_in_place(|| {
        for (at, (kind, ..)) in CHANGES.iter().enumerate() {
            let value = VALUES[at];
            let made = format!("CREATE TABLE t{at} (id int PRIMARY KEY, v {kind}, w {kind})");
            psql(&from, &format!("{made}; INSERT INTO t{at} VALUES (1, '{value}', NULL)"));
        }
        verb("other", &from, &to, &["run", "--until", "caught-up"]).ended(0);
        for (at, (_, change, _)) in CHANGES.iter().enumerate() {
            let change = match *change {
                "" => format!(
                    "BEGIN; ALTER TABLE t{at} RENAME v TO x; ALTER TABLE t{at} RENAME w TO v;
                     ALTER TABLE t{at} RENAME x TO w; COMMIT"
                ),
                change => format!("ALTER TABLE t{at} ALTER v {change}"),
            };
            psql(&from, &format!("{change}; INSERT INTO t{at} SELECT 2, v, w FROM t{at}"));
        }
        let run = verb("other", &from, &to, &["run", "--until", "caught-up"]);
        assert_eq!(run.status, 1, "{run:?}");
        let words = ["--json", "migrate", "status", "--from", &from, "--to", &to, "--name", "other"];
        let status = tidegate(&words).ended(0).json();
        for (at, (kind, change, what)) in CHANGES.iter().enumerate() {
            let table = &status["tables"][at];
            let error = table["error"].as_str().unwrap_or_default();
            assert_eq!(table["state"] == "failed", !what.is_empty(), "{kind} {change}: {table}");
            assert!(error.contains(what), "{kind} {change}: {error}");
        }
        abort("other", &from, &to);
    });
}
