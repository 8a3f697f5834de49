//! The clients of one broker, and how they are asked.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Clock, Error, Result, SystemClock};

use crate::config::Config;
use crate::error::{Heard, from_code, from_driver, is_missing, is_waiting};

/// How long one attempt to reach a server may take: the first one, and the longest.
const ATTEMPTS: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(5));

/// How often settings are asked for before it is given up.
const ASKED_FOR_SETTINGS: usize = 3;
/// How many pieces of news of a client are looked at before it is asked again.
const NEWS: usize = 8;

/// A client that ends beside: its threads are waited for, and whoever lets it go may be a task that must not wait.
pub(crate) struct Client<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Client<T> {
    pub(crate) fn new(client: T) -> Self {
        Self(Some(client))
    }
}

impl<T: Send + 'static> Deref for Client<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is taken only when it is dropped")
    }
}

impl<T: Send + 'static> Drop for Client<T> {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            std::thread::spawn(move || drop(client));
        }
    }
}

/// What the producers, consumers and documents of a broker share.
pub(crate) struct Link {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    /// It fetches nothing, so that no answer waits behind a fetch that waits for messages.
    asker: Client<BaseConsumer<Heard>>,
    pub(crate) admin: Client<AdminClient<Heard>>,
    heard: Heard,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.config.fmt(f)
    }
}

impl Link {
    pub(crate) fn new(config: Config) -> Result<Self> {
        let heard = Heard::default();
        let asker = make(&config.client(), &heard)?;
        let admin = make(&config.client(), &heard)?;
        Ok(Self { config, clock: SystemClock::shared(), asker, admin, heard })
    }

    /// Makes another client of this broker.
    pub(crate) fn make<T>(&self, config: &ClientConfig) -> Result<Client<T>>
    where
        T: FromClientConfigAndContext<Heard> + Send + 'static,
    {
        make(config, &self.heard)
    }

