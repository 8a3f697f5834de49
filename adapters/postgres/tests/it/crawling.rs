//! Chunks by key: every row once, in the order of the key, whatever the key is.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::{Catalog, KeyRange, Limit, Selection};
use tidegate_core::{Endpoint, Key, Rows, Shape, Table, Value};

use crate::{database, drop_database, run};

async fn shape(catalog: &Arc<dyn Catalog>, name: &str) -> Shape {
    let (tables, _) = catalog.describe(&Selection::All).await.unwrap();
    let table: Table = tables.into_iter().find(|table| table.name.name == name).unwrap();
    Shape { codec: catalog.codec(&table), table: Arc::new(table) }
}

const TABLES: &str = r#"
    CREATE TYPE mood AS ENUM ('zero', 'one', 'two');
    CREATE TABLE ints (id int PRIMARY KEY, pad text);
    CREATE TABLE uuids (id uuid PRIMARY KEY, pad text);
    CREATE TABLE texts (id text PRIMARY KEY, pad text);
    CREATE TABLE german (id varchar(40) COLLATE "de-x-icu" PRIMARY KEY, pad text);
    CREATE TABLE bytes (id bytea PRIMARY KEY, pad text);
    CREATE TABLE three (b text, d numeric, a int, t timestamptz, f float8, m mood, pad text,
        PRIMARY KEY (a, b, m, d, t, f));
    CREATE TABLE parts (id int, pad text, PRIMARY KEY (id)) PARTITION BY HASH (id);
    CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE children () INHERITS (ints);
    INSERT INTO children SELECT n, 'child' FROM generate_series(90000, 90100) n;
    INSERT INTO ints SELECT n * 3 - 9000, repeat('p', 700) FROM generate_series(1, 9000) n;
    INSERT INTO uuids SELECT gen_random_uuid(), repeat('p', 700) FROM generate_series(1, 9000) n;
    INSERT INTO texts SELECT chr(34 + n % 90) || '\''' || n || chr(228), repeat('p', 700) FROM generate_series(1, 9000) n;
    INSERT INTO german SELECT chr(65 + n % 60) || n % 100 || chr(196 + n % 40) || n, repeat('p', 700)
        FROM generate_series(1, 9000) n;
    INSERT INTO bytes SELECT decode(md5(n::text), 'hex'), repeat('p', 700) FROM generate_series(1, 9000) n;
    INSERT INTO three SELECT 'k' || n % 11, n / 7.0, n % 5, '2020-01-01'::timestamptz + n * interval '1 hour', n / 3.0,
        (ARRAY['zero','one','two'])[1 + n % 3]::mood, repeat('p', 700) FROM generate_series(1, 9000) n;
    INSERT INTO three VALUES ('k', 'NaN', 1, 'infinity', '-Infinity', 'two', ''), ('k', 1, 1, '0044-03-15 BC', 'NaN', 'two', '');
    INSERT INTO parts SELECT n, repeat('p', 700) FROM generate_series(1, 9000) n;
    ANALYZE"#;

