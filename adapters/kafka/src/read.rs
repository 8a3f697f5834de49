//! Reads messages of lanes, ahead of their being asked for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message as _, Offset, TopicPartitionList};
use tidegate_broker::hand::Fetched;
use tidegate_broker::log::Reader;
use tidegate_broker::unsettled::Place;
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Channel, Error, Lane, Result};

use crate::codec::{fetched, offset_behind};
use crate::error::{Heard, from_code, from_driver};
use crate::link::{Client, Link};
use crate::topics;

/// How long it is believed that the topic is as it was.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// How many bytes of messages are taken from the library at once, beyond the first.
const BYTES: usize = 4 << 20;
/// With so many bytes of messages in hand of lanes that are not wanted now, no more is fetched of these. Until then they go on:
/// the library throws away what it has of a partition that is paused, and what it asks for next waits behind what it asked for
/// before, which for lanes at their end is for as long as the server lets a fetch wait.
const AHEAD: usize = 8 << 20;

pub(crate) struct KafkaReader {
    link: Arc<Link>,
    channel: Channel,
    consumer: Client<StreamConsumer<Heard>>,
    lanes: BTreeMap<Lane, Tail>,
    looked: Duration,
}

/// Where a lane is read.
#[derive(Debug)]
struct Tail {
    /// The last message that was given away stands here.
    given: Place,
    /// What came and was not asked for yet.
    ahead: VecDeque<Fetched>,
    /// How many bytes of messages these are.
    bytes: usize,
    /// The offset that comes next.
    next: i64,
    /// It was read to its end.
    is_at_end: bool,
    /// Nothing of it is fetched.
    is_paused: bool,
}

impl Tail {
    fn behind(place: Place) -> Self {
        let next = offset_behind(place).1;
        Self { given: place, ahead: VecDeque::new(), bytes: 0, next, is_at_end: false, is_paused: false }
    }
}

impl KafkaReader {
    pub(crate) async fn open(link: Arc<Link>, channel: &Channel) -> Result<Self> {
        topics::verify(&link, channel).await?;
        let consumer = link.make(&link.config.reader())?;
        let looked = link.clock.elapsed();
        Ok(Self { link, channel: channel.clone(), consumer, lanes: BTreeMap::new(), looked })
    }

    /// Has the library fetch each wanted lane behind its place, and others only as long as there is room for them.
    ///
    /// A lane that is not wanted any more stays assigned, and a new one comes beside the others: librdkafka ends the process if
    /// a partition is taken away twice before the first of that is done (its issue 5573), as happens where all partitions are
    /// assigned anew for each of several lanes that come one behind the other.
    fn want(&mut self, wanted: &[(Lane, Place, usize)], is_new: bool) -> Result<()> {
        let (mut fresh, mut is_moved) = (Vec::new(), false);
        for (lane, after, _) in wanted {
            let goes_on = |tail: &Tail| tail.given == *after && !(is_new && tail.ahead.is_empty());
            if self.lanes.get(lane).is_some_and(goes_on) {
                continue;
            }
            match self.lanes.insert(*lane, Tail::behind(*after)) {
                Some(_) => is_moved = true,
                None => fresh.push(*lane),
            }
        }
        let is_wanted = |lane: &Lane| wanted.iter().any(|(known, ..)| known == lane);
        if is_moved {
            self.lanes.retain(|lane, _| is_wanted(lane));
            return self.assign();
        }
        if !fresh.is_empty() {
            let list = self.list(&fresh)?;
            self.consumer.incremental_assign(&list).map_err(failed)?;
            self.consumer.resume(&list).map_err(failed)?;
        }
        let unwanted = self.lanes.iter().filter(|(lane, _)| !is_wanted(lane));
        let has_room = unwanted.map(|(_, tail)| tail.bytes).sum::<usize>() < AHEAD;
        for (lane, tail) in &mut self.lanes {
            let goes_on = is_wanted(lane) || (has_room && !tail.is_paused);
            if tail.is_paused == goes_on {
                tail.is_paused = !goes_on;
                let mut one = TopicPartitionList::new();
                one.add_partition(self.channel.name.as_str(), lane.0.cast_signed());
                let done =
                    if tail.is_paused { self.consumer.pause(&one) } else { self.consumer.resume(&one) };
                done.map_err(failed)?;
            }
        }
        Ok(())
    }

    fn assign(&mut self) -> Result<()> {
        for tail in self.lanes.values_mut() {
            (tail.is_at_end, tail.is_paused) = (false, false);
        }
        let all = self.list(&self.lanes.keys().copied().collect::<Vec<_>>())?;
        self.consumer.assign(&all).map_err(failed)?;
        self.consumer.resume(&all).map_err(failed)
    }

