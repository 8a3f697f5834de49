//! What the triggers journal and the feed delivers.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::Selection;
use tidegate_core::{Changes, Position, Table};

use crate::file::{File, app, ask, exec, flow, name, open};

const TWO: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT UNIQUE, v)";

/// A case: the schema, what was there before, what happens, what the feed says.
async fn check(schema: &str, before: &str, happens: &str, expected: &[&str]) {
    let mut file = File::with(schema).await;
    file.exec(before).await;
    let mut feed = file.feed().await;
    file.exec(happens).await;
    assert_eq!(feed.all().await, expected, "{happens}");
}

#[tokio::test]
async fn each_way_of_changing_a_row_is_seen() {
    let rows = "INSERT INTO t VALUES (1, 'a', 10), (2, 'b', 20)";
    for (happens, expected) in [
        ("INSERT INTO t VALUES (3, 'c', 30)", &["t update 3,'c',30"][..]),
        ("UPDATE t SET v = 11 WHERE id = 1", &["t update 1,'a',11"]),
        ("DELETE FROM t WHERE id = 1", &["t delete 1"]),
        ("DELETE FROM t", &["t delete 1", "t delete 2"]),
        // A key that changes.
        ("UPDATE t SET id = 9 WHERE id = 1", &["t delete 1", "t update 9,'a',10"]),
        // UPSERT.
        ("INSERT INTO t VALUES (1, 'a', 0) ON CONFLICT(id) DO UPDATE SET v = 12", &["t update 1,'a',12"]),
        // REPLACE of the same key.
        ("REPLACE INTO t VALUES (1, 'z', 13)", &["t update 1,'z',13"]),
        // REPLACE that removes the holder of another unique key.
        ("REPLACE INTO t VALUES (3, 'a', 13)", &["t delete 1", "t update 3,'a',13"]),
        ("UPDATE OR REPLACE t SET u = 'b' WHERE id = 1", &["t delete 2", "t update 1,'b',10"]),
        ("UPDATE OR REPLACE t SET id = 2 WHERE id = 1", &["t delete 1", "t update 2,'a',10"]),
        // What is rolled back did not happen.
        ("BEGIN; INSERT INTO t VALUES (4, 'd', 0); ROLLBACK", &[]),
        (
            "BEGIN; INSERT INTO t VALUES (4, 'd', 0); SAVEPOINT s; DELETE FROM t WHERE id = 1; ROLLBACK TO s; COMMIT",
            &["t update 4,'d',0"],
        ),
        // Many changes of one key are one.
        (
            "BEGIN; UPDATE t SET v = 1 WHERE id = 1; UPDATE t SET v = 2 WHERE id = 1; COMMIT",
            &["t update 1,'a',2"],
        ),
        ("BEGIN; INSERT INTO t VALUES (5, 'e', 0); DELETE FROM t WHERE id = 5; COMMIT", &["t delete 5"]),
        ("INSERT OR IGNORE INTO t VALUES (1, 'x', 0)", &[]),
    ] {
        check(TWO, rows, happens, expected).await;
    }
}

#[tokio::test]
async fn rivals_are_seen_in_tables_without_rowid_and_by_partial_indexes() {
    let schema = "CREATE TABLE t(k TEXT PRIMARY KEY, u INT, p INT, UNIQUE(u)) WITHOUT ROWID;
                  CREATE UNIQUE INDEX tp ON t(p) WHERE p > 0";
    let rows = "INSERT INTO t VALUES ('a', 1, 5), ('b', 2, 6)";
    check(schema, rows, "REPLACE INTO t VALUES ('c', 1, 7)", &["t delete 'a'", "t update 'c',1,7"]).await;
    check(schema, rows, "REPLACE INTO t VALUES ('c', 3, 6)", &["t delete 'b'", "t update 'c',3,6"]).await;
}

/// Found by trying: the number of a new row is not known before it is there, and is -1 until then.
#[tokio::test]
async fn a_rival_whose_rowid_is_minus_one_is_seen() {
    let rows = "INSERT INTO t VALUES (-1, 'a', 1), (1, 'b', 2)";
    check(TWO, rows, "REPLACE INTO t(u, v) VALUES ('a', 3)", &["t delete -1", "t update 2,'a',3"]).await;
    check(TWO, rows, "REPLACE INTO t VALUES (NULL, 'a', 3)", &["t delete -1", "t update 2,'a',3"]).await;
}

