//! What a sink does where a table of the target is gone, or another one.

use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::{Batch, Commit, Conversions, Exclusion, Opened, Route, Sink, TableBatch};
use tidegate_core::{Encoding, Position, Table, TableName, Value};

use super::{Seats, first, flow, full, partial, route};

/// A table of the target that is gone is an error that names it, and no trouble of the others; it is excluded by whoever
/// opens the flow, until it is forgotten and there again. Leaves no table `seats`.
///
/// # Panics
/// If the sink breaks rule 10 of its contract.
pub async fn a_table_that_is_gone_is_named(seats: &dyn Seats) {
    let pair = Pair::made(seats).await;
    let (mut sink, opened) = pair.opened().await;
    assert_eq!(opened, Opened::New);
    sink.apply(&pair.batch("before"), Some(&at(2))).await.expect("both are there");
    seats.drop_table(&seats.name()).await;
    pair.is_refused(&mut sink).await;
    let rest = Batch { tables: vec![TableBatch { table: 1, ..full([(1, "after")]) }] };
    sink.apply(&rest, Some(&at(4))).await.expect("the other table is there");

    let (mut sink, opened) = pair.opened().await;
    pair.is_excluded(opened, 4);
    pair.is_refused(&mut sink).await;
    let leave_out = Commit { exclude: vec![(0, Exclusion::Skipped)], ..Commit::default() };
    sink.apply(&Batch::default(), Some(&leave_out)).await.expect("it is left out");

    pair.create().await;
    let (mut sink, opened) = pair.opened().await;
    let Opened::Resumed(checkpoint) = opened else { panic!("it was here before") };
    assert_eq!(checkpoint.excluded, [(0, Exclusion::Skipped)], "what was said before holds");
    pair.is_taken_anew(&mut sink).await;
}

/// The same of a table whose name another one has, where tables have an identity. Leaves no table `seats`.
///
/// # Panics
/// If the sink breaks rule 10 of its contract.
pub async fn a_table_that_another_one_replaced_is_named(seats: &dyn Seats) {
    let pair = Pair::made(seats).await;
    let (mut sink, opened) = pair.opened().await;
    assert_eq!(opened, Opened::New);
    sink.apply(&pair.batch("before"), Some(&at(2))).await.expect("both are there");
    seats.drop_table(&seats.name()).await;
    pair.create().await;
    pair.is_refused(&mut sink).await;
    assert!(seats.all().await.is_empty(), "nothing was written to the other table");

    // Also when it happened while nobody had the flow open.
    for _ in 0..2 {
        let (again, opened) = pair.opened().await;
        pair.is_excluded(opened, 2);
        sink = again;
        pair.is_refused(&mut sink).await;
    }
    assert!(seats.all().await.is_empty());
    pair.is_taken_anew(&mut sink).await;
}

/// The table of [`Seats`], and another one like it.
struct Pair<'a> {
    seats: &'a dyn Seats,
    routes: [Route; 2],
}

fn at(position: u64) -> Commit {
    Commit { position: Some(Position::from_u64(position)), ..Commit::default() }
}

impl<'a> Pair<'a> {
    async fn made(seats: &'a dyn Seats) -> Self {
        let other = TableName::new(seats.name().schema, "benches");
        let mut routes = [route(seats.name()), route(other)];
        let table = Table { name: TableName::new("", "benches"), ..routes[1].shape.table.as_ref().clone() };
        routes[1].shape.table = Arc::new(table);
        let catalog = seats.store().catalog().await.expect("a catalog");
        for route in &mut routes {
            let mut target = route.target.as_ref().clone();
            for column in &mut target.columns {
                let fit = catalog.fit(column, Encoding::CANONICAL, &Conversions::new()).expect("it fits");
                (column.native, column.kind) = (fit.native, fit.kind);
            }
            route.target = Arc::new(target);
        }
        let pair = Self { seats, routes };
        pair.create().await;
        pair
    }

    async fn create(&self) {
        let targets = self.routes.each_ref().map(|route| Arc::clone(&route.target));
        let catalog = self.seats.store().catalog().await.expect("a catalog");
        catalog.create(&targets).await.expect("both tables");
    }

    async fn opened(&self) -> (Box<dyn Sink>, Opened) {
        let mut sink = self.seats.store().sink(&flow(), &self.routes).await.expect("a sink");
        let opened = sink.open(&first()).await.expect("it opens");
        (sink, opened)
    }

    /// A row for each.
    fn batch(&self, seat: &str) -> Batch {
        let other = TableBatch { table: 1, ..full([(1, seat)]) };
        Batch { tables: vec![full([(1, seat)]), other] }
    }

    /// By name, in whatever way something is to be written to it.
    async fn is_refused(&self, sink: &mut Box<dyn Sink>) {
        let removal = |mut part: TableBatch| {
            part.deletes.push_values([Value::Int(1)]);
            part
        };
        for part in [
            full([(1, "late")]),
            TableBatch { fresh: true, ..full([(2, "late")]) },
            partial(TableBatch::default(), &[(1, "late")]),
            removal(TableBatch::default()),
        ] {
            let batch = Batch { tables: vec![TableBatch { table: 1, ..full([(9, "late")]) }, part] };
            let error = sink.apply(&batch, Some(&at(3))).await.expect_err("it is gone");
            assert_eq!(error.code(), code::TABLE_MISSING, "{error:?}");
            let named: Vec<_> = error.context().iter().filter(|(fact, _)| *fact == "table").collect();
            assert!(named.iter().all(|(_, table)| *table == self.seats.name().to_string()), "{error:?}");
            assert!(!named.is_empty(), "{error:?}");
        }
    }

    fn is_excluded(&self, opened: Opened, position: u64) {
        let Opened::Resumed(checkpoint) = opened else { panic!("it was here before") };
        assert_eq!(checkpoint.position, Position::from_u64(position), "nothing of what was refused was done");
        let why = Exclusion::Failed(self.routes[0].table_missing().line());
        assert_eq!(checkpoint.excluded, [(0, why)]);
    }

    /// It is written again once it was forgotten, and by whoever comes next.
    async fn is_taken_anew(&self, sink: &mut Box<dyn Sink>) {
        let forget = Commit { forget: vec![0], ..Commit::default() };
        sink.apply(&Batch::default(), Some(&forget)).await.expect("it forgets");
        sink.apply(&self.batch("anew"), Some(&at(5))).await.expect("both are there");
        let (mut sink, opened) = self.opened().await;
        let Opened::Resumed(checkpoint) = opened else { panic!("it was here before") };
        assert_eq!(checkpoint.excluded, []);
        sink.apply(&self.batch("again"), Some(&at(6))).await.expect("both are there");
        assert_eq!(self.seats.all().await, ["1 again full"]);
        self.seats.store().state().await.expect("the state").forget(&flow()).await.expect("it is forgotten");
        for route in &self.routes {
            self.seats.drop_table(&route.target.name).await;
        }
    }
}
