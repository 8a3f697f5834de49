//! Addresses and queues of one server as queues.

use std::sync::Arc;

use async_trait::async_trait;
use fe2o3_amqp::session::SessionHandle;
use tidegate_core::port::Effective;
use tidegate_core::queue::{Line, Member, NO_BROWSING, NO_LISTING, Queues, Sender};
use tidegate_core::{Capabilities, Channel, How, Lane, Name, Result};

use crate::artemis::{self, IN_HAND, MESSAGES, Management, Question, address};
use crate::connect::{Connection, Node, Shared};
use crate::error::is_missing;
use crate::line::AmqpLine;
use crate::member::AmqpMember;
use crate::probe::probe;
use crate::send::AmqpSender;
use tidegate_core::queue::Access;

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

#[derive(Debug)]
pub(crate) struct AmqpQueues {
    access: Arc<Access>,
    /// What everybody but members uses.
    shared: Arc<Shared>,
    /// The management, and the connection that it is over.
    management: tokio::sync::Mutex<Option<(Arc<Connection>, Arc<Management>)>>,
}

impl AmqpQueues {
    pub(crate) fn new(access: Access) -> Self {
        Self { access: Arc::new(access), shared: Arc::default(), management: tokio::sync::Mutex::default() }
    }

    /// A session and the management, over the connection that is there now.
    async fn session(&self) -> Result<(Arc<Connection>, SessionHandle<()>, Arc<Management>)> {
        let (connection, session) = self.shared.session(&self.access).await?;
        let mut known = self.management.lock().await;
        if let Some((over, management)) = &*known
            && Arc::ptr_eq(over, &connection)
            && management.is_open()
        {
            return Ok((connection, session, Arc::clone(management)));
        }
        let (over, timeout) = (Arc::clone(&connection), self.access.timeout);
        let opening = async move { Management::open(&over, timeout).await };
        let opened = Arc::new(connection.whole(opening).await?);
        // Before anything is looked for: as servers are set up at first, a look makes the queue that is looked for.
        opened.settle(&[artemis::ANY.to_owned()]).await?;
        *known = Some((Arc::clone(&connection), Arc::clone(&opened)));
        Ok((connection, session, opened))
    }

    async fn management(&self) -> Result<Arc<Management>> {
        Ok(self.session().await?.2)
    }
}

fn lanes(channel: &Channel) -> impl Iterator<Item = Lane> + use<> {
    (0..channel.lanes).map(Lane)
}

#[async_trait]
impl Queues for AmqpQueues {
    fn location(&self) -> String {
        self.access.location.clone()
    }

    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    async fn probe(&self) -> Result<Effective> {
        probe(&self.access, &*self.management().await?).await
    }

    async fn create(&self, channel: &Channel) -> Result<()> {
        let (management, queue) = (self.management().await?, artemis::record(&channel.name));
        management.settle(&[queue.clone(), address(&channel.name, Lane(0))]).await?;
        let made = Question::make(Node::Queue, &queue, &queue);
        management.tell(&[made], "make the queue of a record").await.map(drop)
    }

    async fn line(&self, channel: &Name) -> Result<Option<Box<dyn Line>>> {
        let (connection, session, management) = self.session().await?;
        let queue = artemis::record(channel);
        let standing = AmqpLine::stand(session, management, queue, self.access.timeout);
        match connection.whole(standing).await {
            Ok(line) => Ok(Some(Box::new(line))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn subscribe(&self, channel: &Channel, subscription: &Name) -> Result<()> {
        let name = &channel.name;
        let members = artemis::members(name, subscription);
        let mut made = vec![Question::make(Node::Queue, &members, &members)];
        for lane in lanes(channel) {
            let book = artemis::book(name, subscription, lane);
            made.push(Question::make(Node::Queue, &book, &book));
        }
        // Last what is sent to: nothing is stored that nobody could have.
        made.extend(lanes(channel).map(|lane| {
            Question::make(Node::Topic, &address(name, lane), &artemis::queue(name, subscription, lane))
        }));
        self.management().await?.tell(&made, "make a queue").await.map(drop)
    }

    /// First what is sent to, then what its owner stands in line for.
    async fn unsubscribe(&self, channel: &Channel, subscription: &Name) -> Result<()> {
        let name = &channel.name;
        let queues = lanes(channel).map(|lane| artemis::queue(name, subscription, lane));
        let books = lanes(channel).map(|lane| artemis::book(name, subscription, lane));
        let all = queues.chain(books).chain([artemis::members(name, subscription)]);
        let removed: Vec<Question> = all.map(|queue| Question::remove(&queue)).collect();
        self.management().await?.remove(&removed).await
    }

    async fn waiting(&self, channel: &Channel, subscription: &Name) -> Result<u64> {
        let queues = lanes(channel).map(|lane| artemis::queue(&channel.name, subscription, lane));
        let asked = queues.flat_map(|queue| [MESSAGES, IN_HAND].map(|what| Question::count(&queue, what)));
        let asked: Vec<Question> = asked.collect();
        let counts = self.management().await?.counts(&asked).await?;
        // Those that are not there are being removed.
        let count = |pair: &[Option<u64>]| match pair {
            [Some(all), in_hand] => all.saturating_sub(in_hand.unwrap_or(0)),
            _ => 0,
        };
        Ok(counts.chunks(2).map(count).sum())
    }

    async fn sender(&self, channel: &Channel) -> Result<Box<dyn Sender>> {
        Ok(Box::new(AmqpSender::open(&self.access, &self.shared, channel).await?))
    }

    async fn member(&self, channel: &Channel, subscription: &Name) -> Result<Arc<dyn Member>> {
        Ok(Arc::new(AmqpMember::open(&self.access, channel, subscription).await?))
    }
}
