//! The source's end: a sink whose calls are done by somebody else.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Applied, Batch, Checkpoint, Commit, Identity, Opened, Route, Sink, Store};
use tidegate_core::{Column, Encoding, Error, FlowName, Result, Shape};
use tidegate_runtime::{Publisher, Receiver};

use super::serve::identity;
use super::wire::{CALL, Call, CarriedRoute, Parts, Place, Reply, messages};
use super::{PATIENCE, Via};
use crate::plant::{self, Bug};

/// Who serves the target says at least so often that it is there.
const SILENCE: Duration = Duration::from_secs(10);

/// How long closing may take.
const CLOSE: Duration = Duration::from_secs(5);

pub(super) struct CarriedSink {
    flow: FlowName,
    target: Option<Identity>,
    routes: Vec<CarriedRoute>,
    publisher: Publisher,
    /// Nothing once nobody has answered.
    receiver: Option<Receiver>,
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
            receiver: Some(Receiver::open(broker, &ways.caller, Arc::clone(&via.clock)).await?),
            parts: Parts::default(),
            place: Place { session: via.ids.next().simple().to_string().into(), number: 0 },
            via: via.clone(),
        })
    }

    fn silence(&self) -> Error {
        Error::new(code::TIMED_OUT, "nobody answers at the target's end of the broker")
            .with("broker", self.via.broker.location())
            .hint("tidegate migrate run --role target")
    }

    /// Leaves the replies to whoever opens the target next. A member that is dropped keeps them until its lease is over; then they
    /// would go to the one that was given up after it, and so on: nobody who still waits would ever have them.
    async fn leave(&mut self) {
        let Some(receiver) = self.receiver.take() else { return };
        if let Err(error) = receiver.close(CLOSE).await {
            tracing::debug!(%error, "the replies are left when the lease is over");
        }
    }

    /// Has a call done.
    async fn call(&mut self, call: Call) -> Result<Reply> {
        self.place.number += 1;
        let size = self.via.broker.capabilities().message_bytes_max;
        let parts = messages(CALL, &self.flow, &self.place, "0", call.encode()?, size)?;
        self.publisher.publish(&parts).await?;
        loop {
            let Some(receiver) = &mut self.receiver else { return Err(self.silence()) };
            let Some(delivery) = receiver.next(SILENCE).await? else {
                self.leave().await;
                return Err(self.silence());
            };
            let whole = self.parts.take(delivery)?;
            receiver.settle(&self.parts.tokens()).await?;
            // What is left of an earlier session, or comes twice, answers nothing.
            let Some(whole) = whole.filter(|whole| whole.place == self.place || plant::is(Bug::AnyReply))
            else {
                continue;
            };
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
        match self.receiver {
            Some(receiver) => receiver.close(CLOSE).await,
            None => Ok(()),
        }
    }
}
