//! Clients of brokers, used as well as they can be and with nothing around them.

pub mod amqp;
pub mod kafka;
pub mod nats;
pub mod rabbitmq;
pub mod redis;

use async_trait::async_trait;
use bytes::Bytes;

use crate::Result;

/// A client of one broker.
#[async_trait]
pub trait Client: Send + Sync {
    /// Makes what the messages of a topic are kept in, with one subscription to them.
    async fn create(&self, topic: &str) -> Result<()>;

    /// Removes it with its messages.
    async fn remove(&self, topic: &str) -> Result<()>;

    /// What sends to a topic.
    async fn producer(&self, topic: &str) -> Result<Box<dyn Producer>>;

    /// What takes messages of a topic from the first on.
    async fn consumer(&self, topic: &str) -> Result<Box<dyn Consumer>>;
}

/// Sends to one topic.
#[async_trait]
pub trait Producer: Send + Sync {
    /// Returns when all are stored.
    async fn window(&self, bodies: &[Bytes]) -> Result<()>;

    /// Returns when it is stored. Many may be under way at once.
    async fn send(&self, body: Bytes) -> Result<()>;
}

/// What is done with a message's body.
pub type Take<'a> = dyn FnMut(&[u8]) -> Result<()> + Send + 'a;

/// Takes messages of one topic.
#[async_trait]
pub trait Consumer: Send {
    /// Takes what has come, once there is something: each message as soon as it is there, a window at most. All of them
    /// are acknowledged then, or on the way of the next call.
    async fn batch(&mut self, take: &mut Take<'_>) -> Result<()>;
}
