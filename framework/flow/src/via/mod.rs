//! The way to the target through a broker, so that reading and writing may be two processes.
//!
//! ```text
//!   engine ──▶ CarriedSink ──calls──▶ tidegate.NAME.calls ──▶ serve ──▶ the target's sink
//!                   ▲                                            │
//!                   └──────────── tidegate.NAME.replies ◀────────┘
//! ```
//!
//! The engine does not know of it: a [`Carried`] store is the target's in all but its sink, and that sink has each
//! call done by whoever serves the target. A call returns when its effect is there. So the one checkpoint stays the
//! target's, the source is told to forget only what is in the target, and a broker that loses messages costs time
//! and never a row: a call without a reply ends the run, and the next one goes on from the checkpoint.
//!
//! Each opening of the target is a session, which whoever serves the target names, and the calls of a session are
//! numbered. What comes from another session than the last one opened is not done; a number that was done already is
//! answered again and not done again. A message that the broker stored once more, and delivers when a later session is
//! under way, can open the target again, which ends the later session, and can write nothing: its name is of the past.

mod serve;
mod sink;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::port::{
    Broker, Catalog, ChangeFeed, Crawler, Examiner, Identity, Route, Sink, StateStore, Store,
};
use tidegate_core::{
    Apply, Channel, Clock, Codec, FlowName, Ids, Position, Result, Subscription, Table, Topology,
};

pub use serve::serve;
use sink::{CarriedSink, Kept};

/// How long a broker may refuse before a run is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// A broker on the way, and what both ends of it have to agree on.
#[derive(Clone, Debug)]
pub struct Via {
    /// The broker.
    pub broker: Arc<dyn Broker>,
    /// The encodings that the target's end reads. Rows in another one are refused.
    pub codecs: Vec<Arc<dyn Codec>>,
    /// Its clock.
    pub clock: Arc<dyn Clock>,
    /// Names of sessions, and of whoever serves.
    pub ids: Arc<dyn Ids>,
}

impl Via {
    /// Makes the channels and their subscriptions, as often as it is called.
    async fn prepare(&self, flow: &FlowName) -> Result<Ways> {
        let ways = Ways::new(flow)?;
        let topology = Topology {
            channels: vec![ways.calls.clone(), ways.replies.clone()],
            subscriptions: vec![ways.callee.clone(), ways.caller.clone()],
        };
        self.broker.apply(&topology, Apply::Create).await?;
        Ok(ways)
    }

    /// Ends the subscriptions of a flow; what nobody has taken goes with them.
    ///
    /// # Errors
    /// As [`Broker::unregister`].
    pub async fn forget(&self, flow: &FlowName) -> Result<()> {
        let ways = self.prepare(flow).await?;
        self.broker.unregister(&ways.callee).await?;
        self.broker.unregister(&ways.caller).await
    }
}

/// The channels of a flow. They have one lane each: calls are done in their order.
#[derive(Debug)]
struct Ways {
    calls: Channel,
    replies: Channel,
    callee: Subscription,
    caller: Subscription,
}

impl Ways {
    fn new(flow: &FlowName) -> Result<Self> {
        let calls = Channel::new(format!("tidegate.{flow}.calls"))?.with_lanes(1);
        let replies = Channel::new(format!("tidegate.{flow}.replies"))?.with_lanes(1);
        let callee = Subscription::new(&calls, "target")?;
        let caller = Subscription::new(&replies, "source")?;
        Ok(Self { calls, replies, callee, caller })
    }
}

/// A target whose sink is at the other end of a broker.
#[derive(Debug)]
pub struct Carried {
    target: Arc<dyn Store>,
    via: Via,
    replies: Kept,
}

impl Carried {
    /// A target that is written through a broker, by whoever runs [`serve`] there.
    pub fn new(target: Arc<dyn Store>, via: Via) -> Self {
        Self { target, via, replies: Kept::default() }
    }
}

#[async_trait]
impl Store for Carried {
    fn location(&self) -> String {
        format!("{} via {}", self.target.location(), self.via.broker.location())
    }

    async fn catalog(&self) -> Result<Arc<dyn Catalog>> {
        self.target.catalog().await
    }

    async fn crawler(&self) -> Result<Box<dyn Crawler>> {
        self.target.crawler().await
    }

    async fn change_feed(
        &self,
        flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Box<dyn ChangeFeed>> {
        self.target.change_feed(flow, tables, source, from).await
    }

    async fn sink(&self, flow: &FlowName, routes: &[Route]) -> Result<Box<dyn Sink>> {
        Ok(Box::new(CarriedSink::open(&self.via, flow, self.target.as_ref(), routes, &self.replies).await?))
    }

    async fn examiner(&self) -> Result<Arc<dyn Examiner>> {
        self.target.examiner().await
    }

    async fn state(&self) -> Result<Arc<dyn StateStore>> {
        self.target.state().await
    }
}
