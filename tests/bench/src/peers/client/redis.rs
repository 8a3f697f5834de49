//! redis, with streams.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Value, cmd, pipe};

use super::{Client, Consumer, Producer, Take};
use crate::Result;
use crate::load::WINDOW;

/// The name of the only group, and of its only member.
const GROUP: &str = "all";
const MEMBER: &str = "one";
/// How long the server waits for messages, in milliseconds, and the client for any answer.
const BLOCK: u64 = 1_000;
const LIMIT: Duration = Duration::from_secs(10);

struct Redis(redis::Client);

/// A client of the server of a URL.
pub fn client(url: &str) -> Result<Box<dyn Client>> {
    Ok(Box::new(Redis(redis::Client::open(url)?)))
}

impl Redis {
    async fn connect(&self) -> Result<ConnectionManager> {
        let config = ConnectionManagerConfig::new().set_response_timeout(Some(LIMIT));
        Ok(ConnectionManager::new_with_config(self.0.clone(), config).await?)
    }
}

#[async_trait]
impl Client for Redis {
    async fn create(&self, topic: &str) -> Result<()> {
        let mut command = cmd("XGROUP");
        command.arg("CREATE").arg(topic).arg(GROUP).arg("0").arg("MKSTREAM");
        Ok(command.exec_async(&mut self.connect().await?).await?)
    }

    async fn remove(&self, topic: &str) -> Result<()> {
        Ok(cmd("DEL").arg(topic).exec_async(&mut self.connect().await?).await?)
    }

    async fn producer(&self, topic: &str) -> Result<Box<dyn Producer>> {
        Ok(Box::new(RedisProducer { topic: topic.to_owned(), connection: self.connect().await? }))
    }

    async fn consumer(&self, topic: &str) -> Result<Box<dyn Consumer>> {
        let connection = self.connect().await?;
        Ok(Box::new(RedisConsumer { topic: topic.to_owned(), connection, taken: Vec::new() }))
    }
}

struct RedisProducer {
    topic: String,
    connection: ConnectionManager,
}

#[async_trait]
impl Producer for RedisProducer {
    async fn window(&self, bodies: &[Bytes]) -> Result<()> {
        let mut all = pipe();
        for body in bodies {
            all.cmd("XADD").arg(&self.topic).arg("*").arg("data").arg(&**body).ignore();
        }
        Ok(all.exec_async(&mut self.connection.clone()).await?)
    }

    async fn send(&self, body: Bytes) -> Result<()> {
        let mut command = cmd("XADD");
        command.arg(&self.topic).arg("*").arg("data").arg(&*body);
        Ok(command.exec_async(&mut self.connection.clone()).await?)
    }
}

struct RedisConsumer {
    topic: String,
    connection: ConnectionManager,
    /// What is to be acknowledged.
    taken: Vec<Vec<u8>>,
}

#[async_trait]
impl Consumer for RedisConsumer {
    async fn batch(&mut self, take: &mut Take<'_>) -> Result<()> {
        // What was taken is acknowledged on the way, so that the server synchronises its file once for both.
        let mut both = pipe();
        if !self.taken.is_empty() {
            both.cmd("XACK").arg(&self.topic).arg(GROUP).arg(&self.taken).ignore();
        }
        both.cmd("XREADGROUP").arg("GROUP").arg(GROUP).arg(MEMBER).arg("COUNT").arg(WINDOW);
        both.arg("BLOCK").arg(BLOCK).arg("STREAMS").arg(&self.topic).arg(">");
        let (answer,): (Value,) = both.query_async(&mut self.connection).await?;
        self.taken.clear();
        // Of each stream its name and entries, of each entry its id and fields.
        for stream in list(answer)? {
            for entry in list(stream)?.into_iter().nth(1).map(list).transpose()?.unwrap_or_default() {
                let mut entry = list(entry)?.into_iter();
                let (Some(id), Some(fields)) = (entry.next(), entry.next()) else { continue };
                let body = list(fields)?.into_iter().nth(1).map(bytes).transpose()?;
                take(&body.unwrap_or_default())?;
                self.taken.push(bytes(id)?);
            }
        }
        Ok(())
    }
}

fn list(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(list) => Ok(list),
        Value::Nil => Ok(Vec::new()),
        other => Err(format!("{other:?} came where a list was expected").into()),
    }
}

fn bytes(value: Value) -> Result<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        other => Err(format!("{other:?} came where bytes were expected").into()),
    }
}
