//! Rows that a unique index keeps out, and changes that meet no row.

use mongodb::IndexModel;
use mongodb::bson::{Document, doc};
use mongodb::options::IndexOptions;
use tidegate_core::port::{Batch, Checkpoint, Commit, Opened, Route, Sink, TableBatch};
use tidegate_core::{Cell, Key, Rows, Type, Value};

use crate::applying::{batch, commit, opened};
use crate::place::{Place, first, flow, route, table};

/// Seats, of which each is taken once, and a sink that writes them.
struct Hall {
    place: Place,
    route: Route,
    sink: Box<dyn Sink>,
}

impl Hall {
    async fn new(name: &str, index: IndexOptions) -> Option<Self> {
        let place = Place::new(name).await?;
        let columns = [("id", Type::Int { bits: 64 }), ("seat", Type::Text), ("note", Type::Text)];
        let route = route(&place.store, &table("seats", &columns, &[0])).await;
        let mut options = index;
        options.unique = Some(true);
        let index = IndexModel::builder().keys(doc! { "seat": 1 }).options(options);
        place.database.collection::<Document>("seats").create_index(index.build()).await.unwrap();
        let (sink, _) = opened(&place, std::slice::from_ref(&route)).await;
        Some(Self { place, route, sink })
    }

    async fn apply(&mut self, of: TableBatch, commit: &Commit) -> Vec<String> {
        let applied = self.sink.apply(&batch(of), Some(commit)).await.unwrap();
        self.shown(&applied.holes)
    }

    fn shown(&self, holes: &[(usize, Key)]) -> Vec<String> {
        holes.iter().map(|(_, key)| self.route.shape.show_key(key.row())).collect()
    }

    /// Somebody else's document.
    async fn put(&self, id: i64, seat: &str) {
        let rival = doc! { "_id": id, "seat": seat, "note": "rival" };
        self.place.database.collection::<Document>("seats").insert_one(rival).await.unwrap();
    }

    /// Every document as `id seat note`.
    async fn seats(&self) -> Vec<String> {
        let show = |one: &Document| {
            let text = |name: &str| one.get_str(name).unwrap_or("-").to_owned();
            format!("{} {} {}", one.get_i64("_id").unwrap(), text("seat"), text("note"))
        };
        self.place.all("seats").await.iter().map(show).collect()
    }

    /// The holes that whoever opens the flow next is told of.
    async fn reopen(&mut self) -> Vec<String> {
        let (sink, found) = opened(&self.place, std::slice::from_ref(&self.route)).await;
        self.sink = sink;
        let Opened::Resumed(checkpoint) = found else { panic!("it was here before") };
        self.shown(&checkpoint.holes)
    }
}

fn full<'v>(rows: impl IntoIterator<Item = (i64, &'v str)>) -> TableBatch {
    let mut of = TableBatch::default();
    for (id, seat) in rows {
        of.upserts.push_values([Value::Int(id), Value::Text(seat.into()), Value::Text("full".into())]);
    }
    of
}

fn partial(mut of: TableBatch, rows: &[(i64, &str)]) -> TableBatch {
    for (id, seat) in rows {
        of.updates.push_with(|row| {
            row.value(&Value::Int(*id));
            row.value(&Value::Text((*seat).into()));
            row.cell(Cell::Unchanged);
        });
    }
    of
}

fn key(id: i64) -> Key {
    let mut rows = Rows::new();
    rows.push_values([Value::Int(id)]);
    Key(rows.row(0).frame().into())
}

