//! Addresses and queues of one server as queues.

use std::sync::Arc;

use async_trait::async_trait;
use fe2o3_amqp::session::SessionHandle;
use tidegate_broker::access::Access;
use tidegate_broker::queue::{Line, Member, Number, Queues, Sender};
use tidegate_core::port::Effective;
use tidegate_core::{Capabilities, Channel, Name, Result};

use crate::connect::{Connection, Node, Shared, end, sender};
use crate::error::is_missing;
use crate::line::{AmqpLine, copy};
use crate::member::AmqpMember;
use crate::send::{AmqpSender, post};
use crate::server::{Management, Queue, Server, What, lanes};

type Managed = (Arc<Connection>, Arc<dyn Management>);

#[derive(Debug)]
pub(crate) struct AmqpQueues {
    server: Server,
    access: Arc<Access>,
    /// What everybody but members uses.
    shared: Arc<Shared>,
    /// The management, and the connection that it is over.
    management: tokio::sync::Mutex<Option<Managed>>,
}

impl AmqpQueues {
    pub(crate) fn new(server: Server, access: Access) -> Self {
        Self { server, access: Arc::new(access), shared: Arc::default(), management: Default::default() }
    }

    /// A session and the management, over the connection that is there now.
    async fn session(&self) -> Result<(Arc<Connection>, SessionHandle<()>, Arc<dyn Management>)> {
        let (connection, session) = self.shared.session(&self.access).await?;
        let mut known = self.management.lock().await;
        if let Some((over, management)) = &*known
            && Arc::ptr_eq(over, &connection)
            && management.is_open()
        {
            return Ok((connection, session, Arc::clone(management)));
        }
        let (server, access, over) = (self.server, Arc::clone(&self.access), Arc::clone(&connection));
        let opening = async move { server.manage(&access, &over).await };
        let opened = connection.whole(opening).await?;
        opened.settle(None).await?;
        *known = Some((Arc::clone(&connection), Arc::clone(&opened)));
        Ok((connection, session, opened))
    }

    async fn management(&self) -> Result<Arc<dyn Management>> {
        Ok(self.session().await?.2)
    }
}

#[async_trait]
impl Queues for AmqpQueues {
    fn location(&self) -> String {
        self.access.location.clone()
    }

    fn capabilities(&self) -> &'static Capabilities {
        self.server.capabilities()
    }

    async fn probe(&self) -> Result<Effective> {
        self.management().await?.probe().await
    }

    async fn create(&self, channel: &Channel) -> Result<()> {
        let management = self.management().await?;
        management.settle(Some(&channel.name)).await?;
        management.make(&[Queue::Record(channel.name.clone())]).await
    }

    async fn line(&self, channel: &Name) -> Result<Option<Box<dyn Line>>> {
        let (connection, session, management) = self.session().await?;
        let there = management.count(&[(Queue::Record(channel.clone()), What::Messages)]).await?;
        if there.first().copied().flatten().is_none() {
            return Ok(None);
        }
        let (server, channel, timeout) = (self.server, channel.clone(), self.access.timeout);
        let standing = async move {
            AmqpLine::stand(session, management, server, Queue::Record(channel), timeout).await
        };
        match connection.whole(standing).await {
            Ok(line) => Ok(Some(Box::new(line))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Last what is sent to: nothing is stored that nobody could have.
    async fn subscribe(&self, channel: &Channel, subscription: &Name) -> Result<()> {
        let name = &channel.name;
        let (connection, mut session, management) = self.session().await?;
        let books: Vec<Queue> =
            lanes(channel).map(|lane| Queue::Book(name.clone(), subscription.clone(), lane)).collect();
        let copies: Vec<_> =
            books.iter().map(|book| copy(&self.server.target(book), Number::default(), b"")).collect();
        let queues = lanes(channel).map(|lane| Queue::Lane(name.clone(), subscription.clone(), lane));
        let made: Vec<Queue> = [Queue::Members(name.clone(), subscription.clone())]
            .into_iter()
            .chain(books)
            .chain(queues)
            .collect();
        management.make(&made).await?;
        let time = self.access.timeout;
        let writing = async move {
            let mut link = sender(&mut session, Node::Queue, None, time).await?;
            for copy in copies {
                post(&mut link, copy, time, time, "write a copy").await?;
            }
            end(&mut session, time, "make a subscription").await
        };
        connection.whole(writing).await
    }

    /// First what is sent to, then what its owner stands in line for.
    async fn unsubscribe(&self, channel: &Channel, subscription: &Name) -> Result<()> {
        let name = &channel.name;
        let queues = lanes(channel).map(|lane| Queue::Lane(name.clone(), subscription.clone(), lane));
        let books = lanes(channel).map(|lane| Queue::Book(name.clone(), subscription.clone(), lane));
        let all: Vec<Queue> =
            queues.chain(books).chain([Queue::Members(name.clone(), subscription.clone())]).collect();
        self.management().await?.remove(&all).await
    }

    async fn waiting(&self, channel: &Channel, subscription: &Name) -> Result<u64> {
        let queues = lanes(channel).map(|lane| Queue::Lane(channel.name.clone(), subscription.clone(), lane));
        let asked: Vec<_> = queues
            .flat_map(|queue| [What::Messages, What::InHand].map(|what| (queue.clone(), what)))
            .collect();
        let counts = self.management().await?.count(&asked).await?;
        // Those that are not there are being removed.
        let count = |pair: &[Option<u64>]| match pair {
            [Some(all), in_hand] => all.saturating_sub(in_hand.unwrap_or(0)),
            _ => 0,
        };
        Ok(counts.chunks(2).map(count).sum())
    }

    async fn sender(&self, channel: &Channel) -> Result<Box<dyn Sender>> {
        Ok(Box::new(
            AmqpSender::open(self.server, &self.access, &self.shared, channel, self.management().await?)
                .await?,
        ))
    }

    async fn member(&self, channel: &Channel, subscription: &Name) -> Result<Arc<dyn Member>> {
        Ok(Arc::new(AmqpMember::open(self.server, &self.access, channel, subscription).await?))
    }
}
