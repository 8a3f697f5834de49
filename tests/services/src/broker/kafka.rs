//! Kafka, one node that is broker and controller.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::recipe::{Program, Recipe, Run, Site, USER};
use super::{probe, random};
use crate::debian::run;
use crate::java::{self, Jars};
use crate::{Error, Result};

const JARS: Jars = Jars {
    entry: "kafka-4.2.0",
    coordinates: &["org.apache.kafka:kafka_2.13:4.2.0", "org.slf4j:slf4j-simple:1.7.36"],
};

pub(super) const RECIPE: Recipe = Recipe {
    source: "Kafka 4.2.0 with Java 17 or newer",
    ports: 3,
    others: &[],
    has_password: true,
    has_tls: true,
    locate: || JARS.locate().map(|(file, home)| Program { file, home }),
    fetch: || JARS.fetch(format),
    prepare,
    processes: |site| vec![server(site)],
    url,
};

/// What a formatted data folder holds; it takes a virtual machine two seconds, so it is done once.
const TEMPLATE: &str = "formatted";
const TEMPLATE_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";
const FORMATTED: [&str; 2] = ["meta.properties", "bootstrap.checkpoint"];

fn format(machine: &Path, home: &Path) -> Result<()> {
    let file = home.join("format.properties");
    let template = home.join(TEMPLATE).display().to_string();
    format_folder(machine, home, &file, &template, &[])
}

/// Formats a data folder, with the users who log in by a challenge: they stand in the cluster's own records.
fn format_folder(machine: &Path, home: &Path, file: &Path, data: &str, users: &[String]) -> Result<()> {
    fs::write(file, properties(&node(data, [1, 2, 3]))).map_err(Error::io(file.display()))?;
    let mut command = Command::new(machine);
    command
        .args(java::arguments(home, "kafka.tools.StorageTool", &[]))
        .args(["format", "--cluster-id", TEMPLATE_ID, "--config"])
        .arg(file);
    for user in users {
        command.args(["--add-scram", user]);
    }
    run(&mut command).map(drop)
}

fn prepare(site: &Site) -> Result<()> {
    let data = site.folder.join("data");
    match &site.options.password {
        None => {
            for name in FORMATTED {
                let from = site.program.home.join(TEMPLATE).join(name);
                fs::copy(&from, data.join(name)).map_err(Error::io(from.display()))?;
            }
        }
        Some(password) => {
            let users = ["SCRAM-SHA-256", "SCRAM-SHA-512"]
                .map(|mechanism| format!("{mechanism}=[name={USER},password={password}]"));
            let (Program { file: machine, home }, file) =
                (&site.program, site.folder.join("format.properties"));
            format_folder(machine, home, &file, &data.display().to_string(), &users)?;
        }
    }
    // Clients tell clusters apart by this: 22 letters and digits, of which the last ones may not be just any.
    let meta = data.join(FORMATTED[0]);
    let text = fs::read_to_string(&meta).map_err(Error::io(meta.display()))?;
    let id = format!("{:016x}AAAAAA", random());
    fs::write(&meta, text.replace(TEMPLATE_ID, &id)).map_err(Error::io(meta.display()))?;

    let mut own = node(&site.path("data"), [site.port(), site.ports[1], site.ports[2]]);
    let advertised = site.options.advertised_port.unwrap_or(site.port());
    let listeners = format!("CLIENTS://127.0.0.1:{advertised},OWN://127.0.0.1:{}", site.ports[2]);
    own.push(("advertised.listeners", listeners));
    let clients = match (site.options.tls, site.options.password.is_some()) {
        (false, false) => "PLAINTEXT",
        (true, false) => "SSL",
        (false, true) => "SASL_PLAINTEXT",
        (true, true) => "SASL_SSL",
    };
    own.push((
        "listener.security.protocol.map",
        format!("CLIENTS:{clients},OWN:PLAINTEXT,CONTROLLER:PLAINTEXT"),
    ));
    own.extend(
        [
            ("auto.create.topics.enable", "false"),
            ("log.flush.interval.messages", "1"),
            ("offsets.topic.replication.factor", "1"),
            ("transaction.state.log.replication.factor", "1"),
            ("transaction.state.log.min.isr", "1"),
            ("share.coordinator.state.topic.replication.factor", "1"),
            ("share.coordinator.state.topic.min.isr", "1"),
            // Else the first use of a group waits for fifty partitions.
            ("offsets.topic.num.partitions", "4"),
            ("transaction.state.log.num.partitions", "4"),
            ("share.coordinator.state.topic.num.partitions", "4"),
            ("group.initial.rebalance.delay.ms", "0"),
            // After a crash the controller waits so long for the broker that it knew, before it takes the new one.
            ("broker.session.timeout.ms", "3000"),
            ("broker.heartbeat.interval.ms", "500"),
            // A quarter of the heap else.
            ("log.cleaner.dedupe.buffer.size", "8388608"),
        ]
        .map(|(name, value)| (name, value.to_owned())),
    );
    if let Some(password) = &site.options.password {
        let module = |name| format!("org.apache.kafka.common.security.{name}LoginModule required");
        let plain = module("plain.Plain");
        let login =
            format!("{plain} username=\"{USER}\" password=\"{password}\" user_{USER}=\"{password}\";");
        let scram = format!("{};", module("scram.Scram"));
        own.extend([
            ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512".to_owned()),
            ("listener.name.clients.plain.sasl.jaas.config", login),
            ("listener.name.clients.scram-sha-256.sasl.jaas.config", scram.clone()),
            ("listener.name.clients.scram-sha-512.sasl.jaas.config", scram),
        ]);
    }
    if site.options.tls {
        let read =
            |name: &str| fs::read_to_string(site.folder.join(name)).map_err(Error::io(name.to_owned()));
        site.write("server.pem", &(read("server.key")? + &read("server.crt")?))?;
        own.push(("ssl.keystore.type", "PEM".to_owned()));
        own.push(("ssl.keystore.location", site.path("server.pem")));
    }
    site.write("server.properties", &site.lines(&own, property))
}

