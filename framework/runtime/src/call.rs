//! Asks over a broker, and waits for the reply.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Broker, Delivery};
use tidegate_core::{
    Apply, Channel, Clock, Error, Ids, Message, Name, Result, Scope, Subscription, Topology,
};
use tokio::sync::{oneshot, watch};

use crate::receiver::Receiver;
use crate::sender::Sender;
use crate::service::{FromMessage as _, Json, Typed};
use crate::wait;

/// The header that names the channel of the reply.
pub const REPLY_TO: &str = "tg_reply_to";
/// The header of a reply that names the message that asked.
pub const CALL: &str = "tg_call";
/// The kind of a reply that says that the message became a dead letter; its body is why.
pub const FAILED: &str = "tidegate.failed.v1";

/// What the names of channels of replies begin with.
pub(crate) const REPLIES: &str = "replies.";

/// How long the receiving of replies waits at a time.
const WAIT: Duration = Duration::from_secs(1);

/// The channel of replies of this name.
pub(crate) fn reply_channel(name: &Name) -> Channel {
    let mut channel = Channel::new("replies").expect("the name is a good one").with_lanes(1);
    channel.name = name.clone();
    channel
}

/// Sends messages that are answered, for all who have a copy of it.
///
/// Each process has its own channel of replies, by a name that it keeps when it is started again. A reply that comes when
/// nobody waits for it any more is counted, and dropped.
#[derive(Clone)]
pub struct Caller(Arc<Inner>);

struct Inner {
    sender: Sender,
    replies: Name,
    source: Arc<str>,
    ids: Arc<dyn Ids>,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    /// By when it is to be at its end, by the clock.
    end: watch::Sender<Option<Duration>>,
    task: tokio::sync::Mutex<Scope>,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    late: AtomicU64,
}

/// Who waits for replies.
#[derive(Default)]
struct Pending {
    by_id: HashMap<Arc<str>, oneshot::Sender<Message>>,
    /// No replies come any more.
    is_over: bool,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("replies", &self.0.replies).finish_non_exhaustive()
    }
}

impl Caller {
    /// A caller of whoever handles the messages of a channel that is there. Its replies come on the channel
    /// `replies.NAME`, which is made.
    ///
    /// # Errors
    /// As [`Broker::producer`] and [`Broker::subscribe`].
    pub async fn open(
        broker: &dyn Broker,
        channel: &Channel,
        name: &str,
        ids: Arc<dyn Ids>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let replies = reply_channel(&Name::new(format!("{REPLIES}{name}"))?);
        let subscription = Subscription::new(&replies, "caller")?;
        broker.apply(&Topology::of(&replies).and(&subscription), Apply::Create).await?;
        let receiver = Receiver::open(broker, &subscription, Arc::clone(&clock)).await?;
        let sender = Sender::open(broker, channel)
            .with_clock(Arc::clone(&clock))
            .with_patience(Duration::from_secs(30))
            .await?;
        let (shared, (end, ends)) = (Arc::new(Shared::default()), watch::channel(None));
        let mut task = Scope::new();
        task.spawn(receive(receiver, Arc::clone(&shared), ends, Arc::clone(&clock)));
        let (replies, source, task) = (replies.name, name.into(), tokio::sync::Mutex::new(task));
        Ok(Self(Arc::new(Inner { sender, replies, source, ids, clock, shared, end, task })))
    }

    /// Asks, and waits for the reply.
    ///
    /// # Errors
    /// `timed-out` if none comes in time: whoever was asked may still do it. `call-failed` if the message became a dead
    /// letter, `stopped` if no replies come any more. Otherwise as [`Sender::send`].
    ///
    /// # Cancel safety
    /// A dropped call leaves the question unknown: it may be answered still, and the reply is counted as late then.
    pub async fn call<Q, R>(&self, question: Q, timeout: Duration) -> Result<R>
    where
        Q: Typed + Serialize,
        R: Typed + DeserializeOwned,
    {
        let message = Json(question).to_message(&*self.0.ids, &self.0.source)?;
        let reply = self.call_message(message, timeout).await?;
        if *reply.kind != *R::KIND {
            let what = format!("a reply of the kind {} came where {} was expected", reply.kind, R::KIND);
            return Err(Error::new(code::MESSAGE_INVALID, what));
        }
        Json::from_message(&Arc::new(reply)).map(|Json(reply)| reply)
    }

    /// The same for a message of any form.
    ///
    /// # Errors
    /// As [`call`](Self::call), and `config-invalid` if the same message is asked already.
    ///
    /// # Cancel safety
    /// As [`call`](Self::call).
    pub async fn call_message(&self, message: Message, timeout: Duration) -> Result<Message> {
        let message = message.with_header(REPLY_TO, self.0.replies.to_string())?;
        let id = Arc::clone(&message.id);
        let told = self.0.shared.wait(&id)?;
        let _forget = Forget(&self.0.shared, Arc::clone(&id));
        let asked = async {
            self.0.sender.send(message).await?;
            told.await.map_err(|_| Error::new(code::STOPPED, "the caller has ended"))
        };
        let reply = tokio::select! {
            reply = asked => reply?,
            () = self.0.clock.sleep(timeout) => {
                let what = format!("no reply came within {timeout:?}");
                return Err(Error::new(code::TIMED_OUT, what).with("message", id)
                    .hint("whoever was asked may still do it: look before asking again, or ask what may be asked twice"));
            }
        };
        if *reply.kind == *FAILED {
            let why = String::from_utf8_lossy(&reply.data).into_owned();
            return Err(Error::new(code::CALL_FAILED, why).with("message", id));
        }
        Ok(reply)
    }

