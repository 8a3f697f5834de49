//! Reading by key.

use tidegate_core::error::code;
use tidegate_core::port::{KeyRange, Limit};
use tidegate_core::{Key, Position, RowWriter, Rows, Value};

use crate::file::{File, shown};

fn key(values: &[Value<'_>]) -> Key {
    let mut frame = Vec::new();
    let mut writer = RowWriter::new(&mut frame);
    values.iter().for_each(|value| writer.value(value));
    writer.finish();
    Key(frame.into())
}

/// Reads a whole table through `split`, and returns its rows and how many ranges there were.
async fn crawl(file: &File, table: &str, parts: usize, rows: usize) -> (Vec<String>, usize) {
    let by_rows = crawl_by(file, table, parts, Limit::rows(rows)).await;
    // The row that reaches the limit of bytes is the last one.
    let by_bytes = crawl_by(file, table, parts, Limit { rows, bytes: 1 }).await;
    assert_eq!(by_bytes, by_rows);
    by_rows
}

async fn crawl_by(file: &File, table: &str, parts: usize, limit: Limit) -> (Vec<String>, usize) {
    let table = file.table(table).await;
    let mut crawler = file.store.crawler().await.unwrap();
    let ranges = crawler.split(&table, parts).await.unwrap();
    let mut seen = Vec::new();
    for range in &ranges {
        let mut rest = range.clone();
        loop {
            let mut out = Rows::new();
            let chunk = crawler.read(&table, &rest, limit, &mut out).await.unwrap();
            assert!(out.len() <= if limit.bytes == 1 { 1 } else { limit.rows });
            seen.extend(shown(&out));
            let Some(next) = chunk.next else { break };
            rest.after = Some(next);
        }
    }
    (seen, ranges.len())
}

const NUMBERS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)";

#[tokio::test]
async fn ranges_cover_every_kind_of_key_once_and_in_order() {
    for (schema, insert, order) in [
        ("CREATE TABLE t(k INTEGER PRIMARY KEY)", "i FROM n", "k"),
        ("CREATE TABLE t(k INTEGER PRIMARY KEY)", "i * i * i - 500000 FROM n", "k"),
        (
            "CREATE TABLE t(k INTEGER PRIMARY KEY)",
            "CASE WHEN i < 500 THEN -9223372036854775807 + i ELSE 9223372036854775807 - i END FROM n",
            "k",
        ),
        ("CREATE TABLE t(k TEXT PRIMARY KEY)", "hex(i * 7919 % 1000) || i FROM n", "k"),
        ("CREATE TABLE t(k TEXT PRIMARY KEY) WITHOUT ROWID", "hex(i * 7919 % 1000) || i FROM n", "k"),
        (
            "CREATE TABLE t(k TEXT COLLATE NOCASE PRIMARY KEY)",
            "CASE i % 2 WHEN 0 THEN 'a' ELSE 'B' END || i FROM n",
            "k",
        ),
        (
            "CREATE TABLE t(k TEXT NOT NULL); CREATE UNIQUE INDEX tk ON t(k COLLATE NOCASE DESC)",
            "CASE i % 2 WHEN 0 THEN 'a' ELSE 'B' END || i FROM n",
            "k COLLATE NOCASE",
        ),
        (
            "CREATE TABLE t(k PRIMARY KEY)",
            "CASE i % 4 WHEN 0 THEN i WHEN 1 THEN CAST(i AS TEXT) WHEN 2 THEN CAST(i AS BLOB) ELSE i + 0.5 END FROM n",
            "k",
        ),
        ("CREATE TABLE t(a INT, b TEXT, PRIMARY KEY (b, a))", "i % 7, 'x' || (i % 200) FROM n", "b, a"),
        (
            "CREATE TABLE t(k INTEGER PRIMARY KEY, n DEFAULT 5, low DEFAULT 9, high, id)",
            "i, i, i, i, i FROM n",
            "k",
        ),
        ("CREATE TABLE t(rowid TEXT PRIMARY KEY)", "'r' || i FROM n", "t.\"rowid\""),
    ] {
        let mut file = File::with(schema).await;
        file.exec(&format!("{NUMBERS} INSERT OR IGNORE INTO t SELECT {insert}")).await;
        let table = file.table("t").await;
        let mut crawler = file.store.crawler().await.unwrap();
        let mut all = Rows::new();
        crawler.read(&table, &KeyRange::default(), Limit::rows(10_000), &mut all).await.unwrap();
        let text = format!(
            "SELECT group_concat(hex(x), ',') FROM (SELECT {} AS x FROM t ORDER BY {order})",
            order.split(',').next().unwrap()
        );
        let expected: String =
            sqlx::query_scalar(sqlx::AssertSqlSafe(text)).fetch_one(&mut file.app).await.unwrap();
        assert_eq!(all.len(), expected.split(',').count(), "{schema}");
        for (parts, rows) in [(1, 10_000), (1, 7), (4, 64), (16, 1)] {
            let (seen, ranges) = crawl(&file, "t", parts, rows).await;
            assert_eq!(seen, shown(&all), "{schema} in {parts} parts");
            assert!(ranges <= parts && ranges * 2 >= parts, "{schema}: {ranges} ranges");
        }
    }
}

