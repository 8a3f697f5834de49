//! What a sink does to collections.

use mongodb::bson::{Bson, Document, doc};
use std::sync::Arc;
use tidegate_core::error::code;
use tidegate_core::port::{
    Batch, Checkpoint, Commit, Exclusion, KeyRange, Opened, RangeProgress, Route, Sink, TableBatch,
};
use tidegate_core::{Cell, Key, Position, Rows, Table, Type, Value};

use crate::place::{Place, first, flow, route, table};

fn items() -> Arc<Table> {
    table(
        "items",
        &[
            ("id", Type::Int { bits: 64 }),
            ("note", Type::Text),
            ("total", Type::Decimal { precision: None, scale: None }),
            ("at", Type::TimestampTz),
            ("doc", Type::Json),
        ],
        &[0],
    )
}

fn item(id: i64, note: &str) -> [Value<'static>; 5] {
    [
        Value::Int(id),
        Value::Text(note.to_owned().into()),
        Value::Decimal("1.50".into()),
        Value::TimestampTz(1_700_000_000_000_000),
        Value::Json("{\"b\":1,\"a\":[0.5,null]}".into()),
    ]
}

pub(crate) fn batch(of: TableBatch) -> Batch {
    Batch { tables: vec![of] }
}

fn upserts<'v>(rows: impl IntoIterator<Item = [Value<'v>; 5]>) -> TableBatch {
    let mut batch = TableBatch::default();
    rows.into_iter().for_each(|row| batch.upserts.push_values(row));
    batch
}

pub(crate) fn commit(position: u64) -> Commit {
    Commit { position: Some(Position::from_u64(position)), ..Commit::default() }
}

