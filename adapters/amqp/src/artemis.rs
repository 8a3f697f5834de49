//! What is Artemis' own: the names of its addresses and queues, and its management, which is asked by messages.

use std::sync::Arc;

use async_trait::async_trait;
use fe2o3_amqp::types::definitions::{self, AmqpError, ErrorCondition};
use fe2o3_amqp::types::messaging::{AmqpValue, ApplicationProperties, Body, Message as Amqp, Properties};
use fe2o3_amqp::types::primitives::{OrderedMap, SimpleValue, Value};
use serde_json::{Value as Json, json};
use tidegate_broker::access::Access;
use tidegate_broker::queue::{NO_BROWSING, NO_LISTING};
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::Effective;
use tidegate_core::{Capabilities, Channel, Error, How, Lane, Name, Result};

use crate::asking::{ASKED_MAX, Asking};
use crate::connect::Connection;
use crate::server::{Management, Queue, What};

pub(crate) static CAPABILITIES: Capabilities = Capabilities {
    confirm: "in the server's journal, synchronised with the disk, for the queue of every subscription",
    order_by_key: How::Emulated("an exclusive queue a lane"),
    competing_consumers: How::Emulated("members share the lanes; the server lets one at a time into each"),
    durable_subscriptions: How::Native,
    unregister: How::Native,
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
    loss: &[],
};

/// What every name of ours begins with: what stands before the dot is a word of its own in the patterns of the server.
const OURS: &str = "tidegate.";
/// The pattern of all of them.
const ALL: &str = "tidegate.#";
/// One of them, whichever.
const ANY: &str = "tidegate.any";
/// Who is asked.
const MANAGEMENT: &str = "activemq.management";

/// The address that messages of a lane are sent to.
pub(crate) fn address(channel: &Name, lane: Lane) -> String {
    format!("{OURS}{channel}/{}", lane.0)
}

/// The name of a queue.
pub(crate) fn name(queue: &Queue) -> String {
    match queue {
        Queue::Record(channel) => format!("{OURS}{channel}"),
        Queue::Members(channel, subscription) => format!("{OURS}{channel}/{subscription}"),
        Queue::Lane(channel, subscription, lane) => format!("{OURS}{channel}/{subscription}/{}", lane.0),
        Queue::Book(channel, subscription, lane) => {
            format!("{OURS}{channel}/{subscription}/{}/book", lane.0)
        }
    }
}

/// What is asked of something of the server: an operation with its arguments.
#[derive(Clone, Debug)]
struct Question {
    resource: String,
    operation: &'static str,
    arguments: Json,
}

/// The server as a whole.
const SERVER: &str = "broker";

impl Question {
    /// Makes a queue that only one at a time reads, and its address, unless it is there.
    fn make(queue: &Queue) -> Self {
        let name = name(queue);
        let (address, routing) = match queue {
            Queue::Lane(channel, _, lane) => (address(channel, *lane), "MULTICAST"),
            Queue::Record(_) | Queue::Members(..) | Queue::Book(..) => (name.clone(), "ANYCAST"),
        };
        // Whatever the server's defaults for new queues are.
        let wanted = json!({
            "name": name, "address": address, "routing-type": routing, "durable": true, "exclusive": true,
            "auto-create-address": true, "auto-delete": false, "purge-on-no-consumers": false, "max-consumers": -1,
            "last-value": false, "non-destructive": false, "ring-size": -1, "group-rebalance": false,
            "consumers-before-dispatch": 0, "delay-before-dispatch": -1,
        });
        Self::operation("createQueue", json!([wanted.to_string(), true]))
    }

    /// Removes a queue with everything in it, and its address if no other queue is there.
    fn remove(queue: &Queue) -> Self {
        Self::operation("destroyQueue", json!([name(queue), true, true]))
    }

    /// How many there are of something of a queue.
    fn count(queue: &Queue, operation: &'static str) -> Self {
        Self { resource: format!("queue.{}", name(queue)), operation, arguments: json!([]) }
    }

    /// Something of the server as a whole.
    fn server(what: &'static str) -> Self {
        Self::operation(what, json!([]))
    }

    fn operation(operation: &'static str, arguments: Json) -> Self {
        Self { resource: SERVER.to_owned(), operation, arguments }
    }
}

const MESSAGES: &str = "getMessageCount";
const IN_HAND: &str = "getDeliveringCount";
const CONSUMERS: &str = "getConsumerCount";

