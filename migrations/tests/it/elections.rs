//! Another member becomes the primary of a replica set while rows come from it, or go to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mongodb::bson::{Document, doc};
use mongodb::options::{Acknowledgment, ReadConcern, SelectionCriteria, WriteConcern};
use mongodb::{Client, Collection};
use tidegate_services::mongodb::{Options, ReplicaSet};
use tidegate_services::{Service, skipped};

use crate::columns::{verb, wait};
use crate::pairs::{abort, psql};
use crate::runner::Runner;
use crate::sqlite_rows;

/// Rows, and how many of them are crawled in a second: chunks are so small and few that elections, however long they take,
/// fall into the crawl.
const ROWS: i32 = 12_000;
const RATE: &str = "max_rate=200";

/// Three members; nothing where MongoDB is skipped by name.
async fn three() -> Option<ReplicaSet> {
    if skipped(Service::Mongodb) {
        return None;
    }
    Some(ReplicaSet::start(3, Options::default()).await.unwrap())
}

/// Two elections: the primary steps down, and the next one is killed; it comes back as a member like others.
async fn elect(set: &ReplicaSet) {
    let first = set.primary().await.unwrap();
    let second = set.step_down().await.unwrap();
    assert_ne!(first, second);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let killed = set.kill_primary().await.unwrap();
    assert_ne!(set.primary().await.unwrap(), killed);
    tokio::time::sleep(Duration::from_millis(500)).await;
    set.restart(killed).await.unwrap();
}

/// One run, through two elections of the crawl and four of the capture, while `write` writes; it never ends by itself.
/// `mark` writes the last change; `arrived` says whether it is in the target.
async fn run_through_elections(
    name: &str,
    (from, to): (&str, &str),
    set: &ReplicaSet,
    write: impl Fn(&AtomicBool) + Sync,
    mark: impl AsyncFn(),
    arrived: impl AsyncFn() -> bool,
) {
    let stop = AtomicBool::new(false);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("small.toml");
    std::fs::write(&file, "[copy]\nchunk_rows = 10\n").unwrap();
    let runner = Runner::start(from, to, &["--name", name, "-c", file.to_str().unwrap()]);
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| write(&stop));
            // Whatever panics here has to end the writer, else nobody would learn of it.
            let _ending = Ending(&stop);
            wait(name, from, to, |status| status["running"] == true);
            verb(name, from, to, &["set", RATE]).ended(0);
            wait(name, from, to, |status| status["tables"][0]["rows_crawled"].as_u64() > Some(0));
            handle.block_on(elect(set));
            // The elections were over before the crawl was.
            wait(name, from, to, |status| status["tables"][0]["state"] == "crawling");
            verb(name, from, to, &["set", "max_rate=0"]).ended(0);
            wait(name, from, to, |status| status["tables"][0]["state"] == "live");
            for _ in 0..2 {
                handle.block_on(elect(set));
            }
        });
    });
    mark().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !arrived().await {
        assert!(tokio::time::Instant::now() < deadline, "the last change does not arrive");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::task::block_in_place(|| {
        runner.signal("-TERM");
        runner.end().failed(7, "TG0071 stopped", &[]);
    });
}

/// Tells a writer to stop, also when the test fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A collection, read and written as a majority has it.
async fn majority(url: &str, name: &str) -> Collection<Document> {
    let client = Client::with_uri_str(url).await.unwrap();
    let options = mongodb::options::CollectionOptions::builder()
        .read_concern(ReadConcern::majority())
        .write_concern(WriteConcern::builder().w(Acknowledgment::Majority).build())
        .selection_criteria(SelectionCriteria::ReadPreference(mongodb::options::ReadPreference::Primary))
        .build();
    client.default_database().unwrap().collection_with_options(name, options)
}

/// Every document, as JSON with its fields in order of their names, in order of the keys.
async fn documents(collection: &Collection<Document>) -> Vec<String> {
    let mut cursor = collection.find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap();
    let mut rows = Vec::new();
    while cursor.advance().await.unwrap() {
        let row = cursor.deserialize_current().unwrap();
        rows.push(serde_json::to_string(&row).unwrap());
    }
    rows
}

