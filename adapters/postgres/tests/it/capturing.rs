//! What the feed makes of what happens.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::{Catalog, ChangeFeed, Selection, Store};
use tidegate_core::{Cell, Changes, FlowName, Op, Position, Row, Shape};

use crate::{Session, database, drop_database, run, url_of};

struct Bench {
    store: Arc<dyn Store>,
    session: Session,
    catalog: Arc<dyn Catalog>,
    flow: FlowName,
    shapes: Vec<Shape>,
    from: Position,
}

async fn bench(name: &str, tables: &str) -> Bench {
    let (store, session) = database(name).await;
    session.batch_execute(tables).await.unwrap();
    let catalog = store.catalog().await.unwrap();
    let (tables, obstacles) = catalog.describe(&Selection::All).await.unwrap();
    assert!(obstacles.is_empty(), "{obstacles:?}");
    let shapes: Vec<_> = tables
        .into_iter()
        .map(|table| Shape { codec: catalog.codec(&table), table: Arc::new(table) })
        .collect();
    let flow = FlowName::new(name).unwrap();
    let tables: Vec<_> = shapes.iter().map(|shape| Arc::clone(&shape.table)).collect();
    let from = catalog.capture(&flow, &tables).await.unwrap();
    Bench { store, session, catalog, flow, shapes, from }
}

impl Bench {
    async fn feed(&self) -> Box<dyn ChangeFeed> {
        self.feed_from(&self.from).await
    }

    async fn feed_from(&self, from: &Position) -> Box<dyn ChangeFeed> {
        let tables: Vec<_> = self.shapes.iter().map(|shape| Arc::clone(&shape.table)).collect();
        let identity = self.catalog.identity().await.unwrap();
        self.store.change_feed(&self.flow, &tables, &identity, from).await.unwrap()
    }

    async fn now(&self) -> Position {
        self.store.crawler().await.unwrap().as_of().await.unwrap().barrier
    }

    /// Reads up to now and writes each change as one short line.
    async fn lines(&self, feed: &mut Box<dyn ChangeFeed>) -> Vec<String> {
        let want = self.now().await;
        let mut lines = Vec::new();
        let mut at = Position::default();
        while at < want {
            let mut changes = Changes::new();
            let next = feed.next(Some(&want), &mut changes);
            let progress = tokio::time::timeout(Duration::from_secs(10), next).await.unwrap().unwrap();
            assert!(progress.position >= at);
            at = progress.position;
            for transaction in changes.transactions() {
                for change in changes.of(transaction) {
                    let shape = &self.shapes[change.table];
                    let row = change.row.map_or_else(String::new, |row| format!(" {}", show(shape, row)));
                    let key = change
                        .old_key
                        .map_or_else(String::new, |key| format!(" was {}", shape.show_key(key)));
                    lines.push(format!("{:?} {}{row}{key}", change.op, shape.table.name.name).to_lowercase());
                }
                // A transaction may come in pieces, as the network has it.
                if transaction.ends {
                    lines.push("end".to_owned());
                }
            }
        }
        lines
    }

    async fn end(self, feed: Box<dyn ChangeFeed>) {
        feed.close().await.unwrap();
        self.catalog.clean(&self.flow).await.unwrap();
        drop_database(self.session).await;
    }
}

fn show(shape: &Shape, row: Row<'_>) -> String {
    let cells = row.cells().enumerate().map(|(at, cell)| match cell {
        Cell::Null => "-".to_owned(),
        Cell::Unchanged => "u".to_owned(),
        Cell::Bytes(_) => shape.value(at, cell).unwrap().unwrap().to_string().chars().take(8).collect(),
    });
    cells.collect::<Vec<_>>().join(",")
}

