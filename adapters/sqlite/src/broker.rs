//! The embedded broker: channels in a file, for several processes of one machine.
//!
//! - `schema`: the tables
//! - `writer`: the one task of a process that writes, many callers in one transaction
//! - `topology`, `membership`: channels and subscriptions, and who has which lane
//! - `publish`, `read`, `hand`, `retain`: messages come, are read, are taken in hand and settled, and go

pub(crate) mod hand;
pub(crate) mod membership;
pub(crate) mod publish;
pub(crate) mod read;
pub(crate) mod retain;
mod schema;
pub(crate) mod topology;
pub(crate) mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection as _, SqliteConnection};
use tidegate_broker::seats::Member;
use tidegate_core::error::code;
use tidegate_core::port::{Broker, Browse, Consumer, Effective, Leftover, Producer};
use tidegate_core::{
    Apply, Capabilities, Channel, Clock, Difference, Endpoint, Error, How, LossCase, LossEvent, Name, Result,
    Scope, Start, Subscription, SystemClock, Topology,
};
use tokio::sync::{Notify, OnceCell, mpsc};

use crate::browse::SqliteBrowse;
use crate::connect;
use crate::consumer::{Shared, SqliteConsumer};
use crate::error::During;
use crate::producer::SqliteProducer;
use membership::Leave;
use retain::Sweep;
use topology::{ApplyTopology, Join, Removed, Unregister};
use writer::{Erased, JOBS_MAX, Job, Writer, micros, never_answered, pending, unsigned};

pub(crate) static CAPABILITIES: Capabilities = Capabilities {
    confirm: "committed to the file and synchronised with the disk",
    order_by_key: How::Native,
    competing_consumers: How::Native,
    durable_subscriptions: How::Native,
    unregister: How::Native,
    replay: How::Native,
    dedupe: How::Native,
    retry_later: How::Native,
    dead_letter: How::No("publish to a channel of dead letters, then settle"),
    delivery_count: How::Native,
    lock_extend: How::Native,
    listing: How::Native,
    browsing: How::Native,
    processes: How::Native,
    message_bytes_max: 16 << 20,
    consumers_per_lane_max: 1,
    loss: &[LossCase {
        when: LossEvent::FailedOver,
        text: "the disk is lost: there is one copy",
        avoid: "use a broker that replicates",
    }],
};

/// What a URL may say beside the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// How long a member that is not heard of keeps its lanes.
    pub(crate) lease: Duration,
    /// How long a consumer that is asked for a lane may finish what it has in hand.
    pub(crate) grace: Duration,
    /// How long publishing waits for room.
    pub(crate) patience: Duration,
}

impl Settings {
    fn of(endpoint: &Endpoint) -> Result<Self> {
        let mut settings = Self {
            lease: Duration::from_secs(10),
            grace: Duration::from_secs(5),
            patience: Duration::from_secs(10),
        };
        let Some((_, query)) = endpoint.expose().split_once('?') else { return Ok(settings) };
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let time = value.parse().map(Duration::from_millis);
            let unknown = || {
                Error::new(code::URL_INVALID, format!("a sqlite broker has no setting {name}={value}"))
                    .hint("lease_ms, grace_ms and patience_ms are numbers of milliseconds")
            };
            match (name, time) {
                ("lease_ms", Ok(time)) if !time.is_zero() => settings.lease = time,
                ("grace_ms", Ok(time)) => settings.grace = time,
                ("patience_ms", Ok(time)) => settings.patience = time,
                _ => return Err(unknown()),
            }
        }
        Ok(settings)
    }
}

/// A broker in a file.
#[derive(Debug)]
pub struct SqliteBroker {
    path: PathBuf,
    location: String,
    settings: Settings,
    clock: Arc<dyn Clock>,
    link: OnceCell<Arc<Link>>,
    is_closing: AtomicBool,
}