#[track_caller]
fn assert_same(source: &[String], target: &[String]) {
    let normal = |row: &String| serde_json::from_str::<serde_json::Value>(row).unwrap().to_string();
    let source: Vec<_> = source.iter().map(normal).collect();
    let target: Vec<_> = target.iter().map(normal).collect();
    let differs = source.iter().zip(&target).find(|(source, target)| source != target);
    assert_eq!(differs, None, "row by row");
    assert_eq!(source.len(), target.len());
    assert!(source.len() > 10_000, "only {} rows", source.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_elects_other_primaries_gets_every_row_once() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let Some(set) = three().await else { return };
    let (from, to) = (server.create_database("elections").await.unwrap(), set.database_url("shop"));
    psql(
        &from,
        &format!(
            "CREATE TABLE t (id int PRIMARY KEY, v text, n int);
             INSERT INTO t SELECT i, 'v' || i, i FROM generate_series(1, {ROWS}) i"
        ),
    );
    let write = |stop: &AtomicBool| {
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            n += 1;
            psql(
                &from,
                &format!(
                    "BEGIN; UPDATE t SET n = n + 1, v = 'w{n}' WHERE id % 997 = {};
                     DELETE FROM t WHERE id = {}; INSERT INTO t VALUES ({}, 'i{n}', {n}); COMMIT;
                     UPDATE t SET id = id + 100000 WHERE id = {}",
                    n % 997,
                    n * 7 % ROWS,
                    ROWS + n,
                    n * 11 % ROWS
                ),
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let target = majority(&to, "t").await;
    let last = doc! { "_id": -1 };
    run_through_elections(
        "elections_target",
        (&from, &to),
        &set,
        write,
        async || tokio::task::block_in_place(|| psql(&from, "INSERT INTO t VALUES (-1, 'last', 0)")),
        async || target.find_one(last.clone()).await.unwrap().is_some(),
    )
    .await;
    let rows = "SELECT json_build_object('_id', id, 'v', v, 'n', n) FROM t ORDER BY id";
    let source = tokio::task::block_in_place(|| rows_of(&from, rows));
    assert_same(&source, &documents(&target).await);
    tokio::task::block_in_place(|| abort("elections_target", &from, &to));
}

fn rows_of(url: &str, sql: &str) -> Vec<String> {
    let words = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--dbname", url, "--command", sql];
    let output = std::process::Command::new("psql").args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Writes of a majority, some in transactions, and writes that the primary alone has: those may be taken back.
fn write_documents(url: &str, stop: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let safe = majority(url, "t").await;
        let client = safe.client();
        let hasty = mongodb::options::CollectionOptions::builder()
            .write_concern(WriteConcern::builder().w(Acknowledgment::Nodes(1)).build())
            .build();
        let hasty = client.default_database().unwrap().collection_with_options::<Document>("t", hasty);
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            n += 1;
            // Whether a write that failed has happened is for the source to know.
            let _ = safe
                .update_one(doc! { "_id": n * 7 % ROWS }, doc! { "$set": { "v": format!("w{n}") } })
                .await;
            let _ = safe.delete_one(doc! { "_id": n * 11 % ROWS }).await;
            let _ = safe.insert_one(doc! { "_id": ROWS + n, "v": format!("i{n}"), "n": n }).await;
            for k in 0..5 {
                let _ =
                    hasty.update_one(doc! { "_id": (n * 13 + k) % ROWS }, doc! { "$inc": { "n": 1 } }).await;
            }
            let mut session = client.start_session().await.unwrap();
            let moved = async {
                session.start_transaction().await?;
                for (id, by) in [(n * 17 % ROWS, 1), (n * 19 % ROWS, -1)] {
                    safe.update_one(doc! { "_id": id }, doc! { "$inc": { "n": by } })
                        .session(&mut session)
                        .await?;
                }
                session.commit_transaction().await
            };
            let _ = moved.await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_elects_other_primaries_is_followed_through() {
    let Some(set) = three().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.db");
    let (from, to) = (set.database_url("shop"), format!("sqlite:{}", file.display()));
    let source = majority(&from, "t").await;
    let row = |n: i32| doc! { "_id": n, "v": format!("v{n}"), "n": n };
    source.insert_many((0..ROWS).map(row)).await.unwrap();
    run_through_elections(
        "elections_source",
        (&from, &to),
        &set,
        |stop| write_documents(&from, stop),
        async || {
            source.insert_one(doc! { "_id": -1, "v": "last", "n": 0 }).await.unwrap();
        },
        async || {
            tokio::task::block_in_place(|| !sqlite_rows(&file, "SELECT 1 FROM t WHERE _id = '-1'").is_empty())
        },
    )
    .await;
    let rows = r#"SELECT json_object('_id', CAST(_id AS INTEGER), 'v', document ->> '$.v', 'n',
        CAST(document ->> '$.n."$numberInt"' AS INTEGER)) FROM t ORDER BY CAST(_id AS INTEGER)"#;
    let moved = tokio::task::block_in_place(|| sqlite_rows(&file, rows));
    assert_same(&documents(&source).await, &moved);
}
