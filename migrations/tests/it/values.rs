//! The value matrix: every base type of PostgreSQL with hostile values, through each pair. A type arrives exactly, or is
//! refused by name: by the plan, or at the row that does not fit. Never as something else.

use std::collections::{BTreeMap, BTreeSet};

use crate::pairs::{abort, psql};
use crate::tidegate;

/// A type, and its values as SQL.
type Values = (&'static str, &'static [&'static str]);

/// The base types, by their name in the catalog.
const TYPES: &[Values] = &[
    ("bool", &["true", "false"]),
    ("bytea", &["''", "'\\x00ff'", "decode(repeat('ab', 5000), 'hex')"]),
    ("char", &["'a'", "''", "-1", "-128", "92"]),
    ("name", &["'x'", "repeat('n', 63)"]),
    ("int8", &["0", "-9223372036854775808", "9223372036854775807"]),
    ("int2", &["-32768", "32767"]),
    ("int4", &["-2147483648", "2147483647"]),
    ("text", &["''", "' '", "E'tab\\tline\\n\"quote\\''", "'žluťoučký 🦀'", "repeat('x', 9000)"]),
    ("oid", &["0", "4294967295"]),
    ("json", &["'{\"b\": 1, \"a\": 1.50, \"b\": 2}'", "'[1e400, null]'", "'\"x\"'"]),
    ("jsonb", &["'{\"b\": 1, \"a\": [1.50, null, \"é\"]}'", "'{}'", "'1'"]),
    ("xml", &["'<a b=\"c\">d</a>'"]),
    ("point", &["'(1.5,-2)'"]),
    ("lseg", &["'[(0,0),(1,1)]'"]),
    ("path", &["'((0,0),(1,1))'"]),
    ("box", &["'(1,1),(0,0)'"]),
    ("polygon", &["'((0,0),(1,1),(1,0))'"]),
    ("line", &["'{1,2,3}'"]),
    ("circle", &["'<(0,0),1>'"]),
    ("float4", &["'NaN'", "'-Infinity'", "'-0'", "0.1", "3.4028235e38"]),
    ("float8", &["'NaN'", "'Infinity'", "'-0'", "0.1", "5e-324", "1.7976931348623157e308"]),
    ("float8_plain", &["0.1", "5e-324", "-1e300"]),
    ("money", &["'12.34'", "'-92233720368547758.08'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("inet", &["'10.1.2.3/8'", "'::1'"]),
    ("cidr", &["'10.0.0.0/8'"]),
    ("bpchar", &["'ab  '", "''"]),
    ("varchar", &["'v'", "repeat('é', 300)"]),
    ("date", &["'1970-01-01'", "'0044-03-15 BC'", "'5874897-12-31'", "'infinity'", "'-infinity'"]),
    ("time", &["'00:00'", "'24:00:00'", "'23:59:59.999999'"]),
    (
        "timestamp",
        &["'2024-02-29 23:59:60'", "'0044-03-15 BC'", "'294276-12-31 23:59:59.999999'", "'infinity'"],
    ),
    ("timestamptz", &["'2024-10-27 02:30:00 Europe/Prague'", "'1970-01-01 00:00:00.000001Z'", "'-infinity'"]),
    ("interval", &["'1 mon -1 day 00:00:00.000001'", "'-178000000 years'"]),
    ("timetz", &["'23:59:59.999999+15:59'", "'00:00-12'"]),
    ("bit", &["B'1'"]),
    ("varbit", &["B''", "B'10101'"]),
    ("numeric", &["'NaN'", "'1.10'", "'-0.00'", "repeat('9', 200)::numeric", "'1e-100'"]),
    ("numeric_plain", &["1.10", "-0.5", "12345678901234567890.123456789"]),
    ("uuid", &["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"]),
    ("pg_lsn", &["'16/B374D848'"]),
    ("tsvector", &["'a:1 fat:2'"]),
    ("tsquery", &["'fat & rat'"]),
    ("jsonpath", &["'$.a[*]'"]),
    ("txid_snapshot", &["'10:20:10,14'"]),
    ("pg_snapshot", &["'10:20:10,14'"]),
    ("xid8", &["'18446744073709551615'"]),
    ("xid", &["'4294967295'"]),
    ("cid", &["'1'"]),
    ("tid", &["'(0,1)'"]),
    ("int2vector", &["'1 2'"]),
    ("oidvector", &["'1 2'"]),
    ("regclass", &["'pg_class'"]),
    ("regtype", &["'int4'"]),
    ("regproc", &["'now'"]),
    ("regprocedure", &["'now()'"]),
    ("regoper", &["'||/'"]),
    ("regoperator", &["'+(int4,int4)'"]),
    ("regrole", &["'pg_monitor'"]),
    ("regnamespace", &["'pg_catalog'"]),
    ("regcollation", &["'\"C\"'"]),
    ("regconfig", &["'simple'"]),
    ("regdictionary", &["'simple'"]),
    ("refcursor", &["'c'"]),
];

/// Base types that no column of a user has: the catalog's own statistics and rights.
const OF_THE_CATALOG: &[&str] = &[
    "aclitem",
    "gtsvector",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
];

fn table(kind: &str) -> String {
    format!("v_{kind}")
}

/// The rows of a query of a PostgreSQL database, as text.
pub(crate) fn query(url: &str, sql: &str) -> Vec<String> {
    let output = std::process::Command::new("psql")
        .args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set",
            "ON_ERROR_STOP=1",
            "--dbname",
            url,
        ])
        .args(["--command", sql])
        .output()
        .unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// A database with a table a type.
async fn source() -> Option<String> {
    let server = tidegate_services::postgres::shared().await?;
    let url = server.create_database("values").await.unwrap();
    tokio::task::block_in_place(|| {
        let all = query(
            &url,
            "SELECT typname FROM pg_type WHERE typtype = 'b' AND typcategory <> 'A' AND typnamespace = 'pg_catalog'::regnamespace",
        );
        let known: BTreeSet<&str> =
            TYPES.iter().map(|(kind, _)| *kind).chain(OF_THE_CATALOG.iter().copied()).collect();
        let left: Vec<_> = all.iter().filter(|kind| !known.contains(kind.as_str())).collect();
        assert!(left.is_empty(), "the matrix lacks {left:?}");
        let mut script = String::new();
        for (kind, values) in TYPES {
            let native = match *kind {
                "float8_plain" => "float8",
                "numeric_plain" => "numeric",
                "char" => "\"char\"",
                "bpchar" => "char(4)",
                "bit" => "bit(1)",
                other => other,
            };
            let table = table(kind);
            script += &format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, v {native}); INSERT INTO {table} VALUES (0, NULL);"
            );
            for (at, value) in values.iter().enumerate() {
                script += &format!("INSERT INTO {table} VALUES ({}, ({value})::{native});", at + 1);
            }
        }
        psql(&url, &script);
    });
    Some(url)
}

/// What became of each type: `exact`, `refused` by the plan, or `stopped` at a row. Everything that was moved is
/// compared by the program, and must be equal.
fn moved(name: &str, from: &str, to: &str) -> BTreeMap<String, &'static str> {
    let ends = ["--from", from, "--to", to, "--name", name];
    let plan = tidegate(&[&["--json", "plan"], &ends[..]].concat()).json();
    let refused: BTreeSet<String> = plan["refusals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|refusal| {
            assert_eq!(refusal["name"], "type-refused", "{refusal}");
            assert!(refusal["column"] == "v" && refusal["hint"].is_string(), "{refusal}");
            refusal["table"].as_str().unwrap().trim_start_matches("public.").to_owned()
        })
        .collect();
    let mut outcome = BTreeMap::new();
    let mut words: Vec<String> =
        ["--json", "migrate", "run", "--until", "verified"].map(str::to_owned).into();
    words.extend(ends.map(str::to_owned));
    for (kind, _) in TYPES {
        if refused.contains(&table(kind)) {
            outcome.insert((*kind).to_owned(), "refused");
        } else {
            words.extend(["--table".to_owned(), table(kind)]);
        }
    }
    let mut stopped = BTreeSet::new();
    loop {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = tidegate(&words);
        if answer.status == 0 {
            break;
        }
        let before = stopped.len();
        let status = tidegate(&[&["--json", "migrate", "status"], &ends[..]].concat()).ended(0).json();
        for table in status["tables"].as_array().unwrap() {
            if table["state"] == "failed" {
                let error = table["error"].as_str().unwrap();
                assert!(error.contains("TG0050 value-unfit") && error.contains("column: v"), "{error}");
                stopped.insert(table["source"].as_str().unwrap().trim_start_matches("public.").to_owned());
            }
        }
        assert!(stopped.len() > before, "{answer:?}");
        // What stopped is left out; the rest has to be equal.
        let names: Vec<_> = stopped.iter().flat_map(|table| ["--table", table.as_str()]).collect();
        tidegate(&[&["migrate", "skip"], &ends[..], &names[..]].concat()).ended(0);
    }
    for (kind, _) in TYPES {
        let what = if stopped.contains(&table(kind)) { "stopped" } else { "exact" };
        outcome.entry((*kind).to_owned()).or_insert(what);
    }
    outcome
}