/// Found by trying: REPLACE puts the default in the place of a null when the trigger has run.
#[tokio::test]
async fn a_rival_that_holds_the_default_is_seen() {
    for (default, x) in [
        ("'x'", "'x'"),
        ("x", "'x'"),
        ("\"x\"", "'x'"),
        ("[x y]", "'x y'"),
        ("`x``y`", "'x`y'"),
        ("/* id */ (lower('X') -- of whom\n)", "'x'"),
        ("CURRENT_DATE", "CURRENT_DATE"),
        ("- 1", "'-1'"),
        ("true", "'1'"),
        ("x'41'", "x'41'"),
    ] {
        let schema =
            format!("CREATE TABLE t(id INTEGER PRIMARY KEY, v, u TEXT NOT NULL DEFAULT {default} UNIQUE)");
        let rows = format!("INSERT INTO t VALUES (1, 1, {x}), (2, 2, 'other')");
        for (happens, expected) in [
            ("INSERT OR REPLACE INTO t VALUES (3, 3, NULL)", ["t delete 1", "t update 3,3"]),
            ("REPLACE INTO t(id, v) VALUES (3, 3)", ["t delete 1", "t update 3,3"]),
            ("UPDATE OR REPLACE t SET u = NULL WHERE id = 2", ["t delete 1", "t update 2,2"]),
        ] {
            let mut file = File::with(&schema).await;
            file.exec(&rows).await;
            let mut feed = file.feed().await;
            file.exec(happens).await;
            let seen = feed.all().await;
            assert_eq!(seen.len(), 2, "DEFAULT {default}: {happens}: {seen:?}");
            assert!(seen.iter().zip(expected).all(|(seen, line)| seen.starts_with(line)), "{seen:?}");
        }
    }
    // In a key, and by the constraint's own resolution.
    check(
        "CREATE TABLE t(k TEXT COLLATE NOCASE NOT NULL ON CONFLICT REPLACE DEFAULT 'X' PRIMARY KEY ON CONFLICT REPLACE, v)
         WITHOUT ROWID",
        "INSERT INTO t VALUES ('x', 1)",
        "INSERT INTO t VALUES (NULL, 2)",
        &["t update 'X',2 was 'x'", "t update 'X',2"],
    )
    .await;
}

/// Found by trying: what makes a row a member of the index is in other columns than its own.
#[tokio::test]
async fn a_rival_by_a_partial_index_that_a_row_enters_is_seen() {
    check(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, u, is_on); CREATE UNIQUE INDEX tu ON t(u) WHERE is_on",
        "INSERT INTO t VALUES (1, 'a', 1), (2, 'a', 0)",
        "UPDATE OR REPLACE t SET is_on = 1 WHERE id = 2",
        &["t delete 1", "t update 2,'a',1"],
    )
    .await;
}

/// Found by trying: the rowid is unique as well where it is not the key.
#[tokio::test]
async fn a_rival_by_a_rowid_that_is_not_the_key_is_seen() {
    let schema = "CREATE TABLE t(k TEXT PRIMARY KEY, rowid)";
    let rows = "INSERT INTO t(_rowid_, k) VALUES (-1, 'z'), (1, 'a'), (2, 'b')";
    for (happens, expected) in [
        ("REPLACE INTO t(oid, k) VALUES (1, 'c')", &["t delete 'a'", "t update 'c',null"][..]),
        ("UPDATE OR REPLACE t SET oid = 2 WHERE k = 'a'", &["t delete 'b'", "t update 'a',null"]),
    ] {
        check(schema, rows, happens, expected).await;
    }
    check(&format!("{schema} WITHOUT ROWID"), "", "REPLACE INTO t VALUES ('c', 1)", &["t update 'c',1"])
        .await;
}

/// Values are in the trigger what they become in the column, and are compared as the index does.
#[tokio::test]
async fn rivals_are_found_by_affinity_and_collation() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT UNIQUE, n INT UNIQUE, r REAL, c TEXT);
                  CREATE UNIQUE INDEX tr ON t(r); CREATE UNIQUE INDEX tc ON t(c COLLATE NOCASE)";
    let rows = "INSERT INTO t VALUES (1, '7', 7, 7, 'seven')";
    for happens in ["u) VALUES (2, 7", "n) VALUES (2, '7.0'", "r) VALUES (2, '7'", "c) VALUES (2, 'SEVEN'"] {
        let mut file = File::with(schema).await;
        file.exec(rows).await;
        let mut feed = file.feed().await;
        file.exec(&format!("REPLACE INTO t(id, {happens})")).await;
        assert_eq!(feed.all().await[0], "t delete 1", "{happens}");
    }
    for sets in ["u = 7", "n = '7.0'", "r = '7'", "c = 'SEVEN'"] {
        let mut file = File::with(schema).await;
        file.exec(&format!("{rows}; INSERT INTO t(id) VALUES (2)")).await;
        let mut feed = file.feed().await;
        file.exec(&format!("UPDATE OR REPLACE t SET {sets} WHERE id = 2")).await;
        assert_eq!(feed.all().await[0], "t delete 1", "{sets}");
    }
    // REPLACE by one constraint, an update by another one.
    let happens = "INSERT OR REPLACE INTO t(id, u, n) VALUES (2, '7', 9) ON CONFLICT(n) DO UPDATE SET r = 1";
    check(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE, n UNIQUE, r)",
        "INSERT INTO t VALUES (1, '7', 7, 0)",
        happens,
        &["t delete 1", "t update 2,'7',9,null"],
    )
    .await;
}

