//! A program that says hello, and a service that hears it.
//!
//! ```sh
//! cargo run --package first-message                       # within this process
//! cargo run --package first-message -- sqlite:hellos.db   # in a file, for all programs of a machine
//! cargo run --package first-message -- nats://localhost   # over a broker that you run
//! ```

#![allow(clippy::print_stdout, reason = "a command line program talks on stdout")]

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::prelude::*;
use tokio::sync::mpsc;

#[derive(Serialize, Deserialize)]
struct Hello {
    name: String,
}

impl Typed for Hello {
    const KIND: &str = "hello.v1";
}

/// What handles a message is an async function.
async fn greet(State(heard): State<mpsc::Sender<String>>, Json(hello): Json<Hello>) -> Result<(), Failure> {
    heard.send(hello.name).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let broker = tidegate::open::broker(&url)?;
    let hellos = Channel::new("hellos")?;
    let (heard, mut hears) = mpsc::channel(1);

    // A hello that cannot be handled would be put aside, and the others go on.
    let handlers = Handlers::new().handle(greet).with_policy(Policy::skip());
    let greeter = Service::new("greeter").with_state(heard).on(&hellos, handlers).start(&broker).await?;

    let sender = Sender::open(&*broker, &hellos).await?;
    sender.send(Json(Hello { name: "world".into() }).to_message(&SystemIds, "/first-message")?).await?;

    let name = hears.recv().await.unwrap_or_default();
    println!("hello, {name}, by {}", broker.location());
    greeter.drain(Duration::from_secs(10)).await
}