    /// Ends it, for everybody who has a copy: nothing more is asked, whoever waits for a reply is told that none comes (`stopped`), and
    /// the channel of replies is left, so that the next caller of this name has it at once. What was asked may still be done.
    ///
    /// # Errors
    /// As [`Sender::close`] and [`Consumer::close`](tidegate_core::port::Consumer::close).
    ///
    /// # Cancel safety
    /// A dropped call has begun it. Call it again to wait for the end.
    pub async fn close(&self, deadline: Duration) -> Result<()> {
        wait::end_by(&self.0.end, self.0.clock.elapsed() + deadline);
        let sent = self.0.sender.close(deadline).await;
        let left = self.0.task.lock().await.next().await.unwrap_or(Ok(()));
        sent.and(left)
    }

    /// How many replies came when nobody waited for them any more.
    pub fn late(&self) -> u64 {
        self.0.shared.late.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// What gives the reply to a message, as soon as it comes.
    fn wait(&self, id: &Arc<str>) -> Result<oneshot::Receiver<Message>> {
        let mut pending = self.lock();
        // Under the lock: whoever is not refused here is told at the end.
        if pending.is_over {
            return Err(Error::new(code::STOPPED, "no replies come any more"));
        }
        let (tell, told) = oneshot::channel();
        match pending.by_id.entry(Arc::clone(id)) {
            Entry::Vacant(place) => _ = place.insert(tell),
            Entry::Occupied(_) => {
                let what = format!("the message {id} is asked twice at once");
                return Err(Error::new(code::CONFIG_INVALID, what));
            }
        }
        Ok(told)
    }

    /// Gives a reply to whoever waits for it.
    fn tell(&self, reply: Message) {
        let asked = reply.headers.get(CALL);
        let waiting = asked.and_then(|id| self.lock().by_id.remove(id));
        if waiting.is_none_or(|tell| tell.send(reply).is_err()) {
            self.late.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// No replies come any more, and all who wait are told so.
    fn end(&self) {
        let mut pending = self.lock();
        pending.is_over = true;
        pending.by_id.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody waits any more, however the call ended.
struct Forget<'a>(&'a Shared, Arc<str>);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.lock().by_id.remove(&self.1);
    }
}

async fn receive(
    mut receiver: Receiver,
    shared: Arc<Shared>,
    mut ends: watch::Receiver<Option<Duration>>,
    clock: Arc<dyn Clock>,
) -> Result<()> {
    loop {
        let came = tokio::select! {
            biased;
            end = wait::told(&mut ends) => {
                shared.end();
                return receiver.close(end.saturating_sub(clock.elapsed())).await;
            }
            came = receiver.next(WAIT) => came,
        };
        let taken = match came {
            Ok(first) => take(&mut receiver, first, &shared).await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(()) => {}
            Err(error) if error.verdict() == Verdict::Never => {
                tracing::error!(%error, "no replies come any more");
                shared.end();
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(%error, "receiving replies failed, and is tried again");
                clock.sleep(WAIT).await;
            }
        }
    }
}

/// Gives the replies that have come to those who wait for them, and settles them together.
async fn take(receiver: &mut Receiver, first: Option<Delivery>, shared: &Shared) -> Result<()> {
    let (mut tokens, mut next) = (Vec::new(), first);
    while let Some(delivery) = next {
        shared.tell(Arc::unwrap_or_clone(delivery.message));
        tokens.push(delivery.token);
        // What has come with it, and nothing that comes later.
        next = receiver.next(Duration::ZERO).await?;
    }
    if let Err(error) = receiver.settle(&tokens).await {
        tracing::warn!(%error, "replies could not be settled");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Whoever begins to ask when the replies end is refused, or told.
    #[test]
    fn nobody_waits_for_a_reply_when_none_comes_any_more() {
        for _ in 0..500 {
            let shared = Shared::default();
            let asked = thread::scope(|scope| {
                let asking = scope.spawn(|| {
                    let ids = (0_u64..).map(|number| Arc::from(number.to_string()));
                    ids.map_while(|id| shared.wait(&id).ok()).collect::<Vec<_>>()
                });
                while shared.lock().by_id.is_empty() {
                    thread::yield_now();
                }
                shared.end();
                asking.join().unwrap()
            });
            assert!(!asked.is_empty());
            for mut told in asked {
                assert_eq!(told.try_recv(), Err(oneshot::error::TryRecvError::Closed), "it waits for ever");
            }
        }
    }
}
