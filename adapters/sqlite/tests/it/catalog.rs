//! Tables, keys and types; targets.

use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::{Catalog, Selection};
use tidegate_core::{Column, Endpoint, Table, TableName, Type};

use crate::file::{File, app, exec, name, open};

async fn obstacles(schema: &str) -> Vec<(String, Option<String>)> {
    let file = File::with(schema).await;
    let (_, obstacles) = file.catalog().await.describe(&Selection::All).await.unwrap();
    obstacles.into_iter().map(|o| (o.error.code().name().to_owned(), o.column)).collect()
}

#[tokio::test]
async fn types_follow_affinity_and_keys_are_found() {
    let file = File::with(
        "CREATE TABLE a(id INTEGER PRIMARY KEY, t TEXT, r DOUBLE, b BLOB, d DECIMAL(9,2), x, o BOOLEAN NOT NULL,
                        g AS (id + 1), s AS (t) STORED);
         CREATE TABLE b(p INT, q TEXT COLLATE NOCASE, PRIMARY KEY (q, p)) WITHOUT ROWID;
         CREATE TABLE c(u TEXT NOT NULL, v, UNIQUE(u));
         CREATE TABLE d(k TEXT PRIMARY KEY, a ANY) STRICT;
         CREATE VIEW w AS SELECT * FROM a;",
    )
    .await;
    let a = file.table("a").await;
    let kinds: Vec<_> = a.columns.iter().map(|c| (c.name.as_str(), c.kind.clone(), c.nullable)).collect();
    assert_eq!(
        kinds,
        [
            ("id", Type::Int { bits: 64 }, false),
            ("t", Type::Text, true),
            ("r", Type::Float { bits: 64 }, true),
            ("b", Type::Bytes, true),
            ("d", Type::Any, true),
            ("x", Type::Any, true),
            ("o", Type::Any, false),
        ]
    );
    assert_eq!(a.key, [0]);
    let b = file.table("b").await;
    assert_eq!((b.key.clone(), b.columns[1].native.as_str()), (vec![1, 0], "TEXT COLLATE NOCASE"));
    assert_eq!(file.table("c").await.key, [0]);
    assert_eq!(file.table("d").await.columns[1].native, "", "ANY means a number elsewhere");
    let these = Selection::These(vec![name("A"), name("nope"), name("w")]);
    let (tables, obstacles) = file.catalog().await.describe(&these).await.unwrap();
    assert_eq!(tables[0].name, name("a"), "names are found in any case");
    let codes: Vec<_> = obstacles.iter().map(|o| o.error.code()).collect();
    assert_eq!(codes, [code::TABLE_MISSING, code::CAPABILITY_MISSING]);
}

/// Found by trying: there was no way to select such a table.
#[tokio::test]
async fn a_table_whose_name_has_a_dot_is_found_by_it() {
    let file = File::with(
        "CREATE TABLE \"a.orders\"(id INTEGER PRIMARY KEY); CREATE TABLE orders(id INTEGER PRIMARY KEY);
         CREATE TABLE \"main.lines\"(id INTEGER PRIMARY KEY); CREATE TABLE lines(id INTEGER PRIMARY KEY)",
    )
    .await;
    for (schema, wanted, found) in [
        ("a", "orders", Some("a.orders")),
        ("A", "Orders", Some("a.orders")),
        ("", "a.orders", Some("a.orders")),
        ("", "orders", Some("orders")),
        ("main", "orders", Some("orders")),
        ("main", "lines", Some("main.lines")),
        ("", "lines", Some("lines")),
        ("b", "orders", None),
    ] {
        let these = Selection::These(vec![TableName::new(schema, wanted)]);
        let (tables, obstacles) = file.catalog().await.describe(&these).await.unwrap();
        let names: Vec<_> = tables.into_iter().map(|table| table.name).collect();
        assert_eq!(names, Vec::from_iter(found.map(name)), "{schema} {wanted}");
        let missing = obstacles.iter().map(|o| o.error.code()).collect::<Vec<_>>();
        assert_eq!(missing, if found.is_some() { vec![] } else { vec![code::TABLE_MISSING] });
    }
}

