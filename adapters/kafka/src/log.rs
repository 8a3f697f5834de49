//! Topics of Kafka as a log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::admin::ResourceSpecifier;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tidegate_broker::log::{Appender, Document, Log, Reader};
use tidegate_broker::unsettled::Place;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::Effective;
use tidegate_core::{Capabilities, Channel, Difference, Error, How, Lane, LossCase, LossEvent, Name, Result};

use crate::append::KafkaAppender;
use crate::codec::{offset_behind, place};
use crate::error::{from_driver, is_missing};
use crate::ledger::Ledger;
use crate::link::Link;
use crate::read::KafkaReader;
use crate::record::Expected;
use crate::topics;

pub(crate) static CAPABILITIES: Capabilities = Capabilities {
    confirm: "at every server that is in step (acks=all), on disk as their settings say",
    order_by_key: How::Native,
    competing_consumers: How::Emulated("members share the lanes by a document that is compared and set"),
    durable_subscriptions: How::Emulated("documents of what is settled, in a topic beside the channel's"),
    unregister: How::Emulated("documents are removed, and members look at them"),
    replay: How::Native,
    dedupe: How::No(
        "Kafka knows what one producer sends again by itself, and not what another one, or a caller, publishes again: handle a message by its id",
    ),
    retry_later: How::Emulated("the owner of the lane keeps the message, and its time in a document"),
    dead_letter: How::No("publish to a channel of dead letters, then settle"),
    delivery_count: How::Emulated("counted by the owner of the lane, in a document"),
    lock_extend: How::Emulated("the owner of the lane keeps it"),
    listing: How::Native,
    browsing: How::Native,
    processes: How::Native,
    message_bytes_max: 16 << 20,
    consumers_per_lane_max: 1,
    loss: &[
        LossCase {
            when: LossEvent::PowerLost,
            text: "messages are confirmed before they are on disk: what the last seconds brought goes with the power of all servers that have it",
            avoid: "replicas on machines that do not fail together with min.insync.replicas of 2 or more, or log.flush.interval.messages=1",
        },
        LossCase {
            when: LossEvent::FailedOver,
            text: "a channel with one replica goes with its server; with unclean.leader.election.enable one that was behind may take over",
            avoid: "?replicas=3 or default.replication.factor=3, min.insync.replicas=2, no unclean election",
        },
    ],
};

#[derive(Debug)]
pub(crate) struct KafkaLog {
    link: Arc<Link>,
    ledgers: Mutex<HashMap<Name, Arc<Ledger>>>,
}

impl KafkaLog {
    pub(crate) fn new(link: Link) -> Self {
        Self { link: Arc::new(link), ledgers: Mutex::default() }
    }

    /// The documents of a channel, if it is there.
    async fn ledger(&self, channel: &Name) -> Result<Option<Arc<Ledger>>> {
        let known = || {
            let mut ledgers = self.ledgers.lock().unwrap_or_else(PoisonError::into_inner);
            ledgers.retain(|_, ledger| !ledger.is_gone());
            ledgers.get(channel).cloned()
        };
        if let Some(known) = known() {
            return Ok(Some(known));
        }
        if self.link.partitions(&topics::documents(channel)).await?.is_none() {
            return Ok(None);
        }
        let mut ledgers = self.ledgers.lock().unwrap_or_else(PoisonError::into_inner);
        let ledger = ledgers.entry(channel.clone());
        Ok(Some(Arc::clone(ledger.or_insert_with(|| Ledger::open(Arc::clone(&self.link), channel)))))
    }

    async fn ledger_of(&self, channel: &Name) -> Result<Arc<Ledger>> {
        let found = self.ledger(channel).await?;
        found.ok_or_else(|| Difference::ChannelMissing(channel.clone()).error())
    }
}

#[async_trait]
impl Log for KafkaLog {
    fn location(&self) -> String {
        self.link.config.access.location.clone()
    }

    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    async fn probe(&self) -> Result<Effective> {
        let about = self.link.ask("ask for the servers", |asker, time| {
            let metadata = asker.fetch_metadata(Some("_tidegate"), time)?;
            let servers: Vec<i32> = metadata.brokers().iter().map(|server| server.id()).collect();
            Ok((servers, metadata.orig_broker_id(), asker.client().fetch_cluster_id(time)))
        });
        let (servers, answering, cluster) = about.await?;
        // The library does not always know yet which of them answered.
        let one = servers.iter().copied().find(|server| *server == answering).or(servers.first().copied());
        let one = one.ok_or_else(|| Error::new(code::UNREACHABLE, "the cluster has no server that is up"))?;
        let described = self.link.settings(ResourceSpecifier::Broker(one)).await?;
        let setting = |name: &str| described.as_ref()?.get(name)?.value.clone();
        let mut warnings = Vec::new();
        let mut warn = |name: &str, is_safe: fn(&str) -> bool, what: &str| match setting(name) {
            Some(found) if is_safe(&found) => {}
            Some(found) => warnings.push(format!("{name} is {found}: {what}")),
            None => warnings.push(format!("{name} cannot be read; where it is not safe: {what}")),
        };
        let two = |value: &str| value.parse::<i64>().is_ok_and(|value| value >= 2);
        let has_replicas =
            self.link.config.replicas >= 2 || setting("default.replication.factor").is_some_and(|v| two(&v));
        if self.link.config.replicas < 2 {
            warn(
                "default.replication.factor",
                two,
                "a channel that is made goes with the one server that has it",
            );
        }
        if has_replicas {
            warn("min.insync.replicas", two, "a message is confirmed when one server has it");
        } else {
            warn(
                "log.flush.interval.messages",
                |value| value == "1",
                "what was confirmed last goes with the power of the one server that has it",
            );
        }
        warn(
            "unclean.leader.election.enable",
            |value| value == "false",
            "a server that lacks what was confirmed may take over",
        );
        warn(
            "auto.create.topics.enable",
            |value| value == "false",
            "a topic that is removed is made again when another program asks for it, and forgets after a time what nobody has settled",
        );
        let (cluster, count) = (cluster.unwrap_or_else(|| "unknown".to_owned()), servers.len());
        Ok(Effective {
            version: format!("Kafka, cluster {cluster}, servers: {count}"),
            warnings,
            notes: self.link.config.access.notes(),
        })
    }

