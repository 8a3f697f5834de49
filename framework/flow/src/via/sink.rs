//! The source's end: a sink whose calls are done by somebody else.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Applied, Batch, Checkpoint, Commit, Identity, Opened, Route, Sink, Store};
use tidegate_core::{Column, Encoding, Error, FlowName, Result, Shape, Subscription};
use tidegate_runtime::{Publisher, Receiver};

use super::serve::identity;
use super::wire::{CALL, Call, CarriedRoute, Parts, Place, Reply, Whole, messages};
use super::{PATIENCE, Via};
use crate::plant::{self, Bug};

/// Who serves the target says at least so often that it is there.
const SILENCE: Duration = Duration::from_secs(10);

/// How long closing may take.
const CLOSE: Duration = Duration::from_secs(5);

/// Where the replies to a runner that broke came, for the next one. A member of a subscription learns that another one is gone by
/// not hearing of it for its lease: were each runner a new member, and given up sooner, none would ever learn that one was killed.
pub(super) type Kept = Arc<Mutex<Option<Receiver>>>;

/// Where replies come.
struct Replies {
    /// Nothing once it failed for good, or is closed.
    receiver: Option<Receiver>,
    kept: Kept,
}

impl Replies {
    async fn open(via: &Via, caller: &Subscription, kept: &Kept) -> Result<Self> {
        let before = lock(kept).take();
        let receiver = match before {
            Some(receiver) => receiver,
            None => Receiver::open(via.broker.as_ref(), caller, Arc::clone(&via.clock)).await?,
        };
        Ok(Self { receiver: Some(receiver), kept: Arc::clone(kept) })
    }

    /// The next reply that is whole; nothing if nothing comes for so long that nobody can be there.
    async fn next(&mut self, parts: &mut Parts) -> Result<Option<Whole>> {
        let taken = self.take(parts).await;
        if taken.as_ref().is_err_and(|error| error.verdict() == Verdict::Never) {
            self.receiver = None;
        }
        taken
    }

    async fn take(&mut self, parts: &mut Parts) -> Result<Option<Whole>> {
        let closed =
            || Error::new(code::CONNECTION_LOST, "the replies are closed").verdict_is(Verdict::Retry);
        let receiver = self.receiver.as_mut().ok_or_else(closed)?;
        loop {
            let Some(delivery) = receiver.next(SILENCE).await? else { return Ok(None) };
            let whole = parts.take(delivery)?;
            receiver.settle(&parts.tokens()).await?;
            if whole.is_some() {
                return Ok(whole);
            }
        }
    }

    async fn close(mut self) -> Result<()> {
        match self.receiver.take() {
            Some(receiver) => receiver.close(CLOSE).await,
            None => Ok(()),
        }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        if let Some(receiver) = self.receiver.take() {
            *lock(&self.kept) = Some(receiver);
        }
    }
}

fn lock(kept: &Kept) -> MutexGuard<'_, Option<Receiver>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct CarriedSink {
    flow: FlowName,
    target: Option<Identity>,
    routes: Vec<CarriedRoute>,
    publisher: Publisher,
    replies: Replies,
    parts: Parts,
    via: Via,
    place: Place,
}

impl CarriedSink {
    pub(super) async fn open(
        via: &Via,
        flow: &FlowName,
        target: &dyn Store,
        routes: &[Route],
        kept: &Kept,
    ) -> Result<Self> {
        let ways = via.prepare(flow).await?;
        let broker = via.broker.as_ref();
        Ok(Self {
            flow: flow.clone(),
            target: identity(target).await,
            routes: routes.iter().map(carried).collect(),
            publisher: Publisher::open(broker, &ways.calls)
                .with_clock(Arc::clone(&via.clock))
                .with_patience(PATIENCE)
                .await?,
            replies: Replies::open(via, &ways.caller, kept).await?,
            parts: Parts::default(),
            place: Place { session: via.ids.next().simple().to_string().into(), number: 0 },
            via: via.clone(),
        })
    }

    /// Has a call done.
    async fn call(&mut self, call: Call) -> Result<Reply> {
        self.place.number += 1;
        let size = self.via.broker.capabilities().message_bytes_max;
        let parts = messages(CALL, &self.flow, &self.place, "0", call.encode()?, size)?;
        self.publisher.publish(&parts).await?;
        loop {
            let Some(whole) = self.replies.next(&mut self.parts).await? else {
                return Err(Error::new(code::TIMED_OUT, "nobody answers at the target's end of the broker")
                    .with("broker", self.via.broker.location())
                    .hint("tidegate migrate run --role target"));
            };
            // What is left of an earlier session, or comes twice, answers nothing.
            if whole.place != self.place && !plant::is(Bug::AnyReply) {
                continue;
            }
            match Reply::decode(whole.body)? {
                Reply::Working => {}
                Reply::Failed(error) => return Err(error),
                Reply::Unknown => {
                    return Err(Error::new(code::CONNECTION_LOST, "who serves the target was started anew")
                        .verdict_is(Verdict::Retry));
                }
                reply => return Ok(reply),
            }
        }
    }
}

/// Its rows and keys travel byte for byte: the target notes holes by keys, and has to tell them as the source has them.
fn carried(route: &Route) -> CarriedRoute {
    let Shape { table, codec } = &route.shape;
    let is_canonical = |column: &&Column| codec.encoding_of(column) == Encoding::CANONICAL;
    let own = table.columns.iter().find(|column| !is_canonical(column));
    let encoding = own.map_or(Encoding::CANONICAL, |column| codec.encoding_of(column));
    let computed = table.columns.iter().filter(is_canonical).filter(|_| own.is_some());
    CarriedRoute {
        source: table.as_ref().clone(),
        encoding: encoding.0.to_owned(),
        computed: computed.map(|column| column.name.clone()).collect(),
        target: route.target.as_ref().clone(),
    }
}

fn unexpected() -> Error {
    Error::new(code::MESSAGE_INVALID, "the target's end of the broker answered something else")
}

#[async_trait]
impl Sink for CarriedSink {
    async fn open(&mut self, first: &Checkpoint) -> Result<Opened> {
        let call =
            Call::Open { target: self.target.clone(), routes: self.routes.clone(), first: first.clone() };
        let Reply::Opened { opened, session } = self.call(call).await? else { return Err(unexpected()) };
        self.place.session = session.into();
        Ok(opened)
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        let call = Call::Apply { batch: batch.clone(), commit: commit.cloned() };
        let Reply::Applied(applied) = self.call(call).await? else { return Err(unexpected()) };
        Ok(applied)
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        let Reply::Closed = self.call(Call::Close).await? else { return Err(unexpected()) };
        self.publisher.close(CLOSE).await?;
        self.replies.close().await
    }
}
