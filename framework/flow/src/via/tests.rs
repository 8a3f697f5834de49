//! Bodies survive being written, cut and put together again, and rows arrive as they were sent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::Verdict;
use tidegate_core::port::{
    Applied, Attempt, Batch, Checkpoint, Commit, Delivery, Exclusion, Identity, KeyRange, Opened,
    RangeProgress, Route, Sink, Store, TableBatch, Token,
};
use tidegate_core::{
    Apply, Canonical, Cell, Codec, Column, Encoding, Error, FlowName, Key, Lane, Message, Position, Result,
    Rows, Shape, Subscription, SystemClock, SystemIds, Table, TableName, Topology, Type, Value, error::code,
};
use tidegate_memory::{MemoryBroker, MemoryStore};
use tidegate_runtime::{Publisher, Receiver};
use tokio_util::sync::CancellationToken;

use super::wire::{CALL, Call, Parts, Place, Reply, messages};
use super::{Carried, PATIENCE, Via, serve};
use crate::transform::MadeCodec;

fn delivery(message: Message, number: u64) -> Delivery {
    let token = Token { lane: Lane(0), epoch: 1, number };
    Delivery {
        message: Arc::new(message),
        token,
        attempt: Attempt::Exact(1),
        position: None,
        stored_at: None,
    }
}

fn batch() -> (Batch, Commit) {
    let mut rows = Rows::new();
    rows.push_values([Value::Int(1), Value::Text("käse".into()), Value::Null]);
    rows.push_with(|row| {
        row.cell(Cell::Unchanged);
        row.cell(Cell::Bytes(&[0, 255]));
        row.cell(Cell::Null);
    });
    let key = Key(rows.row(0).frame().into());
    let part = TableBatch {
        table: 3,
        truncate: true,
        deletes: rows.clone(),
        updates: rows,
        ..TableBatch::default()
    };
    let rest = KeyRange { after: Some(key), upto: None };
    let range = RangeProgress { table: 3, range: 7, rest, rows: u64::MAX, done: false };
    let commit = Commit {
        position: Some(Position::new(vec![0, 255, 3])),
        ranges: vec![range],
        exclude: vec![(1, Exclusion::Failed("why".to_owned()))],
        ..Commit::default()
    };
    (Batch { tables: vec![TableBatch::default(), part] }, commit)
}

#[test]
fn a_call_is_read_as_it_was_written_in_parts_of_any_size_and_order() {
    let (batch, commit) = batch();
    let flow = FlowName::new("shop").unwrap();
    let place = Place { session: "s".into(), number: 2 };
    for (size, reversed) in [(4097, false), (4100, true), (5000, false), (1 << 20, false)] {
        let body = Call::Apply { batch: batch.clone(), commit: Some(commit.clone()) }.encode().unwrap();
        let mut sent = messages(CALL, &flow, &place, "0", body, size).unwrap();
        assert!(sent.iter().all(|message| message.size() <= size && message.check().is_ok()));
        if reversed {
            sent.reverse();
        }
        let mut parts = Parts::default();
        // A part of another call that was given up.
        let other = Place { session: "s".into(), number: 1 };
        let given_up = messages(CALL, &flow, &other, "0", vec![0; 9000].into(), 8192).unwrap().remove(0);
        assert!(parts.take(delivery(given_up, 0)).unwrap().is_none());
        let mut whole = None;
        // Each comes twice.
        let twice = sent.iter().flat_map(|message| [message, message]).take(2 * sent.len() - 1);
        for (at, message) in twice.enumerate() {
            assert!(whole.is_none());
            whole = parts.take(delivery(message.clone(), at as u64)).unwrap();
        }
        let whole = whole.unwrap();
        assert_eq!(parts.tokens().len(), 2 * sent.len());
        assert_eq!(whole.place, place);
        let Call::Apply { batch: read, commit: Some(read_commit) } = Call::decode(whole.body).unwrap() else {
            panic!("another call")
        };
        assert_eq!(read_commit, commit);
        let part = &read.tables[1];
        assert!(part.table == 3 && part.truncate && !part.fresh && part.upserts.is_empty());
        assert_eq!(part.updates.row(1), batch.tables[1].updates.row(1));
        assert_eq!(part.deletes.bytes(), batch.tables[1].deletes.bytes());
    }
}

