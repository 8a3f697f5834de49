//! What a handler writes in its own store, and the note that it did.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tidegate::prelude::*;
use tidegate::runtime::{Begun, Committed, Inbox, Once};
use tidegate::sqlite::SqliteStore;

#[derive(Serialize, Deserialize)]
struct Placed {
    order: String,
    number: u32,
}

impl Typed for Placed {
    const KIND: &str = "order.placed.v1";

    fn subject(&self) -> Option<String> {
        Some(self.order.clone())
    }
}

const PAUSE: Duration = Duration::from_millis(1);

#[derive(Clone)]
struct Billing {
    inbox: Inbox<SqliteStore>,
    attempts: Arc<AtomicUsize>,
}

impl AsRef<Inbox<SqliteStore>> for Billing {
    fn as_ref(&self) -> &Inbox<SqliteStore> {
        &self.inbox
    }
}

/// Fails behind its effect every other time, and in the midst of it every third.
async fn bill(
    State(billing): State<Billing>,
    once: Once<SqliteStore>,
    Json(placed): Json<Placed>,
) -> Result<Committed, Failure> {
    let attempt = billing.attempts.fetch_add(1, Ordering::Relaxed);
    let mut tx = match once.begin().await? {
        Begun::New(tx) => tx,
        Begun::Before(done) => return Ok(done),
    };
    let insert = sqlx::query("INSERT INTO bills(name, number) VALUES (?, ?)");
    insert.bind(&placed.order).bind(placed.number).execute(&mut **tx).await?;
    if attempt % 3 == 0 {
        return Err(Failure::retry("in the midst"));
    }
    let done = tx.commit().await?;
    if attempt % 2 == 0 { Err(Failure::retry("behind it")) } else { Ok(done) }
}

#[tokio::test]
async fn what_is_handled_again_has_its_effect_once() {
    let broker = tidegate::open::broker("memory:").unwrap();
    let orders = Channel::new("orders").unwrap().with_lanes(2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bills.db").display().to_string();
    let store = tidegate::sqlite::open_inbox(&Endpoint::parse(&format!("sqlite:{path}")).unwrap()).unwrap();
    let mut connection = SqliteConnection::connect(&format!("sqlite:{path}?mode=rwc")).await.unwrap();
    let sql = "PRAGMA journal_mode = WAL; CREATE TABLE bills(name TEXT, number INTEGER)";
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    let attempts = Arc::new(AtomicUsize::new(0));
    let mut services = Vec::new();
    for name in ["billing", "audit"] {
        let billing =
            Billing { inbox: Inbox::new(store.clone(), name).unwrap(), attempts: Arc::clone(&attempts) };
        let policy = Policy::block().with_pauses(PAUSE, PAUSE);
        let handlers = Handlers::new().handle(bill).with_policy(policy).with_concurrency(4);
        let service = Service::new(name).with_state(billing).on(&orders, handlers);
        services.push(service.start(&broker).await.unwrap());
    }
    let sender = Sender::open(&*broker, &orders).with_patience(Duration::from_secs(5)).await.unwrap();
    let placed = (0..20).map(|number| Json(Placed { order: format!("o{}", number % 5), number }));
    let messages: Vec<Message> =
        placed.map(|placed| placed.to_message(&SystemIds, "/shop").unwrap()).collect();
    sender.send_all(messages).await.unwrap();
    let all = async {
        while services.iter().any(|service| service.counted().handled < 20) {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("all of them are handled by both");
    assert!(attempts.load(Ordering::Relaxed) > 60, "some were tried again");
    for service in services {
        service.drain(Duration::from_secs(5)).await.unwrap();
    }
    let numbers = sqlx::query_scalar("SELECT number FROM bills ORDER BY number");
    let numbers: Vec<i64> = numbers.fetch_all(&mut connection).await.unwrap();
    assert_eq!(numbers, (0..40).map(|n| n / 2).collect::<Vec<_>>(), "each once by either");
    let inbox = Inbox::new(store, "billing").unwrap();
    assert_eq!(inbox.forget(Duration::from_secs(3_600)).await.unwrap(), 0);
    tokio::time::sleep(PAUSE).await;
    assert_eq!(inbox.forget(Duration::ZERO).await.unwrap(), 20);
}
