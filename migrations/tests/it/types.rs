//! The book's page of types: what the plan says of each, through each pair.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::pairs::psql;
use crate::tidegate;

/// Types of PostgreSQL: the matrix of values has the base types, and here are those a table is made with.
const POSTGRES: &[&str] = &[
    "boolean",
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "numeric(12,2)",
    "numeric(40,2)",
    "real",
    "double precision",
    "money",
    "text",
    "varchar(9)",
    "character(4)",
    "name",
    "\"char\"",
    "citext",
    "bytea",
    "uuid",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
    "json",
    "jsonb",
    "xml",
    "hstore",
    "inet",
    "cidr",
    "macaddr",
    "bit(8)",
    "varbit",
    "mood",
    "word",
    "age",
    "pair",
    "int4range",
    "int4multirange",
    "integer[]",
    "text[]",
    "timestamptz[]",
    "mood[]",
    "pair[]",
    "point",
    "tsvector",
    "pg_lsn",
    "oid",
    "regclass",
];

/// What has to be made before a table can have them.
const MADE: &str = "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN word AS text; CREATE DOMAIN age AS int; CREATE TYPE pair AS (a int, b text);";

/// What columns of SQLite are declared as.
const SQLITE: &[&str] = &[
    "INTEGER",
    "BIGINT",
    "REAL",
    "DOUBLE",
    "TEXT",
    "VARCHAR(9)",
    "BLOB",
    "NUMERIC",
    "DECIMAL(12,2)",
    "BOOLEAN",
    "DATE",
    "DATETIME",
    "JSON",
    "",
];

fn quoted(kind: &str) -> String {
    if kind.is_empty() { "none".to_owned() } else { format!("`{kind}`") }
}

/// What the plan says of each column `v` of the tables `t0`, `t1`, …
fn planned(from: &str, to: &str) -> BTreeMap<String, String> {
    let plan = tidegate(&["--json", "plan", "--from", from, "--to", to, "--name", "types"]).json();
    let mut said = BTreeMap::new();
    for table in plan["tables"].as_array().unwrap() {
        let column =
            table["columns"].as_array().unwrap().iter().find(|column| column["name"] == "v").unwrap();
        let target = quoted(column["target"].as_str().unwrap());
        let note = column["note"].as_str().map_or_else(String::new, |note| format!(" ({note})"));
        said.insert(table["source"].as_str().unwrap().to_owned(), target + &note);
    }
    for refusal in plan["refusals"].as_array().unwrap() {
        assert_eq!(
            (&refusal["name"], &refusal["column"]),
            (&"type-refused".into(), &"v".into()),
            "{refusal}"
        );
        let hint = refusal["hint"].as_str().unwrap();
        let forms: Vec<_> = ["date", "json", "string"]
            .into_iter()
            .filter(|form| {
                hint.split_whitespace()
                    .any(|word| word.trim_end_matches([',', ';', '"', '\'']).ends_with(&format!("={form}")))
            })
            .collect();
        let way = if forms.is_empty() {
            String::new()
        } else {
            format!(" without a conversion to {}", forms.join(" or "))
        };
        said.insert(refusal["table"].as_str().unwrap().to_owned(), format!("refused{way}"));
    }
    said
}

/// A table of the page: a type a row, a target a column.
fn rows(types: &[&str], schema: &str, from: &str, targets: &[&str]) -> String {
    let said: Vec<_> = targets.iter().map(|to| planned(from, to)).collect();
    let mut text = String::new();
    for (at, kind) in types.iter().enumerate() {
        let cells = said.iter().map(|said| format!(" {} |", said[&format!("{schema}t{at}")]));
        writeln!(text, "| {} |{}", quoted(kind), cells.collect::<String>()).unwrap();
    }
    text
}

fn tables(types: &[&str]) -> String {
    let table = |(at, kind)| format!("CREATE TABLE t{at} (id INTEGER PRIMARY KEY, v {kind});");
    types.iter().enumerate().map(table).collect()
}

/// The page is written anew with `TIDEGATE_WRITE_PAGES=1`.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_types_says_what_the_plan_says() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let Some(documents) = tidegate_services::mongodb::shared().await else { return };
    let from = server.create_database("types").await.unwrap();
    let target = server.create_database("types").await.unwrap();
    let documents = documents.database("types");
    tokio::task::block_in_place(|| {
        psql(&from, &(MADE.to_owned() + &tables(POSTGRES)));
        psql(&target, MADE);
        let (folder, file, new) = crate::shop(&tables(SQLITE));
        let targets = [&target, &documents, &new].map(String::as_str);
        let of_postgres = rows(POSTGRES, "public.", &from, &targets);
        let of_sqlite = rows(SQLITE, "", &file, &targets);
        drop(folder);
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/types.md");
        // The page's own words stay: only the rows of its tables are the plan's.
        let is_row = |line: &&str| line.starts_with('|') && !line.starts_with("|---");
        let mut tables = [of_postgres, of_sqlite].into_iter();
        let (mut expected, mut is_in_table) = (String::new(), false);
        for line in std::fs::read_to_string(page).unwrap().lines() {
            if !is_in_table || !is_row(&line) {
                writeln!(expected, "{line}").unwrap();
            }
            is_in_table = line.starts_with('|') && (is_in_table || line.starts_with("|---"));
            if line.starts_with("|---") {
                expected += &tables.next().expect("a table of the page that nobody fills");
            }
        }
        if std::env::var_os("TIDEGATE_WRITE_PAGES").is_some() {
            std::fs::write(page, &expected).unwrap();
        }
        assert_eq!(std::fs::read_to_string(page).unwrap(), expected, "write it anew");
    });
}
