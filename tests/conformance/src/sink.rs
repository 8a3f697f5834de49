//! What a sink does with rows that are in each other's way, with runners that are, and where a table is gone.

mod gone;

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{
    Batch, Checkpoint, Commit, Exclusion, Identity, KeyRange, Opened, RangeProgress, Route, Sink, Store,
    TableBatch,
};
use tidegate_core::{
    Canonical, Cell, Column, FlowName, Key, Position, Rows, Shape, Table, TableName, Type, Value,
};

pub use gone::{a_table_that_another_one_replaced_is_named, a_table_that_is_gone_is_named};

/// A target with a table `seats` of `id` (64-bit number, the key), `seat` (text, unique) and `note` (text).
#[async_trait]
pub trait Seats: Send + Sync {
    /// The table's name there.
    fn name(&self) -> TableName;
    /// Where it is.
    fn store(&self) -> &dyn Store;
    /// Writes a row as somebody else does.
    async fn put(&self, id: i64, seat: &str);
    /// Removes it.
    async fn remove(&self, id: i64);
    /// Every row as `id seat note`, by id.
    async fn all(&self) -> Vec<String>;
    /// Removes a table.
    async fn drop_table(&self, name: &TableName);
}

/// Rows exchange unique values, are kept out by others, and are holes until they are filled. Whoever opened the flow
/// before writes no more. What is known of a table is known by its name in the source.
///
/// # Panics
/// If the sink breaks rule 3, 4, 6, 7 or 9 of its contract.
pub async fn keeps_rivals_apart(seats: &dyn Seats) {
    let mut run = Run::begin(seats).await;
    run.an_earlier_runner_writes_no_more().await;
    run.full_rows_trade_their_values().await;
    run.rows_far_apart_in_a_batch_do_not_keep_each_other_out().await;
    run.a_full_row_and_a_part_of_one_exchange_their_values().await;
    run.parts_that_exchange_values_are_filled_by_full_rows().await;
    run.a_row_that_a_rival_keeps_out_is_a_hole_until_it_is_filled().await;
    run.one_part_of_many_has_a_rival().await;
    run.many_parts_exchange_their_values().await;
    run.a_transaction_in_pieces_notes_its_holes().await;
    run.one_row_of_a_fresh_chunk_has_a_rival().await;
    run.holes_are_forgotten_with_their_table().await;
    run.holes_of_the_first_checkpoint_are_known().await;
    run.the_ledger_is_the_source_tables().await;
}

struct Run<'a> {
    seats: &'a dyn Seats,
    route: Route,
    sink: Box<dyn Sink>,
    position: u64,
}

/// Full rows of [`Seats`], with the note `full`.
pub fn full<'v>(rows: impl IntoIterator<Item = (i64, &'v str)>) -> TableBatch {
    let mut of = TableBatch::default();
    for (id, seat) in rows {
        of.upserts.push_values([Value::Int(id), Value::Text(seat.into()), Value::Text("full".into())]);
    }
    of
}

/// With rows of [`Seats`] that leave the note out.
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

fn flow() -> FlowName {
    FlowName::new("seats").expect("a name")
}

fn first() -> Checkpoint {
    Checkpoint::first(Identity("source".to_owned()), Position::from_u64(1))
}

fn route(target: TableName) -> Route {
    let table = Table {
        name: TableName::new("", "seats"),
        native_id: 0,
        columns: vec![
            Column::new("id", Type::Int { bits: 64 }),
            Column::new("seat", Type::Text),
            Column::new("note", Type::Text),
        ],
        key: vec![0],
        rows_estimated: 0,
        bytes_estimated: 0,
    };
    let held = Table { name: target, ..table.clone() };
    Route { shape: Shape { table: Arc::new(table), codec: Arc::new(Canonical) }, target: Arc::new(held) }
}

impl<'a> Run<'a> {
    async fn begin(seats: &'a dyn Seats) -> Self {
        let route = route(seats.name());
        let (sink, _) = Self::opened(seats, &route).await;
        Self { seats, route, sink, position: 1 }
    }

    async fn opened(seats: &dyn Seats, route: &Route) -> (Box<dyn Sink>, Opened) {
        let mut sink = seats.store().sink(&flow(), std::slice::from_ref(route)).await.expect("a sink");
        let opened = sink.open(&first()).await.expect("it opens");
        (sink, opened)
    }