#[tokio::test]
async fn the_last_bound_is_frozen_and_an_empty_table_has_one_range() {
    let mut file = File::with("CREATE TABLE t(k INTEGER PRIMARY KEY)").await;
    assert_eq!(crawl(&file, "t", 4, 10).await, (vec![], 1));
    file.exec("INSERT INTO t VALUES (1), (2)").await;
    let table = file.table("t").await;
    let mut crawler = file.store.crawler().await.unwrap();
    let ranges = crawler.split(&table, 1).await.unwrap();
    file.exec("INSERT INTO t VALUES (3)").await;
    let mut out = Rows::new();
    crawler.read(&table, &ranges[0], Limit::rows(10), &mut out).await.unwrap();
    assert_eq!(shown(&out), ["1", "2"]);
}

#[tokio::test]
async fn a_chunk_says_what_it_shows() {
    let mut file = File::with("CREATE TABLE t(k INTEGER PRIMARY KEY, v)").await;
    let table = file.table("t").await;
    let mut crawler = file.store.crawler().await.unwrap();
    assert_eq!(crawler.as_of().await.unwrap().barrier, Position::from_u64(0), "nothing is captured yet");
    let mut feed = file.feed().await;
    file.exec("INSERT INTO t VALUES (1, 'a'); INSERT INTO t VALUES (2, 'b')").await;
    let mut out = Rows::new();
    let chunk = crawler.read(&table, &KeyRange::default(), Limit::rows(10), &mut out).await.unwrap();
    assert_eq!((chunk.as_of.barrier.clone(), chunk.as_of.upper), (Position::from_u64(2), 3));
    assert!(chunk.as_of.shows(2) && !chunk.as_of.shows(3));
    feed.all().await;
    assert!(feed.position >= chunk.as_of.barrier, "an idle source passes its barrier");
    out.clear();
    let keys = [key(&[Value::Int(2)]), key(&[Value::Int(9)]), key(&[Value::Text("2".into())])];
    let as_of = crawler.fetch(&table, &keys[..2], &mut out).await.unwrap();
    assert_eq!((shown(&out), as_of), (vec!["2,'b'".to_owned()], chunk.as_of));
}

/// A quoted name that SQLite does not know would be read as a text.
#[tokio::test]
async fn a_table_that_changed_is_an_error_and_never_fewer_or_other_values() {
    let mut file =
        File::with("CREATE TABLE t(k INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'a')").await;
    let table = file.table("t").await;
    let mut crawler = file.store.crawler().await.unwrap();
    let mut out = Rows::new();
    file.exec("ALTER TABLE t RENAME COLUMN v TO w").await;
    let error = crawler.read(&table, &KeyRange::default(), Limit::rows(10), &mut out).await.unwrap_err();
    assert_eq!(error.code(), code::SCHEMA_CHANGED);
    assert!(error.context().contains(&("table".into(), "t".to_owned())));
    file.exec("DROP TABLE t").await;
    let error = crawler.read(&table, &KeyRange::default(), Limit::rows(10), &mut out).await.unwrap_err();
    assert_eq!(error.code(), code::TABLE_MISSING);
}

#[tokio::test]
async fn text_that_is_not_utf_8_is_named() {
    let mut file = File::with("CREATE TABLE t(k INTEGER PRIMARY KEY, v TEXT)").await;
    file.exec("INSERT INTO t VALUES (1, CAST(x'ff' AS TEXT))").await;
    let table = file.table("t").await;
    let mut crawler = file.store.crawler().await.unwrap();
    let error =
        crawler.read(&table, &KeyRange::default(), Limit::rows(10), &mut Rows::new()).await.unwrap_err();
    assert_eq!(error.code(), code::VALUE_UNFIT);
    assert!(error.context().contains(&("column".into(), "v".to_owned())));
}