    /// How long whatever is asked for beside may take.
    pub(crate) fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.config.answer_max()))
            .operation_timeout(Some(self.config.answer_max()))
    }

    /// Asks until there is an answer, or it is known that there will be none.
    pub(crate) async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        operation: &'static str,
        call: impl Fn(&BaseConsumer<Heard>, Duration) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T> {
        let link = Arc::clone(self);
        // Every call of the library waits where it is made.
        let asked = tokio::task::spawn_blocking(move || link.ask_here(operation, call)).await;
        asked.map_err(|error| Error::new(code::INTERNAL, "a call of the library panicked").because(error))?
    }

    fn ask_here<T>(
        &self,
        operation: &'static str,
        call: impl Fn(&BaseConsumer<Heard>, Duration) -> KafkaResult<T>,
    ) -> Result<T> {
        let until = self.clock.elapsed() + self.config.access.timeout;
        let mut attempt = ATTEMPTS.0;
        loop {
            let begin = self.clock.elapsed();
            let error = match call(&self.asker, attempt.min(until.saturating_sub(begin))) {
                Ok(answer) => {
                    self.heard.clear();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            if !is_waiting(&error) {
                return Err(from_driver(error, operation));
            }
            // Why no server is reached comes by this way alone, each piece of news by itself.
            for _ in 0..NEWS {
                drop(self.asker.poll(Duration::from_millis(2)));
            }
            if let Some(refusal) = self.heard.refusal() {
                return Err(refusal);
            }
            let now = self.clock.elapsed();
            if now >= until {
                return Err(self.heard.unreachable(operation, self.config.access.has_tls, &error));
            }
            // Some failures come at once.
            std::thread::sleep(Duration::from_millis(20).saturating_sub(now - begin));
            attempt = (attempt * 2).min(ATTEMPTS.1);
        }
    }

    /// How many partitions a topic has; `None` if it is not there.
    pub(crate) async fn partitions(self: &Arc<Self>, topic: &str) -> Result<Option<u32>> {
        let name = topic.to_owned();
        let found = self.ask("look for a topic", move |asker, time| {
            let metadata = asker.fetch_metadata(Some(&name), time)?;
            let topic = metadata.topics().first();
            let topic = topic.filter(|topic| !is_unknown(topic.error()));
            Ok(topic.map(|topic| (topic.error().map(Into::into), topic.partitions().len())))
        });
        match found.await? {
            None => Ok(None),
            Some((None | Some(RDKafkaErrorCode::LeaderNotAvailable), count)) => Ok(u32::try_from(count).ok()),
            Some((Some(error), _)) => Err(from_code(error, "look for a topic")),
        }
    }

    /// The settings of something; `None` if this user may not look at them, or it is not there.
    pub(crate) async fn settings(&self, of: ResourceSpecifier<'_>) -> Result<Option<ConfigResource>> {
        const OPERATION: &str = "look at settings";
        let mut error = None;
        for _ in 0..ASKED_FOR_SETTINGS {
            let described = self.admin.describe_configs([&of], &self.options()).await;
            let found = match described.map(|found| found.into_iter().next()) {
                Ok(Some(Ok(found))) => return Ok(Some(found)),
                Ok(None) => return Ok(None),
                Ok(Some(Err(code))) => from_code(code, OPERATION),
                Err(found) => from_driver(found, OPERATION),
            };
            if matches!(found.code(), code::ACCESS_DENIED | code::CHANNEL_MISSING) {
                return Ok(None);
            }
            // A server that has just begun, or a connection that was lost since it was used last.
            error = Some(found.verdict_is(Verdict::Retry));
        }
        Err(error.unwrap_or_else(|| Error::new(code::INTERNAL, "nothing was asked")))
    }

    /// The names of all topics.
    pub(crate) async fn topics(self: &Arc<Self>) -> Result<Vec<String>> {
        let found = self.ask("list topics", move |asker, time| {
            let metadata = asker.fetch_metadata(None, time)?;
            Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
        });
        found.await
    }

    /// Of each of the first partitions of a topic where it is at a time in milliseconds, or at [`Offset::Beginning`] or
    /// [`Offset::End`]; `None` if nothing was stored since that time.
    pub(crate) async fn offsets(
        self: &Arc<Self>,
        topic: &str,
        partitions: u32,
        at: Offset,
    ) -> Result<Vec<Option<i64>>> {
        let topic = topic.to_owned();
        let found = self.ask("ask for offsets", move |asker, time| {
            let mut wanted = TopicPartitionList::new();
            for partition in 0..partitions {
                wanted.add_partition_offset(&topic, partition.cast_signed(), at)?;
            }
            let doubted = |error| doubted(asker, &topic, error, time);
            let found = asker.offsets_for_times(wanted, time).map_err(doubted)?;
            let mut offsets = vec![None; partitions as usize];
            for element in found.elements() {
                element.error().map_err(doubted)?;
                let place = usize::try_from(element.partition()).ok().and_then(|at| offsets.get_mut(at));
                if let (Some(place), Offset::Offset(offset)) = (place, element.offset()) {
                    *place = Some(offset);
                }
            }
            Ok(offsets)
        });
        found.await
    }
}

/// What an error about a topic means. A server that begins says of topics that it does not know them, until it has looked at what
/// it has of them; whether a topic is there stands in the metadata.
fn doubted(asker: &BaseConsumer<Heard>, topic: &str, error: KafkaError, time: Duration) -> KafkaError {
    let is_away = || {
        let metadata = asker.fetch_metadata(Some(topic), time);
        let is_away =
            |metadata: &Metadata| metadata.topics().first().is_none_or(|topic| is_unknown(topic.error()));
        metadata.as_ref().is_ok_and(is_away)
    };
    if is_missing(&error) && !is_away() {
        return KafkaError::Global(RDKafkaErrorCode::LeaderNotAvailable);
    }
    error
}

fn is_unknown(error: Option<RDKafkaRespErr>) -> bool {
    use RDKafkaErrorCode as E;
    matches!(error.map(Into::into), Some(E::UnknownTopicOrPartition | E::UnknownTopic))
}

fn make<T>(config: &ClientConfig, heard: &Heard) -> Result<Client<T>>
where
    T: FromClientConfigAndContext<Heard> + Send + 'static,
{
    let client = config.create_with_context(heard.clone());
    Ok(Client::new(client.map_err(|error| from_driver(error, "make a client"))?))
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::RDKafkaApiKey;
    use tidegate_core::Endpoint;

    use super::*;

    /// As a server said that was just restarted, for which consumers took their channel to be gone.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_that_begins_has_its_topics() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("orders", 2, 1).unwrap();
        let url = format!("kafka://{}", cluster.bootstrap_servers());
        let link = Arc::new(Link::new(Config::of(&Endpoint::parse(&url).unwrap()).unwrap()).unwrap());
        let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
        cluster.request_errors(RDKafkaApiKey::ListOffsets, &[unknown; 8]);
        assert_eq!(link.offsets("orders", 2, Offset::End).await.unwrap(), [Some(0), Some(0)]);
    }
}