#[tokio::test]
async fn every_kind_of_change_comes_as_it_is() {
    let bench = bench(
        "it_feed",
        "CREATE TABLE t (id int, gone int, note text, blob text, twice int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id));
         ALTER TABLE t DROP COLUMN gone; ALTER TABLE t ALTER blob SET STORAGE EXTERNAL;
         CREATE TABLE whole (id int PRIMARY KEY, note text, blob text); ALTER TABLE whole ALTER blob SET STORAGE EXTERNAL;
         ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
         CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200)",
    )
    .await;
    let mut feed = bench.feed().await;
    run(
        &bench.session,
        [
            "INSERT INTO t VALUES (1, NULL, repeat('x', 5000)); UPDATE t SET note = 'a'",
            "UPDATE t SET id = 2",
            "BEGIN; DELETE FROM t; SAVEPOINT s; INSERT INTO t VALUES (8); ROLLBACK TO s; INSERT INTO t VALUES (9); COMMIT",
            "BEGIN; DELETE FROM t; ROLLBACK",
            "TRUNCATE t, whole",
            "INSERT INTO whole VALUES (3, 'c', repeat('y', 5000)); UPDATE whole SET note = 'd'; UPDATE whole SET id = 4; DELETE FROM whole",
            "INSERT INTO parts VALUES (1, 'p'); UPDATE parts SET id = 150; UPDATE parts SET v = 'q'",
        ],
    )
    .await;
    assert_eq!(
        bench.lines(&mut feed).await,
        [
            "insert t 1,-,xxxxxxxx",
            "update t 1,a,u",
            "end",
            "update t 2,a,u was id=1",
            "end",
            "delete t was id=2",
            "insert t 9,-,-",
            "end",
            "truncate t",
            "truncate whole",
            "end",
            "insert whole 3,c,yyyyyyyy",
            "update whole 3,d,yyyyyyyy",
            "update whole 4,d,yyyyyyyy was id=3",
            "delete whole was id=4",
            "end",
            "insert parts 1,p",
            "delete parts was id=1",
            "insert parts 150,p",
            "update parts 150,q",
            "end",
        ]
    );
    bench.end(feed).await;
}

