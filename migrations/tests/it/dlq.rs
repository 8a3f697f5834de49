use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate_core::port::Broker;
use tidegate_core::{Channel, Endpoint, Message, SystemClock};
use tidegate_runtime::dead_letter::DeadLetters;
use tidegate_runtime::{Failure, Handlers, Policy, Running, Service};

use crate::tidegate;

/// A channel on a broker in a file, with a service that fails until it is mended.
struct Shop {
    folder: tempfile::TempDir,
    broker: Arc<dyn Broker>,
    orders: Channel,
    store: Arc<dyn tidegate_core::port::StateStore>,
    is_mended: Arc<AtomicBool>,
}

impl Shop {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at =
            |name: &str| Endpoint::parse(&format!("sqlite:{}", folder.path().join(name).display())).unwrap();
        let broker = tidegate::sqlite::open_broker(&at("broker.db")).unwrap();
        let store = tidegate::sqlite::open(&at("state.db")).unwrap().state().await.unwrap();
        let orders = Channel::new("orders").unwrap().with_lanes(2);
        Self { folder, broker, orders, store, is_mended: Arc::default() }
    }

    fn url(&self) -> String {
        format!("sqlite:{}", self.folder.path().join("broker.db").display())
    }

    async fn start(&self) -> Running {
        let is_mended = Arc::clone(&self.is_mended);
        let handle = move |message: Message| {
            let is_good = is_mended.load(Ordering::Relaxed) || *message.data == *b"\"mended\"";
            async move { if is_good { Ok(()) } else { Err(Failure::never("no money")) } }
        };
        let handlers = Handlers::new().handle(handle).with_policy(Policy::park_key());
        let service = Service::new("billing").with_store(Arc::clone(&self.store));
        service.on(&self.orders, handlers).start(&self.broker).await.unwrap()
    }

    async fn place(&self, ids: &[&str]) {
        let message = |id: &&str| {
            Message::with_id(*id, "shop", "order.placed")
                .with_subject(&id[..1])
                .with_data("application/json", "{}")
        };
        let messages: Vec<_> = ids.iter().map(message).collect();
        let sent = self.broker.producer(&self.orders).await.unwrap().publish(&messages).await;
        assert!(sent.iter().all(|sent| sent.is_stored()), "{sent:?}");
    }

    fn ask(&self, verb: &str, words: &[&str]) -> crate::Outcome {
        let url = self.url();
        tidegate(&[&["dlq", verb, "--broker", &url, "--channel", "orders"], words].concat())
    }

    fn ids(&self) -> Vec<String> {
        let listed: serde_json::Value =
            serde_json::from_str(&self.ask("list", &["--json"]).ended(0).out).unwrap();
        listed.as_array().unwrap().iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect()
    }
}

