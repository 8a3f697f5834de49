//! Artemis: programs of JMS in Java, with Qpid JMS (AMQP 1.0) and with Artemis' own client (its own protocol). What holds is
//! the same for both.

mod bridging;
mod reading;
mod talking;
mod writing;

use serde_json::{Value as Json, json};
use tidegate_services::Client;
use url::Url;

use crate::Ground;
use crate::program::Program;

/// How long a message may take to come.
const WAIT_MS: u32 = 10_000;

/// The topic of the first lane of a channel.
fn topic(ground: &Ground) -> String {
    format!("tidegate.{}/0", ground.channel.name)
}

async fn java(ground: &Ground, client: Client) -> Program {
    let url = Url::parse(&ground.url).unwrap();
    let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    let (class, address) = match client {
        Client::QpidJms => ("org.apache.qpid.jms.JmsConnectionFactory", format!("amqp://{server}")),
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
fn media_of_bytes(client: Client) -> Option<&'static str> {
    (client == Client::QpidJms).then_some("application/octet-stream")
}
