//! What every adapter has to do, done by the broker in a file.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tempfile::TempDir;
use tidegate_conformance::{Fixture, Hook, Killed, Network, publish_until_killed};
use tidegate_core::error::code;
use tidegate_core::port::Broker;
use tidegate_core::{Channel, Endpoint, Error, Result, Subscription};

/// Says that this process is the child that is to be killed, and of which file and channel.
const CHILD: &str = "TIDEGATE_CONFORMANCE_CHILD";
/// How many confirmed messages the child tells of before it is killed.
const CONFIRMED_BEFORE_KILL: usize = 200;

#[derive(Default)]
struct File {
    folder: Option<TempDir>,
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(code::INTERNAL, "the fixture failed").because(error)
}

fn open(path: &str) -> Result<Arc<dyn Broker>> {
    let url = format!("sqlite:{path}?lease_ms=1000&grace_ms=300&patience_ms=300");
    tidegate_sqlite::open_broker(&Endpoint::parse(&url)?)
}

impl File {
    fn path(&self) -> Result<PathBuf> {
        let folder = self.folder.as_ref();
        let folder = folder.ok_or_else(|| Error::new(code::INTERNAL, "the broker was not started"))?;
        Ok(folder.path().join("broker.db"))
    }

    async fn file(&self) -> Result<sqlx::SqliteConnection> {
        let options = SqliteConnectOptions::new().filename(self.path()?).busy_timeout(Duration::from_secs(5));
        options.connect().await.map_err(failed)
    }
}

#[async_trait]
impl Fixture for File {
    fn adapter(&self) -> &'static str {
        "sqlite"
    }

    async fn start(&mut self) -> Result<Arc<dyn Broker>> {
        self.folder = Some(tempfile::tempdir().map_err(failed)?);
        self.connect().await
    }

    async fn connect(&mut self) -> Result<Arc<dyn Broker>> {
        open(&self.path()?.to_string_lossy())
    }

    async fn stranger(&mut self) -> Result<Option<Arc<dyn Broker>>> {
        Ok(None)
    }

    /// Whoever uses the file is the broker: the one that was closed is gone, and another one comes.
    async fn restart(&mut self) -> Result<Arc<dyn Broker>> {
        self.connect().await
    }

    async fn kill(&mut self, channel: &Channel, prefix: &str) -> Result<Killed> {
        let program = std::env::current_exe().map_err(failed)?;
        let path = self.path()?;
        let words = [&*path.to_string_lossy(), channel.name.as_str(), prefix].join("\n");
        let confirmed = tokio::task::spawn_blocking(move || {
            let mut child = Command::new(program).env(CHILD, words).stdout(Stdio::piped()).spawn()?;
            let out = child.stdout.take().ok_or_else(|| std::io::Error::other("no output"))?;
            let mut lines = BufReader::new(out).lines();
            let mut confirmed = Vec::new();
            while confirmed.len() < CONFIRMED_BEFORE_KILL
                && let Some(line) = lines.next()
            {
                confirmed.extend(line?.parse::<u64>());
            }
            // On Unix that is SIGKILL: nothing is flushed, closed or rolled back.
            child.kill()?;
            child.wait()?;
            // What it said before it died was confirmed too.
            confirmed.extend(lines.map_while(|line| line.ok()?.parse::<u64>().ok()));
            Ok::<_, std::io::Error>(confirmed)
        });
        let confirmed = confirmed.await.map_err(failed)?.map_err(failed)?;
        Ok(Killed { broker: self.connect().await?, confirmed })
    }

    /// What a process finds that was stopped for longer than its lease: others had its lanes meanwhile.
    async fn cut(&mut self) -> Result<Hook> {
        let mut file = self.file().await?;
        let text = "BEGIN IMMEDIATE;
            UPDATE tidegate_seat SET owner = NULL, epoch = epoch + 1, give_up_by = NULL, held_until = 0;
            UPDATE tidegate_unsettled SET attempts = attempts + 1, due = 0, in_hand = 0 WHERE in_hand;
            DELETE FROM tidegate_member;
            COMMIT;";
        sqlx::raw_sql(text).execute(&mut file).await.map_err(failed)?;
        file.close().await.map_err(failed)?;
        Ok(Hook::Done)
    }

    fn network(&self) -> std::result::Result<Arc<dyn Network>, &'static str> {
        Err("nothing is between it and whoever uses it")
    }

    async fn lose_answers(&mut self, _: usize) -> Result<Hook> {
        Ok(Hook::Cannot("there is no network between a file and its broker on which an answer could be lost"))
    }

    /// A case has a file of its own, and this one has no other channel.
    async fn remove(&mut self, _: &Channel, _: &Subscription) -> Result<Hook> {
        let mut file = self.file().await?;
        let text = "BEGIN IMMEDIATE;
            DELETE FROM tidegate_seat;
            DELETE FROM tidegate_unsettled;
            DELETE FROM tidegate_subscription;
            DELETE FROM tidegate_message;
            DELETE FROM tidegate_channel;
            COMMIT;";
        sqlx::raw_sql(text).execute(&mut file).await.map_err(failed)?;
        file.close().await.map_err(failed)?;
        Ok(Hook::Done)
    }

    async fn kept(&mut self, channel: &Channel) -> Result<Option<u64>> {
        let mut file = self.file().await?;
        let kept: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM tidegate_message AS m
             JOIN tidegate_channel AS c ON c.id = m.channel WHERE c.name = ?",
        )
        .bind(channel.name.as_str())
        .fetch_one(&mut file)
        .await
        .map_err(failed)?;
        // What is counted is what limits are kept by: it has to be what is there.
        let counted: i64 = sqlx::query_scalar("SELECT messages FROM tidegate_channel WHERE name = ?")
            .bind(channel.name.as_str())
            .fetch_one(&mut file)
            .await
            .map_err(failed)?;
        file.close().await.map_err(failed)?;
        if kept != counted {
            return Err(Error::new(code::INTERNAL, format!("{kept} messages are there, {counted} counted")));
        }
        Ok(u64::try_from(kept).ok())
    }

    async fn clean_up(&mut self) -> Result<()> {
        match self.folder.take() {
            Some(folder) => folder.close().map_err(failed),
            None => Ok(()),
        }
    }
}

fn main() -> ExitCode {
    match std::env::var(CHILD) {
        Ok(words) => child(&words),
        Err(_) => tidegate_conformance::program(|| Box::new(File::default())),
    }
}

/// Publishes until it is killed.
fn child(words: &str) -> ExitCode {
    let mut words = words.split('\n');
    let mut word = || words.next().unwrap_or_default();
    let (path, channel, prefix) = (word(), word(), word());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return ExitCode::FAILURE };
    let ended = runtime.block_on(async {
        let broker = open(path)?;
        publish_until_killed(&*broker, &Channel::new(channel)?, prefix).await
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}
