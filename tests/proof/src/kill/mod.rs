//! Real servers and the real program, killed at random moments while an application writes; where everything goes through a
//! broker, that too.
//!
//! After some kills, and at the end, the writers rest, the program catches up, and both databases are compared row by
//! row with what their own clients read: nothing here shares code with the program's own verification. Then a table is
//! crawled anew, so that the next kills meet a crawl too.

mod target;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tidegate_services::broker::{self, Broker};
use tidegate_services::postgres::{Options, Server};
use tokio::process::{Child, Command};
use tokio_postgres::{Client, NoTls};

pub(crate) use target::Pair;
use target::Target;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Keys of the workload; a tenth of them are hot.
const KEYS: i64 = 20_000;
/// Rows that are there before, beyond the workload's keys: the crawl has something to do.
const ROWS: i64 = 200_000;
/// Connections that write.
const WRITERS: u64 = 4;
/// Kills between two comparisons.
const ROUND: u64 = 10;
/// What is killed; without a broker none is.
const VICTIMS: [&str; 4] = ["program", "source", "target", "broker"];
/// How long the program may take to catch up after the last kill of a round.
const CATCH_UP: Duration = Duration::from_secs(300);

/// What came out.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Report {
    pub(crate) pair: String,
    /// The broker that everything went through.
    pub(crate) via: Option<&'static str>,
    pub(crate) seed: u64,
    pub(crate) n: u64,
    pub(crate) killed: std::collections::BTreeMap<&'static str, u64>,
    pub(crate) transactions: u64,
    pub(crate) compared: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) diverged: u64,
}

impl Report {
    pub(crate) fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.diverged == 0 && self.compared > 0
    }

    /// The outcome in one line.
    pub(crate) fn line(&self) -> String {
        let via = self.via.map(|via| format!(" via {via}")).unwrap_or_default();
        format!(
            "kill: {}{via}, {} kills, {} transactions, {} rows compared: {} lost, {} duplicated, {} diverged",
            self.pair, self.n, self.transactions, self.compared, self.lost, self.duplicated, self.diverged
        )
    }
}

/// The program, and what it is told.
struct Program<'a> {
    path: &'a Path,
    from: String,
    to: String,
    /// The URL of the broker that everything goes through.
    via: Option<String>,
}

impl Program<'_> {
    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(self.path);
        command.args(["--timeout", "60s", "migrate", verb, "--from", &self.from, "--to", &self.to]);
        command.args(["--name", "kill"]);
        if verb == "run" {
            // Documents have no date with microseconds; to a server of the same kind it says nothing.
            if self.to.starts_with("mongodb") {
                command.args(["--convert", "timestamptz=string"]);
            }
            command.args(self.via.iter().flat_map(|via| ["--via", via]));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }
}

/// Kills `n` times.
pub(crate) async fn run(path: &Path, pair: Pair, via: Option<Broker>, seed: u64, n: u64) -> Result<Report> {
    let mut rng = Rng::with_seed(seed);
    let (source, target) = (server().await?, Target::start(pair).await?);
    let broker = match via {
        Some(via) => Some(broker::Server::start(via, broker::Options::default()).await?),
        None => None,
    };
    let (from, to) = (source.create_database("shop").await?, target.url());
    let program = Program { path, from, to, via: broker.as_ref().map(broker::Server::url) };
    prepare(&program.from).await?;
    target.prepare().await?;

    let via = via.map(|via| via.service().name());
    let mut report = Report { pair: pair.name().to_owned(), via, seed, n, ..Report::default() };
    let victims = if broker.is_some() { &VICTIMS[..] } else { &VICTIMS[..3] };
    let (mut left, mut round) = (n, 0_u64);
    loop {
        let kills = left.min(ROUND);
        left -= kills;
        let writers = Writers::start(&program.from, seed * 1_000 + round);
        let mut runner = Runner::start(&program)?;
        for _ in 0..kills {
            runner.live(Duration::from_millis(rng.u64(300..3_000)), &program).await?;
            let victim = victims[rng.usize(..victims.len())];
            *report.killed.entry(victim).or_default() += 1;
            let pause = Duration::from_millis(rng.u64(0..500));
            match (victim, &broker) {
                ("program", _) => runner.kill().await?,
                ("source", _) => {
                    source.kill().await;
                    tokio::time::sleep(pause).await;
                    source.restart().await?;
                }
                ("broker", Some(broker)) => {
                    broker.kill().await;
                    tokio::time::sleep(pause).await;
                    broker.restart().await?;
                }
                _ => {
                    target.kill().await;
                    tokio::time::sleep(pause).await;
                    target.restart().await?;
                }
            }
        }
        report.transactions += writers.stop().await;
        runner.kill().await?;
        done(program.command("run").args(["--until", "caught-up"])).await?;
        compare(pair, &program.from, &target, &mut report).await?;
        if left == 0 {
            return Ok(report);
        }
        let table = ["public.account", "public.history"][usize::from(round % 2 == 0)];
        done(program.command("recopy").args(["--table", table])).await?;
        round += 1;
    }
}

