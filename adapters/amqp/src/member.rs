//! A member of a subscription: a connection of its own, so that everything it has is free when it is gone.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fe2o3_amqp::Receiver;
use fe2o3_amqp::session::SessionHandle;
use tidegate_broker::access::Access;
use tidegate_broker::queue::{Line, Link, Member};
use tidegate_core::{Channel, Lane, Name, Result};

use crate::connect::{Connection, receiver};
use crate::lane::AmqpLane;
use crate::line::AmqpLine;
use crate::server::{Management, Queue, Server, missing};

pub(crate) struct AmqpMember {
    /// The consumer that is counted, on a session of its own. Nothing comes.
    _counted: (Receiver, SessionHandle<()>),
    management: Arc<dyn Management>,
    connection: Arc<Connection>,
    server: Server,
    channel: Channel,
    subscription: Name,
    timeout: Duration,
}

impl AmqpMember {
    pub(crate) async fn open(
        server: Server,
        access: &Arc<Access>,
        channel: &Channel,
        subscription: &Name,
    ) -> Result<Self> {
        let timeout = access.timeout;
        let connection = Arc::new(Connection::open(access, "consuming").await?);
        let management = server.manage(access, &connection).await?;
        let mut session = connection.session().await?;
        let members = Queue::Members(channel.name.clone(), subscription.clone());
        let (node, source) = server.source(&members);
        let counted = receiver(&mut session, node, source, timeout).await?;
        Ok(Self {
            _counted: (counted, session),
            management,
            connection,
            server,
            channel: channel.clone(),
            subscription: subscription.clone(),
            timeout,
        })
    }
}

#[async_trait]
impl Member for AmqpMember {
    async fn count(&self) -> Result<usize> {
        let count = self.management.members(&self.channel, &self.subscription).await?;
        Ok(usize::try_from(count.ok_or_else(missing)?).unwrap_or(usize::MAX))
    }

    async fn line(&self, lane: Lane) -> Result<Box<dyn Line>> {
        let (session, management) = (self.connection.session().await?, Arc::clone(&self.management));
        let book = Queue::Book(self.channel.name.clone(), self.subscription.clone(), lane);
        let standing = AmqpLine::stand(session, management, self.server, book, self.timeout);
        Ok(Box::new(self.connection.whole(standing).await?))
    }

    async fn lane(&self, lane: Lane) -> Result<Box<dyn Link>> {
        let (connection, server, timeout) = (Arc::clone(&self.connection), self.server, self.timeout);
        let (channel, subscription) = (self.channel.clone(), self.subscription.clone());
        let management = Arc::clone(&self.management);
        let opening = async move {
            let queue = Queue::Lane(channel.name.clone(), subscription, lane);
            let opened = AmqpLane::open(connection, server, &channel, &queue, lane, timeout).await?;
            management.attached(&queue).await?;
            Ok(opened)
        };
        Ok(Box::new(self.connection.whole(opening).await?))
    }
}
