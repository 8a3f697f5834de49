//! An application of JMS on one broker, and a service on another one. A bridge carries its orders there and another one the
//! answers back, each with what JMS knows a message by: type, group, correlation id, properties, and what to answer at.
//!
//! ```sh
//! cargo run --package jms-bridge                                               # two brokers within this process
//! cargo run --package jms-bridge -- artemis://user:password@host redis://host  # two brokers that you run
//! ```
//!
//! The part of the application is played here. On Artemis it may as well be a program in Java: it sends to the topic
//! `tidegate.shop.orders/0` and waits at the topic `tidegate.shop.answers/0`.

#![allow(clippy::print_stdout, reason = "a command line program talks on stdout")]

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::prelude::*;
use tidegate::runtime::{Bridge, FromMessage as _};
use tokio::sync::mpsc;

const DRAIN: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Placed {
    total: u32,
}

impl Typed for Placed {
    const KIND: &str = "order.placed.v1";
}

#[derive(Serialize, Deserialize)]
struct Invoice {
    order: String,
    euros: u32,
}

impl Typed for Invoice {
    const KIND: &str = "invoice.made.v1";
}

/// Answers orders. It knows nothing of JMS: what comes from there are a message's own fields and headers.
async fn bill(State(answers): State<Sender>, order: Arc<Message>) -> Result<(), Failure> {
    let Json(placed) = Json::<Placed>::from_message(&order).map_err(Failure::never)?;
    let subject = order.subject.clone().unwrap_or_default();
    println!(
        "billing has {subject} ({}, correlation {}, {}), answer at {}",
        order.kind,
        order.correlation_id.as_deref().unwrap_or("none"),
        order.headers.get("delivery").unwrap_or("standard"),
        order.headers.get("reply_to").unwrap_or("nothing"),
    );
    let invoice = Json(Invoice { order: subject.to_string(), euros: placed.total });
    let answer = invoice.to_message(&SystemIds, "billing").map_err(Failure::never)?.caused_by(&order);
    answers.send(answer).await.map_err(Failure::retry)
}

type Told = mpsc::UnboundedSender<String>;

async fn note(State(told): State<Told>, answer: Arc<Message>) -> Result<(), Failure> {
    let Json(invoice) = Json::<Invoice>::from_message(&answer).map_err(Failure::never)?;
    let correlation = answer.correlation_id.as_deref().unwrap_or("none");
    let line = format!("{} for {correlation}: {}, {} EUR", answer.kind, invoice.order, invoice.euros);
    told.send(line).map_err(Failure::retry)
}

/// As a program of JMS sends it: a text message with `JMSType`, `JMSXGroupID`, `JMSCorrelationID`, `JMSReplyTo` and a property.
fn order() -> Result<Message> {
    let mut order = Message::new(&SystemIds, "application", Placed::KIND)
        .with_subject("order-17")
        .with_data("text/plain", r#"{"total":42}"#)
        .with_header("delivery", "express")?
        .with_header("reply_to", "topic://tidegate.shop.answers/0")?;
    order.correlation_id = Some("cart-9".into());
    Ok(order)
}

#[tokio::main]
async fn main() -> Result<()> {
    let urls: Vec<String> = std::env::args().skip(1).collect();
    let url = |at: usize| urls.get(at).map_or("memory:", String::as_str);
    let (old, new) = (tidegate::open::broker(url(0))?, tidegate::open::broker(url(1))?);
    // With one lane each, a channel is one topic for JMS.
    let orders = Channel::new("shop.orders")?.with_lanes(1);
    let answers = Channel::new("shop.answers")?.with_lanes(1);

    let (tell, mut told) = mpsc::unbounded_channel();
    let waiting = Handlers::new().handle(note).with_policy(Policy::skip());
    let application = Service::new("application").with_state(tell).on(&answers, waiting).start(&old).await?;
    let back = Bridge::new(&answers, "new", "old")?.start(&new, &*old).await?.0;
    let sender = Sender::open(&*new, &answers).await?;
    let billing = Handlers::new().handle(bill).with_policy(Policy::skip());
    let billing = Service::new("billing").with_state(sender).on(&orders, billing).start(&new).await?;
    let there = Bridge::new(&orders, "old", "new")?.start(&old, &*new).await?.0;

    let sender = Sender::open(&*old, &orders).await?;
    sender.send(order()?).await?;
    if let Some(line) = told.recv().await {
        println!("the application has {line}");
    }
    for running in [there, billing, back, application] {
        running.drain(DRAIN).await?;
    }
    Ok(())
}