fn of(outcome: &BTreeMap<String, &'static str>, wanted: &str) -> Vec<String> {
    outcome.iter().filter(|(_, what)| **what == wanted).map(|(kind, _)| kind.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_exactly_in_postgres() {
    let Some(from) = source().await else { return };
    let server = tidegate_services::postgres::shared().await.unwrap();
    let to = server.create_database("values").await.unwrap();
    tokio::task::block_in_place(|| {
        let outcome = moved("values_postgres", &from, &to);
        // Found by trying: numbers of objects were carried as they are, and named others, or none, in the target.
        let is_number_of_here = |kind: &str| kind.starts_with("reg");
        for (kind, what) in &outcome {
            assert_eq!(*what, if is_number_of_here(kind) { "refused" } else { "exact" }, "{kind}");
        }
        for (kind, values) in TYPES.iter().filter(|(kind, _)| !is_number_of_here(kind)) {
            let sql = format!("SELECT id, v::text FROM {} ORDER BY id", table(kind));
            let expected = query(&from, &sql);
            assert!(expected.len() > values.len());
            assert_eq!(expected, query(&to, &sql), "{kind}");
        }
        abort("values_postgres", &from, &to);
    });
}

/// Found by reading: a target that has a column as another type, which the plan accepts, was different in every row.
#[tokio::test(flavor = "multi_thread")]
async fn values_are_proved_in_columns_of_wider_types() {
    // A type, that of the target, a value, and another one in the target.
    const WIDER: [[&str; 4]; 25] = [
        ["smallint", "integer", "-1", "1"],
        ["integer", "bigint", "2147483647", "2147483648"],
        ["bigint", "numeric", "-9223372036854775808", "-9223372036854775808.0"],
        ["integer", "numeric(10)", "100", "101"],
        ["integer[]", "numeric[]", "{{1,NULL},{3,4}}", "{{1,NULL},{3,4.5}}"],
        ["smallint[]", "bigint[]", "{1,2}", "{1,3}"],
        ["real", "double precision", "0.1", "0.1"],
        ["real[]", "double precision[]", "{0.1,-0}", "{0.1,0}"],
        ["numeric(10,2)", "numeric", "1.10", "1.1"],
        ["numeric(10,2)", "hundredths", "1.10", "1.11"],
        ["json", "text", "{\"b\": 1, \"b\":1}", "{\"b\": 1}"],
        ["jsonb", "text", "[1.50, null]", "[1.50,null]"],
        ["jsonb", "json", "[1.50, null]", "[1.50,null]"],
        ["text", "json", "[1.50,  null]", "[1.50, null]"],
        ["text", "citext", "Aa", "aA"],
        ["json[]", "text[]", "{1,2}", "{1,\" 2\"}"],
        ["name", "text", "n", "m"],
        ["character(5)", "text", "ab", "ab"],
        ["character(5)", "bpchar", "ab", "ac"],
        ["character(4)", "padded", "ab", "ac"],
        ["varchar(9)", "text", "v", "w"],
        ["text[]", "varchar[]", "{a,NULL}", "{a,\"NULL\"}"],
        ["timestamp(0)", "timestamp(3)", "2024-02-29 23:59:59", "2024-02-29 23:59:59.001"],
        ["time(2)", "time", "23:59:59.99", "23:59:59.991"],
        ["interval(0)", "interval", "1 day", "24:00:00"],
    ];
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let from = server.create_database("wider").await.unwrap();
    let to = server.create_database("wider").await.unwrap();
    let columns = |at: usize, value: bool| {
        let columns = WIDER.iter().enumerate();
        let columns =
            columns.map(
                |(n, one)| if value { format!(", '{}'", one[at]) } else { format!(", c{n:02} {}", one[at]) },
            );
        columns.collect::<String>()
    };
    tokio::task::block_in_place(|| {
        let rows = format!("INSERT INTO t VALUES (1 {}); INSERT INTO t VALUES (2)", columns(2, true));
        psql(&from, &format!("CREATE TABLE t (id int PRIMARY KEY {}); {rows}", columns(0, false)));
        let made = format!("CREATE TABLE t (id numeric PRIMARY KEY {})", columns(1, false));
        let domains = "CREATE DOMAIN padded AS character(4); CREATE DOMAIN hundredths AS numeric(10,2)";
        psql(&to, &format!("CREATE EXTENSION citext; {domains}; {made}"));
        let ends = ["--from", &from, "--to", &to, "--name", "wider"];
        tidegate(&[&["migrate", "run", "--until", "verified"], &ends[..]].concat()).ended(0);
        psql(&to, &format!("DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (1 {})", columns(3, true)));
        let report = tidegate(&[&["--json", "migrate", "verify"], &ends[..]].concat()).json();
        assert_eq!(report["different"], 1, "{report}");
        let found: Vec<_> =
            report["rows"][0]["columns"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
        let planted: Vec<_> = (0..WIDER.len()).map(|n| format!("c{n:02}")).collect();
        assert_eq!(found, planted);
        abort("wider", &from, &to);
    });
}

/// Found by trying: what a database made of its own types arrived, and was called different in every row, or passed the
/// plan and stopped at the first row: the numbers of types are in such values, and others in each database.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_hold_numbers_of_their_own_database_are_refused_by_the_plan() {
    const MADE: &str = "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE DOMAIN word AS text;
        CREATE DOMAIN age AS int; CREATE DOMAIN years AS age; CREATE DOMAIN ages AS int[];
        CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN humour AS mood; CREATE TYPE pair AS (a int, b text);
        CREATE DOMAIN couple AS pair; CREATE TYPE lists AS (a int[]); CREATE TYPE deep AS (a int, m mood);
        CREATE TYPE far AS (a pair); CREATE TYPE aged AS (a age); CREATE TYPE named AS (a regclass);
        CREATE TYPE span AS RANGE (subtype = float8); CREATE TYPE odd AS RANGE (subtype = deep)";
    // A type, a value, and whether it is carried.
    const OWN: [(&str, &str, bool); 24] = [
        ("word[]", "{a}", true),
        ("mood[]", "{{sad,NULL}}", true),
        ("humour[]", "{ok}", true),
        ("citext[]", "{a}", true),
        ("ages", "{1,2}", true),
        ("couple", "(1,a)", true),
        ("lists", "({1})", true),
        ("span", "[1,2)", true),
        ("span_multirange", "{[1,2)}", true),
        ("hstore", "a=>1", true),
        ("point[]", "{\"(1,2)\"}", true),
        ("interval[]", "{1 day}", true),
        ("int4range[]", "{\"[1,2)\"}", true),
        ("age[]", "{1}", false),
        ("years[]", "{1}", false),
        ("pair[]", "{\"(1,a)\"}", false),
        ("couple[]", "{\"(1,a)\"}", false),
        ("deep", "(1,ok)", false),
        ("far", "(\"(1,a)\")", false),
        ("aged", "(3)", false),
        ("named", "(pg_class)", false),
        ("span[]", "{\"[1,2)\"}", false),
        ("odd", "[\"(1,ok)\",\"(2,ok)\"]", false),
        ("hstore[]", "{\"a=>1\"}", false),
    ];
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let from = server.create_database("own").await.unwrap();
    let to = server.create_database("own").await.unwrap();
    tokio::task::block_in_place(|| {
        psql(&to, "CREATE TYPE another AS (i int)");
        psql(&to, MADE);
        let columns = OWN.iter().map(|(kind, ..)| format!(", \"{kind}\" {kind}")).collect::<String>();
        let values = OWN.iter().map(|(_, value, _)| format!(", '{value}'")).collect::<String>();
        psql(&from, MADE);
        psql(
            &from,
            &format!("CREATE TABLE t (id int PRIMARY KEY{columns}); INSERT INTO t VALUES (1{values})"),
        );
        let ends = ["--from", &from, "--to", &to, "--name", "own"];
        let plan = tidegate(&[&["--json", "plan"], &ends[..]].concat()).json();
        let refused = plan["refusals"].as_array().unwrap().iter().map(|refusal| {
            assert_eq!(refusal["name"], "type-refused", "{refusal}");
            refusal["column"].as_str().unwrap()
        });
        let refused: BTreeSet<_> = refused.collect();
        for (kind, _, is_carried) in OWN {
            assert_eq!(!refused.contains(kind), is_carried, "{kind}");
            if !is_carried {
                psql(&from, &format!("ALTER TABLE t DROP COLUMN \"{kind}\""));
            }
        }
        tidegate(&[&["migrate", "run", "--until", "verified"], &ends[..]].concat()).ended(0);
        assert_eq!(query(&from, "SELECT * FROM t"), query(&to, "SELECT * FROM t"));
        abort("own", &from, &to);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_exactly_in_sqlite_or_is_refused_by_name() {
    let Some(from) = source().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let to = format!("sqlite:{}", folder.path().join("new.db").display());
    tokio::task::block_in_place(|| {
        let outcome = moved("values_sqlite", &from, &to);
        abort("values_sqlite", &from, &to);
        let stopped = ["float4", "float8", "int2vector", "oidvector", "timestamp"];
        assert_eq!(of(&outcome, "stopped"), stopped, "{outcome:?}");
        for kind in
            ["bool", "bytea", "int8", "text", "date", "timestamptz", "numeric", "uuid", "json", "time"]
        {
            assert_eq!(outcome[kind], "exact", "{kind}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_exactly_in_mongodb_or_is_refused_by_name() {
    let Some(from) = source().await else { return };
    let Some(documents) = tidegate_services::mongodb::shared().await else { return };
    let to = documents.database("values");
    tokio::task::block_in_place(|| {
        let outcome = moved("values_mongodb", &from, &to);
        abort("values_mongodb", &from, &to);
        for kind in ["timestamp", "timestamptz", "time", "interval", "xml"] {
            assert_eq!(outcome[kind], "refused", "{kind}");
        }
        for kind in ["bool", "bytea", "int8", "text", "float8", "numeric_plain", "uuid", "jsonb"] {
            assert_eq!(outcome[kind], "exact", "{kind}");
        }
        for kind in ["numeric", "int2vector", "oidvector"] {
            assert_eq!(outcome[kind], "stopped", "{kind}");
        }
    });
}

/// Found by trying: bytes in a text column of SQLite, which may have any, became the text of their digits. As a key that is
/// another row.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_a_text_column_are_not_taken_for_text() {
    let mut targets = Vec::new();
    if let Some(server) = tidegate_services::postgres::shared().await {
        targets.push(server.create_database("strange").await.unwrap());
    }
    if let Some(server) = tidegate_services::mongodb::shared().await {
        targets.push(server.database("strange"));
    }
    for to in targets {
        for (table, row) in [("keys", "(x'31', 'b')"), ("texts", "('2', x'4142')")] {
            let made = format!("CREATE TABLE {table} (k TEXT PRIMARY KEY NOT NULL, v TEXT)");
            tokio::task::block_in_place(|| {
                let (folder, from, _) =
                    crate::shop(&format!("{made}; INSERT INTO {table} VALUES ('31', 'a')"));
                let run = || {
                    let words = ["migrate", "run", "--until", "caught-up", "--from", &from, "--to", &to];
                    tidegate(&[&words[..], &["--name", table]].concat())
                };
                run().ended(0);
                crate::sqlite(&folder.path().join("shop.db"), &format!("INSERT INTO {table} VALUES {row}"));
                let stopped = format!("TG0050 value-unfit: table {table} stopped");
                run().failed(1, &stopped, &["the text column of the source has bytes in it"]);
                abort(table, &from, &to);
            });
        }
    }
}

/// Found by reading: a conversion of a type whose values only PostgreSQL knows passed the plan, and stopped at the first
/// row.
#[tokio::test(flavor = "multi_thread")]
async fn a_conversion_of_what_has_no_text_here_is_refused_by_the_plan() {
    const OPAQUE: [(&str, &str); 13] = [
        ("point", "(1,2)"),
        ("int4range", "[1,2)"),
        ("int4multirange", "{[1,2)}"),
        ("public.pair", "(1,x)"),
        ("public.hstore", "a=>1"),
        ("public.ltree", "a.b"),
        ("tsvector", "a"),
        ("jsonpath", "$.a"),
        ("pg_lsn", "1/2"),
        ("xid8", "7"),
        ("interval[]", "{1 day}"),
        ("point[]", "{}"),
        ("span", "[1,2)"),
    ];
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let from = server.create_database("opaque").await.unwrap();
    let into = server.create_database("opaque").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", folder.path().join("new.db").display());
    tokio::task::block_in_place(|| {
        let columns = OPAQUE.iter().enumerate().map(|(at, (kind, _))| format!(", c{at} {kind}"));
        let values = OPAQUE.iter().map(|(_, value)| format!(", '{value}'"));
        psql(
            &from,
            &format!(
                "CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE TYPE pair AS (a int, b text);
                 DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET quote_all_identifiers = on', current_database()); END $$;
                 CREATE DOMAIN span AS int4range; CREATE TABLE t (id int PRIMARY KEY, i interval{});
                 INSERT INTO t VALUES (1, '1 day'{})",
                columns.collect::<String>(),
                values.collect::<String>()
            ),
        );
        let kinds = OPAQUE.iter().map(|(kind, _)| *kind).filter(|kind| *kind != "span").chain(["interval"]);
        let conversions: Vec<String> =
            kinds.flat_map(|kind| ["--convert".to_owned(), format!("{kind}=string")]).collect();
        for to in [&file, &into] {
            let words = ["--json", "plan", "--from", &from, "--to", to, "--name", "opaque"];
            for conversions in [&conversions[..], &[]] {
                if conversions.is_empty() && to == &into {
                    continue;
                }
                let conversions = conversions.iter().map(String::as_str);
                let plan = tidegate(&words.into_iter().chain(conversions.clone()).collect::<Vec<_>>()).json();
                let refusals = plan["refusals"].as_array().unwrap();
                let is_converted = conversions.count() > 0;
                assert_eq!(refusals.len(), OPAQUE.len() + usize::from(!is_converted), "{refusals:?}");
                for refusal in refusals {
                    assert_eq!(refusal["name"], "type-refused", "{refusal}");
                    // Only what a conversion would help is offered one.
                    let has_text = refusal["column"] == "i";
                    assert_eq!(
                        refusal["hint"].as_str().unwrap().contains("--convert"),
                        has_text,
                        "{refusal}"
                    );
                }
            }
        }
    });
}