    fn shown(&self, holes: &[(usize, Key)]) -> Vec<String> {
        let mut shown: Vec<_> = holes.iter().map(|(_, key)| self.route.shape.show_key(key.row())).collect();
        shown.sort();
        shown
    }

    /// Applies durably, and gives the holes.
    async fn apply(&mut self, part: TableBatch, filled: &[i64]) -> Vec<String> {
        self.position += 1;
        let commit = Commit {
            position: Some(Position::from_u64(self.position)),
            filled: filled.iter().map(|id| (0, key(*id))).collect(),
            ..Commit::default()
        };
        let applied = self.sink.apply(&Batch { tables: vec![part] }, Some(&commit)).await;
        self.shown(&applied.expect("it applies").holes)
    }

    /// An empty table with these rows.
    async fn set(&mut self, rows: &[(i64, &str)]) {
        let part = TableBatch { truncate: true, ..full(rows.iter().copied()) };
        assert!(self.apply(part, &[]).await.is_empty());
    }

    /// The holes that whoever opens the flow next is told of.
    async fn noted(&mut self) -> Vec<String> {
        let (sink, opened) = Self::opened(self.seats, &self.route).await;
        self.sink = sink;
        let Opened::Resumed(checkpoint) = opened else { panic!("it was here before") };
        self.shown(&checkpoint.holes)
    }

    /// Nor when the flow was forgotten, and begun anew, since.
    async fn an_earlier_runner_writes_no_more(&mut self) {
        self.set(&[(1, "a")]).await;
        let names: Vec<_> = (100..200).map(|n| format!("s{n}")).collect();
        let chunk = full((100..).zip(names.iter().map(|name| &**name)));
        for is_forgotten in [true, false] {
            if is_forgotten {
                let state = self.seats.store().state().await.expect("the state");
                state.forget(&flow()).await.expect("it is forgotten");
            }
            let (sink, opened) = Self::opened(self.seats, &self.route).await;
            assert_eq!(opened == Opened::New, is_forgotten);
            let mut earlier = std::mem::replace(&mut self.sink, sink);
            for late in [
                TableBatch::default(),
                full([(2, "b")]),
                partial(TableBatch::default(), &[(1, "c")]),
                TableBatch { truncate: true, ..TableBatch::default() },
                TableBatch { fresh: true, crawling: true, ..chunk.clone() },
            ] {
                let commit = Commit { position: Some(Position::from_u64(99)), ..Commit::default() };
                let refused = earlier.apply(&Batch { tables: vec![late] }, Some(&commit)).await;
                assert_eq!(refused.expect_err("it is fenced").code(), code::LEASE_LOST);
            }
            assert_eq!(self.seats.all().await, ["1 a full"]);
        }
        self.position = 1;
    }

    async fn full_rows_trade_their_values(&mut self) {
        self.set(&[(1, "a"), (2, "b"), (3, "c")]).await;
        for (seats, expected) in [
            (["b", "a", "c"], ["1 b full", "2 a full", "3 c full"]),
            (["a", "c", "b"], ["1 a full", "2 c full", "3 b full"]),
        ] {
            // Twice: a batch that comes again does the same.
            for fresh in [false, true, false] {
                let part = TableBatch { fresh, ..full((1..).zip(seats)) };
                assert!(self.apply(part, &[]).await.is_empty());
                assert_eq!(self.seats.all().await, expected);
            }
        }
        assert!(self.noted().await.is_empty());
    }

    async fn a_full_row_and_a_part_of_one_exchange_their_values(&mut self) {
        for (whole, part) in [((1, "b"), (2, "a")), ((2, "a"), (1, "b"))] {
            self.set(&[(1, "a"), (2, "b")]).await;
            assert!(self.apply(partial(full([whole]), &[part]), &[]).await.is_empty());
            assert_eq!(self.seats.all().await, ["1 b full", "2 a full"]);
        }
    }

