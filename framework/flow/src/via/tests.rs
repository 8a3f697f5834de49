//! Bodies survive being written, cut and put together again.

use tidegate_core::port::{
    Applied, Attempt, Batch, Commit, Delivery, Exclusion, KeyRange, RangeProgress, TableBatch, Token,
};
use tidegate_core::{Cell, Error, FlowName, Key, Lane, Message, Position, Rows, Value, error::code};

use super::wire::{CALL, Call, Parts, Place, Reply, messages};

fn delivery(message: Message, number: u64) -> Delivery {
    let token = Token { lane: Lane(0), epoch: 1, number };
    Delivery { message, token, attempt: Attempt::Exact(1), position: None, stored_at: None }
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
        let mut sent = messages(CALL, &flow, &place, 0, body, size).unwrap();
        assert!(sent.iter().all(|message| message.size() <= size && message.check().is_ok()));
        if reversed {
            sent.reverse();
        }
        let mut parts = Parts::default();
        // A part of another call that was given up.
        let other = Place { session: "s".into(), number: 1 };
        let given_up = messages(CALL, &flow, &other, 0, vec![0; 9000].into(), 8192).unwrap().remove(0);
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