fn filled(position: u64, ids: &[i64]) -> Commit {
    Commit { filled: ids.iter().map(|id| (0, key(*id))).collect(), ..commit(position) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_rows_trade_their_values() {
    let Some(mut hall) = Hall::new("trading", IndexOptions::default()).await else { return };
    hall.apply(full([(1, "a"), (2, "b"), (3, "c")]), &commit(2)).await;
    for (round, seats, expected) in [
        (3, ["b", "a", "c"], ["1 b full", "2 a full", "3 c full"]),
        (4, ["a", "c", "b"], ["1 a full", "2 c full", "3 b full"]),
    ] {
        // Twice: a batch that comes again does the same.
        for _ in 0..2 {
            let holes = hall.apply(full((1..).zip(seats)), &commit(round)).await;
            assert_eq!((holes.len(), hall.seats().await), (0, expected.map(str::to_owned).to_vec()));
        }
    }
    assert!(hall.reopen().await.is_empty());
    hall.place.end().await;
}

/// Each of these rows waits for one that another transaction of the batch writes, or removes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_far_apart_in_a_batch_do_not_keep_each_other_out() {
    let Some(mut hall) = Hall::new("far", IndexOptions::default()).await else { return };
    let names: Vec<_> = (0..=2_500).map(|n| format!("s{n}")).collect();
    let seats = |from: usize| (1..=2_500).zip(names[from..].iter().map(String::as_str));
    hall.apply(full(seats(0)), &commit(2)).await;
    let change =
        TableBatch { crawling: true, ..partial(full(seats(1).take(2_499)), &[(2_500, "elsewhere")]) };
    assert!(hall.apply(change, &commit(3)).await.is_empty());
    let all = hall.seats().await;
    assert_eq!(all.len(), 2_500);
    assert_eq!((all[0].as_str(), all[2_498].as_str()), ("1 s1 full", "2499 s2499 full"));
    assert_eq!(all[2_499], "2500 elsewhere full");
    assert!(hall.reopen().await.is_empty());
    hall.place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_row_and_a_part_of_one_exchange_their_values() {
    let Some(mut hall) = Hall::new("exchange", IndexOptions::default()).await else { return };
    hall.apply(full([(1, "a"), (2, "b")]), &commit(2)).await;
    let holes = hall.apply(partial(full([(1, "b")]), &[(2, "a")]), &commit(3)).await;
    assert_eq!((holes.len(), hall.seats().await), (0, vec!["1 b full".to_owned(), "2 a full".to_owned()]));
    hall.place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_that_exchange_values_are_filled_by_full_rows() {
    let Some(mut hall) = Hall::new("parts", IndexOptions::default()).await else { return };
    hall.apply(full([(1, "a"), (2, "b")]), &commit(2)).await;
    let swap = || partial(TableBatch::default(), &[(1, "b"), (2, "a")]);
    assert_eq!(hall.apply(swap(), &commit(3)).await, ["id=1"]);
    assert_eq!(hall.seats().await, ["2 a full"]);
    // A batch that comes again does the same.
    assert_eq!(hall.apply(swap(), &commit(3)).await, ["id=1"]);
    assert_eq!(hall.reopen().await, ["id=1"]);
    assert!(hall.apply(full([(1, "b"), (2, "a")]), &filled(4, &[1, 2])).await.is_empty());
    assert_eq!(hall.seats().await, ["1 b full", "2 a full"]);
    assert!(hall.reopen().await.is_empty());
    hall.place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_a_rival_keeps_out_is_a_hole_until_it_is_filled() {
    let Some(mut hall) = Hall::new("rival", IndexOptions::default()).await else { return };
    hall.put(99, "z").await;
    hall.apply(full([(1, "a"), (2, "b"), (3, "c")]), &commit(2)).await;
    let change = || partial(full([(1, "z"), (4, "d")]), &[(2, "z"), (3, "e")]);
    for _ in 0..2 {
        let mut holes = hall.apply(change(), &commit(3)).await;
        holes.sort();
        assert_eq!(holes, ["id=1", "id=2"]);
        // Neither the old nor the new form of a hole is there.
        assert_eq!(hall.seats().await, ["3 e full", "4 d full", "99 z rival"]);
    }
    assert_eq!(hall.reopen().await, ["id=1", "id=2"]);

    // Still kept out: the note of this batch stays, although the commit says that it is filled.
    assert_eq!(hall.apply(full([(1, "z"), (2, "b")]), &filled(4, &[1, 2])).await, ["id=1"]);
    assert_eq!(hall.reopen().await, ["id=1"]);
    let rows = (1_000..2_200).map(|id| (id, id.to_string())).collect::<Vec<_>>();
    let large = full([(1, "z")].into_iter().chain(rows.iter().map(|(id, seat)| (*id, &**seat))));
    assert_eq!(hall.apply(large, &filled(5, &[1])).await, ["id=1"]);
    assert_eq!(hall.reopen().await, ["id=1"]);

    hall.place.database.collection::<Document>("seats").delete_one(doc! { "_id": 99_i64 }).await.unwrap();
    assert!(hall.apply(full([(1, "z")]), &filled(6, &[1])).await.is_empty());
    assert!(hall.reopen().await.is_empty());
    hall.place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_are_forgotten_with_their_table_and_known_from_the_first_checkpoint_on() {
    let Some(mut hall) = Hall::new("forgotten", IndexOptions::default()).await else { return };
    let holes = hall.apply(partial(TableBatch::default(), &[(1, "a"), (2, "b")]), &commit(2)).await;
    assert_eq!(holes, ["id=1", "id=2"]);
    // Without a commit too.
    let more = partial(TableBatch::default(), &[(3, "c")]);
    assert_eq!(hall.sink.apply(&batch(more), None).await.unwrap().holes, [(0, key(3))]);
    assert_eq!(hall.reopen().await, ["id=1", "id=2", "id=3"]);
    // What meets no row while the table is crawled comes with the crawl.
    let early = TableBatch { crawling: true, ..partial(TableBatch::default(), &[(4, "d")]) };
    assert!(hall.apply(early, &commit(3)).await.is_empty());
    let forget = Commit { forget: vec![0], ..commit(4) };
    hall.sink.apply(&Batch::default(), Some(&forget)).await.unwrap();
    assert!(hall.reopen().await.is_empty());

    hall.place.store.state().await.unwrap().forget(&flow()).await.unwrap();
    let known = Checkpoint { holes: vec![(0, key(7))], ..first() };
    assert_eq!(hall.sink.open(&known).await.unwrap(), Opened::New);
    assert_eq!(hall.reopen().await, ["id=7"]);
    hall.place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_row_of_a_fresh_chunk_has_a_rival() {
    let Some(mut hall) = Hall::new("chunk", IndexOptions::default()).await else { return };
    hall.put(999, "s77").await;
    let names: Vec<_> = (0..150).map(|n| format!("s{n}")).collect();
    let chunk = || TableBatch { fresh: true, crawling: true, ..full((0..).zip(names.iter().map(|s| &**s))) };
    for _ in 0..2 {
        assert_eq!(hall.apply(chunk(), &commit(2)).await, ["id=77"]);
        assert_eq!(hall.seats().await.len(), 150);
    }
    assert_eq!(hall.seats().await[149], "999 s77 rival");
    assert_eq!(hall.reopen().await, ["id=77"]);
    hall.place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_knows_some_documents_only_keeps_out_only_those() {
    let sparse = IndexOptions::builder().sparse(true).build();
    let some = IndexOptions::builder().partial_filter_expression(doc! { "note": "full" }).build();
    for (name, index, rival_counts) in [("sparse", sparse, true), ("some", some, false)] {
        let Some(mut hall) = Hall::new(name, index).await else { return };
        hall.put(99, "z").await;
        let without = doc! { "_id": 98_i64 };
        hall.place.database.collection::<Document>("seats").insert_one(without).await.unwrap();
        hall.apply(full([(1, "a"), (2, "b")]), &commit(2)).await;
        let holes = hall.apply(full([(1, "b"), (2, "a"), (3, "z")]), &commit(3)).await;
        assert_eq!(holes.len(), usize::from(rival_counts), "{name}");
        assert_eq!(hall.seats().await[..2], ["1 b full", "2 a full"], "{name}");
        hall.place.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_is_no_duplicate_is_an_error_still() {
    let Some(mut hall) = Hall::new("invalid", IndexOptions::default()).await else { return };
    let rule = doc! { "collMod": "seats", "validator": { "seat": { "$ne": "x" } } };
    hall.place.database.run_command(rule).await.unwrap();
    hall.apply(full([(1, "a"), (2, "b")]), &commit(2)).await;
    let error = hall.sink.apply(&batch(full([(1, "x")])), Some(&commit(3))).await.unwrap_err();
    assert_eq!(error.code(), tidegate_core::error::code::CONSTRAINT_VIOLATED);
    assert_eq!(hall.seats().await, ["1 a full", "2 b full"]);
    hall.place.end().await;
}
