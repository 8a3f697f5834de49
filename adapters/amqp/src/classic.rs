//! What is ActiveMQ Classic's own: virtual topics, from which it copies to the queues that listen, and its statistics, which are
//! asked by messages.
//!
//! A queue is made by whoever attaches to it first, or sends to it, and the server forgets it when it is started again, unless
//! a message was ever stored in it. So a message goes through each queue that is made. A message that stays in the queue of the
//! members says that the subscription is there: who attached to a queue of it later than that was removed finds none.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use fe2o3_amqp::Receiver;
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Data, Header, Message as Amqp, Properties,
};
use fe2o3_amqp::types::primitives::{Binary, OrderedMap, SimpleValue, Value};
use tidegate_broker::access::Access;
use tidegate_broker::queue::{NO_BROWSING, NO_LISTING};
use tidegate_core::error::code;
use tidegate_core::port::Effective;
use tidegate_core::{Capabilities, Channel, Error, How, Lane, LossCase, LossEvent, Name, Result};

use crate::asking::{ASKED_MAX, Asking, is_unanswered};
use crate::codec::durable;
use crate::connect::{Connection, Node, end, receiver, sender, within};
use crate::error::from_driver;
use crate::openwire;
use crate::send::post;
use crate::server::{Management, Queue, What, missing};

pub(crate) static CAPABILITIES: Capabilities = Capabilities {
    confirm: "in the server's store, for the queue of every subscription: on its disk as its persistence adapter is set up",
    order_by_key: How::Emulated("an exclusive consumer a lane"),
    competing_consumers: How::Emulated("members share the lanes; the server gives to one at a time of each"),
    durable_subscriptions: How::Emulated("virtual topics: a queue a lane"),
    unregister: How::Emulated("queues are removed over OpenWire, the server's own protocol"),
    replay: How::No("a queue forgets what is settled"),
    dedupe: How::No("queues know no message again; an inbox at the consumer does"),
    retry_later: How::Emulated("the owner of the lane keeps the message, and notes its time"),
    dead_letter: How::No("publish to a channel of dead letters, then settle"),
    delivery_count: How::Emulated(
        "counted and noted by the owner of the lane: the server counts what was handed over",
    ),
    lock_extend: How::Native,
    listing: How::No(NO_LISTING),
    browsing: How::No(NO_BROWSING),
    processes: How::Native,
    message_bytes_max: 16 << 20,
    consumers_per_lane_max: 1,
    loss: &[LossCase {
        when: LossEvent::PowerLost,
        text: "no client sees whether the server waits for its disk: what was confirmed last may go with the power",
        avoid: "KahaDB with journalDiskSyncStrategy=\"always\", which is its default",
    }],
};

const OURS: &str = "tidegate.";
/// What is sent to a topic of such a name comes to each queue `Consumer.<one word>.<name>`.
const VIRTUAL: &str = "VirtualTopic.tidegate.";
/// Copied from to see whether the server copies at all.
const TRIED: &str = "VirtualTopic.tidegate";
const STATISTICS: &str = "ActiveMQ.Statistics.Destination";
/// Behind the name of what is asked about: an empty answer comes last.
const WITH_END: &str = "ActiveMQ.Statistics.Destination.List.End.With.Null";
/// The property of a message that is there for its queue's sake.
const MADE: &str = "tidegate_made";
/// How long a message that was sent to a queue may take to come, if it does.
const COME: Duration = Duration::from_secs(1);
/// How long members may take to notice that their subscription is removed, and how often to look.
const LEAVE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_millis(20));
/// How often members are counted before all queues are looked at again.
const LOOK_EVERY: u64 = 10;
/// How long the server may give no credit.
const CREDIT: Duration = Duration::from_millis(500);

/// The topic of a lane.
pub(crate) fn address(channel: &Name, lane: Lane) -> String {
    format!("topic://{VIRTUAL}{channel}.{}", lane.0)
}

fn name(queue: &Queue) -> String {
    match queue {
        Queue::Record(channel) => format!("{OURS}{channel}"),
        Queue::Members(channel, subscription) => format!("{OURS}{channel}/{subscription}"),
        Queue::Lane(channel, subscription, lane) => listening(channel, &word(subscription), *lane),
        Queue::Book(channel, subscription, lane) => {
            format!("{OURS}{channel}/{subscription}/{}/book", lane.0)
        }
    }
}

/// A subscription in a name of several words, of which none has a dot.
fn word(subscription: &Name) -> String {
    subscription.as_str().replace('.', "/")
}

