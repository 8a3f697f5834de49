//! The documents of one channel: a topic of one partition, in which whoever writes says what it expects.
//!
//! Kafka compares nothing and sets nothing. But it puts what several send in one order, which all of them read; and from
//! that order follows who of two was the first. So a document is written by sending what it is to be and what it is
//! expected to be, and reading on until that comes by.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _, PurgeConfig};
use rdkafka::{Offset, TopicPartitionList};
use tidegate_broker::log::Document;
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Error, Name, Result, Scope};
use tokio::sync::{Notify, oneshot};

use crate::error::{Heard, from_driver};
use crate::link::{Client, Link};
use crate::record::{Expected, Record, State};
use crate::topics;

/// How many records, and bytes of them, stand behind a snapshot before there is another one. Some programs wait longer
/// than others, so that one of them does it.
const SNAPSHOT: (i64, usize) = (5_000, 32 << 20);
/// How long to wait before the topic is read anew.
const PAUSE: Duration = Duration::from_millis(50);

pub(crate) type Writer = Client<FutureProducer<Heard>>;

/// The documents of a channel.
pub(crate) struct Ledger {
    link: Arc<Link>,
    topic: String,
    inner: Mutex<Inner>,
    /// More was read.
    changed: Notify,
    /// One looks for the end of the topic, for all who have asked until then.
    looking: tokio::sync::Mutex<Looked>,
    /// How many have asked.
    asked: AtomicU64,
    tasks: Mutex<Scope>,
    records_max: i64,
}

/// How many had asked when the end of the topic was looked for last, and where it was.
#[derive(Default)]
struct Looked {
    of: u64,
    end: i64,
}

struct Inner {
    state: State,
    /// Who waits for how a writing ends.
    waiting: HashMap<u64, oneshot::Sender<Option<u64>>>,
    writer: Option<Arc<Writer>>,
    /// The topic is not there any more.
    is_gone: bool,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ledger").field(&self.topic).finish()
    }
}

impl Ledger {
    /// Begins to read the documents of a channel whose topic is there.
    pub(crate) fn open(link: Arc<Link>, channel: &Name) -> Arc<Self> {
        Self::with(link, channel, SNAPSHOT.0 + fastrand::i64(0..SNAPSHOT.0))
    }

