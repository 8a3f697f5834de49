//! Tables of the target that somebody removes.

use std::time::Duration;

use tidegate_core::port::StateStore;
use tidegate_flow::run::{WISHES, Wishes, change, run};
use tidegate_flow::{Status, TableState};

use super::*;

struct World {
    source: MemoryStore,
    target: MemoryStore,
    tables: [TableName; 2],
    flow: Flow,
}

impl World {
    async fn new() -> Self {
        let (source, target) = (MemoryStore::new("source"), MemoryStore::new("target"));
        let tables = ["lines", "orders"].map(|name| TableName::new("", name));
        for table in &tables {
            let columns = vec![Column::new("id", Type::Int { bits: 64 }), Column::new("v", Type::Text)];
            source.create_table(table, columns, &["id"]);
            let row = |id| Write::insert(table, [Value::Int(id), text("old")]);
            source.transact(&(0..25).map(row).collect::<Vec<_>>()).unwrap();
        }
        let flow = flow(&source, &target, &tables).await;
        Self { source, target, tables, flow }
    }

    /// Changes a row of each table.
    fn change(&self, value: &str) {
        let new = |table| Write::update(table, [Value::Int(1)], [(1, text(value))]);
        self.source.transact(&self.tables.each_ref().map(new)).unwrap();
    }

    /// Runs `meanwhile` while the flow runs, or until it has caught up, and gives its status.
    async fn go(&self, until: Until, meanwhile: impl Future<Output = ()>) -> Status {
        let gauge = Gauge::new(&self.flow.routes, &self.flow.options);
        let state: Arc<dyn StateStore> = self.target.state().await.unwrap();
        let stop = CancellationToken::new();
        let running = run(&self.flow, until, &gauge, &state, "test", Duration::from_secs(5), &stop);
        let meanwhile = async {
            meanwhile.await;
            if until == Until::Stopped {
                stop.cancel();
            }
        };
        let both = async { tokio::join!(Box::pin(running), meanwhile).0 };
        both.await.unwrap();
        gauge.read(self.flow.clock.as_ref())
    }

    async fn catch_up(&self) -> Status {
        self.go(Until::CaughtUp, async {}).await
    }

    async fn recopy(&self) {
        let ask = |wishes: &mut Wishes| *wishes.recopies.entry("orders".to_owned()).or_default() += 1;
        change(&self.target, &self.flow.name, WISHES, ask).await.unwrap();
    }

    fn is_equal(&self, table: &TableName) -> bool {
        self.target.rows(table) == self.source.rows(table)
    }

    /// The second table stopped by name, the first one goes on.
    fn assert_one_stopped(&self, status: &Status) {
        let [lines, orders] = &status.tables[..] else { panic!("{status:?}") };
        assert_eq!((lines.state, orders.state), (TableState::Live, TableState::Failed));
        let error = orders.error.clone().unwrap();
        assert!(error.starts_with("TG0020 table-missing: the target's table is gone"), "{error}");
        assert!(error.contains("table: orders"), "{error}");
        assert!(self.is_equal(&self.tables[0]));
    }

    fn assert_whole(&self, status: &Status) {
        assert!(status.tables.iter().all(|table| table.state == TableState::Live), "{status:?}");
        assert!(self.tables.iter().all(|table| self.is_equal(table)));
        assert_eq!(self.source.rows(&self.tables[1]).len(), 25);
    }
}

/// A copy made anew is the only way back: whatever has taken the name meanwhile is not written to.
#[tokio::test(start_paused = true)]
async fn a_table_that_is_gone_stops_by_name_until_it_is_copied_anew() {
    for is_made_again in [false, true] {
        let world = World::new().await;
        world.assert_whole(&world.catch_up().await);
        world.target.drop_table(&world.tables[1]);
        if is_made_again {
            let target = std::slice::from_ref(&world.flow.routes[1].target);
            world.target.catalog().await.unwrap().create(target).await.unwrap();
        }
        for value in ["new", "newer"] {
            world.change(value);
            world.assert_one_stopped(&world.catch_up().await);
            assert!(world.target.rows(&world.tables[1]).is_empty());
        }
        world.recopy().await;
        for value in ["anew", "last"] {
            world.change(value);
            let status = world.catch_up().await;
            world.assert_whole(&status);
            assert_eq!(status.tables[1].restarts, 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_that_goes_while_the_flow_runs_stops_by_name_and_the_others_go_on() {
    let world = World::new().await;
    let a_while = || tokio::time::sleep(Duration::from_secs(30));
    let removing = async {
        a_while().await;
        world.target.drop_table(&world.tables[1]);
        for value in ["new", "newer"] {
            world.change(value);
            a_while().await;
        }
    };
    world.assert_one_stopped(&world.go(Until::Stopped, removing).await);
    let copying = async {
        a_while().await;
        world.recopy().await;
        world.change("anew");
        a_while().await;
    };
    world.assert_whole(&world.go(Until::Stopped, copying).await);
}

/// It was copied anew before anybody noticed that it was gone.
#[tokio::test(start_paused = true)]
async fn a_table_that_goes_may_be_copied_anew_at_once() {
    let world = World::new().await;
    world.catch_up().await;
    world.target.drop_table(&world.tables[1]);
    world.recopy().await;
    world.assert_whole(&world.catch_up().await);
}
