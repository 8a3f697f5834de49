//! The engine from one file to another.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::{Join, Made, MadeColumn, Recipe, Record, Selection, Store, Transform};
use tidegate_core::{Column, Result, Scope, SystemClock, Table, Type, Value};
use tidegate_flow::{Ended, Flow, Gauge, Options, Transformed, Until, Wanted, run_once};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::file::{File, app, ask, dump, exec, flow, name, open, route};

const SCHEMA: &str = "
    CREATE TABLE orders(id INTEGER PRIMARY KEY, ref TEXT UNIQUE, total NUMERIC, note BLOB);
    CREATE TABLE lines(o INT, n INT, what, PRIMARY KEY (o, n)) WITHOUT ROWID;
    CREATE TABLE words(w TEXT COLLATE NOCASE PRIMARY KEY, hits INT);";

const FILL: &str = "
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
    INSERT INTO orders SELECT i, 'r' || i, i * 1.25, randomblob(20) FROM n;
    INSERT INTO lines SELECT id, id % 3, CASE id % 3 WHEN 0 THEN id WHEN 1 THEN 'x' || id ELSE note END FROM orders;
    INSERT INTO words SELECT 'w' || id, id FROM orders WHERE id % 10 = 0;";

async fn flow_of(file: &File, target: &Arc<dyn Store>) -> Flow {
    let tables = file.tables().await;
    target.catalog().await.unwrap().create(&tables).await.unwrap();
    let mut options = Options::default();
    options.chunk_rows = 150;
    options.workers = 2;
    options.acknowledge_every = Duration::from_millis(50);
    let routes = tables.iter().map(route).collect();
    let (from, to) = (Arc::clone(&file.store), Arc::clone(target));
    Flow { options, ..Flow::new(flow(), from, to, routes, Wanted::default()) }
}

async fn run(flow: &Flow, until: Until, stop: &CancellationToken) -> Result<Ended> {
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (_keep, mut requests) = mpsc::unbounded_channel();
    run_once(flow, until, &gauge, &mut requests, stop).await
}

async fn same(source: &std::path::Path, target: &std::path::Path) {
    for (table, columns, order) in [
        ("orders", &["id", "ref", "total", "note"][..], "id"),
        ("lines", &["o", "n", "what"], "o, n"),
        ("words", &["w", "hits"], "w"),
    ] {
        let (here, there) =
            (dump(source, table, columns, order).await, dump(target, table, columns, order).await);
        assert_eq!(here.len(), there.len(), "{table}");
        assert!(here == there, "{table} differs");
    }
}

