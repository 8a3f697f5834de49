//! Publishes messages, a batch at once, and reads what the server confirms of each.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel as Amqp, Confirmation, Connection, ExchangeKind, PublisherConfirm};
use tidegate_broker::queue::{Sender, Taken};
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Channel, Error, Message, Result};

use crate::codec::encode;
use crate::config::Config;
use crate::connect::{Shared, blocked, within};
use crate::error::{from_driver, timed_out};
use crate::queues::exchange;

pub(crate) struct RabbitSender {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    /// Its own, so that one producer's messages keep their order. A lost one is not made anew: what was sent over it may still
    /// be done.
    amqp: Amqp,
    channel: Channel,
    timeout: Duration,
}

impl RabbitSender {
    pub(crate) async fn open(config: &Config, shared: &Arc<Shared>, channel: &Channel) -> Result<Self> {
        let (connection, amqp) = shared.channel(config).await?;
        let select = amqp.confirm_select(ConfirmSelectOptions::default());
        within(config.access.timeout, "ask for confirmations", select).await?;
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let there = amqp.exchange_declare(
            exchange(&channel.name),
            ExchangeKind::Direct,
            passive,
            FieldTable::default(),
        );
        within(config.access.timeout, "look for an exchange", there).await?;
        let (shared, channel) = (Arc::clone(shared), channel.clone());
        Ok(Self { shared, connection, amqp, channel, timeout: config.access.timeout })
    }

    async fn publish(&self, message: &Message) -> lapin::Result<PublisherConfirm> {
        let key = message.lane(self.channel.lanes).0.to_string().into();
        // Without it, the server confirms what it keeps for nobody.
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let exchange = exchange(&self.channel.name);
        self.amqp.basic_publish(exchange, key, options, &message.data, encode(message)).await
    }

    /// The answer of the server, should there be one in time.
    async fn answer(&self, sent: lapin::Result<PublisherConfirm>) -> Taken {
        let confirmed = match sent {
            Ok(sent) => tokio::time::timeout(self.timeout, sent).await,
            Err(error) => Ok(Err(error)),
        };
        match confirmed {
            Ok(Ok(Confirmation::Ack(None))) => Taken::Stored,
            Ok(Ok(Confirmation::Ack(Some(_)))) => Taken::Unwanted,
            // Of several queues some may have it.
            Ok(Ok(Confirmation::Nack(_) | Confirmation::NotRequested)) => {
                let text = "a queue did not take the message: a policy limits it, or a majority of its members is not there";
                Taken::Unknown(Error::new(code::STORE_FAILED, text).verdict_is(Verdict::Unknown))
            }
            Ok(Err(error)) => {
                let error = from_driver(&error, "publish");
                // What stands before it on the same channel of AMQP may have ended it.
                Taken::Unknown(error.verdict_is(Verdict::Unknown))
            }
            Err(_) if self.connection.status().blocked() => {
                Taken::Unknown(blocked().verdict_is(Verdict::Unknown))
            }
            Err(_) => Taken::Unknown(timed_out("publish")),
        }
    }
}

#[async_trait]
impl Sender for RabbitSender {
    fn is_open(&self) -> bool {
        self.connection.status().connected() && self.amqp.status().connected()
    }

    async fn send(&mut self, batch: &[&Message]) -> Vec<Taken> {
        if self.connection.status().blocked() {
            return vec![Taken::Blocked(blocked())];
        }
        let mut sent = Vec::with_capacity(batch.len());
        for message in batch {
            match tokio::time::timeout(self.timeout, self.publish(message)).await {
                Ok(one) => sent.push(one),
                Err(_) => break,
            }
        }
        let mut taken: Vec<Taken> = join_all(sent.into_iter().map(|sent| self.answer(sent))).await;
        // The first that could not even be sent, and those behind it.
        taken.resize_with(batch.len(), || Taken::Unknown(timed_out("publish")));
        let is_silent =
            |taken: &Taken| matches!(taken, Taken::Unknown(error) if error.code() == code::TIMED_OUT);
        if taken.iter().any(is_silent) {
            self.shared.lose(&self.connection);
        }
        taken
    }

    async fn finish(&mut self) -> Result<()> {
        let failed = |error| from_driver(&error, "end a producer");
        let confirmed = self.amqp.wait_for_confirms().await;
        if !self.is_open() {
            // The server reads nothing more of what was on its way.
            return Ok(());
        }
        confirmed.map_err(failed)?;
        self.amqp.close(200, "the producer ends".into()).await.map_err(failed)
    }
}
