//! Streams and hashes of one server as a log.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Cmd, FromRedisValue, RedisError, Script, Value, cmd};
use tidegate_broker::log::{Appender, Document, Log, Reader};
use tidegate_broker::unsettled::Place;
use tidegate_core::error::code;
use tidegate_core::port::Effective;
use tidegate_core::{Capabilities, Channel, Error, How, Lane, LossCase, LossEvent, Name, Result};

use crate::append::RedisAppender;
use crate::codec::{entry_id, place, place_at, text};
use crate::config::Config;
use crate::connect::Shared;
use crate::error::from_driver;
use crate::read::RedisReader;

pub(crate) static CAPABILITIES: Capabilities = Capabilities {
    confirm: "in the memory of the server, and in its append-only file as `appendfsync` says",
    order_by_key: How::Emulated("a stream a lane, with one owner at a time"),
    competing_consumers: How::Emulated("members share the lanes by a document that is compared and set"),
    durable_subscriptions: How::Emulated("documents of what is settled"),
    unregister: How::Native,
    replay: How::Native,
    dedupe: How::Emulated("a hash of the ids of the last minutes"),
    retry_later: How::Emulated("the owner of the lane keeps the message, and its time in a document"),
    dead_letter: How::No("publish to a channel of dead letters, then settle"),
    delivery_count: How::Emulated("counted by the owner of the lane, in a document"),
    lock_extend: How::Native,
    listing: How::Native,
    browsing: How::Native,
    processes: How::Native,
    message_bytes_max: 16 << 20,
    consumers_per_lane_max: 1,
    loss: &[
        LossCase {
            when: LossEvent::PowerLost,
            text: "what was confirmed in the last second, unless appendfsync is always; without an append-only file all since the last snapshot, also when the server is killed",
            avoid: "appendonly yes, appendfsync always",
        },
        LossCase {
            when: LossEvent::FailedOver,
            text: "replication is asynchronous: what the primary confirmed last may not be at the replica",
            avoid: "min-replicas-to-write, and an outbox that publishes again",
        },
    ],
};

static WRITE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/write.lua")));
static TRIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/trim.lua")));

/// The key of something of a channel. The braces keep all of a channel together in a cluster.
pub(crate) fn key(channel: &Name, what: &str) -> String {
    format!("tidegate:{{{channel}}}:{what}")
}

/// Older servers have no scripts that may run when memory is short.
fn check_version(version: &str) -> Result<()> {
    match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
        Some(..7) => Err(Error::new(code::VERSION_UNSUPPORTED, "the server is older than Redis 7")
            .with("version", version)
            .hint("update the server, or use a server of Valkey")),
        Some(7..) | None => Ok(()),
    }
}

#[derive(Debug)]
pub(crate) struct RedisLog {
    config: Arc<Config>,
    shared: Arc<Shared>,
}

impl RedisLog {
    pub(crate) fn new(config: Config) -> Self {
        Self { config: Arc::new(config), shared: Arc::default() }
    }

    /// What a command answers. A connection on which it was not answered is given up.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd, operation: &'static str) -> Result<T> {
        let mut connection = self.shared.get(&self.config).await?;
        let answer = command.query_async(&mut connection).await;
        answer.map_err(|error| self.failed(error, operation))
    }

    fn failed(&self, error: RedisError, operation: &'static str) -> Error {
        if error.is_io_error() || error.is_unrecoverable_error() {
            self.shared.lose();
        }
        from_driver(error, operation)
    }

    /// A setting of the server, if it may be read.
    async fn setting(&self, name: &str) -> Option<String> {
        let answer: Result<Vec<String>> =
            self.ask(cmd("CONFIG").arg("GET").arg(name), "read a setting").await;
        answer.ok()?.into_iter().nth(1)
    }
}