/// What the producers and consumers of a broker share: the way to the task that writes.
pub(crate) struct Link {
    pub(crate) path: PathBuf,
    /// Which file it was when it was opened.
    number: u64,
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<dyn Clock>,
    /// Something was committed by this process.
    pub(crate) changed: Arc<Notify>,
    /// Something was settled by this process: there may be room.
    pub(crate) settled: Notify,
    members: Arc<Mutex<BTreeMap<Member, Arc<Shared>>>>,
    jobs: Mutex<Option<mpsc::Sender<Box<dyn Erased>>>>,
    writer: Mutex<Option<Scope>>,
    is_closing: AtomicBool,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("path", &self.path).finish_non_exhaustive()
    }
}

fn closed() -> Error {
    Error::new(code::STOPPED, "the broker is being closed")
}

impl Link {
    async fn open(path: &Path, settings: Settings, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let mut connection = connect::creator(path).await?;
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode = wal")
            .fetch_one(&mut connection)
            .await
            .during("set the journal mode")?;
        if mode != "wal" {
            return Err(Error::new(
                code::JOURNAL_MODE,
                format!("the file's journal mode is {mode}, not wal"),
            ));
        }
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.during("begin to open the broker")?;
        schema::create(&mut tx).await?;
        tx.commit().await.during("commit the broker's tables")?;
        let (sender, jobs) = mpsc::channel(JOBS_MAX);
        let (changed, members) = (Arc::new(Notify::new()), Arc::default());
        let writer = Writer {
            path: path.to_owned(),
            connection,
            jobs,
            changed: Arc::clone(&changed),
            clock: Arc::clone(&clock),
            members: Arc::clone(&members),
            lease: settings.lease,
        };
        let mut scope = Scope::new();
        scope.spawn(writer.work());
        Ok(Arc::new(Self {
            path: path.to_owned(),
            number: connect::file_number(path)?.ok_or_else(|| connect::missing(path))?,
            settings,
            clock,
            changed,
            settled: Notify::new(),
            members,
            jobs: Mutex::new(Some(sender)),
            writer: Mutex::new(Some(scope)),
            is_closing: AtomicBool::new(false),
        }))
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closing() { Err(closed()) } else { Ok(()) }
    }

    /// # Errors
    /// `broker-replaced` if the file was removed, or another one is in its place: what is open is nobody else's.
    pub(crate) fn check_file(&self) -> Result<()> {
        if connect::file_number(&self.path)? == Some(self.number) {
            return Ok(());
        }
        Err(Error::new(
            code::BROKER_REPLACED,
            "the broker's file was removed, or another one put in its place",
        )
        .with("file", self.path.display())
        .hint("stop everybody who uses it, and start again"))
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<Member, Arc<Shared>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sender(&self) -> Result<mpsc::Sender<Box<dyn Erased>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(closed)
    }

    /// A place in the queue of jobs, so that something can be decided and asked for in one piece.
    pub(crate) async fn reserve(&self) -> Result<mpsc::OwnedPermit<Box<dyn Erased>>> {
        self.check_file()?;
        self.sender()?.reserve_owned().await.map_err(|_| never_answered())
    }

    /// Has a job done. A caller that goes away does not keep it from being done.
    pub(crate) async fn ask<J: Job>(&self, job: J) -> Result<J::Answer> {
        let (job, answer) = pending(job);
        self.reserve().await?.send(job);
        answer.await.unwrap_or_else(|_| Err(never_answered()))
    }

    /// Has a job done if there is room for it, and does not wait.
    pub(crate) fn tell(&self, job: impl Job) {
        if let Ok(sender) = self.sender() {
            // Without room the lease ends by itself, somewhat later.
            let _ = sender.try_send(pending(job).0);
        }
    }

    pub(crate) fn enter(&self, member: Member, shared: &Arc<Shared>) {
        self.members().insert(member, Arc::clone(shared));
    }

    pub(crate) fn leave(&self, member: Member) {
        self.members().remove(&member);
        self.changed.notify_waiters();
    }

    async fn close(&self, deadline: Duration) -> Result<Leftover> {
        self.is_closing.store(true, Ordering::Release);
        self.changed.notify_waiters();
        let until = self.clock.elapsed() + deadline;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let left = until.saturating_sub(self.clock.elapsed());
            if self.members().is_empty() || left.is_zero() {
                break;
            }
            tokio::select! {
                () = changed => {}
                () = self.clock.sleep(left) => {}
            }
        }
        let mut leftover = Leftover::default();
        let members = std::mem::take(&mut *self.members());
        for (me, shared) in members {
            leftover.released += shared.cut_off();
            self.ask(Leave { subscription: shared.subscription, me, tried: false }).await?;
        }
        // The task ends when nobody can ask any more and all is done that was asked for.
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            writer.join().await?;
        }
        Ok(leftover)
    }
}

