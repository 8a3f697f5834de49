//! Topics: what a channel is kept in, and its documents.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;
use tidegate_core::error::code;
use tidegate_core::{Channel, Difference, Error, Name, Result};

use crate::error::{from_code, from_driver};
use crate::link::Link;

/// How large a record may be: a message with everything beside it, and a snapshot of documents.
pub(crate) const RECORD_BYTES_MAX: &str = "67108864";
const MESSAGE_RECORD_BYTES_MAX: &str = "20971520";
/// How long to wait before a topic that was made is looked for again.
const LOOK: Duration = Duration::from_millis(20);

/// What to do about a channel whose topic has other partitions.
const PARTED: &str =
    "somebody changed the partitions of its topic: make another channel with as many lanes, and move to it";

/// The topic of the documents of a channel. No channel is called so.
pub(crate) fn documents(channel: &Name) -> String {
    format!("_tidegate.{channel}")
}

/// The channel whose documents are in a topic.
pub(crate) fn channel_of(topic: &str) -> Option<Name> {
    Name::new(topic.strip_prefix("_tidegate.")?).ok()
}

/// Makes the topics of a channel, and waits until they are there. One that is there is taken if it can carry the channel.
pub(crate) async fn create(link: &Arc<Link>, channel: &Channel) -> Result<()> {
    let (name, documents) = (channel.name.as_str(), documents(&channel.name));
    let new = |name, partitions: u32, bytes| {
        // Messages go when they are settled, and not by themselves.
        NewTopic::new(name, partitions.cast_signed(), TopicReplication::Fixed(link.config.replicas))
            .set("cleanup.policy", "delete")
            .set("retention.ms", "-1")
            .set("retention.bytes", "-1")
            .set("message.timestamp.type", "LogAppendTime")
            .set("max.message.bytes", bytes)
    };
    // The documents last: what has them is whole.
    for (topic, partitions, bytes) in
        [(name, channel.lanes, MESSAGE_RECORD_BYTES_MAX), (&documents, 1, RECORD_BYTES_MAX)]
    {
        let made = link.admin.create_topics(&[new(topic, partitions, bytes)], &link.options()).await;
        let made = made.map_err(|error| from_driver(error, "make a topic"))?;
        match made.into_iter().next() {
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {
                check(link, channel, topic, partitions).await?;
            }
            Some(Ok(_)) | None => {}
            // No name of ours is invalid for another reason.
            Some(Err((_, RDKafkaErrorCode::InvalidTopic))) => {
                let text = format!(
                    "channel {} cannot be made: there is a topic whose name differs only in . and _, and Kafka keeps only one of these",
                    channel.name
                );
                return Err(Error::new(code::NAME_TAKEN, text).hint("give the channel another name"));
            }
            Some(Err((_, error))) => return Err(from_code(error, "make a topic").with("topic", topic)),
        }
        let until = link.clock.elapsed() + link.config.access.timeout;
        loop {
            let found = link.partitions(topic).await?;
            if found == Some(partitions) {
                break;
            }
            if link.clock.elapsed() >= until {
                let late = || Error::new(code::TIMED_OUT, "a topic that was made is not seen in time");
                return Err(found.map_or_else(late, |found| parted(channel, topic, partitions, found)));
            }
            link.clock.sleep(LOOK).await;
        }
    }
    Ok(())
}

/// How large what is sent together to a partition of a channel may be.
pub(crate) async fn bytes_max(link: &Arc<Link>, channel: &Channel) -> Result<usize> {
    let found = link.settings(ResourceSpecifier::Topic(channel.name.as_str())).await?;
    let found = found.and_then(|found| found.get("max.message.bytes")?.value.clone());
    let ours = MESSAGE_RECORD_BYTES_MAX.parse().unwrap_or(usize::MAX);
    // Whoever may not look at it learns it by being refused.
    Ok(found.and_then(|found| found.parse().ok()).unwrap_or(ours).min(ours))
}

/// Whether a topic that somebody else made can carry a channel, or its documents.
async fn check(link: &Arc<Link>, channel: &Channel, topic: &str, partitions: u32) -> Result<()> {
    if let Some(found) = link.partitions(topic).await?.filter(|found| *found != partitions) {
        return Err(parted(channel, topic, partitions, found));
    }
    let Some(found) = link.settings(ResourceSpecifier::Topic(topic)).await? else {
        return Ok(());
    };
    for (setting, wanted) in [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")]
    {
        let value = found.get(setting).and_then(|entry| entry.value.clone());
        if let Some(value) = value.filter(|value| value != wanted) {
            return Err(differs(channel, topic, setting, wanted.to_owned(), value).hint(
                "the topic was made by somebody else, and would forget what is still needed: alter its setting",
            ));
        }
    }
    Ok(())
}

/// That a topic has other partitions than it is to have.
fn parted(channel: &Channel, topic: &str, wanted: u32, found: u32) -> Error {
    if topic == channel.name.as_str() {
        return differs(channel, topic, "lanes", wanted.to_string(), found.to_string()).hint(PARTED);
    }
    differs(channel, topic, "partitions", wanted.to_string(), found.to_string()).hint(
        "the topic was made by somebody else, or by the server itself (auto.create.topics.enable): delete it if nobody needs it, or give the channel another name",
    )
}

fn differs(channel: &Channel, topic: &str, setting: &'static str, wanted: String, found: String) -> Error {
    let name = channel.name.clone();
    if topic == name.as_str() {
        return Difference::ChannelDiffers { channel: name, setting, wanted, found }.error();
    }
    let text = format!(
        "the topic {topic}, of what is settled on channel {name}, has {setting} {found}, and {wanted} is asked for"
    );
    Error::new(code::CHANNEL_DIFFERS, text)
}

/// What of the topic of a channel is not as it was made.
pub(crate) async fn changed(link: &Arc<Link>, channel: &Channel) -> Result<Option<Difference>> {
    let name = || channel.name.clone();
    Ok(match link.partitions(channel.name.as_str()).await? {
        Some(found) if found == channel.lanes => None,
        Some(found) => Some(Difference::ChannelDiffers {
            channel: name(),
            setting: "lanes",
            wanted: channel.lanes.to_string(),
            found: found.to_string(),
        }),
        None => Some(Difference::ChannelMissing(name())),
    })
}

/// Looks whether the topic of a channel is there as it was made.
///
/// # Errors
/// `channel-missing`; `channel-differs` if it has not as many partitions as the channel has lanes: keys would change theirs.
pub(crate) async fn verify(link: &Arc<Link>, channel: &Channel) -> Result<()> {
    match changed(link, channel).await? {
        None => Ok(()),
        Some(difference @ Difference::ChannelDiffers { .. }) => Err(difference.error().hint(PARTED)),
        Some(difference) => Err(difference.error()),
    }
}