/// What the server has to keep to for our addresses, or messages go away, or move, behind our back.
fn needed() -> Json {
    json!({
        // What a consumer that dies had in hand comes again, however often.
        "maxDeliveryAttempts": -1,
        "redeliveryDelay": 0,
        "noExpiry": true,
        // An address is there as long as somebody wants what is sent to it.
        "autoCreateQueues": false,
        "autoCreateAddresses": false,
        "autoDeleteQueues": false,
        "autoDeleteAddresses": false,
        // Who is slow keeps its lanes.
        "slowConsumerThreshold": -1,
    })
}

/// What becomes of messages to a full address: nothing is dropped, and nothing refused behind which others are taken.
const FULL: &str = "addressFullMessagePolicy";
/// Beyond these an address drops or refuses as well.
const UNLIMITED: [&str; 2] = ["pageLimitBytes", "pageLimitMessages"];

/// All that our addresses need, with what is good already of `found`: the server puts what it is told in the place of everything
/// that it was told before.
fn wanted(found: &Json) -> Json {
    let mut wanted = needed();
    for name in [FULL].iter().chain(&UNLIMITED) {
        if let Some(good) = found.get(*name) {
            wanted[*name] = good.clone();
        }
    }
    for (name, needed) in missing(found) {
        wanted[name] = needed;
    }
    wanted
}

/// What of the settings of an address is not as needed, and how it has to be.
fn missing(found: &Json) -> serde_json::Map<String, Json> {
    let mut missing = serde_json::Map::new();
    for (name, wanted) in needed().as_object().into_iter().flatten() {
        if found.get(name) != Some(wanted) {
            missing.insert(name.clone(), wanted.clone());
        }
    }
    if found.get(FULL).and_then(Json::as_str).is_some_and(|policy| policy != "PAGE" && policy != "BLOCK") {
        missing.insert(FULL.to_owned(), "PAGE".into());
    }
    for name in UNLIMITED {
        if found.get(name).and_then(Json::as_i64).is_some_and(|limit| limit >= 0) {
            missing.insert(name.to_owned(), (-1).into());
        }
    }
    missing
}

/// The management of a server, over one connection.
#[derive(Debug)]
pub(crate) struct ArtemisManagement {
    access: Arc<Access>,
    asking: tokio::sync::Mutex<Asking>,
}

impl ArtemisManagement {
    pub(crate) async fn open(access: &Arc<Access>, connection: &Connection) -> Result<Self> {
        let asking = Asking::open(connection, Some(MANAGEMENT), access.timeout).await?;
        Ok(Self { access: Arc::clone(access), asking: tokio::sync::Mutex::new(asking) })
    }

    /// What the server answers to each, in their order; its own words if it could not.
    async fn ask(&self, questions: &[Question]) -> Result<Vec<std::result::Result<Json, String>>> {
        let mut answers = Vec::with_capacity(questions.len());
        let mut asking = self.asking.lock().await;
        for some in questions.chunks(ASKED_MAX) {
            let mut those: Vec<_> = some.iter().map(|_| Err(String::new())).collect();
            let take = |place: usize, message| {
                if let Some(answer) = those.get_mut(place) {
                    *answer = answered(message);
                }
                true
            };
            let asked = asking.ask(some.iter().map(Question::message), self.access.timeout, take).await;
            asked.map_err(|error| match error.code() {
                // Some releases do not say that a right is missing, but where they stumbled over that.
                code::STORE_FAILED | code::ACCESS_DENIED => {
                    let text = "the server takes no questions to its management from this user";
                    Error::new(code::ACCESS_DENIED, text)
                        .hint(format!("give its role the permissions manage and send of {MANAGEMENT}"))
                        .because(error)
                }
                _ => error,
            })?;
            answers.append(&mut those);
        }
        Ok(answers)
    }

    /// The same, where all have to succeed.
    async fn tell(&self, questions: &[Question], operation: &'static str) -> Result<Vec<Json>> {
        let answers = self.ask(questions).await?;
        answers.into_iter().map(|answer| answer.map_err(|said| refused(said, operation))).collect()
    }

