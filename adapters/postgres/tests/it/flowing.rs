//! A whole flow from one database to another while the first is written to.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::Verdict;
use tidegate_core::port::{Conversions, Route, Selection, Store};
use tidegate_core::{FlowName, Scope, Shape, Table};
use tidegate_flow::{Flow, Gauge, Options, Until, Wanted, run_once};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{Session, database, drop_database, run, url_of};

/// Describes everything at the source, makes it at the target and joins the two.
pub(crate) async fn plan(name: &str, source: &Arc<dyn Store>, target: &Arc<dyn Store>) -> Flow {
    let from = source.catalog().await.unwrap();
    let to = target.catalog().await.unwrap();
    let (tables, obstacles) = from.describe(&Selection::All).await.unwrap();
    assert!(obstacles.is_empty(), "{obstacles:?}");
    let mut routes = Vec::new();
    for table in tables {
        let codec = from.codec(&table);
        let mut held = Table { name: to.name_for(&table.name), ..table.clone() };
        for column in &mut held.columns {
            let fit = to.fit(column, codec.encoding(), &Conversions::new()).unwrap();
            (column.native, column.kind) = (fit.native, fit.kind);
        }
        let shape = Shape { table: Arc::new(table), codec };
        routes.push(Route { shape, target: Arc::new(held) });
    }
    let targets: Vec<_> = routes.iter().map(|route| Arc::clone(&route.target)).collect();
    assert!(to.inspect(&targets, false).await.unwrap().is_empty());
    to.create(&targets).await.unwrap();
    to.create(&targets).await.unwrap();
    let mut options = Options::default();
    (options.chunk_rows, options.workers) = (500, 2);
    let (from, to) = (Arc::clone(source), Arc::clone(target));
    Flow { options, ..Flow::new(FlowName::new(name).unwrap(), from, to, routes, Wanted::default()) }
}

pub(crate) async fn catch_up(flow: &Flow) {
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (_requests, mut requests) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let run = run_once(flow, Until::CaughtUp, &gauge, &mut requests, &stop);
    tokio::time::timeout(Duration::from_secs(60), Box::pin(run)).await.unwrap().unwrap();
}

