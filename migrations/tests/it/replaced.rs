//! A source that was restored, or that another one stands in for, is not followed: by name, before anything is applied.

use std::path::Path;
use std::process::Command;

use mongodb::Client;
use mongodb::bson::{Document, doc};
use rstest::rstest;
use tidegate_services::{Service, mongodb as documents, postgres, skipped};

use crate::columns::verb;
use crate::pairs::psql;
use crate::{Outcome, shop, sqlite, sqlite_rows};

fn run(from: &str, to: &str) -> Outcome {
    verb("replaced", from, to, &["run", "--until", "caught-up"])
}

const ANOTHER: &str = "the source is not the database that this migration began with";
const UNSEALED: &str =
    "the source does not have the seal that the target knows: it is an older copy, or another database";

/// Every row of the target, whatever its columns.
fn rows(file: &Path) -> Vec<String> {
    let sql = "SELECT group_concat(name, ' || ') FROM pragma_table_info('t')";
    let columns = sqlite_rows(file, sql).concat();
    sqlite_rows(file, &format!("SELECT {columns} FROM t ORDER BY 1"))
}

/// Refused by name and with the way out, and the target has what it had.
#[track_caller]
fn refused(from: &str, to: &str, file: &Path, why: &str) {
    let had = rows(file);
    run(from, to).failed(1, &format!("TG0042 source-replaced: {why}"), &["tidegate explain source-replaced"]);
    assert_eq!(rows(file), had);
}