#[test]
fn replies_are_read_as_they_were_written() {
    let (batch, _) = batch();
    let holes = vec![(3, Key(batch.tables[1].deletes.row(0).frame().into()))];
    let reply = Reply::Applied(Applied { holes: holes.clone() });
    let Reply::Applied(read) = Reply::decode(reply.encode().unwrap()).unwrap() else {
        panic!("another reply")
    };
    assert_eq!(read.holes, holes);
    let failed = Reply::Failed(Error::new(code::VALUE_UNFIT, "too long").with("table", "t"));
    let Reply::Failed(read) = Reply::decode(failed.encode().unwrap()).unwrap() else {
        panic!("another reply")
    };
    assert_eq!(read.line(), "TG0050 value-unfit: too long (table: t)");
}

#[test]
fn what_is_cut_or_of_somebody_else_is_refused_by_name() {
    let (batch, commit) = batch();
    let body = Call::Apply { batch, commit: Some(commit) }.encode().unwrap();
    for cut in 0..body.len() {
        assert_eq!(
            Call::decode(body.slice(..cut)).unwrap_err().code(),
            code::MESSAGE_INVALID,
            "cut at {cut}"
        );
    }
    let message = Message::with_id("1", "elsewhere", "order.placed");
    let error = Parts::default().take(delivery(message, 0)).unwrap_err();
    assert_eq!(error.code(), code::MESSAGE_INVALID);
    assert!(error.hint_text().unwrap().contains("nobody else may publish"));
}

/// Integers as decimal digits, so that a key of the source is no canonical one.
#[derive(Debug)]
struct Decimal;

impl Codec for Decimal {
    fn encoding(&self) -> Encoding {
        Encoding("decimal")
    }

    fn value<'a>(&self, _: &Column, cell: &'a [u8]) -> Result<Value<'a>> {
        let number = std::str::from_utf8(cell).ok().and_then(|digits| digits.parse().ok());
        number.map(Value::Int).ok_or_else(|| Error::new(code::STREAM_MALFORMED, "not a number"))
    }
}

/// The target of `made` rows behind a broker, and the way of its one table.
fn made(codecs: Vec<Arc<dyn Codec>>) -> (MemoryStore, Via, Route) {
    let name = TableName::new("", "parts");
    let int = |name| Column::new(name, Type::Int { bits: 64 });
    let columns = vec![int("id"), int("code"), Column::new("loud", Type::Text)];
    let store = MemoryStore::new("b");
    store.create_table(&name, columns.clone(), &["id"]);
    store.create_unique(&name, &["code"]);
    let table =
        Arc::new(Table { name, native_id: 0, columns, key: vec![0], rows_estimated: 0, bytes_estimated: 0 });
    let computed = BTreeSet::from(["loud".to_owned()]);
    let codec = Arc::new(MadeCodec::new(Arc::new(Decimal), &computed));
    let route = Route { shape: Shape { table: Arc::clone(&table), codec }, target: table };
    let broker = Arc::new(MemoryBroker::new(SystemClock::shared()));
    let via = Via { broker, codecs, clock: SystemClock::shared(), ids: Arc::new(SystemIds) };
    (store, via, route)
}

fn made_row(id: &str, number: &str) -> Rows {
    let mut rows = Rows::new();
    rows.push_with(|row| {
        row.cell(Cell::Bytes(id.as_bytes()));
        row.cell(Cell::Bytes(number.as_bytes()));
        row.value(&Value::Text(format!("{id}!").into()));
    });
    rows
}

async fn opened(target: &Carried, route: &Route) -> Result<(Box<dyn Sink>, Opened)> {
    let flow = FlowName::new("shop")?;
    let mut sink = target.sink(&flow, std::slice::from_ref(route)).await?;
    let first = Checkpoint::first(Identity("a".to_owned()), Position::from_u64(1));
    let opened = sink.open(&first).await?;
    Ok((sink, opened))
}

async fn holes(target: &Carried, route: &Route) -> Vec<(usize, Key)> {
    let (_, Opened::Resumed(checkpoint)) = opened(target, route).await.unwrap() else {
        panic!("it was here")
    };
    checkpoint.holes
}

