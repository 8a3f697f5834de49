//! The program as its users meet it: words in, words and exit status out.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test waits by the machine's clock")]

mod bad_input;
mod channel;
mod columns;
mod danger;
mod dlq;
mod elections;
mod gone;
mod infer;
mod keys;
mod leaving;
mod lifecycle;
mod mapping;
mod names;
mod operating;
mod pairs;
mod rebuilt;
mod renamed;
mod replaced;
mod runner;
mod types;
mod values;
mod via;

use std::path::Path;
use std::process::{Command, Output};

/// Runs the program.
fn tidegate(words: &[&str]) -> Outcome {
    Outcome::of(Command::new(env!("CARGO_BIN_EXE_tidegate")).args(words).output().unwrap())
}

/// Runs the program in a terminal of so many columns, and gives what was drawn there: a line for each state of it.
fn on_terminal(columns: u16, words: &[&str]) -> Vec<String> {
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!("stty cols {columns}; {} {}", env!("CARGO_BIN_EXE_tidegate"), quoted.join(" "));
    let drawn = Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
    let drawn = String::from_utf8_lossy(&drawn.stdout).into_owned();
    let frames = drawn.split(['\r', '\n']);
    let plain = frames.map(|frame| {
        let mut parts = frame.split("\u{1b}[");
        let first = parts.next().unwrap_or_default().to_owned();
        // What is behind the letter that ends a control sequence.
        parts.fold(first, |text, part| {
            text + part.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, rest)| rest)
        })
    });
    plain.filter(|frame| !frame.trim().is_empty()).collect()
}

/// What the program answered.
#[derive(Debug)]
struct Outcome {
    status: i32,
    out: String,
    err: String,
}

impl Outcome {
    fn of(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    fn ended(self, status: i32) -> Self {
        assert_eq!(self.status, status, "\nstdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    /// The error's first line, and the words that have to be in the rest.
    #[track_caller]
    fn failed(self, status: i32, error: &str, words: &[&str]) -> Self {
        let this = self.ended(status);
        // Who asked for the end was not failed: then the line begins with the code.
        let is_said = |line: &str| line.strip_prefix("error: ").unwrap_or(line).starts_with(error);
        assert!(this.err.lines().any(is_said), "not {error:?} but: {}", this.err);
        for word in words {
            assert!(this.err.contains(word), "{word:?} is not in: {}", this.err);
        }
        this
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

/// Runs SQL on a SQLite file.
fn sqlite(file: &Path, sql: &str) {
    use sqlx::Connection;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .busy_timeout(std::time::Duration::from_secs(20));
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    });
}

/// The first column of a query of a SQLite file, as text.
fn sqlite_rows(file: &Path, sql: &str) -> Vec<String> {
    use sqlx::{Connection, Row};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        let sql = format!("WITH q(x) AS ({sql}) SELECT CAST(x AS TEXT) FROM q");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap();
        rows.iter().map(|row| row.get::<String, _>(0)).collect()
    })
}

/// A folder with a WAL database `shop.db` made by this SQL, and the URLs of it and of a new one.
fn shop(sql: &str) -> (tempfile::TempDir, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.db");
    sqlite(&file, "PRAGMA journal_mode = WAL");
    sqlite(&file, sql);
    let url = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    let (from, to) = (url("shop.db"), url("new.db"));
    (folder, from, to)
}
