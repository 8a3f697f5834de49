//! A commit stands in the log before readers see it. Both are provoked here on a real server: by chance, under load, and
//! for sure, by a synchronous standby that is missing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate_core::port::{ChangeFeed, KeyRange, Limit, Selection};
use tidegate_core::{Changes, Endpoint, FlowName, Op, Position, Rows, Shape, Value};
use tidegate_flow::window::Window;
use tidegate_flow::{Gauge, Until, run_once};
use tidegate_services::postgres::{Options, Server};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::flowing::{catch_up, digest, plan};
use crate::{Session, database, drop_database, url_of};

const ROWS: i64 = 300;
const WRITERS: usize = 8;
/// Chunks that are read at least, and at most until a stale read was met.
const CHUNKS: (usize, usize) = (150, 3_000);

/// What the stream has said so far: the right answer at its position.
#[derive(Default)]
struct Reference {
    rows: BTreeMap<i64, i64>,
    /// Newest change of each key: where it stands, and its mark.
    newest: BTreeMap<i64, (Position, u64)>,
}

fn int(shape: &Shape, at: usize, cell: tidegate_core::Cell<'_>) -> i64 {
    match shape.value(at, cell).unwrap().unwrap() {
        Value::Int(number) => number,
        other => panic!("{other:?}"),
    }
}

impl Reference {
    async fn read_to(
        &mut self,
        feed: &mut dyn ChangeFeed,
        window: &mut Window,
        shape: &Shape,
        upto: &Position,
    ) {
        let mut at = Position::default();
        while at < *upto {
            let mut changes = Changes::new();
            let progress = tokio::time::timeout(Duration::from_secs(20), feed.next(Some(upto), &mut changes));
            at = progress.await.unwrap().unwrap().position;
            for transaction in changes.transactions() {
                for change in changes.of(transaction) {
                    assert_eq!(change.op, Op::Update);
                    let row = change.row.unwrap();
                    let (id, version) = (int(shape, 0, row.cell(0)), int(shape, 1, row.cell(1)));
                    self.rows.insert(id, version);
                    self.newest.insert(id, (transaction.position.clone(), transaction.mark));
                }
            }
            window.deliver(&Arc::new(changes), true);
        }
    }
}

/// Rows are compared with what the stream said, chunk by chunk, at the barrier of each. The rule that log positions
/// suggest would have kept the stale ones that are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_reads_are_met_under_load_and_none_is_kept() {
    let (store, session) = database("it_visibility").await;
    session
        .batch_execute(&format!(
            "CREATE TABLE t (id int8 PRIMARY KEY, v int8 NOT NULL);
             INSERT INTO t SELECT n, 0 FROM generate_series(1, {ROWS}) n"
        ))
        .await
        .unwrap();
    let catalog = store.catalog().await.unwrap();
    let (mut tables, _) = catalog.describe(&Selection::All).await.unwrap();
    let table = Arc::new(tables.remove(0));
    let shape = Shape { codec: catalog.codec(&table), table: Arc::clone(&table) };
    let flow = FlowName::new("it_visibility").unwrap();
    let from = catalog.capture(&flow, std::slice::from_ref(&table)).await.unwrap();
    let identity = catalog.identity().await.unwrap();
    let mut feed = store.change_feed(&flow, std::slice::from_ref(&table), &identity, &from).await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let stop = Arc::clone(&stop);
        writers.spawn(async move {
            let session = Session::connect(&url_of("it_visibility")).await;
            // Between the log and the eyes of readers: as on a slow disk.
            session.batch_execute("SET commit_delay = 3000; SET commit_siblings = 1").await.unwrap();
            let mut n = writer as i64 * 7_919;
            while !stop.load(Ordering::Relaxed) {
                n = (n * 31 + 17) % 1_000_003;
                let sql = format!("UPDATE t SET v = v + 1 WHERE id = {}", n % ROWS + 1);
                session.batch_execute(&sql).await.unwrap();
            }
        });
    }

    let mut crawler = store.crawler().await.unwrap();
    let mut window = Window::new(from);
    let mut reference = Reference::default();
    let (mut met, mut chunks) = (0, 0);
    while chunks < CHUNKS.0 || met == 0 && chunks < CHUNKS.1 {
        chunks += 1;
        let read = window.begin_read();
        let mut rows = Rows::new();
        let chunk = crawler.read(&table, &KeyRange::default(), Limit::rows(1_000), &mut rows).await.unwrap();
        window.saw(&chunk.as_of);
        let barrier = chunk.as_of.barrier.clone();
        reference.read_to(feed.as_mut(), &mut window, &shape, &barrier).await;
        for row in rows.iter() {
            let (id, version) = (int(&shape, 0, row.cell(0)), int(&shape, 1, row.cell(1)));
            // The log had a newer version before the read began, and the read did not show it.
            let older = reference.newest.get(&id).is_some_and(|(position, mark)| {
                *position <= barrier && !chunk.as_of.shows(*mark) && reference.rows[&id] > version
            });
            met += usize::from(older);
        }
        let merged = window.overlay(0, &shape, rows, &chunk.as_of).unwrap();
        for row in merged.rows.iter() {
            let (id, version) = (int(&shape, 0, row.cell(0)), int(&shape, 1, row.cell(1)));
            let right = reference.rows.get(&id).copied().unwrap_or(version);
            assert_eq!(version, right, "a stale row of {id} was kept in chunk {chunks}");
        }
        window.end_read(read);
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    assert!(met > 0, "no stale read was met in {chunks} chunks: this run proves nothing");
    println!("{met} stale rows met in {chunks} chunks, 0 kept");
    feed.close().await.unwrap();
    catalog.clean(&flow).await.unwrap();
    drop_database(session).await;
}