    /// Where lanes go on.
    fn list(&self, lanes: &[Lane]) -> Result<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for lane in lanes {
            let (topic, partition) = (self.channel.name.as_str(), lane.0.cast_signed());
            let Some(tail) = self.lanes.get(lane) else { continue };
            list.add_partition_offset(topic, partition, Offset::Offset(tail.next)).map_err(failed)?;
        }
        Ok(list)
    }

    /// Gives what is there of the wanted lanes.
    fn give(&mut self, wanted: &[(Lane, Place, usize)], out: &mut Vec<(Lane, Fetched)>) {
        for (lane, _, count) in wanted {
            let Some(tail) = self.lanes.get_mut(lane) else { continue };
            let count = tail.ahead.len().min(*count);
            for fetched in tail.ahead.drain(..count) {
                tail.given = fetched.place;
                tail.bytes -= fetched.message.size();
                out.push((*lane, fetched));
            }
        }
    }

    /// Places are beyond what is there.
    async fn out_of_range(&mut self, wanted: &[(Lane, Place, usize)]) -> Result<()> {
        // Those that are not wanted may be another one's by now, who has removed what is settled.
        self.lanes.retain(|lane, _| wanted.iter().any(|(known, ..)| known == lane));
        let (topic, lanes) = (self.channel.name.as_str(), self.channel.lanes);
        let begins = self.link.offsets(topic, lanes, Offset::Beginning).await?;
        let ends = self.link.offsets(topic, lanes, Offset::End).await?;
        for (lane, tail) in &mut self.lanes {
            let of = |all: &[Option<i64>]| all.get(lane.0 as usize).copied().flatten().unwrap_or(0);
            let (begin, end) = (of(&begins), of(&ends));
            if tail.next > end {
                let text = format!(
                    "lane {} of channel {topic} ends at {end}, and was read to {}: its server lost messages that were confirmed, or is another one",
                    lane.0, tail.next
                );
                return Err(Error::new(code::BROKER_REPLACED, text));
            }
            if tail.next < begin {
                // A subscription that begins with the earliest message begins here.
                if tail.next > 0 {
                    tracing::error!(
                        channel = topic,
                        lane = lane.0,
                        from = tail.next,
                        to = begin,
                        "messages are not there any more that were not settled: somebody else removed them"
                    );
                }
                tail.next = begin;
            }
        }
        self.assign()
    }
}

fn failed(error: KafkaError) -> Error {
    from_driver(error, "read messages").verdict_is(Verdict::Retry)
}

/// Takes what the library has: how many bytes of messages that is.
fn take(
    channel: &Channel,
    lanes: &mut BTreeMap<Lane, Tail>,
    polled: Result<BorrowedMessage<'_>, KafkaError>,
) -> Result<usize, RDKafkaErrorCode> {
    match polled {
        Ok(record) => {
            let lane = Lane(record.partition().cast_unsigned());
            let tail = lanes.get_mut(&lane).filter(|tail| record.offset() >= tail.next);
            let Some(tail) = tail else { return Ok(0) };
            tail.next = record.offset() + 1;
            let fetched = fetched(&channel.name, lane, &record);
            let bytes = fetched.message.size();
            tail.bytes += bytes;
            tail.ahead.push_back(fetched);
            Ok(bytes)
        }
        Err(KafkaError::PartitionEOF(partition)) => {
            if let Some(tail) = lanes.get_mut(&Lane(partition.cast_unsigned())) {
                tail.is_at_end = true;
            }
            Ok(0)
        }
        Err(error) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)),
    }
}

#[async_trait]
impl Reader for KafkaReader {
    async fn read(
        &mut self,
        wanted: &[(Lane, Place, usize)],
        wait: Duration,
        out: &mut Vec<(Lane, Fetched)>,
    ) -> Result<()> {
        let clock = Arc::clone(&self.link.clock);
        if clock.elapsed().saturating_sub(self.looked) > KNOWN_FOR {
            topics::verify(&self.link, &self.channel).await?;
            self.looked = clock.elapsed();
        }
        // Whoever does not wait is told what is there now.
        self.want(wanted, wait.is_zero())?;
        let until = clock.elapsed() + wait;
        let most: usize = wanted.iter().map(|(.., count)| count).sum();
        loop {
            self.give(wanted, out);
            if !out.is_empty() {
                return Ok(());
            }
            let left = until.saturating_sub(clock.elapsed());
            let is_at_end =
                |(lane, ..): &(Lane, Place, usize)| self.lanes.get(lane).is_none_or(|tail| tail.is_at_end);
            let time = match wait.is_zero() {
                true if wanted.iter().all(is_at_end) => return Ok(()),
                true => self.link.config.access.timeout,
                false if left.is_zero() => return Ok(()),
                false => left,
            };
            let mut stream = self.consumer.stream();
            let mut polled = tokio::select! {
                polled = stream.next() => polled,
                () = clock.sleep(time) => {
                    if wait.is_zero() {
                        return Err(Error::new(code::TIMED_OUT, "messages cannot be read in time").verdict_is(Verdict::Retry));
                    }
                    return Ok(());
                }
            };
            let (mut count, mut bytes, mut error) = (0, 0, None);
            while let Some(record) = polled {
                match take(&self.channel, &mut self.lanes, record) {
                    Ok(more) => bytes += more,
                    Err(other) => error = Some(other),
                }
                count += 1;
                if count >= most || bytes >= BYTES || error.is_some() {
                    break;
                }
                polled = stream.next().now_or_never().flatten();
            }
            drop(stream);
            if let Some(error) = error {
                self.mend(error, wanted).await?;
            }
        }
    }
}

impl KafkaReader {
    /// Goes on after an error, if that can be.
    async fn mend(&mut self, error: RDKafkaErrorCode, wanted: &[(Lane, Place, usize)]) -> Result<()> {
        if error == RDKafkaErrorCode::AutoOffsetReset {
            return self.out_of_range(wanted).await;
        }
        // Whether a login was refused is not to be seen here: a server may have gone away in the midst of it.
        if error == RDKafkaErrorCode::Authentication {
            return topics::verify(&self.link, &self.channel).await;
        }
        let error = from_code(error, "read messages");
        match error.code() {
            code::CHANNEL_MISSING => topics::verify(&self.link, &self.channel).await,
            code::ACCESS_DENIED => Err(error),
            _ => {
                tracing::debug!(%error, "messages cannot be read now");
                Ok(())
            }
        }
    }
}