    /// A number of something of a queue; nothing if there is no such queue.
    async fn counts(&self, questions: &[Question]) -> Result<Vec<Option<u64>>> {
        let count = |answer: std::result::Result<Json, String>| match answer {
            Ok(number) => number.as_u64().map(Some).ok_or_else(|| refused(number.to_string(), "count")),
            Err(said) if is_gone(&said) => Ok(None),
            Err(said) => Err(refused(said, "count")),
        };
        self.ask(questions).await?.into_iter().map(count).collect()
    }

    /// The settings of some addresses.
    async fn settings(&self, addresses: &[String]) -> Result<Vec<Json>> {
        let asked = |address: &String| Question::operation("getAddressSettingsAsJSON", json!([address]));
        let asked: Vec<Question> = addresses.iter().map(asked).collect();
        let found = self.tell(&asked, "look at the settings of addresses").await?;
        let read = |found: Json| found.as_str().and_then(|text| serde_json::from_str(text).ok());
        Ok(found.into_iter().map(|found| read(found).unwrap_or_default()).collect())
    }
}

#[async_trait]
impl Management for ArtemisManagement {
    fn is_open(&self) -> bool {
        self.asking.try_lock().map_or(true, |asking| asking.is_open())
    }

    async fn probe(&self) -> Result<Effective> {
        let asked = ["getVersion", "isPersistenceEnabled", "isJournalSyncNonTransactional", "isClustered"];
        let found = self.tell(&asked.map(Question::server), "look at the server").await?;
        let is = |place: usize| found.get(place).and_then(Json::as_bool);
        let version = found.first().and_then(Json::as_str).unwrap_or("unknown");
        let mut notes = self.access.notes();
        let mut warnings = Vec::new();
        if is(1) != Some(true) {
            warnings
                .push("the server keeps nothing on its disk: what is stored is lost when it ends".to_owned());
        }
        if is(2) != Some(true) {
            warnings.push(
                "the server does not wait for its disk (journal-sync-non-transactional): what came last is lost when the power goes"
                    .to_owned(),
            );
        }
        if is(3) != Some(false) {
            notes.push(
                "the server is one of a cluster: a channel is on the node that it was made on, and on no other"
                    .to_owned(),
            );
        }
        Ok(Effective { version: format!("Artemis {version}"), warnings, notes })
    }

    /// Before anything is looked for: as servers are set up at first, a look makes the queue that is looked for.
    async fn settle(&self, channel: Option<&Name>) -> Result<()> {
        let addresses = match channel {
            None => vec![ANY.to_owned()],
            Some(channel) => vec![name(&Queue::Record(channel.clone())), address(channel, Lane(0))],
        };
        let found = self.settings(&addresses).await?;
        let Some(lacking) = found.iter().find(|found| !missing(found).is_empty()) else { return Ok(()) };
        let asked = Question::operation("addAddressSettings", json!([ALL, wanted(lacking).to_string()]));
        self.tell(&[asked], "set what addresses need").await?;
        match self.settings(&addresses).await?.iter().flat_map(missing).next() {
            None => Ok(()),
            Some((name, wanted)) => {
                let text =
                    format!("the server keeps to other settings of our addresses than {name} = {wanted}");
                Err(Error::new(code::CONFIG_INVALID, text).hint(format!(
                    "look in its broker.xml for an address-setting that is narrower than {ALL}"
                )))
            }
        }
    }

    async fn make(&self, queues: &[Queue]) -> Result<()> {
        let asked: Vec<Question> = queues.iter().map(Question::make).collect();
        self.tell(&asked, "make a queue").await.map(drop)
    }

    async fn remove(&self, queues: &[Queue]) -> Result<()> {
        let asked: Vec<Question> = queues.iter().map(Question::remove).collect();
        for answer in self.ask(&asked).await? {
            match answer {
                Err(said) if !is_gone(&said) => return Err(refused(said, "remove a queue")),
                _ => {}
            }
        }
        Ok(())
    }

    async fn count(&self, asked: &[(Queue, What)]) -> Result<Vec<Option<u64>>> {
        let question = |(queue, what): &(Queue, What)| match what {
            What::Messages => Question::count(queue, MESSAGES),
            What::InHand => Question::count(queue, IN_HAND),
        };
        let asked: Vec<Question> = asked.iter().map(question).collect();
        self.counts(&asked).await
    }

    async fn members(&self, channel: &Channel, subscription: &Name) -> Result<Option<u64>> {
        let asked = Question::count(&Queue::Members(channel.name.clone(), subscription.clone()), CONSUMERS);
        Ok(self.counts(&[asked]).await?.first().copied().flatten())
    }

