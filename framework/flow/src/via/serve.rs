//! The target's end: does what calls ask.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Batch, Checkpoint, Commit, Identity, Opened, Route, Sink, Store};
use tidegate_core::{Error, FlowName, Result, Shape};
use tidegate_runtime::{Publisher, Receiver};
use tokio_util::sync::CancellationToken;

use super::wire::{Call, CarriedRoute, Parts, Place, REPLY, Reply, Whole, messages};
use super::{PATIENCE, Via};
use crate::plant::{self, Bug};
use crate::transform::MadeCodec;

/// How often it is said that a call is being worked on.
const WORKING: Duration = Duration::from_secs(2);

/// How long is waited for a call before looking whether to stop.
const LOOK: Duration = Duration::from_millis(200);

/// How long to wait when the broker broke.
const PAUSE: Duration = Duration::from_secs(1);

/// How long closing may take.
const CLOSE: Duration = Duration::from_secs(5);

/// Writes to the target what comes through the broker, until it is told to stop. A call that is being done is
/// finished first.
///
/// # Errors
/// What the broker refuses for good. What the target refuses is told the other end.
pub async fn serve(
    flow: &FlowName,
    target: &Arc<dyn Store>,
    via: &Via,
    stop: &CancellationToken,
) -> Result<()> {
    while !stop.is_cancelled() {
        match Server::open(flow, target, via).await {
            Ok(server) => match server.run(stop).await {
                Ok(()) => return Ok(()),
                Err(error) if error.verdict() == Verdict::Never => return Err(error),
                Err(error) => tracing::warn!(%error, "the broker broke; it is opened again"),
            },
            Err(error) if error.verdict() == Verdict::Never => return Err(error),
            Err(error) => tracing::warn!(%error, "the broker cannot be opened; it is tried again"),
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = via.clock.sleep(PAUSE) => {}
        }
    }
    Ok(())
}

/// A session that was opened, and how far it is.
struct Session {
    /// The call that opened it.
    opened_by: Place,
    /// Its own name and the last call done. The name is given here, at every opening: were it the caller's, calls of an
    /// earlier runner that come late, its opening first, would be done again.
    place: Place,
    sink: Box<dyn Sink>,
    /// What was answered last, should it be asked again.
    last: Reply,
}

impl Session {
    fn has_done(&self, place: &Place) -> bool {
        self.opened_by == *place || self.place.session == place.session && place.number <= self.place.number
    }

    fn is_next(&self, place: &Place) -> bool {
        self.place.session == place.session && place.number == self.place.number + 1
    }
}

struct Server<'a> {
    flow: &'a FlowName,
    target: &'a Arc<dyn Store>,
    via: &'a Via,
    publisher: Publisher,
    receiver: Receiver,
    session: Option<Session>,
    /// Its own name and how much it has said: they tell apart the replies to one call. It may have been answered before, by a
    /// server that is gone.
    id: String,
    said: u64,
}

impl<'a> Server<'a> {
    async fn open(flow: &'a FlowName, target: &'a Arc<dyn Store>, via: &'a Via) -> Result<Self> {
        let ways = via.prepare(flow).await?;
        let broker = via.broker.as_ref();
        Ok(Self {
            flow,
            target,
            via,
            publisher: Publisher::open(broker, &ways.replies)
                .with_clock(Arc::clone(&via.clock))
                .with_patience(PATIENCE)
                .await?,
            receiver: Receiver::open(broker, &ways.callee, Arc::clone(&via.clock)).await?,
            session: None,
            id: via.ids.next().simple().to_string(),
            said: 0,
        })
    }

    async fn run(mut self, stop: &CancellationToken) -> Result<()> {
        let mut parts = Parts::default();
        while !stop.is_cancelled() {
            let Some(delivery) = self.receiver.next(LOOK).await? else { continue };
            if let Some(whole) = parts.take(delivery)? {
                self.answer(whole).await?;
                // Only now: if this process is killed before, the call comes again, and who asked is told.
                self.receiver.settle(&parts.tokens()).await?;
            }
        }
        self.publisher.close(CLOSE).await?;
        self.receiver.close(CLOSE).await
    }

    async fn answer(&mut self, Whole { place, body }: Whole) -> Result<()> {
        if self.session.as_ref().is_some_and(|session| session.has_done(&place)) {
            return self.answer_again(&place).await;
        }
        let is_next = self.session.as_ref().is_some_and(|session| session.is_next(&place))
            || plant::is(Bug::AnySession);
        let reply = match Call::decode(body)? {
            Call::Open { target, routes, first } => {
                return self.open_session(place, target, &routes, &first).await;
            }
            Call::Apply { batch, commit } if is_next => self.apply(&place, &batch, commit.as_ref()).await?,
            Call::Close if is_next => match self.session.take() {
                None => Reply::Unknown,
                Some(Session { sink, .. }) => {
                    said(self.while_working(&place, sink.close()).await?.map(|()| Reply::Closed))
                }
            },
            // Of another session, or one before it is missing: the source's end begins anew.
            Call::Apply { .. } | Call::Close => Reply::Unknown,
        };
        self.tell(&place, &reply).await
    }