#[tokio::test]
async fn what_stands_in_the_way_is_named() {
    let one = |code: &str, column: Option<&str>| vec![(code.to_owned(), column.map(str::to_owned))];
    assert_eq!(obstacles("CREATE TABLE t(a, b UNIQUE)").await, one("key-missing", None));
    assert_eq!(
        obstacles("CREATE TABLE t(a TEXT NOT NULL); CREATE UNIQUE INDEX i ON t(a) WHERE a > 'x'").await,
        one("key-missing", None)
    );
    assert_eq!(
        obstacles("CREATE TABLE t(a TEXT PRIMARY KEY); INSERT INTO t VALUES (NULL), (NULL)").await,
        one("key-unfit", Some("a"))
    );
    assert_eq!(obstacles("CREATE TABLE t(a TEXT PRIMARY KEY)").await, []);
    assert_eq!(
        obstacles("CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE UNIQUE INDEX i ON t(lower(b))").await,
        one("capability-missing", None)
    );
    for kind in ["VIRTUAL", "STORED"] {
        let schema =
            format!("CREATE TABLE t(a INTEGER PRIMARY KEY, b, g AS (lower(b)) {kind}, UNIQUE(a, g))");
        assert_eq!(obstacles(&schema).await, one("capability-missing", None));
    }
    // In a trigger it would keep programs from writing that do not have the function.
    for (default, expected) in [("mine()", one("capability-missing", None)), ("hex(randomblob(16))", vec![])]
    {
        let schema = format!("CREATE TABLE t(a INTEGER PRIMARY KEY, b NOT NULL DEFAULT ({default}) UNIQUE)");
        assert_eq!(obstacles(&schema).await, expected);
    }
    assert_eq!(obstacles("CREATE VIRTUAL TABLE t USING fts5(a)").await, one("capability-missing", None));
}

#[tokio::test]
async fn describing_changes_nothing() {
    let file = File::with("CREATE TABLE t(id INTEGER PRIMARY KEY)").await;
    let mut app = app(&file.path).await;
    let before: i64 = sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut app).await.unwrap();
    let catalog = file.catalog().await;
    catalog.describe(&Selection::All).await.unwrap();
    assert_eq!(catalog.identity().await.unwrap(), catalog.identity().await.unwrap());
    catalog.inspect(&file.tables().await, true).await.unwrap();
    let after: i64 = sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut app).await.unwrap();
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_missing_file_is_an_error_for_a_source_alone() {
    let file = File::with("CREATE TABLE t(id INTEGER PRIMARY KEY)").await;
    let store = open(&file.folder.path().join("none.db"));
    let catalog = store.catalog().await.unwrap();
    assert_eq!(catalog.describe(&Selection::All).await.unwrap_err().code(), code::URL_INVALID);
    assert_eq!(catalog.identity().await.unwrap_err().code(), code::URL_INVALID);
    assert_eq!(store.crawler().await.err().unwrap().code(), code::URL_INVALID);
    let tables = file.tables().await;
    assert!(catalog.inspect(&tables, false).await.unwrap().is_empty());
    assert!(!file.folder.path().join("none.db").exists(), "looking makes nothing");
    catalog.create(&tables).await.unwrap();
    catalog.create(&tables).await.unwrap();
    assert!(file.folder.path().join("none.db").exists());

    let bad = file.folder.path().join("bad.db");
    std::fs::write(&bad, "this is no database, although it is long enough to be looked at as one").unwrap();
    let error = open(&bad).catalog().await.unwrap().describe(&Selection::All).await.unwrap_err();
    assert_eq!(error.code(), code::URL_INVALID);
    for url in ["sqlite:", "sqlite::memory:"] {
        let error = tidegate_sqlite::open(&Endpoint::parse(url).unwrap()).err().unwrap();
        assert_eq!(error.code(), code::URL_INVALID);
    }
}

#[tokio::test]
async fn a_target_of_another_shape_is_refused() {
    let file = File::with("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").await;
    let tables = file.tables().await;
    for (schema, expected) in [
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)", None),
        ("CREATE TABLE t(v TEXT, id INT NOT NULL UNIQUE)", None),
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, v VARCHAR)", None),
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, v INT)", Some(code::TARGET_DIFFERS)),
        ("CREATE TABLE t(id INTEGER PRIMARY KEY)", Some(code::TARGET_DIFFERS)),
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, w)", Some(code::TARGET_DIFFERS)),
        ("CREATE TABLE t(id INTEGER, v TEXT PRIMARY KEY)", Some(code::TARGET_DIFFERS)),
        (
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'a')",
            Some(code::TARGET_NOT_EMPTY),
        ),
    ] {
        let target = File::with(schema).await;
        let found = target.catalog().await.inspect(&tables, false).await.unwrap();
        assert_eq!(found.first().map(|o| o.error.code()), expected, "{schema}");
        let created = target.catalog().await.create(&tables).await;
        assert_eq!(created.is_err(), expected == Some(code::TARGET_DIFFERS), "{schema}");
    }
}