fn listening(channel: &Name, who: &str, lane: Lane) -> String {
    format!("Consumer.{who}.{VIRTUAL}{channel}.{}", lane.0)
}

/// A queue as what is sent to.
pub(crate) fn target(queue: &Queue) -> String {
    format!("queue://{}", name(queue))
}

/// A queue as what one at a time reads: the next in line when the one before is gone. Members are there all at once.
pub(crate) fn exclusive(queue: &Queue) -> String {
    match queue {
        Queue::Members(..) => target(queue),
        Queue::Record(_) | Queue::Lane(..) | Queue::Book(..) => {
            format!("{}?consumer.exclusive=true", target(queue))
        }
    }
}

/// Whether a message is there for its queue's sake alone.
pub(crate) fn is_made<B>(message: &Amqp<B>) -> bool {
    message.application_properties.as_ref().is_some_and(|named| named.0.contains_key(MADE))
}

/// A message for a queue's sake.
fn made(to: String) -> Amqp<Data> {
    let mut named = OrderedMap::new();
    named.insert(MADE.to_owned(), SimpleValue::Bool(true));
    Amqp {
        header: Some(durable()),
        delivery_annotations: None,
        message_annotations: None,
        properties: Some(Properties { to: Some(to), ..Properties::default() }),
        application_properties: Some(ApplicationProperties(named)),
        body: Data(Binary::from(Vec::new())),
        footer: None,
    }
}

/// What the server says of something, by name.
type Figures = HashMap<String, Value>;

fn number(figures: &Figures, name: &str) -> u64 {
    match figures.get(name) {
        Some(Value::Long(number)) => u64::try_from(*number).unwrap_or(0),
        Some(Value::Ulong(number)) => *number,
        Some(Value::Int(number)) => u64::try_from(*number).unwrap_or(0),
        _ => 0,
    }
}

fn figures(message: Amqp<Body<Value>>) -> Figures {
    let Body::Value(AmqpValue(Value::Map(map))) = message.body else { return Figures::new() };
    let named = |(name, value)| match name {
        Value::String(name) => Some((name, value)),
        _ => None,
    };
    map.into_inner().into_iter().filter_map(named).collect()
}

/// The statistics of a server, and what makes and removes queues.
#[derive(Debug)]
pub(crate) struct ClassicManagement {
    access: Arc<Access>,
    connection: Arc<Connection>,
    asking: tokio::sync::Mutex<Asking>,
    /// The name that the server has.
    name: String,
    /// How often members were counted.
    looks: AtomicU64,
    /// Where OpenWire is spoken, if the server says so, or the URL does.
    openwire: Option<u16>,
}

impl ClassicManagement {
    pub(crate) async fn open(access: &Arc<Access>, connection: &Arc<Connection>) -> Result<Self> {
        let mut asking = Asking::open(connection, None, access.timeout).await?;
        let mut about = Figures::new();
        let asked = asking.ask(
            [question("ActiveMQ.Statistics.Broker", access.timeout)].into_iter(),
            access.timeout,
            |_, answer| {
                about = figures(answer);
                true
            },
        );
        asked.await.map_err(|error| match is_unanswered(&error) {
            true => Error::new(code::CONFIG_INVALID, "the server answers nothing about its queues")
                .hint("give it its plugin of statistics: <statisticsBrokerPlugin/> in the <plugins> of its activemq.xml; a server of Artemis is artemis://")
                .because(error),
            false => error,
        })?;
        let url = about.get(if access.has_tls { "ssl" } else { "openwire" });
        let said = match url {
            Some(Value::String(url)) => url
                .rsplit(':')
                .next()
                .and_then(|port| port.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()),
            _ => None,
        };
        let name = match about.get("brokerName") {
            Some(Value::String(name)) => name.clone(),
            _ => "unnamed".to_owned(),
        };
        let openwire = match access.own.get("openwire") {
            Some(port) => port.parse().ok(),
            None => said,
        };
        Ok(Self {
            access: Arc::clone(access),
            connection: Arc::clone(connection),
            asking: tokio::sync::Mutex::new(asking),
            name,
            looks: AtomicU64::new(1),
            openwire,
        })
    }

