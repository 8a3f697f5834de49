//! The servers, tables and changes that everything is measured on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_services::postgres::{Options, Server, Tls};
use tokio::time::Instant;
use tokio_postgres::{Client, NoTls};

use crate::Result;
use crate::peers::debezium::{self, Debezium};
use crate::work::latency;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Rows of the table.
    pub rows: u64,
    /// Transactions of 50 inserts and 50 updates each.
    pub transactions: u64,
    /// Counted runs of each side.
    pub rounds: usize,
    /// Whether one more run of each side comes first, which is not counted.
    pub warm_up: bool,
    /// How long is written at a steady rate.
    pub seconds: u64,
    /// Whether brokers are given as many messages as make a run of some seconds.
    pub many_messages: bool,
    /// Whether a peer that is not here may be fetched.
    pub may_fetch: bool,
}

impl Size {
    /// As the bars are meant.
    pub const FULL: Self = Self {
        rows: 2_000_000,
        transactions: 5_000,
        rounds: 5,
        warm_up: true,
        seconds: 12,
        many_messages: true,
        may_fetch: true,
    };
    /// Only to see that everything works.
    pub const QUICK: Self = Self {
        rows: 20_000,
        transactions: 40,
        rounds: 1,
        warm_up: false,
        seconds: 1,
        many_messages: false,
        may_fetch: false,
    };

    /// How many changes the backlog has.
    pub fn changes(&self) -> u64 {
        self.transactions * 100
    }

    /// How many messages of so many are sent.
    pub fn messages_of(&self, many: u64) -> u64 {
        if self.many_messages { many } else { many.min(FEW_MESSAGES) }
    }

    /// Whether no row of the backlog is changed twice, so that none can be joined with another on the way.
    pub fn has_distinct_changes(&self) -> bool {
        self.transactions * 50 <= self.rows && !self.rows.is_multiple_of(STEP)
    }

    /// How many rows are written at the steady rate.
    pub fn paced_rows(&self) -> u64 {
        latency::rows_in(self.seconds)
    }

    /// The runs, with whether each counts.
    pub fn runs(&self) -> impl Iterator<Item = (usize, bool)> + use<> {
        let skip = usize::from(self.warm_up);
        (0..self.rounds + skip).map(move |run| (run, run >= skip))
    }
}

/// Some windows of messages, of which the last one is not full.
const FEW_MESSAGES: u64 = 1_500;

/// From one row that the backlog updates to the next: a prime, so that each is met once.
pub const STEP: u64 = 7_919;

/// A source and a target, each a server of its own.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The source.
    pub source: Server,
    /// The target.
    pub target: Server,
    /// How much of everything.
    pub size: Size,
    /// What took part.
    versions: Versions,
}

/// What took part, by name and version.
#[derive(Clone, Debug, Default)]
pub struct Versions(Arc<Mutex<BTreeMap<String, String>>>);

impl Versions {
    /// Notes what took part.
    pub fn note(&self, what: &str, version: &str) {
        let mut versions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        versions.insert(what.to_owned(), version.to_owned());
    }

    /// All of it.
    pub fn all(&self) -> BTreeMap<String, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The values of the row with the number `$g`.
fn values(number: &str) -> String {
    format!(
        "{number}, repeat(md5(({number})::text), 2), ({number}) * 1.01,
        timestamptz '2024-01-01' + ({number}) * interval '1 second',
        jsonb_build_object('a', {number}, 'b', md5(({number})::text)), timestamptz '2024-01-01'"
    )
}

const COLUMNS: &str =
    "s text NOT NULL, n numeric NOT NULL, ts timestamptz NOT NULL, j jsonb, upd timestamptz";

impl Ground {
    /// Starts both servers.
    pub async fn prepare(size: Size, versions: Versions) -> Result<Self> {
        let options = || {
            Options::default()
                .with_setting("shared_buffers", "1GB")
                .with_setting("max_wal_size", "16GB")
                .with_setting("checkpoint_timeout", "1h")
                .with_setting("max_replication_slots", 100)
                .with_setting("max_wal_senders", 100)
                .with_setting("autovacuum", "off")
        };
        let source = Server::start(options().with_tls(Tls::Offered)).await?;
        let target = Server::start(options().with_fresh_identity()).await?;
        let version = connect(&source.url()).await?.query_one("SHOW server_version", &[]).await?;
        versions.note("PostgreSQL", version.get(0));
        Ok(Self { source, target, size, versions })
    }

    /// Notes what took part.
    pub fn names(&self, what: &str, version: &str) {
        self.versions.note(what, version);
    }

    /// Finds the Debezium engine, and notes what it is.
    pub async fn debezium(&self) -> Result<Debezium> {
        let engine = Debezium::find(self.size.may_fetch)?;
        self.names("Debezium engine", debezium::VERSION);
        self.names("Java", &engine.java_version().await?);
        Ok(engine)
    }