    async fn parts_that_exchange_values_are_filled_by_full_rows(&mut self) {
        self.set(&[(1, "a"), (2, "b")]).await;
        for _ in 0..2 {
            let holes = self.apply(partial(TableBatch::default(), &[(1, "b"), (2, "a")]), &[]).await;
            assert!(!holes.is_empty());
            let there = self.seats.all().await;
            assert!(there.iter().all(|row| row == "1 b full" || row == "2 a full"), "{there:?}");
        }
        assert!(!self.noted().await.is_empty());
        assert!(self.apply(full([(1, "b"), (2, "a")]), &[1, 2]).await.is_empty());
        assert_eq!(self.seats.all().await, ["1 b full", "2 a full"]);
        assert!(self.noted().await.is_empty());
    }

    async fn a_row_that_a_rival_keeps_out_is_a_hole_until_it_is_filled(&mut self) {
        self.set(&[(1, "a"), (2, "b"), (3, "c")]).await;
        self.seats.put(99, "z").await;
        let change = || partial(full([(1, "z"), (4, "d")]), &[(2, "z")]);
        for _ in 0..2 {
            assert_eq!(self.apply(change(), &[]).await, ["id=1", "id=2"]);
            // Neither the old nor the new form of a hole is there.
            assert_eq!(self.seats.all().await, ["3 c full", "4 d full", "99 z rival"]);
        }
        assert_eq!(self.noted().await, ["id=1", "id=2"]);
        // Still kept out: the note of this batch stays, although the commit says that it is filled.
        assert_eq!(self.apply(full([(1, "z"), (2, "b")]), &[1, 2]).await, ["id=1"]);
        assert_eq!(self.noted().await, ["id=1"]);
        self.seats.remove(99).await;
        assert!(self.apply(full([(1, "z")]), &[1]).await.is_empty());
        assert_eq!(self.seats.all().await, ["1 z full", "2 b full", "3 c full", "4 d full"]);
        assert!(self.noted().await.is_empty());
    }

    async fn one_part_of_many_has_a_rival(&mut self) {
        self.set(&[(1, "a"), (2, "b"), (3, "c"), (4, "d")]).await;
        self.seats.put(99, "z").await;
        for _ in 0..2 {
            let parts = partial(TableBatch::default(), &[(1, "e"), (2, "f"), (3, "z"), (4, "g")]);
            assert_eq!(self.apply(parts, &[]).await, ["id=3"]);
            assert_eq!(self.seats.all().await, ["1 e full", "2 f full", "4 g full", "99 z rival"]);
        }
        self.seats.remove(99).await;
        assert!(self.apply(full([(3, "z")]), &[3]).await.is_empty());
        assert_eq!(self.seats.all().await, ["1 e full", "2 f full", "3 z full", "4 g full"]);
    }

    /// Nobody has to sort them all out: what is left is filled.
    async fn many_parts_exchange_their_values(&mut self) {
        let names: Vec<_> = (0..300).map(|n| format!("s{n:03}")).collect();
        let turned = |by: usize| (0..).zip(names.iter().map(|name| &**name).cycle().skip(by).take(300));
        self.set(&turned(0).collect::<Vec<_>>()).await;
        let parts = partial(TableBatch::default(), &turned(1).collect::<Vec<_>>());
        assert!(!self.apply(parts, &[]).await.is_empty());
        let expected: Vec<_> = turned(1).map(|(id, name)| format!("{id} {name} full")).collect();
        assert!(self.seats.all().await.iter().all(|row| expected.contains(row)));
        let ids: Vec<i64> = (0..300).collect();
        assert!(self.apply(full(turned(1)), &ids).await.is_empty());
        assert_eq!(self.seats.all().await, expected);
        assert!(self.noted().await.is_empty());
    }

    async fn a_transaction_in_pieces_notes_its_holes(&mut self) {
        self.set(&[(1, "a"), (2, "b")]).await;
        let piece = Batch { tables: vec![full([(1, "b")])] };
        let applied = self.sink.apply(&piece, None).await.expect("a piece");
        assert_eq!(self.shown(&applied.holes), ["id=1"]);
        assert!(self.apply(full([(2, "c")]), &[]).await.is_empty());
        assert_eq!(self.seats.all().await, ["2 c full"]);
        assert_eq!(self.noted().await, ["id=1"]);
        assert!(self.apply(full([(1, "b")]), &[1]).await.is_empty());
        assert_eq!(self.seats.all().await, ["1 b full", "2 c full"]);
    }

