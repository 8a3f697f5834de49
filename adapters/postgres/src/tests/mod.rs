//! The driver against a real server. The ports are tested from outside, in `tests/it`.

mod connecting;
mod streaming;
mod values;

use crate::config::Settings;
use crate::connect::Session;

/// A superuser's URL of a server with `wal_level=logical`.
const URL: &str = "TIDEGATE_TEST_POSTGRES_URL";

fn settings() -> Settings {
    let url = std::env::var(URL);
    Settings::parse(&url.unwrap_or_else(|_| panic!("{URL} is not set: these tests need a PostgreSQL server")))
        .unwrap()
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