#[tokio::test]
async fn foreign_keys_that_cascade_are_seen() {
    let schema = "CREATE TABLE p(id INTEGER PRIMARY KEY);
                  CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE)";
    let rows = "INSERT INTO p VALUES (1), (2); INSERT INTO c VALUES (10, 1), (20, 2)";
    check(
        schema,
        rows,
        "PRAGMA foreign_keys = ON; DELETE FROM p WHERE id = 1",
        &["c delete 10", "p delete 1"],
    )
    .await;
    check(
        schema,
        rows,
        "PRAGMA foreign_keys = ON; UPDATE p SET id = 3 WHERE id = 2",
        &["c update 20,3", "p delete 2", "p update 3"],
    )
    .await;
}

#[tokio::test]
async fn a_writer_that_attaches_the_file_is_seen() {
    let file = File::with(TWO).await;
    let mut feed = file.feed().await;
    let mut other = app(&file.folder.path().join("other.db")).await;
    exec(&mut other, &format!("ATTACH '{}' AS s; INSERT INTO s.t VALUES (1, 'a', 2)", file.path.display()))
        .await;
    assert_eq!(feed.all().await, ["t update 1,'a',2"]);
}

#[tokio::test]
async fn keys_keep_their_classes_apart() {
    check(
        "CREATE TABLE t(k PRIMARY KEY, v)",
        "INSERT INTO t VALUES (1, 'int'), ('1', 'text'), (x'31', 'blob'), (1.5, 'real')",
        "UPDATE t SET v = v || '!'; DELETE FROM t WHERE k = '1'",
        &["t update 1,'int!'", "t update x'31','blob!'", "t update 1.5,'real!'", "t delete '1'"],
    )
    .await;
    // To the index these are one key; byte for byte they are not.
    check(
        "CREATE TABLE t(k TEXT COLLATE NOCASE PRIMARY KEY, v)",
        "INSERT INTO t VALUES ('a', 1)",
        "UPDATE t SET k = 'A'",
        &["t update 'A',1 was 'a'", "t update 'A',1"],
    )
    .await;
    check(
        "CREATE TABLE t(k TEXT COLLATE NOCASE PRIMARY KEY, v)",
        "INSERT INTO t VALUES ('a', 1)",
        "REPLACE INTO t VALUES ('A', 2)",
        &["t update 'A',2 was 'a'", "t update 'A',2"],
    )
    .await;
    check(
        "CREATE TABLE t(k PRIMARY KEY, v)",
        "INSERT INTO t VALUES (1, 1)",
        "REPLACE INTO t VALUES (1.0, 2)",
        &["t update 1.0,2 was 1", "t update 1.0,2"],
    )
    .await;
}

#[tokio::test]
async fn values_come_as_they_are_stored() {
    check(
        "CREATE TABLE t(a BLOB, b TEXT, v, n INTEGER, g AS (n + 1), PRIMARY KEY (a, b)) WITHOUT ROWID",
        "",
        "INSERT INTO t(a, b, v, n) VALUES (x'610062', 'x' || char(0) || 'y', 1e999, 'words'), (x'', '', NULL, 9223372036854775807)",
        &["t update x'610062','x\0y',inf,'words'", "t update x'','',null,9223372036854775807"],
    )
    .await;
}

#[tokio::test]
async fn a_key_that_is_null_is_refused_by_name() {
    let mut file = File::with("CREATE TABLE t(k TEXT PRIMARY KEY, v)").await;
    let mut feed = file.feed().await;
    file.exec("INSERT INTO t VALUES (NULL, 1)").await;
    let error = feed.failure().await;
    assert_eq!(error.code(), code::VALUE_UNFIT);
    assert!(error.context().contains(&("table".into(), "t".to_owned())));
}