    /// A call came again: its effect is there.
    async fn answer_again(&mut self, place: &Place) -> Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        if session.place == *place || session.opened_by == *place && session.place.number == place.number {
            self.tell(place, &session.last).await?;
        }
        self.session = Some(session);
        Ok(())
    }

    async fn open_session(
        &mut self,
        place: Place,
        expected: Option<Identity>,
        routes: &[CarriedRoute],
        first: &Checkpoint,
    ) -> Result<()> {
        // Whoever opened the target before is fenced off by this anyway.
        self.session = None;
        let opening = async {
            check_target(self.target.as_ref(), expected).await?;
            open(self.flow, self.target, self.via, routes, first).await
        };
        match self.while_working(&place, opening).await? {
            Err(error) => self.tell(&place, &Reply::Failed(error)).await,
            Ok((sink, opened)) => {
                let session = self.via.ids.next().simple().to_string();
                let last = Reply::Opened { opened, session: session.clone() };
                self.tell(&place, &last).await?;
                let number = place.number;
                self.session = Some(Session {
                    opened_by: place,
                    place: Place { session: session.into(), number },
                    sink,
                    last,
                });
                Ok(())
            }
        }
    }

    /// Gives the answer, and keeps it: the session is as far as that.
    async fn apply(&mut self, place: &Place, batch: &Batch, commit: Option<&Commit>) -> Result<Reply> {
        let Some(mut session) = self.session.take() else { return Ok(Reply::Unknown) };
        let done = self.while_working(place, session.sink.apply(batch, commit)).await?;
        session.place = place.clone();
        session.last = said(done.map(Reply::Applied));
        let reply = session.last.clone();
        self.session = Some(session);
        Ok(reply)
    }

    /// Does something, and says now and then that it goes on.
    async fn while_working<T>(
        &mut self,
        place: &Place,
        work: impl Future<Output = Result<T>>,
    ) -> Result<Result<T>> {
        let mut work = std::pin::pin!(work);
        let clock = Arc::clone(&self.via.clock);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = clock.sleep(WORKING) => self.tell(place, &Reply::Working).await?,
            }
        }
    }

    async fn tell(&mut self, place: &Place, reply: &Reply) -> Result<()> {
        self.said += 1;
        let serial = format!("{}-{}", self.id, self.said);
        let size = self.via.broker.capabilities().message_bytes_max;
        let parts = messages(REPLY, self.flow, place, &serial, reply.encode()?, size)?;
        self.publisher.publish(&parts).await
    }
}

fn said(reply: Result<Reply>) -> Reply {
    reply.unwrap_or_else(Reply::Failed)
}

/// What the source's end knows of the target, its rows and records, is of this one.
async fn check_target(target: &dyn Store, expected: Option<Identity>) -> Result<()> {
    let own = identity(target).await;
    if let (Some(own), Some(expected)) = (own, expected)
        && own != expected
    {
        return Err(Error::new(
            code::CONFIG_INVALID,
            "the two ends of the broker have different targets; nothing was written",
        )
        .hint("give both the same --to")
        .with("target", target.location()));
    }
    Ok(())
}

/// Who a target is; nothing where it cannot tell, or is not there yet.
pub(super) async fn identity(target: &dyn Store) -> Option<Identity> {
    target.catalog().await.ok()?.identity().await.ok()
}

async fn open(
    flow: &FlowName,
    target: &Arc<dyn Store>,
    via: &Via,
    routes: &[CarriedRoute],
    first: &Checkpoint,
) -> Result<(Box<dyn Sink>, Opened)> {
    let route = |route: &CarriedRoute| {
        let codec =
            via.codecs.iter().find(|codec| codec.encoding().0 == route.encoding).ok_or_else(|| {
                Error::new(
                    code::CAPABILITY_MISSING,
                    format!("rows come in the encoding {:?}, which this program cannot read", route.encoding),
                )
                .with("table", &route.target.name)
                .hint("both ends have to be built with the same stores and their encodings (Registry::add_codec)")
            })?;
        let mut codec = Arc::clone(codec);
        if !route.computed.is_empty() {
            codec = Arc::new(MadeCodec::new(codec, &route.computed));
        }
        let shape = Shape { table: Arc::new(route.source.clone()), codec };
        Ok(Route { shape, target: Arc::new(route.target.clone()) })
    };
    let routes = routes.iter().map(route).collect::<Result<Vec<_>>>()?;
    let mut sink = target.sink(flow, &routes).await?;
    let opened = sink.open(first).await?;
    Ok((sink, opened))
}
