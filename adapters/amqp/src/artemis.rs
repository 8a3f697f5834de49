//! What is Artemis' own: the names of its addresses and queues, and its management, which is asked by messages.

use std::time::Duration;

use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions::{self, AmqpError, ErrorCondition};
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Message as Amqp, MessageId, Outcome, Properties,
};
use fe2o3_amqp::types::primitives::{OrderedMap, SimpleValue, Value};
use fe2o3_amqp::{Receiver, Sender};
use serde_json::{Value as Json, json};
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Error, Lane, Name, Result};
use tokio::time::Instant;

use crate::connect::{Connection, Node, reply_receiver, sender, within};
use crate::error::{blocked, from_driver, from_server, timed_out};

/// What every name of ours begins with: what stands before the dot is a word of its own in the patterns of the server.
const OURS: &str = "tidegate.";
/// The pattern of all of them.
const ALL: &str = "tidegate.#";
/// One of them, whichever.
pub(crate) const ANY: &str = "tidegate.any";
/// Who is asked.
const MANAGEMENT: &str = "activemq.management";
/// How many questions are under way at once.
const ASKED_MAX: usize = 250;
/// How long the server may give no credit to ask anything.
const CREDIT: Duration = Duration::from_millis(500);

/// The address that messages of a lane are sent to.
pub(crate) fn address(channel: &Name, lane: Lane) -> String {
    format!("{OURS}{channel}/{}", lane.0)
}

/// The queue with the record of a channel.
pub(crate) fn record(channel: &Name) -> String {
    format!("{OURS}{channel}")
}

/// The queue whose consumers are the members of a subscription.
pub(crate) fn members(channel: &Name, subscription: &Name) -> String {
    format!("{OURS}{channel}/{subscription}")
}

/// The queue of a lane.
pub(crate) fn queue(channel: &Name, subscription: &Name, lane: Lane) -> String {
    format!("{OURS}{channel}/{subscription}/{}", lane.0)
}

/// The queue in which the book of a lane is.
pub(crate) fn book(channel: &Name, subscription: &Name, lane: Lane) -> String {
    format!("{OURS}{channel}/{subscription}/{}/book", lane.0)
}

/// A queue of an address, as a source.
pub(crate) fn of(address: &str, queue: &str) -> String {
    format!("{address}::{queue}")
}

/// What is asked of something of the server: an operation with its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    resource: String,
    operation: &'static str,
    arguments: Json,
}

/// The server as a whole.
const SERVER: &str = "broker";

impl Question {
    /// Makes a queue that only one at a time reads, and its address, unless it is there.
    pub(crate) fn make(node: Node, address: &str, queue: &str) -> Self {
        let routing = match node {
            Node::Queue => "ANYCAST",
            Node::Topic => "MULTICAST",
        };
        // Whatever the server's defaults for new queues are.
        let wanted = json!({
            "name": queue, "address": address, "routing-type": routing, "durable": true, "exclusive": true,
            "auto-create-address": true, "auto-delete": false, "purge-on-no-consumers": false, "max-consumers": -1,
            "last-value": false, "non-destructive": false, "ring-size": -1, "group-rebalance": false,
            "consumers-before-dispatch": 0, "delay-before-dispatch": -1,
        });
        Self::operation("createQueue", json!([wanted.to_string(), true]))
    }

    /// Removes a queue with everything in it, and its address if no other queue is there.
    pub(crate) fn remove(queue: &str) -> Self {
        Self::operation("destroyQueue", json!([queue, true, true]))
    }

    /// How many there are of something of a queue.
    pub(crate) fn count(queue: &str, what: &'static str) -> Self {
        Self { resource: format!("queue.{queue}"), operation: what, arguments: json!([]) }
    }

    /// Something of the server as a whole.
    pub(crate) fn server(what: &'static str) -> Self {
        Self::operation(what, json!([]))
    }

    fn operation(operation: &'static str, arguments: Json) -> Self {
        Self { resource: SERVER.to_owned(), operation, arguments }
    }
}