    /// What the server says of each name, of which one may be a pattern for several.
    async fn about(&self, names: &[String]) -> Result<Vec<Vec<Figures>>> {
        let mut all = Vec::with_capacity(names.len());
        let mut asking = self.asking.lock().await;
        for some in names.chunks(ASKED_MAX) {
            let mut those = vec![Vec::new(); some.len()];
            let asked = some
                .iter()
                .map(|name| question(&format!("{STATISTICS}.{name}{WITH_END}"), self.access.timeout));
            let take = |place: usize, answer| {
                let figures = figures(answer);
                let is_last = figures.is_empty();
                if let Some(those) = those.get_mut(place)
                    && !is_last
                {
                    those.push(figures);
                }
                is_last
            };
            asking.ask(asked, self.access.timeout, take).await?;
            all.append(&mut those);
        }
        Ok(all)
    }

    async fn of_members(&self, channel: &Name, subscription: &Name) -> Result<Option<Figures>> {
        let asked = [name(&Queue::Members(channel.clone(), subscription.clone()))];
        let found = self.about(&asked).await?.into_iter().flatten().next();
        // Without its message the queue is one that somebody made by attaching to it.
        Ok(found.filter(|figures| number(figures, "size") > 0))
    }

    /// Whether the server copies from virtual topics, as it does if it is not told otherwise.
    async fn copies(&self) -> Result<bool> {
        let (mut session, timeout) = (self.connection.session().await?, self.access.timeout);
        let trying = async move {
            let mut sender = sender(&mut session, Node::Queue, None, timeout).await?;
            let source = format!("queue://Consumer.tidegate.{TRIED}");
            let mut receiver = receiver(&mut session, Node::Queue, source, timeout).await?;
            post(&mut sender, made(format!("topic://{TRIED}")), CREDIT, timeout, "try a topic").await?;
            take(&mut receiver, timeout).await
        };
        self.connection.whole(trying).await
    }

    async fn remove_named(&self, names: &[String]) -> Result<()> {
        let Some(port) = self.openwire else {
            return Err(Error::new(
                code::CONFIG_INVALID,
                "the server removes queues over OpenWire alone, and says no port of it",
            )
            .hint("give it a transportConnector for openwire, or name its port with ?openwire=61616"));
        };
        openwire::remove(&self.access, port, names).await
    }
}

/// Takes the message out that was sent to a queue for its own sake, if nobody else has it: whoever has the queue leaves it out.
async fn take(receiver: &mut Receiver, time: Duration) -> Result<bool> {
    const OPERATION: &str = "make a queue";
    within(time, OPERATION, receiver.set_credit(1)).await?;
    let Ok(came) = tokio::time::timeout(COME, receiver.recv::<Body<Value>>()).await else { return Ok(false) };
    let came = came.map_err(|error| from_driver(&error, OPERATION))?;
    let is_made = is_made(came.message());
    if is_made {
        within(time, OPERATION, receiver.accept(&came)).await?;
    } else {
        within(time, OPERATION, receiver.release(&came)).await?;
    }
    Ok(is_made)
}

/// Asks for figures. Nobody is to find the question later, should there be none who answers.
fn question(address: &str, time: Duration) -> Amqp<AmqpValue<Value>> {
    let ttl = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    Amqp {
        header: Some(Header { durable: false, ttl: Some(ttl), ..Header::default() }),
        delivery_annotations: None,
        message_annotations: None,
        properties: Some(Properties { to: Some(format!("queue://{address}")), ..Properties::default() }),
        application_properties: None,
        body: AmqpValue(Value::String(String::new())),
        footer: None,
    }
}

#[async_trait]
impl Management for ClassicManagement {
    fn is_open(&self) -> bool {
        self.asking.try_lock().map_or(true, |asking| asking.is_open())
    }

    async fn probe(&self) -> Result<Effective> {
        let mut notes = self.access.notes();
        if self.openwire.is_none() {
            notes.push(
                "the server says no port of OpenWire: subscriptions cannot be removed without ?openwire=PORT"
                    .to_owned(),
            );
        }
        Ok(Effective {
            version: format!("ActiveMQ Classic, broker {}", self.name),
            warnings: Vec::new(),
            notes,
        })
    }

    async fn settle(&self, channel: Option<&Name>) -> Result<()> {
        if channel.is_some() && !self.copies().await? {
            let text = "the server copies nothing from virtual topics to the queues that listen";
            return Err(Error::new(code::CONFIG_INVALID, text).hint(
                "leave useVirtualTopics on, and keep the names VirtualTopic.> and Consumer.*. in its destinationInterceptors",
            ));
        }
        Ok(())
    }