/// What makes a node of its own; the voter is named here, so that the formatted folder knows no port. The server itself, and
/// the question whether it is ready, has a port where nobody logs in.
fn node(data: &str, [clients, controller, own]: [u16; 3]) -> Vec<(&'static str, String)> {
    let listen = |name, port| format!("{name}://127.0.0.1:{port}");
    let listeners = [listen("CLIENTS", clients), listen("OWN", own), listen("CONTROLLER", controller)];
    vec![
        ("process.roles", "broker,controller".to_owned()),
        ("node.id", "1".to_owned()),
        ("controller.quorum.voters", format!("1@127.0.0.1:{controller}")),
        ("listeners", listeners.join(",")),
        ("listener.security.protocol.map", "CLIENTS:PLAINTEXT,OWN:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned()),
        ("inter.broker.listener.name", "OWN".to_owned()),
        ("controller.listener.names", "CONTROLLER".to_owned()),
        ("log.dirs", data.to_owned()),
    ]
}

fn properties(settings: &[(&str, String)]) -> String {
    settings.iter().map(|(name, value)| property(name, value)).collect()
}

fn property(name: &str, value: &str) -> String {
    format!("{name}={value}\n")
}

fn server(site: &Site) -> Run {
    let mut arguments = java::arguments(&site.program.home, "kafka.Kafka", &site.options.arguments);
    arguments.push(site.path("server.properties"));
    Run { program: site.program.file.clone(), arguments, environment: Vec::new(), is_ready }
}

/// Asks which versions of the protocol it speaks; it answers nobody before it may lead partitions.
fn is_ready(site: &Site) -> bool {
    // Its length, the kind of request, the version of that, a number that comes back, the client's name.
    const REQUEST: &[u8] = b"\0\0\0\x12\0\x12\0\0\0\0\0\x2a\0\x08tidegate";
    probe::answers(site.ports[2], REQUEST, |answer| answer.get(4..8) == Some(&[0, 0, 0, 0x2a]))
}

fn url(site: &Site) -> String {
    let scheme = if site.options.tls { "kafkas" } else { "kafka" };
    format!("{scheme}://{}127.0.0.1:{}", site.login(USER), site.port())
}
