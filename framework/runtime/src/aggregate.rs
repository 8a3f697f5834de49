//! Makes one message of several that belong together.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tidegate_core::error::code;
use tidegate_core::port::{Due, StateStore, Timer, Timers};
use tidegate_core::{Clock, Error, FlowName, Message, Result, Scope, SystemClock};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::flow::flow;
use crate::kept::Kept;
use crate::sender::Sender;
use crate::service::Failure;

/// Over how many records the groups are spread.
const BUCKETS: u64 = 64;
/// How large a record may become.
const BUCKET_BYTES_MAX: usize = 4 << 20;
/// How many messages of groups that are complete a record remembers.
const DONE_MAX: usize = 1_000;
/// How often somebody looks whether the time of a group is over.
const LOOK: Duration = Duration::from_millis(100);
/// How many groups whose time is over are taken at a time, and how long they are hidden from others.
const TAKEN: (usize, Duration) = (64, Duration::from_secs(30));

type Key = Arc<dyn Fn(&Message) -> Option<String> + Send + Sync>;
type Test = Arc<dyn Fn(&[Message]) -> bool + Send + Sync>;
type Combine = Arc<dyn Fn(&str, &[Message]) -> Result<Message, Failure> + Send + Sync>;

/// Collects messages in groups, and sends one message for each group that is complete: when it has so many, when a test says
/// so, or when its time is over, whichever comes first.
///
/// Groups are kept in a store, and what a process has taken is in them before its message is settled: no crash loses one. Each
/// message is once in its group, also when it comes again; a thousand messages of complete groups are remembered in each of 64 records
/// for that. What a group was when it was complete is written before its message is sent, whose id follows from the first message of the
/// group: so it is the same whoever sends it again.
///
/// A record is written whole for each message: groups are for tens of messages, not for thousands. Large bodies do better as claim
/// checks ([`Service::pass_claims`](crate::Service::pass_claims)).
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use tidegate_core::{port::Store, Channel, Endpoint, Message, Result, SystemClock, Topology};
/// # use tidegate_runtime::{Aggregator, Handlers, Policy, Sender, Service};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// # let broker = tidegate_memory::open_broker(&Endpoint::parse("memory:")?)?;
/// # let (lines, orders) = (Channel::new("lines")?, Channel::new("orders")?);
/// # let orders = orders.with_keep(tidegate_core::Keep::AtLeast(Duration::from_secs(60)));
/// # broker.apply(&Topology::of(&orders), tidegate_core::Apply::Create).await?;
/// # let store = tidegate_memory::MemoryStore::new("shop");
/// let to = Sender::open(&*broker, &orders).await?;
/// let whole = Aggregator::new("order-lines", store.state().await?, to, |order, lines| {
///     let body = format!(r#"{{"order": "{order}", "lines": {}}}"#, lines.len());
///     Ok(Message::with_id("", "/shop", "order.whole.v1").with_data("application/json", body))
/// })?;
/// let whole = whole.by(|line| line.subject.as_deref().map(str::to_owned)).until_count(3);
/// let whole = whole.within(Duration::from_secs(60), Arc::new(store));
/// let _ending = whole.start();
/// let handlers = Handlers::new().handle(whole.into_handler()).with_policy(Policy::skip());
/// let service = Service::new("whole").on(&lines, handlers).start(&broker).await?;
/// # drop(service);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Aggregator {
    name: String,
    flow: FlowName,
    state: Arc<dyn StateStore>,
    to: Sender,
    key: Key,
    combine: Combine,
    count: usize,
    test: Option<Test>,
    time: Option<(Duration, Arc<dyn Timers>)>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Aggregator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aggregator")
            .field("name", &self.name)
            .field("to", self.to.channel())
            .finish_non_exhaustive()
    }
}

/// The groups of some keys.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Bucket {
    groups: BTreeMap<String, Group>,
    /// Messages of groups that were sent, the latest last.
    done: VecDeque<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Group {
    began_at: i64,
    /// Nothing is added to it any more.
    is_complete: bool,
    /// The messages in the order in which they came, by what each is known by.
    parts: Vec<(String, Kept)>,
}

impl Group {
    fn first(&self) -> &str {
        self.parts.first().map_or("", |(id, _)| id)
    }
}

