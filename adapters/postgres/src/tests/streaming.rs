use std::time::Duration;

use crate::connect::Session;
use crate::lsn::Lsn;
use crate::pgoutput::{Cell, Message, Old, Parser};
use crate::wire::{Progress, Replication, Start, WalFrame, WalStream};
use tidegate_core::error::code;

use super::{run, session, settings};

/// A table with its publication and slot, named after the test and removed first, since a failed run leaves them.
async fn fixture(name: &str, columns: &str) -> Session {
    let session = session().await;
    session
        .batch_execute(&format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{name}';
             DROP PUBLICATION IF EXISTS {name};
             DROP TABLE IF EXISTS {name};
             CREATE TABLE {name} ({columns});
             CREATE PUBLICATION {name} FOR TABLE {name}"
        ))
        .await
        .unwrap();
    let sql = "SELECT pg_create_logical_replication_slot($1::text::name, 'pgoutput')";
    session.query(sql, &[&name]).await.unwrap();
    session
}

async fn clean_up(session: Session, name: &str) {
    session
        .batch_execute(&format!(
            "SELECT pg_drop_replication_slot('{name}'); DROP PUBLICATION {name}; DROP TABLE {name}"
        ))
        .await
        .unwrap();
    session.close().await;
}

async fn start(start: &Start) -> WalStream {
    Replication::connect(&settings()).await.unwrap().start(start).await.unwrap()
}

/// Reads up to the end of `commits` transactions and writes each message as one short line.
async fn lines(stream: &mut WalStream, mut commits: usize) -> Vec<String> {
    let mut parser = Parser::new();
    let mut lines = Vec::new();
    while commits > 0 {
        let frame =
            tokio::time::timeout(Duration::from_secs(20), stream.next()).await.unwrap().unwrap().unwrap();
        let WalFrame::Data { payload, .. } = frame else { continue };
        let message = parser.parse(&payload).unwrap();
        if matches!(message, Message::Commit { .. } | Message::StreamCommit { .. }) {
            commits -= 1;
        }
        lines.push(line(&message));
    }
    lines
}

