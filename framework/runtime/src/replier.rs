//! Sends replies to whoever asked for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::{Verdict, code};
use tidegate_core::port::Broker;
use tidegate_core::{Clock, Error, Message, Name, Result};
use tokio::sync::Mutex;

use crate::call::{CALL, FAILED, REPLIES, REPLY_TO, reply_channel};
use crate::sender::{Sender, close_all};

/// How long a reply is tried.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many channels replies are sent to at once, before those not used are closed.
const SENDERS_MAX: usize = 64;

/// Sends replies to whoever asked.
pub(crate) struct Replier {
    broker: Arc<dyn Broker>,
    clock: Arc<dyn Clock>,
    senders: Mutex<HashMap<String, Sender>>,
}

impl Replier {
    pub(crate) fn new(broker: Arc<dyn Broker>, clock: Arc<dyn Clock>) -> Self {
        Self { broker, clock, senders: Mutex::default() }
    }

    /// Sends the reply to a message, if it asks for one. The message is handled, so a reply that cannot be sent is given up:
    /// whoever asked learns by the time that nothing came.
    pub(crate) async fn reply(&self, asked: &Message, reply: Message) {
        let Some(to) = asked.headers.get(REPLY_TO) else { return };
        match self.send(to, asked, reply).await {
            Ok(()) => {}
            Err(error) if [code::CHANNEL_MISSING, code::SUBSCRIPTION_MISSING].contains(&error.code()) => {
                tracing::info!(%error, id = %asked.id, to, "nobody waits for a reply any more");
            }
            Err(error) if error.verdict() == Verdict::Never => {
                tracing::warn!(%error, id = %asked.id, to, "a reply cannot be sent, and whoever asked is told so");
                self.refuse(asked, &format!("the reply cannot be sent: {error}")).await;
            }
            Err(error) => tracing::warn!(%error, id = %asked.id, to, "a reply could not be sent in time"),
        }
    }

    /// Tells whoever asked that there will be no reply, and why.
    pub(crate) async fn refuse(&self, asked: &Message, error: &str) {
        let Some(to) = asked.headers.get(REPLY_TO) else { return };
        let failed = Message::with_id(format!("{}/failed", asked.id), Arc::clone(&asked.source), FAILED);
        if let Err(error) = self.send(to, asked, failed.with_data("text/plain", error.to_owned())).await {
            tracing::info!(%error, id = %asked.id, to, "whoever waits for a reply cannot be told that there is none");
        }
    }

    async fn send(&self, to: &str, asked: &Message, reply: Message) -> Result<()> {
        let to = Name::new(to)?;
        if !to.as_str().starts_with(REPLIES) {
            let what = format!("{to} is no channel of replies");
            return Err(Error::new(code::CHANNEL_MISSING, what));
        }
        let mut reply = reply.caused_by(asked);
        // Whoever asked finds it by its own id, whatever else both belong to.
        reply.headers.set(CALL, Arc::clone(&asked.id))?;
        let sent = match self.sender(to.as_str()).await {
            Ok(sender) => sender.send(reply).await,
            Err(error) => Err(error),
        };
        if sent.is_err() {
            self.senders.lock().await.remove(to.as_str());
        }
        sent
    }

    /// Ends its senders.
    pub(crate) async fn close(&self, deadline: Duration) {
        let senders = std::mem::take(&mut *self.senders.lock().await);
        close_all(senders.into_values(), deadline).await;
    }

    async fn sender(&self, to: &str) -> Result<Sender> {
        let mut senders = self.senders.lock().await;
        if let Some(sender) = senders.get(to) {
            return Ok(sender.clone());
        }
        if senders.len() >= SENDERS_MAX {
            senders.clear();
        }
        let sender = Sender::open(&*self.broker, &reply_channel(&Name::new(to)?))
            .with_clock(Arc::clone(&self.clock))
            .with_patience(PATIENCE)
            .await?;
        senders.insert(to.to_owned(), sender.clone());
        Ok(sender)
    }
}