/// What a timer says: whose time is over.
#[derive(Serialize, Deserialize)]
struct Over {
    key: String,
    first: String,
}

impl Aggregator {
    /// Groups by correlation id, else by subject, whose messages `combine` makes one of; it goes to `to`, with an id of its own. All who
    /// use the name share the groups.
    ///
    /// # Errors
    /// `config-invalid` if the name cannot be used.
    pub fn new(
        name: &str,
        state: Arc<dyn StateStore>,
        to: Sender,
        combine: impl Fn(&str, &[Message]) -> Result<Message, Failure> + Send + Sync + 'static,
    ) -> Result<Self> {
        let flow = flow("groups", name)?;
        let by = |message: &Message| {
            message.correlation_id.as_deref().or(message.subject.as_deref()).map(str::to_owned)
        };
        Ok(Self {
            name: name.to_owned(),
            flow,
            state,
            to,
            key: Arc::new(by),
            combine: Arc::new(combine),
            count: usize::MAX,
            test: None,
            time: None,
            clock: SystemClock::shared(),
        })
    }

    /// Another key. A message for which there is none becomes a dead letter.
    #[must_use]
    pub fn by(mut self, key: impl Fn(&Message) -> Option<String> + Send + Sync + 'static) -> Self {
        self.key = Arc::new(key);
        self
    }

    /// A group is complete when it has so many messages.
    #[must_use]
    pub fn until_count(mut self, count: usize) -> Self {
        self.count = count.max(1);
        self
    }

    /// A group is complete when this is true of its messages, in the order in which they came.
    #[must_use]
    pub fn until(mut self, test: impl Fn(&[Message]) -> bool + Send + Sync + 'static) -> Self {
        self.test = Some(Arc::new(test));
        self
    }

    /// A group is complete when this time is over since its first message came, as it is then. Somebody has to have
    /// [started](Self::start) it.
    #[must_use]
    pub fn within(mut self, time: Duration, timers: Arc<dyn Timers>) -> Self {
        self.time = Some((time, timers));
        self
    }