pub(crate) const MESSAGES: &str = "getMessageCount";
pub(crate) const IN_HAND: &str = "getDeliveringCount";
pub(crate) const CONSUMERS: &str = "getConsumerCount";

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
pub(crate) struct Management {
    asking: tokio::sync::Mutex<Asking>,
    timeout: Duration,
}

#[derive(Debug)]
struct Asking {
    /// The number of the next question.
    next: u64,
    reply_to: String,
    sender: Sender,
    receiver: Receiver,
    session: SessionHandle<()>,
}

impl Management {
    pub(crate) async fn open(connection: &Connection, timeout: Duration) -> Result<Self> {
        let mut session = connection.session().await?;
        let receiver = reply_receiver(&mut session, timeout).await?;
        let reply_to = receiver.source().as_ref().and_then(|source| source.address.clone());
        let reply_to = reply_to.ok_or_else(|| from_server(None, "open a queue for answers"))?;
        let sender = sender(&mut session, Node::Queue, Some(MANAGEMENT), timeout).await?;
        let asking = Asking { next: 1, reply_to, sender, receiver, session };
        Ok(Self { asking: tokio::sync::Mutex::new(asking), timeout })
    }

    /// Whether it is of use still, as far as can be said: who asks finds out.
    pub(crate) fn is_open(&self) -> bool {
        self.asking.try_lock().map_or(true, |asking| !asking.session.is_ended())
    }

    /// What the server answers to each, in their order; its own words if it could not.
    pub(crate) async fn ask(&self, questions: &[Question]) -> Result<Vec<std::result::Result<Json, String>>> {
        let mut answers = Vec::with_capacity(questions.len());
        let mut asking = self.asking.lock().await;
        for some in questions.chunks(ASKED_MAX) {
            answers.extend(asking.ask(some, self.timeout).await?);
        }
        Ok(answers)
    }

    /// The same, where all have to succeed.
    pub(crate) async fn tell(&self, questions: &[Question], operation: &'static str) -> Result<Vec<Json>> {
        let answers = self.ask(questions).await?;
        answers.into_iter().map(|answer| answer.map_err(|said| refused(said, operation))).collect()
    }

    /// A number of something of a queue; nothing if there is no such queue.
    pub(crate) async fn counts(&self, questions: &[Question]) -> Result<Vec<Option<u64>>> {
        let count = |answer: std::result::Result<Json, String>| match answer {
            Ok(number) => number.as_u64().map(Some).ok_or_else(|| refused(number.to_string(), "count")),
            Err(said) if is_gone(&said) => Ok(None),
            Err(said) => Err(refused(said, "count")),
        };
        self.ask(questions).await?.into_iter().map(count).collect()
    }

    /// Removes queues, of which some may be gone.
    pub(crate) async fn remove(&self, questions: &[Question]) -> Result<()> {
        for answer in self.ask(questions).await? {
            match answer {
                Err(said) if !is_gone(&said) => return Err(refused(said, "remove a queue")),
                _ => {}
            }
        }
        Ok(())
    }

