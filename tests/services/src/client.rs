//! Libraries of other languages, for programs that tests talk to a broker with.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::java::{self, Jars};
use crate::service::may_provision;
use crate::{Error, Result, Service, wheel};

const QPID: Jars = Jars {
    entry: "qpid-jms-2.6.1",
    coordinates: &[
        "org.apache.qpid:qpid-jms-client:2.6.1",
        "com.google.code.gson:gson:2.11.0",
        "org.slf4j:slf4j-api:2.0.17",
        "org.slf4j:slf4j-nop:2.0.17",
    ],
};

const ARTEMIS: Jars = Jars {
    entry: "artemis-jakarta-client-2.44.0",
    coordinates: &[
        "org.apache.activemq:artemis-jakarta-client:2.44.0",
        "com.google.code.gson:gson:2.11.0",
        "org.slf4j:slf4j-nop:2.0.17",
    ],
};

const ACTIVEMQ: Jars = Jars {
    entry: "activemq-client-jakarta-5.18.3",
    coordinates: &[
        "org.apache.activemq:activemq-client-jakarta:5.18.3",
        "com.google.code.gson:gson:2.11.0",
        "org.slf4j:slf4j-nop:2.0.17",
    ],
};

const KAFKA: Jars = Jars {
    entry: "kafka-clients-4.2.0",
    coordinates: &[
        "org.apache.kafka:kafka-clients:4.2.0",
        "io.cloudevents:cloudevents-kafka:4.0.1",
        "io.cloudevents:cloudevents-json-jackson:4.0.1",
        "com.google.code.gson:gson:2.11.0",
        "org.slf4j:slf4j-api:2.0.17",
        "org.slf4j:slf4j-nop:2.0.17",
    ],
};

/// Of Python's packages, all pure; they need nothing else.
const WHEELS: &[&str] = &["pika==1.3.2", "nats-py==2.11.0", "redis==7.0.1"];
const WHEELS_ENTRY: &str = "python-clients-1";

/// What a program in another language talks to a broker with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Client {
    /// JMS over AMQP 1.0: Qpid JMS.
    QpidJms,
    /// JMS over Artemis' own protocol: its client.
    ArtemisJms,
    /// JMS over the own protocol of ActiveMQ Classic, OpenWire: its client.
    ActivemqJms,
    /// Kafka's own client, with the SDK of CloudEvents for Java.
    Kafka,
    /// Python with `pika` (RabbitMQ), `nats-py` and `redis-py`.
    Python,
}

impl Client {
    /// Every one.
    pub const ALL: &[Client] =
        &[Client::QpidJms, Client::ArtemisJms, Client::ActivemqJms, Client::Kafka, Client::Python];

    /// The services that it talks to.
    pub fn services(self) -> &'static [Service] {
        match self {
            Client::QpidJms => &[Service::Artemis, Service::Activemq],
            Client::ArtemisJms => &[Service::Artemis],
            Client::ActivemqJms => &[Service::Activemq],
            Client::Kafka => &[Service::Kafka],
            Client::Python => &[Service::Rabbitmq, Service::Nats, Service::Redis],
        }
    }

    /// Makes it available: finds it, or installs and fetches what is missing. Safe to repeat, also from several processes at
    /// once. Blocks.
    ///
    /// # Errors
    /// What could not be had.
    pub fn provision(self) -> Result<()> {
        match self.jars() {
            Some(jars) => jars.fetch_library().map(drop),
            None => wheel::install(WHEELS_ENTRY, WHEELS).map(drop),
        }
    }

    /// What runs a program, given as its source, with these libraries. Blocks if something is fetched.
    ///
    /// # Errors
    /// They are not here, and cannot be had.
    pub fn command(self, source: &Path) -> Result<Command> {
        let lacking = || Error::failed(format!("{self:?} is not here: `cargo xtask test` fetches it"));
        let Some(jars) = self.jars() else {
            let found = if may_provision() {
                Some(wheel::install(WHEELS_ENTRY, WHEELS)?)
            } else {
                wheel::installed(WHEELS_ENTRY)
            };
            let mut command = Command::new("python3");
            // Nothing is written beside the source.
            command.env("PYTHONPATH", found.ok_or_else(lacking)?).arg("-B").arg(source);
            return Ok(command);
        };
        let found: Option<(PathBuf, PathBuf)> =
            if may_provision() { Some(jars.fetch_library()?) } else { jars.locate_library() };
        let (machine, home) = found.ok_or_else(lacking)?;
        let mut command = Command::new(machine);
        let source = source.display().to_string();
        command.args(java::arguments(&home, &source, &["-Xshare:auto".to_owned()]));
        Ok(command)
    }

    fn jars(self) -> Option<&'static Jars> {
        match self {
            Client::QpidJms => Some(&QPID),
            Client::ArtemisJms => Some(&ARTEMIS),
            Client::ActivemqJms => Some(&ACTIVEMQ),
            Client::Kafka => Some(&KAFKA),
            Client::Python => None,
        }
    }
}