    async fn make(&self, queues: &[Queue]) -> Result<()> {
        let (mut session, time) = (self.connection.session().await?, self.access.timeout);
        let queues = queues.to_vec();
        let making = async move {
            let mut sender = sender(&mut session, Node::Queue, None, time).await?;
            for queue in &queues {
                match queue {
                    // What is stored in it keeps it.
                    Queue::Record(_) => {
                        receiver(&mut session, Node::Queue, exclusive(queue), time).await?;
                    }
                    Queue::Book(..) => {}
                    Queue::Members(..) | Queue::Lane(..) => {
                        post(&mut sender, made(target(queue)), CREDIT, time, "make a queue").await?;
                    }
                }
            }
            for queue in queues.iter().filter(|queue| matches!(queue, Queue::Lane(..))) {
                let mut receiver = receiver(&mut session, Node::Queue, exclusive(queue), time).await?;
                take(&mut receiver, time).await?;
                within(time, "make a queue", receiver.close()).await?;
            }
            end(&mut session, time, "make a queue").await
        };
        self.connection.whole(making).await
    }

    /// First the message that says that the subscription is there, then, when its members have noticed, the rest.
    async fn remove(&self, queues: &[Queue]) -> Result<()> {
        for queue in queues {
            let Queue::Members(channel, subscription) = queue else { continue };
            while self.of_members(channel, subscription).await?.is_some() {
                let (mut session, time) = (self.connection.session().await?, self.access.timeout);
                let source = exclusive(queue);
                let taking = async move {
                    let mut receiver = receiver(&mut session, Node::Queue, source, time).await?;
                    let is_taken = take(&mut receiver, time).await?;
                    end(&mut session, time, "remove a queue").await?;
                    Ok(is_taken)
                };
                if !self.connection.whole(taking).await? {
                    break;
                }
            }
            let until = tokio::time::Instant::now() + LEAVE.0;
            let asked = [name(queue)];
            while tokio::time::Instant::now() < until {
                let found = self.about(&asked).await?.into_iter().flatten().next();
                if found.is_none_or(|figures| number(&figures, "consumerCount") == 0) {
                    break;
                }
                tokio::time::sleep(LEAVE.1).await;
            }
        }
        let names: Vec<String> = queues.iter().map(name).collect();
        self.remove_named(&names).await
    }

    async fn count(&self, asked: &[(Queue, What)]) -> Result<Vec<Option<u64>>> {
        let names: Vec<String> = asked.iter().map(|(queue, _)| name(queue)).collect();
        let found = self.about(&names).await?;
        let count = |(found, (_, what)): (Vec<Figures>, &(Queue, What))| {
            let figure = match what {
                What::Messages => "size",
                What::InHand => "inflightCount",
            };
            found.first().map(|figures| number(figures, figure))
        };
        Ok(found.into_iter().zip(asked).map(count).collect())
    }

    /// Nobody tells a consumer that its queue was removed under it, so all queues are looked at now and then as well.
    async fn members(&self, channel: &Channel, subscription: &Name) -> Result<Option<u64>> {
        let Some(found) = self.of_members(&channel.name, subscription).await? else { return Ok(None) };
        if self.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_EVERY) {
            let all = format!("Consumer.{}.{VIRTUAL}{}.*", word(subscription), channel.name);
            let found = self.about(&[all]).await?;
            if found.first().map_or(0, Vec::len) < channel.lanes as usize {
                return Ok(None);
            }
        }
        Ok(Some(number(&found, "consumerCount")))
    }

    async fn attached(&self, queue: &Queue) -> Result<()> {
        let (Queue::Members(channel, subscription)
        | Queue::Lane(channel, subscription, _)
        | Queue::Book(channel, subscription, _)) = queue
        else {
            return Ok(());
        };
        self.of_members(channel, subscription).await?.map(drop).ok_or_else(missing)
    }

    async fn is_wanted(&self, channel: &Name, lane: Lane) -> Result<bool> {
        let found = self.about(&[listening(channel, "*", lane)]).await?;
        Ok(found.first().is_some_and(|found| !found.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_apart() {
        let [channel, other, subscription] = ["a", "a.3", "b.c"].map(|name| Name::new(name).unwrap());
        assert_eq!(address(&channel, Lane(3)), "topic://VirtualTopic.tidegate.a.3");
        assert_eq!(address(&other, Lane(0)), "topic://VirtualTopic.tidegate.a.3.0");
        let lane = Queue::Lane(channel.clone(), subscription.clone(), Lane(3));
        assert_eq!(target(&lane), "queue://Consumer.b/c.VirtualTopic.tidegate.a.3");
        assert_eq!(exclusive(&lane), format!("{}?consumer.exclusive=true", target(&lane)));
        let members = Queue::Members(channel, subscription);
        assert_eq!(exclusive(&members), "queue://tidegate.a/b.c");
    }
}
