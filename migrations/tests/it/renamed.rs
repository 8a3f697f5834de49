//! Tables that are no longer what their name says, and names that are one to the target.

use std::time::Duration;

use mongodb::Client;
use mongodb::bson::{Document, doc};
use rstest::rstest;
use tidegate_services::postgres;

use crate::columns::{verb, wait};
use crate::pairs::psql;
use crate::runner::Runner;
use crate::{shop, sqlite, sqlite_rows, tidegate};

const NAME: &str = "renamed";
const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a');
    CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u VALUES (1, 'a')";

/// A flow's name that no other test on the server has: that of the database.
fn flow_of(url: &str) -> String {
    url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned()
}

/// A table that goes away under a run stops by name, the other one goes on, and a copy made anew is the way back where
/// there is a table of that name.
#[rstest]
#[case::swapped(
    "CREATE TABLE t2 (id int PRIMARY KEY, v text); INSERT INTO t2 VALUES (7, 'new');
     ALTER TABLE t RENAME TO t_old; ALTER TABLE t2 RENAME TO t",
    "another table has taken the name",
    true
)]
#[case::there_and_back(
    "ALTER TABLE t RENAME TO t_old; UPDATE t_old SET v = 'unseen'; ALTER TABLE t_old RENAME TO t",
    "",
    true
)]
#[case::renamed("ALTER TABLE t RENAME TO t_old", "the table is gone", false)]
#[case::moved("CREATE SCHEMA arch; ALTER TABLE t SET SCHEMA arch", "the table is gone", false)]
#[case::dropped("DROP TABLE t", "the table is gone", false)]
#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_postgres(#[case] what: &str, #[case] error: &str, #[case] comes_back: bool) {
    let Some(server) = postgres::shared().await else { return };
    let from = server.create_database(NAME).await.unwrap();
    let name = flow_of(&from);
    psql(&from, TABLES);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.db");
    let to = format!("sqlite:{}", file.display());
    tokio::task::block_in_place(|| {
        let runner = Runner::start(&from, &to, &["--name", &name]);
        wait(&name, &from, &to, |status| status["state"] == "live");
        psql(&from, what);
        psql(&from, "INSERT INTO u VALUES (2, 'later')");
        if !error.is_empty() {
            wait(&name, &from, &to, |status| {
                status["tables"][0]["error"].as_str().is_some_and(|found| found.contains(error))
            });
        }
        wait(&name, &from, &to, |status| status["tables"][1]["changes_applied"].as_u64() >= Some(1));
        runner.signal("-TERM");
        runner.end().ended(7);
        let again = verb(&name, &from, &to, &["run", "--until", "caught-up"]);
        if !error.is_empty() {
            again.failed(
                1,
                "TG0051 schema-changed: table public.t stopped: ",
                &[error, "recopy --table public.t"],
            );
            let had = sqlite_rows(&file, "SELECT id || v FROM t");
            assert_eq!(had, ["1a"], "nothing was applied that is not of this table");
        }
        assert_eq!(sqlite_rows(&file, "SELECT id || v FROM u ORDER BY id"), ["1a", "2later"]);
        if comes_back {
            if error.is_empty() {
                assert_eq!(
                    sqlite_rows(&file, "SELECT v FROM t"),
                    ["unseen"],
                    "it was the same table all the time"
                );
            } else {
                verb(&name, &from, &to, &["recopy", "--table", "public.t"]).ended(0);
            }
            verb(&name, &from, &to, &["run", "--until", "verified"]).ended(0);
        }
        crate::pairs::abort(&name, &from, &to);
    });
}

