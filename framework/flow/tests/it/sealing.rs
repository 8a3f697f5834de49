//! An older copy of the source that has got further than the flow.

use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::Catalog;
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