impl SqliteBroker {
    pub(crate) fn new(endpoint: &Endpoint) -> Result<Self> {
        Ok(Self {
            path: connect::path(endpoint)?,
            location: endpoint.to_string(),
            settings: Settings::of(endpoint)?,
            clock: SystemClock::shared(),
            link: OnceCell::new(),
            is_closing: AtomicBool::new(false),
        })
    }

    async fn link(&self) -> Result<&Arc<Link>> {
        if self.is_closing.load(Ordering::Acquire) {
            return Err(closed());
        }
        let open = || Link::open(&self.path, self.settings, Arc::clone(&self.clock));
        self.link.get_or_try_init(open).await
    }

    async fn reader(&self) -> Result<SqliteConnection> {
        connect::reader(&self.path).await
    }
}

#[async_trait]
impl Broker for SqliteBroker {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    async fn probe(&self) -> Result<Effective> {
        self.link().await?;
        let mut reader = self.reader().await?;
        let version: String = sqlx::query_scalar("SELECT sqlite_version()")
            .fetch_one(&mut reader)
            .await
            .during("ask for the version")?;
        reader.close().await.during("close")?;
        Ok(Effective { version, ..Effective::default() })
    }

    async fn apply(&self, topology: &Topology, mode: Apply) -> Result<Vec<Difference>> {
        topology.channels.iter().try_for_each(Channel::check)?;
        let link = self.link().await?;
        link.ask(ApplyTopology { topology: topology.clone(), mode, now: self.clock.now() }).await
    }

    async fn channel(&self, name: &Name) -> Result<Option<Channel>> {
        self.link().await?;
        let mut reader = self.reader().await?;
        let found = topology::channel(&mut reader, name).await?;
        reader.close().await.during("close")?;
        Ok(found.map(|found| found.channel))
    }

    async fn topology(&self) -> Result<Topology> {
        self.link().await?;
        let mut reader = self.reader().await?;
        let found = topology::all(&mut reader).await?;
        reader.close().await.during("close")?;
        Ok(found)
    }

    async fn browse(&self, channel: &Name, start: &Start) -> Result<Box<dyn Browse>> {
        let link = self.link().await?;
        let mut reader = self.reader().await?;
        let found =
            topology::channel(&mut reader, channel).await?.ok_or_else(|| topology::missing(channel))?;
        let after = topology::place(&mut reader, &found, start).await?;
        Ok(Box::new(SqliteBrowse::new(Arc::clone(link), reader, &found, after)))
    }

