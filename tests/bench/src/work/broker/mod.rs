//! The works of brokers: through our runtime, beside the bare client of the same broker and Watermill.

mod latency;
mod memory;
mod migrate;
mod publish;
mod recover;
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::port;
use tidegate_core::{
    Apply, Channel, Clock, Endpoint, Ids as _, Message, Result as CoreResult, Subscription, SystemClock,
    SystemIds, Topology,
};
use tidegate_runtime::{Failure, Handlers, Policy, Publisher, Running, Service, State, dead_letter};
use tidegate_services::broker::{Broker, Options, Server};
use tidegate_services::skipped;

use crate::Result;
use crate::ground::{Ground, Size, Versions};
use crate::load::{Load, SUBJECTS, Seen, WINDOW};
use crate::machine::locked;
use crate::peers::client::{self, Client};
use crate::peers::watermill::Watermill;
use crate::report::{Row, Samples};

/// The works, in the order in which they run: a server that was killed has little to read again while it is new.
pub const WORKS: &[&str] = &["recover", "publish", "consume", "latency", "migrate"];

/// What takes part without a server, and has one work.
const EMBEDDED: &[&str] = &["memory", "sqlite"];

/// The sizes of bodies, each with how much fewer messages of it there are.
const SIZES: [(usize, u64); 2] = [(512, 1), (8 << 10, 4)];

/// How long a broker may take to store what it is given, and a service to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker that takes part.
struct Joined {
    server: Broker,
    /// What the server is told beside what it always is.
    settings: &'static [(&'static str, &'static str)],
    /// Ours.
    open: fn(&Endpoint) -> CoreResult<Arc<dyn port::Broker>>,
    /// The bare client, and the name of its crate.
    client: fn(&str) -> Result<Box<dyn Client>>,
    package: &'static str,
    /// How many small messages make a run of some seconds.
    messages: u64,
    /// Whether there is a Watermill for it.
    has_watermill: bool,
    /// Whether it is the way of a migration, too.
    carries: bool,
    /// What the short form does with it: each work with one broker at least, that which takes long with no more.
    short: &'static [&'static str],
}

/// Every broker that takes part. A new one is an entry here, a file under `peers/client`, and two functions of
/// `peers/watermill/brokers.go` if there is a Watermill for it.
const JOINED: &[Joined] = &[
    Joined {
        server: Broker::Kafka,
        settings: &[],
        open: tidegate_kafka::open_broker,
        client: client::kafka::client,
        package: "rdkafka",
        messages: 300_000,
        has_watermill: true,
        carries: true,
        // It takes long to start again.
        short: &["publish", "consume", "latency"],
    },
    Joined {
        server: Broker::Nats,
        settings: &[],
        open: tidegate_nats::open_broker,
        client: client::nats::client,
        package: "async-nats",
        messages: 40_000,
        has_watermill: true,
        carries: true,
        // Its bare client waits five seconds for the answer to what was under way.
        short: &["publish", "consume", "latency", "migrate"],
    },
    Joined {
        server: Broker::Rabbitmq,
        settings: &[],
        open: tidegate_rabbitmq::open_broker,
        client: client::rabbitmq::client,
        package: "lapin",
        messages: 100_000,
        has_watermill: true,
        carries: false,
        short: &["publish", "consume"],
    },
    Joined {
        server: Broker::Redis,
        // The log of commands is written anew at some time else, which takes a core from whoever runs then.
        settings: &[("auto-aof-rewrite-percentage", "0")],
        open: tidegate_redis::open_broker,
        client: client::redis::client,
        package: "redis",
        messages: 200_000,
        has_watermill: true,
        carries: false,
        short: &["recover", "publish", "consume", "latency"],
    },
    Joined {
        server: Broker::Artemis,
        settings: &[],
        open: tidegate_amqp::open_broker,
        client: client::amqp::client,
        package: "fe2o3-amqp",
        messages: 100_000,
        has_watermill: false,
        carries: false,
        short: &["publish", "consume"],
    },
    Joined {
        server: Broker::Activemq,
        settings: &[],
        open: tidegate_amqp::open_broker,
        client: client::amqp::client,
        package: "fe2o3-amqp",
        messages: 10_000,
        has_watermill: false,
        carries: false,
        short: &["publish", "consume"],
    },
];

/// The names of all that take part.
pub fn names() -> Vec<&'static str> {
    JOINED.iter().map(|joined| joined.server.service().name()).chain(EMBEDDED.iter().copied()).collect()
}

/// Runs works of one broker; each row is told when it is there. The databases of a migration are for all brokers.
pub async fn run(
    name: &str,
    works: &[&str],
    size: Size,
    versions: &Versions,
    databases: &mut Option<Ground>,
    mut tell: impl FnMut(Vec<Row>) -> Result<()>,
) -> Result<()> {
    let wants = |work: &str| works.contains(&work);
    let Some(joined) = JOINED.iter().find(|joined| joined.server.service().name() == name) else {
        return match name {
            "memory" if wants("publish") => tell(memory::run(size).await?),
            "sqlite" if wants("publish") => tell(sqlite::run(size, versions).await?),
            _ => Ok(()),
        };
    };
    if skipped(joined.server.service()) {
        let none = Samples::default();
        let row = |work: &&str| {
            let row = Row::new(&format!("{work}-{name}"), "", &none, joined.package, &none, 0.0);
            row.with_note(format!("not measured: {name} is skipped"))
        };
        return tell(works.iter().map(row).collect());
    }
    let wants = |work: &str| wants(work) && (size.many_messages || joined.short.contains(&work));
    let stand = Stand::prepare(joined, size, versions).await?;
    if wants("recover") {
        tell(recover::run(&stand).await?)?;
    }
    if wants("publish") || wants("consume") {
        let rows = publish::run(&stand).await?;
        let is_wanted = |row: &Row| works.iter().any(|work| row.work.starts_with(work));
        tell(rows.into_iter().filter(is_wanted).collect())?;
    }
    if wants("latency") {
        tell(latency::run(&stand).await?)?;
    }
    if wants("migrate") && joined.carries && !skipped(tidegate_services::Service::Postgresql) {
        let ground = match databases {
            Some(ground) => ground,
            none => none.insert(Ground::prepare(size, versions.clone()).await?),
        };
        tell(migrate::run(ground, &stand).await?)?;
    }
    Ok(())
}