    /// A database of the source. The server speaks TLS, so who is to go without has to be told.
    pub async fn create_at_source(&self, database: &str) -> Result<String> {
        Ok(format!("{}?sslmode=disable", self.source.create_database(database).await?))
    }

    /// A database of the source with the table in it, its rows in the order of the key.
    pub async fn fill(&self, database: &str) -> Result<String> {
        self.fill_with(database, self.size.rows).await
    }

    /// The same with another number of rows.
    pub async fn fill_with(&self, database: &str, rows: u64) -> Result<String> {
        let url = self.create_at_source(database).await?;
        let client = connect(&url).await?;
        client.batch_execute(&format!("CREATE TABLE bench (id int8 PRIMARY KEY, {COLUMNS})")).await?;
        self.insert(&url, 1, rows).await?;
        client.batch_execute("VACUUM (ANALYZE) bench").await?;
        Ok(url)
    }

    /// Inserts the rows with these numbers in one transaction.
    pub async fn insert(&self, url: &str, first: u64, last: u64) -> Result<()> {
        let sql = format!("INSERT INTO bench SELECT {} FROM generate_series({first}, {last}) g", values("g"));
        Ok(connect(url).await?.batch_execute(&sql).await?)
    }

    /// A slot of a peer, which keeps every change from here on.
    pub async fn create_slot(&self, url: &str, slot: &str) -> Result<()> {
        let sql = "SELECT pg_create_logical_replication_slot($1::text::name, 'pgoutput')";
        connect(url).await?.query_one(sql, &[&slot]).await?;
        Ok(())
    }

    /// Drops it again.
    pub async fn drop_slot(&self, url: &str, slot: &str) -> Result<()> {
        let client = connect(url).await?;
        // The server lets go of it a moment after whoever read it is gone.
        loop {
            let sql = "SELECT pg_drop_replication_slot($1::text::name)";
            match client.query_one(sql, &[&slot]).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::OBJECT_IN_USE) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The same with keys that follow no order.
    pub async fn fill_at_random(&self, database: &str) -> Result<String> {
        let url = self.create_at_source(database).await?;
        let client = connect(&url).await?;
        client.batch_execute(&format!("CREATE TABLE bench (id uuid PRIMARY KEY, {COLUMNS})")).await?;
        let sql = format!(
            "INSERT INTO bench SELECT md5(id::text)::uuid, s, n, ts, j, upd
            FROM (SELECT {} FROM generate_series(1, {}) g) r (id, s, n, ts, j, upd)",
            values("g"),
            self.size.rows
        );
        client.batch_execute(&sql).await?;
        client.batch_execute("VACUUM (ANALYZE) bench").await?;
        Ok(url)
    }

    /// A database of the target with the table, its key in place, and no row.
    pub async fn empty(&self, database: &str, key: &str) -> Result<String> {
        let url = self.target.create_database(database).await?;
        let client = connect(&url).await?;
        client.batch_execute(&format!("CREATE TABLE bench (id {key} PRIMARY KEY, {COLUMNS})")).await?;
        Ok(url)
    }

    /// Writes the backlog: transactions of 50 inserts and 50 updates, and a row with the key 0 at the end.
    pub async fn write_backlog(&self, url: &str) -> Result<()> {
        let Size { rows, transactions, .. } = self.size;
        let client = connect(url).await?;
        let new = format!("{rows} + t * 50 + g");
        let sql = format!(
            "DO $$ BEGIN FOR t IN 0..{transactions} - 1 LOOP
                INSERT INTO bench SELECT {} FROM generate_series(1, 50) g;
                UPDATE bench b SET s = repeat(md5((t * 50 + g)::text), 2), upd = now() FROM generate_series(1, 50) g
                    WHERE b.id = (t * 50 + g) * {STEP}::int8 % {rows} + 1;
                COMMIT;
            END LOOP; END $$",
            values(&new)
        );
        client.batch_execute(&sql).await?;
        client
            .batch_execute(&format!("SET synchronous_commit = on; INSERT INTO bench SELECT {}", values("0")))
            .await?;
        Ok(())
    }

    /// Brings both servers to rest before a run.
    pub async fn settle(&self) -> Result<()> {
        for server in [&self.source, &self.target] {
            connect(&server.url()).await?.batch_execute("CHECKPOINT").await?;
        }
        Ok(())
    }
}

/// A session, whose connection lives as long as the client.
#[allow(clippy::disallowed_methods, reason = "the driver's task ends with its client")]
pub async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move {
        let _ends_with_the_client = connection.await;
    });
    Ok(client)
}

/// How many rows the table has.
pub async fn count(url: &str) -> Result<u64> {
    count_of(url, "bench").await
}

/// The same of another table.
pub async fn count_of(url: &str, table: &str) -> Result<u64> {
    let row = connect(url).await?.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}

/// How many a second.
pub fn rate(count: u64, since: Instant) -> f64 {
    count as f64 / since.elapsed().max(Duration::from_micros(1)).as_secs_f64()
}