    /// Has the server keep to what our addresses need.
    pub(crate) async fn settle(&self, addresses: &[String]) -> Result<()> {
        let found = self.settings(addresses).await?;
        let Some(lacking) = found.iter().find(|found| !missing(found).is_empty()) else { return Ok(()) };
        let asked = Question::operation("addAddressSettings", json!([ALL, wanted(lacking).to_string()]));
        self.tell(&[asked], "set what addresses need").await?;
        match self.settings(addresses).await?.iter().flat_map(missing).next() {
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

    /// The settings of some addresses.
    async fn settings(&self, addresses: &[String]) -> Result<Vec<Json>> {
        let asked = |address: &String| Question::operation("getAddressSettingsAsJSON", json!([address]));
        let asked: Vec<Question> = addresses.iter().map(asked).collect();
        let found = self.tell(&asked, "look at the settings of addresses").await?;
        let read = |found: Json| found.as_str().and_then(|text| serde_json::from_str(text).ok());
        Ok(found.into_iter().map(|found| read(found).unwrap_or_default()).collect())
    }
}

impl Asking {
    async fn ask(
        &mut self,
        questions: &[Question],
        time: Duration,
    ) -> Result<Vec<std::result::Result<Json, String>>> {
        const OPERATION: &str = "ask the management";
        // Answers to earlier questions that nobody waited for may come as well.
        let credit = within(time, OPERATION, self.receiver.set_credit(2 * ASKED_MAX as u32));
        credit.await?;
        let first = self.next;
        let mut sent = Vec::with_capacity(questions.len());
        for question in questions {
            let message = question.message(self.next, &self.reply_to);
            self.next += 1;
            match tokio::time::timeout(CREDIT, self.sender.send_batchable(message)).await {
                Ok(one) => sent.push(one.map_err(|error| from_driver(&error, OPERATION))?),
                Err(_) => return Err(blocked().with("operation", OPERATION)),
            }
        }
        let until = Instant::now() + time;
        for one in sent {
            let answer = tokio::time::timeout_at(until, one).await.map_err(|_| timed_out(OPERATION))?;
            match answer.map_err(|error| from_driver(&error, OPERATION))? {
                Outcome::Accepted(_) => {}
                // Some releases do not say that a right is missing, but where they stumbled over that.
                Outcome::Rejected(rejected) => {
                    let error = from_server(rejected.error.as_ref(), OPERATION);
                    let text = "the server takes no questions to its management from this user";
                    return Err(Error::new(code::ACCESS_DENIED, text)
                        .hint(format!("give its role the permissions manage and send of {MANAGEMENT}"))
                        .because(error));
                }
                _ => return Err(from_server(None, OPERATION)),
            }
        }
        let mut answers: Vec<Option<_>> = questions.iter().map(|_| None).collect();
        while answers.iter().any(Option::is_none) {
            let came = tokio::time::timeout_at(until, self.receiver.recv::<Body<Value>>()).await;
            let came =
                came.map_err(|_| timed_out(OPERATION))?.map_err(|error| from_driver(&error, OPERATION))?;
            within(time, OPERATION, self.receiver.accept(&came)).await?;
            let (number, answer) = answered(came.into_message());
            let place = number.and_then(|number| usize::try_from(number.checked_sub(first)?).ok());
            if let Some(place) = place.and_then(|place| answers.get_mut(place)) {
                *place = Some(answer);
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }
}

impl Question {
    fn message(&self, number: u64, reply_to: &str) -> Amqp<AmqpValue<Value>> {
        let text = |text: &str| SimpleValue::String(text.to_owned());
        let mut named = OrderedMap::new();
        named.insert("_AMQ_ResourceName".to_owned(), text(&self.resource));
        named.insert("_AMQ_OperationName".to_owned(), text(self.operation));
        Amqp {
            header: None,
            delivery_annotations: None,
            message_annotations: None,
            properties: Some(Properties {
                to: Some(MANAGEMENT.to_owned()),
                reply_to: Some(reply_to.to_owned()),
                correlation_id: Some(MessageId::String(number.to_string())),
                ..Properties::default()
            }),
            application_properties: Some(ApplicationProperties(named)),
            body: AmqpValue(Value::String(self.arguments.to_string())),
            footer: None,
        }
    }
}

/// The number of the question, and what is answered: the first value of a list.
fn answered(message: Amqp<Body<Value>>) -> (Option<u64>, std::result::Result<Json, String>) {
    let number = match message.properties.and_then(|properties| properties.correlation_id) {
        Some(MessageId::String(number)) => number.parse().ok(),
        Some(MessageId::Ulong(number)) => Some(number),
        _ => None,
    };
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
    (
        number,
        if is_done {
            Ok(value)
        } else {
            Err(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        },
    )
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
        assert_eq!(queue(&channel, &subscription, Lane(3)), "tidegate.a/b/3");
        assert_eq!(book(&channel, &subscription, Lane(3)), "tidegate.a/b/3/book");
        assert_eq!(of("tidegate.a/3", "tidegate.a/b/3"), "tidegate.a/3::tidegate.a/b/3");
    }
}