    async fn create(&self, channel: &Channel) -> Result<()> {
        topics::create(&self.link, channel).await
    }

    async fn changed(&self, channel: &Channel) -> Result<Option<Difference>> {
        topics::changed(&self.link, channel).await
    }

    async fn channels(&self) -> Result<Vec<Name>> {
        let topics = self.link.topics().await?;
        Ok(topics.iter().filter_map(|topic| topics::channel_of(topic)).collect())
    }

    async fn document(&self, channel: &Name, name: &str) -> Result<Option<Document>> {
        match self.ledger(channel).await? {
            Some(ledger) => ledger.document(name).await,
            None => Ok(None),
        }
    }

    async fn write(
        &self,
        channel: &Name,
        name: &str,
        value: Bytes,
        expected: Option<u64>,
    ) -> Result<Option<u64>> {
        let expected = expected.map_or(Expected::Nothing, Expected::Revision);
        self.ledger_of(channel).await?.write(name, Some(value), expected).await
    }

    async fn remove(&self, channel: &Name, name: &str) -> Result<()> {
        self.ledger_of(channel).await?.write(name, None, Expected::Anything).await.map(drop)
    }

    async fn last(&self, channel: &Channel) -> Result<Vec<Place>> {
        let ends = self.link.offsets(channel.name.as_str(), channel.lanes, Offset::End).await?;
        let last = |(lane, end): (u32, Option<i64>)| match end {
            Some(end) if end > 0 => place(Lane(lane), end - 1),
            _ => 0,
        };
        Ok((0..).zip(ends).map(last).collect())
    }

    /// In the lanes of other messages the time of this one tells: those of the same millisecond are behind it.
    async fn at(&self, channel: &Channel, place_of_it: Place) -> Result<Option<Vec<Place>>> {
        let (lane, behind) = offset_behind(place_of_it);
        if lane.0 >= channel.lanes || behind == 0 {
            return Ok(None);
        }
        let mut out = Vec::new();
        let mut reader = KafkaReader::open(Arc::clone(&self.link), channel).await?;
        reader.read(&[(lane, place_of_it - 1, 1)], Duration::ZERO, &mut out).await?;
        let Some((_, it)) = out.into_iter().next().filter(|(_, it)| it.place == place_of_it) else {
            return Ok(None);
        };
        let mut places = self.last(channel).await?;
        if let Some(time) = it.stored_at {
            let (topic, time) = (channel.name.as_str(), Offset::Offset(time / 1_000));
            let since = self.link.offsets(topic, channel.lanes, time).await?;
            for (at, since) in (0..).zip(since) {
                if let (Some(since), Some(place_of)) = (since, places.get_mut(at as usize)) {
                    *place_of = if since > 0 { place(Lane(at), since - 1) } else { 0 };
                }
            }
        } else if channel.lanes > 1 {
            // Nobody knows what of the other lanes came later: all of it, then.
            places.fill(0);
        }
        if let Some(own) = places.get_mut(lane.0 as usize) {
            *own = place_of_it;
        }
        Ok(Some(places))
    }

    async fn stored_before(&self, channel: &Channel, lane: Lane, upto: Place, time: i64) -> Result<Place> {
        let time = Offset::Offset((time / 1_000).max(0));
        let since = self.link.offsets(channel.name.as_str(), channel.lanes, time).await?;
        Ok(match since.get(lane.0 as usize).copied().flatten() {
            Some(0) => 0,
            Some(since) => upto.min(place(lane, since - 1)),
            None => upto,
        })
    }

    async fn trim(&self, channel: &Channel, lane: Lane, upto: Place) -> Result<()> {
        let behind = offset_behind(upto).1;
        if behind == 0 {
            return Ok(());
        }
        // Whether the topic is there is looked at by whoever reads.
        let failed = |error: KafkaError| match is_missing(&error) {
            true => Error::new(code::UNREACHABLE, "the server does not know the topic now")
                .verdict_is(Verdict::Retry),
            false => from_driver(error, "remove messages").verdict_is(Verdict::Retry),
        };
        let mut records = TopicPartitionList::new();
        let (topic, partition) = (channel.name.as_str(), lane.0.cast_signed());
        records.add_partition_offset(topic, partition, Offset::Offset(behind)).map_err(failed)?;
        let removed = self.link.admin.delete_records(&records, &self.link.options()).await.map_err(failed)?;
        removed.elements().iter().try_for_each(|element| element.error().map_err(failed))
    }

    async fn appender(&self, channel: &Channel) -> Result<Box<dyn Appender>> {
        Ok(Box::new(KafkaAppender::open(Arc::clone(&self.link), channel).await?))
    }

    async fn reader(&self, channel: &Channel) -> Result<Box<dyn Reader>> {
        Ok(Box::new(KafkaReader::open(Arc::clone(&self.link), channel).await?))
    }
}