/// Nothing is forgotten that was not acknowledged, and what was is not sent again.
#[tokio::test]
async fn it_goes_on_where_it_was_told_to() {
    let bench = bench("it_feed_resume", "CREATE TABLE t (id int PRIMARY KEY)").await;
    run(&bench.session, ["INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)"]).await;
    let mut feed = bench.feed().await;
    assert_eq!(bench.lines(&mut feed).await, ["insert t 1", "end", "insert t 2", "end"]);
    feed.close().await.unwrap();
    let mut feed = bench.feed().await;
    assert_eq!(bench.lines(&mut feed).await, ["insert t 1", "end", "insert t 2", "end"]);
    let upto = bench.now().await;
    feed.acknowledge(&upto).await.unwrap();
    feed.close().await.unwrap();
    run(&bench.session, ["INSERT INTO t VALUES (3)"]).await;
    let mut feed = bench.feed_from(&upto).await;
    assert_eq!(bench.lines(&mut feed).await, ["insert t 3", "end"]);

    run(&bench.session, ["ALTER TABLE t ADD COLUMN v text", "INSERT INTO t VALUES (4)"]).await;
    let mut changes = Changes::new();
    let error = loop {
        match feed.next(None, &mut changes).await {
            Ok(_) => assert!(changes.is_empty()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), code::SCHEMA_CHANGED, "{error:?}");
    assert!(error.context().contains(&("table".into(), "public.t".to_owned())), "{error:?}");
    bench.end(feed).await;
}

impl Bench {
    async fn describe_anew(&mut self) {
        let (tables, _) = self.catalog.describe(&Selection::All).await.unwrap();
        let shape = |table| Shape { codec: self.catalog.codec(&table), table: Arc::new(table) };
        self.shapes = tables.into_iter().map(shape).collect();
    }

    async fn failure(&self, feed: &mut Box<dyn ChangeFeed>) -> tidegate_core::Error {
        let mut changes = Changes::new();
        let begin = tokio::time::Instant::now();
        loop {
            assert!(begin.elapsed() < Duration::from_secs(10), "the feed goes on");
            let next = feed.next(None, &mut changes);
            match tokio::time::timeout(Duration::from_secs(10), next).await.unwrap() {
                Ok(_) => assert!(changes.is_empty()),
                Err(error) => break error,
            }
        }
    }
}

/// What is delivered again from before a column has null there. A column that is gone is none that was not there yet.
#[tokio::test]
async fn rows_from_before_a_column_have_null_there() {
    let mut bench = bench("it_feed_column", "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    run(
        &bench.session,
        [
            "INSERT INTO t VALUES (1, 'a')",
            "ALTER TABLE t ADD COLUMN late int",
            "UPDATE t SET late = 7",
            "ALTER TABLE t ADD COLUMN later text",
            "INSERT INTO t VALUES (2, 'b', 8, 'x')",
        ],
    )
    .await;
    bench.describe_anew().await;
    assert!(bench.shapes[0].table.columns[2].is_null_before());
    let mut feed = bench.feed().await;
    assert_eq!(
        bench.lines(&mut feed).await,
        ["insert t 1,a,-,-", "end", "update t 1,a,7,-", "end", "insert t 2,b,8,x", "end"]
    );
    feed.close().await.unwrap();
    run(&bench.session, ["ALTER TABLE t DROP COLUMN later", "INSERT INTO t VALUES (3, 'c', 9)"]).await;
    let mut feed = bench.feed_from(&bench.now().await).await;
    run(&bench.session, ["INSERT INTO t VALUES (4, 'd', 9)"]).await;
    let error = bench.failure(&mut feed).await;
    assert_eq!((error.code(), error.message()), (code::SCHEMA_CHANGED, "a column is gone"), "{error:?}");
    feed.close().await.unwrap();

    // With a default, rows from before had something else than null.
    let from = bench.now().await;
    run(&bench.session, ["INSERT INTO t VALUES (5, 'e', 9)", "ALTER TABLE t ADD COLUMN d int DEFAULT 1"])
        .await;
    bench.describe_anew().await;
    assert!(bench.shapes[0].table.columns[3].has_default);
    let mut feed = bench.feed_from(&from).await;
    assert_eq!(bench.failure(&mut feed).await.code(), code::SCHEMA_CHANGED);
    bench.end(feed).await;
}

/// What goes on when a table joins is not sent wholly: it has to be seen by whoever reads the table.
#[tokio::test]
async fn a_table_joins_when_what_goes_on_is_seen() {
    let bench =
        bench("it_feed_join", "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
            .await;
    let tables: Vec<_> = bench.shapes.iter().map(|shape| Arc::clone(&shape.table)).collect();
    bench.catalog.capture(&bench.flow, &tables[..1]).await.unwrap();
    let session = Session::connect(&url_of("it_feed_join")).await;
    run(&session, ["BEGIN", "INSERT INTO b VALUES (1)"]).await;
    for _ in 0..2 {
        // Also when the first one was killed while it waited.
        let joining = bench.catalog.capture(&bench.flow, &tables);
        assert!(tokio::time::timeout(Duration::from_millis(500), joining).await.is_err());
    }
    run(&session, ["COMMIT"]).await;
    bench.catalog.capture(&bench.flow, &tables).await.unwrap();
    run(&session, ["BEGIN", "INSERT INTO b VALUES (2)"]).await;
    bench.catalog.capture(&bench.flow, &tables).await.unwrap();
    run(&session, ["ROLLBACK"]).await;
    drop(session);
    let feed = bench.feed().await;
    bench.end(feed).await;
}

/// A transaction that is sent before its end has changed nothing until then.
#[tokio::test]
async fn a_change_of_a_table_counts_when_it_is_committed() {
    let bench = bench("it_feed_alter", "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    run(&bench.session, ["ALTER DATABASE it_feed_alter SET logical_decoding_work_mem = '64kB'"]).await;
    let mut feed = bench.feed().await;
    let fill = |from: i32| {
        format!(
            "INSERT INTO t SELECT n, repeat('v', 600), 1 FROM generate_series({from}, {}) n",
            from + 5_000
        )
    };
    run(&bench.session, ["BEGIN", "ALTER TABLE t ADD COLUMN late int", &fill(1), "ROLLBACK"]).await;
    run(&bench.session, ["INSERT INTO t VALUES (0, 'a')"]).await;
    assert_eq!(bench.lines(&mut feed).await, ["insert t 0,a", "end"]);
    run(&bench.session, ["BEGIN", "ALTER TABLE t ADD COLUMN late int", &fill(1)]).await;
    let mut changes = Changes::new();
    for _ in 0..3 {
        feed.next(None, &mut changes).await.unwrap();
        assert!(changes.is_empty());
    }
    run(&bench.session, ["COMMIT"]).await;
    assert_eq!(bench.failure(&mut feed).await.code(), code::SCHEMA_CHANGED);
    bench.end(feed).await;
}

/// Found by reading: a change of a table that was taken back with its savepoint ended the run when the rest was committed.
#[tokio::test]
async fn a_change_of_a_table_is_gone_with_its_savepoint() {
    let bench = bench("it_feed_savepoint", "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    run(&bench.session, ["ALTER DATABASE it_feed_savepoint SET logical_decoding_work_mem = '64kB'"]).await;
    let observer = Session::connect(&url_of("it_feed_savepoint")).await;
    let streams = async || {
        let sql = "SELECT max(stream_count) FROM pg_stat_replication_slots s
            JOIN pg_replication_slots USING (slot_name) WHERE database = current_database()";
        observer.query_one(sql, &[]).await.unwrap().get::<_, Option<i64>>(0).unwrap_or_default()
    };
    // What is taken back before it was sent never is.
    let fill = async |from: i32| {
        let (before, begin) = (streams().await, tokio::time::Instant::now());
        let rows = format!("generate_series({from}, {}) n", from + 299);
        let insert = format!("INSERT INTO t (id, v) SELECT n, repeat('v', 600) FROM {rows}");
        run(&bench.session, [insert]).await;
        while streams().await == before {
            assert!(begin.elapsed() < Duration::from_secs(30), "nothing was streamed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut feed = bench.feed().await;
    run(&bench.session, ["BEGIN", "SAVEPOINT s", "ALTER TABLE t ADD COLUMN never int"]).await;
    fill(1).await;
    run(&bench.session, ["ROLLBACK TO s"]).await;
    // The server describes the table anew.
    fill(1_001).await;
    run(&bench.session, ["COMMIT", "INSERT INTO t VALUES (0, 'a')"]).await;
    let lines = bench.lines(&mut feed).await;
    assert_eq!((lines.len(), lines[0].as_str()), (303, "insert t 1001,vvvvvvvv"));
    assert_eq!(lines[300..], ["end", "insert t 0,a", "end"]);
    bench.end(feed).await;
}

/// An open transaction keeps the end of the log from the server's sender; the feed writes a record of its own then.
#[tokio::test]
async fn the_position_rises_over_an_idle_source() {
    let bench = bench("it_feed_idle", "CREATE TABLE t (id int PRIMARY KEY)").await;
    let mut feed = bench.feed().await;
    run(&bench.session, ["BEGIN", "INSERT INTO t SELECT generate_series(1, 200)"]).await;
    let begin = tokio::time::Instant::now();
    for _ in 0..3 {
        assert!(bench.lines(&mut feed).await.is_empty());
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    run(&bench.session, ["ROLLBACK"]).await;
    bench.end(feed).await;
}

/// A transaction larger than the server's memory comes before its end; what it took back does not.
#[tokio::test]
async fn a_large_transaction_comes_in_pieces_without_what_it_took_back() {
    let bench = bench("it_feed_large", "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let settings = |value| format!("ALTER SYSTEM SET logical_decoding_work_mem = '{value}'");
    run(&bench.session, [&settings("64kB"), "SELECT pg_reload_conf()"]).await;
    let mut feed = bench.feed().await;
    let fill = |from: i32, to: i32| {
        format!("INSERT INTO t SELECT n, repeat('v', 600) FROM generate_series({from}, {to}) n")
    };
    run(
        &bench.session,
        [
            "BEGIN".to_owned(),
            fill(1, 20_000),
            "SAVEPOINT s".to_owned(),
            fill(100_001, 110_000),
            "ROLLBACK TO s".to_owned(),
            "SAVEPOINT r".to_owned(),
            fill(20_001, 40_000),
            "RELEASE r".to_owned(),
            "DELETE FROM t WHERE id <= 10".to_owned(),
        ],
    )
    .await;
    let session = Session::connect(&url_of("it_feed_large")).await;
    run(&session, ["INSERT INTO t VALUES (999999, 'between')"]).await;
    run(&bench.session, ["COMMIT", "INSERT INTO t VALUES (999998, 'after')"]).await;
    let want = bench.now().await;
    let mut ids = Vec::new();
    let mut pieces = 0;
    let mut marks = Vec::new();
    loop {
        let mut changes = Changes::new();
        let progress = feed.next(Some(&want), &mut changes).await.unwrap();
        for transaction in changes.transactions() {
            pieces += usize::from(!transaction.ends);
            marks.push(transaction.mark);
            for change in changes.of(transaction) {
                let row = if change.op == Op::Delete { change.old_key } else { change.row };
                let Cell::Bytes(id) = row.unwrap().cell(0) else { panic!("an id") };
                ids.push((change.op, i32::from_be_bytes(id.try_into().unwrap())));
            }
        }
        if progress.position >= want {
            break;
        }
    }
    run(&bench.session, ["ALTER SYSTEM RESET logical_decoding_work_mem", "SELECT pg_reload_conf()"]).await;
    marks.dedup();
    assert_eq!(marks.len(), 3);
    assert!(pieces >= 3, "{pieces}");
    assert_eq!(ids[0], (Op::Insert, 999_999));
    assert_eq!(*ids.last().unwrap(), (Op::Insert, 999_998));
    let inserted: Vec<i32> = ids.iter().filter(|(op, _)| *op == Op::Insert).map(|(_, id)| *id).collect();
    assert_eq!(inserted[1..40_001], (1..=40_000).collect::<Vec<_>>());
    assert_eq!(inserted.len(), 40_002);
    assert_eq!(ids.iter().filter(|(op, _)| *op == Op::Delete).count(), 10);
    bench.end(feed).await;
}

#[tokio::test]
async fn a_seal_is_replaced_if_it_is_still_the_one_that_was() {
    let bench = bench("it_feed_seal", "CREATE TABLE t (id int PRIMARY KEY)").await;
    let (catalog, other) = (bench.catalog.as_ref(), FlowName::new("it_feed_seal_other").unwrap());
    assert_eq!(catalog.sealed(&bench.flow).await.unwrap(), None);
    for (was, seal, then) in [
        (None, "a", "a"),
        (None, "b", "a"),
        (Some("b"), "c", "a"),
        (Some("a"), "it's", "it's"),
        (Some("it's"), "d", "d"),
    ] {
        assert_eq!(catalog.seal(&bench.flow, was, seal).await.unwrap(), seal == then);
        assert_eq!(catalog.sealed(&bench.flow).await.unwrap().as_deref(), Some(then));
    }
    assert!(!catalog.seal(&other, None, "z").await.unwrap());
    assert_eq!(catalog.sealed(&other).await.unwrap(), None, "it is not captured");
    // Two at once: one of them.
    let both =
        tokio::join!(catalog.seal(&bench.flow, Some("d"), "e"), catalog.seal(&bench.flow, Some("d"), "f"));
    assert_ne!(both.0.unwrap(), both.1.unwrap());
    let one = catalog.sealed(&bench.flow).await.unwrap().unwrap();
    catalog.seal(&bench.flow, Some("d"), "g").await.unwrap();
    assert_eq!(catalog.sealed(&bench.flow).await.unwrap(), Some(one));
    catalog.clean(&bench.flow).await.unwrap();
    assert_eq!(bench.session.query("SELECT FROM pg_publication", &[]).await.unwrap().len(), 0);
    drop_database(bench.session).await;
}

/// Found by trying: what the publication leaves out was lost, or null, and a dropped one left words that helped nobody.
#[tokio::test]
async fn a_publication_that_is_changed_by_hand_is_noticed_while_running_and_afterwards() {
    for (what, named_table) in [
        ("ALTER PUBLICATION p SET TABLE ONLY t WHERE (id > 1), ONLY u", Some("public.t")),
        ("ALTER PUBLICATION p SET TABLE ONLY t (id), ONLY u", Some("public.t")),
        ("ALTER PUBLICATION p DROP TABLE u", Some("public.u")),
        ("ALTER PUBLICATION p DROP TABLE u; ALTER PUBLICATION p ADD TABLE ONLY u", Some("public.u")),
        ("ALTER PUBLICATION p SET (publish = 'insert')", None),
        ("DROP PUBLICATION p", None),
    ] {
        let tables = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)";
        let bench = bench("it_feed_altered", tables).await;
        let mut feed = bench.feed().await;
        run(&bench.session, ["INSERT INTO t VALUES (1, 'a')"]).await;
        assert_eq!(bench.lines(&mut feed).await, ["insert t 1,a", "end"]);
        let altered = what.replace("PUBLICATION p", "PUBLICATION tidegate_it_feed_altered");
        run(&bench.session, altered.split(';')).await;
        let found = |error: tidegate_core::Error| {
            assert_eq!(error.code(), code::SLOT_LOST, "{what}: {error:?}");
            let table = error.context().iter().find(|(name, _)| *name == "table").map(|(_, is)| is.clone());
            assert_eq!(table.as_deref(), named_table, "{what}");
        };
        found(bench.failure(&mut feed).await);
        let _ = feed.close().await;
        let tables: Vec<_> = bench.shapes.iter().map(|shape| Arc::clone(&shape.table)).collect();
        let identity = bench.catalog.identity().await.unwrap();
        found(bench.store.change_feed(&bench.flow, &tables, &identity, &bench.from).await.err().unwrap());
        if !what.starts_with("DROP") {
            found(bench.catalog.capture(&bench.flow, &tables).await.unwrap_err());
        }
        bench.catalog.clean(&bench.flow).await.unwrap();
        drop_database(bench.session).await;
    }
}

/// Found by trying: each run made a slot, stopped since it began too late, and left it there to hold the log.
#[tokio::test]
async fn a_slot_that_was_dropped_by_hand_is_not_made_again() {
    let bench = bench("it_feed_dropped", "CREATE TABLE t (id int PRIMARY KEY)").await;
    let (catalog, flow) = (bench.catalog.as_ref(), &bench.flow);
    let tables: Vec<_> = bench.shapes.iter().map(|shape| Arc::clone(&shape.table)).collect();
    let drop_slot = ["SELECT pg_drop_replication_slot('tidegate_it_feed_dropped')"];
    let count = async |what: &str| {
        let sql = format!("SELECT count(*) FROM {what} LIKE 'tidegate_it_feed_dropped'");
        bench.session.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    let slots = async || count("pg_replication_slots WHERE slot_name").await;

    // Before the seal, nobody has read from it: one that is not there is the rest of a beginning.
    run(&bench.session, drop_slot).await;
    catalog.capture(flow, &tables).await.unwrap();
    assert_eq!(slots().await, 1);

    assert!(catalog.seal(flow, None, "a").await.unwrap());
    catalog.capture(flow, &tables).await.unwrap();
    run(&bench.session, drop_slot).await;
    for _ in 0..2 {
        let error = catalog.capture(flow, &tables).await.unwrap_err();
        assert_eq!((error.code(), slots().await), (code::SLOT_LOST, 0), "{error:?}");
    }
    // A copy has a slot of its own making, and is refused by its identity.
    let comment =
        "COMMENT ON PUBLICATION tidegate_it_feed_dropped IS 'tidegate publishes 1 of postgres:1/1/1'";
    run(&bench.session, [comment]).await;
    catalog.capture(flow, &tables).await.unwrap();
    assert_eq!(slots().await, 1);

    run(&bench.session, ["DROP PUBLICATION tidegate_it_feed_dropped"]).await;
    assert_eq!(catalog.capture(flow, &tables).await.unwrap_err().code(), code::SLOT_LOST);
    assert_eq!(count("pg_publication WHERE pubname").await, 0);

    catalog.clean(flow).await.unwrap();
    catalog.capture(flow, &tables).await.unwrap();
    assert_eq!(slots().await, 1, "it begins anew");
    catalog.clean(flow).await.unwrap();
    drop_database(bench.session).await;
}

/// Found by trying: the values of two columns changed places without a word.
#[tokio::test]
async fn columns_that_exchange_their_names_are_noticed_while_running() {
    for is_renamed in [true, false] {
        let bench = bench("it_feed_exchanged", "CREATE TABLE t (id int PRIMARY KEY, a int, b int)").await;
        let mut feed = bench.feed().await;
        run(&bench.session, ["INSERT INTO t VALUES (1, 2, 3)"]).await;
        assert_eq!(bench.lines(&mut feed).await, ["insert t 1,2,3", "end"]);
        // Two exchange their names; one that is made anew is another one too.
        let change = if is_renamed {
            "ALTER TABLE t RENAME a TO c; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME c TO b"
        } else {
            "ALTER TABLE t DROP COLUMN a; ALTER TABLE t ADD COLUMN a int"
        };
        bench.session.batch_execute(&format!("{change}; UPDATE t SET b = 5")).await.unwrap();
        let error = bench.failure(&mut feed).await;
        assert_eq!(error.code(), code::SCHEMA_CHANGED, "{error:?}");
        let _ = feed.close().await;
        bench.catalog.clean(&bench.flow).await.unwrap();
        drop_database(bench.session).await;
    }
}

/// What the page about operating says of statements that leave no change behind: where it is not so any more, it is to
/// be changed.
#[tokio::test]
async fn some_statements_change_rows_and_are_not_told() {
    let bench = bench(
        "it_feed_untold",
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM (10) TO (20);
         CREATE TABLE p_3 PARTITION OF p FOR VALUES FROM (20) TO (30);
         CREATE TABLE t (id int PRIMARY KEY, v text, w text)",
    )
    .await;
    run(
        &bench.session,
        ["INSERT INTO p SELECT i, 'a' FROM generate_series(1, 25) i", "INSERT INTO t VALUES (1, 'a', 'b')"],
    )
    .await;
    let mut feed = bench.feed_from(&bench.now().await).await;
    bench.lines(&mut feed).await;
    run(
        &bench.session,
        [
            "TRUNCATE p_1",
            "ALTER TABLE p DETACH PARTITION p_2",
            "DROP TABLE p_3",
            "ALTER TABLE p ATTACH PARTITION p_2 FOR VALUES FROM (10) TO (20)",
            "ALTER TABLE t ALTER v TYPE text USING v || '!'",
            "ALTER TABLE t DROP COLUMN w; ALTER TABLE t ADD COLUMN w text",
        ],
    )
    .await;
    assert!(bench.lines(&mut feed).await.is_empty());
    run(
        &bench.session,
        [
            "CREATE TABLE p_4 PARTITION OF p FOR VALUES FROM (40) TO (50); INSERT INTO p VALUES (40, 'b')",
            "UPDATE t SET w = 'c'",
            "TRUNCATE p",
        ],
    )
    .await;
    assert_eq!(
        bench.lines(&mut feed).await,
        ["insert p 40,b", "end", "update t 1,a!,c", "end", "truncate p", "end"]
    );
    bench.end(feed).await;
}