#[tokio::test]
async fn every_row_comes_once_in_the_order_of_any_key() {
    let (store, session) = database("it_crawl").await;
    session.batch_execute(TABLES).await.unwrap();
    let catalog = store.catalog().await.unwrap();
    let mut crawler = store.crawler().await.unwrap();
    for name in ["ints", "uuids", "texts", "german", "bytes", "three", "parts"] {
        let shape = shape(&catalog, name).await;
        let ranges = crawler.split(&shape.table, 4).await.unwrap();
        assert!((2..=4).contains(&ranges.len()), "{name}: {}", ranges.len());
        let mut whole = Rows::new();
        for mut range in ranges {
            loop {
                let mut rows = Rows::new();
                let chunk = crawler.read(&shape.table, &range, Limit::rows(997), &mut rows).await.unwrap();
                rows.iter().for_each(|row| whole.push(row));
                match chunk.next {
                    Some(next) => range.after = Some(next),
                    None => break,
                }
            }
        }
        // The server's own order, in one copy.
        let key: Vec<_> = shape.table.key_columns().map(|column| column.name.clone()).collect();
        let only = if name == "parts" { "" } else { "ONLY" };
        let sql = format!("SELECT t::text FROM {only} {name} t ORDER BY {}", key.join(", "));
        let expected = session.query(&sql, &[]).await.unwrap();
        assert_eq!(whole.len(), expected.len(), "{name}");
        let mut all = Rows::new();
        crawler.read(&shape.table, &KeyRange::default(), Limit::rows(1_000_000), &mut all).await.unwrap();
        assert!(all.bytes() == whole.bytes(), "{name}: chunks are not what one read is");

        // By bytes: the row that reaches the limit is the last one of a chunk, and what was sent behind it is passed over.
        let (mut by_bytes, mut range, mut chunks) = (Rows::new(), KeyRange::default(), 0);
        loop {
            let mut rows = Rows::new();
            let limit = Limit { rows: 1_000_000, bytes: 1 << 20 };
            let chunk = crawler.read(&shape.table, &range, limit, &mut rows).await.unwrap();
            assert!(rows.bytes().len() < 2 << 20, "{name}: {} bytes", rows.bytes().len());
            rows.iter().for_each(|row| by_bytes.push(row));
            chunks += 1;
            let Some(next) = chunk.next else { break };
            range.after = Some(next);
        }
        assert!(chunks > 3, "{name}: {chunks} chunks");
        assert!(by_bytes.bytes() == all.bytes(), "{name}: chunks by bytes are not what one read is");

        let keys: Vec<_> = [0, 5, all.len() - 1].map(|at| shape.cut_key(all.row(at))).into();
        let mut fetched = Rows::new();
        crawler.fetch(&shape.table, &keys, &mut fetched).await.unwrap();
        assert_eq!(fetched.len(), 3, "{name}");

        // Each chunk is a walk along the index, with the settings that the crawler has.
        let settings = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off;
            SET enable_incremental_sort = off";
        session.batch_execute(settings).await.unwrap();
        let columns = key.join(", ");
        let nulls = key.iter().map(|_| "NULL").collect::<Vec<_>>().join(", ");
        let sql = format!(
            "EXPLAIN SELECT * FROM {only} {name} WHERE ({columns}) > (SELECT {columns} FROM {only} {name} LIMIT 1)
             ORDER BY {columns} LIMIT 1000"
        );
        let sql = if key.len() == 1 {
            sql
        } else {
            sql.replace(&format!("(SELECT {columns} FROM {only} {name} LIMIT 1)"), &format!("({nulls})"))
        };
        let lines = session.query(&sql, &[]).await.unwrap();
        let text: Vec<String> = lines.iter().map(|row| row.get(0)).collect();
        let text = text.join("\n");
        assert!(
            !text.contains("Sort  (") && !text.contains("Seq Scan on") || text.contains("One-Time Filter"),
            "{text}"
        );
    }
    drop(crawler);
    drop_database(session).await;
}

#[tokio::test]
async fn a_dropped_or_replaced_table_is_an_error_and_an_empty_one_is_not() {
    let (store, session) = database("it_crawl_gone").await;
    session.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let catalog = store.catalog().await.unwrap();
    let shape = shape(&catalog, "t").await;
    let mut crawler = store.crawler().await.unwrap();
    assert_eq!(crawler.split(&shape.table, 4).await.unwrap(), [KeyRange::default()]);
    let mut rows = Rows::new();
    let chunk = crawler.read(&shape.table, &KeyRange::default(), Limit::rows(10), &mut rows).await.unwrap();
    assert!(rows.is_empty() && chunk.next.is_none());
    assert!(crawler.as_of().await.unwrap().barrier >= chunk.as_of.barrier);

    session.batch_execute("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    for _ in 0..2 {
        let error =
            crawler.read(&shape.table, &KeyRange::default(), Limit::rows(10), &mut rows).await.unwrap_err();
        assert_eq!(error.code(), code::TABLE_MISSING, "{error:?}");
    }
    session.batch_execute("DROP TABLE t").await.unwrap();
    let error =
        crawler.read(&shape.table, &KeyRange::default(), Limit::rows(10), &mut rows).await.unwrap_err();
    assert_eq!(error.code(), code::TABLE_MISSING, "{error:?}");

    session.batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (7)").await.unwrap();
    let shape = crate::crawling::shape(&catalog, "t").await;
    // A call given up leaves the crawler usable.
    let range = KeyRange::default();
    for micros in [0, 100, 300, 1_000] {
        let read = crawler.read(&shape.table, &range, Limit::rows(10), &mut rows);
        let read = tokio::time::timeout(std::time::Duration::from_micros(micros), read).await;
        assert!(micros > 0 || read.is_err(), "it was not given up");
        rows.clear();
    }
    crawler.read(&shape.table, &KeyRange::default(), Limit::rows(10), &mut rows).await.unwrap();
    assert_eq!(shape.value(0, rows.row(0).cell(0)).unwrap(), Some(Value::Int(7)));
    drop(crawler);
    drop_database(session).await;
}

