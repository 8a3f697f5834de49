//! Two services each get every message. One of them is away for a while, and gets what it has missed when it is back; in the
//! end it is unregistered, so that nothing is kept for it any more.
//!
//! ```sh
//! cargo run --package publish-subscribe                        # within this process
//! cargo run --package publish-subscribe -- nats://localhost    # over a broker that you run
//! ```

#![allow(clippy::print_stdout, reason = "a command line program talks on stdout")]

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::prelude::*;
use tidegate::runtime::Running;
use tokio::sync::mpsc;

const DRAIN: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    order: u32,
}

impl Typed for OrderPlaced {
    const KIND: &str = "order.placed.v1";
}

type Heard = mpsc::UnboundedSender<u32>;

async fn hear(State(heard): State<Heard>, Json(placed): Json<OrderPlaced>) -> Result<(), Failure> {
    heard.send(placed.order).map_err(Failure::retry)
}

/// The name of a service is its subscription: it is there until it is unregistered, whether anybody listens or not.
async fn start(
    name: &str,
    broker: &Arc<dyn Broker>,
    orders: &Channel,
) -> Result<(Running, mpsc::UnboundedReceiver<u32>)> {
    let (heard, hears) = mpsc::unbounded_channel();
    let handlers = Handlers::new().handle(hear).with_policy(Policy::skip());
    let running = Service::new(name).with_state(heard).on(orders, handlers).start(broker).await?;
    Ok((running, hears))
}

async fn hears(name: &str, from: &mut mpsc::UnboundedReceiver<u32>, count: usize) {
    let mut orders = Vec::new();
    while orders.len() < count
        && let Some(order) = from.recv().await
    {
        orders.push(order);
    }
    orders.sort_unstable();
    println!("{name} heard of {orders:?}");
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let broker = tidegate::open::broker(&url)?;
    let orders = Channel::new("placed-orders")?;
    let (billing, mut billed) = start("billing", &broker, &orders).await?;
    let (shipping, mut shipped) = start("shipping", &broker, &orders).await?;
    let sender = Sender::open(&*broker, &orders).await?;
    let place = async |order| {
        sender.send(Json(OrderPlaced { order }).to_message(&SystemIds, "/shop")?).await?;
        Ok::<_, Error>(())
    };

    place(1).await?;
    hears("billing", &mut billed, 1).await;
    hears("shipping", &mut shipped, 1).await;

    shipping.drain(DRAIN).await?;
    println!("shipping is away");
    place(2).await?;
    place(3).await?;
    hears("billing", &mut billed, 2).await;

    let (shipping, mut shipped) = start("shipping", &broker, &orders).await?;
    println!("shipping is back");
    hears("shipping", &mut shipped, 2).await;

    shipping.drain(DRAIN).await?;
    broker.unregister(&Subscription::new(&orders, "shipping")?).await?;
    println!("shipping is unregistered");
    place(4).await?;
    hears("billing", &mut billed, 1).await;
    billing.drain(DRAIN).await
}
