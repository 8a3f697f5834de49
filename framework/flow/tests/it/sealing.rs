//! An older copy of the source that has got further than the flow.

use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::{Catalog, StateStore, Store};
use tidegate_core::{Column, Result, TableName, Type, Value};
use tidegate_flow::run::run;
use tidegate_flow::{Ended, Flow, Gauge, Until};
use tidegate_memory::{MemoryStore, Write};
use tokio_util::sync::CancellationToken;

async fn run_to(flow: &Flow, until: Until, stop: &CancellationToken) -> Result<Ended> {
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let state = flow.target.state().await?;
    Box::pin(run(flow, until, &gauge, &state, "me", Duration::from_secs(60), stop)).await
}

async fn catch_up(flow: &Flow) -> Result<Ended> {
    run_to(flow, Until::CaughtUp, &CancellationToken::new()).await
}

struct Shop {
    orders: TableName,
    source: MemoryStore,
    target: MemoryStore,
    flow: Flow,
}

impl Shop {
    async fn open() -> Self {
        let (source, target) = (MemoryStore::new("a"), MemoryStore::new("b"));
        let orders = TableName::new("", "orders");
        source.create_table(&orders, vec![Column::new("id", Type::Int { bits: 64 })], &["id"]);
        let flow = crate::flow(&source, &target, std::slice::from_ref(&orders)).await;
        let shop = Self { orders, source, target, flow };
        shop.insert(0..1);
        catch_up(&shop.flow).await.unwrap();
        shop
    }

    /// The same flow with another target.
    async fn to(&self, target: &MemoryStore) -> Flow {
        crate::flow(&self.source, target, std::slice::from_ref(&self.orders)).await
    }

    async fn seal(&self) -> Option<String> {
        self.source.sealed(&self.flow.name).await.unwrap()
    }

    fn insert(&self, ids: std::ops::Range<i64>) {
        for id in ids {
            self.source.transact(&[Write::insert(&self.orders, [Value::Int(id)])]).unwrap();
        }
    }
}