/// Runs a migration, does something to its publication, and says how the next runs fail.
async fn publication(what: impl Fn(&str) -> String, error: &str, words: &[&str]) {
    let Some(server) = postgres::shared().await else { return };
    let from = server.create_database(NAME).await.unwrap();
    let name = flow_of(&from);
    psql(&from, TABLES);
    let folder = tempfile::tempdir().unwrap();
    let to = format!("sqlite:{}", folder.path().join("new.db").display());
    tokio::task::block_in_place(|| {
        let run = || verb(&name, &from, &to, &["run", "--until", "caught-up"]);
        run().ended(0);
        psql(&from, &what(&format!("ALTER PUBLICATION tidegate_{name}")));
        for _ in 0..2 {
            run().failed(1, error, &[words, &["tidegate explain slot-lost"]].concat());
        }
        crate::pairs::abort(&name, &from, &to);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_changed_is_not_trusted() {
    let change = |alter: &str| format!("{alter} SET (publish = 'insert')");
    publication(change, "TG0040 slot-lost: the publication of the slot was changed", &[]).await;
}

/// Found by reading: the next run published the table again, and what had changed meanwhile was missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_taken_out_of_the_publication_is_not_put_back() {
    let take_out = |alter: &str| format!("{alter} DROP TABLE t; INSERT INTO t VALUES (2, 'unseen')");
    let error = "TG0040 slot-lost: a table was taken out of the publication, and nobody knows since when";
    publication(take_out, error, &["table: public.t"]).await;
}

/// `$out` puts a new collection in the place of the old one.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_another_one_replaces() {
    let Some(server) = tidegate_services::mongodb::shared().await else { return };
    let from = server.database(NAME);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.db");
    let to = format!("sqlite:{}", file.display());
    let database = Client::with_uri_str(&from).await.unwrap().default_database().unwrap();
    for name in ["t", "u"] {
        let collection = database.collection::<Document>(name);
        collection.insert_many((1..4).map(|id| doc! { "_id": id })).await.unwrap();
    }
    tokio::task::block_in_place(|| verb(NAME, &from, &to, &["run", "--until", "caught-up"]).ended(0));
    let t = database.collection::<Document>("t");
    t.aggregate([doc! { "$match": { "_id": 2 } }, doc! { "$out": "t" }]).await.unwrap();
    database.collection::<Document>("u").insert_one(doc! { "_id": 9 }).await.unwrap();
    tokio::task::block_in_place(|| {
        let again = verb(NAME, &from, &to, &["run", "--until", "caught-up"]);
        again.failed(
            1,
            "TG0051 schema-changed: table t stopped: another table has taken the name",
            &["recopy --table t"],
        );
        assert_eq!(sqlite_rows(&file, "SELECT count(*) FROM u"), ["4"], "the other one goes on");
        // The runner that goes on gets that event behind it.
        let runner = Runner::start(&from, &to, &["--name", NAME]);
        wait(NAME, &from, &to, |status| status["running"] == true && status["tables"][1]["state"] == "live");
        let insert = database.collection::<Document>("u");
        tokio::runtime::Handle::current()
            .block_on(insert.insert_one(doc! { "_id": 10 }).into_future())
            .unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while sqlite_rows(&file, "SELECT count(*) FROM u") != ["5"] {
            assert!(std::time::Instant::now() < deadline, "what came later does not arrive");
            std::thread::sleep(Duration::from_millis(50));
        }
        verb(NAME, &from, &to, &["recopy", "--table", "t"]).ended(0);
        wait(NAME, &from, &to, |status| status["tables"][0]["state"] == "live");
        runner.signal("-TERM");
        runner.end().ended(7);
        assert_eq!(sqlite_rows(&file, "SELECT count(*) FROM t"), ["1"]);
    });
}

/// A new table is not a part of a migration that runs already; one that cannot be moved is not in its way either.
#[test]
fn a_table_that_comes_later_is_not_in_the_way() {
    let (folder, from, to) =
        shop("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'a')");
    let run = |until: &str| verb(NAME, &from, &to, &["run", "--until", until]);
    run("caught-up").ended(0);
    sqlite(
        &folder.path().join("shop.db"),
        "CREATE TABLE later (id INTEGER PRIMARY KEY); CREATE TABLE no_key (v TEXT)",
    );
    verb(NAME, &from, &to, &["verify"]).ended(0);
    run("verified").ended(0);
    assert_eq!(
        sqlite_rows(&folder.path().join("new.db"), "SELECT name FROM sqlite_schema WHERE name = 'later'"),
        [""; 0]
    );
}

/// Rows of two tables would overwrite each other.
#[rstest]
#[case::by_hand(&["--map", "a=z", "--map", "b=z"], "a and b would both be written to z of the target")]
#[case::onto_another(&["--map", "b=a"], "a and b would both be written to a of the target")]
#[case::by_letter_case(&["--map", "a=X", "--map", "b=x"], "a and b would both be written to x of the target")]
#[case::unknown(&["--map", "nope=x"], "the mapping of nope cannot be followed")]
fn names_that_cannot_be_followed(#[case] maps: &[&str], #[case] error: &str) {
    let (_folder, from, to) =
        shop("CREATE TABLE a (id INTEGER PRIMARY KEY); CREATE TABLE b (id INTEGER PRIMARY KEY)");
    let words = [&["plan", "--from", &from, "--to", &to][..], maps].concat();
    let answer = tidegate(&words).ended(3);
    assert!(answer.out.contains("TG0003 mapping-invalid") && answer.out.contains(error), "{}", answer.out);
}

/// Found by trying: the run ended with what the server says of the name.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_no_collection_has() {
    let Some(server) = tidegate_services::mongodb::shared().await else { return };
    let to = server.database(NAME);
    tokio::task::block_in_place(|| {
        let (_folder, from, _) = shop("CREATE TABLE \".lead\" (id INTEGER PRIMARY KEY)");
        let plan = |more: &[&str]| tidegate(&[&["plan", "--from", &from, "--to", &to], more].concat());
        let answer = plan(&[]).ended(3).out;
        let error =
            "TG0003 mapping-invalid: a collection cannot have the name \".lead\": it begins with a dot";
        assert!(answer.contains(error) && answer.contains("--map TABLE=NAME"), "{answer}");
        plan(&["--map", ".lead=lead"]).ended(0);
    });
}

