//! Messages that are routed by what is in them, translated on their way, and put together: orders above a limit go to be
//! approved, the others become invoices in the form that billing reads, and the invoices of a customer one statement.
//!
//! ```sh
//! cargo run --package routing                        # within this process
//! cargo run --package routing -- redis://localhost   # over a broker that you run
//! ```

#![allow(clippy::print_stdout, reason = "a command line program talks on stdout")]

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::core::port::Store as _;
use tidegate::memory::MemoryStore;
use tidegate::prelude::*;
use tidegate::runtime::{Aggregator, Filter, Router};
use tokio::sync::mpsc;

const DRAIN: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Order {
    order: u32,
    customer: String,
    euros: u64,
}

impl Typed for Order {
    const KIND: &str = "order.v1";

    fn subject(&self) -> Option<String> {
        Some(self.order.to_string())
    }
}

/// What billing reads.
#[derive(Serialize, Deserialize)]
struct Invoice {
    reference: String,
    customer: String,
    cents: u64,
}

impl Typed for Invoice {
    const KIND: &str = "invoice.v1";

    fn subject(&self) -> Option<String> {
        Some(self.reference.clone())
    }
}

/// What a customer gets.
#[derive(Serialize, Deserialize)]
struct Statement {
    customer: String,
    invoices: usize,
    cents: u64,
}

impl Typed for Statement {
    const KIND: &str = "statement.v1";

    fn subject(&self) -> Option<String> {
        Some(self.customer.clone())
    }
}

type Said = mpsc::UnboundedSender<String>;

/// A translation: an order comes, an invoice goes, under an id that is made of the order's, so that twice is once.
async fn translate(State(out): State<Sender>, Json(order): Json<Order>) -> Result<(), Failure> {
    let reference = format!("R-{}", order.order);
    let (customer, cents) = (order.customer, order.euros * 100);
    let invoice = Json(Invoice { reference: reference.clone(), customer, cents });
    let mut message = invoice.to_message(&SystemIds, "/translation")?;
    message.id = reference.into();
    Ok(out.send(message).await?)
}

/// An aggregation: all invoices of a customer come, one statement goes.
fn state(customer: &str, invoices: &[Message]) -> Result<Message, Failure> {
    let read = |message: &Message| serde_json::from_slice::<Invoice>(&message.data).map_err(Failure::never);
    let read = invoices.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let cents = read.iter().map(|invoice| invoice.cents).sum();
    let statement = Statement { customer: customer.to_owned(), invoices: read.len(), cents };
    Ok(Json(statement).to_message(&SystemIds, "/statements")?)
}

fn customer(invoice: &Message) -> Option<String> {
    serde_json::from_slice::<Invoice>(&invoice.data).ok().map(|invoice| invoice.customer)
}

async fn post(State(said): State<Said>, Json(statement): Json<Statement>) -> Result<(), Failure> {
    let Statement { customer, invoices, cents } = statement;
    said.send(format!("posted: to {customer}, {invoices} invoices of {cents} cents")).map_err(Failure::retry)
}

async fn bill(State(said): State<Said>, Json(invoice): Json<Invoice>) -> Result<(), Failure> {
    said.send(format!("billed: {} of {} cents", invoice.reference, invoice.cents)).map_err(Failure::retry)
}

async fn approve(State(said): State<Said>, Json(order): Json<Order>) -> Result<(), Failure> {
    said.send(format!("to approve: order {} of {} euros", order.order, order.euros)).map_err(Failure::retry)
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let broker = tidegate::open::broker(&url)?;
    let channel = |name| Channel::new(name);
    let (orders, large, small) = (channel("orders")?, channel("orders-large")?, channel("orders-small")?);
    let (invoices, statements) = (channel("invoices")?, channel("statements")?);
    let (said, mut says) = mpsc::unbounded_channel();

    // From its end, so that each finds the channels that it sends to.
    let quiet = || Policy::skip();
    let billing = Handlers::new().handle(bill).with_policy(quiet());
    let billing =
        Service::new("billing").with_state(said.clone()).on(&invoices, billing).start(&broker).await?;
    let approval = Handlers::new().handle(approve).with_policy(quiet());
    let approval =
        Service::new("approval").with_state(said.clone()).on(&large, approval).start(&broker).await?;
    let posting = Handlers::new().handle(post).with_policy(quiet());
    let posting = Service::new("posting").with_state(said).on(&statements, posting).start(&broker).await?;
    let open = async |to: &Channel| Sender::open(&*broker, to).await;
    // Where the groups are kept; a store that outlasts this process would keep them for the next one.
    let groups = MemoryStore::new("groups").state().await?;
    let whole = Aggregator::new("statements", groups, open(&statements).await?, state)?;
    let whole = whole.by(customer).until_count(2);
    let stating = Handlers::new().handle(whole.into_handler()).with_policy(quiet());
    let stating = Service::new("statements").on(&invoices, stating).start(&broker).await?;
    let translation = Handlers::new().handle(translate).with_policy(quiet());
    let translation = Service::new("translation")
        .with_state(open(&invoices).await?)
        .on(&small, translation)
        .start(&broker)
        .await?;
    let router = Router::new()
        .route(Filter::new("message.data.euros > 1000")?, open(&large).await?)
        .otherwise(open(&small).await?);
    let routing = Handlers::new().handle(router.into_handler()).with_policy(quiet());
    let routing = Service::new("routing").on(&orders, routing).start(&broker).await?;

    let sender = open(&orders).await?;
    for (order, euros) in [(1, 12), (2, 5_000), (3, 90)] {
        let customer = "ann".to_owned();
        sender.send(Json(Order { order, customer, euros }).to_message(&SystemIds, "/shop")?).await?;
    }
    let mut lines = Vec::new();
    while lines.len() < 4
        && let Some(line) = says.recv().await
    {
        lines.push(line);
    }
    lines.sort_unstable();
    lines.iter().for_each(|line| println!("{line}"));
    for service in [routing, translation, stating, posting, approval, billing] {
        service.drain(DRAIN).await?;
    }
    Ok(())
}