/// Runs a command of the program to its good end.
async fn done(command: &mut Command) -> Result<()> {
    let mut child = command.stderr(log()?).spawn()?;
    let ended = tokio::time::timeout(CATCH_UP, child.wait()).await;
    let what = match ended {
        Ok(ended) => match ended? {
            ended if ended.success() => return Ok(()),
            ended => format!("ended with {ended}"),
        },
        Err(_) => format!("was not done within {} s", CATCH_UP.as_secs()),
    };
    Err(format!("{command:?} {what}:\n{}", last_lines()).into())
}

/// What the program says; all runs of it append to one file.
fn log_path() -> PathBuf {
    std::env::temp_dir().join(format!("tidegate-kill-{}.log", std::process::id()))
}

fn log() -> Result<std::fs::File> {
    Ok(std::fs::OpenOptions::new().create(true).append(true).open(log_path())?)
}

fn last_lines() -> String {
    let log = std::fs::read_to_string(log_path()).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// The application.
struct Writers {
    stop: Arc<AtomicBool>,
    transactions: Arc<AtomicU64>,
    tasks: tokio::task::JoinSet<Result<()>>,
}

impl Writers {
    fn start(from: &str, seed: u64) -> Self {
        let (stop, transactions) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let (from, stop, transactions) = (from.to_owned(), Arc::clone(&stop), Arc::clone(&transactions));
            tasks.spawn(async move { write(&from, seed * 100 + writer, &stop, &transactions).await });
        }
        Self { stop, transactions, tasks }
    }

    /// How many transactions there were.
    async fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.transactions.load(Ordering::Relaxed)
    }
}

async fn server() -> Result<Server> {
    // Two servers of one template would have one identity.
    Ok(Server::start(Options::default().with_fresh_identity()).await?)
}

/// The program, started again whenever it is gone.
struct Runner {
    child: Child,
}

impl Runner {
    fn start(program: &Program<'_>) -> Result<Self> {
        Ok(Self { child: program.command("run").stderr(log()?).spawn()? })
    }

    /// Lets it run for a while. If it ends by itself that is an error, unless a server was away for long.
    async fn live(&mut self, time: Duration, program: &Program<'_>) -> Result<()> {
        match tokio::time::timeout(time, self.child.wait()).await {
            Err(_) => Ok(()),
            Ok(ended) => {
                let ended = ended?;
                // 6: the lease of a killed one has not ended yet. 5: a server was away. 9: killed by us.
                if ended.code().is_none_or(|code| code == 5 || code == 6) {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    *self = Self::start(program)?;
                    Ok(())
                } else {
                    Err(format!("the program ended by itself with {ended}:\n{}", last_lines()).into())
                }
            }
        }
    }

    async fn kill(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            self.child.kill().await?;
        }
        Ok(())
    }
}

async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // It ends with its client.
    #[allow(
        clippy::disallowed_methods,
        reason = "a connection ends with its client; there is no scope to hold it"
    )]
    tokio::spawn(connection);
    Ok(client)
}

async fn prepare(from: &str) -> Result<()> {
    let client = connect(from).await?;
    client
        .batch_execute(&format!(
            "CREATE TABLE account (id bigint PRIMARY KEY, version bigint NOT NULL, note text, large text,
                 place bigint UNIQUE DEFERRABLE INITIALLY DEFERRED);
             ALTER TABLE account ALTER large SET STORAGE EXTERNAL;
             INSERT INTO account SELECT i, 0, 'note ' || i, CASE WHEN i % 20 = 0 THEN repeat(md5(i::text), 100) END, i
                 FROM generate_series(1, {KEYS}) i;
             CREATE TABLE history (a int, b uuid, payload jsonb, amount numeric, at timestamptz, PRIMARY KEY (a, b));
             INSERT INTO history SELECT i % 100, md5(i::text)::uuid, jsonb_build_object('n', i), i / 7.0, now()
                 FROM generate_series(1, {ROWS}) i;"
        ))
        .await?;
    Ok(())
}