/// What it writes it would capture again, without end.
#[rstest]
#[case::the_same("shop.db")]
#[case::by_another_name("link.db")]
fn a_source_that_is_the_target(#[case] target: &str) {
    let (folder, from, _) = shop("CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)");
    std::os::unix::fs::symlink(folder.path().join("shop.db"), folder.path().join("link.db")).unwrap();
    let to = format!("sqlite:{}", folder.path().join(target).display());
    let words = ["migrate", "run", "--allow-non-empty", "--from", &from, "--to", &to];
    tidegate(&words).failed(
        2,
        "TG0001 config-invalid: source and target are one database",
        &["hint: check --from"],
    );
    // Within one database a table may be moved to another name.
    let words = ["migrate", "run", "--until", "caught-up", "--from", &from, "--to", &to, "--map", "t=t2"];
    for _ in 0..2 {
        tidegate(&words).ended(0);
    }
    assert_eq!(sqlite_rows(&folder.path().join("shop.db"), "SELECT count(*) FROM t2"), ["1"]);
}

/// A key that is written as an equal one is another key to a target that keeps it as text.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_written_anew_as_an_equal_one() {
    let Some(server) = postgres::shared().await else { return };
    let from = server.create_database(NAME).await.unwrap();
    let name = flow_of(&from);
    psql(&from, "CREATE TABLE t (k numeric PRIMARY KEY, v text); INSERT INTO t VALUES (1.0, 'a'), (2, 'b')");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.db");
    let to = format!("sqlite:{}", file.display());
    tokio::task::block_in_place(|| {
        verb(&name, &from, &to, &["run", "--until", "caught-up"]).ended(0);
        psql(&from, "UPDATE t SET k = 1.00 WHERE k = 1; UPDATE t SET v = 'c' WHERE k = 2");
        verb(&name, &from, &to, &["run", "--until", "verified"]).ended(0);
        assert_eq!(sqlite_rows(&file, "SELECT k || v FROM t ORDER BY k"), ["1.00a", "2c"]);
        crate::pairs::abort(&name, &from, &to);
    });
}

/// Who does not read the answer to its end has had enough.
#[test]
fn an_answer_that_nobody_reads_is_no_panic() {
    for words in ["config schema", "completions bash", "man"] {
        let program = env!("CARGO_BIN_EXE_tidegate");
        let line = format!("{program} {words} | true; exit ${{PIPESTATUS[0]}}");
        let ended = std::process::Command::new("bash").args(["-c", &line]).output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{words}: {}", String::from_utf8_lossy(&ended.stderr));
        let line = format!("{program} {words} > /dev/full");
        let ended = std::process::Command::new("bash").args(["-c", &line]).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{words}: an answer that was cut is no success");
        let err = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(err.contains("the answer cannot be written") && !err.contains("panicked"), "{words}: {err}");
    }
}