/// A server, with what uses it.
struct Stand {
    name: &'static str,
    server: Server,
    broker: Arc<dyn port::Broker>,
    client: Box<dyn Client>,
    /// The bare client, as rows name it.
    against: String,
    messages: u64,
    /// Nothing if there is none for this broker.
    watermill: Option<Result<Watermill>>,
    clock: Arc<dyn Clock>,
    size: Size,
}

impl Stand {
    async fn prepare(joined: &Joined, size: Size, versions: &Versions) -> Result<Self> {
        let mut options = Options::default();
        for (name, value) in joined.settings {
            options = options.with_setting(*name, value);
        }
        let server = Server::start(joined.server, options).await?;
        let url = server.url();
        let broker = (joined.open)(&Endpoint::parse(&url)?)?;
        let name = server.service().name();
        let probed = broker.probe().await?.version;
        // One that has a comma says which server it is, and no version.
        let text = if probed.contains(',') { joined.server.source() } else { &probed };
        let (what, version) = text.split_once(' ').unwrap_or((name, text));
        versions.note(what, version);
        let against = format!("{} {}", joined.package, locked(joined.package));
        let watermill = joined.has_watermill.then(|| Watermill::find(size.may_fetch));
        if let Some(Ok(_)) = watermill {
            versions.note("Watermill", Watermill::version());
        }
        let client = (joined.client)(&url)?;
        let clock = SystemClock::shared();
        Ok(Self { name, server, broker, client, against, messages: joined.messages, watermill, clock, size })
    }

    /// Messages of each size.
    fn loads(&self) -> Vec<Load> {
        loads(self.size, self.messages)
    }

    /// A channel of ours with one subscription.
    async fn channel(&self, name: &str) -> Result<(Channel, Subscription)> {
        channel(&*self.broker, name).await
    }

    async fn publisher(&self, channel: &Channel) -> Result<Publisher> {
        Ok(Publisher::open(&*self.broker, channel)
            .with_clock(Arc::clone(&self.clock))
            .with_patience(PATIENCE)
            .await?)
    }

    /// Removes what is kept for the subscription of a channel, and for its dead letters.
    async fn clean(&self, channel: &Channel, subscription: &Subscription) -> Result<()> {
        self.broker.unregister(subscription).await?;
        self.broker.unregister(&dead_letter::subscription(&channel.name)?).await?;
        Ok(())
    }
}

/// So many small messages, and fewer large ones; in the short form the small ones.
fn loads(size: Size, messages: u64) -> Vec<Load> {
    let sizes = if size.many_messages { &SIZES[..] } else { &SIZES[..1] };
    let load =
        |(bytes, fewer): &(usize, u64)| Load { count: size.messages_of(messages) / fewer, bytes: *bytes };
    sizes.iter().map(load).collect()
}

/// The name of the service, which is that of its subscriptions.
const SERVICE: &str = "bench";

async fn channel(broker: &dyn port::Broker, name: &str) -> Result<(Channel, Subscription)> {
    let channel = Channel::new(name)?.with_limits(4_000_000, 16 << 30);
    let subscription = Subscription::new(&channel, SERVICE)?;
    broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await?;
    Ok((channel, subscription))
}

/// The message with a number, about one of many things.
fn message(load: Load, number: u64, at: u64) -> Message {
    Message::with_id(SystemIds.next().to_string(), "bench", "bench.message.v1")
        .with_subject((number % SUBJECTS).to_string())
        .with_data("application/octet-stream", load.body(number, at))
}

/// A service whose one handler looks what has come, and does nothing.
async fn service(broker: &Arc<dyn port::Broker>, channel: &Channel, seen: &Arc<Seen>) -> Result<Running> {
    async fn handle(
        State(seen): State<Arc<Seen>>,
        message: Arc<Message>,
    ) -> std::result::Result<(), Failure> {
        seen.mark(&message.data).map_err(|error| Failure::never(error.to_string()))
    }
    let handlers = Handlers::new().handle(handle).with_policy(Policy::skip());
    // As far as the bare clients fetch ahead.
    let handlers = handlers.with_window(4 * usize::try_from(WINDOW)?);
    let service = Service::new(SERVICE).with_state(Arc::clone(seen)).on(channel, handlers);
    Ok(service.start(broker).await?)
}

/// Takes messages with a bare client until all have come.
async fn consume(stand: &Stand, topic: &str, seen: &Seen) -> Result<()> {
    let mut consumer = stand.client.consumer(topic).await?;
    let consuming = async {
        while !seen.is_whole() {
            consumer.batch(&mut |body| seen.mark(body)).await?;
        }
        Ok(())
    };
    tokio::select! {
        biased;
        consumed = consuming => consumed,
        missing = seen.silent() => missing,
    }
}