    fn with(link: Arc<Link>, channel: &Name, records_max: i64) -> Arc<Self> {
        let inner = Inner { state: State::new(0), waiting: HashMap::new(), writer: None, is_gone: false };
        let ledger = Arc::new(Self {
            link,
            topic: topics::documents(channel),
            inner: Mutex::new(inner),
            changed: Notify::new(),
            looking: tokio::sync::Mutex::default(),
            asked: AtomicU64::new(0),
            tasks: Mutex::default(),
            records_max,
        });
        ledger.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(follow(Arc::downgrade(&ledger)));
        ledger
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its topic was deleted.
    pub(crate) fn is_gone(&self) -> bool {
        self.lock().is_gone
    }

    /// A document, as it is there now.
    pub(crate) async fn document(&self, name: &str) -> Result<Option<Document>> {
        let end = self.end().await?;
        let read = async {
            loop {
                let changed = self.changed.notified();
                {
                    let inner = self.lock();
                    if inner.is_gone {
                        return None;
                    }
                    // In one look: what was read up to there may be forgotten in the next moment, to be read anew.
                    if let Some(found) = inner.state.document(name, end) {
                        return found.cloned();
                    }
                }
                changed.await;
            }
        };
        tokio::select! {
            found = read => Ok(found),
            () = self.link.clock.sleep(self.link.config.access.timeout) => {
                let error = Error::new(code::TIMED_OUT, "the documents of a channel cannot be read in time");
                Err(error.with("topic", &self.topic).verdict_is(Verdict::Retry))
            }
        }
    }

    /// Where the topic ends now.
    async fn end(&self) -> Result<i64> {
        let mine = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut looked = self.looking.lock().await;
        if looked.of >= mine {
            return Ok(looked.end);
        }
        let of = self.asked.load(Ordering::Acquire);
        let end = match self.link.offsets(&self.topic, 1, Offset::End).await {
            Ok(end) => end.first().copied().flatten().unwrap_or(0),
            Err(error) if is_gone(&self.link, &self.topic, &error).await => {
                self.lock().is_gone = true;
                0
            }
            Err(error) => return Err(error),
        };
        *looked = Looked { of, end };
        Ok(end)
    }

    /// Writes a document, or removes it, if it is what is expected: the revision, or `None` if it was something else.
    pub(crate) async fn write(
        &self,
        name: &str,
        value: Option<Bytes>,
        expected: Expected,
    ) -> Result<Option<u64>> {
        let by = fastrand::u64(..);
        let (tell, mut told) = oneshot::channel();
        let writer = {
            let mut inner = self.lock();
            // What was something else later never is that again.
            if let Expected::Revision(revision) = expected
                && inner.state.is_whole()
                && inner.state.next.cast_unsigned() >= revision
                && !inner.state.is_expected(name, expected)
            {
                return Ok(None);
            }
            inner.waiting.insert(by, tell);
            self.writer(&mut inner)?
        };
        let waiting = Waiting { ledger: self, by };
        let record = Record::Write { name: name.to_owned(), value, expected, by };
        let failed = async {
            match self.send(&writer, &record).await {
                Ok(()) => std::future::pending().await,
                Err(error) => error,
            }
        };
        let written = tokio::select! {
            biased;
            told = &mut told => told.map_err(|_| Error::new(code::STOPPED, "the broker was closed")),
            error = failed => Err(error),
            () = self.link.clock.sleep(self.link.config.access.timeout) => {
                Err(Error::new(code::TIMED_OUT, "a document could not be written in time"))
            }
        };
        drop(waiting);
        if let Err(error) = &written
            && error.verdict() == Verdict::Unknown
        {
            // What was sent is not to be stored when nobody waits for it any more.
            writer.purge(PurgeConfig::default().queue().inflight());
            let mut inner = self.lock();
            inner.writer.take_if(|known| Arc::ptr_eq(known, &writer));
        }
        if written.is_ok() {
            self.shorten(writer);
        }
        written
    }

    fn writer(&self, inner: &mut Inner) -> Result<Arc<Writer>> {
        Ok(match &inner.writer {
            Some(writer) => Arc::clone(writer),
            None => {
                let mut config = self.link.config.writer();
                config.set("compression.type", "lz4").set("message.max.bytes", topics::RECORD_BYTES_MAX);
                Arc::clone(inner.writer.insert(Arc::new(self.link.make(&config)?)))
            }
        })
    }

    async fn send(&self, writer: &Writer, record: &Record) -> Result<()> {
        const WHAT: &str = "write a document";
        let (key, value, headers) = record.encode();
        let mut sent = FutureRecord::to(&self.topic).partition(0).key(key).headers(headers);
        sent.payload = value.as_deref();
        let sent = writer.send_result(sent);
        // What the library does not take is not sent.
        let sent = sent.map_err(|(error, _)| from_driver(error, WHAT).verdict_is(Verdict::Retry))?;
        match sent.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((error, _))) => Err(from_driver(error, WHAT)),
            Err(_) => Err(Error::new(code::CONNECTION_LOST, "the client ended")),
        }
    }

    /// Writes a snapshot if there is much behind the last one, and removes what stands before it.
    fn shorten(&self, writer: Arc<Writer>) {
        let due = self.lock().state.snapshot_after(self.records_max, SNAPSHOT.1);
        let Some(record @ Record::Snapshot { before, .. }) = due else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.reap();
        let (link, topic) = (Arc::clone(&self.link), self.topic.clone());
        // Until it is read again, the next writing would do the same.
        self.lock().state.hold_snapshots(before);
        let (key, value, headers) = record.encode();
        let mut sent = FutureRecord::to(&topic).partition(0).key(key).headers(headers);
        sent.payload = value.as_deref();
        let Ok(sent) = writer.send_result(sent) else { return };
        tasks.spawn(async move {
            let Ok(Ok(_)) = sent.await else { return Ok(()) };
            let mut upto = TopicPartitionList::new();
            if upto.add_partition_offset(&topic, 0, Offset::Offset(before)).is_ok()
                && let Err(error) = link.admin.delete_records(&upto, &link.options()).await
            {
                tracing::debug!(%error, topic, "old documents cannot be removed now");
            }
            drop(writer);
            Ok(())
        });
    }
}

/// Somebody who waits for a writing.
struct Waiting<'a> {
    ledger: &'a Ledger,
    by: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.ledger.lock().waiting.remove(&self.by);
    }
}

/// Reads the topic for as long as somebody has its ledger.
async fn follow(ledger: Weak<Ledger>) -> Result<()> {
    while let Some(here) = ledger.upgrade() {
        let (link, topic) = (Arc::clone(&here.link), here.topic.clone());
        drop(here);
        let read = read(&ledger, &link, &topic).await;
        let Some(here) = ledger.upgrade() else { break };
        if let Err(error) = read {
            tracing::debug!(%error, topic, "documents cannot be read now");
            if is_gone(&link, &topic, &error).await {
                here.lock().is_gone = true;
                here.changed.notify_waiters();
                break;
            }
        }
        link.clock.sleep(PAUSE).await;
    }
    Ok(())
}

/// Whether an error means that the topic was deleted, and not that a server has not heard of it yet.
async fn is_gone(link: &Arc<Link>, topic: &str, error: &Error) -> bool {
    error.code() == code::CHANNEL_MISSING && matches!(link.partitions(topic).await, Ok(None))
}

