//! The services by name: which exist, which are asked for, which are skipped.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::str::FromStr;

use rustix::process::Signal;

use crate::broker::{self, Broker};
use crate::{Error, Missing, Result, mongodb, postgres};

/// A server that tests need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Service {
    /// PostgreSQL.
    Postgresql,
    /// MongoDB as a replica set.
    Mongodb,
    /// Redis.
    Redis,
    /// RabbitMQ.
    Rabbitmq,
    /// NATS with JetStream.
    Nats,
    /// Kafka.
    Kafka,
    /// Artemis.
    Artemis,
    /// ActiveMQ Classic.
    Activemq,
}

/// The services that the test command starts; the tests of the others do not run. An adapter's service joins with a
/// line here.
const USED: &[Service] = &[
    Service::Postgresql,
    Service::Mongodb,
    Service::Redis,
    Service::Rabbitmq,
    Service::Nats,
    Service::Kafka,
    Service::Artemis,
    Service::Activemq,
];

/// How a service is run.
pub(crate) enum Kind {
    Postgresql,
    Mongodb,
    Broker(Broker),
}

impl Service {
    /// Every service, in the order in which they are started.
    pub const ALL: &[Service] = &[
        Service::Postgresql,
        Service::Mongodb,
        Service::Redis,
        Service::Rabbitmq,
        Service::Nats,
        Service::Kafka,
        Service::Artemis,
        Service::Activemq,
    ];

    /// The name used on command lines and in `TIDEGATE_SKIP`.
    pub fn name(self) -> &'static str {
        match self {
            Service::Postgresql => "postgresql",
            Service::Mongodb => "mongodb",
            Service::Redis => "redis",
            Service::Rabbitmq => "rabbitmq",
            Service::Nats => "nats",
            Service::Kafka => "kafka",
            Service::Artemis => "artemis",
            Service::Activemq => "activemq",
        }
    }

    /// The environment variable that names a server to use instead of an own one.
    pub fn url_variable(self) -> &'static str {
        match self {
            Service::Postgresql => "TIDEGATE_TEST_POSTGRES_URL",
            Service::Mongodb => "TIDEGATE_TEST_MONGODB_URL",
            Service::Redis => "TIDEGATE_TEST_REDIS_URL",
            Service::Rabbitmq => "TIDEGATE_TEST_RABBITMQ_URL",
            Service::Nats => "TIDEGATE_TEST_NATS_URL",
            Service::Kafka => "TIDEGATE_TEST_KAFKA_URL",
            Service::Artemis => "TIDEGATE_TEST_ARTEMIS_URL",
            Service::Activemq => "TIDEGATE_TEST_ACTIVEMQ_URL",
        }
    }

    /// Whether the test command starts it and its tests run: because adapters are tested with it, or because
    /// `TIDEGATE_USE` names it.
    pub fn is_used(self) -> bool {
        let named = std::env::var("TIDEGATE_USE").unwrap_or_default();
        USED.contains(&self) || parse_names("TIDEGATE_USE", &named).contains(&self)
    }

    /// Whether the test command fails without it.
    pub fn is_required(self) -> bool {
        match self {
            Service::Postgresql
            | Service::Mongodb
            | Service::Redis
            | Service::Rabbitmq
            | Service::Nats
            | Service::Kafka
            | Service::Artemis
            | Service::Activemq => true,
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Service::Postgresql => Kind::Postgresql,
            Service::Mongodb => Kind::Mongodb,
            Service::Redis => Kind::Broker(Broker::Redis),
            Service::Rabbitmq => Kind::Broker(Broker::Rabbitmq),
            Service::Nats => Kind::Broker(Broker::Nats),
            Service::Kafka => Kind::Broker(Broker::Kafka),
            Service::Artemis => Kind::Broker(Broker::Artemis),
            Service::Activemq => Kind::Broker(Broker::Activemq),
        }
    }

    /// What an operator sends to end it in good order.
    pub(crate) fn end_signal(self) -> Signal {
        match self.kind() {
            // Another one would wait for every client to leave.
            Kind::Postgresql => Signal::INT,
            Kind::Mongodb | Kind::Broker(_) => Signal::TERM,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let text = text.trim();
        if text == "postgres" {
            return Ok(Service::Postgresql);
        }
        Service::ALL.iter().copied().find(|service| service.name() == text).ok_or_else(|| {
            let known: Vec<_> = Service::ALL.iter().map(|service| service.name()).collect();
            format!("unknown service `{text}` (known: {})", known.join(", "))
        })
    }
}

