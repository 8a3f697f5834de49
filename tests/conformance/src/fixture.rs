//! What the suite needs of a system beside its adapter.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tidegate_core::port::{Broker, Sent};
use tidegate_core::{Channel, Message, Result, Subscription};

use crate::proxy::Network;

/// Whether the system can be brought to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// It did.
    Done,
    /// It cannot, and why. The part of the case that needs it is reported as not run.
    Cannot(&'static str),
}

/// What a kill left behind.
#[derive(Debug)]
pub struct Killed {
    /// A connection to the broker after the kill.
    pub broker: Arc<dyn Broker>,
    /// The numbers of the messages that were confirmed before it ([`numbered`]).
    pub confirmed: Vec<u64>,
}

/// How a system is started, stopped, killed and cleaned up. Every hook has to be written: one that is forgotten would
/// make a case pass that shows nothing.
#[async_trait]
pub trait Fixture: Send {
    /// The name of the adapter.
    fn adapter(&self) -> &'static str;

    /// Starts an empty broker and connects.
    async fn start(&mut self) -> Result<Arc<dyn Broker>>;

    /// Another connection to the same broker, as another program would have it.
    async fn connect(&mut self) -> Result<Arc<dyn Broker>>;

    /// A connection of somebody with a wrong password; `None` if the broker asks for none.
    async fn stranger(&mut self) -> Result<Option<Arc<dyn Broker>>>;

    /// Stops the broker as an operator would, starts it again and connects.
    async fn restart(&mut self) -> Result<Arc<dyn Broker>>;

    /// Publishes numbered messages to the channel, kills the broker in the midst of it, and connects again. An embedded
    /// broker is the process that uses it: a child that calls [`publish_until_killed`] is killed.
    async fn kill(&mut self, channel: &Channel, prefix: &str) -> Result<Killed>;

    /// Cuts the connections of consumers, or does whatever else makes everything in their hands void.
    async fn cut(&mut self) -> Result<Hook>;

    /// The network between the adapter and its server.
    ///
    /// # Errors
    /// Why there is none, of a broker that is embedded.
    fn network(&self) -> std::result::Result<Arc<dyn Network>, &'static str>;

    /// Lets the answers to the next calls of `publish` get lost, with the messages stored.
    async fn lose_answers(&mut self, calls: usize) -> Result<Hook>;

    /// Removes what the messages of a channel are in, past the adapter: the topic, the stream, the queues of the subscription.
    async fn remove(&mut self, channel: &Channel, subscription: &Subscription) -> Result<Hook>;

    /// How many messages the broker keeps for a channel; `None` if that cannot be seen.
    async fn kept(&mut self, channel: &Channel) -> Result<Option<u64>>;

    /// Stops the broker and removes everything of it.
    async fn clean_up(&mut self) -> Result<()>;
}

/// The message of this number: the same in every process.
pub fn numbered(prefix: &str, number: u64) -> Message {
    Message::with_id(format!("{prefix}-{number}"), "conformance", "numbered")
        .with_subject(format!("k{}", number % 10))
        .with_data("text/plain", number.to_string())
}