pub(crate) async fn opened(place: &Place, routes: &[Route]) -> (Box<dyn Sink>, Opened) {
    let mut sink = place.store.sink(&flow(), routes).await.unwrap();
    let opened = sink.open(&first()).await.unwrap();
    (sink, opened)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_written_changed_and_removed() {
    let Some(place) = Place::new("applying").await else { return };
    let route = route(&place.store, &items()).await;
    let (mut sink, found) = opened(&place, std::slice::from_ref(&route)).await;
    assert_eq!(found, Opened::New);

    let rows = upserts((1..=2_500).map(|id| item(id, "new")));
    sink.apply(&batch(rows), Some(&commit(2))).await.unwrap();
    let all = place.all("items").await;
    assert_eq!(all.len(), 2_500);
    let expected = doc! {
        "_id": 1_i64, "note": "new", "total": Bson::Decimal128("1.50".parse().unwrap()),
        "at": mongodb::bson::DateTime::from_millis(1_700_000_000_000), "doc": { "b": 1_i64, "a": [0.5, Bson::Null] },
    };
    assert_eq!(all[0], expected);
    assert_eq!(all[0].keys().collect::<Vec<_>>(), ["_id", "note", "total", "at", "doc"]);

    let mut change = upserts([item(3, "again"), item(9_001, "more")]);
    for gone in [1, 2] {
        change.deletes.push_values([Value::Int(gone)]);
    }
    for (id, note) in [(4, "part"), (77_777, "hole")] {
        change.updates.push_with(|row| {
            row.value(&Value::Int(id));
            row.value(&Value::Text(note.into()));
            (0..3).for_each(|_| row.cell(Cell::Unchanged));
        });
    }
    change.updates.push_with(|row| {
        row.value(&Value::Int(5));
        (0..4).for_each(|_| row.cell(Cell::Unchanged));
    });
    change.updates.push_with(|row| {
        row.value(&Value::Int(66_666));
        (0..4).for_each(|_| row.cell(Cell::Unchanged));
    });
    for _ in 0..2 {
        let applied = sink.apply(&batch(change.clone()), Some(&commit(3))).await.unwrap();
        let holes: Vec<_> = applied.holes.iter().map(|(_, key)| route.shape.show_key(key.row())).collect();
        assert_eq!(holes, ["id=77777", "id=66666"]);
    }
    let all = place.all("items").await;
    assert_eq!(all.len(), 2_499);
    assert_eq!(all[0].get_str("note").unwrap(), "again");
    assert_eq!((all[1].get_str("note").unwrap(), all[1].get("total")), ("part", expected.get("total")));

    let empty = TableBatch { truncate: true, ..upserts([item(8, "alone")]) };
    sink.apply(&batch(empty), Some(&commit(4))).await.unwrap();
    assert_eq!(place.all("items").await.len(), 1);
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fresh_rows_replace_those_that_are_there() {
    let Some(place) = Place::new("fresh").await else { return };
    let route = route(&place.store, &items()).await;
    let (mut sink, _) = opened(&place, std::slice::from_ref(&route)).await;
    sink.apply(&batch(upserts((1..=5).map(|id| item(id * 40, "old")))), Some(&commit(2))).await.unwrap();
    let fresh = TableBatch { fresh: true, ..upserts((1..=300).map(|id| item(id, "new"))) };
    sink.apply(&batch(fresh), Some(&commit(3))).await.unwrap();
    let all = place.all("items").await;
    assert_eq!(all.len(), 300);
    assert!(all.iter().all(|one| one.get_str("note").unwrap() == "new"));
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checkpoint_comes_back_and_a_second_opening_fences_the_first() {
    let Some(place) = Place::new("fencing").await else { return };
    let route = route(&place.store, &items()).await;
    let (mut old, _) = opened(&place, std::slice::from_ref(&route)).await;
    let key = |id: i64| {
        let mut rows = Rows::new();
        rows.push_values([Value::Int(id)]);
        Key(rows.row(0).frame().into())
    };
    let range = |range, done| RangeProgress {
        table: 0,
        range,
        rest: KeyRange { after: Some(key(5)), upto: (range == 0).then(|| key(9)) },
        rows: 7,
        done,
    };
    let ranges = vec![range(0, true), range(1, false)];
    let step = Commit { replay: Some(Position::from_u64(4)), ranges: ranges.clone(), ..commit(5) };
    old.apply(&batch(upserts([item(1, "one")])), Some(&step)).await.unwrap();
    let (mut new, found) = opened(&place, std::slice::from_ref(&route)).await;
    let expected =
        Checkpoint { position: Position::from_u64(5), replay: Position::from_u64(4), ranges, ..first() };
    assert_eq!(found, Opened::Resumed(expected));

    for fresh in [false, true] {
        let late = TableBatch { fresh, ..upserts((1..=60).map(|id| item(id, "late"))) };
        let error = old.apply(&batch(late), Some(&commit(6))).await.unwrap_err();
        assert_eq!(error.code(), code::LEASE_LOST);
    }
    assert_eq!(place.all("items").await.len(), 1, "nothing of a fenced runner stays");
    let forget = Commit { forget: vec![0], exclude: vec![(0, Exclusion::Skipped)], ..commit(6) };
    new.apply(&Batch::default(), Some(&forget)).await.unwrap();
    let (_, found) = opened(&place, std::slice::from_ref(&route)).await;
    let Opened::Resumed(found) = found else { panic!("it was here") };
    assert_eq!((found.ranges, found.excluded), (vec![], vec![(0, Exclusion::Skipped)]));
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_named_and_nothing_is_done() {
    let Some(place) = Place::new("unfit").await else { return };
    let route = route(&place.store, &items()).await;
    let (mut sink, _) = opened(&place, std::slice::from_ref(&route)).await;
    let mut odd = item(17, "x");
    odd[3] = Value::TimestampTz(1);
    let rows = TableBatch { truncate: true, ..upserts([item(1, "x"), odd]) };
    sink.apply(&batch(upserts([item(5, "x")])), Some(&commit(2))).await.unwrap();
    let error = sink.apply(&batch(rows), Some(&commit(3))).await.unwrap_err();
    assert_eq!(error.code(), code::VALUE_UNFIT);
    let named: Vec<_> = error.context().iter().map(|(name, value)| (&**name, value.as_str())).collect();
    assert_eq!(named, [("column", "at"), ("table", "items"), ("key", "id=17")]);
    assert_eq!(place.all("items").await.len(), 1);
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_key_columns_are_a_document_and_targets_are_looked_at() {
    let Some(place) = Place::new("pairs").await else { return };
    let pairs =
        table("pairs", &[("b", Type::Text), ("v", Type::Int { bits: 32 }), ("a", Type::Uuid)], &[2, 0]);
    let route = route(&place.store, &pairs).await;
    let (mut sink, _) = opened(&place, std::slice::from_ref(&route)).await;
    let mut rows = TableBatch::default();
    rows.upserts.push_values([Value::Text("b".into()), Value::Int(1), Value::Uuid([1; 16])]);
    rows.upserts.push_values([Value::Text("c".into()), Value::Null, Value::Uuid([2; 16])]);
    sink.apply(&batch(rows), Some(&commit(2))).await.unwrap();
    let mut gone = TableBatch::default();
    gone.deletes.push_values([Value::Uuid([2; 16]), Value::Text("c".into())]);
    let catalog = place.store.catalog().await.unwrap();
    let codes = async |allow| {
        let found = catalog.inspect(std::slice::from_ref(&route.target), allow).await.unwrap();
        found.iter().map(|obstacle| obstacle.error.code()).collect::<Vec<_>>()
    };
    assert_eq!(codes(false).await, [code::TARGET_NOT_EMPTY]);
    assert_eq!(codes(true).await, []);
    sink.apply(&batch(gone), Some(&commit(3))).await.unwrap();
    let all: Vec<Document> = place.all("pairs").await;
    assert_eq!(all.len(), 1);
    let id = all[0].get_document("_id").unwrap();
    assert_eq!(id.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(all[0].get_i32("v").unwrap(), 1);
    let other = table("pairs", &[("b", Type::Text), ("a", Type::Text)], &[0]);
    let found = catalog.inspect(&[other], true).await.unwrap();
    assert_eq!(found[0].error.code(), code::TARGET_DIFFERS);
    let tables = catalog.describe(&tidegate_core::port::Selection::All).await.unwrap().0;
    assert_eq!(
        tables.iter().map(|t| t.name.to_string()).collect::<Vec<_>>(),
        ["pairs"],
        "nothing of ours is listed"
    );
    place.end().await;
}

/// Found by killing: the server keeps the transaction of a runner that is gone, and with it the checkpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_a_killed_runner_left_open_is_ended() {
    let Some(place) = Place::new("left_open").await else { return };
    let route = route(&place.store, &items()).await;
    let (_, found) = opened(&place, std::slice::from_ref(&route)).await;
    assert_eq!(found, Opened::New);
    let checkpoints = place.database.collection::<Document>("tidegate.checkpoint");
    let mut killed = place.database.client().start_session().await.unwrap();
    checkpoints.update_one(doc! {}, doc! { "$set": { "session": killed.id() } }).await.unwrap();
    killed.start_transaction().await.unwrap();
    checkpoints.update_one(doc! {}, doc! { "$inc": { "writes": 1 } }).session(&mut killed).await.unwrap();
    let (mut sink, found) = opened(&place, std::slice::from_ref(&route)).await;
    assert!(matches!(found, Opened::Resumed(_)));
    sink.apply(&batch(upserts([item(1, "a")])), Some(&commit(5))).await.unwrap();
    assert!(killed.commit_transaction().await.is_err(), "what the killed one left is undone");
}

/// Found by trying: a table `.lead` was planned, and the run ended with what the driver says of the name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_the_server_refuses_is_refused_before() {
    let Some(place) = Place::new("called").await else { return };
    let catalog = place.store.catalog().await.unwrap();
    let room = 255 - place.database.name().len() - 1;
    let (fits, wide) = ("x".repeat(room), format!("x{}", "é".repeat((room - 1) / 2)));
    let (long, too_wide) = ("x".repeat(room + 1), "é".repeat(room / 2 + 1));
    for (name, why) in [
        (".lead", Some("it begins with a dot")),
        ("$a", Some("it has a $ or a zero byte in it")),
        ("a$b", Some("it has a $ or a zero byte in it")),
        ("a\0b", Some("it has a $ or a zero byte in it")),
        ("", Some("it is empty")),
        ("system.a", Some("system. is the server's own")),
        ("a.system.b", Some("system. is the server's own")),
        (&long, Some("it has more than 255 bytes, with the name of the database")),
        (&too_wide, Some("it has more than 255 bytes, with the name of the database")),
        ("trail.", None),
        ("a..b", None),
        ("system", None),
        ("System.a", None),
        ("a/b\\c \"\n", None),
        (&fits, None),
        (&wide, None),
    ] {
        let wanted = [table(name, &[("id", Type::Int { bits: 64 })], &[0])];
        let found = catalog.inspect(&wanted, false).await.unwrap();
        let texts: Vec<_> = found.iter().map(|obstacle| obstacle.error.line()).collect();
        let expected = why
            .map(|why| format!("TG0003 mapping-invalid: a collection cannot have the name {name:?}: {why}"));
        assert_eq!(texts, expected.into_iter().collect::<Vec<_>>());
        assert_eq!(catalog.create(&wanted).await.is_err(), why.is_some());
        let by_the_server = place.database.create_collection(name).await;
        let is_there =
            by_the_server.as_ref().is_err_and(|error| error.to_string().contains("(NamespaceExists)"));
        assert_eq!(is_there, why.is_none(), "{name:?}: {by_the_server:?}");
    }
    assert_eq!(
        catalog.inspect(&[table("tidegate.a", &[("id", Type::Text)], &[0])], false).await.unwrap().len(),
        1
    );
    // What is there and is no collection for rows.
    let view = doc! { "create": "view", "viewOn": "x", "pipeline": [] };
    let capped = doc! { "create": "capped", "capped": true, "size": 4096 };
    let collated = doc! { "create": "collated", "collation": { "locale": "de" } };
    for (made, what) in [
        (view, "view is a view"),
        (capped, "capped is a capped collection"),
        (collated, "collated has a collation"),
    ] {
        let name = made.get_str("create").unwrap().to_owned();
        place.database.run_command(made).await.unwrap();
        let wanted = [table(&name, &[("id", Type::Int { bits: 64 })], &[0])];
        let found = catalog.inspect(&wanted, true).await.unwrap();
        let text = found[0].error.line();
        assert!(text.starts_with(&format!("TG0023 target-differs: collection {what}")), "{text}");
    }
    place.end().await;
}