/// Says whether `service` can be had as this machine is; fetches and installs nothing.
///
/// # Errors
/// What is missing, and what to do about it.
pub fn available(service: Service) -> std::result::Result<(), Missing> {
    if given_url(service).is_some() {
        return Ok(());
    }
    match service.kind() {
        Kind::Postgresql => postgres::locate().map(drop),
        Kind::Mongodb => mongodb::locate().map(drop),
        Kind::Broker(broker) => broker::locate(broker).map(drop),
    }
}

/// Makes `service` available: finds it, or installs and fetches what is missing. Safe to repeat, also from several
/// processes at once. Blocks.
///
/// # Errors
/// What could not be had.
pub fn provision(service: Service) -> Result<()> {
    if given_url(service).is_some() {
        return Ok(());
    }
    match service.kind() {
        Kind::Postgresql => postgres::provision().map(drop),
        Kind::Mongodb => mongodb::provision().map(drop),
        Kind::Broker(broker) => broker::provision(broker).map(drop),
    }
}

/// The URL of a server that somebody else runs for these tests, where one is given.
pub fn given_url(service: Service) -> Option<String> {
    std::env::var(service.url_variable()).ok().filter(|url| !url.is_empty())
}

/// True where the caller's test is to end now, because `TIDEGATE_SKIP` names `service` or it is not in use
/// ([`Service::is_used`]).
///
/// Prints `not run: <service>` and records the calling test in the file that `TIDEGATE_SKIPPED_FILE` names, so that
/// it is counted as skipped and not as passed. Call it before anything else in the test.
///
/// # Panics
/// Where the list names no service, or the file cannot be written: a skip that nobody counts is worse than a failure.
pub fn skipped(service: Service) -> bool {
    let skip = std::env::var("TIDEGATE_SKIP").unwrap_or_default();
    if service.is_used() && !parse_names("TIDEGATE_SKIP", &skip).contains(&service) {
        return false;
    }
    #[allow(clippy::print_stdout, reason = "the line is for whoever reads the test's output")]
    {
        println!("not run: {service}");
    }
    if let Some(file) = std::env::var_os("TIDEGATE_SKIPPED_FILE") {
        let line = format!("{service}\t{}\n", test_name());
        let written = OpenOptions::new().create(true).append(true).open(&file);
        if let Err(cause) = written.and_then(|mut file| file.write_all(line.as_bytes())) {
            panic!("a skipped test could not be recorded in {}: {cause}", file.display());
        }
    }
    true
}

/// Names that are unknown stop the test: a typing error must not turn into tests that run nowhere.
fn parse_names(variable: &str, text: &str) -> BTreeSet<Service> {
    text.split(',')
        .filter(|name| !name.trim().is_empty())
        .map(|name| name.parse().unwrap_or_else(|cause| panic!("{variable}: {cause}")))
        .collect()
}

/// `<test binary>::<test>`; the test harness names the thread after the test.
fn test_name() -> String {
    let binary = std::env::current_exe().ok();
    let stem = binary.as_deref().and_then(|path| path.file_stem()).and_then(|stem| stem.to_str());
    let thread = std::thread::current();
    format!("{}::{}", stem.unwrap_or("unknown"), thread.name().unwrap_or("unnamed"))
}

/// Whether a test process may install and fetch by itself; the test command has done so before it starts them.
pub(crate) fn may_provision() -> bool {
    std::env::var("TIDEGATE_PROVISION").map_or(true, |value| value != "off")
}

/// The end of a test whose service is missing without having been skipped by name.
pub(crate) fn fail(service: Service, cause: &Error) -> ! {
    panic!("{cause}; to go without, name it: TIDEGATE_SKIP={service}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_parsed_by_name() {
        let parse = |text| parse_names("TIDEGATE_SKIP", text);
        assert_eq!(parse(""), BTreeSet::new());
        assert_eq!(parse("mongodb, postgres"), BTreeSet::from([Service::Postgresql, Service::Mongodb]));
    }

    #[test]
    #[should_panic(expected = "unknown service `mongo`")]
    fn an_unknown_name_is_not_ignored() {
        parse_names("TIDEGATE_SKIP", "mongo");
    }

    #[test]
    fn a_test_knows_its_name() {
        assert!(test_name().ends_with("a_test_knows_its_name"), "{}", test_name());
    }
}