/// Runs again and again until a run comes to its end. Every error on the way has to say that this may be done.
async fn catch_up_through_errors(flow: &Flow) -> usize {
    let mut errors = 0;
    loop {
        let gauge = Gauge::new(&flow.routes, &flow.options);
        let (_requests, mut requests) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        match Box::pin(run_once(flow, Until::CaughtUp, &gauge, &mut requests, &stop)).await {
            Ok(_) => return errors,
            Err(error) => {
                assert_ne!(error.verdict(), Verdict::Never, "{error:?}");
                errors += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

pub(crate) async fn digest(session: &Session, table: &str) -> (i64, Option<String>) {
    let sql = format!(
        "SELECT count(*), md5(string_agg(t::text, E'\\n' ORDER BY t::text COLLATE \"C\")) FROM {table} t"
    );
    let row = session.query_one(&sql, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

const TABLES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE DOMAIN positive AS int CHECK (value > 0);
    CREATE TABLE items (id bigint PRIMARY KEY, note text, amount numeric(12,2), at timestamptz, doc jsonb, blob text,
        mood mood, moods mood[], list int[], age positive, size interval, twice int8 GENERATED ALWAYS AS (id * 2) STORED);
    ALTER TABLE items ALTER blob SET STORAGE EXTERNAL;
    CREATE TABLE pairs (b text COLLATE \"C\", gone int, a int, v text, big text, PRIMARY KEY (a, b));
    ALTER TABLE pairs ALTER big SET STORAGE EXTERNAL;
    ALTER TABLE pairs DROP COLUMN gone;
    CREATE TABLE logs (at date, id uuid DEFAULT gen_random_uuid(), v text, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
    CREATE TABLE logs_1 PARTITION OF logs FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
    CREATE TABLE logs_2 PARTITION OF logs FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
    CREATE TABLE codes (code bytea PRIMARY KEY, rate float8, unique_name text UNIQUE);
    INSERT INTO items SELECT n, 'n' || n, n / 7.0, now(), '{\"a\": 1}', repeat('b', 3000), 'ok', '{sad,happy}', '{1,2}', n,
        '1 day' FROM generate_series(1, 4000) n;
    INSERT INTO pairs SELECT 'k' || n, n % 50, 'v', repeat('x', 3000) FROM generate_series(1, 3000) n;
    INSERT INTO logs SELECT '2020-06-01'::date + n % 500, gen_random_uuid(), 'l' FROM generate_series(1, 3000) n;
    INSERT INTO codes SELECT sha256(n::text::bytea), n, 'u' || n FROM generate_series(1, 2000) n";

/// Statements that touch every kind of change, at places that depend on the turn.
fn changes(turn: usize) -> String {
    let n = turn * 37 % 4000 + 1;
    let m = turn * 91 % 4000 + 1;
    match turn % 12 {
        0 => format!("INSERT INTO items (id, note, mood, moods) VALUES ({}, 'new', 'sad', '{{happy}}')", 10_000 + turn),
        1 => format!("UPDATE items SET note = 'u{turn}' WHERE id BETWEEN {n} AND {n} + 20"),
        2 => format!("DELETE FROM items WHERE id = {m}"),
        3 => format!("UPDATE items SET id = {} WHERE id = {n}", 20_000 + turn),
        4 => format!("UPDATE pairs SET v = 'u{turn}' WHERE a = {}", turn % 50),
        5 => format!("UPDATE pairs SET a = a + 100 WHERE a = {} AND b < 'k2'", turn % 50),
        6 => format!(
            "BEGIN; UPDATE items SET doc = '{{\"t\": {turn}}}' WHERE id = {m}; SAVEPOINT s;
             DELETE FROM items WHERE id < 3000; ROLLBACK TO s; INSERT INTO logs (at, v) VALUES ('2021-03-01', 's'); COMMIT"
        ),
        7 => "BEGIN; DELETE FROM items WHERE id > 100; ROLLBACK".to_owned(),
        8 => format!("UPDATE logs SET at = '2021-05-05', v = 'm{turn}' WHERE id IN (SELECT id FROM logs OFFSET {m} % 3000 LIMIT 3)"),
        9 => format!("UPDATE codes SET rate = {turn} WHERE code < '\\x{:02x}'", turn % 256),
        10 => format!(
            "UPDATE codes SET unique_name = 'x' || unique_name WHERE code < '\\x{0:02x}';
             UPDATE items SET amount = amount + 1, list = list || {turn} WHERE id = {n}", turn % 60),
        _ => format!("DELETE FROM codes WHERE rate = {turn}; INSERT INTO codes VALUES (sha256('{turn}'), 1, 'y{turn}')
             ON CONFLICT DO NOTHING"),
    }
}

/// Starts two writers that touch every kind of change until told to stop.
fn write_to(database: &'static str, stop: &CancellationToken) -> Scope {
    let mut writers = Scope::new();
    for writer in 0..2 {
        let stop = stop.clone();
        writers.spawn(async move {
            let session = Session::connect(&url_of(database)).await;
            let mut turn = writer;
            while !stop.is_cancelled() {
                // A deadlock or a key that exists: the writer's own affair.
                if session.batch_execute(&changes(turn)).await.is_err() {
                    let _ = session.batch_execute("ROLLBACK").await;
                }
                turn += 2;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(())
        });
    }
    writers
}

async fn assert_equal(session: &Session, other: &Session) {
    for table in [
        "(SELECT id, note, amount, at, doc, blob, mood, moods, list, age, size FROM items)",
        "(SELECT a, b, v, big FROM pairs)",
        "logs",
        "codes",
    ] {
        let (rows, digest) = digest(session, table).await;
        assert!(rows > 500, "{table}: {rows}");
        assert_eq!((rows, digest), self::digest(other, table).await, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_databases_become_equal_while_one_is_written_to() {
    let (source, session) = database("it_flow_source").await;
    let (target, other) = database("it_flow_target").await;
    session.batch_execute(TABLES).await.unwrap();
    run(&other, ["CREATE TYPE mood AS ENUM ('happy', 'sad', 'ok')"]).await;
    let flow = plan("shop", &source, &target).await;
    let stop = CancellationToken::new();
    let writers = write_to("it_flow_source", &stop);
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Each run goes on where the one before ended.
    catch_up(&flow).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    catch_up(&flow).await;
    stop.cancel();
    writers.join().await.unwrap();
    catch_up(&flow).await;
    assert_equal(&session, &other).await;
    for _ in 0..2 {
        source.catalog().await.unwrap().clean(&flow.name).await.unwrap();
    }
    drop_database(session).await;
    drop_database(other).await;
}

/// Whatever connection is cut at whatever moment, the next run goes on, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_lose_nothing() {
    let (source, session) = database("it_cut_source").await;
    let (target, other) = database("it_cut_target").await;
    session.batch_execute(TABLES).await.unwrap();
    run(&other, ["CREATE TYPE mood AS ENUM ('happy', 'sad', 'ok')"]).await;
    let flow = plan("cut", &source, &target).await;
    let stop = CancellationToken::new();
    let writers = write_to("it_cut_source", &stop);
    let mut cutter = Scope::new();
    cutter.spawn(async {
        let session = crate::session().await;
        for cut in 0..12 {
            tokio::time::sleep(Duration::from_millis(150 + cut * 40)).await;
            let sql = "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity
                WHERE datname IN ('it_cut_source', 'it_cut_target') AND application_name = 'tidegate'
                ORDER BY random() LIMIT 1) one";
            let _ = session.batch_execute(sql).await;
        }
        Ok(())
    });
    // A flow may catch up between two cuts: it does so again until one has hit it.
    let mut errors = 0;
    for _ in 0..200 {
        errors += catch_up_through_errors(&flow).await;
        if errors > 0 {
            break;
        }
    }
    cutter.join().await.unwrap();
    stop.cancel();
    writers.join().await.unwrap();
    errors += catch_up_through_errors(&flow).await;
    assert!(errors > 0, "nothing was cut");
    assert_equal(&session, &other).await;
    source.catalog().await.unwrap().clean(&flow.name).await.unwrap();
    drop_database(session).await;
    drop_database(other).await;
}
