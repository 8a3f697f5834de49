//! A service: handlers of the messages of some channels.

mod extract;
mod failure;
mod handler;
mod handlers;
mod running;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::{Kind, code};
use tidegate_core::port::{Broker, StateStore};
use tidegate_core::{
    Apply, Channel, Clock, Error, Ids, Result, Scope, Subscription, SystemClock, SystemIds, Topology,
    capability,
};
use tokio::sync::watch;

pub use extract::{Context, FromContext, FromMessage, Info, Json, State, Typed};
pub use failure::{Failure, IntoEnded};
pub(crate) use handler::Ended;
pub use handler::{ByMethod, Handle, Handler, Replies};
pub(crate) use handlers::Erased;
pub use handlers::Handlers;
pub use running::Running;

use crate::claim::{Claimed, Claims};
use crate::dead_letter;
use crate::delivery::{Dispatch, Meter, Parked, Worker};
use crate::metrics::Metrics;
use crate::policy::Exhausted;
use crate::priority::{Part, Priority, Turns};
use crate::replier::Replier;
use crate::sender::Sender;
use crate::trace::{self, Place};

/// How long a dead letter is tried before its message waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// A service that handles nothing yet.
#[derive(Debug)]
pub enum Idle {}

/// A service with handlers.
#[derive(Debug)]
pub enum Ready {}

/// Whether a service can be started.
#[diagnostic::on_unimplemented(
    message = "this service has no handlers yet",
    label = "nothing to start",
    note = "say what it handles first: Service::new(\"billing\").on(&channel, Handlers::new().handle(handler))"
)]
pub trait Startable {}

impl Startable for Ready {}

/// A service, as it is put together: its name is that of its subscriptions, its handlers get what comes there.
///
/// # Contract
/// 1. One message of a subject is handled at a time, in the order of the subject; subjects beside each other. (F47)
/// 2. A message whose handler fails is tried again as its [`Policy`](crate::Policy) says; what is exhausted becomes a dead letter, with its
///    cause, before it is settled, and so does at once what cannot be read. (D33, D34, D36)
/// 3. An attempt that killed the process counts; what a service was at that is gone is done by another. (D35, F49)
/// 4. A dead letter can be replayed as it was; what waits behind it is handled behind it. (D37)
/// 5. A message that asks for a reply gets that of its handler, or is told that it became a dead letter. (H57)
/// 6. Draining ends by its deadline; what was not handled then was not tried. (F47)
/// 7. What came is handled, dead, failed or given back: the counts add up. (H61)
/// 8. Of levels of urgency each has its share. (H56)
/// 9. What goes further keeps its id over a bridge, goes in no ring, and belongs to the trace of what it came of. (H58, H60)
///
/// ```
/// # use std::time::Duration;
/// use serde::{Deserialize, Serialize};
/// use tidegate_core::{Channel, Endpoint, Result, SystemIds};
/// use tidegate_runtime::{Failure, Handlers, Json, Policy, Service, Typed};
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderPlaced {
///     order: String,
/// }
///
/// impl Typed for OrderPlaced {
///     const KIND: &str = "order.placed.v1";
///
///     fn subject(&self) -> Option<String> {
///         Some(self.order.clone())
///     }
/// }
///
/// async fn bill(Json(placed): Json<OrderPlaced>) -> Result<(), Failure> {
///     println!("a bill for {}", placed.order);
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let broker = tidegate_memory::open_broker(&Endpoint::parse("memory:")?)?;
/// let orders = Channel::new("orders")?;
/// let billing = Service::new("billing")
///     .on(&orders, Handlers::new().handle(bill).with_policy(Policy::skip()))
///     .start(&broker)
///     .await?;
///
/// let placed = Json(OrderPlaced { order: "17".into() });
/// broker.producer(&orders).await?.publish(&[placed.to_message(&SystemIds, "shop")?]).await;
/// # while billing.counted().handled == 0 { tokio::time::sleep(Duration::from_millis(1)).await; }
/// billing.drain(Duration::from_secs(5)).await?;
/// # Ok(())
/// # }
/// ```
pub struct Service<S = (), R = Idle> {
    name: String,
    state: S,
    store: Option<Arc<dyn StateStore>>,
    inputs: Vec<Input<S>>,
    metrics: Metrics,
    claims: Claimed,
    topology: Apply,
    ids: Arc<dyn Ids>,
    clock: Arc<dyn Clock>,
    is_ready: PhantomData<fn() -> R>,
}

/// What comes on one channel, as it is to be started.
struct Prepared<S> {
    channel: Channel,
    subscription: Subscription,
    handlers: Handlers<S>,
    /// Which level it is of which input, if that has levels.
    level: Option<(usize, usize)>,
}

/// The messages of one channel, and what handles them.
struct Input<S> {
    channel: Channel,
    handlers: Handlers<S>,
}

impl<S, R> fmt::Debug for Service<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels: Vec<_> = self.inputs.iter().map(|input| &input.channel.name).collect();
        f.debug_struct("Service")
            .field("name", &self.name)
            .field("channels", &channels)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// A service of this name. All processes that start it share its messages.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            state: (),
            store: None,
            inputs: Vec::new(),
            metrics: Metrics::default(),
            claims: Claimed::Unknown,
            topology: Apply::Create,
            ids: Arc::new(SystemIds),
            clock: SystemClock::shared(),
            is_ready: PhantomData,
        }
    }

    /// What its handlers can ask for as [`State`]: connections, settings. Each call gets a copy.
    pub fn with_state<S: Clone>(self, state: S) -> Service<S> {
        Service {
            name: self.name,
            state,
            store: self.store,
            inputs: Vec::new(),
            metrics: self.metrics,
            claims: self.claims,
            topology: self.topology,
            ids: self.ids,
            clock: self.clock,
            is_ready: PhantomData,
        }
    }
}