    /// It lets nobody attach to what is not there.
    async fn attached(&self, _: &Queue) -> Result<()> {
        Ok(())
    }

    /// It refuses what nobody wants.
    async fn is_wanted(&self, _: &Name, _: Lane) -> Result<bool> {
        Ok(true)
    }
}

impl Question {
    fn message(&self) -> Amqp<AmqpValue<Value>> {
        let text = |text: &str| SimpleValue::String(text.to_owned());
        let mut named = OrderedMap::new();
        named.insert("_AMQ_ResourceName".to_owned(), text(&self.resource));
        named.insert("_AMQ_OperationName".to_owned(), text(self.operation));
        Amqp {
            header: None,
            delivery_annotations: None,
            message_annotations: None,
            properties: Some(Properties { to: Some(MANAGEMENT.to_owned()), ..Properties::default() }),
            application_properties: Some(ApplicationProperties(named)),
            body: AmqpValue(Value::String(self.arguments.to_string())),
            footer: None,
        }
    }
}

/// What is answered: the first value of a list.
fn answered(message: Amqp<Body<Value>>) -> std::result::Result<Json, String> {
    let named = message.application_properties.map(|named| named.0).unwrap_or_default();
    let is_done = named.get("_AMQ_OperationSucceeded") == Some(&SimpleValue::Bool(true));
    let text = match message.body {
        Body::Value(AmqpValue(Value::String(text))) => text,
        _ => String::new(),
    };
    let value = match serde_json::from_str(&text) {
        Ok(Json::Array(values)) => values.into_iter().next().unwrap_or_default(),
        Ok(other) => other,
        Err(_) => Json::String(text),
    };
    if is_done { Ok(value) } else { Err(value.as_str().map_or_else(|| value.to_string(), str::to_owned)) }
}

/// There is no such queue, no such address, or nothing of this name that can be asked.
fn is_gone(said: &str) -> bool {
    ["AMQ229017", "AMQ229203", "AMQ229067"].iter().any(|known| said.contains(known))
}

/// Whether a message was refused because its address is not there. The server has no condition for that where a link may send
/// to any address.
pub(crate) fn is_unwanted(said: &definitions::Error) -> bool {
    said.condition == ErrorCondition::AmqpError(AmqpError::NotFound)
        || said.description.as_ref().is_some_and(|words| words.starts_with("AMQ119002"))
}

fn refused(said: String, operation: &'static str) -> Error {
    let error = if said.contains("AMQ229032") || said.contains("AMQ229213") {
        Error::new(code::ACCESS_DENIED, "the user may not do this")
    } else {
        Error::new(code::STORE_FAILED, "the server could not do what its management was asked for")
            .verdict_is(Verdict::Unknown)
    };
    error.with("operation", operation).because(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_lose_messages_are_missing_others() {
        let stock =
            json!({"maxDeliveryAttempts": 10, "addressFullMessagePolicy": "DROP", "pageLimitBytes": 5});
        let missing_of_stock = missing(&stock);
        for (name, wanted) in [
            ("maxDeliveryAttempts", json!(-1)),
            ("noExpiry", json!(true)),
            ("addressFullMessagePolicy", json!("PAGE")),
            ("pageLimitBytes", json!(-1)),
        ] {
            assert_eq!(missing_of_stock.get(name), Some(&wanted), "{name}");
        }
        let mut good = needed();
        good["addressFullMessagePolicy"] = json!("BLOCK");
        assert!(missing(&good).is_empty(), "whoever is made to wait loses nothing");
    }

    #[test]
    fn names_are_apart() {
        // Names have no slash.
        let [channel, subscription] = ["a", "b"].map(|name| Name::new(name).unwrap());
        assert_eq!(address(&channel, Lane(3)), "tidegate.a/3");
        assert_eq!(name(&Queue::Record(channel.clone())), "tidegate.a");
        assert_eq!(name(&Queue::Members(channel.clone(), subscription.clone())), "tidegate.a/b");
        assert_eq!(name(&Queue::Lane(channel.clone(), subscription.clone(), Lane(3))), "tidegate.a/b/3");
        assert_eq!(name(&Queue::Book(channel.clone(), subscription.clone(), Lane(3))), "tidegate.a/b/3/book");
    }
}