    async fn producer(&self, channel: &Channel) -> Result<Box<dyn Producer>> {
        let link = self.link().await?;
        let mut reader = self.reader().await?;
        let found = topology::channel(&mut reader, &channel.name).await?;
        reader.close().await.during("close")?;
        let found = found.ok_or_else(|| topology::missing(&channel.name))?;
        let differs = Difference::between(channel, &found.channel);
        let lanes = |d: &&Difference| matches!(d, Difference::ChannelDiffers { setting: "lanes", .. });
        if let Some(difference) = differs.iter().find(lanes) {
            return Err(difference.error());
        }
        Ok(Box::new(SqliteProducer::new(Arc::clone(link), found.id, channel.name.clone(), channel.lanes)))
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn Consumer>> {
        let link = self.link().await?;
        let reader = self.reader().await?;
        let now = self.clock.now();
        let until = now.saturating_add(micros(self.settings.lease));
        let joined = link.ask(Join { subscription: subscription.clone(), now, until }).await?;
        let shared = Arc::new(Shared::new(joined.subscription));
        link.enter(unsigned(joined.member), &shared);
        Ok(Box::new(SqliteConsumer::new(Arc::clone(link), shared, joined, subscription, reader)))
    }

    async fn unregister(&self, subscription: &Subscription) -> Result<()> {
        let link = self.link().await?;
        let asked = link.ask(Unregister { subscription: subscription.clone() }).await?;
        let Some((channel, subscription)) = asked else { return Ok(()) };
        let mut after = 0;
        while let Some(next) = link.ask(Sweep { channel, after, now: self.clock.now() }).await? {
            after = next;
        }
        link.settled.notify_waiters();
        link.ask(Removed { subscription }).await
    }

    async fn close(&self, deadline: Duration) -> Result<Leftover> {
        self.is_closing.store(true, Ordering::Release);
        match self.link.get() {
            Some(link) => link.close(deadline).await,
            None => Ok(Leftover::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::Message;
    use tidegate_core::error::Verdict;
    use tidegate_core::port::Sent;

    use super::*;
    use crate::statement::sql;

    /// Lets the file have so many pages, as a disk that has no room for more.
    struct Limit(u32);

    #[async_trait]
    impl Job for Limit {
        type Answer = ();

        async fn run(&self, connection: &mut SqliteConnection) -> Result<()> {
            let limit = format!("PRAGMA max_page_count = {}", self.0);
            sqlx::query(sql(limit)).execute(connection).await.during("limit the file")?;
            Ok(())
        }
    }

    /// What SQLite answers without a page is what it answers without a disk. Nothing that was confirmed is lost, and all goes on
    /// when there is room.
    #[tokio::test]
    async fn a_disk_without_room_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.db");
        let broker =
            SqliteBroker::new(&Endpoint::parse(&format!("sqlite:{}", path.display())).unwrap()).unwrap();
        let channel = Channel::new("orders").unwrap();
        let subscription = Subscription::new(&channel, "billing").unwrap();
        broker.apply(&Topology::of(&channel).and(&subscription), Apply::Create).await.unwrap();
        let link = Arc::clone(broker.link().await.unwrap());
        link.ask(Limit(200)).await.unwrap();
        let mut producer = broker.producer(&channel).await.unwrap();
        let (mut stored, mut refused) = (Vec::new(), None);
        for number in 0..200 {
            let message = Message::with_id(number.to_string(), "test", "numbered")
                .with_data("text/plain", "x".repeat(10_000));
            match producer.publish(std::slice::from_ref(&message)).await.remove(0) {
                Sent::Stored { .. } => stored.push(message.id),
                Sent::Refused(error) => {
                    refused = Some(error);
                    break;
                }
                Sent::Unknown(error) => panic!("{error:?}"),
            }
        }
        let refused = refused.expect("200 pages took two million bytes");
        assert_eq!((refused.code(), refused.verdict()), (code::LIMIT_REACHED, Verdict::Retry), "{refused:?}");
        assert_eq!(refused.message(), "the disk is full");
        assert_eq!(refused.hint_text(), Some("make room on the disk of the file"));
        link.ask(Limit(10_000)).await.unwrap();
        let message = Message::with_id("later", "test", "numbered");
        let sent = producer.publish(std::slice::from_ref(&message)).await;
        assert!(sent[0].is_stored(), "{sent:?}");
        stored.push(message.id);
        let mut consumer = broker.subscribe(&subscription).await.unwrap();
        let mut came = Vec::new();
        for _ in 0..100 {
            if came.len() < stored.len() {
                consumer.receive(100, Duration::from_millis(100), &mut came).await.unwrap();
            }
        }
        let mut came: Vec<_> = came.into_iter().map(|delivery| Arc::clone(&delivery.message.id)).collect();
        came.sort();
        stored.sort();
        assert_eq!(came, stored);
    }

    #[test]
    fn settings_come_from_the_url() {
        let broker = |url: &str| SqliteBroker::new(&Endpoint::parse(url).unwrap());
        let settings = broker("sqlite:a.db?lease_ms=1500&patience_ms=0").unwrap().settings;
        assert_eq!((settings.lease, settings.patience), (Duration::from_millis(1_500), Duration::ZERO));
        for url in ["sqlite:a.db?lease_ms=0", "sqlite:a.db?lease=1", "sqlite:a.db?grace_ms=x", "sqlite:"] {
            assert_eq!(broker(url).unwrap_err().code(), code::URL_INVALID, "{url}");
        }
    }
}
