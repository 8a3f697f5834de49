//! Appends messages, a batch at once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::Offset;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _, PurgeConfig};
use tidegate_broker::log::{Appended, Appender};
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Channel, Error, Lane, Message, Result};

use crate::codec::{encode, place};
use crate::error::{Heard, from_driver};
use crate::link::{Client, Link};
use crate::topics;

const WHAT: &str = "append messages";
/// What stands around messages that are sent together, at most.
const FRAME: usize = 1_000;
/// How many bytes of them are sent together.
const BATCH_BYTES: usize = 1_000_000;
/// How long it is believed that the topic is as it was.
const KNOWN_FOR: Duration = Duration::from_secs(1);

pub(crate) struct KafkaAppender {
    link: Arc<Link>,
    channel: Channel,
    /// Its own, so that one producer's batches keep their order, and that all of them can be taken back.
    producer: Client<FutureProducer<Heard>>,
    /// When the topic was looked at, and how many messages it had room for then. Those that were sent since are taken off.
    looked: Option<Duration>,
    room: u64,
    /// A request that was given up may be on its way still: the library forgets it, the server does not.
    unknown: Option<Error>,
}

impl KafkaAppender {
    pub(crate) async fn open(link: Arc<Link>, channel: &Channel) -> Result<Self> {
        // The server refuses all that is sent to a partition together if that is too large: so nothing is sent that is.
        let most = topics::bytes_max(&link, channel).await?.saturating_sub(FRAME).max(FRAME);
        let mut config = link.config.writer();
        config
            .set("message.max.bytes", most.to_string())
            .set("batch.size", most.min(BATCH_BYTES).to_string());
        let producer = link.make(&config)?;
        let mut appender =
            Self { link, channel: channel.clone(), producer, looked: None, room: 0, unknown: None };
        appender.look().await?;
        Ok(appender)
    }

    /// Looks whether the topic is as it was made, and how much room it has.
    async fn look(&mut self) -> Result<()> {
        let (link, channel) = (&self.link, &self.channel);
        topics::verify(link, channel).await?;
        let ends = link.offsets(channel.name.as_str(), channel.lanes, Offset::End).await?;
        let begins = link.offsets(channel.name.as_str(), channel.lanes, Offset::Beginning).await?;
        let count = |(end, begin): (&Option<i64>, &Option<i64>)| end.unwrap_or(0) - begin.unwrap_or(0);
        let kept: i64 = ends.iter().zip(&begins).map(count).sum();
        // What is on its way from a call that was dropped may be there by now, or not.
        let on_its_way = u64::try_from(self.producer.in_flight_count()).unwrap_or(0);
        self.room = channel.messages_max.saturating_sub(kept.cast_unsigned() + on_its_way);
        self.looked = Some(link.clock.elapsed());
        Ok(())
    }

    fn send(&self, record: FutureRecord<'_, str, [u8]>) -> Result<DeliveryFuture> {
        // What the library does not take is not sent.
        let sent = self.producer.send_result(record);
        sent.map_err(|(error, _)| {
            let error = from_driver(error, WHAT);
            let verdict = if error.verdict() == Verdict::Unknown { Verdict::Retry } else { error.verdict() };
            error.verdict_is(verdict)
        })
    }

    async fn answer(&self, sent: DeliveryFuture) -> Appended {
        match sent.await {
            Ok(Ok(delivery)) => {
                let lane = Lane(delivery.partition.cast_unsigned());
                Appended::Stored { place: place(lane, delivery.offset), duplicate: false }
            }
            Ok(Err((error, _))) => {
                let error = from_driver(error, WHAT);
                match error.verdict() {
                    Verdict::Unknown => Appended::Unknown(error),
                    Verdict::Retry | Verdict::Never => Appended::Refused(error),
                }
            }
            Err(_) => Appended::Unknown(Error::new(code::CONNECTION_LOST, "the client ended")),
        }
    }
}

#[async_trait]
impl Appender for KafkaAppender {
    async fn append(&mut self, batch: &[&Message]) -> Vec<Appended> {
        let elapsed = self.link.clock.elapsed();
        let is_known = self.looked.is_some_and(|looked| elapsed.saturating_sub(looked) < KNOWN_FOR);
        if (!is_known || self.room < batch.len() as u64)
            && let Err(error) = self.look().await
        {
            return batch.iter().map(|_| Appended::Refused(error.again())).collect();
        }
        let room = usize::try_from(self.room).unwrap_or(usize::MAX);
        let (mut sent, mut refused) = (Vec::with_capacity(batch.len()), None);
        // The library sends what it has at once: if all of them are made before, it has more of them, and sends fewer requests.
        let records: Vec<_> = batch.iter().take(room).map(|message| encode(&self.channel, message)).collect();
        for record in records {
            match self.send(record) {
                // Nothing behind it is sent, so that nothing of its lane comes before it.
                Err(error) if error.verdict() == Verdict::Retry => {
                    refused = Some(error);
                    break;
                }
                answer => sent.push(answer),
            }
        }
        self.room -= sent.len() as u64;
        let mut answers = Vec::with_capacity(batch.len());
        let mut late = std::pin::pin!(self.link.clock.sleep(self.link.config.access.timeout));
        let mut is_late = false;
        for sent in sent {
            let future = match sent {
                Ok(future) => future,
                Err(error) => {
                    answers.push(Appended::Refused(error));
                    continue;
                }
            };
            let mut answer = std::pin::pin!(self.answer(future));
            let answered = tokio::select! {
                biased;
                answered = &mut answer => answered,
                () = &mut late, if !is_late => {
                    is_late = true;
                    // All of them at once: none is to be stored behind one that is not.
                    self.producer.purge(PurgeConfig::default().queue().inflight());
                    answer.await
                }
            };
            answers.push(answered);
        }
        if let Some(error) = refused {
            answers.resize_with(batch.len(), || Appended::Refused(error.again()));
        }
        for answer in &answers {
            if let Appended::Unknown(error) = answer {
                self.unknown.get_or_insert_with(|| error.again());
            }
        }
        answers.resize_with(batch.len(), || Appended::Full);
        answers
    }

    async fn finish(&mut self) -> Result<()> {
        if let Some(unknown) = &self.unknown {
            return Err(unknown.again());
        }
        if self.producer.in_flight_count() == 0 {
            return Ok(());
        }
        let (producer, timeout) = (FutureProducer::clone(&self.producer), self.link.config.answer_max());
        let flushed = tokio::task::spawn_blocking(move || producer.flush(timeout)).await;
        match flushed {
            Ok(flushed) => {
                flushed.map_err(|error| from_driver(error, "end a producer").verdict_is(Verdict::Unknown))
            }
            Err(error) => Err(Error::new(code::INTERNAL, "a call of the library panicked").because(error)),
        }
    }
}