const REBUILD: &str =
    "BEGIN; CREATE TABLE n(id INTEGER PRIMARY KEY, u TEXT UNIQUE, v); INSERT INTO n SELECT id, u, v + 1 FROM t;
     DROP TABLE t; ALTER TABLE n RENAME TO t; COMMIT";

/// Rebuilds `t`, and makes its triggers again as they were, as the documentation of SQLite has it.
async fn rebuild_with_triggers(file: &mut File) {
    let triggers =
        "SELECT group_concat(sql, ';') FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 't'";
    let triggers: String = sqlx::query_scalar(triggers).fetch_one(&mut file.app).await.unwrap();
    file.exec(&REBUILD.replace("COMMIT", &format!("{triggers}; COMMIT"))).await;
}

fn is_of(error: &tidegate_core::Error, table: &str) -> bool {
    error.code() == code::SCHEMA_CHANGED && error.context().contains(&("table".into(), table.to_owned()))
}

/// Found by trying: it ended the migration of all tables, and there was no way back.
#[tokio::test]
async fn a_table_that_was_rebuilt_is_noticed_while_running_and_afterwards() {
    for with_triggers in [false, true] {
        let mut file = File::with(&format!("{TWO}; CREATE TABLE o(id INTEGER PRIMARY KEY)")).await;
        let mut feed = file.feed().await;
        let (known, catalog) = (file.tables().await, file.catalog().await);
        if with_triggers {
            rebuild_with_triggers(&mut file).await;
        } else {
            file.exec(REBUILD).await;
        }
        file.exec("INSERT INTO o VALUES (1)").await;
        assert!(is_of(&feed.failure().await, "t"));
        // Neither may the next run make the triggers anew and go on as if nothing had happened.
        assert!(is_of(&catalog.capture(&flow(), &known).await.unwrap_err(), "t"));
        let (identity, start) = (catalog.identity().await.unwrap(), Position::from_u64(0));
        let store = Arc::clone(&file.store);
        let open = async |tables| store.change_feed(&flow(), tables, &identity, &start).await;
        assert!(is_of(&open(&known).await.err().unwrap(), "t"));
        // The other one goes on.
        assert_eq!(catalog.capture(&flow(), &known[..1]).await.unwrap(), Position::from_u64(1));
        open(&known[..1]).await.unwrap();

        // As another table it is captured again.
        let now = file.tables().await;
        let ids = |tables: &[Arc<Table>]| tables.iter().map(|table| table.native_id).collect::<Vec<_>>();
        assert_eq!((ids(&known), ids(&now)), (vec![0, 0], vec![0, 1]));
        catalog.capture(&flow(), &now).await.unwrap();
        assert_eq!(ids(&file.tables().await), [0, 1], "that is what it stays");
        let mut feed = file.feed_from(&Position::from_u64(1)).await.unwrap();
        file.exec("INSERT INTO t VALUES (1, 'a', 2)").await;
        assert_eq!(feed.all().await, ["t update 1,'a',2"]);
        assert!(is_of(&open(&known).await.err().unwrap(), "t"), "the old one is not followed any more");
    }
}

/// A table that joins makes triggers; those of a table that was rebuilt before are not taken for kept ones after that.
#[tokio::test]
async fn a_table_that_was_rebuilt_is_not_hidden_by_what_is_captured_later() {
    for with_triggers in [false, true] {
        let mut file = File::with(TWO).await;
        file.feed().await;
        let (known, catalog) = (file.tables().await, file.catalog().await);
        if with_triggers {
            rebuild_with_triggers(&mut file).await;
        } else {
            file.exec(REBUILD).await;
        }
        file.exec("CREATE TABLE a(id INTEGER PRIMARY KEY)").await;
        // Once by a table that joins, and once by another flow that captures the same table.
        let joining = file.table("a").await;
        catalog.capture(&flow(), &[joining]).await.unwrap();
        assert!(is_of(&catalog.capture(&flow(), &known).await.unwrap_err(), "t"));
        let other = tidegate_core::FlowName::new("other").unwrap();
        catalog.capture(&other, &file.tables().await).await.unwrap();
        assert!(is_of(&catalog.capture(&flow(), &known).await.unwrap_err(), "t"));
    }
}