/// A commit that waits for a standby stands in the log and is never seen. The crawl reads the old row all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_waits_for_a_missing_standby_is_not_overwritten_by_the_crawl() {
    let source = Server::start(Options::default().with_fresh_identity()).await.unwrap();
    let url = source.create_database("shop").await.unwrap();
    let from = tidegate_postgres::open(&Endpoint::parse(&url).unwrap()).unwrap();
    let (to, target) = database("it_standby").await;
    let session = Session::connect(&url).await;
    session
        .batch_execute("CREATE TABLE t (id int8 PRIMARY KEY, v text); INSERT INTO t SELECT n, 'old' FROM generate_series(1, 2000) n")
        .await
        .unwrap();
    let flow = plan("it_standby", &from, &to).await;
    let tables: Vec<_> = flow.routes.iter().map(|route| Arc::clone(&route.shape.table)).collect();
    from.catalog().await.unwrap().capture(&flow.name, &tables).await.unwrap();
    session.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'missing'").await.unwrap();
    session.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut writer = JoinSet::new();
    let of_writer = url.clone();
    writer.spawn(async move {
        let session = Session::connect(&of_writer).await;
        session.batch_execute("UPDATE t SET v = 'new' WHERE id = 1500").await.unwrap();
    });

    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (_keep, mut requests) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let running = run_once(&flow, Until::Stopped, &gauge, &mut requests, &stop);
    let others = async {
        let read = |session: Arc<Session>| async move {
            let rows = session.query("SELECT v FROM t WHERE id = 1500", &[]).await.unwrap();
            rows.first().map(|row| row.get::<_, String>(0))
        };
        let (seen, target) =
            (Arc::new(Session::connect(&url).await), Arc::new(Session::connect(&url_of("it_standby")).await));
        let mut arrived = None;
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            arrived = read(Arc::clone(&target)).await;
            if gauge.read(flow.clock.as_ref()).is_crawled() && arrived.as_deref() == Some("new") {
                break;
            }
        }
        assert_eq!(
            read(Arc::clone(&seen)).await.as_deref(),
            Some("old"),
            "readers of the source do not see it"
        );
        assert_eq!(arrived.as_deref(), Some("new"), "the crawl's stale row is not kept");
        let count = target.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
        assert_eq!(count.get::<_, i64>(0), 2_000);
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(Box::pin(running), others);
    ended.unwrap();
    assert!(gauge.read(flow.clock.as_ref()).tables[0].rows_overtaken > 0);

    // The standby is given up: the commit is seen, and both sides are equal.
    session.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    session.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    while let Some(ended) = writer.join_next().await {
        ended.unwrap();
    }
    catch_up(&flow).await;
    assert_eq!(digest(&session, "t").await, digest(&target, "t").await);
    drop_database(target).await;
}
