//! Runners that go on after another one has taken their flow over.

use std::time::Duration;

use mongodb::Client;
use mongodb::bson::doc;
use tidegate_core::error::code;
use tidegate_core::port::{Route, Sink, TableBatch};
use tidegate_core::{Type, Value};
use tidegate_services::mongodb::{Options, Server};
use tidegate_services::{Service, skipped};

use crate::applying::{batch, commit, opened};
use crate::place::{Place, route, table};

fn chunk(ids: std::ops::Range<i64>) -> TableBatch {
    let mut of = TableBatch { fresh: true, crawling: true, ..TableBatch::default() };
    ids.for_each(|id| of.upserts.push_values([Value::Int(id)]));
    of
}

async fn items(place: &Place) -> Route {
    route(&place.store, &table("items", &[("id", Type::Int { bits: 64 })], &[0])).await
}

/// Applies in the background what is held up by the fail point for `command`, and gives what became of it after
/// `meanwhile`.
async fn held_up<T>(
    admin: &Client,
    command: &str,
    mut sink: Box<dyn Sink>,
    of: TableBatch,
    meanwhile: impl Future<Output = T>,
) -> (Result<(), tidegate_core::Error>, T) {
    let data = doc! {
        "failCommands": [command], "blockConnection": true, "blockTimeMS": 3_000, "appName": "zombie",
    };
    let admin = admin.database("admin");
    let fail = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data };
    let before = admin.run_command(fail).await.unwrap().get_i32("count").unwrap();
    let applying = async { sink.apply(&batch(of), Some(&commit(2))).await.map(drop) };
    let taking_over = async {
        let wait = doc! {
            "waitForFailPoint": "failCommand", "timesEntered": i64::from(before + 1), "maxTimeMS": 20_000,
        };
        admin.run_command(wait).await.unwrap();
        let done = meanwhile.await;
        admin.run_command(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await.unwrap();
        done
    };
    let both = async { tokio::join!(applying, taking_over) };
    tokio::time::timeout(Duration::from_secs(60), both).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_runner_began_is_done_after_another_one_took_its_flow() {
    if skipped(Service::Mongodb) {
        return;
    }
    let options = Options::default().with_argument("--setParameter=enableTestCommands=1");
    let server = Server::start(options).await.unwrap();
    let admin = Client::with_uri_str(server.database_url("admin")).await.unwrap();
    // The server holds each of these commands before it does them, as a network or a stopped process would.
    for (at, (held, of)) in [
        ("insert", chunk(0..300)),
        ("commitTransaction", chunk(0..300)),
        ("update", chunk(0..300)),
        ("delete", TableBatch { truncate: true, ..TableBatch::default() }),
    ]
    .into_iter()
    .enumerate()
    {
        let url = server.database_url(&format!("zombies{at}"));
        let place = Place::at(&url).await;
        let zombie = Place::at(&format!("{url}&appName=zombie")).await;
        let way = items(&place).await;
        let ways = std::slice::from_ref(&way);
        let (mut sink, _) = opened(&zombie, ways).await;
        let is_truncation = of.truncate;
        if is_truncation {
            sink.apply(&batch(chunk(1_000..1_100)), Some(&commit(2))).await.unwrap();
        }
        let (applied, rows) = held_up(&admin, held, sink, of, async {
            let (mut next, _) = opened(&place, ways).await;
            next.apply(&batch(chunk(2_000..2_060)), Some(&commit(3))).await.unwrap();
            place.all("items").await
        })
        .await;
        assert_eq!(applied.unwrap_err().code(), code::LEASE_LOST, "{held}");
        assert_eq!(place.all("items").await, rows, "{held}");
        assert_eq!(rows.len(), if is_truncation { 160 } else { 60 }, "{held}");
        place.end().await;
    }
}