#[tokio::test]
async fn what_does_not_rebuild_a_table_is_not_taken_for_that() {
    let mut file = File::with(&format!("PRAGMA auto_vacuum = FULL; {TWO}; CREATE INDEX z ON t(v)")).await;
    let mut feed = file.feed().await;
    file.exec(
        "CREATE TABLE later(id INTEGER PRIMARY KEY); DROP INDEX z; CREATE VIEW w AS SELECT * FROM gone",
    )
    .await;
    let later = file.table("later").await;
    file.catalog().await.capture(&flow(), &[later]).await.unwrap();
    file.exec("CREATE TABLE z(x); VACUUM; INSERT INTO t VALUES (1, 'a', 2); DROP TABLE z; REINDEX; ANALYZE")
        .await;
    assert_eq!(feed.all().await, ["t update 1,'a',2"]);
    file.exec("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").await;
    let tables = [file.table("later").await, file.table("t").await];
    assert_eq!(tables.iter().map(|table| table.native_id).max(), Some(0));
    file.catalog().await.capture(&flow(), &tables).await.unwrap();
}

/// A file that an earlier build captured is read and goes on.
#[tokio::test]
async fn a_capture_of_before_generations_goes_on() {
    let mut file = File::with(TWO).await;
    file.feed().await;
    file.exec(
        "ALTER TABLE tidegate_captured DROP COLUMN generation; CREATE TABLE later(id INTEGER PRIMARY KEY)",
    )
    .await;
    let mut feed = file.feed().await;
    file.exec("INSERT INTO t VALUES (1, 'a', 2); INSERT INTO later VALUES (1)").await;
    assert_eq!(feed.all().await, ["later update 1", "t update 1,'a',2"]);
}

/// A schema, and the triggers that an earlier build made for it, which missed some rivals.
const EARLIER: &str =
    "CREATE TABLE t(k TEXT COLLATE NOCASE NOT NULL DEFAULT 'x', n INT, u TEXT UNIQUE, PRIMARY KEY (k, n));
    CREATE UNIQUE INDEX tp ON t(u, n) WHERE n > 0; CREATE TABLE i(id INTEGER PRIMARY KEY, u TEXT UNIQUE)";
const EARLIER_TRIGGERS: &str = include_str!("triggers_of_earlier.sql");

/// Puts the triggers of an earlier build in the place of those that this one made.
async fn age(file: &mut File) {
    let ours = "SELECT group_concat('DROP TRIGGER \"' || name || '\"', ';') FROM sqlite_schema WHERE type = 'trigger'
                AND (tbl_name = 't' OR name LIKE '%rival%')";
    let ours: String = sqlx::query_scalar(ours).fetch_one(&mut file.app).await.unwrap();
    file.exec(&format!("{ours}; {EARLIER_TRIGGERS}")).await;
}

/// Its triggers are made anew, no table stops, and no change is lost.
#[tokio::test]
async fn a_capture_of_an_earlier_build_goes_on() {
    let mut file = File::with(EARLIER).await;
    let mut feed = file.feed().await;
    age(&mut file).await;
    file.exec("INSERT INTO t VALUES ('x', 1, 'a'); INSERT INTO i VALUES (-1, 'a')").await;
    assert_eq!(feed.all().await, ["i update -1,'a'", "t update 'x',1,'a'"], "they are read as they are");
    file.exec("INSERT INTO t VALUES ('y', 2, 'b')").await;

    let tables = file.tables().await;
    assert!(tables.iter().all(|table| table.native_id == 0));
    file.catalog().await.capture(&flow(), &tables).await.unwrap();
    assert!(file.tables().await.iter().all(|table| table.native_id == 0));
    assert_eq!(feed.all().await, ["t update 'y',2,'b'"]);
    file.exec("REPLACE INTO i(u) VALUES ('a'); REPLACE INTO t(rowid, k, n) VALUES (1, 'z', 3)").await;
    let seen = ["i delete -1", "i update 0,'a'", "t delete 'x',1", "t update 'z',3,null"];
    assert_eq!(feed.all().await, seen);
}

#[tokio::test]
async fn triggers_of_an_earlier_build_that_are_not_whole_stop_their_table() {
    for (is_of_earlier, gone) in [(true, "delete.t"), (true, "rival_update.tp"), (false, "rowid_insert.t")] {
        let mut file = File::with(EARLIER).await;
        let mut feed = file.feed().await;
        if is_of_earlier {
            age(&mut file).await;
        }
        let known = file.tables().await;
        file.exec(&format!("DROP TRIGGER \"tidegate_capture_{gone}\"")).await;
        assert!(is_of(&feed.failure().await, "t"));
        assert!(is_of(&file.catalog().await.capture(&flow(), &known).await.unwrap_err(), "t"));
    }
}

