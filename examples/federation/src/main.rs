//! Two data centres with one channel: each publishes at home, and a bridge in each direction carries it to the other. The link
//! between them is cut for a while; both go on, and each has everything once it is there again, once.
//!
//! ```sh
//! cargo run --package federation                                             # two brokers within this process
//! cargo run --package federation -- nats://west.example redis://east.example # two brokers that you run
//! ```

#![allow(clippy::print_stdout, reason = "a command line program talks on stdout")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::prelude::*;
use tidegate::runtime::{Bridge, Running};
use tokio::sync::mpsc;

const DRAIN: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Sold {
    at: String,
    number: u32,
}

impl Typed for Sold {
    const KIND: &str = "sold.v1";

    fn subject(&self) -> Option<String> {
        Some(self.at.clone())
    }
}

type Told = mpsc::UnboundedSender<String>;

async fn note(State(told): State<Told>, Json(sold): Json<Sold>) -> Result<(), Failure> {
    told.send(format!("{}-{}", sold.at, sold.number)).map_err(Failure::retry)
}

/// A data centre: its broker, and a service that notes what is sold anywhere.
struct Site {
    name: &'static str,
    broker: Arc<dyn Broker>,
    sales: Sender,
    service: Running,
    told: mpsc::UnboundedReceiver<String>,
}

impl Site {
    async fn open(name: &'static str, url: &str, channel: &Channel) -> Result<Self> {
        let broker = tidegate::open::broker(url)?;
        let (tell, told) = mpsc::unbounded_channel();
        let handlers = Handlers::new().handle(note).with_policy(Policy::skip());
        let service = Service::new("ledger").with_state(tell).on(channel, handlers).start(&broker).await?;
        let sales = Sender::open(&*broker, channel).await?;
        Ok(Self { name, broker, sales, service, told })
    }

    async fn sell(&self, numbers: std::ops::Range<u32>) -> Result<()> {
        for number in numbers {
            let sold = Sold { at: self.name.to_owned(), number };
            self.sales.send(Json(sold).to_message(&SystemIds, self.name)?).await?;
        }
        Ok(())
    }

    async fn notes(&mut self, count: usize) {
        let mut noted = BTreeSet::new();
        while noted.len() < count
            && let Some(sold) = self.told.recv().await
        {
            assert!(noted.insert(sold.clone()), "{sold} came twice");
        }
        println!("{} has noted {}", self.name, noted.into_iter().collect::<Vec<_>>().join(" "));
    }
}

/// A bridge in each direction.
async fn link(channel: &Channel, west: &Site, east: &Site) -> Result<[Running; 2]> {
    let there = Bridge::new(channel, west.name, east.name)?.start(&west.broker, &*east.broker).await?;
    let back = Bridge::new(channel, east.name, west.name)?.start(&east.broker, &*west.broker).await?;
    Ok([there.0, back.0])
}

async fn cut(link: [Running; 2]) -> Result<()> {
    for bridge in link {
        bridge.drain(DRAIN).await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let urls: Vec<String> = std::env::args().skip(1).collect();
    let url = |at: usize| urls.get(at).map_or("memory:", String::as_str);
    let sales = Channel::new("sales")?;
    let mut west = Site::open("west", url(0), &sales).await?;
    let mut east = Site::open("east", url(1), &sales).await?;

    let bridges = link(&sales, &west, &east).await?;
    west.sell(0..2).await?;
    east.sell(0..1).await?;
    west.notes(3).await;
    east.notes(3).await;

    cut(bridges).await?;
    println!("the link is cut");
    west.sell(2..3).await?;
    east.sell(1..3).await?;
    west.notes(1).await;
    east.notes(2).await;

    let bridges = link(&sales, &west, &east).await?;
    println!("the link is there again");
    west.notes(2).await;
    east.notes(1).await;
    cut(bridges).await?;
    west.service.drain(DRAIN).await?;
    east.service.drain(DRAIN).await
}