async fn until(mut is_so: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come about");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_shown_replayed_edited_and_purged() {
    let shop = Shop::open().await;
    let service = shop.start().await;
    shop.place(&["a1", "b1", "a2", "c1"]).await;
    until(|| service.counted().dead == 4).await;
    let listed = shop.ask("list", &[]).ended(0).out;
    let lines: Vec<_> = listed.lines().collect();
    assert!(
        lines[0].split_whitespace().eq([
            "id",
            "kind",
            "subject",
            "subscription",
            "reason",
            "attempts",
            "since",
            "error"
        ]),
        "{listed}"
    );
    let first = lines.iter().find(|line| line.trim_start().starts_with("a1 ")).unwrap();
    assert!(first.contains("refused") && first.ends_with("no money"), "{listed}");
    assert!(listed.contains("behind"), "{listed}");
    // Subjects die beside each other, each in its order.
    let mut ids = shop.ids();
    ids.sort_by_key(|id| !id.starts_with('a'));
    assert_eq!((ids.len(), &ids[..2]), (4, &["a1".to_owned(), "a2".to_owned()][..]));
    let two = shop.ask("list", &["--limit", "2"]).ended(0);
    assert!(
        two.err.contains("the oldest 2 dead letters were looked at, and there may be more"),
        "{}",
        two.err
    );
    let behind = shop.ask("list", &["--reason", "behind"]).ended(0).out;
    assert!(behind.contains("a2") && !behind.contains("b1"), "{behind}");
    shop.ask("show", &["a"]).failed(
        3,
        "TG0048 letter-missing: 2 dead letters of channel orders begin with a",
        &["tidegate dlq list shows their ids"],
    );
    assert!(shop.ask("show", &["b"]).ended(0).out.contains("id: b1"), "its beginning is enough");
    let shown = shop.ask("show", &["a1"]).ended(0).out;
    for line in ["id: a1", "type: order.placed", "tg_dlq_error: no money", "tg_dlq_attempts: 1", "\n{}\n"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    // One with another body, one for ever, the others as they were.
    let body = shop.folder.path().join("body");
    let edit = ["b1", "--body", body.to_str().unwrap(), "--yes"];
    std::fs::write(&body, "mended").unwrap();
    shop.ask("edit", &edit[..3]).failed(
        2,
        "TG0001 config-invalid: another body has to be agreed to, and nobody can be asked",
        &["give --yes"],
    );
    shop.ask("edit", &edit).failed(
        2,
        "TG0001 config-invalid: the body is not application/json: expected value at line 1 column 1",
        &[],
    );
    assert_eq!(shop.ids().len(), 4, "nothing was replayed");
    std::fs::write(&body, "\"mended\"").unwrap();
    let edited = shop.ask("edit", &edit).ended(0);
    assert_eq!(edited.out, "1 replayed\n");
    until(|| service.counted().handled == 1).await;
    let purged = shop.ask("purge", &["--id", "c1", "--yes", "--json"]).ended(0).out;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&purged).unwrap()["purged"], 1);
    shop.is_mended.store(true, Ordering::Relaxed);
    assert_eq!(
        shop.ask("replay", &["--subject", "z"]).ended(0).out,
        "0 replayed: none of the 2 dead letters of channel orders is meant\n"
    );
    assert_eq!(shop.ask("replay", &["--subject", "a"]).ended(0).out, "2 replayed\n");
    until(|| service.counted().handled == 3).await;
    shop.place(&["a3", "c2"]).await;
    until(|| service.counted().handled == 5).await;
    assert!(shop.ids().is_empty());
    assert_eq!(shop.ask("list", &[]).ended(0).out, "no dead letters of channel orders\n");
    service.drain(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_is_said() {
    let shop = Shop::open().await;
    shop.ask("list", &[]).failed(2, "TG0002 url-invalid: there is no database file at", &[]);
    let service = shop.start().await;
    service.drain(Duration::from_secs(5)).await.unwrap();
    shop.ask("show", &["x"]).failed(
        3,
        "TG0048 letter-missing: there is no dead letter x of channel orders",
        &["tidegate dlq list shows their ids"],
    );
    shop.ask("replay", &[]).failed(
        2,
        "TG0001 config-invalid: it was not said which dead letters to replay",
        &["--subject", "--all"],
    );
    shop.ask("purge", &["--all"]).failed(
        2,
        "TG0001 config-invalid: a purge has to be agreed to, and nobody can be asked",
        &["give --yes"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_somebody_else_has_the_dead_letters_is_said_and_not_that_there_are_none() {
    let shop = Shop::open().await;
    let service = shop.start().await;
    shop.place(&["a1"]).await;
    until(|| service.counted().dead == 1).await;
    service.drain(Duration::from_secs(5)).await.unwrap();
    let of = &shop.orders.name;
    let mut other = DeadLetters::open(&*shop.broker, of, 10, SystemClock::shared()).await.unwrap();
    assert_eq!(other.read().await.unwrap().count(), 1);
    shop.ask("list", &["--timeout", "5s"]).failed(
        6,
        "TG0033 lease-held: somebody else has the dead letters of channel orders in hand",
        &[
            "waited: 5s",
            "which somebody else may have, takes a while",
            "another `tidegate dlq`",
            "until its lease is over",
        ],
    );
    other.close().await.unwrap();
    // Neither that one nor the one that was refused is in the way now.
    let began = std::time::Instant::now();
    assert_eq!(shop.ids(), ["a1"]);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
