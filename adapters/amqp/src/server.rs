//! What differs from server to server: the names of its queues, and how they are made, counted and removed.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tidegate_broker::access::Access;
use tidegate_core::error::code;
use tidegate_core::port::Effective;
use tidegate_core::{Capabilities, Channel, Error, Lane, Name, Result};

use crate::connect::{Connection, Node};
use crate::{artemis, classic};

/// Which server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Artemis,
    Classic,
}

/// A queue of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// With the record of the channel.
    Record(Name),
    /// Whose consumers are the members of a subscription.
    Members(Name, Name),
    /// With the messages of a lane for a subscription.
    Lane(Name, Name, Lane),
    /// With the book of a lane.
    Book(Name, Name, Lane),
}

/// What of a queue is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// All messages, with those that are in somebody's hand.
    Messages,
    /// Those that are.
    InHand,
}

/// What a server is asked for beside messages.
#[async_trait]
pub(crate) trait Management: fmt::Debug + Send + Sync {
    /// Whether it is of use still, as far as can be said: who asks finds out.
    fn is_open(&self) -> bool;

    /// What of the server is unsafe.
    async fn probe(&self) -> Result<Effective>;

    /// Has the server keep to what a channel needs, or any channel.
    async fn settle(&self, channel: Option<&Name>) -> Result<()>;

    /// Makes queues, in this order, unless they are there.
    async fn make(&self, queues: &[Queue]) -> Result<()>;

    /// Removes queues with everything in them, of which some may be gone.
    async fn remove(&self, queues: &[Queue]) -> Result<()>;

    /// Numbers of something of queues; nothing of those that are not there.
    async fn count(&self, asked: &[(Queue, What)]) -> Result<Vec<Option<u64>>>;

    /// How many members a subscription has; nothing if it is not there.
    async fn members(&self, channel: &Channel, subscription: &Name) -> Result<Option<u64>>;

    /// Has a look at a queue of a subscription that was just attached to: a server may have made it only for that.
    async fn attached(&self, queue: &Queue) -> Result<()>;

    /// Whether what was sent to a lane was for anybody.
    async fn is_wanted(&self, channel: &Name, lane: Lane) -> Result<bool>;
}

impl Server {
    pub(crate) fn of(scheme: &str) -> Self {
        if scheme.starts_with(Self::Classic.schemes().0) { Self::Classic } else { Self::Artemis }
    }

    /// The schemes of its URLs, without TLS and with it.
    pub(crate) fn schemes(self) -> (&'static str, &'static str) {
        match self {
            Self::Artemis => ("artemis", "artemiss"),
            Self::Classic => ("activemq", "activemqs"),
        }
    }

    pub(crate) fn capabilities(self) -> &'static Capabilities {
        match self {
            Self::Artemis => &artemis::CAPABILITIES,
            Self::Classic => &classic::CAPABILITIES,
        }
    }

    pub(crate) async fn manage(
        self,
        access: &Arc<Access>,
        connection: &Arc<Connection>,
    ) -> Result<Arc<dyn Management>> {
        Ok(match self {
            Self::Artemis => Arc::new(artemis::ArtemisManagement::open(access, connection).await?),
            Self::Classic => Arc::new(classic::ClassicManagement::open(access, connection).await?),
        })
    }

    /// Where messages of a lane are sent to.
    pub(crate) fn address(self, channel: &Name, lane: Lane) -> String {
        match self {
            Self::Artemis => artemis::address(channel, lane),
            Self::Classic => classic::address(channel, lane),
        }
    }

    /// Where the messages of a queue are taken from, by one at a time, and what that is.
    pub(crate) fn source(self, queue: &Queue) -> (Node, String) {
        match (self, queue) {
            (Self::Artemis, Queue::Lane(channel, _, lane)) => {
                let address = artemis::address(channel, *lane);
                (Node::Topic, format!("{address}::{}", artemis::name(queue)))
            }
            (Self::Artemis, _) => (Node::Queue, artemis::name(queue)),
            (Self::Classic, _) => (Node::Queue, classic::exclusive(queue)),
        }
    }

    /// Where a message is sent to that is for one queue alone.
    pub(crate) fn target(self, queue: &Queue) -> String {
        match self {
            Self::Artemis => artemis::name(queue),
            Self::Classic => classic::target(queue),
        }
    }
}

/// All lanes of a channel.
pub(crate) fn lanes(channel: &Channel) -> impl Iterator<Item = Lane> + use<> {
    (0..channel.lanes).map(Lane)
}

/// A queue of the channel is not there.
pub(crate) fn missing() -> Error {
    Error::new(code::CHANNEL_MISSING, "an address or a queue of the channel is not there")
}