#[async_trait]
impl Log for RedisLog {
    fn location(&self) -> String {
        self.config.access.location.clone()
    }

    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }

    async fn probe(&self) -> Result<Effective> {
        let info: String = self.ask(cmd("INFO").arg("server"), "ask for the version").await?;
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("unknown");
        check_version(version)?;
        let mut warnings = Vec::new();
        let mut warn = |found: Option<String>, good: &[&str], what: &str| match found {
            Some(found) if good.contains(&&*found) => {}
            Some(found) => warnings.push(format!("{what} (it is {found:?})")),
            None => warnings.push(format!("whether this is so could not be read: {what}")),
        };
        warn(
            self.setting("appendonly").await,
            &["yes"],
            "appendonly is not yes: what was confirmed is lost when the server ends without a snapshot",
        );
        warn(
            self.setting("appendfsync").await,
            &["always"],
            "appendfsync is not always: what was confirmed in the last second is lost with the power",
        );
        warn(
            self.setting("maxmemory-policy").await,
            &["noeviction"],
            "maxmemory-policy is not noeviction: the server may remove what nobody has settled",
        );
        Ok(Effective { version: format!("Redis {version}"), warnings, notes: self.config.access.notes() })
    }

    /// A stream is made with its first entry.
    async fn create(&self, _: &Channel) -> Result<()> {
        self.ask(&cmd("PING"), "make a channel").await
    }

    async fn channels(&self) -> Result<Vec<Name>> {
        let (mut names, mut cursor) = (Vec::new(), 0_u64);
        loop {
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg("tidegate:{*}:document:channel").arg("COUNT").arg(1_000);
            let (next, keys): (u64, Vec<String>) = self.ask(&scan, "list channels").await?;
            let name = |key: &String| Name::new(key.strip_prefix("tidegate:{")?.split('}').next()?).ok();
            names.extend(keys.iter().filter_map(name));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        // A scan may find a key twice.
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    async fn document(&self, channel: &Name, name: &str) -> Result<Option<Document>> {
        let document = key(channel, &format!("document:{name}"));
        let found: (Option<u64>, Option<Vec<u8>>) =
            self.ask(cmd("HMGET").arg(document).arg("revision").arg("value"), "read a document").await?;
        let document = |(revision, value): (u64, Vec<u8>)| Document { value: value.into(), revision };
        Ok(found.0.zip(found.1).map(document))
    }

    async fn write(
        &self,
        channel: &Name,
        name: &str,
        value: Bytes,
        expected: Option<u64>,
    ) -> Result<Option<u64>> {
        let document = key(channel, &format!("document:{name}"));
        // By chance, so that no revision is like one of before a failover. In 53 bits, since scripts count in doubles.
        let revision = fastrand::u64(1..1 << 53);
        let expected = expected.map(|revision| revision.to_string()).unwrap_or_default();
        let mut connection = self.shared.get(&self.config).await?;
        let mut call = WRITE.key(document);
        let call = call.arg(expected).arg(revision).arg(&*value);
        let written: bool =
            call.invoke_async(&mut connection).await.map_err(|e| self.failed(e, "write a document"))?;
        Ok(written.then_some(revision))
    }

    async fn remove(&self, channel: &Name, name: &str) -> Result<()> {
        let document = key(channel, &format!("document:{name}"));
        self.ask::<Value>(cmd("DEL").arg(document), "remove a document").await.map(drop)
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
        let upto = upto.min(place_at(time).saturating_sub(1));
        self.last_of(channel, lane, &entry_id(upto)).await
    }

    async fn trim(&self, channel: &Channel, lane: Lane, upto: Place) -> Result<()> {
        let mut connection = self.shared.get(&self.config).await?;
        let mut call = TRIM.key(key(&channel.name, "record"));
        call.key(key(&channel.name, "sizes:")).key(key(&channel.name, "lane:"));
        let call = call.arg(lane.0).arg(entry_id(upto)).arg(entry_id(upto + 1));
        let trimmed = call.invoke_async::<Value>(&mut connection).await;
        trimmed.map(drop).map_err(|error| self.failed(error, "remove messages"))
    }

    async fn appender(&self, channel: &Channel) -> Result<Box<dyn Appender>> {
        Ok(Box::new(RedisAppender::open(Arc::clone(&self.config), channel).await?))
    }

    async fn reader(&self, channel: &Channel) -> Result<Box<dyn Reader>> {
        let (config, shared) = (Arc::clone(&self.config), Arc::clone(&self.shared));
        Ok(Box::new(RedisReader::open(config, shared, &channel.name).await?))
    }
}

impl RedisLog {
    async fn last_of_all(&self, channel: &Channel) -> Result<Place> {
        let record = key(&channel.name, "record");
        let found: (Option<u64>, Option<u64>) =
            self.ask(cmd("HMGET").arg(record).arg("ms").arg("seq"), "look for the last place").await?;
        let mut last = match found {
            (Some(millis), Some(number)) => place(&format!("{millis}-{number}"))?,
            _ => 0,
        };
        for lane in 0..channel.lanes {
            last = last.max(self.last_of(channel, Lane(lane), "+").await?);
        }
        Ok(last)
    }

    /// The place of the last entry of a lane up to an id, 0 if there is none.
    async fn last_of(&self, channel: &Channel, lane: Lane, upto: &str) -> Result<Place> {
        let stream = key(&channel.name, &format!("lane:{}", lane.0));
        let command = cmd("XREVRANGE").arg(stream).arg(upto).arg("-").arg("COUNT").arg(1).take();
        let found: Vec<(Value, Value)> = self.ask(&command, "look for an entry").await?;
        match found.into_iter().next() {
            Some((id, _)) => place(&text(id)?),
            None => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_are_too_old_are_refused() {
        for (version, is_refused) in
            [("6.2.14", true), ("7.0.15", false), ("10.1", false), ("unknown", false)]
        {
            let refused = check_version(version).err().map(|error| error.code());
            assert_eq!(refused, is_refused.then_some(code::VERSION_UNSUPPORTED), "{version}");
        }
    }
}
