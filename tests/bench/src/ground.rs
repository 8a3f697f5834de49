//! The servers, tables and changes that everything is measured on.

use std::time::Duration;

use tidegate_services::postgres::{Options, Server, Tls};
use tokio::time::Instant;
use tokio_postgres::{Client, NoTls};

use crate::Result;

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
}

impl Size {
    /// As the bars are meant.
    pub const FULL: Self = Self { rows: 2_000_000, transactions: 5_000, rounds: 5, warm_up: true };
    /// Only to see that everything works.
    pub const QUICK: Self = Self { rows: 20_000, transactions: 40, rounds: 1, warm_up: false };

    /// How many changes the backlog has.
    pub fn changes(&self) -> u64 {
        self.transactions * 100
    }

    /// The runs, with whether each counts.
    pub fn runs(&self) -> impl Iterator<Item = (usize, bool)> + use<> {
        let skip = usize::from(self.warm_up);
        (0..self.rounds + skip).map(move |run| (run, run >= skip))
    }
}

/// A source and a target, each a server of its own.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The source.
    pub source: Server,
    /// The target.
    pub target: Server,
    /// How much of everything.
    pub size: Size,
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
    pub async fn prepare(size: Size) -> Result<Self> {
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
        Ok(Self { source, target, size })
    }

    /// A database of the source. The server speaks TLS, so who is to go without has to be told.
    async fn create_at_source(&self, database: &str) -> Result<String> {
        Ok(format!("{}?sslmode=disable", self.source.create_database(database).await?))
    }

    /// A database of the source with the table in it, its rows in the order of the key.
    pub async fn fill(&self, database: &str) -> Result<String> {
        let url = self.create_at_source(database).await?;
        let client = connect(&url).await?;
        client.batch_execute(&format!("CREATE TABLE bench (id int8 PRIMARY KEY, {COLUMNS})")).await?;
        let sql =
            format!("INSERT INTO bench SELECT {} FROM generate_series(1, {}) g", values("g"), self.size.rows);
        client.batch_execute(&sql).await?;
        client.batch_execute("VACUUM (ANALYZE) bench").await?;
        Ok(url)
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
                    WHERE b.id = (t * 50 + g) * 7919::int8 % {rows} + 1;
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
    let row = connect(url).await?.query_one("SELECT count(*) FROM bench", &[]).await?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}

/// How many a second.
pub fn rate(count: u64, since: Instant) -> f64 {
    count as f64 / since.elapsed().max(Duration::from_micros(1)).as_secs_f64()
}
