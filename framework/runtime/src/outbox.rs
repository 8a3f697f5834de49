//! Sends replies to whoever asked for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::Verdict;
use tidegate_core::port::Broker;
use tidegate_core::{Clock, Message, Name, Result};
use tokio::sync::Mutex;

use crate::call::{CALL, FAILED, REPLY_TO, reply_channel};
use crate::sender::Sender;

/// How long a reply is tried.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many channels replies are sent to at once, before those not used are closed.
const SENDERS_MAX: usize = 64;

/// Sends replies to whoever asked.
pub(crate) struct Outbox {
    broker: Arc<dyn Broker>,
    clock: Arc<dyn Clock>,
    senders: Mutex<HashMap<String, Sender>>,
}

impl Outbox {
    pub(crate) fn new(broker: Arc<dyn Broker>, clock: Arc<dyn Clock>) -> Self {
        Self { broker, clock, senders: Mutex::default() }
    }

    /// Sends the reply to a message, if it asks for one. Whoever has gone meanwhile gets none.
    pub(crate) async fn reply(&self, asked: &Message, reply: Message) -> Result<()> {
        let Some(to) = asked.headers.get(REPLY_TO) else { return Ok(()) };
        let mut reply = reply.caused_by(asked);
        // Whoever asked finds it by its own id, whatever else both belong to.
        reply.headers.set(CALL, Arc::clone(&asked.id))?;
        let sent = match self.sender(to).await {
            Ok(sender) => sender.send(reply).await,
            Err(error) => Err(error),
        };
        match sent {
            Err(error) if error.verdict() == Verdict::Never => {
                self.senders.lock().await.remove(to);
                tracing::info!(%error, id = %asked.id, to, "nobody waits for a reply any more");
                Ok(())
            }
            sent => sent,
        }
    }

    /// Tells whoever asked that the message will not be handled.
    pub(crate) async fn refuse(&self, asked: &Message, error: &str) -> Result<()> {
        let failed = Message::with_id(format!("{}/failed", asked.id), Arc::clone(&asked.source), FAILED);
        self.reply(asked, failed.with_data("text/plain", error.to_owned())).await
    }

    async fn sender(&self, to: &str) -> Result<Sender> {
        let mut senders = self.senders.lock().await;
        if let Some(sender) = senders.get(to) {
            return Ok(sender.clone());
        }
        if senders.len() >= SENDERS_MAX {
            senders.clear();
        }
        let sender =
            Sender::open(&*self.broker, &reply_channel(&Name::new(to)?), Arc::clone(&self.clock), PATIENCE)
                .await?;
        senders.insert(to.to_owned(), sender.clone());
        Ok(sender)
    }
}
