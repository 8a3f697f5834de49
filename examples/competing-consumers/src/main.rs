//! Three programs share the work of one channel. Each job is done by one of them, and the jobs of one customer in their order.
//!
//! ```sh
//! cargo run --package competing-consumers                        # within this process
//! cargo run --package competing-consumers -- redis://localhost   # over a broker that you run
//! ```

#![allow(clippy::print_stdout, reason = "a command line program talks on stdout")]

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::prelude::*;
use tokio::sync::mpsc;

const CUSTOMERS: u32 = 20;
const JOBS: u32 = 10;

#[derive(Serialize, Deserialize)]
struct Job {
    customer: u32,
    number: u32,
}

impl Typed for Job {
    const KIND: &str = "job.v1";

    // What is about one customer is done in its order; all others may be done beside it.
    fn subject(&self) -> Option<String> {
        Some(format!("customer-{}", self.customer))
    }
}

#[derive(Clone)]
struct Worker {
    name: &'static str,
    done: mpsc::UnboundedSender<(&'static str, Job)>,
}

async fn work(State(worker): State<Worker>, Json(job): Json<Job>) -> Result<(), Failure> {
    tokio::time::sleep(Duration::from_millis(2)).await;
    worker.done.send((worker.name, job)).map_err(Failure::retry)
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let broker = tidegate::open::broker(&url)?;
    let jobs = Channel::new("jobs")?;
    let (done, mut comes) = mpsc::unbounded_channel();

    // Services of one name share the messages, in one process or in many.
    let mut workers = Vec::new();
    for name in ["ann", "bob", "cid"] {
        let handlers = Handlers::new().handle(work).with_policy(Policy::skip());
        let state = Worker { name, done: done.clone() };
        workers.push(Service::new("workers").with_state(state).on(&jobs, handlers).start(&broker).await?);
    }

    let sender = Sender::open(&*broker, &jobs).await?;
    let all = (0..JOBS).flat_map(|number| (0..CUSTOMERS).map(move |customer| Job { customer, number }));
    let messages: Result<Vec<_>> = all.map(|job| Json(job).to_message(&SystemIds, "/jobs")).collect();
    sender.send_all(messages?).await?;

    let (mut by, mut next) = (BTreeMap::<_, u32>::new(), BTreeMap::<u32, u32>::new());
    while by.values().sum::<u32>() < CUSTOMERS * JOBS {
        let Some((name, job)) = comes.recv().await else { break };
        let next = next.entry(job.customer).or_default();
        // What was done and could not be settled, because another worker had the lane by then, is done once more.
        if job.number < *next {
            continue;
        }
        assert_eq!(job.number, *next, "the jobs of customer {} are out of order", job.customer);
        *by.entry(name).or_default() += 1;
        *next += 1;
    }
    for (name, count) in &by {
        println!("{name} did {count} jobs");
    }
    println!("{} jobs done, those of each customer in their order", by.values().sum::<u32>());
    for worker in workers {
        worker.drain(Duration::from_secs(10)).await?;
    }
    Ok(())
}
