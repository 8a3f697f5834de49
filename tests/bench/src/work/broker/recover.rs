//! `recover-B`: from the kill of a broker that is started again at once to the first message that was sent behind the
//! kill and is handled. Both sides live through the same kill, so that the server takes the same time for both.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tidegate_core::Message;
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

    /// How long it took until messages came again.
    async fn again(&self, since: Instant) -> Result<f64> {
        self.until(|pulse| pulse.again.get().is_some()).await?;
        Ok(self.again.get().map_or(LIMIT, |again| *again - since).as_secs_f64())
    }

    /// Sends one message after the other, each until it is stored.
    async fn send(&self, send: impl AsyncFn(u64, u64) -> Result<()>) {
        for number in 0.. {
            let at = self.now();
            while send(number, at).await.is_err() {
                sleep(PAUSE).await;
            }
            sleep(PAUSE).await;
        }
    }
}

/// When messages came again, in seconds from the kill.
struct Again {
    own: f64,
    bare: f64,
    /// When the server was there.
    server: f64,
}

/// One kill after the other.
pub(super) async fn run(stand: &Stand) -> Result<Vec<Row>> {
    let (mut own, mut bare, mut server) = (Samples::default(), Samples::default(), Samples::default());
    for (run, counts) in stand.size.runs() {
        let again = one(stand, run).await?;
        own.push_if(counts, again.own);
        bare.push_if(counts, again.bare);
        server.push_if(counts, again.server);
    }
    let work = format!("recover-{}", stand.name);
    let there = server.spread().map(|spread| spread.median).unwrap_or_default();
    let row = Row::lower(&work, "s", &own, &stand.against, &bare, BAR);
    let note = format!(
        "both sides live through the same kills, from which on the server takes {there:.2} s to be there"
    );
    Ok(vec![row.with_note(note)])
}

async fn one(stand: &Stand, run: usize) -> Result<Again> {
    async fn handle(State(pulse): State<Arc<Pulse>>, message: Message) -> std::result::Result<(), Failure> {
        pulse.beat(&message.data).map_err(|error| Failure::never(error.to_string()))
    }
    let (own, bare) = (Arc::new(Pulse::new()), Pulse::new());
    let (channel, subscription) = stand.channel(&format!("ours-recover-{run}")).await?;
    let sender = Sender::open(&*stand.broker, &channel)
        .with_clock(Arc::clone(&stand.clock))
        .with_patience(PATIENCE)
        .await?;
    let handlers = Handlers::new().handle(handle).with_policy(Policy::skip());
    let service = Service::new(SERVICE).with_state(Arc::clone(&own)).on(&channel, handlers);
    let running = service.start(&stand.broker).await?;
    let topic = format!("bare-recover-{run}");
    stand.client.create(&topic).await?;
    let producer = stand.client.producer(&topic).await?;
    let mut consumer = stand.client.consumer(&topic).await?;
    let consuming = async {
        loop {
            if consumer.batch(&mut |body| bare.beat(body)).await.is_err() {
                sleep(PAUSE).await;
            }
        }
    };
    let again = tokio::select! {
        biased;
        again = kill(stand, &own, &bare) => again?,
        () = own.send(async |number, at| Ok(sender.send(message(LOAD, number, at)).await?)) => return Err(ended()),
        () = bare.send(async |number, at| producer.send(LOAD.body(number, at)).await) => return Err(ended()),
        () = consuming => return Err(ended()),
    };
    running.drain(PATIENCE).await?;
    stand.clean(&channel, &subscription).await?;
    stand.client.remove(&topic).await?;
    Ok(again)
}

fn ended() -> crate::Error {
    "what has no end has ended".into()
}

/// Kills the server in the midst of it, and starts it.
async fn kill(stand: &Stand, own: &Pulse, bare: &Pulse) -> Result<Again> {
    let is_warm = |pulse: &Pulse| pulse.came.load(Ordering::Relaxed) >= WARM;
    own.until(is_warm).await?;
    bare.until(is_warm).await?;
    let begin = Instant::now();
    stand.server.kill().await;
    for pulse in [own, bare] {
        pulse.killed.store(pulse.now(), Ordering::Release);
    }
    stand.server.restart().await?;
    let server = begin.elapsed().as_secs_f64();
    Ok(Again { own: own.again(begin).await?, bare: bare.again(begin).await?, server })
}
