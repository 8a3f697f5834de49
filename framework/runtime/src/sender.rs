//! Sends from many tasks at once, in windows.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, join_all};
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::Broker;
use tidegate_core::{Channel, Clock, Error, Message, Name, Result, Scope};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tracing::{Instrument as _, Span};

use crate::claim::Claims;
use crate::publisher::{Opening, Publisher};
use crate::{trace, wait};

/// How many messages are published together.
const WINDOW: usize = 1_024;

/// Puts messages on one channel, for all who have a copy of it. What they send meanwhile is published together.
///
/// What a handler sends belongs to the trace of the message that it handles, as [`Trace`](crate::Trace) says.
///
/// [`close`](Self::close) ends it with an answer for everything that it was given. Dropping the last copy ends it as well; what was
/// not answered then is unknown.
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
    clock: Arc<dyn Clock>,
    /// By when it is to be at its end, by the clock.
    end: watch::Sender<Option<Duration>>,
    task: Mutex<Scope>,
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
            let publisher = Publisher::open(broker, channel)
                .with_clock(Arc::clone(&clock))
                .with_patience(patience)
                .await?;
            let (waiting, taken) = mpsc::channel(WINDOW);
            let (end, ends) = watch::channel(None);
            let mut task = Scope::new();
            task.spawn(publish(publisher, taken, ends, Arc::clone(&clock)));
            let (channel, task) = (channel.clone(), Mutex::new(task));
            let inner = Inner { channel, system, waiting, clock, end, task };
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
    /// What the broker, or the store of large bodies, answered last; `stopped` if the sender was closed. If the error's verdict is
    /// unknown the message may be stored: send it again as it is.
    ///
    /// # Cancel safety
    /// A dropped call leaves its message unknown: it may be stored, also later. Send it again as it is, before newer ones.
    pub async fn send(&self, message: Message) -> Result<()> {
        let (answer, span) = self.enqueue(message).await?;
        answered(answer, span).await
    }

    /// Returns when all of them are stored, in their order.
    ///
    /// # Errors
    /// As [`send`](Self::send), for the first that is not; the others may be stored.
    ///
    /// # Cancel safety
    /// A dropped call leaves each of its messages unknown, as [`send`](Self::send) does; those at the end may not have been taken.
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
        let refused = |_| Error::new(code::STOPPED, "the sender has ended, and the message was not sent");
        self.inner.waiting.send(Waiting { message, tell }).await.map_err(refused)?;
        Ok((told, span))
    }

    /// Ends it, for everybody who has a copy: it takes nothing more, and what it has is published and answered until the deadline.
    /// Afterwards nothing of it is stored any more.
    ///
    /// # Errors
    /// `timed-out` if something is not answered at the deadline: that is unknown, and whoever waits for it is told so. Otherwise as
    /// [`Publisher::close`]. Of several calls one is told.
    ///
    /// # Cancel safety
    /// A dropped call has begun it: nothing more is taken, and by the deadline it has ended. Call it again to wait for that.
    pub async fn close(&self, deadline: Duration) -> Result<()> {
        wait::end_by(&self.inner.end, self.inner.clock.elapsed() + deadline);
        self.inner.task.lock().await.next().await.unwrap_or(Ok(()))
    }
}

/// Ends senders whose work is done, all at once. What is not answered then was not settled either, and comes again.
pub(crate) async fn close_all(senders: impl IntoIterator<Item = Sender>, deadline: Duration) {
    let close = |sender: Sender| async move {
        if let Err(error) = sender.close(deadline).await {
            tracing::warn!(%error, channel = %sender.channel(), "a sender did not end in time");
        }
    };
    join_all(senders.into_iter().map(close)).await;
}

async fn answered(answer: oneshot::Receiver<Result<()>>, span: Span) -> Result<()> {
    let unanswered = || {
        let what = "the sender ended before the broker answered: the message may be stored";
        Error::new(code::STOPPED, what).verdict_is(Verdict::Unknown)
    };
    let answer = answer.instrument(span.clone()).await.unwrap_or_else(|_| Err(unanswered()));
    if let Err(error) = &answer {
        span.record("error.type", error.code().name());
    }
    answer
}