/// Publishes numbered messages for ever and writes the number of each that is confirmed as a line to the standard
/// output: what a child does until it is killed.
///
/// # Errors
/// Whatever keeps it from publishing.
pub async fn publish_until_killed(broker: &dyn Broker, channel: &Channel, prefix: &str) -> Result<()> {
    let mut producer = broker.producer(channel).await?;
    for first in (0_u64..).step_by(10) {
        let batch: Vec<Message> = (first..first + 10).map(|number| numbered(prefix, number)).collect();
        let sent = producer.publish(&batch).await;
        let mut lines = String::new();
        for (number, sent) in (first..).zip(sent) {
            match sent {
                Sent::Stored { .. } => lines.push_str(&format!("{number}\n")),
                Sent::Refused(error) | Sent::Unknown(error) => return Err(error),
            }
        }
        let mut out = std::io::stdout().lock();
        if out.write_all(lines.as_bytes()).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(())
}

/// How many confirmed messages there are before a server is killed.
const CONFIRMED_BEFORE_KILL: usize = 200;

/// Publishes numbered messages until enough are confirmed, has the server killed while it goes on, and returns the numbers
/// of all that were confirmed.
///
/// # Errors
/// Whatever keeps it from publishing before the server is killed.
pub async fn kill_while_publishing(
    broker: &dyn Broker,
    channel: &Channel,
    prefix: &str,
    kill: impl Future<Output = ()>,
) -> Result<Vec<u64>> {
    let mut producer = broker.producer(channel).await?;
    let mut confirmed = Vec::new();
    let mut next = 0_u64;
    let mut publish = async |confirmed: &mut Vec<u64>| {
        let batch: Vec<Message> = (next..next + 10).map(|number| numbered(prefix, number)).collect();
        let sent = producer.publish(&batch).await;
        let stored = (next..).zip(&sent).filter(|(_, sent)| sent.is_stored());
        confirmed.extend(stored.map(|(number, _)| number));
        next += 10;
        sent.into_iter().find_map(|sent| match sent {
            Sent::Stored { .. } => None,
            Sent::Refused(error) | Sent::Unknown(error) => Some(error),
        })
    };
    while confirmed.len() < CONFIRMED_BEFORE_KILL {
        if let Some(error) = publish(&mut confirmed).await {
            return Err(error);
        }
    }
    let mut killed = std::pin::pin!(kill);
    loop {
        tokio::select! {
            biased;
            () = &mut killed => return Ok(confirmed),
            // Until it cannot any more: the first failure is the kill.
            failed = publish(&mut confirmed) => if failed.is_some() {
                killed.await;
                return Ok(confirmed);
            },
        }
    }
}

/// How often each hook was called.
pub type Calls = Arc<Mutex<BTreeMap<&'static str, usize>>>;

/// A fixture whose hooks are counted, to show that the suite calls them.
pub struct Counted<F> {
    inner: F,
    calls: Calls,
}

impl<F: Fixture> Counted<F> {
    /// Counts the hooks of a fixture.
    pub fn new(inner: F) -> (Self, Calls) {
        let calls = Calls::default();
        (Self { inner, calls: Arc::clone(&calls) }, calls)
    }

    fn count(&self, hook: &'static str) {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner).entry(hook).or_default() += 1;
    }
}

impl<F> std::fmt::Debug for Counted<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Counted").field(&self.calls).finish()
    }
}

#[async_trait]
impl<F: Fixture> Fixture for Counted<F> {
    fn adapter(&self) -> &'static str {
        self.inner.adapter()
    }

    async fn start(&mut self) -> Result<Arc<dyn Broker>> {
        self.count("start");
        self.inner.start().await
    }

    async fn connect(&mut self) -> Result<Arc<dyn Broker>> {
        self.count("connect");
        self.inner.connect().await
    }

    async fn stranger(&mut self) -> Result<Option<Arc<dyn Broker>>> {
        self.count("stranger");
        self.inner.stranger().await
    }

    async fn restart(&mut self) -> Result<Arc<dyn Broker>> {
        self.count("restart");
        self.inner.restart().await
    }

    async fn kill(&mut self, channel: &Channel, prefix: &str) -> Result<Killed> {
        self.count("kill");
        self.inner.kill(channel, prefix).await
    }

    async fn cut(&mut self) -> Result<Hook> {
        self.count("cut");
        self.inner.cut().await
    }

    fn network(&self) -> std::result::Result<Arc<dyn Network>, &'static str> {
        self.count("network");
        self.inner.network()
    }

    async fn lose_answers(&mut self, calls: usize) -> Result<Hook> {
        self.count("lose_answers");
        self.inner.lose_answers(calls).await
    }

    async fn remove(&mut self, channel: &Channel, subscription: &Subscription) -> Result<Hook> {
        self.count("remove");
        self.inner.remove(channel, subscription).await
    }

    async fn kept(&mut self, channel: &Channel) -> Result<Option<u64>> {
        self.count("kept");
        self.inner.kept(channel).await
    }

    async fn clean_up(&mut self) -> Result<()> {
        self.count("clean_up");
        self.inner.clean_up().await
    }
}