/// The server gives a rewritten table's rows to no snapshot from before the rewriting: one that is taken before the table
/// is held sees an empty table and no error.
#[tokio::test]
async fn a_table_that_is_rewritten_while_a_read_waits_for_it_is_read_whole() {
    let (_, session) = database("it_crawl_rewritten").await;
    let statements = [
        "DROP ROLE IF EXISTS it_reader",
        "CREATE ROLE it_reader LOGIN PASSWORD 'reader'",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
        "CREATE TABLE p_0 PARTITION OF p FOR VALUES FROM (0) TO (51)",
        "CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (51) TO (1000)",
        "INSERT INTO t SELECT n, 'v' FROM generate_series(1, 100) n",
        "INSERT INTO p SELECT n, 'v' FROM generate_series(1, 100) n",
        // No right to a partition: its root's is enough.
        "GRANT SELECT ON t, p TO it_reader",
    ];
    run(&session, statements).await;
    let mut url = url::Url::parse(&crate::url_of("it_crawl_rewritten")).unwrap();
    url.set_username("it_reader").unwrap();
    url.set_password(Some("reader")).unwrap();
    let store = tidegate_postgres::open(&Endpoint::parse(url.as_str()).unwrap()).unwrap();
    let catalog = store.catalog().await.unwrap();
    let mut crawler = store.crawler().await.unwrap();
    let alter = "ALTER v TYPE text USING v || ''";
    for (name, rewrite) in [
        ("t", format!("ALTER TABLE t {alter}")),
        ("p", format!("ALTER TABLE p {alter}")),
        (
            "p",
            "CREATE TEMP TABLE k ON COMMIT DROP AS TABLE p_1; TRUNCATE p_1; INSERT INTO p_1 TABLE k"
                .to_owned(),
        ),
    ] {
        let shape = shape(&catalog, name).await;
        let mut rows = Rows::new();
        crawler.read(&shape.table, &KeyRange::default(), Limit::rows(1_000), &mut rows).await.unwrap();
        let keys: Vec<Key> = rows.iter().map(|row| shape.cut_key(row)).collect();
        for fetches in [false, true] {
            rows.clear();
            session.batch_execute(&format!("BEGIN; {rewrite}")).await.unwrap();
            let reading = async {
                if fetches {
                    crawler.fetch(&shape.table, &keys, &mut rows).await.map(drop).unwrap();
                } else {
                    let range = KeyRange::default();
                    let chunk = crawler.read(&shape.table, &range, Limit::rows(1_000), &mut rows).await;
                    assert_eq!(chunk.unwrap().next, None);
                }
            };
            let committing = async {
                let waiting = "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                    WHERE NOT l.granted AND d.datname = current_database() AND l.locktype = 'relation')";
                while !session.query_one(waiting, &[]).await.unwrap().get::<_, bool>(0) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                session.batch_execute("COMMIT").await.unwrap();
            };
            tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(reading, committing) })
                .await
                .unwrap();
            assert_eq!(rows.len(), 100, "{rewrite}, fetches: {fetches}");
        }
    }
    drop(crawler);
    run(&session, ["DROP OWNED BY it_reader", "DROP ROLE it_reader"]).await;
    drop_database(session).await;
}
