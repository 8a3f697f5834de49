//! Sends from many tasks at once, in windows.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _};
use tidegate_core::error::code;
use tidegate_core::port::Broker;
use tidegate_core::{Channel, Error, Message, Name, Result, Scope};
use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument as _, Span};

use crate::claim::Claims;
use crate::publisher::{Opening, Publisher};
use crate::trace;

/// How many messages are published together.
const WINDOW: usize = 1_024;

/// Puts messages on one channel, for all who have a copy of it. What they send meanwhile is published together.
///
/// What a handler sends belongs to the trace of the message that it handles, as [`Trace`](crate::Trace) says.
///
/// Dropping the last copy ends it; what was not answered then is unknown.
#[derive(Clone, Debug)]
pub struct Sender {
    inner: Arc<Inner>,
    claims: Option<Claims>,
}

#[derive(Debug)]
struct Inner {
    channel: Channel,
    system: Arc<str>,
    waiting: mpsc::Sender<Waiting>,
    _task: Scope,
}

#[derive(Debug)]
struct Waiting {
    message: Message,
    tell: oneshot::Sender<Result<()>>,
}

impl<'b> IntoFuture for Opening<'b, Sender> {
    type Output = Result<Sender>;
    type IntoFuture = BoxFuture<'b, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        async move {
            let Self { broker, channel, clock, patience, .. } = self;
            let system = trace::system(&broker.location());
            let publisher =
                Publisher::open(broker, channel).with_clock(clock).with_patience(patience).await?;
            let (waiting, taken) = mpsc::channel(WINDOW);
            let mut task = Scope::new();
            task.spawn(publish(publisher, taken));
            let inner = Inner { channel: channel.clone(), system, waiting, _task: task };
            Ok(Sender { inner: Arc::new(inner), claims: None })
        }
        .boxed()
    }
}

impl Sender {
    /// A sender to a channel that is there, once it is awaited.
    ///
    /// # Errors
    /// As [`Broker::producer`].
    pub fn open<'b>(broker: &'b dyn Broker, channel: &'b Channel) -> Opening<'b, Self> {
        Opening::new(broker, channel)
    }

    /// Keeps bodies that are too large here, and sends where they are.
    #[must_use]
    pub fn with_claims(mut self, claims: &Claims) -> Self {
        self.claims = Some(claims.clone());
        self
    }

    /// Where it sends to.
    pub fn channel(&self) -> &Name {
        &self.inner.channel.name
    }

    /// Returns when the message is stored. Messages that one task sends one behind the other are stored in that order.
    ///
    /// # Errors
    /// What the broker, or the store of large bodies, answered last. If the error's verdict is unknown the message may be stored: send it again as it is.
    pub async fn send(&self, message: Message) -> Result<()> {
        let (answer, span) = self.enqueue(message).await?;
        answered(answer, span).await
    }

    /// Returns when all of them are stored, in their order.
    ///
    /// # Errors
    /// As [`send`](Self::send), for the first that is not; the others may be stored.
    pub async fn send_all(&self, messages: impl IntoIterator<Item = Message>) -> Result<()> {
        let mut answers = Vec::new();
        for message in messages {
            answers.push(self.enqueue(message).await?);
        }
        let mut result = Ok(());
        for answer in answers {
            result = result.and(answered(answer.0, answer.1).await);
        }
        result
    }

    async fn enqueue(&self, mut message: Message) -> Result<(oneshot::Receiver<Result<()>>, Span)> {
        let (tell, told) = oneshot::channel();
        let span = trace::sending(&mut message, &self.inner.system, &self.inner.channel.name);
        if let Some(claims) = &self.claims {
            claims.put(&mut message).instrument(span.clone()).await?;
        }
        self.inner.waiting.send(Waiting { message, tell }).await.map_err(|_| ended())?;
        Ok((told, span))
    }
}

async fn answered(answer: oneshot::Receiver<Result<()>>, span: Span) -> Result<()> {
    let answer = answer.instrument(span.clone()).await.unwrap_or_else(|_| Err(ended()));
    if let Err(error) = &answer {
        span.record("error.type", error.code().name());
    }
    answer
}

fn ended() -> Error {
    Error::new(code::STOPPED, "the sender has ended")
}

async fn publish(mut publisher: Publisher, mut taken: mpsc::Receiver<Waiting>) -> Result<()> {
    let (mut window, mut messages, mut tell) = (Vec::new(), Vec::new(), Vec::new());
    while taken.recv_many(&mut window, WINDOW).await > 0 {
        for waiting in window.drain(..) {
            messages.push(waiting.message);
            tell.push(waiting.tell);
        }
        for (tell, answer) in tell.drain(..).zip(publisher.publish_each(&messages).await) {
            // Whoever does not wait any more does not want to know.
            let _ = tell.send(answer);
        }
        messages.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::join_all;
    use tidegate_core::{Apply, Subscription, SystemClock, Topology};
    use tidegate_memory::MemoryBroker;

    use super::*;
    use crate::Receiver;

    #[tokio::test(start_paused = true)]
    async fn many_send_at_once_and_one_that_is_refused_hurts_nobody() {
        let broker = MemoryBroker::default();
        let channel = Channel::new("orders").unwrap().with_lanes(2);
        let subscription = Subscription::new(&channel, "all").unwrap();
        broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
        let clock = SystemClock::shared();
        let sender = Sender::open(&broker, &channel)
            .with_clock(Arc::clone(&clock))
            .with_patience(Duration::from_secs(5))
            .await
            .unwrap();
        broker.lose_answers(2);
        let sent = join_all((0..100).map(|number| {
            let id = if number == 50 { String::new() } else { number.to_string() };
            let sender = sender.clone();
            async move { sender.send(Message::with_id(id, "test", "t")).await }
        }))
        .await;
        let refused: Vec<_> = sent.iter().filter_map(|sent| sent.as_ref().err()).collect();
        assert!(refused.len() == 1 && refused[0].code() == code::MESSAGE_INVALID);
        sender.send_all((200..300).map(|n| Message::with_id(n.to_string(), "test", "t"))).await.unwrap();
        let mut receiver = Receiver::open(&broker, &subscription, clock).await.unwrap();
        let mut ids = std::collections::BTreeSet::new();
        while let Some(delivery) = receiver.next(Duration::from_millis(50)).await.unwrap() {
            ids.insert(delivery.message.id);
        }
        assert_eq!(ids.len(), 199);
    }
}