/// A program that goes on writing: inserts, updates, deletes, moves of keys, replacements.
async fn write(path: PathBuf, seed: u64, stop: CancellationToken) -> Result<()> {
    let mut app = app(&path).await;
    let mut state = seed;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below + 1
    };
    while !stop.is_cancelled() {
        let (a, b, c) = (random(6_000), random(6_000), random(9));
        let text = match c {
            1 => format!("REPLACE INTO orders VALUES ({a}, 'r{b}', {c}.5, x'00{c}{c}')"),
            2 => format!("UPDATE OR IGNORE orders SET id = {b} WHERE id = {a}"),
            3 => format!("DELETE FROM orders WHERE id = {a}"),
            4 => format!(
                "BEGIN; DELETE FROM lines WHERE o = {a}; INSERT OR REPLACE INTO lines VALUES ({b}, {c}, 'new'); COMMIT"
            ),
            5 => format!("REPLACE INTO words VALUES ('W{a}', {b})"),
            6 => format!("INSERT INTO words VALUES ('w{a}', 0) ON CONFLICT(w) DO UPDATE SET hits = hits + 1"),
            7 => format!("UPDATE OR REPLACE orders SET ref = 'r{b}' WHERE id = {a}"),
            8 => format!("UPDATE orders SET total = {b} WHERE id BETWEEN {a} AND {a} + 5"),
            _ => format!(
                "BEGIN; UPDATE lines SET what = {a} WHERE o = {b}; DELETE FROM words WHERE hits = {a}; ROLLBACK"
            ),
        };
        exec(&mut app, &text).await;
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_and_changes_arrive_while_programs_write_and_runs_stop_and_go_on() {
    let mut file = File::with(SCHEMA).await;
    file.exec(FILL).await;
    let target_path = file.folder.path().join("target.db");
    let target = open(&target_path);
    let flow = flow_of(&file, &target).await;
    let writing = CancellationToken::new();
    let mut writers = Scope::new();
    for seed in [88_172_645_463_325_252, 11_400_714_819_323_198] {
        writers.spawn(write(file.path.clone(), seed, writing.clone()));
    }
    for millis in [60, 120, 250, 400] {
        let stop = CancellationToken::new();
        let stopper = async {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(run(&flow, Until::Stopped, &stop), stopper);
        assert_eq!(ended.unwrap(), Ended::Stopped);
    }
    let ended = run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
    assert_eq!(ended, Ended::CaughtUp);
    writing.cancel();
    writers.join().await.unwrap();
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
    same(&file.path, &target_path).await;
}

/// Runs a migration, puts an older copy of the source in place byte by byte, so that the file is the same one, and
/// runs again. `replay` is what the checkpoint says then: as the engine leaves it after a moment, or behind.
async fn run_on_older_copy(replay: Option<u64>) -> Result<Ended> {
    let mut file = File::with(SCHEMA).await;
    file.exec("INSERT INTO orders VALUES (1, 'a', 1, NULL)").await;
    let target_path = file.folder.path().join("target.db");
    let target = open(&target_path);
    let flow = flow_of(&file, &target).await;
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await?;
    file.exec("PRAGMA wal_checkpoint(TRUNCATE)").await;
    let copy = std::fs::read(&file.path).unwrap();
    file.exec("INSERT INTO orders VALUES (2, 'b', 1, NULL); DELETE FROM orders WHERE id = 1").await;
    let stop = CancellationToken::new();
    let mut target_app = app(&target_path).await;
    let settled = async {
        let settled =
            "SELECT position = replay AND hex(position) = '0000000000000002' FROM tidegate_checkpoint";
        while ask(&mut target_app, settled).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    };
    let limit = Duration::from_secs(20);
    let running = async { tokio::join!(run(&flow, Until::Stopped, &stop), settled) };
    tokio::time::timeout(limit, running).await.expect("the checkpoint settles").0?;
    if let Some(replay) = replay {
        exec(&mut target_app, &format!("UPDATE tidegate_checkpoint SET replay = x'{replay:016x}'")).await;
    }

    let File { path, app, folder, .. } = file;
    sqlx::Connection::close(app).await.unwrap();
    std::fs::write(&path, copy).unwrap();
    for beside in ["source.db-wal", "source.db-shm"] {
        let _ = std::fs::remove_file(folder.path().join(beside));
    }
    run(&flow, Until::CaughtUp, &CancellationToken::new()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_source_stops_by_name() {
    assert_eq!(run_on_older_copy(None).await.unwrap_err().code(), code::SOURCE_REPLACED);
}

/// A run that ends soon after its last change leaves `replay` behind `position`. The feed is told `replay` alone, so
/// it cannot know that the target is ahead of the copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_stops_by_name_also_when_replay_is_behind() {
    assert_eq!(run_on_older_copy(Some(0)).await.unwrap_err().code(), code::SOURCE_REPLACED);
}

/// Found by trying: the run of all tables ended, and no other one began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_becomes_null_stops_its_table_alone() {
    let mut file = File::with(
        "CREATE TABLE a(id INTEGER PRIMARY KEY); CREATE TABLE c(x INT, y INT, v TEXT, PRIMARY KEY (x, y));
         INSERT INTO c VALUES (1, 1, 'one')",
    )
    .await;
    let target_path = file.folder.path().join("target.db");
    let flow = flow_of(&file, &open(&target_path)).await;
    let run = async || run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
    assert_eq!(run().await, Ended::CaughtUp);
    file.exec("INSERT INTO c VALUES (NULL, 1, 'x'), (2, 2, 'two'); INSERT INTO a VALUES (7)").await;
    assert_eq!(run().await, Ended::Again);
    file.exec("INSERT INTO c VALUES (3, NULL, 'x'); INSERT INTO a VALUES (8)").await;
    assert_eq!(run().await, Ended::CaughtUp);
    let mut target = app(&target_path).await;
    assert_eq!(ask(&mut target, "SELECT sum(id) FROM a").await, 15, "it goes on");
    assert_eq!(ask(&mut target, "SELECT count(*) FROM c").await, 1, "it stopped before that row");
    // Copied anew it is stopped again, since the row would be in no range of the crawl.
    let mut crawler = file.store.crawler().await.unwrap();
    let error = crawler.split(&flow.routes[1].shape.table, 2).await.unwrap_err();
    assert_eq!(error.code(), code::VALUE_UNFIT);
}

/// Found by looking at what compares keys: of `a` and `A`, one was not read at the end of a chunk, and both were removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_is_compared_more_coarsely_than_its_key() {
    const COARSE: &str =
        "CREATE TABLE t(id TEXT COLLATE NOCASE NOT NULL, v); CREATE UNIQUE INDEX i ON t(id COLLATE BINARY);";
    const ROWS: &str = "INSERT INTO t VALUES ('a', 1), ('A', 2), ('b', 3), ('B', 4), ('c', 5);";
    for (here, there) in [
        (COARSE, "CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, v);"),
        ("CREATE TABLE t(id TEXT COLLATE binary PRIMARY KEY NOT NULL, v);", COARSE),
    ] {
        let mut file = File::with(&format!("{here}{ROWS}")).await;
        let target = File::with(there).await;
        let mut flow = flow_of(&file, &target.store).await;
        flow.options.chunk_rows = 1;
        flow.options.workers = 1;
        run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
        file.exec("DELETE FROM t WHERE id = 'b' COLLATE BINARY").await;
        run(&flow, Until::CaughtUp, &CancellationToken::new()).await.unwrap();
        let mut target = app(&target.path).await;
        assert_eq!(ask(&mut target, "SELECT sum(v) FROM t").await, 12, "{here}");
    }
}

/// Orders with the number of their lines.
#[derive(Debug)]
struct Fold;

impl Transform for Fold {
    fn make(&self, table: &Table) -> Result<Made> {
        if table.name.name == "lines" {
            return Ok(Made::LeftOut);
        }
        let count = MadeColumn { column: Column::new("lines", Type::Int { bits: 64 }), carries: None };
        let id = MadeColumn { column: table.columns[0].clone(), carries: Some(0) };
        let joins = vec![Join { table: name("lines"), on: vec!["o".to_owned()] }];
        Ok(Made::Into(Recipe { columns: vec![count, id], joins, filters: false }))
    }

    fn row(&self, _: &Record<'_>, joined: &[Vec<Record<'_>>], out: &mut Vec<Value<'static>>) -> Result<bool> {
        out.push(Value::Int(i64::try_from(joined[0].len()).unwrap()));
        Ok(true)
    }
}