/// The journal is not made anew for a flow that began with another one.
#[tokio::test]
async fn a_part_of_the_capture_that_is_gone_is_not_made_again() {
    for part in ["journal", "capture", "captured"] {
        let mut file = File::with(TWO).await;
        file.feed().await;
        file.exec(&format!("DROP TABLE tidegate_{part}")).await;
        let error = file.catalog().await.capture(&flow(), &file.tables().await).await.unwrap_err();
        assert_eq!(error.code(), code::JOURNAL_LOST, "{part}: {error:?}");
    }
}

#[tokio::test]
async fn a_changed_schema_is_named() {
    for (ddl, found) in [
        ("ALTER TABLE t ADD COLUMN w", code::SCHEMA_CHANGED),
        ("ALTER TABLE t RENAME COLUMN v TO w", code::SCHEMA_CHANGED),
        ("ALTER TABLE t DROP COLUMN v", code::SCHEMA_CHANGED),
        ("ALTER TABLE t RENAME TO w", code::TABLE_MISSING),
        ("DROP TABLE t", code::TABLE_MISSING),
        ("CREATE UNIQUE INDEX tv ON t(v)", code::SCHEMA_CHANGED),
        ("CREATE UNIQUE INDEX tv ON t(lower(v))", code::SCHEMA_CHANGED),
        ("ALTER TABLE t ADD COLUMN g AS (lower(v)); CREATE UNIQUE INDEX tg ON t(g)", code::SCHEMA_CHANGED),
        ("DROP TRIGGER \"tidegate_capture_delete.t\"", code::SCHEMA_CHANGED),
        ("DROP TABLE tidegate_journal", code::JOURNAL_LOST),
        ("DROP TABLE tidegate_captured", code::JOURNAL_LOST),
    ] {
        let mut file = File::with(TWO).await;
        let mut feed = file.feed().await;
        file.exec(ddl).await;
        assert_eq!(feed.failure().await.code(), found, "{ddl}");
    }
    // What does not matter is not an error.
    let mut file = File::with(TWO).await;
    let mut feed = file.feed().await;
    file.exec("CREATE INDEX tv ON t(v); CREATE TABLE other(x); INSERT INTO t VALUES (1, 'a', 2)").await;
    assert_eq!(feed.all().await, ["t update 1,'a',2"]);
}

/// Found by trying: the values of two columns changed places without a word.
#[tokio::test]
async fn columns_that_exchange_their_names_are_noticed_while_running() {
    for change in [
        "ALTER TABLE t RENAME a TO c; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME c TO b",
        "ALTER TABLE t DROP COLUMN a; ALTER TABLE t ADD COLUMN a INT",
    ] {
        let mut file = File::with("CREATE TABLE t(id INTEGER PRIMARY KEY, a INT, b INT)").await;
        let mut feed = file.feed().await;
        file.exec(&format!("BEGIN; {change}; UPDATE t SET b = 5; COMMIT")).await;
        assert_eq!(feed.failure().await.code(), code::SCHEMA_CHANGED, "{change}");
    }
}

#[tokio::test]
async fn the_journal_is_trimmed_in_small_steps_and_its_numbers_go_on() {
    let mut file = File::with(TWO).await;
    let mut feed = file.feed().await;
    file.exec(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
         INSERT INTO t SELECT i, i, i FROM n",
    )
    .await;
    assert_eq!(feed.all().await.len(), 2_500);
    assert_eq!(feed.position, Position::from_u64(2_500));
    feed.feed.acknowledge(&Position::from_u64(1_000)).await.unwrap();
    assert_eq!(ask(&mut file.app, "SELECT min(seq) FROM tidegate_journal").await, 1_001);
    feed.feed.acknowledge(&Position::from_u64(u64::MAX)).await.unwrap();
    assert_eq!(ask(&mut file.app, "SELECT count(*) FROM tidegate_journal").await, 1, "the last one stays");
    file.exec("DELETE FROM t WHERE id = 7").await;
    assert_eq!(feed.all().await, ["t delete 7"]);
    assert_eq!(feed.position, Position::from_u64(2_501));
    feed.feed.close().await.unwrap();

    // Where the journal has no entries any more, a feed cannot begin; ahead of it, the source is an older copy.
    assert_eq!(file.feed_from(&Position::from_u64(1_500)).await.err().unwrap().code(), code::JOURNAL_LOST);
    assert_eq!(file.feed_from(&Position::from_u64(2_502)).await.err().unwrap().code(), code::SOURCE_REPLACED);
    let mut again = file.feed_from(&Position::from_u64(2_500)).await.unwrap();
    assert_eq!(again.all().await, ["t delete 7"]);
}

