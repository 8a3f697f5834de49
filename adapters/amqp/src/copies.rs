//! A queue of our own with one message in it, of which whoever has the queue writes a new copy: a register, or a book. There are
//! several where a writer went away in the midst of it, or two made it at once; the last one counts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::transaction::{
    Controller, Transaction, TransactionDischarge as _, TransactionPosting as _, TransactionRetirement as _,
};
use fe2o3_amqp::types::messaging::{Body, Data, Message as Amqp, MessageId, Outcome, Properties};
use fe2o3_amqp::types::primitives::{Binary, Value};
use tidegate_core::Result;
use tokio::time::Instant;

use crate::artemis::{MESSAGES, Management, Question};
use crate::codec::durable;
use crate::connect::{Node, receiver, sender, within};
use crate::error::{blocked, from_driver, from_server, timed_out};

/// How many copies are taken.
const MOST: u32 = 64;
/// How long to wait for another copy before it is counted again how many there are: one that is counted may be on its way, or
/// going.
const LOOK: Duration = Duration::from_millis(20);

/// Which of several copies is the last: the owner's number, then the copy's. What an owner of before sent and was stored late
/// does not come after what its successor wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number {
    owner: u64,
    copy: u64,
}

impl Number {
    /// The first of the next owner.
    pub(crate) fn next_owner(self) -> Self {
        Self { owner: self.owner + 1, copy: 0 }
    }

    /// The next of the same owner.
    pub(crate) fn next(self) -> Self {
        Self { copy: self.copy + 1, ..self }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.owner, self.copy)
    }
}

impl FromStr for Number {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let (owner, copy) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Self { owner: owner.parse()?, copy: copy.parse()? })
    }
}

/// A copy, as it is sent.
pub(crate) fn copy(queue: &str, number: Number, value: &[u8]) -> Amqp<Data> {
    Amqp {
        header: Some(durable()),
        delivery_annotations: None,
        message_annotations: None,
        properties: Some(Properties {
            message_id: Some(MessageId::String(number.to_string())),
            to: Some(queue.to_owned()),
            ..Properties::default()
        }),
        application_properties: None,
        body: Data(Binary::from(value.to_vec())),
        footer: None,
    }
}

/// The copies that have come, and are this reader's as long as it is not dropped.
pub(crate) struct Copies {
    pub(crate) queue: String,
    receiver: Receiver,
    came: Vec<(Number, Bytes, DeliveryInfo)>,
    timeout: Duration,
}

impl Copies {
    /// Stands in the line of a queue.
    pub(crate) async fn stand(
        session: &mut SessionHandle<()>,
        queue: String,
        timeout: Duration,
    ) -> Result<Self> {
        let mut receiver = receiver(session, Node::Queue, queue.clone(), timeout).await?;
        within(timeout, "stand in line", receiver.set_credit(MOST)).await?;
        Ok(Self { queue, receiver, came: Vec::new(), timeout })
    }

    /// Waits for a copy. Dropping the call loses nothing.
    pub(crate) async fn next(&mut self) -> Result<()> {
        let came = self.receiver.recv::<Body<Value>>().await;
        let came = came.map_err(|error| from_driver(&error, "read a copy"))?;
        let info = DeliveryInfo::from(&came);
        let message = came.into_message();
        let number = match message.properties.and_then(|properties| properties.message_id) {
            Some(MessageId::String(number)) => number.parse().unwrap_or_default(),
            _ => Number::default(),
        };
        let parts = message.body.try_into_data().map(|parts| parts.flat_map(Binary::into_vec).collect());
        let value: Vec<u8> = parts.unwrap_or_default();
        self.came.push((number, value.into(), info));
        Ok(())
    }

    /// The last of those that are there, once one came; the first of those that are equal.
    pub(crate) async fn last(&mut self, management: &Management) -> Result<(Number, Bytes)> {
        let until = Instant::now() + self.timeout;
        while Instant::now() < until {
            let there = management.counts(&[Question::count(&self.queue, MESSAGES)]).await?;
            if there.first().copied().flatten().unwrap_or(0) <= self.came.len() as u64 {
                break;
            }
            match tokio::time::timeout(LOOK, self.next()).await {
                Ok(came) => came?,
                Err(_) => continue,
            }
        }
        let last = self.came.iter().reduce(|last, one| if one.0 > last.0 { one } else { last });
        Ok(last.map(|(number, value, _)| (*number, value.clone())).unwrap_or_default())
    }

    /// Waits for a copy that was written, which comes back here, and removes all others.
    pub(crate) async fn keep(&mut self, number: Number) -> Result<()> {
        const OPERATION: &str = "read a copy back";
        while self.came.iter().all(|(known, ..)| *known != number) {
            match tokio::time::timeout(self.timeout, self.next()).await {
                Ok(came) => came?,
                Err(_) => return Err(timed_out(OPERATION)),
            }
        }
        let mut has_one = false;
        let mut is_kept = |known: Number| known == number && !std::mem::replace(&mut has_one, true);
        let (kept, old) = std::mem::take(&mut self.came).into_iter().partition(|(known, ..)| is_kept(*known));
        self.came = kept;
        let old: Vec<_> = old;
        if old.is_empty() {
            return Ok(());
        }
        let old = old.into_iter().map(|(_, _, info)| info);
        within(self.timeout, OPERATION, self.receiver.accept_all(old)).await?;
        within(self.timeout, OPERATION, self.receiver.set_credit(MOST)).await
    }

    /// Writes a copy in the place of those that came, all in one transaction.
    pub(crate) async fn replace(
        &mut self,
        session: &mut SessionHandle<()>,
        number: Number,
        value: &[u8],
    ) -> Result<()> {
        const OPERATION: &str = "replace a copy";
        let time = self.timeout;
        let mut link = sender(session, Node::Queue, None, time).await?;
        let transactions = Controller::attach(session, "transactions");
        let transactions = within(time, OPERATION, transactions).await?;
        let mut both = within(time, OPERATION, Transaction::declare(&transactions, None)).await?;
        both.set_rollback_on_drop_trials(0);
        let sent =
            match tokio::time::timeout(time, both.post(&mut link, copy(&self.queue, number, value))).await {
                Ok(sent) => sent.map_err(|error| from_driver(&error, OPERATION))?,
                // Nothing of it counts.
                Err(_) => return Err(blocked().with("operation", OPERATION)),
            };
        match sent {
            Outcome::Accepted(_) => {}
            Outcome::Rejected(rejected) => return Err(from_server(rejected.error.as_ref(), OPERATION)),
            _ => return Err(from_server(None, OPERATION)),
        }
        for (_, _, info) in self.came.drain(..) {
            within(time, OPERATION, both.accept(&mut self.receiver, info)).await?;
        }
        within(time, OPERATION, both.commit()).await
    }

    /// Leaves the queue, with what is in it.
    pub(crate) async fn leave(self) -> Result<()> {
        within(self.timeout, "leave a line", self.receiver.close()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_a_later_owner_are_later() {
        let numbers = ["0.0", "1.1", "1.10", "2.0"].map(|text| text.parse::<Number>().unwrap());
        assert!(numbers.is_sorted() && numbers.map(|number| number.to_string())[2] == "1.10");
        assert_eq!((numbers[1].next_owner(), numbers[1].next().to_string()), (numbers[3], "1.2".to_owned()));
        assert!("x".parse::<Number>().is_err());
    }
}
