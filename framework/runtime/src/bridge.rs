//! Carries the messages of a channel to a channel of another broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use tidegate_core::error::{Kind, code};
use tidegate_core::port::Broker;
use tidegate_core::{Apply, Channel, Clock, Error, Message, Name, Result, SystemClock, Topology};

use crate::policy::Policy;
use crate::sender::Sender;
use crate::service::{Failure, Handlers, Running, Service};

/// The sites that a message has come through, in their order, with commas between.
pub const VIA: &str = "tg_via";

/// How many messages are on their way at once.
const CONCURRENCY: usize = 512;
/// How long a message is tried before it is given back, to be tried later.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pauses between, while the other side is away.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Carries what is published on a channel at one site to the channel of the same name at another one, and each message back to
/// where it comes from never: a message knows the sites that it has come through. Ids stay, and order per subject holds. A message is
/// settled when the other side has stored it; while that is away, it waits. One that can never be carried, as it is larger than the other
/// side takes, becomes a dead letter of its channel here, and later ones of its subject go on without it.
///
/// Two of them, one in each direction, make one channel of two. A hub has one to each of its sites.
#[derive(Debug)]
pub struct Bridge {
    name: String,
    channel: Channel,
    sites: (Name, Name),
    clock: Arc<dyn Clock>,
}

/// What a bridge has done.
#[derive(Debug, Default)]
pub struct Carried {
    carried: AtomicU64,
    turned_back: AtomicU64,
}

impl Carried {
    /// How many messages were carried.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// How many had been at the other site before, and were left where they are.
    pub fn turned_back(&self) -> u64 {
        self.turned_back.load(Ordering::Relaxed)
    }
}

impl Bridge {
    /// A bridge for a channel from one site to another one. All processes that start it with the same names share its work.
    ///
    /// # Errors
    /// `config-invalid` if a name cannot be used, or both sites are one.
    pub fn new(channel: &Channel, from: &str, to: &str) -> Result<Self> {
        let sites = (Name::new(from)?, Name::new(to)?);
        if sites.0 == sites.1 {
            return Err(Error::new(code::CONFIG_INVALID, format!("a bridge leads from {from} to itself")));
        }
        let name = format!("bridge.{from}.{to}");
        Ok(Self { name, channel: channel.clone(), sites, clock: SystemClock::shared() })
    }

    /// Another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Makes the channel on the other side if it is not there, and begins to carry.
    ///
    /// # Errors
    /// As [`Service::start`], and `channel-differs` if the other side has the channel with other settings.
    ///
    /// # Cancel safety
    /// A dropped call carries nothing. What it made stays: the channel on the other side, and on this side the subscription, which keeps
    /// what is published for whoever starts the bridge next.
    pub async fn start(self, from: &Arc<dyn Broker>, to: &dyn Broker) -> Result<(Running, Arc<Carried>)> {
        to.apply(&Topology::of(&self.channel), Apply::Create).await?;
        let sender = Sender::open(to, &self.channel)
            .with_clock(Arc::clone(&self.clock))
            .with_patience(PATIENCE)
            .await?;
        let carried = Arc::new(Carried::default());
        // As often as it takes: what is put aside at all is what will fail for ever.
        let policy = Policy::skip()
            .with_attempts(u32::MAX)
            .with_pauses(PAUSES.0, PAUSES.1)
            .with_time_limit(PATIENCE.saturating_mul(3));
        let handlers = Handlers::new()
            .handle(carry(self.sites, sender.clone(), Arc::clone(&carried)))
            .with_concurrency(CONCURRENCY)
            .with_policy(policy);
        let service =
            Service::new(self.name).with_clock(self.clock).pass_claims().on(&self.channel, handlers);
        Ok((service.start(from).await?.closing([sender]), carried))
    }
}

fn carry(
    sites: (Name, Name),
    sender: Sender,
    carried: Arc<Carried>,
) -> impl Fn(Message) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync + 'static {
    let (from, to) = sites;
    move |mut message| {
        let (sender, carried) = (sender.clone(), Arc::clone(&carried));
        let via = message.headers.get(VIA).unwrap_or_default().to_owned();
        let is_back = via.split(',').any(|site| site == to.as_str());
        let via = if via.is_empty() { from.to_string() } else { format!("{via},{from}") };
        Box::pin(async move {
            if is_back {
                carried.turned_back.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            message.headers.set(VIA, via)?;
            sender.send(message).await.map_err(|error| match error.kind() {
                Kind::Data => Failure::never(error),
                // Whatever else it is, somebody may mend it there, and the message waits here.
                _ => Failure::retry(error),
            })?;
            carried.carried.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    }
}
