//! Real brokers, killed at random moments while a service handles what a publisher sends.
//!
//! The service is one of the runtime: a typed handler, the policy `park-key`, and subjects whose first message nobody can handle.
//! After some kills, and at the end, the publisher rests, the service handles what is there, and the ledger says what is wrong:
//! the promises are checked at the handler and among the dead letters, the contract of the port by the oracle of the
//! conformance suite. Then it goes on with another channel.

mod application;
mod ledger;
mod observed;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use comfy_table::{CellAlignment, Table, presets};
use fastrand::Rng;
use tidegate_core::capability::LossEvent;
use tidegate_core::port;
use tidegate_services::broker::{Broker, Options, Server};
use tidegate_services::skipped;
use tokio::time::{Instant, sleep};

use application::Application;
use ledger::Found;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The brokers that take part.
const BROKERS: &[Broker] =
    &[Broker::Redis, Broker::Nats, Broker::Rabbitmq, Broker::Kafka, Broker::Artemis, Broker::Activemq];
/// Kills between two verdicts.
const ROUND: u64 = 10;

/// The names of all that take part.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    BROKERS.iter().map(|broker| broker.service().name())
}

/// The broker of this name.
pub(crate) fn by_name(name: &str) -> Option<Broker> {
    BROKERS.iter().find(|broker| broker.service().name() == name).copied()
}

/// What came out.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) n: u64,
    pub(crate) brokers: Vec<Row>,
}

/// What came out of one broker.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Row {
    broker: &'static str,
    version: String,
    kills: u64,
    #[serde(flatten)]
    found: Found,
    /// How many rules were broken.
    broken: u64,
    /// The longest time from a kill until something was handled again, in seconds.
    recovery_seconds_max: f64,
    /// Why it ended before its time.
    error: Option<String>,
    is_skipped: bool,
}

impl Row {
    /// What was killed as often as it should be, under load, and broke no rule.
    fn is_clean(&self, kills: u64) -> bool {
        let found = &self.found;
        let is_shown = self.kills == kills && found.handled > 0 && found.poison > 0;
        self.is_skipped || (self.error.is_none() && self.broken == 0 && is_shown)
    }
}

impl Report {
    pub(crate) fn is_clean(&self) -> bool {
        !self.brokers.is_empty() && self.brokers.iter().all(|row| row.is_clean(self.n))
    }

    /// The outcome in one line.
    pub(crate) fn line(&self) -> String {
        let mut all = Found::default();
        self.brokers.iter().for_each(|row| all.add(&row.found));
        let names: Vec<_> = self.brokers.iter().map(|row| row.broker).collect();
        let kills: u64 = self.brokers.iter().map(|row| row.kills).sum();
        format!(
            "broker: {}, {kills} kills, {} messages confirmed: {} lost, {} inverted, {} parked wrongly, {} invented, {} at the port; again: --n {} --seed {} --broker {}",
            names.join(", "),
            all.confirmed,
            all.lost,
            all.inverted,
            all.misparked,
            all.invented,
            all.at_port,
            self.n,
            self.seed,
            names.join(",")
        )
    }
}

/// A table, and below it what is wrong.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header([
            "broker",
            "kills",
            "confirmed",
            "handled",
            "again",
            "unknown",
            "poison",
            "letters again",
            "lost",
            "inverted",
            "parked wrongly",
            "invented",
            "at the port",
            "slowest recovery",
        ]);
        for Row { broker, kills, found, recovery_seconds_max, .. } in &self.brokers {
            table.add_row([
                (*broker).to_owned(),
                kills.to_string(),
                found.confirmed.to_string(),
                found.handled.to_string(),
                found.again.to_string(),
                found.unknown.to_string(),
                found.poison.to_string(),
                found.letters_again.to_string(),
                found.lost.to_string(),
                found.inverted.to_string(),
                found.misparked.to_string(),
                found.invented.to_string(),
                found.at_port.to_string(),
                format!("{recovery_seconds_max:.1} s"),
            ]);
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        write!(f, "{table}")?;
        for Row { broker, found, error, is_skipped, .. } in &self.brokers {
            if *is_skipped {
                write!(f, "\n{broker}: skipped by name")?;
            }
            for fault in found.faults.iter().chain(error) {
                write!(f, "\n{broker}: {fault}")?;
            }
        }
        Ok(())
    }
}

/// Kills each of these brokers `n` times; all of them if none is named.
pub(crate) async fn run(named: &[String], seed: u64, n: u64) -> Report {
    let mut report = Report { seed, n, brokers: Vec::new() };
    let is_named = |name: &str| named.is_empty() || named.iter().any(|other| other == name);
    for broker in BROKERS.iter().filter(|broker| is_named(broker.service().name())) {
        let mut row = Row { broker: broker.service().name(), ..Row::default() };
        if skipped(broker.service()) {
            row.is_skipped = true;
        } else if let Err(error) = kill(*broker, seed, n, &mut row).await {
            row.error = Some(error.to_string());
        }
        report.brokers.push(row);
    }
    report
}

async fn kill(which: Broker, seed: u64, n: u64, row: &mut Row) -> Result<()> {
    let server = Server::start(which, Options::default()).await?;
    let broker = tidegate::open::broker(&server.url())?;
    row.version = broker.probe().await?.version;
    let mut rng = Rng::with_seed(seed);
    while row.kills < n {
        round(&broker, &server, &mut rng, ROUND.min(n - row.kills), row).await?;
    }
    Ok(())
}

/// What is killed.
#[async_trait]
trait Victim: Sync {
    async fn kill(&self);

    /// Starts it again, with what it had stored.
    async fn restart(&self) -> Result<()>;
}

#[async_trait]
impl Victim for Server {
    async fn kill(&self) {
        self.kill().await;
    }

    async fn restart(&self) -> Result<()> {
        Ok(self.restart().await?)
    }
}

/// Some kills under load, and the verdict.
async fn round(
    broker: &Arc<dyn port::Broker>,
    victim: &dyn Victim,
    rng: &mut Rng,
    kills: u64,
    row: &mut Row,
) -> Result<()> {
    let application = Application::start(broker, format!("killed.{}", row.kills), rng.u64(..)).await?;
    for _ in 0..kills {
        sleep(Duration::from_millis(rng.u64(200..2_000))).await;
        // The kill meets a subject that has just been given its first dead letter, or is about to be.
        application.poison();
        sleep(Duration::from_millis(rng.u64(0..800))).await;
        let begin = Instant::now();
        victim.kill().await;
        row.kills += 1;
        sleep(Duration::from_millis(rng.u64(0..500))).await;
        victim.restart().await?;
        // Some are killed again before everybody has found them.
        if rng.u8(0..4) > 0 {
            application.comes_again().await?;
            row.recovery_seconds_max = row.recovery_seconds_max.max(begin.elapsed().as_secs_f64());
        }
    }
    let found = application.end().await?;
    row.broken += found.broken(broker.capabilities().loses_when(LossEvent::BrokerKilled));
    row.found.add(&found);
    Ok(())
}