/// Copies a folder, as a file system's snapshot does.
fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let copied = Command::new("cp").args(["-a", "--"]).arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_server_that_was_set_back_to_an_older_copy() {
    let Some(server) = crate::operating::server(postgres::Options::default()).await else { return };
    let from = server.create_database("shop").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.db");
    let to = format!("sqlite:{}", file.display());
    let old = folder.path().join("old");
    psql(&from, "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')");
    tokio::task::block_in_place(|| run(&from, &to).ended(0));
    server.stop().await;
    copy(&server.data_folder(), &old);
    server.restart().await.unwrap();
    psql(&from, "INSERT INTO t SELECT i, 'lost' FROM generate_series(2, 5000) i");
    tokio::task::block_in_place(|| run(&from, &to).ended(0));
    server.stop().await;
    copy(&old, &server.data_folder());
    server.restart().await.unwrap();
    tokio::task::block_in_place(|| refused(&from, &to, &file, UNSEALED));
    // It gets further than the flow has read.
    psql(&from, "INSERT INTO t SELECT i, 'other' FROM generate_series(2, 20000) i");
    tokio::task::block_in_place(|| refused(&from, &to, &file, UNSEALED));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_database_of_the_same_name_from_a_dump() {
    let Some(server) = crate::operating::server(postgres::Options::default()).await else { return };
    let from = server.create_database("shop").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.db");
    let to = format!("sqlite:{}", file.display());
    psql(&from, "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')");
    tokio::task::block_in_place(|| run(&from, &to).ended(0));
    let dump =
        Command::new(postgres::program("pg_dump").unwrap()).args(["--inserts", &from]).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let _ = server.sql("SELECT pg_drop_replication_slot('tidegate_replaced')").await.unwrap();
    let _ = server.sql("DROP DATABASE shop").await.unwrap();
    let again = server.create_database("shop").await.unwrap();
    assert_eq!(again, from);
    let sql = String::from_utf8(dump.stdout).unwrap();
    // What is for psql alone is left out, and what a session of its own keeps.
    let is_sql = |line: &&str| !line.starts_with('\\') && !line.contains("set_config");
    let sql: Vec<_> = sql.lines().filter(is_sql).collect();
    psql(&from, &sql.join("\n"));
    tokio::task::block_in_place(|| refused(&from, &to, &file, ANOTHER));
}

/// An older copy takes the file's name, or its place, and gets further than the flow has read.
#[rstest]
#[case::by_its_name(false)]
#[case::in_its_place(true)]
fn an_older_copy_of_a_file(#[case] is_overwritten: bool) {
    let (folder, from, to) =
        shop("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'a')");
    let (shop, old) = (folder.path().join("shop.db"), folder.path().join("old.db"));
    run(&from, &to).ended(0);
    sqlite(&shop, "PRAGMA wal_checkpoint(TRUNCATE)");
    std::fs::copy(&shop, &old).unwrap();
    sqlite(&shop, "INSERT INTO t VALUES (2, 'lost')");
    run(&from, &to).ended(0);
    if is_overwritten {
        sqlite(&shop, "PRAGMA wal_checkpoint(TRUNCATE)");
        std::fs::copy(&old, &shop).unwrap();
    } else {
        for rest in ["shop.db-wal", "shop.db-shm"] {
            let _ = std::fs::remove_file(folder.path().join(rest));
        }
        std::fs::rename(&old, &shop).unwrap();
    }
    refused(&from, &to, &folder.path().join("new.db"), UNSEALED);
    sqlite(&shop, "INSERT INTO t VALUES (10, 'other'), (11, 'other'), (12, 'other')");
    refused(&from, &to, &folder.path().join("new.db"), UNSEALED);
}

/// Writes documents with these keys.
pub(crate) async fn insert(url: &str, keys: std::ops::Range<i32>) {
    let client = Client::with_uri_str(url).await.unwrap();
    let t = client.default_database().unwrap().collection::<Document>("t");
    t.insert_many(keys.map(|n| doc! { "_id": n, "v": format!("v{n}") })).await.unwrap();
    client.shutdown().await;
}

/// Its time goes on by the clock, so that it is never behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_that_was_set_back_to_an_older_copy() {
    if skipped(Service::Mongodb) {
        return;
    }
    let server = documents::Server::start(documents::Options::default()).await.unwrap();
    let from = server.database_url("shop");
    let folder = tempfile::tempdir().unwrap();
    let (file, old) = (folder.path().join("new.db"), folder.path().join("old"));
    let to = format!("sqlite:{}", file.display());
    insert(&from, 1..3).await;
    tokio::task::block_in_place(|| run(&from, &to).ended(0));
    server.stop().await;
    copy(&server.data_folder(), &old);
    server.restart().await.unwrap();
    insert(&from, 3..5).await;
    tokio::task::block_in_place(|| run(&from, &to).ended(0));
    server.stop().await;
    copy(&old, &server.data_folder());
    server.restart().await.unwrap();
    insert(&from, 10..12).await;
    tokio::task::block_in_place(|| refused(&from, &to, &file, UNSEALED));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_set_at_the_same_address() {
    if skipped(Service::Mongodb) {
        return;
    }
    let server = documents::Server::start(documents::Options::default()).await.unwrap();
    let from = server.database_url("shop");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.db");
    let to = format!("sqlite:{}", file.display());
    insert(&from, 1..3).await;
    tokio::task::block_in_place(|| run(&from, &to).ended(0));
    server.replace().await.unwrap();
    insert(&from, 1..4).await;
    tokio::task::block_in_place(|| refused(&from, &to, &file, UNSEALED));
}

/// Found by reading: the table was said to be gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_made_capped() {
    let Some(server) = documents::shared().await else { return };
    let from = server.database("capped");
    let folder = tempfile::tempdir().unwrap();
    let to = format!("sqlite:{}", folder.path().join("new.db").display());
    insert(&from, 1..5).await;
    tokio::task::block_in_place(|| run(&from, &to).ended(0));
    let client = Client::with_uri_str(&from).await.unwrap();
    let capped = mongodb::bson::doc! { "convertToCapped": "t", "size": 4096 };
    client.default_database().unwrap().run_command(capped).await.unwrap();
    tokio::task::block_in_place(|| {
        let error = "TG0051 schema-changed: table t stopped: the table cannot be read as it is now: ";
        let why = "t is a capped collection and cannot be read at one instant";
        run(&from, &to).failed(1, error, &[why]);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_was_dropped_and_restored() {
    let Some(server) = documents::shared().await else { return };
    let from = server.database("replaced");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.db");
    let to = format!("sqlite:{}", file.display());
    insert(&from, 1..5).await;
    tokio::task::block_in_place(|| run(&from, &to).ended(0));
    let client = Client::with_uri_str(&from).await.unwrap();
    client.default_database().unwrap().collection::<Document>("t").drop().await.unwrap();
    insert(&from, 1..3).await;
    tokio::task::block_in_place(|| {
        let had = rows(&file);
        let hint = "hint: tidegate migrate recopy --table t";
        let error = "TG0051 schema-changed: table t stopped: another table has taken the name";
        run(&from, &to).failed(1, error, &[hint]);
        assert_eq!(rows(&file), had);
        verb("replaced", &from, &to, &["recopy", "--table", "t"]).ended(0);
        verb("replaced", &from, &to, &["run", "--until", "verified"]).ended(0);
        assert_eq!(rows(&file).len(), 2);
    });
}
