//! Sends messages, many at once, and reads what the server answers of each.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fe2o3_amqp::Sender as Link;
use fe2o3_amqp::link::SendError;
use fe2o3_amqp::link::delivery::DeliveryFut;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{Data, Message as Amqp, Outcome};
use futures::FutureExt as _;
use tidegate_broker::access::Access;
use tidegate_broker::queue::{Sender, Taken};
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Channel, Error, Message, Result};
use tokio::time::Instant;

use crate::artemis::is_unwanted;
use crate::codec::encode;
use crate::connect::{Connection, Node, Shared, end, sender, within};
use crate::error::{blocked, from_driver, from_server, timed_out};
use crate::server::{Management, Server};

type Sent = DeliveryFut<std::result::Result<Outcome, SendError>>;

/// Sends one message, and returns when it is stored; an error of the code `limit-reached` if the server gives no credit for it
/// within so long, and nothing was sent.
pub(crate) async fn post(
    link: &mut Link,
    message: Amqp<Data>,
    credit: Duration,
    time: Duration,
    operation: &'static str,
) -> Result<()> {
    let sent = match tokio::time::timeout(credit, link.send_batchable(message)).await {
        Ok(sent) => sent.map_err(|error| from_driver(&error, operation))?,
        Err(_) => return Err(blocked().with("operation", operation)),
    };
    match within(time, operation, sent).await? {
        Outcome::Accepted(_) => Ok(()),
        Outcome::Rejected(rejected) => Err(from_server(rejected.error.as_ref(), operation)),
        _ => Err(from_server(None, operation)),
    }
}

pub(crate) struct AmqpSender {
    server: Server,
    management: Arc<dyn Management>,
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    /// Its own, so that one producer's messages keep their order. A lost one is not made anew: what was sent over it may still
    /// be done.
    session: SessionHandle<()>,
    /// Nothing once it was of no use any more.
    link: Option<Link>,
    channel: Channel,
    timeout: Duration,
}

impl AmqpSender {
    pub(crate) async fn open(
        server: Server,
        access: &Access,
        shared: &Arc<Shared>,
        channel: &Channel,
        management: Arc<dyn Management>,
    ) -> Result<Self> {
        let (connection, mut session) = shared.session(access).await?;
        let (shared, channel, timeout) = (Arc::clone(shared), channel.clone(), access.timeout);
        let attaching = async move {
            let link = sender(&mut session, Node::Topic, None, timeout).await?;
            Ok((session, Some(link)))
        };
        let (session, link) = connection.whole(attaching).await?;
        Ok(Self { server, management, shared, connection, session, link, channel, timeout })
    }

    /// Hands messages over until the server gives no more credit, or there is no connection any more: what was handed over, and
    /// what is to be said of the next one, should there be a next one.
    async fn hand_over(
        &mut self,
        batch: &[&Message],
    ) -> (Vec<std::result::Result<Sent, Taken>>, Option<Error>) {
        let mut sent = Vec::with_capacity(batch.len());
        let Some(link) = &mut self.link else {
            return (sent, Some(Error::new(code::CONNECTION_LOST, "the connection is lost")));
        };
        for message in batch {
            let to = self.server.address(&self.channel.name, message.lane(self.channel.lanes));
            let sending = link.send_batchable(encode(self.server, message, to));
            match tokio::time::timeout(self.timeout, sending).await {
                Ok(Ok(one)) => sent.push(Ok(one)),
                Ok(Err(SendError::MessageSizeExceeded(most))) => {
                    let text = format!("the server takes messages of {} bytes at most", most.max_size);
                    sent.push(Err(Taken::Refused(Error::new(code::BODY_TOO_LARGE, text))));
                }
                // Nothing of a message counts before its last frame was handed over.
                Ok(Err(error)) => {
                    return (sent, Some(from_driver(&error, "publish").verdict_is(Verdict::Retry)));
                }
                Err(_) => return (sent, Some(blocked().with("operation", "publish"))),
            }
        }
        (sent, None)
    }

