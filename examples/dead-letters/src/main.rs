//! What fails is tried again; what fails too often is put aside with its cause, and whatever is about the same customer waits
//! behind it, while all others go on. When the fault is mended, the dead letters are replayed in their order.
//!
//! ```sh
//! cargo run --package dead-letters                        # within this process
//! cargo run --package dead-letters -- nats://localhost    # over a broker that you run
//! ```

#![allow(clippy::print_stdout, reason = "a command line program talks on stdout")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::prelude::*;
use tidegate::runtime::dead_letter::{self, DeadLetters};
use tokio::sync::mpsc;

const DRAIN: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Payment {
    customer: String,
    cents: u64,
}

impl Typed for Payment {
    const KIND: &str = "payment.v1";

    fn subject(&self) -> Option<String> {
        Some(self.customer.clone())
    }
}

#[derive(Clone)]
struct Bank {
    is_broken: Arc<AtomicBool>,
    paid: mpsc::UnboundedSender<Payment>,
}

async fn pay(State(bank): State<Bank>, Json(payment): Json<Payment>) -> Result<(), Failure> {
    if payment.customer == "bob" && bank.is_broken.load(Ordering::Relaxed) {
        return Err(Failure::retry("the bank of bob does not answer"));
    }
    bank.paid.send(payment).map_err(Failure::retry)
}

async fn paid(from: &mut mpsc::UnboundedReceiver<Payment>, count: usize) {
    for _ in 0..count {
        if let Some(payment) = from.recv().await {
            println!("paid: {} {}", payment.customer, payment.cents);
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let broker = tidegate::open::broker(&url)?;
    let payments = Channel::new("payments")?;
    let folder = tempfile::tempdir()
        .map_err(|cause| Error::new(tidegate::core::error::code::INTERNAL, "no folder").because(cause))?;
    // Which subjects wait is noted in a store, for whoever goes on with them.
    let store = tidegate::open::store(&format!("sqlite:{}", folder.path().join("state.db").display()))?;
    let (tell, mut told) = mpsc::unbounded_channel();
    let bank = Bank { is_broken: Arc::new(AtomicBool::new(true)), paid: tell };
    let policy = Policy::park_key()
        .with_attempts(3)
        .with_pauses(Duration::from_millis(20), Duration::from_millis(200));
    let service = Service::new("cashier")
        .with_state(bank.clone())
        .with_store(store.state().await?)
        .on(&payments, Handlers::new().handle(pay).with_policy(policy))
        .start(&broker)
        .await?;

    let clock = SystemClock::shared();
    let sender = Sender::open(&*broker, &payments).await?;
    for (customer, cents) in [("bob", 1), ("ann", 2), ("bob", 3), ("ann", 4)] {
        let payment = Payment { customer: customer.to_owned(), cents };
        sender.send(Json(payment).to_message(&SystemIds, "/till")?).await?;
    }
    paid(&mut told, 2).await;
    while service.counted().dead < 2 {
        clock.sleep(Duration::from_millis(10)).await;
    }

    let mut letters = DeadLetters::open(&*broker, &payments.name, 100, Arc::clone(&clock)).await?;
    for letter in letters.read().await? {
        let header = |name| letter.headers.get(name).unwrap_or("nothing");
        let (reason, why) = (header(dead_letter::REASON), header(dead_letter::ERROR));
        println!("dead: {} ({reason}: {why})", String::from_utf8_lossy(&letter.data));
    }
    bank.is_broken.store(false, Ordering::Relaxed);
    println!("the bank answers again: {} replayed", letters.replay(|_| true).await?);
    letters.close().await?;
    paid(&mut told, 2).await;
    service.drain(DRAIN).await
}
