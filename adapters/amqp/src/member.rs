//! A member of a subscription: a connection of its own, so that everything it has is free when it is gone.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fe2o3_amqp::Receiver;
use fe2o3_amqp::session::SessionHandle;
use tidegate_core::queue::{Line, Link, Member};
use tidegate_core::{Channel, Lane, Name, Result};

use crate::artemis::{self, CONSUMERS, Management, Question};
use crate::connect::{Connection, Node, receiver};
use crate::lane::AmqpLane;
use crate::line::AmqpLine;
use tidegate_core::queue::Access;

pub(crate) struct AmqpMember {
    /// The consumer that is counted, on a session of its own. Nothing comes.
    _counted: (Receiver, SessionHandle<()>),
    management: Arc<Management>,
    connection: Arc<Connection>,
    channel: Channel,
    subscription: Name,
    timeout: Duration,
}

impl AmqpMember {
    pub(crate) async fn open(access: &Access, channel: &Channel, subscription: &Name) -> Result<Self> {
        let timeout = access.timeout;
        let connection = Connection::open(access, "consuming").await?;
        let management = Arc::new(Management::open(&connection, timeout).await?);
        let mut session = connection.session().await?;
        let members = artemis::members(&channel.name, subscription);
        let counted = receiver(&mut session, Node::Queue, members, timeout).await?;
        Ok(Self {
            _counted: (counted, session),
            management,
            connection: Arc::new(connection),
            channel: channel.clone(),
            subscription: subscription.clone(),
            timeout,
        })
    }
}

#[async_trait]
impl Member for AmqpMember {
    async fn count(&self) -> Result<usize> {
        let members = artemis::members(&self.channel.name, &self.subscription);
        let counts = self.management.counts(&[Question::count(&members, CONSUMERS)]).await?;
        Ok(usize::try_from(counts.first().copied().flatten().unwrap_or(0)).unwrap_or(usize::MAX))
    }

    async fn line(&self, lane: Lane) -> Result<Box<dyn Line>> {
        let (session, management) = (self.connection.session().await?, Arc::clone(&self.management));
        let book = artemis::book(&self.channel.name, &self.subscription, lane);
        let standing = AmqpLine::stand(session, management, book, self.timeout);
        Ok(Box::new(self.connection.whole(standing).await?))
    }

    async fn lane(&self, lane: Lane) -> Result<Box<dyn Link>> {
        let (connection, timeout) = (Arc::clone(&self.connection), self.timeout);
        let (channel, subscription) = (self.channel.clone(), self.subscription.clone());
        let opening = async move { AmqpLane::open(connection, &channel, &subscription, lane, timeout).await };
        Ok(Box::new(self.connection.whole(opening).await?))
    }
}