    /// The answers of the server, should they come in time. When the session ends, those that did not come never will, and
    /// nobody but the session says so.
    async fn answers(&mut self, sent: Vec<std::result::Result<Sent, Taken>>) -> Vec<Taken> {
        let until = Instant::now() + self.timeout;
        let mut has_ended = false;
        let mut taken = Vec::with_capacity(sent.len());
        for sent in sent {
            let mut sent = match sent {
                Ok(sent) => std::pin::pin!(sent),
                Err(known) => {
                    taken.push(known);
                    continue;
                }
            };
            let answer = tokio::select! {
                biased;
                answer = &mut sent => Some(answer),
                _ = self.session.on_end(), if !has_ended => {
                    has_ended = true;
                    // What was answered until then is there.
                    self.link = None;
                    sent.now_or_never()
                }
                () = tokio::time::sleep_until(until), if !has_ended => None,
            };
            taken.push(match answer {
                Some(answer) => answered(answer),
                None if has_ended => Taken::Unknown(lost()),
                None => Taken::Unknown(timed_out("publish")),
            });
        }
        taken
    }
}

impl AmqpSender {
    /// What nobody wanted was not stored, where the server takes it nevertheless.
    async fn look_for_readers(&self, batch: &[&Message], taken: &mut [Taken]) {
        let Some(stored) = taken.iter().position(|taken| matches!(taken, Taken::Stored)) else { return };
        let Some(lane) = batch.get(stored).map(|message| message.lane(self.channel.lanes)) else { return };
        let is_wanted = self.management.is_wanted(&self.channel.name, lane).await;
        if let Ok(true) = is_wanted {
            return;
        }
        for taken in taken.iter_mut().filter(|taken| matches!(taken, Taken::Stored)) {
            *taken = match &is_wanted {
                Err(error) => Taken::Unknown(error.again().verdict_is(Verdict::Unknown)),
                Ok(_) => Taken::Unwanted,
            };
        }
    }
}

fn lost() -> Error {
    Error::new(code::CONNECTION_LOST, "the connection was lost").with("operation", "publish")
}

fn answered(answer: std::result::Result<Outcome, SendError>) -> Taken {
    let rejected = match answer {
        Ok(Outcome::Accepted(_)) => return Taken::Stored,
        Ok(Outcome::Rejected(rejected)) => rejected.error,
        Ok(_) => None,
        Err(error) => return Taken::Unknown(from_driver(&error, "publish").verdict_is(Verdict::Unknown)),
    };
    // Its address is there as long as there is a queue that wants it.
    if rejected.as_ref().is_some_and(is_unwanted) {
        return Taken::Unwanted;
    }
    let error = from_server(rejected.as_ref(), "publish");
    match error.verdict() {
        Verdict::Unknown => Taken::Unknown(error),
        Verdict::Retry | Verdict::Never => Taken::Refused(error),
    }
}

#[async_trait]
impl Sender for AmqpSender {
    fn is_open(&self) -> bool {
        self.link.is_some() && !self.session.is_ended()
    }

    async fn send(&mut self, batch: &[&Message]) -> Vec<Taken> {
        let (sent, stopped) = self.hand_over(batch).await;
        let mut taken = self.answers(sent).await;
        self.look_for_readers(batch, &mut taken).await;
        let is_silent =
            |taken: &Taken| matches!(taken, Taken::Unknown(error) if error.code() == code::TIMED_OUT);
        if taken.iter().any(is_silent) {
            self.shared.lose(&self.connection);
        }
        if let Some(error) = stopped {
            // What was handed over in part is forgotten with its link.
            self.link = None;
            taken.push(Taken::Blocked(error));
        }
        taken
    }

    async fn finish(&mut self) -> Result<()> {
        self.link = None;
        if self.session.is_ended() {
            // The server reads nothing more of what was on its way.
            return Ok(());
        }
        end(&mut self.session, self.timeout, "end a producer").await
    }
}