fn line(message: &Message<'_>) -> String {
    let row = |tuple: crate::pgoutput::Tuple<'_>| {
        let cells: Vec<String> = tuple
            .cells()
            .map(|cell| match cell {
                Cell::Null => "-".to_owned(),
                Cell::Unchanged => "u".to_owned(),
                Cell::Text(text) => String::from_utf8_lossy(text).chars().take(10).collect(),
                Cell::Binary(bytes) => format!("{bytes:02x?}"),
            })
            .collect();
        cells.join(",")
    };
    match message {
        Message::Begin { .. } => "begin".to_owned(),
        Message::Commit { .. } => "commit".to_owned(),
        Message::Relation(relation) => {
            let columns: Vec<&str> = relation.columns.iter().map(|column| column.name).collect();
            format!(
                "relation {}.{} {:?} {}",
                relation.schema,
                relation.name,
                relation.identity,
                columns.join(",")
            )
        }
        Message::Insert { new, .. } => format!("insert {}", row(*new)),
        Message::Update { old: None, new, .. } => format!("update {}", row(*new)),
        Message::Update { old: Some(Old::Key(old)), new, .. } => {
            format!("update {} -> {}", row(*old), row(*new))
        }
        Message::Update { old: Some(Old::Full(old)), new, .. } => {
            format!("update {} => {}", row(*old), row(*new))
        }
        Message::Delete { old, .. } => format!("delete {}", row(old.tuple())),
        Message::Truncate { .. } => "truncate".to_owned(),
        Message::Emitted { prefix, content, transactional, .. } => {
            format!("emitted {prefix} {} {transactional}", String::from_utf8_lossy(content))
        }
        Message::StreamStart { .. } => "stream start".to_owned(),
        Message::StreamStop => "stream stop".to_owned(),
        Message::StreamCommit { .. } => "stream commit".to_owned(),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn every_kind_of_change_comes_in_order() {
    let session = fixture("it_kinds", "id int PRIMARY KEY, note text, blob text").await;
    run(
        &session,
        [
            "ALTER TABLE it_kinds ALTER blob SET STORAGE EXTERNAL",
            "INSERT INTO it_kinds VALUES (1, NULL, repeat('x', 5000)); UPDATE it_kinds SET note = 'a'",
            "UPDATE it_kinds SET id = 2; DELETE FROM it_kinds;
             SELECT pg_logical_emit_message(true, 'tidegate', 'hello')",
            "TRUNCATE it_kinds",
            "ALTER TABLE it_kinds REPLICA IDENTITY FULL",
            "INSERT INTO it_kinds VALUES (3, 'c'); UPDATE it_kinds SET note = 'd'",
        ],
    )
    .await;
    let mut stream = start(&Start::new("it_kinds", ["it_kinds"])).await;
    assert_eq!(
        lines(&mut stream, 4).await,
        [
            "begin",
            "relation public.it_kinds Default id,note,blob",
            "insert 1,-,xxxxxxxxxx",
            "update 1,a,u",
            "commit",
            "begin",
            "update 1,-,- -> 2,a,u",
            "delete 2,-,-",
            "commit",
            "begin",
            // Sent again, since emptying gives the table a new file.
            "relation public.it_kinds Default id,note,blob",
            "truncate",
            "commit",
            "begin",
            "relation public.it_kinds Full id,note,blob",
            "insert 3,c,-",
            "update 3,c,- => 3,d,-",
            "commit",
        ]
    );
    stream.finish().await.unwrap();
    clean_up(session, "it_kinds").await;
}

/// Nothing is acknowledged that the caller did not report, and a report holds across connections.
#[tokio::test]
async fn the_slot_moves_by_reports_alone() {
    let session = fixture("it_reports", "id int PRIMARY KEY").await;
    session.batch_execute("INSERT INTO it_reports VALUES (1)").await.unwrap();
    session.batch_execute("INSERT INTO it_reports VALUES (2)").await.unwrap();
    let command = Start::new("it_reports", ["it_reports"]);
    let confirmed = async || {
        let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'it_reports'";
        session.query_one(sql, &[]).await.unwrap().get::<_, String>(0).parse::<Lsn>().unwrap()
    };
    let begin = confirmed().await;

    let mut stream = start(&command).await;
    assert_eq!(lines(&mut stream, 2).await.len(), 7);
    stream.finish().await.unwrap();
    assert_eq!(confirmed().await, begin, "reading acknowledges nothing");

    let mut stream = start(&command).await;
    let mut parser = Parser::new();
    let end = loop {
        if let Some(WalFrame::Data { payload, .. }) = stream.next().await.unwrap()
            && let Message::Commit { end_lsn, .. } = parser.parse(&payload).unwrap()
        {
            break end_lsn;
        }
    };
    stream.report(Progress { write: end, flush: Lsn::ZERO, apply: Lsn::ZERO }, false).await.unwrap();
    stream.report(Progress { write: end, flush: end, apply: end }, false).await.unwrap();
    stream.finish().await.unwrap();
    assert_eq!(confirmed().await, end);

    let mut stream = start(&command).await;
    assert_eq!(
        lines(&mut stream, 1).await,
        ["begin", "relation public.it_reports Default id", "insert 2", "commit"],
        "only what was not reported comes again"
    );
    stream.finish().await.unwrap();
    clean_up(session, "it_reports").await;
}

#[tokio::test]
async fn a_large_transaction_streams_before_its_end() {
    let session = fixture("it_large", "id int PRIMARY KEY, note text").await;
    run(
        &session,
        [
            "ALTER SYSTEM SET logical_decoding_work_mem = '64kB'",
            "SELECT pg_reload_conf()",
            "INSERT INTO it_large SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n",
        ],
    )
    .await;
    let mut stream =
        start(&Start::new("it_large", ["it_large"]).with_streaming(true).with_binary(true)).await;
    let lines = lines(&mut stream, 1).await;
    stream.finish().await.unwrap();
    run(&session, ["ALTER SYSTEM RESET logical_decoding_work_mem", "SELECT pg_reload_conf()"]).await;
    let count = |kind| lines.iter().filter(|line| line.starts_with(kind)).count();
    assert_eq!(count("insert"), 5000);
    assert_eq!(count("stream start"), count("stream stop"));
    assert!(count("stream start") > 1, "{}", count("stream start"));
    assert_eq!(lines.last().unwrap(), "stream commit");
    assert!(lines.iter().any(|line| line.starts_with("insert [00, 00, 00, 01]")), "values are binary");
    clean_up(session, "it_large").await;
}

/// A request for a reply is answered at once, also when the reader gives up waiting again and again.
#[tokio::test]
async fn a_quiet_stream_answers_at_once_and_no_wait_given_up_loses_a_frame() {
    let session = fixture("it_quiet", "id int PRIMARY KEY").await;
    let mut stream = start(&Start::new("it_quiet", ["it_quiet"])).await;
    let mut asked = tokio::time::Instant::now();
    stream.report(Progress::default(), true).await.unwrap();
    let mut slowest = Duration::ZERO;
    let mut answers = 0;
    while answers < 50 {
        let Ok(frame) = tokio::time::timeout(Duration::from_micros(50), stream.next()).await else {
            continue;
        };
        if matches!(frame.unwrap(), Some(WalFrame::Keepalive { .. })) {
            answers += 1;
            slowest = slowest.max(asked.elapsed());
            while stream.received().unwrap().is_some() {}
            asked = tokio::time::Instant::now();
            stream.report(Progress::default(), true).await.unwrap();
        }
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");

    session.batch_execute("INSERT INTO it_quiet SELECT generate_series(1, 50000)").await.unwrap();
    let mut parser = Parser::new();
    let mut next = 1;
    loop {
        let Ok(frame) = tokio::time::timeout(Duration::from_millis(1), stream.next()).await else { continue };
        let Some(WalFrame::Data { payload, .. }) = frame.unwrap() else { continue };
        match parser.parse(&payload).unwrap() {
            Message::Insert { new, .. } => {
                assert_eq!(new.cells().next(), Some(Cell::Text(next.to_string().as_bytes())));
                next += 1;
            }
            Message::Commit { .. } => break,
            _ => {}
        }
    }
    assert_eq!(next, 50_001);
    stream.finish().await.unwrap();
    clean_up(session, "it_quiet").await;
}

#[tokio::test]
async fn a_slot_that_is_missing_taken_or_in_use_is_named() {
    let session = fixture("it_slots", "id int PRIMARY KEY").await;
    let connect = async || Replication::connect(&settings()).await.unwrap();

    let error = connect().await.start(&Start::new("no_such_slot", ["it_slots"])).await.unwrap_err();
    assert_eq!(error.code(), code::SLOT_LOST, "{error:?}");

    let stream = start(&Start::new("it_slots", ["it_slots"])).await;
    let error = connect().await.start(&Start::new("it_slots", ["it_slots"])).await.unwrap_err();
    assert_eq!(error.code(), code::SLOT_UNAVAILABLE, "{error:?}");
    stream.finish().await.unwrap();

    clean_up(session, "it_slots").await;
}

/// A killed walsender is a lost connection for the reader, never an end in good order.
#[tokio::test]
async fn a_killed_walsender_is_a_lost_connection() {
    let session = fixture("it_killed", "id int PRIMARY KEY").await;
    let mut stream = start(&Start::new("it_killed", ["it_killed"])).await;
    let sql =
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'it_killed'";
    session.query_one(sql, &[]).await.unwrap();
    let error = loop {
        match stream.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended in good order"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), code::CONNECTION_LOST, "{error:?}");
    drop(stream);
    // The server's process says goodbye before it lets go of the slot.
    let sql = "SELECT active FROM pg_replication_slots WHERE slot_name = 'it_killed'";
    while session.query_one(sql, &[]).await.unwrap().get(0) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    clean_up(session, "it_killed").await;
}