/// The statement leaves the sequence behind its entries: a number must not be used twice all the same.
#[tokio::test]
async fn a_statement_that_fails_halfway_keeps_its_entries() {
    let mut file = File::with(TWO).await;
    file.exec("INSERT INTO t VALUES (5, 'five', 0)").await;
    let mut feed = file.feed().await;
    let failing = sqlx::raw_sql("INSERT OR FAIL INTO t VALUES (1, 'a', 0), (2, 'b', 0), (5, 'x', 0)");
    assert!(failing.execute(&mut file.app).await.is_err());
    assert_eq!(feed.all().await, ["t update 1,'a',0", "t update 2,'b',0"]);
    feed.feed.acknowledge(&feed.position).await.unwrap();
    file.exec("INSERT INTO t VALUES (6, 'c', 0)").await;
    assert_eq!(feed.all().await, ["t update 6,'c',0"]);
}

#[tokio::test]
async fn one_large_transaction_comes_in_pieces_and_ends_once() {
    let mut file = File::with("CREATE TABLE t(id INTEGER PRIMARY KEY, v)").await;
    let mut feed = file.feed().await;
    file.exec(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
         INSERT INTO t SELECT i, i FROM n",
    )
    .await;
    let (mut rows, mut marks, mut ends) = (0, std::collections::BTreeSet::new(), Vec::new());
    while ends.last() != Some(&true) {
        let mut changes = Changes::new();
        feed.feed.next(None, &mut changes).await.unwrap();
        rows += changes.count();
        for transaction in changes.transactions() {
            marks.insert(transaction.mark);
            ends.push(transaction.ends);
            assert!(transaction.committed_at > 1_700_000_000_000_000);
        }
        // Others write meanwhile.
        file.exec("UPDATE t SET v = v + 1 WHERE id = 1").await;
    }
    assert_eq!((rows, marks.into_iter().collect::<Vec<_>>()), (30_000, vec![30_000]));
    assert!(ends.len() > 3 && ends.iter().filter(|ends| **ends).count() == 1);
    assert_eq!(feed.all().await.len(), 1);
}

#[tokio::test]
async fn capture_is_repeatable_and_clean_leaves_other_flows_alone() {
    let file = File::with(TWO).await;
    let (catalog, tables) = (file.catalog().await, file.tables().await);
    let provisional = catalog.identity().await.unwrap();
    let other = tidegate_core::FlowName::new("other").unwrap();
    let first = catalog.capture(&flow(), &tables).await.unwrap();
    assert_eq!(catalog.capture(&flow(), &tables).await.unwrap(), first);
    let captured = catalog.identity().await.unwrap();
    assert_ne!(captured, provisional, "a capture gives the file its id");
    assert_eq!(open(&file.path).catalog().await.unwrap().identity().await.unwrap(), captured);
    catalog.capture(&other, &tables).await.unwrap();
    catalog.clean(&other).await.unwrap();
    file.feed_from(&first).await.unwrap();
    catalog.clean(&flow()).await.unwrap();
    catalog.clean(&flow()).await.unwrap();
    let mut app = app(&file.path).await;
    let left = ask(&mut app, "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'tidegate%'").await;
    assert_eq!(left, 0);
}

#[tokio::test]
async fn what_another_flow_needs_is_not_trimmed() {
    let mut file = File::with(TWO).await;
    let (catalog, tables) = (file.catalog().await, file.tables().await);
    catalog.capture(&tidegate_core::FlowName::new("slow").unwrap(), &tables).await.unwrap();
    let mut feed = file.feed().await;
    file.exec("INSERT INTO t VALUES (1, 'a', 0), (2, 'b', 0)").await;
    feed.all().await;
    feed.feed.acknowledge(&feed.position).await.unwrap();
    assert_eq!(ask(&mut file.app, "SELECT count(*) FROM tidegate_journal").await, 2);
}

#[tokio::test]
async fn a_source_without_wal_is_refused() {
    let mut file = File::with(TWO).await;
    file.exec("PRAGMA journal_mode = DELETE").await;
    let (tables, obstacles) = file.catalog().await.describe(&Selection::All).await.unwrap();
    assert_eq!(obstacles[0].error.code(), code::JOURNAL_MODE);
    let tables: Vec<_> = tables.into_iter().map(Arc::new).collect();
    let error = file.catalog().await.capture(&flow(), &tables).await.unwrap_err();
    assert_eq!(error.code(), code::JOURNAL_MODE);
    assert_eq!(file.store.crawler().await.err().unwrap().code(), code::JOURNAL_MODE);
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut file.app).await.unwrap();
    assert_eq!(mode, "delete", "nobody switched it");
}

