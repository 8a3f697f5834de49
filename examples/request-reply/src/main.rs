//! A question and its answer over a broker. Whoever asks waits for a time: an answer that comes later is counted, and goes to
//! nobody.
//!
//! ```sh
//! cargo run --package request-reply                        # within this process
//! cargo run --package request-reply -- redis://localhost   # over a broker that you run
//! ```

#![allow(clippy::print_stdout, reason = "a command line program talks on stdout")]

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::prelude::*;

#[derive(Serialize, Deserialize)]
struct Asked {
    item: String,
}

impl Typed for Asked {
    const KIND: &str = "price.asked.v1";
}

#[derive(Serialize, Deserialize)]
struct Price {
    cents: u64,
}

impl Typed for Price {
    const KIND: &str = "price.v1";
}

/// What a handler returns is the reply.
async fn price(Json(asked): Json<Asked>) -> Result<Json<Price>, Failure> {
    match &*asked.item {
        "pen" => Ok(Json(Price { cents: 250 })),
        "ink" => {
            // It has to be looked for.
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            Ok(Json(Price { cents: 700 }))
        }
        item => Err(Failure::never(format!("nobody sells {item}"))),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let broker = tidegate::open::broker(&url)?;
    let questions = Channel::new("prices")?;
    let handlers = Handlers::new().handle(price).with_policy(Policy::skip());
    let shop = Service::new("shop").on(&questions, handlers).start(&broker).await?;

    let clock = SystemClock::shared();
    let caller = Caller::open(&*broker, &questions, "till", Arc::new(SystemIds), Arc::clone(&clock)).await?;
    let ask = async |item: &str, within| {
        let asked = Asked { item: item.to_owned() };
        match caller.call::<_, Price>(asked, within).await {
            Ok(price) => println!("{item}: {} cents", price.cents),
            Err(error) => println!("{item}: {error}"),
        }
    };
    ask("pen", Duration::from_secs(10)).await;
    ask("ink", Duration::from_secs(1)).await;
    ask("moon", Duration::from_secs(10)).await;
    while caller.late() == 0 {
        clock.sleep(Duration::from_millis(20)).await;
    }
    println!("{} reply came too late", caller.late());
    caller.close(Duration::from_secs(10)).await?;
    shop.drain(Duration::from_secs(10)).await
}
