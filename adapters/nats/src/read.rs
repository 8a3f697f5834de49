//! Reads messages by a consumer a lane, and waits for them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, IntoConsumerConfig as _, pull};
use async_nats::jetstream::response::Response;
use async_nats::{StatusCode, Subscriber};
use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _};
use serde::de::IgnoredAny;
use tidegate_broker::hand::Fetched;
use tidegate_broker::log::Reader;
use tidegate_broker::unsettled::Place;
use tidegate_core::error::code;
use tidegate_core::port::Attempt;
use tidegate_core::{Error, Lane, Message, Name, Result};
use tokio::task::unconstrained;
use tokio::time::Instant;

use crate::codec::{Delivered, decode, stream, subject};
use crate::config::Config;
use crate::connect::{API, Link};
use crate::error::from_server;

/// How long the server keeps what a consumer asked for, how often it says meanwhile that it is there, and behind how long a
/// silence it is asked anew.
const EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(12);
/// How long the server keeps a consumer that asks for nothing.
const INACTIVE: Duration = Duration::from_secs(30);

/// The last word of the subject to which the server says that it has made a consumer.
const MADE: &str = "made";

pub(crate) struct NatsReader {
    channel: Name,
    /// Its own, and one subject of it for everything that the server sends.
    link: Link,
    inbox: String,
    arriving: Subscriber,
    lanes: BTreeMap<Lane, Reading>,
    timeout: Duration,
}

/// A consumer of a lane: it gives each message behind its start once, in order.
struct Reading {
    consumer: String,
    /// The number of the last message that came of it.
    number: u64,
    /// The place of the last message that came, and that of the last one that was passed on.
    came: Place,
    passed: Place,
    messages: VecDeque<Fetched>,
    /// How many messages were asked for and have not come.
    asked: usize,
    /// When the server was heard of last, or asked.
    heard: Instant,
    /// The server has the consumer; and it is gone, or something of it is.
    is_made: bool,
    is_lost: bool,
    answer: Answer,
}

/// Whether it is known that the server has nothing more just now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Unasked,
    Open,
    Here,
}

impl NatsReader {
    pub(crate) async fn open(config: &Arc<Config>, channel: &Name) -> Result<Self> {
        let link = Link::open(config).await?;
        let inbox = link.client().new_inbox();
        let arriving = link.client().subscribe(format!("{inbox}.*.*.*")).await;
        let arriving = arriving.map_err(|error| lost().because(error))?;
        let (channel, lanes, timeout) = (channel.clone(), BTreeMap::new(), config.access.timeout);
        Ok(Self { channel, link, inbox, arriving, lanes, timeout })
    }