/// Found by reading: it was captured again, and the table went on without what had changed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_folded_into_another_one_and_was_rebuilt_stops_that_one() {
    let mut file = File::with(
        "CREATE TABLE orders(id INTEGER PRIMARY KEY); INSERT INTO orders VALUES (1);
         CREATE TABLE lines(o INT, n INT, PRIMARY KEY (o, n)); INSERT INTO lines VALUES (1, 1), (1, 2)",
    )
    .await;
    let target_path = file.folder.path().join("target.db");
    let target = open(&target_path);
    let source: Arc<dyn Store> =
        Arc::new(Transformed::new(Arc::clone(&file.store), Arc::new(Fold), SystemClock::shared()));
    let (tables, _) = source.catalog().await.unwrap().describe(&Selection::All).await.unwrap();
    let mut flow = Flow { source: Arc::clone(&source), ..flow_of(&file, &target).await };
    let codec = source.catalog().await.unwrap().codec(&tables[0]);
    flow.routes = tables.into_iter().map(|table| route(&Arc::new(table))).collect();
    flow.routes[0].shape.codec = codec;
    exec(
        &mut app(&target_path).await,
        "DROP TABLE orders; CREATE TABLE orders(lines INT, id INTEGER PRIMARY KEY)",
    )
    .await;
    let run = async || run(&flow, Until::CaughtUp, &CancellationToken::new()).await;
    assert_eq!(run().await.unwrap(), Ended::CaughtUp);
    assert_eq!(ask(&mut app(&target_path).await, "SELECT lines FROM orders").await, 2);
    file.exec(
        "BEGIN; CREATE TABLE n(o INT, n INT, PRIMARY KEY (o, n)); INSERT INTO n SELECT * FROM lines WHERE n = 1;
         DROP TABLE lines; ALTER TABLE n RENAME TO lines; COMMIT",
    )
    .await;
    for _ in 0..2 {
        // As whoever runs it does before each run.
        source.catalog().await.unwrap().describe(&Selection::All).await.unwrap();
        let error = run().await.unwrap_err();
        assert_eq!(error.code(), code::SCHEMA_CHANGED, "{error:?}");
        assert!(error.context().contains(&("table".into(), "orders".to_owned())), "{error:?}");
    }
}
