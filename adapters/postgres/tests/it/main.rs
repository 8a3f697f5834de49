//! The driver against a real server.

#![expect(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

mod connecting;
mod streaming;
mod values;

use tidegate_postgres::Settings;
use tidegate_postgres::connect::Session;

/// A superuser's URL of a server with `wal_level=logical`.
const URL: &str = "TIDEGATE_TEST_POSTGRES_URL";

fn url() -> String {
    std::env::var(URL).unwrap_or_else(|_| panic!("{URL} is not set: these tests need a PostgreSQL server"))
}

fn settings() -> Settings {
    Settings::parse(&url()).unwrap()
}

async fn session() -> Session {
    Session::connect(&settings()).await.unwrap()
}

/// Each statement in a transaction of its own, which a batch of several would not be.
async fn run<S: AsRef<str>>(session: &Session, statements: impl IntoIterator<Item = S>) {
    for statement in statements {
        session.batch_execute(statement.as_ref()).await.unwrap();
    }
}