    /// Another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// What a service handles messages with.
    pub fn into_handler(
        self,
    ) -> impl Fn(Message) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync + 'static {
        let aggregator = Arc::new(self);
        move |message| {
            let aggregator = Arc::clone(&aggregator);
            Box::pin(async move { aggregator.add(message).await })
        }
    }

    /// Sends groups whose time is over, until what is returned is dropped.
    pub fn start(&self) -> Ending {
        let mut task = Scope::new();
        let this = self.clone();
        task.spawn(async move {
            loop {
                if let Err(error) = this.look().await {
                    tracing::warn!(%error, name = this.name, "groups whose time is over wait, and are tried again");
                }
                this.clock.sleep(LOOK).await;
            }
        });
        Ending { _task: task }
    }

    async fn add(&self, message: Message) -> Result<(), Failure> {
        let key = (self.key)(&message).ok_or_else(|| {
            let what = format!("the message {} belongs to no group", message.id);
            Failure::never(Error::new(code::MESSAGE_INVALID, what))
        })?;
        let id = format!("{}\n{}", message.source, message.id);
        let kept = Kept::of(&message);
        loop {
            let (version, mut bucket) = self.read(&key).await?;
            if bucket.groups.get(&key).is_some_and(|group| group.is_complete) {
                self.finish(&key, version, bucket).await?;
                continue;
            }
            if bucket.done.contains(&id) {
                return Ok(());
            }
            let now = self.clock.now();
            let group = bucket
                .groups
                .entry(key.clone())
                .or_insert_with(|| Group { began_at: now, ..Group::default() });
            let is_known = group.parts.iter().any(|(known, _)| *known == id);
            if !is_known {
                group.parts.push((id.clone(), kept.clone()));
                group.is_complete = self.is_complete(group)?;
            }
            let (is_complete, is_first) = (group.is_complete, group.first() == id);
            let over = Over { key: key.clone(), first: group.first().to_owned() };
            let began_at = group.began_at;
            if !is_known && !self.write(&key, version, &bucket).await? {
                continue;
            }
            if is_complete {
                continue;
            }
            if let (Some((time, timers)), true) = (&self.time, is_first) {
                // Whoever wrote the group may have died before it came to this, and its message comes again.
                let time = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
                let timer = Timer { id: timer(&key), at: began_at.saturating_add(time), value: text(&over)? };
                timers.put(&self.flow, &timer).await?;
            }
            return Ok(());
        }
    }

    fn is_complete(&self, group: &Group) -> Result<bool> {
        if group.parts.len() >= self.count {
            return Ok(true);
        }
        Ok(match &self.test {
            Some(test) => test(&messages(group)?),
            None => false,
        })
    }

    /// Sends a group that is complete, and forgets it. If somebody else did so meanwhile, what was sent is the same.
    async fn finish(&self, key: &str, version: u64, mut bucket: Bucket) -> Result<(), Failure> {
        let Some(group) = bucket.groups.remove(key) else { return Ok(()) };
        let mut whole = (self.combine)(key, &messages(&group)?)?;
        whole.id =
            format!("{}/{:032x}", self.name, xxh3_128(format!("{key}\n{}", group.first()).as_bytes())).into();
        self.to.send(whole).await?;
        bucket.done.extend(group.parts.into_iter().map(|(id, _)| id));
        let more = bucket.done.len().saturating_sub(DONE_MAX);
        bucket.done.drain(..more);
        if self.write(key, version, &bucket).await?
            && let Some((_, timers)) = &self.time
        {
            timers.cancel(&self.flow, &timer(key)).await?;
        }
        Ok(())
    }

    /// Completes groups whose time is over.
    async fn look(&self) -> Result<()> {
        let Some((_, timers)) = &self.time else { return Ok(()) };
        for due in timers.due(&self.flow, self.clock.now(), TAKEN.0, TAKEN.1).await? {
            // One that fails keeps none of the others waiting.
            if let Err(error) = self.complete(&**timers, &due).await {
                tracing::warn!(%error, name = self.name, timer = due.timer.id, "a group whose time is over could not be sent, and is tried again");
            }
        }
        Ok(())
    }

    async fn complete(&self, timers: &dyn Timers, due: &Due) -> Result<(), Failure> {
        let over: Over = serde_json::from_str(&due.timer.value).map_err(unread)?;
        self.end(&over).await?;
        timers.done(&self.flow, due.number).await?;
        Ok(())
    }

    async fn end(&self, over: &Over) -> Result<(), Failure> {
        loop {
            let (version, mut bucket) = self.read(&over.key).await?;
            // It may have been complete before its time, and another one begun.
            let Some(group) = bucket.groups.get_mut(&over.key).filter(|group| group.first() == over.first)
            else {
                return Ok(());
            };
            if group.is_complete {
                self.finish(&over.key, version, bucket).await?;
                continue;
            }
            group.is_complete = true;
            self.write(&over.key, version, &bucket).await?;
        }
    }

    async fn read(&self, key: &str) -> Result<(u64, Bucket)> {
        match self.state.get(&self.flow, &record(key)).await? {
            None => Ok((0, Bucket::default())),
            Some(stored) => Ok((stored.version, serde_json::from_str(&stored.value).map_err(unread)?)),
        }
    }

    /// Writes a record, unless somebody was faster.
    async fn write(&self, key: &str, version: u64, bucket: &Bucket) -> Result<bool> {
        let text = text(bucket)?;
        if text.len() > BUCKET_BYTES_MAX {
            let what = format!("the groups of {} have no room for another message", self.name);
            return Err(Error::new(code::LIMIT_REACHED, what)
                .with("bytes_max", BUCKET_BYTES_MAX)
                .hint("let groups be complete sooner, or send large bodies as claim checks"));
        }
        Ok(self.state.put(&self.flow, &record(key), &text, version).await?.is_some())
    }
}

/// Sends groups whose time is over, until it is dropped.
#[derive(Debug)]
pub struct Ending {
    _task: Scope,
}

fn messages(group: &Group) -> Result<Vec<Message>> {
    group.parts.iter().map(|(_, kept)| kept.message()).collect()
}

fn record(key: &str) -> String {
    format!("bucket/{}", xxh3_64(key.as_bytes()) % BUCKETS)
}

fn timer(key: &str) -> String {
    format!("{:032x}", xxh3_128(key.as_bytes()))
}

fn text(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::new(code::INTERNAL, "a record cannot be written").because(e))
}

fn unread(error: serde_json::Error) -> Error {
    Error::new(code::STATE_NEWER, "a record of groups cannot be read").because(error)
}
