//! Questions to a server, asked by messages: each with a number, and answered at a queue of whoever asks.

use std::time::Duration;

use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{AmqpValue, Body, Message, MessageId, Outcome};
use fe2o3_amqp::types::primitives::Value;
use fe2o3_amqp::{Receiver, Sender};
use tidegate_core::Result;
use tidegate_core::error::code;
use tokio::time::Instant;

use crate::connect::{Connection, Node, reply_receiver, sender, within};
use crate::error::{blocked, from_driver, from_server, timed_out};

/// How many questions are under way at once.
pub(crate) const ASKED_MAX: usize = 250;
/// How many answers may be on their way, with those to earlier questions that nobody waited for.
const ANSWERS_MAX: u32 = 4 * ASKED_MAX as u32;
/// How long the server may give no credit to ask anything.
const CREDIT: Duration = Duration::from_millis(500);
const OPERATION: &str = "ask the server";

/// Who asks, one at a time.
#[derive(Debug)]
pub(crate) struct Asking {
    /// The number of the next question.
    next: u64,
    reply_to: String,
    sender: Sender,
    receiver: Receiver,
    session: SessionHandle<()>,
}

impl Asking {
    /// Asks one address, or each question that which it names.
    pub(crate) async fn open(
        connection: &Connection,
        address: Option<&str>,
        timeout: Duration,
    ) -> Result<Self> {
        let mut session = connection.session().await?;
        let receiver = reply_receiver(&mut session, timeout).await?;
        let reply_to = receiver.source().as_ref().and_then(|source| source.address.clone());
        let reply_to = reply_to.ok_or_else(|| from_server(None, "open a queue for answers"))?;
        let sender = sender(&mut session, Node::Queue, address, timeout).await?;
        Ok(Self { next: 1, reply_to, sender, receiver, session })
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.session.is_ended()
    }

    /// Asks, and gives each answer to `take`, with the place of its question, until that says of each place that it was the
    /// last one.
    pub(crate) async fn ask(
        &mut self,
        questions: impl ExactSizeIterator<Item = Message<AmqpValue<Value>>>,
        time: Duration,
        mut take: impl FnMut(usize, Message<Body<Value>>) -> bool,
    ) -> Result<()> {
        let credit = within(time, OPERATION, self.receiver.set_credit(ANSWERS_MAX));
        credit.await?;
        let (first, mut open) = (self.next, vec![true; questions.len()]);
        let mut sent = Vec::with_capacity(questions.len());
        for mut question in questions {
            let properties = question.properties.get_or_insert_default();
            properties.reply_to = Some(self.reply_to.clone());
            properties.correlation_id = Some(MessageId::String(self.next.to_string()));
            self.next += 1;
            match tokio::time::timeout(CREDIT, self.sender.send_batchable(question)).await {
                Ok(one) => sent.push(one.map_err(|error| from_driver(&error, OPERATION))?),
                Err(_) => return Err(blocked().with("operation", OPERATION)),
            }
        }
        let until = Instant::now() + time;
        for one in sent {
            let answer = tokio::time::timeout_at(until, one).await.map_err(|_| timed_out(OPERATION))?;
            match answer.map_err(|error| from_driver(&error, OPERATION))? {
                Outcome::Accepted(_) => {}
                Outcome::Rejected(rejected) => return Err(from_server(rejected.error.as_ref(), OPERATION)),
                _ => return Err(from_server(None, OPERATION)),
            }
        }
        while open.contains(&true) {
            let came = tokio::time::timeout_at(until, self.receiver.recv::<Body<Value>>()).await;
            let came =
                came.map_err(|_| timed_out(OPERATION))?.map_err(|error| from_driver(&error, OPERATION))?;
            within(time, OPERATION, self.receiver.accept(&came)).await?;
            let message = came.into_message();
            let number = message
                .properties
                .as_ref()
                .and_then(|properties| number(properties.correlation_id.as_ref()?));
            let place = number.and_then(|number| usize::try_from(number.checked_sub(first)?).ok());
            if let Some((place, is_open)) = place.and_then(|place| Some((place, open.get_mut(place)?))) {
                *is_open &= !take(place, message);
            }
        }
        Ok(())
    }
}

fn number(id: &MessageId) -> Option<u64> {
    match id {
        MessageId::String(number) => number.parse().ok(),
        MessageId::Ulong(number) => Some(*number),
        _ => None,
    }
}

/// Whether an error says that nobody answered.
pub(crate) fn is_unanswered(error: &tidegate_core::Error) -> bool {
    error.code() == code::TIMED_OUT
}
