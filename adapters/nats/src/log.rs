//! Streams and a bucket of JetStream as a log.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::{Config as Stream, DiscardPolicy, Info, PurgeResponse};
use async_nats::jetstream::{self, ErrorCode};
use async_trait::async_trait;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidegate_broker::log::{Appender, Document, Log, Reader};
use tidegate_broker::unsettled::Place;
use tidegate_core::error::code;
use tidegate_core::port::Effective;
use tidegate_core::{Capabilities, Channel, Error, How, Lane, LossCase, LossEvent, Name, Result};
use tokio::time::Instant;

use crate::append::NatsAppender;
use crate::codec::{stream, subject};
use crate::config::Config;
use crate::connect::Shared;
use crate::error::{from_publish, from_server};
use crate::probe::probe;
use crate::read::NatsReader;

/// The stream of the documents: a bucket for the tools of NATS.
pub(crate) const DOCUMENTS: &str = "KV_tidegate";

pub(crate) static CAPABILITIES: Capabilities = Capabilities {
    confirm: "in the stream's file on a majority of its replicas, and synchronised with the disk as `sync_interval` says",
    order_by_key: How::Emulated(
        "a subject a lane, with one owner at a time; where the server itself refuses a message for want of space, later ones of its window may find room",
    ),
    competing_consumers: How::Emulated("members share the lanes by a document that is compared and set"),
    durable_subscriptions: How::Emulated("documents of what is settled"),
    unregister: How::Native,
    replay: How::Native,
    dedupe: How::Native,
    retry_later: How::Emulated("the owner of the lane keeps the message, and its time in a document"),
    dead_letter: How::No("publish to a channel of dead letters, then settle"),
    delivery_count: How::Emulated("counted by the owner of the lane, in a document"),
    lock_extend: How::Native,
    listing: How::Native,
    browsing: How::Native,
    processes: How::Native,
    // What a server takes that is set up as it comes, with room for what NATS adds to headers.
    message_bytes_max: (1 << 20) - (64 << 10),
    consumers_per_lane_max: 1,
    loss: &[
        LossCase {
            when: LossEvent::PowerLost,
            text: "what was confirmed in the last two minutes (sync_interval), if the power of all replicas is lost at once",
            avoid: "jetstream { sync_interval: always }, or replicas in places with power of their own",
        },
        LossCase {
            when: LossEvent::FailedOver,
            text: "a stream with one replica is away, or gone, with its server",
            avoid: "replicas=3 in the URL before the channel is made, on a cluster of three",
        },
    ],
};

/// The subject of a document. A channel's name has no slash.
fn key(channel: &Name, name: &str) -> String {
    format!("$KV.tidegate.{channel}/{name}")
}

/// The part of what is known of a stream that names its subjects, by pages.
#[derive(Deserialize)]
struct Subjects {
    state: SubjectsState,
    #[serde(default)]
    total: usize,
}

#[derive(Deserialize)]
struct SubjectsState {
    subjects: Option<BTreeMap<String, u64>>,
}

#[derive(Debug)]
pub(crate) struct NatsLog {
    config: Arc<Config>,
    shared: Arc<Shared>,
}

impl NatsLog {
    pub(crate) fn new(config: Config) -> Self {
        Self { config: Arc::new(config), shared: Arc::default() }
    }

    /// Gives the shared connection up if it did not answer; whether it was cut, as is often seen only when it is used.
    fn is_cut<T>(&self, answer: &Result<T>) -> bool {
        let code = answer.as_ref().err().map(Error::code);
        if [Some(code::TIMED_OUT), Some(code::CONNECTION_LOST)].contains(&code) {
            self.shared.lose();
        }
        code == Some(code::CONNECTION_LOST)
    }

    /// What JetStream answers to something that may be asked twice.
    async fn ask<T: DeserializeOwned + Send>(
        &self,
        asked: &str,
        what: &(impl Serialize + Sync + ?Sized),
        operation: &'static str,
    ) -> Result<std::result::Result<T, jetstream::Error>> {
        let answer = self.shared.get(&self.config).await?.ask(asked, what, operation).await;
        match self.is_cut(&answer) {
            true => self.shared.get(&self.config).await?.ask(asked, what, operation).await,
            false => answer,
        }
    }

    async fn get<T: DeserializeOwned + Send>(
        &self,
        asked: &str,
        what: &(impl Serialize + Sync + ?Sized),
        operation: &'static str,
    ) -> Result<T> {
        self.ask(asked, what, operation).await?.map_err(|error| from_server(&error, operation))
    }

    async fn message(
        &self,
        stream: &str,
        subject: &str,
        from: Option<u64>,
        operation: &'static str,
    ) -> Result<Option<StreamMessage>> {
        let found = self.shared.get(&self.config).await?.message(stream, subject, from, operation).await;
        match self.is_cut(&found) {
            true => self.shared.get(&self.config).await?.message(stream, subject, from, operation).await,
            false => found,
        }
    }

    /// Makes a stream, unless it is there: how it is set up is the operator's business then.
    async fn make(&self, wanted: Stream) -> Result<()> {
        let operation = "make a stream";
        match self.ask::<Info>(&format!("STREAM.CREATE.{}", wanted.name), &wanted, operation).await? {
            Err(error) if error.error_code() != ErrorCode::STREAM_NAME_EXIST => {
                Err(from_server(&error, operation))
            }
            _ => Ok(()),
        }
    }

    async fn last_of_all(&self, channel: &Channel) -> Result<Place> {
        let asked = format!("STREAM.INFO.{}", stream(&channel.name));
        let info: Info = self.get(&asked, &(), "look for the last place").await?;
        Ok(info.state.last_sequence)
    }