/// Found by reading: rows with a computed column were carried as canonical values, and so were their keys. A hole of an
/// upsert was dropped, and after a restart its canonical key was taken for one of the source.
#[tokio::test(start_paused = true)]
async fn holes_of_made_rows_are_told_and_filled_by_the_sources_own_keys() {
    let (store, via, route) = made(vec![Arc::new(Canonical), Arc::new(Decimal)]);
    let store: Arc<dyn Store> = Arc::new(store);
    let target = Carried::new(Arc::clone(&store), via.clone());
    let (flow, never) = (FlowName::new("shop").unwrap(), CancellationToken::new());
    let near = async {
        let (mut sink, new) = opened(&target, &route).await.unwrap();
        assert_eq!(new, Opened::New);
        let upsert = |upserts| Batch { tables: vec![TableBatch { upserts, ..TableBatch::default() }] };
        let commit = Commit { position: Some(Position::from_u64(2)), ..Commit::default() };
        sink.apply(&upsert(made_row("2", "7")), Some(&commit)).await.unwrap();
        let applied = sink.apply(&upsert(made_row("1", "7")), Some(&commit)).await.unwrap();
        let kept_out = vec![(0, route.shape.cut_key(made_row("1", "7").row(0)))];
        assert_eq!(applied.holes, kept_out);
        drop(sink);
        assert_eq!(holes(&target, &route).await, kept_out, "the target says them in the same form");

        let (mut sink, _) = opened(&target, &route).await.unwrap();
        let filled = Commit { filled: kept_out, ..Commit::default() };
        sink.apply(&Batch::default(), Some(&filled)).await.unwrap();
        drop(sink);
        assert_eq!(holes(&target, &route).await, []);
    };
    tokio::select! {
        ended = serve(&flow, &store, &via, &never) => panic!("it ended: {ended:?}"),
        () = near => {}
    }
}

#[tokio::test(start_paused = true)]
async fn an_encoding_that_the_other_end_cannot_read_is_refused_by_name() {
    let (store, via, route) = made(vec![Arc::new(Canonical)]);
    let store: Arc<dyn Store> = Arc::new(store);
    let target = Carried::new(Arc::clone(&store), via.clone());
    let (flow, never) = (FlowName::new("shop").unwrap(), CancellationToken::new());
    let error = tokio::select! {
        ended = serve(&flow, &store, &via, &never) => panic!("it ended: {ended:?}"),
        opened = opened(&target, &route) => opened.err().unwrap(),
    };
    assert_eq!(error.code(), code::CAPABILITY_MISSING);
    assert!(error.line().contains("rows come in the encoding \"decimal\""), "{}", error.line());
}

/// Found by trying: the source's end planned for one target, and the rows went to the other.
#[tokio::test(start_paused = true)]
async fn two_ends_with_different_targets_are_refused() {
    let (store, via, route) = made(vec![Arc::new(Canonical), Arc::new(Decimal)]);
    let other: Arc<dyn Store> = Arc::new(MemoryStore::new("other"));
    let target = Carried::new(other, via.clone());
    let served: Arc<dyn Store> = Arc::new(store);
    let (flow, never) = (FlowName::new("shop").unwrap(), CancellationToken::new());
    let error = tokio::select! {
        ended = serve(&flow, &served, &via, &never) => panic!("it ended: {ended:?}"),
        opened = opened(&target, &route) => opened.err().unwrap(),
    };
    assert_eq!(error.code(), code::CONFIG_INVALID);
    assert!(error.line().contains("the two ends of the broker have different targets; nothing was written"));
}

/// Calls that were taken from their channel, as the broker has them.
async fn calls(tap: &mut Receiver, count: usize) -> Vec<Message> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let delivery = tap.next(Duration::from_secs(1)).await.unwrap().unwrap();
        tap.settle(&[delivery.token]).await.unwrap();
        taken.push(Arc::unwrap_or_clone(delivery.message));
    }
    taken
}