impl<S, R> Service<S, R> {
    /// Where it is noted which subjects wait behind a dead letter, so that whoever has their lane next knows. It is needed
    /// for [`Exhausted::ParkKey`].
    #[must_use]
    pub fn with_store(mut self, store: Arc<dyn StateStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// Measures what it does here, beside what is there already. Otherwise what is measured is told by [`Running::metrics`]
    /// alone.
    #[must_use]
    pub fn with_metrics(mut self, metrics: &Metrics) -> Self {
        self.metrics = metrics.clone();
        self
    }

    /// Where large bodies are that senders put away: handlers see whole messages. Without it such a message becomes a dead
    /// letter.
    #[must_use]
    pub fn with_claims(mut self, claims: &Claims) -> Self {
        self.claims = Claimed::Fetch(claims.clone());
        self
    }

    /// Leaves bodies where they are that senders put away: handlers see where that is, for whoever gets the message from them.
    #[must_use]
    pub fn pass_claims(mut self) -> Self {
        self.claims = Claimed::Pass;
        self
    }

    /// Whether channels and subscriptions that are not there are made at the start, as is the default, or missed.
    #[must_use]
    pub fn with_topology(mut self, apply: Apply) -> Self {
        self.topology = apply;
        self
    }

    /// Another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Another source of the ids of replies.
    #[must_use]
    pub fn with_ids(mut self, ids: Arc<dyn Ids>) -> Self {
        self.ids = ids;
        self
    }

    /// Handles the messages of a channel.
    pub fn on(self, channel: &Channel, handlers: Handlers<S>) -> Service<S, Ready> {
        let mut inputs = self.inputs;
        inputs.push(Input { channel: channel.clone(), handlers });
        Service {
            name: self.name,
            state: self.state,
            store: self.store,
            inputs,
            metrics: self.metrics,
            claims: self.claims,
            topology: self.topology,
            ids: self.ids,
            clock: self.clock,
            is_ready: PhantomData,
        }
    }
}

impl<S: Clone + Send + Sync + 'static, R: Startable> Service<S, R> {
    /// Checks everything, makes or compares channels and subscriptions, and begins to handle messages. With which settings of the
    /// server messages could be lost is logged as a warning.
    ///
    /// # Errors
    /// `config-invalid` if something is missing or stands twice, `capability-missing` if the broker cannot do what is asked
    /// of it, `version-unsupported` if the server is too old, `channel-missing` or `channel-differs` if the broker has other channels; otherwise as the broker.
    ///
    /// # Cancel safety
    /// A dropped call handles nothing. Channels and subscriptions may have been made; they stay, and the subscriptions keep what is
    /// published for whoever starts the service next.
    pub async fn start(self, broker: &Arc<dyn Broker>) -> Result<Running> {
        let (stop, stopped) = watch::channel(None);
        let mut workers = Vec::new();
        let mut meters = Vec::new();
        let mut senders = Vec::new();
        let replier = Arc::new(Replier::new(Arc::clone(broker), Arc::clone(&self.clock)));
        let prepared = self.prepare(&**broker)?;
        self.apply(&**broker, &prepared).await?;
        self.probe(&**broker).await?;
        let Self { name, state, store, metrics, claims, ids, clock, .. } = self;
        let source: Arc<str> = name.as_str().into();
        let system = trace::system(&broker.location());
        let mut turns: HashMap<usize, Vec<Arc<Turns>>> = HashMap::new();
        for Prepared { channel, subscription, handlers, level } in prepared {
            let policy = handlers.policy().clone();
            let dead = match policy.exhausted {
                Exhausted::Block => None,
                Exhausted::ParkKey | Exhausted::Skip => {
                    let dead = dead_letter::channel(&channel.name)?;
                    let sender = Sender::open(&**broker, &dead)
                        .with_clock(Arc::clone(&clock))
                        .with_patience(PATIENCE)
                        .await?;
                    senders.push(sender.clone());
                    Some(sender)
                }
            };
            let parked = match (&store, policy.exhausted) {
                (Some(store), Exhausted::ParkKey) => {
                    Some(Arc::new(Parked::new(Arc::clone(store), &name, channel.name.clone())?))
                }
                _ => None,
            };
            let (members, concurrency) = (handlers.members(), handlers.concurrency());
            let interval = handlers.interval();
            let place = Arc::new(Place {
                system: Arc::clone(&system),
                channel: channel.name.clone(),
                subscription: subscription.name.clone(),
            });
            let meter = Arc::new(Meter::new(Arc::clone(&place), handlers.kinds(), parked.clone()));
            metrics.watch(&meter);
            meters.push(Arc::clone(&meter));
            let dispatch = Arc::new(Dispatch {
                place,
                handlers,
                state: state.clone(),
                policy,
                claims: claims.clone(),
                parked,
                dead,
                replies: Replies { ids: Arc::clone(&ids), source: Arc::clone(&source) },
                replier: Arc::clone(&replier),
                meter,
                clock: Arc::clone(&clock),
            });
            for member in 0..members {
                let part = level.map(|(input, level)| {
                    let make = || (0..members).map(|_| Arc::new(Turns::new(concurrency))).collect();
                    let turns = turns.entry(input).or_insert_with(make);
                    Part { turns: Arc::clone(&turns[member]), level }
                });
                workers.push(Worker {
                    part,
                    consumer: broker.subscribe(&subscription).await?,
                    dispatch: Arc::clone(&dispatch),
                    clock: Arc::clone(&clock),
                    concurrency,
                    interval,
                    stop: stopped.clone(),
                });
            }
        }
        let mut tasks = Scope::new();
        for worker in workers {
            tasks.spawn(worker.run());
        }
        Ok(Running::new(name, tasks, stop, meters, metrics, replier, clock).closing(senders))
    }