    /// Removes the messages of a subject; those before a place, if there is one.
    async fn purge(&self, stream: &str, subject: &str, before: Option<Place>) -> Result<()> {
        let mut what = serde_json::json!({ "filter": subject });
        if let Some(before) = before {
            what["seq"] = before.into();
        }
        let purged =
            self.get::<PurgeResponse>(&format!("STREAM.PURGE.{stream}"), &what, "remove messages").await;
        purged.map(drop)
    }
}

#[async_trait]
impl Log for NatsLog {
    fn location(&self) -> String {
        self.config.access.location.clone()
    }

    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    async fn probe(&self) -> Result<Effective> {
        let probed = probe(&self.shared.get(&self.config).await?, &self.config).await;
        self.is_cut(&probed);
        probed
    }

    async fn create(&self, channel: &Channel) -> Result<()> {
        self.make(Stream {
            name: DOCUMENTS.to_owned(),
            subjects: vec!["$KV.tidegate.>".to_owned()],
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            num_replicas: self.config.replicas,
            description: Some("documents of Tidegate's channels".to_owned()),
            ..Stream::default()
        })
        .await?;
        self.make(Stream {
            name: stream(&channel.name),
            subjects: vec![subject(&channel.name, None)],
            discard: DiscardPolicy::New,
            duplicate_window: self.config.dedupe,
            num_replicas: self.config.replicas,
            description: Some(format!("messages of Tidegate's channel {}", channel.name)),
            ..Stream::default()
        })
        .await
    }

    async fn channels(&self) -> Result<Vec<Name>> {
        let operation = "list channels";
        let (asked, mut names) = (format!("STREAM.INFO.{DOCUMENTS}"), Vec::new());
        loop {
            let what = json!({ "subjects_filter": "$KV.tidegate.>", "offset": names.len() });
            let info = match self.ask::<Subjects>(&asked, &what, operation).await? {
                Err(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => break,
                info => info.map_err(|error| from_server(&error, operation))?,
            };
            let page = info.state.subjects.unwrap_or_default();
            let is_last = page.is_empty();
            names.extend(page.into_keys());
            if is_last || names.len() >= info.total {
                break;
            }
        }
        let name = |subject: &String| {
            Name::new(subject.strip_prefix("$KV.tidegate.")?.strip_suffix("/channel")?).ok()
        };
        Ok(names.iter().filter_map(name).collect())
    }

    async fn document(&self, channel: &Name, name: &str) -> Result<Option<Document>> {
        let found = self.message(DOCUMENTS, &key(channel, name), None, "read a document").await?;
        Ok(found.map(|found| Document { value: found.payload, revision: found.sequence }))
    }

    async fn write(
        &self,
        channel: &Name,
        name: &str,
        value: Bytes,
        expected: Option<u64>,
    ) -> Result<Option<u64>> {
        let link = self.shared.get(&self.config).await?;
        let (since, key) = (Instant::now(), key(channel, name));
        let publish =
            PublishMessage::build().payload(value).expected_last_subject_sequence(expected.unwrap_or(0));
        let written = match link.context.send_publish(key.clone(), publish).await {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        let written = match written {
            Ok(ack) => Ok(Some(ack.sequence)),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(None),
            Err(error) => {
                let error = from_publish(error, "write a document");
                Err(link.explain(error, since, |subject| subject == key))
            }
        };
        self.is_cut(&written);
        written
    }

    async fn remove(&self, channel: &Name, name: &str) -> Result<()> {
        self.purge(DOCUMENTS, &key(channel, name), None).await
    }

    async fn last(&self, channel: &Channel) -> Result<Vec<Place>> {
        Ok(vec![self.last_of_all(channel).await?; channel.lanes as usize])
    }

    /// Places rise over all lanes.
    async fn at(&self, channel: &Channel, place: Place) -> Result<Option<Vec<Place>>> {
        let is_there = place <= self.last_of_all(channel).await?;
        Ok(is_there.then(|| vec![place; channel.lanes as usize]))
    }

    async fn stored_before(&self, channel: &Channel, lane: Lane, upto: Place, time: i64) -> Result<Place> {
        let (stream, subject) = (stream(&channel.name), subject(&channel.name, Some(lane)));
        let older = async |from| -> Result<Option<Place>> {
            let found = self.message(&stream, &subject, Some(from), "look for a message").await?;
            let is_older = |micros: i128| micros < i128::from(time);
            let found = found.filter(|found| is_older(found.time.unix_timestamp_nanos() / 1_000));
            Ok(found.map(|found| found.sequence).filter(|place| *place <= upto))
        };
        // The next one of a subject is found, and not the one before: the last old one is searched for by halves.
        let Some(mut found) = older(1).await? else { return Ok(0) };
        let mut end = upto;
        while found < end {
            let middle = end - (end - found) / 2;
            match older(middle).await? {
                Some(place) => found = place,
                None => end = middle - 1,
            }
        }
        Ok(found)
    }

    async fn trim(&self, channel: &Channel, lane: Lane, upto: Place) -> Result<()> {
        self.purge(&stream(&channel.name), &subject(&channel.name, Some(lane)), Some(upto + 1)).await
    }

    async fn appender(&self, channel: &Channel) -> Result<Box<dyn Appender>> {
        Ok(Box::new(NatsAppender::open(Arc::clone(&self.config), channel).await?))
    }

    async fn reader(&self, channel: &Channel) -> Result<Box<dyn Reader>> {
        Ok(Box::new(NatsReader::open(&self.config, &channel.name).await?))
    }
}
