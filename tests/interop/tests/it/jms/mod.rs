//! Artemis and ActiveMQ Classic: programs of JMS in Java, with Qpid JMS (AMQP 1.0) and with each server's own client (its own
//! protocol). What holds is the same for all.

mod bridging;
mod reading;
mod talking;
mod writing;

use serde_json::{Value as Json, json};
use tidegate::prelude::*;
use tidegate_services::Client;
use tidegate_services::broker::Broker as Service;
use url::Url;

use crate::events::samples;
use crate::program::Program;
use crate::{Ground, ground};

/// How long a message may take to come.
const WAIT_MS: u32 = 10_000;

/// A client and the server that it talks to.
#[derive(Clone, Copy)]
struct Java {
    client: Client,
    service: Service,
}

const QPID: Java = Java { client: Client::QpidJms, service: Service::Artemis };
const ARTEMIS: Java = Java { client: Client::ArtemisJms, service: Service::Artemis };
const QPID_ON_CLASSIC: Java = Java { client: Client::QpidJms, service: Service::Activemq };
const CLASSIC: Java = Java { client: Client::ActivemqJms, service: Service::Activemq };

impl Java {
    /// What is published to be read.
    fn samples(self) -> Vec<Message> {
        let mut samples = samples();
        if self.client == Client::ActivemqJms {
            // It breaks characters beyond the first 65,536 in properties.
            samples[0].headers.set("region", "Österreich 東京").unwrap();
        }
        samples
    }

    async fn ground(self) -> Option<Ground> {
        self.ground_of(1).await
    }

    /// With so many lanes.
    async fn ground_of(self, lanes: u32) -> Option<Ground> {
        ground(self.service, lanes).await
    }
}

/// The topic of the first lane of a channel.
fn topic(ground: &Ground) -> String {
    topic_of(ground, "0")
}

/// The topic of a lane.
fn topic_of(ground: &Ground, lane: &str) -> String {
    let name = &ground.channel.name;
    match is_classic(ground) {
        true => format!("VirtualTopic.tidegate.{name}.{lane}"),
        false => format!("tidegate.{name}/{lane}"),
    }
}

fn is_classic(ground: &Ground) -> bool {
    ground.url.starts_with("activemq")
}

async fn java(ground: &Ground, java: Java) -> Program {
    let client = java.client;
    let url = Url::parse(&ground.url).unwrap();
    let host = url.host_str().unwrap();
    let server = format!("{host}:{}", url.port().unwrap());
    let openwire = url.query_pairs().find(|(name, _)| name == "openwire").map(|(_, port)| port.into_owned());
    let (class, address) = match client {
        Client::QpidJms => ("org.apache.qpid.jms.JmsConnectionFactory", format!("amqp://{server}")),
        Client::ActivemqJms => {
            let port = openwire.unwrap_or_else(|| "61616".to_owned());
            ("org.apache.activemq.ActiveMQConnectionFactory", format!("tcp://{host}:{port}"))
        }
        _ => ("org.apache.activemq.artemis.jms.client.ActiveMQConnectionFactory", format!("tcp://{server}")),
    };
    let (user, password) = (url.username(), url.password().unwrap_or_default());
    // A client id is one program's at a time.
    let id = format!("java-{}", ground.channel.name);
    Program::start(client, "java/Jms.java", &[class, &address, user, password, &id]).await
}

/// A command to send a message of a kind.
fn send(ground: &Ground, kind: &str) -> Json {
    json!({"do": "send", "topic": topic(ground), "kind": kind, "body": "x", "properties": []})
}

/// What the media type of bytes is: the one client names it, the other one does not.
fn media_of_bytes(java: Java) -> Option<&'static str> {
    (java.client == Client::QpidJms).then_some("application/octet-stream")
}