    /// Looks at everything that can be wrong before the broker is asked.
    fn prepare(&self, broker: &dyn Broker) -> Result<Vec<Prepared<S>>> {
        let invalid = |what: String| Error::new(code::CONFIG_INVALID, what).with("service", &self.name);
        let mut channels = HashSet::new();
        let mut prepared = Vec::new();
        for (input, Input { channel, handlers }) in self.inputs.iter().enumerate() {
            handlers
                .check()
                .map_err(|error| error.with("service", &self.name).with("channel", &channel.name))?;
            let policy = handlers.policy();
            if policy.exhausted == Exhausted::ParkKey && self.store.is_none() {
                let what =
                    format!("the channel {} parks subjects, and the service has no store", channel.name);
                return Err(invalid(what).hint(
                    "a subject that waits behind a dead letter is noted in a store: add .with_store(store.state().await?), or choose Policy::skip() or Policy::block()",
                ));
            }
            let capabilities = broker.capabilities();
            if let tidegate_core::How::No(why) = capabilities.retry_later {
                return Err(capability::missing(&broker.location(), "retry_later", why));
            }
            let levels = if handlers.has_priorities() { &Priority::ALL[..] } else { &[Priority::Normal] };
            for (level, priority) in levels.iter().enumerate() {
                let channel = priority.channel(channel)?;
                if !channels.insert(channel.name.clone()) {
                    return Err(invalid(format!("the channel {} stands twice", channel.name))
                        .hint("give all handlers of a channel at once"));
                }
                let subscription = Subscription::new(&channel, self.name.as_str())?;
                prepared.push(Prepared {
                    channel,
                    subscription: subscription.with_window(handlers.window()),
                    handlers: handlers.clone(),
                    level: handlers.has_priorities().then_some((input, level)),
                });
            }
        }
        Ok(prepared)
    }

    /// Compares what is relied on with the server that is there.
    async fn probe(&self, broker: &dyn Broker) -> Result<()> {
        let location = broker.location();
        match broker.probe().await {
            Ok(effective) => {
                for warning in effective.warnings {
                    tracing::warn!(service = %self.name, broker = %location, "{warning}");
                }
                for note in effective.notes {
                    tracing::info!(service = %self.name, broker = %location, "{note}");
                }
                Ok(())
            }
            Err(error) if error.kind() == Kind::Refused => Err(error.with("broker", location)),
            // Who may handle messages may not be let look at settings.
            Err(error) => {
                tracing::warn!(service = %self.name, broker = %location, %error, "the broker's settings cannot be looked at");
                Ok(())
            }
        }
    }

    async fn apply(&self, broker: &dyn Broker, prepared: &[Prepared<S>]) -> Result<()> {
        let mut topology = Topology::default();
        for Prepared { channel, subscription, handlers, .. } in prepared {
            topology.channels.push(channel.clone());
            topology.subscriptions.push(subscription.clone());
            if handlers.policy().exhausted != Exhausted::Block {
                topology.channels.push(dead_letter::channel(&channel.name)?);
                topology.subscriptions.push(dead_letter::subscription(&channel.name)?);
            }
        }
        let differences = broker.apply(&topology, self.topology).await?;
        if let (Apply::Verify, Some(difference)) = (self.topology, differences.first()) {
            return Err(Error::new(code::CHANNEL_DIFFERS, difference.to_string())
                .with("service", &self.name)
                .with("differences", differences.len())
                .hint("make them first: tidegate channel apply, or a start with Apply::Create"));
        }
        Ok(())
    }
}