async fn publish(
    mut publisher: Publisher,
    mut taken: mpsc::Receiver<Waiting>,
    mut ends: watch::Receiver<Option<Duration>>,
    clock: Arc<dyn Clock>,
) -> Result<()> {
    let (mut window, mut messages, mut tell) = (Vec::new(), Vec::new(), Vec::new());
    let mut end = None;
    loop {
        tokio::select! {
            biased;
            known = wait::told(&mut ends), if end.is_none() => {
                // What was taken before is still received.
                taken.close();
                end = Some(known);
                continue;
            }
            count = taken.recv_many(&mut window, WINDOW) => if count == 0 { break },
        }
        for waiting in window.drain(..) {
            messages.push(waiting.message);
            tell.push(waiting.tell);
        }
        let answers = tokio::select! {
            biased;
            answers = publisher.publish_each(&messages) => answers,
            () = over(&mut ends, &*clock) => {
                let what = format!("{} messages were not answered when the sender had to end", messages.len() + taken.len());
                if let Err(error) = publisher.close(Duration::ZERO).await {
                    tracing::debug!(%error, "what a sender published last did not come to its end");
                }
                return Err(Error::new(code::TIMED_OUT, what)
                    .hint("they may be stored: send them again as they are"));
            }
        };
        for (tell, answer) in tell.drain(..).zip(answers) {
            // Whoever does not wait any more does not want to know.
            let _ = tell.send(answer);
        }
        messages.clear();
    }
    let left = end.map_or(Duration::ZERO, |end| end.saturating_sub(clock.elapsed()));
    publisher.close(left).await
}

/// Returns when it has to be at its end. Cancel safe.
async fn over(ends: &mut watch::Receiver<Option<Duration>>, clock: &dyn Clock) {
    let end = wait::told(ends).await;
    wait::until(clock, end).await;
}

#[cfg(test)]
mod tests {
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
            ids.insert(Arc::clone(&delivery.message.id));
        }
        assert_eq!(ids.len(), 199);
    }

    async fn full(messages_max: u64) -> (MemoryBroker, Sender) {
        let broker = MemoryBroker::default();
        let channel = Channel::new("orders").unwrap().with_lanes(1).with_limits(messages_max, 1 << 20);
        let subscription = Subscription::new(&channel, "all").unwrap();
        broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
        let sender = Sender::open(&broker, &channel).with_patience(Duration::from_secs(60)).await.unwrap();
        (broker, sender)
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_is_closed_answers_what_it_has_and_takes_nothing_more() {
        let (broker, sender) = full(1_000).await;
        broker.lose_answers(3);
        let (copy, mut scope) = (sender.clone(), Scope::new());
        scope.spawn(async move {
            copy.send_all((0..100).map(|n| Message::with_id(n.to_string(), "s", "t"))).await
        });
        tokio::task::yield_now().await;
        sender.close(Duration::from_secs(30)).await.unwrap();
        scope.join().await.unwrap();
        assert_eq!(broker.kept(sender.channel()), 100);
        let late = sender.clone().send(Message::with_id("late", "s", "t")).await.unwrap_err();
        assert_eq!((late.code(), late.verdict()), (code::STOPPED, Verdict::Never));
        assert_eq!(broker.kept(sender.channel()), 100);
        sender.close(Duration::ZERO).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_ends_by_its_deadline_and_what_it_has_is_unknown_then() {
        let (_broker, sender) = full(1).await;
        let clock = SystemClock::shared();
        let began = clock.elapsed();
        let message = |id| Message::with_id(id, "s", "t");
        sender.send(message("1")).await.unwrap();
        let waits = sender.send(message("2"));
        let ended = async {
            tokio::task::yield_now().await;
            // Whoever does not wait for the end has begun it all the same.
            assert!(sender.close(Duration::from_secs(2)).now_or_never().is_none());
            sender.close(Duration::from_secs(20)).await
        };
        let (unanswered, ended) = futures::join!(waits, ended);
        let ended = ended.unwrap_err();
        assert_eq!(ended.code(), code::TIMED_OUT);
        assert!(ended.to_string().contains("1 messages were not answered"), "{ended}");
        assert_eq!(unanswered.unwrap_err().verdict(), Verdict::Unknown);
        assert_eq!((clock.elapsed() - began).as_secs(), 2);
    }
}