/// Found by a simulated history: the broker stored an opening and the call after it once more, and delivered both
/// when another runner had gone on. The target was opened for them, and went back.
#[tokio::test(start_paused = true)]
async fn calls_of_an_earlier_runner_that_come_late_write_nothing() {
    let (store, via, route) = made(vec![Arc::new(Canonical), Arc::new(Decimal)]);
    let target: Arc<dyn Store> = Arc::new(store.clone());
    let carried = Carried::new(Arc::clone(&target), via.clone());
    let (flow, never) = (FlowName::new("shop").unwrap(), CancellationToken::new());
    let write = async |sink: &mut Box<dyn Sink>, number: &str, position: u64| {
        let part = TableBatch { upserts: made_row("1", number), ..TableBatch::default() };
        let commit = Commit { position: Some(Position::from_u64(position)), ..Commit::default() };
        sink.apply(&Batch { tables: vec![part] }, Some(&commit)).await
    };
    let near = async {
        let ways = via.prepare(&flow).await.unwrap();
        let tap = Subscription::new(&ways.calls, "tap").unwrap();
        let topology = Topology { channels: Vec::new(), subscriptions: vec![tap.clone()] };
        via.broker.apply(&topology, Apply::Create).await.unwrap();
        let mut tap = Receiver::open(via.broker.as_ref(), &tap, Arc::clone(&via.clock)).await.unwrap();
        let (mut earlier, _) = opened(&carried, &route).await.unwrap();
        write(&mut earlier, "7", 2).await.unwrap();
        drop(earlier);
        let late = calls(&mut tap, 2).await;
        let (mut sink, _) = opened(&carried, &route).await.unwrap();
        write(&mut sink, "9", 3).await.unwrap();

        let mut publisher = Publisher::open(via.broker.as_ref(), &ways.calls)
            .with_clock(Arc::clone(&via.clock))
            .with_patience(PATIENCE)
            .await
            .unwrap();
        for (at, message) in late.into_iter().enumerate() {
            let mut again = message;
            again.id = format!("again-{at}").into();
            publisher.publish(&[again]).await.unwrap();
        }
        let over = write(&mut sink, "11", 4).await.unwrap_err();
        assert_eq!(over.verdict(), Verdict::Retry, "the target was opened by somebody else: {over}");
        drop(sink);
        let (_, found) = opened(&carried, &route).await.unwrap();
        let Opened::Resumed(checkpoint) = found else { panic!("it was here") };
        assert_eq!(checkpoint.position, Position::from_u64(3));
        assert_eq!(store.rows(&route.target.name)[0][1], Value::Int(9));
    };
    tokio::select! {
        ended = serve(&flow, &target, &via, &never) => panic!("it ended: {ended:?}"),
        () = near => {}
    }
}

/// Found by reading: whoever serves counted the replies from the beginning at every start. One to a call that was answered before had
/// the id of an earlier message, and a broker that knows ids dropped it: the caller waited for nothing.
#[tokio::test(start_paused = true)]
async fn replies_of_two_servers_to_one_call_are_told_apart() {
    let (store, via, _) = made(vec![Arc::new(Canonical)]);
    let target: Arc<dyn Store> = Arc::new(store);
    let (flow, never) = (FlowName::new("shop").unwrap(), CancellationToken::new());
    let ways = via.prepare(&flow).await.unwrap();
    let (broker, clock) = (via.broker.as_ref(), || Arc::clone(&via.clock));
    let mut replies = Receiver::open(broker, &ways.caller, clock()).await.unwrap();
    let mut publisher =
        Publisher::open(broker, &ways.calls).with_clock(clock()).with_patience(PATIENCE).await.unwrap();
    let place = Place { session: "s".into(), number: 7 };
    let call = messages(CALL, &flow, &place, "0", Call::Close.encode().unwrap(), 1 << 20).unwrap();
    let mut ids = BTreeSet::new();
    for server in 0..2 {
        let mut again = call[0].clone();
        again.id = format!("again-{server}").into();
        publisher.publish(&[again]).await.unwrap();
        let taken = tokio::select! {
            ended = serve(&flow, &target, &via, &never) => panic!("it ended: {ended:?}"),
            taken = calls(&mut replies, 1) => taken,
        };
        ids.insert(taken[0].id.to_string());
    }
    assert_eq!(ids.len(), 2, "{ids:?}");
}

/// Found by kills: each runner was a new member of those who wait for replies, and was given up before it could know that one of before
/// was dead. Where the program had been killed nobody ever had the replies again.
#[tokio::test(start_paused = true)]
async fn the_next_runner_waits_for_replies_where_the_last_one_did() {
    let (store, via, route) = made(vec![Arc::new(Canonical), Arc::new(Decimal)]);
    let store: Arc<dyn Store> = Arc::new(store);
    let target = Carried::new(Arc::clone(&store), via.clone());
    let (flow, never) = (FlowName::new("shop").unwrap(), CancellationToken::new());
    let error = opened(&target, &route).await.err().map(|error| error.code());
    assert_eq!(error, Some(code::TIMED_OUT), "nobody serves");
    // Somebody who does not live and would have the replies from now on.
    let ways = via.prepare(&flow).await.unwrap();
    let mut dead = Receiver::open(via.broker.as_ref(), &ways.caller, Arc::clone(&via.clock)).await.unwrap();
    assert!(dead.next(Duration::from_secs(60)).await.unwrap().is_none());
    tokio::select! {
        ended = serve(&flow, &store, &via, &never) => panic!("it ended: {ended:?}"),
        opened = opened(&target, &route) => assert!(opened.is_ok(), "{:?}", opened.err()),
    }
}