/// Writes until told to stop; connects again whenever the server was killed.
async fn write(from: &str, seed: u64, stop: &AtomicBool, transactions: &AtomicU64) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let mut version = seed << 32;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut client) = connect(from).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            version += 1;
            if transaction(&mut client, &mut rng, i64::try_from(version)?).await.is_err()
                && client.is_closed()
            {
                break;
            }
            transactions.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(rng.u64(0..20))).await;
        }
    }
    Ok(())
}

async fn transaction(client: &mut Client, rng: &mut Rng, version: i64) -> Result<()> {
    let key = |rng: &mut Rng| if rng.bool() { rng.i64(1..=KEYS / 10) } else { rng.i64(1..=KEYS) };
    let transaction = client.transaction().await?;
    // A deadlock would only make noise: nobody waits long for another writer.
    transaction.batch_execute("SET LOCAL lock_timeout = '200ms'").await?;
    for _ in 0..rng.usize(1..6) {
        let id = key(rng);
        match rng.u8(0..20) {
            0..=2 => transaction.execute("DELETE FROM account WHERE id = $1", &[&id]).await?,
            3..=6 => {
                let large = (rng.u8(0..4) == 0).then(|| format!("{version:032}").repeat(100));
                transaction
                    .execute(
                        "INSERT INTO account VALUES ($1, $2, 'again', $3) ON CONFLICT (id) DO UPDATE SET version = $2, large = $3",
                        &[&id, &version, &large],
                    )
                    .await?
            }
            // The key moves and the large column is not sent.
            7..=8 => {
                transaction
                    .execute(
                        "UPDATE account SET id = $2, version = $3 WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM account WHERE id = $2)",
                        &[&id, &key(rng), &version],
                    )
                    .await?
            }
            // Two rows exchange what is unique; the large column is not sent.
            12..=13 => {
                transaction
                    .execute(
                        "UPDATE account a SET place = b.place FROM account b WHERE (a.id, b.id) IN (($1, $2), ($2, $1))",
                        &[&id, &key(rng)],
                    )
                    .await?
            }
            9 => {
                transaction.batch_execute("SAVEPOINT s; DELETE FROM account WHERE id % 1000 = 7; ROLLBACK TO s").await?;
                0
            }
            10 => {
                // Now and then thousands of rows; never so many a second that the target could not keep up, for then the
                // kills would meet nothing but the backlog.
                let many = if rng.u8(0..100) == 0 { 10_000 } else { 20_i64 };
                transaction
                    .execute(
                        "UPDATE history SET amount = amount + 1 WHERE ctid IN (SELECT ctid FROM history WHERE a = $1 LIMIT $2)",
                        &[&i32::try_from(id % 100)?, &many],
                    )
                    .await?
            }
            11 => transaction.execute("DELETE FROM history WHERE ctid IN (SELECT ctid FROM history WHERE a = $1 LIMIT 3)", &[&i32::try_from(id % 100)?]).await?,
            _ => transaction.execute("UPDATE account SET version = $2 WHERE id = $1", &[&id, &version]).await?,
        };
    }
    if rng.u8(0..200) == 0 {
        tokio::time::sleep(Duration::from_millis(rng.u64(100..1_500))).await;
    }
    if rng.u8(0..10) == 0 {
        transaction.rollback().await?;
    } else {
        transaction.commit().await?;
    }
    Ok(())
}

/// Compares every row as text.
async fn compare(pair: Pair, from: &str, target: &Target, report: &mut Report) -> Result<()> {
    // Some hundred thousand short rows fit into memory.
    for (query, found) in pair.source_queries().into_iter().zip(target.rows().await?) {
        let mut expected = target::rows(from, query).await?;
        report.compared += expected.len() as u64;
        for (key, row) in found {
            match expected.remove(&key) {
                None => report.duplicated += 1,
                Some(expected) if expected != row => report.diverged += 1,
                Some(_) => {}
            }
        }
        report.lost += expected.len() as u64;
    }
    Ok(())
}