/// Reads the topic from its beginning.
async fn read(ledger: &Weak<Ledger>, link: &Arc<Link>, topic: &str) -> Result<()> {
    let first = link.offsets(topic, 1, Offset::Beginning).await?.first().copied().flatten().unwrap_or(0);
    let mut config = link.config.reader();
    config.set("fetch.wait.max.ms", "500");
    let consumer: Client<StreamConsumer<Heard>> = link.make(&config)?;
    let mut place = TopicPartitionList::new();
    let failed = |error| from_driver(error, "read documents");
    place.add_partition_offset(topic, 0, Offset::Offset(first)).map_err(failed)?;
    consumer.assign(&place).map_err(failed)?;
    {
        let Some(here) = ledger.upgrade() else { return Ok(()) };
        here.lock().state = State::new(first);
    }
    loop {
        let record = match consumer.recv().await {
            Ok(record) => record,
            Err(KafkaError::PartitionEOF(_)) => continue,
            // Others have removed what is not read yet, or the topic.
            Err(KafkaError::MessageConsumption(
                error @ (RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopicId),
            )) => {
                return Err(failed(KafkaError::MessageConsumption(error)).verdict_is(Verdict::Retry));
            }
            Err(error) => {
                tracing::debug!(%error, topic, "documents cannot be read now");
                continue;
            }
        };
        let Some(here) = ledger.upgrade() else { return Ok(()) };
        let decoded = Record::decode(&record)
            .inspect_err(|error| tracing::warn!(%error, "somebody else writes where documents are kept"));
        let mut inner = here.lock();
        for verdict in inner.state.take(record.offset(), decoded.ok()) {
            if let Some(tell) = inner.waiting.remove(&verdict.by) {
                // Whoever has gone away does not know.
                let _ = tell.send(verdict.revision);
            }
        }
        drop(inner);
        here.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use rdkafka::mocking::MockCluster;
    use tidegate_core::{Channel, Endpoint};
    use tidegate_services::broker::{Broker, shared};

    use super::*;
    use crate::config::Config;

    /// Several programs count in one document, each number once, while what is old is removed under them.
    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_writes_over_what_was_not_read() {
        const EACH: u64 = 60;
        let Some(server) = shared(Broker::Kafka).await else { return };
        let channel = Channel::new(server.name("counted")).unwrap().with_lanes(1);
        let link =
            || Arc::new(Link::new(Config::of(&Endpoint::parse(&server.url()).unwrap()).unwrap()).unwrap());
        let first = link();
        topics::create(&first, &channel).await.unwrap();
        let mut programs = Scope::new();
        for _ in 0..3 {
            let ledger = Ledger::with(link(), &channel.name, 20);
            programs.spawn(async move {
                let mut written = 0;
                while written < EACH {
                    let (count, expected) = match ledger.document("count").await? {
                        Some(Document { value, revision }) => (
                            String::from_utf8_lossy(&value).parse().unwrap_or(0),
                            Expected::Revision(revision),
                        ),
                        None => (0_u64, Expected::Nothing),
                    };
                    let next = Bytes::from((count + 1).to_string());
                    written += u64::from(ledger.write("count", Some(next), expected).await?.is_some());
                }
                Ok(())
            });
        }
        programs.join().await.unwrap();
        let late = Ledger::open(link(), &channel.name);
        let count = late.document("count").await.unwrap().unwrap();
        assert_eq!(count.value, (3 * EACH).to_string());
        let begin = first.offsets(&topics::documents(&channel.name), 1, Offset::Beginning).await.unwrap();
        assert!(begin[0].unwrap() > 0, "nothing old was removed");
        assert!(late.write("count", None, Expected::Anything).await.unwrap().is_some());
        assert!(late.document("count").await.unwrap().is_none());
    }

    /// Whoever has to begin anew, since others have removed what it had not read, knows of no document for a while. Here it begins
    /// anew all the time.
    #[tokio::test(flavor = "multi_thread")]
    async fn no_document_is_missing_while_the_topic_is_read_anew() {
        let (cluster, name) = (MockCluster::new(1).unwrap(), Name::new("orders").unwrap());
        cluster.create_topic(&topics::documents(&name), 1, 1).unwrap();
        let endpoint = Endpoint::parse(&format!("kafka://{}", cluster.bootstrap_servers())).unwrap();
        let ledger = Ledger::open(Arc::new(Link::new(Config::of(&endpoint).unwrap()).unwrap()), &name);
        let value = Some(Bytes::from_static(b"1"));
        let written = ledger.write("count", value.clone(), Expected::Nothing).await.unwrap();
        assert_eq!(written, Some(1));
        let record = Record::Write { name: "count".to_owned(), value, expected: Expected::Nothing, by: 7 };
        let is_over = Arc::new(AtomicBool::new(false));
        let again = std::thread::spawn({
            let (ledger, is_over) = (Arc::clone(&ledger), Arc::clone(&is_over));
            move || {
                while !is_over.load(Ordering::Acquire) {
                    ledger.lock().state = State::new(0);
                    std::thread::sleep(Duration::from_micros(50));
                    ledger.lock().state.take(0, Some(record.clone()));
                    ledger.changed.notify_waiters();
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        });
        let mut missing = 0;
        for _ in 0..50 {
            // One looks for the end for all of them; until the last one has its turn, it began anew.
            let asked = futures::future::join_all((0..1_000).map(|_| ledger.document("count"))).await;
            missing += asked.into_iter().filter(|found| found.as_ref().unwrap().is_none()).count();
        }
        is_over.store(true, Ordering::Release);
        again.join().unwrap();
        assert_eq!(missing, 0, "of 50,000");
    }
}