/// The open file stays what it was; the path leads to another one.
#[tokio::test]
async fn a_file_put_in_the_sources_place_is_noticed_while_running() {
    let mut file = File::with(TWO).await;
    let mut feed = file.feed().await;
    file.exec("PRAGMA wal_checkpoint(TRUNCATE)").await;
    let copy = file.folder.path().join("copy.db");
    std::fs::copy(&file.path, &copy).unwrap();
    std::fs::rename(&copy, &file.path).unwrap();
    assert_eq!(feed.failure().await.code(), code::SOURCE_REPLACED);
}

#[tokio::test]
async fn names_are_quoted() {
    check(
        "CREATE TABLE \"a \"\"b'c\"(\"k \"\"1\" INTEGER PRIMARY KEY, \"select\" TEXT UNIQUE)",
        "INSERT INTO \"a \"\"b'c\" VALUES (1, 'x')",
        "REPLACE INTO \"a \"\"b'c\" VALUES (2, 'x')",
        &["a \"b'c delete 1", "a \"b'c update 2,'x'"],
    )
    .await;
}

#[tokio::test]
async fn dropping_a_call_loses_nothing() {
    let mut file = File::with(TWO).await;
    let mut feed = file.feed().await;
    for id in 0..50 {
        file.exec(&format!("INSERT INTO t VALUES ({id}, 'u{id}', 0)")).await;
    }
    let mut seen = Vec::new();
    for micros in 0..200 {
        let mut changes = Changes::new();
        let call = feed.feed.next(None, &mut changes);
        if tokio::time::timeout(Duration::from_micros(micros * 20), call).await.is_ok() {
            seen.extend(changes.transactions().iter().flat_map(|t| changes.of(t)).map(|_| ()));
        }
        if seen.len() == 50 {
            break;
        }
    }
    seen.extend(feed.all().await.iter().map(|_| ()));
    assert_eq!(seen.len(), 50);
    assert_eq!(file.table("t").await.name, name("t"));
}

#[tokio::test]
async fn a_seal_is_replaced_if_it_is_still_the_one_that_was() {
    let file = File::with(TWO).await;
    let (catalog, flow) = (file.catalog().await, flow());
    assert!(!catalog.seal(&flow, None, "early").await.unwrap());
    assert_eq!(catalog.sealed(&flow).await.unwrap(), None, "it is not captured");
    catalog.capture(&flow, &file.tables().await).await.unwrap();
    for (was, seal, then) in
        [(None, "a", "a"), (None, "b", "a"), (Some("b"), "c", "a"), (Some("a"), "d", "d")]
    {
        assert_eq!(catalog.seal(&flow, was, seal).await.unwrap(), seal == then);
        assert_eq!(catalog.sealed(&flow).await.unwrap().as_deref(), Some(then));
    }
    catalog.capture(&flow, &file.tables().await).await.unwrap();
    assert_eq!(catalog.sealed(&flow).await.unwrap().as_deref(), Some("d"));
    catalog.clean(&flow).await.unwrap();
    assert_eq!(catalog.sealed(&flow).await.unwrap(), None);
}

/// Found by trying: it ended as a table that is missing.
#[tokio::test]
async fn a_file_that_another_one_replaces_is_told_nothing() {
    for (schema, is_captured) in [("CREATE TABLE other(x)", false), (TWO, false), (TWO, true)] {
        let file = File::with(TWO).await;
        let mut feed = file.feed().await;
        let mut other = File::with(schema).await;
        if is_captured {
            other.feed().await;
        }
        other.exec("PRAGMA wal_checkpoint(TRUNCATE)").await;
        std::fs::rename(&file.path, file.folder.path().join("old.db")).unwrap();
        for beside in ["source.db-wal", "source.db-shm"] {
            std::fs::remove_file(file.folder.path().join(beside)).unwrap();
        }
        std::fs::copy(&other.path, &file.path).unwrap();
        let error = feed.feed.acknowledge(&Position::from_u64(0)).await.unwrap_err();
        assert_eq!(error.code(), code::SOURCE_REPLACED, "{error:?}");
    }
    // What an abort removed under a runner is another matter.
    let mut file = File::with(TWO).await;
    let mut feed = file.feed().await;
    feed.feed.acknowledge(&Position::from_u64(0)).await.unwrap();
    file.exec("DROP TABLE tidegate_capture; DROP TABLE tidegate_journal; DROP TABLE tidegate_identity").await;
    let error = feed.feed.acknowledge(&Position::from_u64(0)).await.unwrap_err();
    assert_eq!(error.code(), code::JOURNAL_LOST, "{error:?}");
}