    /// Has a consumer of a lane made that goes on behind a place, unless there is one. What the server answers arrives like
    /// everything else, so that a call may be dropped meanwhile.
    async fn begin(&mut self, lane: Lane, after: Place) -> Result<()> {
        let old = match self.lanes.get(&lane) {
            Some(reading) if reading.passed == after && !reading.is_lost => return Ok(()),
            old => old.map(|reading| reading.consumer.clone()),
        };
        let stream = stream(&self.channel);
        if let Some(old) = old {
            // The server would forget it by itself, after a while.
            self.send(format!("CONSUMER.DELETE.{stream}.{old}"), String::new(), String::new()).await?;
        }
        let consumer = format!("tidegate-{:016x}", fastrand::u64(..));
        // What came in order stays.
        let kept = self.lanes.get(&lane).filter(|reading| reading.passed == after);
        let came = kept.map_or(after, |reading| reading.came);
        let filter = subject(&self.channel, Some(lane));
        let asked = format!("CONSUMER.CREATE.{stream}.{consumer}.{filter}");
        let wanted = pull::Config {
            name: Some(consumer.clone()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: came + 1 },
            ack_policy: AckPolicy::None,
            filter_subject: filter,
            inactive_threshold: INACTIVE,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        let wanted = serde_json::json!({ "stream_name": stream, "config": wanted.into_consumer_config() });
        let heard = Instant::now();
        self.send(asked, format!("{}.{consumer}.{MADE}", lane.0), wanted.to_string()).await?;
        let kept = self.lanes.remove(&lane).filter(|reading| reading.passed == after);
        let reading = Reading {
            consumer,
            number: 0,
            came,
            passed: after,
            messages: kept.map(|reading| reading.messages).unwrap_or_default(),
            asked: 0,
            heard,
            is_made: false,
            is_lost: false,
            answer: Answer::Unasked,
        };
        self.lanes.insert(lane, reading);
        Ok(())
    }

    /// Sends a request to JetStream; its answer comes to this subject of ours.
    async fn send(&self, asked: String, answer: String, what: String) -> Result<()> {
        let (client, asked) = (self.link.client(), format!("{API}{asked}"));
        let sent = match answer.is_empty() {
            true => client.publish(asked, what.into()).await,
            false => client.publish_with_reply(asked, format!("{}.{answer}", self.inbox), what.into()).await,
        };
        sent.map_err(|error| lost().because(error))
    }

    /// Asks for so many messages of a lane; `waits` says whether also for those that are not there yet.
    async fn pull(&mut self, lane: Lane, batch: usize, waits: bool) -> Result<()> {
        let Some(reading) = self.lanes.get(&lane) else { return Ok(()) };
        let what = match waits {
            true => serde_json::json!({
                "batch": batch, "expires": nanos(EXPIRES), "idle_heartbeat": nanos(HEARTBEAT)
            }),
            false => serde_json::json!({ "batch": batch, "no_wait": true }),
        };
        let asked = format!("CONSUMER.MSG.NEXT.{}.{}", stream(&self.channel), reading.consumer);
        let answer = format!("{}.{}.{batch}", lane.0, reading.consumer);
        let heard = Instant::now();
        self.send(asked, answer, what.to_string()).await?;
        let Some(reading) = self.lanes.get_mut(&lane) else { return Ok(()) };
        (reading.answer, reading.heard) = (Answer::Open, heard);
        reading.asked += batch;
        Ok(())
    }

    /// Takes what arrived.
    fn take(&mut self, arrived: async_nats::Message) -> Result<()> {
        if arrived.subject.starts_with(&self.inbox) {
            return self.hear(&arrived);
        }
        let lane = arrived.subject.rsplit('.').next().and_then(|lane| lane.parse().ok()).map(Lane);
        let told = arrived.reply.as_deref().and_then(Delivered::of);
        let (Some(lane), Some(told)) = (lane, told) else { return Ok(()) };
        // One of before may still send.
        let reading = self.lanes.get_mut(&lane).filter(|reading| reading.consumer == told.consumer);
        let Some(reading) = reading else { return Ok(()) };
        if told.number != reading.number + 1 {
            reading.is_lost = true;
        }
        if reading.is_lost {
            return Ok(());
        }
        let place = told.place;
        let message = decode(arrived.headers.as_ref(), arrived.payload.clone());
        let message = message.unwrap_or_else(|error| {
            Message::undecodable(&self.channel, lane, place, &error, arrived.payload.clone())
        });
        let stored_at = Some(told.stored_at);
        (reading.number, reading.came, reading.heard) = (told.number, place, Instant::now());
        (reading.asked, reading.answer) = (reading.asked.saturating_sub(1), Answer::Here);
        let attempt = Attempt::AtLeast(1);
        let message = Arc::new(message);
        reading.messages.push_back(Fetched { place, message, stored_at, attempt, has_position: true });
        Ok(())
    }

    /// Takes what the server says of what was asked for.
    fn hear(&mut self, arrived: &async_nats::Message) -> Result<()> {
        // As it was asked: lane, consumer, how many, or that it is to be made.
        let mut words = arrived.subject.rsplit('.');
        let (Some(batch), Some(consumer), Some(lane)) = (words.next(), words.next(), words.next()) else {
            return Ok(());
        };
        let lane = lane.parse().ok().map(Lane);
        let reading = lane.and_then(|lane| self.lanes.get_mut(&lane));
        let Some(reading) = reading.filter(|reading| reading.consumer == consumer) else { return Ok(()) };
        reading.heard = Instant::now();
        let left = arrived.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
        let left = left.map_or(batch, |left| left.as_str()).parse().unwrap_or(usize::MAX);
        match arrived.status {
            None => match serde_json::from_slice(&arrived.payload) {
                Ok(Response::Err { error }) => return Err(from_server(&error, "make a consumer")),
                Ok(Response::Ok(IgnoredAny)) => reading.is_made = true,
                Err(error) => {
                    return Err(Error::new(code::STREAM_MALFORMED, "an answer cannot be read").because(error));
                }
            },
            Some(_) if batch == MADE => {
                return Err(Error::new(code::UNREACHABLE, "JetStream is not ready"));
            }
            Some(StatusCode::IDLE_HEARTBEAT) => {}
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => {
                reading.asked = reading.asked.saturating_sub(left);
                reading.answer = Answer::Here;
            }
            Some(_) => reading.is_lost = true,
        }
        Ok(())
    }

    /// Takes all that has arrived by now, however much it is: a share of it would cost as much.
    fn take_all(&mut self) -> Result<()> {
        while let Some(arrived) = unconstrained(self.arriving.next()).now_or_never() {
            self.take(arrived.ok_or_else(lost)?)?;
        }
        Ok(())
    }

    /// Has what is wanted asked for.
    async fn ask(&mut self, wanted: &[(Lane, Place, usize)], waits: bool) -> Result<()> {
        for (lane, after, count) in wanted {
            self.begin(*lane, *after).await?;
            let Some(reading) = self.lanes.get(lane).filter(|reading| reading.is_made) else { continue };
            let (count, here) = ((*count).max(1), reading.messages.len() + reading.asked);
            let is_unasked = reading.messages.is_empty() && reading.answer == Answer::Unasked;
            if !waits && is_unasked {
                self.pull(*lane, count, false).await?;
            } else if waits && here <= count / 2 {
                // By halves, so that there is always something that the server may send.
                self.pull(*lane, count - here, true).await?;
            }
        }
        Ok(())
    }

    fn is_any(&self, wanted: &[(Lane, Place, usize)], is: impl Fn(&Reading) -> bool) -> bool {
        wanted.iter().filter_map(|(lane, ..)| self.lanes.get(lane)).any(is)
    }

    /// Passes on what is there.
    fn pass(&mut self, wanted: &[(Lane, Place, usize)], out: &mut Vec<(Lane, Fetched)>) {
        for (lane, _, count) in wanted {
            let Some(reading) = self.lanes.get_mut(lane) else { continue };
            let count = reading.messages.len().min(*count);
            for fetched in reading.messages.drain(..count) {
                reading.passed = fetched.place;
                out.push((*lane, fetched));
            }
        }
    }
}

#[async_trait]
impl Reader for NatsReader {
    async fn read(
        &mut self,
        wanted: &[(Lane, Place, usize)],
        wait: Duration,
        out: &mut Vec<(Lane, Fetched)>,
    ) -> Result<()> {
        let waits = !wait.is_zero();
        let until = Instant::now() + if waits { wait } else { self.timeout };
        // Silence is told when there is nothing of before to be heard.
        self.take_all()?;
        for reading in self.lanes.values_mut() {
            reading.answer = Answer::Unasked;
            let is_waiting = reading.asked > 0 || !reading.is_made;
            reading.is_lost |= is_waiting && reading.heard.elapsed() > SILENCE;
        }
        loop {
            self.take_all()?;
            self.ask(wanted, waits).await?;
            let is_here = self.is_any(wanted, |reading| !reading.messages.is_empty());
            if is_here || !waits && !self.is_any(wanted, |reading| reading.answer != Answer::Here) {
                break;
            }
            match tokio::time::timeout_at(until, self.arriving.next()).await {
                Ok(arrived) => self.take(arrived.ok_or_else(lost)?)?,
                Err(_) if waits => break,
                Err(_) => {
                    let late = Error::new(code::TIMED_OUT, "the server did not answer in time");
                    let readings = wanted.iter().filter_map(|(lane, ..)| self.lanes.get(lane));
                    let since = readings.map(|reading| reading.heard).min().unwrap_or(until);
                    return Err(self.link.explain(late, since, |subject| subject.starts_with(API)));
                }
            }
        }
        self.pass(wanted, out);
        Ok(())
    }
}

fn lost() -> Error {
    Error::new(code::CONNECTION_LOST, "the connection was lost").with("operation", "read messages")
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
