//! `recover-B`: from the kill of a broker that is started again at once to the first message that was sent behind the
//! kill and is handled.

use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tidegate_core::{Message, SystemClock};
use tidegate_runtime::{Failure, Handlers, Policy, Sender, Service, State};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::{PATIENCE, SERVICE, Stand, message};
use crate::Result;
use crate::load::Load;
use crate::report::{Row, Samples};

/// Theirs by ours.
const BAR: f64 = 0.5;
/// So much goes both ways before the kill.
const WARM: u64 = 50;
/// Between two messages, and before something that failed is tried again.
const PAUSE: Duration = Duration::from_millis(5);
/// For a message to come again.
const LIMIT: Duration = Duration::from_secs(120);
/// Messages without an end.
const LOAD: Load = Load { count: u64::MAX, bytes: 512 };

/// Messages that come, and when they were sent.
#[derive(Debug)]
struct Pulse {
    start: Instant,
    came: AtomicU64,
    /// What was sent behind this time, in microseconds, came over the server's next life.
    killed: AtomicU64,
    again: OnceLock<Instant>,
    changed: Notify,
}

impl Pulse {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            came: AtomicU64::new(0),
            killed: AtomicU64::new(u64::MAX),
            again: OnceLock::new(),
            changed: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn beat(&self, body: &[u8]) -> Result<()> {
        let at = LOAD.sent_at(body).ok_or("a message came that was not sent")?;
        self.came.fetch_add(1, Ordering::Relaxed);
        if at > self.killed.load(Ordering::Acquire) {
            let _ = self.again.set(Instant::now());
        }
        self.changed.notify_one();
        Ok(())
    }

    async fn until(&self, is_there: impl Fn(&Self) -> bool) -> Result<()> {
        let waiting = async {
            while !is_there(self) {
                self.changed.notified().await;
            }
        };
        let late = |_| format!("{} messages came, and then none", self.came.load(Ordering::Relaxed));
        Ok(timeout(LIMIT, waiting).await.map_err(late)?)
    }

    /// Kills the server in the midst, and starts it: how long until messages came again, and until the server was there.
    async fn survive(&self, stand: &Stand) -> Result<(f64, f64)> {
        self.until(|pulse| pulse.came.load(Ordering::Relaxed) >= WARM).await?;
        let begin = Instant::now();
        stand.server.kill().await;
        self.killed.store(self.now(), Ordering::Release);
        stand.server.restart().await?;
        let there = begin.elapsed();
        self.until(|pulse| pulse.again.get().is_some()).await?;
        let again = self.again.get().map_or(LIMIT, |again| *again - begin);
        Ok((again.as_secs_f64(), there.as_secs_f64()))
    }

    /// Sends one message after the other, each until it is stored.
    async fn send(&self, send: impl AsyncFn(u64, u64) -> Result<()>) -> Result<(f64, f64)> {
        for number in 0.. {
            let at = self.now();
            while send(number, at).await.is_err() {
                sleep(PAUSE).await;
            }
            sleep(PAUSE).await;
        }
        pending().await
    }
}

/// Both sides in turn.
pub(super) async fn run(stand: &Stand) -> Result<Vec<Row>> {
    let (mut own, mut bare, mut server) = (Samples::default(), Samples::default(), Samples::default());
    for (run, counts) in stand.size.runs() {
        let (again, there) = of_ours(stand, &format!("ours-recover-{run}")).await?;
        own.push_if(counts, again);
        server.push_if(counts, there);
        let (again, there) = of_bare(stand, &format!("bare-recover-{run}")).await?;
        bare.push_if(counts, again);
        server.push_if(counts, there);
    }
    let work = format!("recover-{}", stand.name);
    let there = server.spread().map(|spread| spread.median).unwrap_or_default();
    let row = Row::lower(&work, "s", &own, &stand.against, &bare, BAR);
    Ok(vec![row.with_note(format!("from the kill; the server itself answers again after {there:.2} s"))])
}

async fn of_ours(stand: &Stand, name: &str) -> Result<(f64, f64)> {
    async fn handle(State(pulse): State<Arc<Pulse>>, message: Message) -> std::result::Result<(), Failure> {
        pulse.beat(&message.data).map_err(|error| Failure::never(error.to_string()))
    }
    let (channel, subscription) = stand.channel(name).await?;
    let sender = Sender::open(&*stand.broker, &channel, SystemClock::shared(), PATIENCE).await?;
    let pulse = Arc::new(Pulse::new());
    let handlers = Handlers::new().handle(handle).with_policy(Policy::skip());
    let service = Service::new(SERVICE).with_state(Arc::clone(&pulse)).on(&channel, handlers);
    let running = service.start(&stand.broker).await?;
    let taken = tokio::select! {
        biased;
        taken = pulse.survive(stand) => taken?,
        sent = pulse.send(async |number, at| Ok(sender.send(message(LOAD, number, at)).await?)) => sent?,
    };
    running.drain(PATIENCE).await?;
    stand.clean(&channel, &subscription).await?;
    Ok(taken)
}

async fn of_bare(stand: &Stand, topic: &str) -> Result<(f64, f64)> {
    stand.client.create(topic).await?;
    let (producer, mut consumer) = (stand.client.producer(topic).await?, stand.client.consumer(topic).await?);
    let pulse = Pulse::new();
    let consuming = async {
        loop {
            if consumer.batch(&mut |body| pulse.beat(body)).await.is_err() {
                sleep(PAUSE).await;
            }
        }
    };
    let taken = tokio::select! {
        biased;
        taken = pulse.survive(stand) => taken?,
        sent = pulse.send(async |number, at| producer.send(LOAD.body(number, at)).await) => sent?,
        taken = consuming => taken,
    };
    stand.client.remove(topic).await?;
    Ok(taken)
}