/// Found by trying: the rows `a` and `A` became one.
#[tokio::test]
async fn a_key_that_is_compared_more_coarsely_than_at_the_source_is_refused() {
    let source = File::with("CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, v TEXT)").await;
    let coarse = File::with("CREATE TABLE t(id TEXT COLLATE NOCASE PRIMARY KEY NOT NULL, v TEXT)").await;
    for (from, schema, is_refused) in [
        (&source, "CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, v TEXT)", false),
        (&source, "CREATE TABLE t(id TEXT COLLATE NOCASE PRIMARY KEY NOT NULL, v TEXT)", true),
        (&source, "CREATE TABLE t(id TEXT COLLATE RTRIM PRIMARY KEY NOT NULL, v TEXT) WITHOUT ROWID", true),
        (
            &source,
            "CREATE TABLE t(id TEXT PRIMARY KEY, v TEXT); CREATE UNIQUE INDEX i ON t(id COLLATE NOCASE)",
            true,
        ),
        (&source, "CREATE TABLE t(id TEXT PRIMARY KEY, v TEXT COLLATE NOCASE UNIQUE)", false),
        (&coarse, "CREATE TABLE t(id TEXT COLLATE nocase PRIMARY KEY NOT NULL, v TEXT)", false),
        (&coarse, "CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, v TEXT)", false),
        (&coarse, "CREATE TABLE t(id TEXT COLLATE RTRIM PRIMARY KEY NOT NULL, v TEXT)", true),
    ] {
        let (tables, target) = (from.tables().await, File::with(schema).await);
        let found = target.catalog().await.inspect(&tables, false).await.unwrap();
        let named: Vec<_> = found.iter().map(|o| (o.error.code(), o.column.as_deref())).collect();
        let expected = is_refused.then_some((code::TARGET_DIFFERS, Some("id")));
        assert_eq!(named, Vec::from_iter(expected), "{schema}");
        assert_eq!(target.catalog().await.create(&tables).await.is_err(), is_refused, "{schema}");
    }
}

/// A table is made with the words of the source, so that values are treated in the same way.
#[tokio::test]
async fn a_created_table_is_described_as_its_source() {
    let file = File::with(
        "CREATE TABLE t(a TEXT COLLATE NOCASE, b NUMERIC NOT NULL, c, d DATETIME, PRIMARY KEY (b, a));
         CREATE TABLE i(id INTEGER PRIMARY KEY, \"x \"\"y\" BLOB)",
    )
    .await;
    let target = open(&file.folder.path().join("target.db"));
    let catalog: Arc<dyn Catalog> = target.catalog().await.unwrap();
    let source = file.tables().await;
    let planned: Vec<Arc<Table>> = source
        .iter()
        .map(|table| {
            let columns = table.columns.iter().map(|column| {
                let fit =
                    catalog.fit(column, tidegate_core::Encoding::CANONICAL, &Default::default()).unwrap();
                Column { native: fit.native, kind: fit.kind, ..column.clone() }
            });
            let (columns, name) = (columns.collect(), catalog.name_for(&table.name));
            Arc::new(Table { columns, name, ..table.as_ref().clone() })
        })
        .collect();
    catalog.create(&planned).await.unwrap();
    let (found, _) = catalog.describe(&Selection::All).await.unwrap();
    let shape = |table: &Table| {
        let columns: Vec<_> = table.columns.iter().map(|c| (c.name.clone(), c.native.clone())).collect();
        (table.name.clone(), columns, table.key.clone())
    };
    assert_eq!(
        found.iter().map(shape).collect::<Vec<_>>(),
        source.iter().map(|t| shape(t)).collect::<Vec<_>>()
    );
    let mut app = app(&file.folder.path().join("target.db")).await;
    exec(&mut app, "INSERT INTO i VALUES (NULL, x'00')").await;
}

#[tokio::test]
async fn a_table_gets_the_columns_that_it_lacks_and_no_other_change() {
    let mut file =
        File::with("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'a')").await;
    let target = open(&file.folder.path().join("target.db"));
    let catalog: Arc<dyn Catalog> = target.catalog().await.unwrap();
    catalog.create(&file.tables().await).await.unwrap();
    let mut app = app(&file.folder.path().join("target.db")).await;
    exec(&mut app, "INSERT INTO t VALUES (1, 'a')").await;
    file.exec(
        "ALTER TABLE t ADD COLUMN \"l\"\"1\" INT; ALTER TABLE t ADD COLUMN d TEXT NOT NULL DEFAULT 'x'",
    )
    .await;
    let tables = file.tables().await;
    let flags: Vec<_> = tables[0].columns.iter().map(|c| (c.nullable, c.has_default)).collect();
    assert_eq!(flags[2..], [(true, false), (false, true)]);
    catalog.extend(&tables).await.unwrap();
    catalog.extend(&tables).await.unwrap();
    let (found, _) = catalog.describe(&Selection::All).await.unwrap();
    let columns: Vec<_> =
        found[0].columns.iter().map(|c| (c.name.as_str(), c.native.as_str(), c.nullable)).collect();
    assert_eq!(columns[2..], [("l\"1", "INT", true), ("d", "TEXT", true)]);
    file.exec("ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN w TEXT").await;
    let error = catalog.extend(&file.tables().await).await.unwrap_err();
    assert_eq!(error.code(), code::TARGET_DIFFERS);
    let (found, _) = catalog.describe(&Selection::All).await.unwrap();
    assert_eq!(found[0].columns.len(), 4, "nothing of it was done");
}
