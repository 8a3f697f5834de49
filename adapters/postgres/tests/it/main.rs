//! The ports against a real server.

#![expect(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

mod applying;
mod capturing;
mod crawling;
mod describing;
mod flowing;
mod serving;
mod visibility;

use std::ops::Deref;
use std::sync::Arc;

use tidegate_core::Endpoint;
use tidegate_core::port::Store;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

/// A superuser's URL of a server with `wal_level=logical`.
const URL: &str = "TIDEGATE_TEST_POSTGRES_URL";

fn url() -> String {
    std::env::var(URL).unwrap_or_else(|_| panic!("{URL} is not set: these tests need a PostgreSQL server"))
}

/// A session of the driver, to set the stage with.
struct Session {
    client: Client,
    _driver: JoinSet<()>,
}

impl Session {
    async fn connect(url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async { drop(connection.await) });
        Self { client, _driver: driver }
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

async fn session() -> Session {
    Session::connect(&url()).await
}

/// The URL of a database of this name.
fn url_of(database: &str) -> String {
    let mut url = url::Url::parse(&url()).unwrap();
    url.set_path(database);
    url.to_string()
}

/// Each statement in a transaction of its own, which a batch of several would not be.
async fn run<S: AsRef<str>>(session: &Session, statements: impl IntoIterator<Item = S>) {
    for statement in statements {
        session.batch_execute(statement.as_ref()).await.unwrap();
    }
}

/// A new database of this name, its store and a session in it. One that a failed run left is dropped first.
async fn database(name: &str) -> (Arc<dyn Store>, Session) {
    let admin = session().await;
    let slots = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '{name}';
         SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{name}' AND NOT active"
    );
    for _ in 0..50 {
        let _ = admin.batch_execute(&slots).await;
        let left = format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{name}'");
        if admin.query_one(&left, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    run(&admin, [format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"), format!("CREATE DATABASE {name}")])
        .await;
    let url = url_of(name);
    let store = tidegate_postgres::open(&Endpoint::parse(&url).unwrap()).unwrap();
    let session = Session::connect(&url).await;
    (store, session)
}

/// Drops what [`database`] made, and the slots in it.
async fn drop_database(session: Session) {
    let name: String = session.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
    let slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
        WHERE database = current_database()";
    session.batch_execute(slots).await.unwrap();
    drop(session);
    let admin = crate::session().await;
    admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
}