    async fn one_row_of_a_fresh_chunk_has_a_rival(&mut self) {
        self.set(&[(999, "s77")]).await;
        let names: Vec<_> = (0..150).map(|n| format!("s{n}")).collect();
        for _ in 0..2 {
            let rows = full((0..).zip(names.iter().map(|name| &**name)));
            let chunk = TableBatch { fresh: true, crawling: true, ..rows };
            assert_eq!(self.apply(chunk, &[]).await, ["id=77"]);
            let all = self.seats.all().await;
            assert_eq!((all.len(), all[149].as_str()), (150, "999 s77 full"));
        }
        assert_eq!(self.noted().await, ["id=77"]);
    }

    async fn holes_are_forgotten_with_their_table(&mut self) {
        self.set(&[]).await;
        let forget = Commit { forget: vec![0], ..Commit::default() };
        self.sink.apply(&Batch::default(), Some(&forget)).await.expect("it forgets");
        assert!(self.noted().await.is_empty());
        assert_eq!(
            self.apply(partial(TableBatch::default(), &[(1, "a"), (2, "b")]), &[]).await,
            ["id=1", "id=2"]
        );
        // What meets no row while the table is crawled comes with the crawl.
        let early = TableBatch { crawling: true, ..partial(TableBatch::default(), &[(3, "c")]) };
        assert!(self.apply(early, &[]).await.is_empty());
        assert_eq!(self.noted().await, ["id=1", "id=2"]);
        self.sink.apply(&Batch::default(), Some(&forget)).await.expect("it forgets");
        assert!(self.noted().await.is_empty());
        assert!(self.seats.all().await.is_empty());
    }

    /// Each of these rows waits for one that another statement of the batch writes, or removes.
    async fn rows_far_apart_in_a_batch_do_not_keep_each_other_out(&mut self) {
        let names: Vec<_> = (0..=2_500).map(|n| format!("s{n}")).collect();
        let seats = |from: usize| (1..=2_500).zip(names[from..].iter().map(String::as_str));
        self.set(&seats(0).collect::<Vec<_>>()).await;
        let change = partial(full(seats(1).take(2_499)), &[(2_500, "elsewhere")]);
        assert!(self.apply(change, &[]).await.is_empty());
        let all = self.seats.all().await;
        assert_eq!(all.len(), 2_500);
        assert_eq!((all[0].as_str(), all[2_498].as_str()), ("1 s1 full", "2499 s2499 full"));
        assert_eq!(all[2_499], "2500 elsewhere full");
        assert!(self.noted().await.is_empty());
        self.set(&[]).await;
    }

    async fn holes_of_the_first_checkpoint_are_known(&mut self) {
        self.seats.store().state().await.expect("the state").forget(&flow()).await.expect("it is forgotten");
        let known = Checkpoint { holes: vec![(0, key(7))], ..first() };
        assert_eq!(self.sink.open(&known).await.expect("it opens"), Opened::New);
        assert_eq!(self.noted().await, ["id=7"]);
    }

    async fn the_ledger_is_the_source_tables(&mut self) {
        let rest = KeyRange { after: None, upto: None };
        let range = RangeProgress { table: 0, range: 3, rest, rows: 5, done: true };
        let exclude = vec![(0, Exclusion::Skipped)];
        let commit = Commit { ranges: vec![range.clone()], exclude: exclude.clone(), ..Commit::default() };
        self.sink.apply(&Batch::default(), Some(&commit)).await.expect("it is known");
        // Another table of the source, of which it knows nothing, takes the same way; then the first one again.
        let mut other = self.route.clone();
        other.shape.table = Arc::new(Table {
            name: TableName::new("", "benches"),
            ..self.route.shape.table.as_ref().clone()
        });
        let own = Checkpoint { ranges: vec![range], excluded: exclude, holes: vec![(0, key(7))], ..first() };
        for (route, known) in [(&other, first()), (&self.route, own)] {
            let (sink, opened) = Self::opened(self.seats, route).await;
            self.sink = sink;
            let Opened::Resumed(found) = opened else { panic!("it was here before") };
            assert_eq!(
                (found.ranges, found.excluded, found.holes),
                (known.ranges, known.excluded, known.holes)
            );
        }
    }
}