#[track_caller]
fn assert_replaced(outcome: Result<Ended>) {
    let error = outcome.unwrap_err();
    assert_eq!(error.code(), code::SOURCE_REPLACED);
    assert!(error.line().contains("it is an older copy"), "{}", error.line());
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_was_written_past_the_checkpoint_is_not_followed() {
    let shop = Shop::open().await;
    let backup = shop.source.backup();
    shop.insert(1..5);
    catch_up(&shop.flow).await.unwrap();
    shop.source.restore(&backup);
    shop.insert(10..30);
    let had = shop.target.rows(&shop.orders);
    assert_replaced(catch_up(&shop.flow).await);
    assert_replaced(catch_up(&shop.flow).await);
    assert_eq!(shop.target.rows(&shop.orders), had);
}

/// A copy from before there was any seal.
#[tokio::test(start_paused = true)]
async fn a_copy_from_before_the_flow_is_not_followed() {
    let shop = Shop::open().await;
    shop.insert(1..3);
    shop.source.seal(&shop.flow.name, None, "").await.unwrap();
    shop.source.clean(&shop.flow.name).await.unwrap();
    assert_replaced(catch_up(&shop.flow).await);
}

/// What the flow has not read when a copy is made it reads from the copy.
#[tokio::test(start_paused = true)]
async fn a_copy_that_is_not_older_than_what_the_flow_has_read_is_followed() {
    let shop = Shop::open().await;
    shop.insert(1..5);
    let backup = shop.source.backup();
    shop.insert(5..9);
    shop.source.restore(&backup);
    catch_up(&shop.flow).await.unwrap();
    assert_eq!(shop.target.rows(&shop.orders), shop.source.rows(&shop.orders));
}

/// A target that was set back is told again what it missed.
#[tokio::test(start_paused = true)]
async fn a_target_that_was_set_back_goes_on() {
    let shop = Shop::open().await;
    let backup = shop.target.backup();
    shop.insert(1..5);
    catch_up(&shop.flow).await.unwrap();
    shop.target.restore(&backup);
    catch_up(&shop.flow).await.unwrap();
    assert_eq!(shop.target.rows(&shop.orders), shop.source.rows(&shop.orders));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_set_back_while_the_flow_runs_is_found() {
    let shop = Shop::open().await;
    let backup = shop.source.backup();
    let stop = CancellationToken::new();
    let running = run_to(&shop.flow, Until::Stopped, &stop);
    let setting_back = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        shop.source.restore(&backup);
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = running => outcome,
        () = setting_back => unreachable!("it has no end"),
    };
    assert_replaced(outcome);
}

#[track_caller]
fn assert_taken(outcome: Result<Ended>) {
    let error = outcome.unwrap_err();
    assert_eq!(error.code().name(), "name-taken", "{error:?}");
    assert!(error.hint_text().unwrap_or_default().contains("--name"), "{error:?}");
}

/// Found by reading: the second flow was accepted, and broke what the first one had captured.
#[tokio::test(start_paused = true)]
async fn a_name_that_another_target_has_is_refused_and_nothing_is_changed() {
    let shop = Shop::open().await;
    let (other, seal) = (MemoryStore::new("c"), shop.seal().await);
    let flow = shop.to(&other).await;
    for _ in 0..2 {
        assert_taken(catch_up(&flow).await);
        assert_eq!(shop.seal().await, seal);
        for record in ["seal", "status", "tables"] {
            assert_eq!(other.get(&flow.name, record).await.unwrap(), None);
        }
        assert!(other.rows(&shop.orders).is_empty());
    }
    shop.insert(1..5);
    catch_up(&shop.flow).await.unwrap();
    assert_eq!(shop.target.rows(&shop.orders), shop.source.rows(&shop.orders));
}

/// Where the state is kept does not matter: what the target itself remembers says that it is the one.
#[tokio::test(start_paused = true)]
async fn another_target_is_refused_also_with_the_same_state() {
    let shop = Shop::open().await;
    let flow = shop.to(&MemoryStore::new("c")).await;
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let state = shop.target.state().await.unwrap();
    let stop = CancellationToken::new();
    let patience = Duration::from_secs(60);
    let status = shop.target.get(&flow.name, "status").await.unwrap();
    assert_taken(Box::pin(run(&flow, Until::CaughtUp, &gauge, &state, "me", patience, &stop)).await);
    assert_eq!(shop.target.get(&flow.name, "status").await.unwrap(), status);
    catch_up(&shop.flow).await.unwrap();
}

/// What was begun for it may have been applied elsewhere.
#[tokio::test(start_paused = true)]
async fn a_target_that_was_dropped_does_not_begin_anew_by_itself() {
    let shop = Shop::open().await;
    let empty = MemoryStore::new("b");
    let flow = shop.to(&empty).await;
    assert_taken(catch_up(&flow).await);
    shop.source.clean(&flow.name).await.unwrap();
    catch_up(&flow).await.unwrap();
    assert_eq!(empty.rows(&shop.orders), shop.source.rows(&shop.orders));
}

#[tokio::test(start_paused = true)]
async fn of_two_that_begin_at_once_one_is_refused() {
    let (source, one, two) = (MemoryStore::new("a"), MemoryStore::new("b"), MemoryStore::new("c"));
    let orders = TableName::new("", "orders");
    source.create_table(&orders, vec![Column::new("id", Type::Int { bits: 64 })], &["id"]);
    source.transact(&[Write::insert(&orders, [Value::Int(1)])]).unwrap();
    let flows = [
        crate::flow(&source, &one, std::slice::from_ref(&orders)).await,
        crate::flow(&source, &two, std::slice::from_ref(&orders)).await,
    ];
    let (first, second) = tokio::join!(catch_up(&flows[0]), catch_up(&flows[1]));
    let (won, lost) = if first.is_ok() { (first, second) } else { (second, first) };
    won.unwrap();
    assert_taken(lost);
}

/// The runner was killed when the source had got the seal and the target's record said that it was about to.
#[tokio::test(start_paused = true)]
async fn a_runner_that_was_killed_at_its_first_seal_goes_on() {
    let (source, target) = (MemoryStore::new("a"), MemoryStore::new("b"));
    let orders = TableName::new("", "orders");
    source.create_table(&orders, vec![Column::new("id", Type::Int { bits: 64 })], &["id"]);
    let flow = crate::flow(&source, &target, std::slice::from_ref(&orders)).await;
    target.put(&flow.name, "seal", r#"{"at":null,"next":"0000000000000001-b-x"}"#, 0).await.unwrap();
    source.seal(&flow.name, None, "0000000000000001-b-x").await.unwrap();
    catch_up(&flow).await.unwrap();
}

/// Whichever has been sealed more often.
#[tokio::test(start_paused = true)]
async fn a_target_that_was_given_up_does_not_take_the_name_back() {
    let shop = Shop::open().await;
    shop.source.clean(&shop.flow.name).await.unwrap();
    let flow = shop.to(&MemoryStore::new("c")).await;
    for _ in 0..5 {
        catch_up(&flow).await.unwrap();
    }
    assert_taken(catch_up(&shop.flow).await);
    catch_up(&flow).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_runner_whose_name_goes_to_another_target_stops() {
    let shop = Shop::open().await;
    let stop = CancellationToken::new();
    let running = run_to(&shop.flow, Until::Stopped, &stop);
    let taking = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        shop.source.clean(&shop.flow.name).await.unwrap();
        let flow = shop.to(&MemoryStore::new("c")).await;
        catch_up(&flow).await.unwrap();
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = running => outcome,
        () = taking => unreachable!("it has no end"),
    };
    assert_taken(outcome);
}
