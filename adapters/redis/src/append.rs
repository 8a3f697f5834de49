//! Appends messages, a batch by one script.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{Script, Value, cmd};
use tidegate_broker::log::{Appended, Appender};
use tidegate_core::error::Verdict;
use tidegate_core::{Channel, Message, Result};

use crate::codec::{encode, name, place, text};
use crate::config::Config;
use crate::connect::open;
use crate::error::from_driver;
use crate::log::key;

static APPEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/append.lua")));

pub(crate) struct RedisAppender {
    config: Arc<Config>,
    channel: Channel,
    /// Its own, so that one producer's batches keep their order. A lost one is not made anew: what was sent over it may
    /// still be done.
    connection: MultiplexedConnection,
    /// A call was sent and not answered.
    is_open: bool,
}

impl RedisAppender {
    pub(crate) async fn open(config: Arc<Config>, channel: &Channel) -> Result<Self> {
        let mut connection = open(&config, config.access.timeout).await?;
        // So that the first batch is not sent twice.
        let loaded = APPEND.prepare_invoke().load_async(&mut connection).await;
        loaded.map_err(|error| from_driver(error, "load a script"))?;
        Ok(Self { config, channel: channel.clone(), connection, is_open: false })
    }

    async fn call(&mut self, batch: &[&Message]) -> Result<Vec<Value>> {
        let channel = &self.channel;
        let mut call = APPEND.prepare_invoke();
        for what in ["record", "ids:", "sizes:", "lane:"] {
            call.key(key(&channel.name, what));
        }
        call.arg(channel.lanes).arg(channel.messages_max).arg(channel.bytes_max);
        call.arg(self.config.dedupe.as_secs());
        for message in batch {
            call.arg(message.lane(channel.lanes).0).arg(name(message)).arg(message.size());
            let fields = encode(message);
            call.arg(fields.len() / 2);
            for part in &fields {
                call.arg(&**part);
            }
        }
        self.is_open = true;
        let answers = call.invoke_async(&mut self.connection).await;
        let answers = answers.map_err(|error| from_driver(error, "append messages"));
        self.is_open = answers.as_ref().is_err_and(|error| error.verdict() == Verdict::Unknown);
        answers
    }
}

#[async_trait]
impl Appender for RedisAppender {
    async fn append(&mut self, batch: &[&Message]) -> Vec<Appended> {
        let answers = match self.call(batch).await {
            Ok(answers) => answers,
            Err(error) => {
                let again = || error.again().with("cause", format!("{error:?}"));
                let failed = |_: &&Message| match error.verdict() {
                    Verdict::Unknown => Appended::Unknown(again()),
                    Verdict::Retry | Verdict::Never => Appended::Refused(again()),
                };
                return batch.iter().map(failed).collect();
            }
        };
        let stored = |answer: Value| {
            let text = text(answer)?;
            let (id, duplicate) = text.strip_prefix('=').map_or((&*text, false), |id| (id, true));
            Ok(Appended::Stored { place: place(id)?, duplicate })
        };
        let mut answers: Vec<_> =
            answers.into_iter().map(|answer| stored(answer).unwrap_or_else(Appended::Unknown)).collect();
        answers.resize_with(batch.len(), || Appended::Full);
        answers
    }

    async fn finish(&mut self) -> Result<()> {
        if !self.is_open {
            return Ok(());
        }
        // Commands of a connection are done in their order.
        let answer: redis::RedisResult<Value> = cmd("PING").query_async(&mut self.connection).await;
        answer.map(drop).map_err(|error| from_driver(error, "end a producer").verdict_is(Verdict::Unknown))
    }
}
