//! Tables that leave a migration, for a while or for good, and those that stay.

use rstest::rstest;

use crate::columns::{verb, wait};
use crate::runner::Runner;
use crate::{Outcome, shop, sqlite, sqlite_rows};

const NAME: &str = "leaving";
const SHOP: &str = "CREATE TABLE a (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO a VALUES (1, 'a');
    CREATE TABLE b (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO b VALUES (1, 'b')";

struct Place {
    folder: tempfile::TempDir,
    from: String,
    to: String,
}

impl Place {
    /// A migration of both tables that has caught up.
    fn open() -> Self {
        let (folder, from, to) = shop(SHOP);
        let place = Self { folder, from, to };
        place.run(&[]).ended(0);
        place
    }

    fn verb(&self, words: &[&str]) -> Outcome {
        verb(NAME, &self.from, &self.to, words)
    }

    fn run(&self, words: &[&str]) -> Outcome {
        self.verb(&[&["run", "--until", "caught-up"], words].concat())
    }

    fn source(&self, sql: &str) {
        sqlite(&self.folder.path().join("shop.db"), sql);
    }

    fn target(&self, sql: &str) -> Vec<String> {
        sqlite_rows(&self.folder.path().join("new.db"), sql)
    }

    /// The ids of a table in the target.
    fn ids(&self, table: &str) -> Vec<String> {
        self.target(&format!("SELECT id FROM {table} ORDER BY id"))
    }
}

/// Found by trying: it came back without the changes of that time, and nobody was told.
#[rstest]
#[case::excluded(&["--exclude", "b"])]
#[case::not_named(&["--table", "a"])]
fn a_table_of_a_migration_is_not_left_out_of_one_run(#[case] words: &[&str]) {
    let place = Place::open();
    let out =
        "TG0001 config-invalid: table b is part of this migration and was left out; nothing was changed";
    place.source("INSERT INTO b VALUES (2, 'b')");
    place.run(words).failed(2, out, &["tidegate migrate skip --table b"]);
    place.run(&[]).ended(0);
    assert_eq!(place.ids("b"), ["1", "2"]);

    place.verb(&["skip", "--table", "b"]).ended(0);
    place.source("INSERT INTO a VALUES (2, 'a'); INSERT INTO b VALUES (3, 'b')");
    place.run(words).ended(0);
    place.run(&[]).ended(0);
    assert_eq!(
        (place.ids("a"), place.ids("b")),
        (vec!["1".into(), "2".into()], vec!["1".into(), "2".into()])
    );
    place.verb(&["recopy", "--table", "b"]).ended(0);
    place.verb(&["run", "--until", "verified"]).ended(0);
    assert_eq!(place.ids("b"), ["1", "2", "3"]);
}

/// Found by trying: what was wrong with one table kept all from starting, and leaving it out did not help.
#[test]
fn what_is_wrong_with_a_table_that_is_left_out_stands_in_nobodys_way() {
    let place = Place::open();
    sqlite(&place.folder.path().join("new.db"), "ALTER TABLE b DROP COLUMN v");
    place.source("INSERT INTO a VALUES (2, 'a')");
    place.run(&[]).failed(3, "TG0023 target-differs: table b has no column v", &[]);
    place.verb(&["skip", "--table", "b"]).ended(0);
    place.run(&[]).ended(0);
    assert_eq!(place.ids("a"), ["1", "2"]);
    let plan = crate::tidegate(&["plan", "--from", &place.from, "--to", &place.to, "--name", NAME]).ended(0);
    assert!(plan.out.contains("stopped or left out: b;"), "{}", plan.out);
}

/// Found by trying: what differs in one table was not said because another one had stopped.
#[test]
fn what_was_found_is_said_beside_a_table_that_stopped() {
    let place = Place::open();
    place.source("ALTER TABLE b RENAME COLUMN v TO w");
    sqlite(&place.folder.path().join("new.db"), "UPDATE a SET v = 'planted' WHERE id = 1");
    let run = place.verb(&["run", "--until", "verified"]);
    let run = run.failed(1, "TG0051 schema-changed: table b stopped", &[]);
    for said in ["different: a id=1 v", "not compared: b stopped", "next: tidegate migrate recopy --table a"]
    {
        assert!(run.out.contains(said), "{said:?} is not in: {}", run.out);
    }
}

/// Found by trying: a table that was left out before the next run began was copied anew nevertheless.
#[test]
fn the_last_wish_counts() {
    let place = Place::open();
    place.source("INSERT INTO b VALUES (2, 'b')");
    place.verb(&["recopy", "--table", "b"]).ended(0);
    place.verb(&["skip", "--table", "b"]).ended(0);
    place.run(&[]).ended(0);
    assert_eq!(place.ids("b"), ["1"]);
    place.verb(&["skip", "--table", "b"]).ended(0);
    place.verb(&["recopy", "--table", "b"]).ended(0);
    place.run(&[]).ended(0);
    assert_eq!(place.ids("b"), ["1", "2"]);
}

/// Found by trying: rows that were moved by one filter and changes by another made a mixture, in silence.
#[test]
fn rows_that_were_moved_are_not_filtered_or_computed_otherwise_later() {
    let (folder, from, to) = shop(SHOP);
    let place = Place { folder, from, to };
    let file = place.folder.path().join("map.toml");
    let map = |filter: &str| {
        let computed = "compute = { twice = { type = \"int64\", value = \"row.id * 2\" } }";
        std::fs::write(&file, format!("[[map]]\ntable = \"a\"\nfilter = \"{filter}\"\n{computed}\n"))
            .unwrap();
    };
    let words = ["--transform", file.to_str().unwrap()];
    map("row.id < 10");
    place.run(&words).ended(0);
    place.run(&words).ended(0);
    place.source("INSERT INTO a VALUES (5, 'a'), (20, 'a')");
    map("row.id > 10");
    let other =
        "TG0003 mapping-invalid: the rows of table a were moved by another filter or other computed columns";
    place.run(&words).failed(2, other, &["nothing was changed", "tidegate migrate recopy --table a"]);
    place.verb(&["recopy", "--table", "a"]).ended(0);
    for _ in 0..2 {
        place.run(&words).ended(0);
        assert_eq!(place.ids("a"), ["20"]);
    }
}

/// Found by trying: without the filter that they were moved by, rows that were left out on purpose were called missing.
#[rstest]
#[case::filtered("filter = \"row.id > 1\"")]
#[case::computed("compute = { twice = { type = \"int64\", value = \"row.id * 2\" } }")]
#[case::computed_anew("compute = { v = { type = \"text\", value = \"row.v + '!'\" } }")]
fn both_sides_are_compared_by_the_mapping_that_the_rows_were_moved_by(#[case] said: &str) {
    let (folder, from, to) = shop(SHOP);
    let place = Place { folder, from, to };
    let file = place.folder.path().join("map.toml");
    let words = ["--transform", file.to_str().unwrap()];
    std::fs::write(&file, format!("[[map]]\ntable = \"a\"\n{said}\n")).unwrap();
    place.run(&words).ended(0);
    let verify = |words: &[&str]| place.verb(&[&["verify"], words].concat());
    let other =
        "TG0003 mapping-invalid: the rows of table a were moved by another filter or other computed columns";
    for answer in [verify(&[]), place.run(&[])] {
        answer.failed(2, other, &["nothing was changed", "-c FILE", "table: a"]);
    }
    verify(&["--table", "b"]).ended(0);
    verify(&words).ended(0);
    std::fs::write(&file, "[[map]]\ntable = \"a\"\nfilter = \"row.id > 2\"\n").unwrap();
    verify(&words).failed(2, other, &["nothing was changed"]);
}

/// What is said of another table, or of columns alone, makes no other rows.
#[test]
fn a_mapping_that_makes_no_other_rows_may_come_later() {
    let place = Place::open();
    let file = place.folder.path().join("map.toml");
    std::fs::write(&file, "[[map]]\ntable = \"b\"\nto = \"b\"\n").unwrap();
    place.source("INSERT INTO a VALUES (2, 'a'); INSERT INTO b VALUES (2, 'b')");
    for words in [&["--transform", file.to_str().unwrap()][..], &[]] {
        place.run(words).ended(0);
    }
    place.verb(&["run", "--until", "verified"]).ended(0);
}

/// Found by trying: a comparison of one table was shown as one of all, and a pause of one table as none.
#[test]
fn the_status_says_what_was_compared_and_what_is_paused() {
    let place = Place::open();
    place.verb(&["verify", "--table", "a", "--table", "a"]).ended(0);
    let status = place.verb(&["status"]).ended(0);
    assert!(status.out.contains("verified: 1 rows equal, in 1 of 2 tables"), "{}", status.out);
    place.verb(&["verify"]).ended(0);
    let status = place.verb(&["status"]).ended(0);
    assert!(status.out.contains("verified: 2 rows equal\n"), "{}", status.out);
    place.verb(&["pause", "--table", "b"]).ended(0);
    let _runner = Runner::start(&place.from, &place.to, &["--name", NAME]);
    wait(NAME, &place.from, &place.to, |status| status["throttle"] == "paused on request: b");
}
