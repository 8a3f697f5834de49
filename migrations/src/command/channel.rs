//! `tidegate channel`: channels of any broker, looked at and fed.

use std::io::{BufRead as _, BufReader, Read, stdin};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tidegate_core::error::code;
use tidegate_core::port::{Broker, Seen};
use tidegate_core::{
    Apply, Channel, Difference, Endpoint, Error, Keep, Message, Name, Position, Result, Scope, Start,
    Subscription, SystemIds, Topology,
};
use tidegate_runtime::Publisher;
use tokio_util::sync::CancellationToken;

use super::question::{agree, require_answer};
use super::run::stop_on_signal;
use crate::arguments::{ChannelVerb, OnChannel, Publish, duration};
use crate::registry::Registry;
use crate::render::{count, plain, say, table};

/// How long nothing has to come for all that is kept to have been shown.
const QUIET: Duration = Duration::from_secs(1);
/// How many messages are looked at, or published, at once.
const PIECE: usize = 500;
/// How long publishing is tried.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of a body stands in a line.
const BODY_CHARS: usize = 100;

pub(super) async fn channel(verb: &ChannelVerb, registry: &Registry, json: bool) -> Result<ExitCode> {
    let open = |url: &str| registry.open_broker(&Endpoint::parse(url)?);
    match verb {
        ChannelVerb::List { broker } => list(&open(broker)?.topology().await?, json),
        ChannelVerb::Tail { on, start, follow, limit } => {
            tail(&*open(&on.broker)?, on, start.as_deref(), *follow, *limit, json).await?;
        }
        ChannelVerb::Publish(publish) => {
            let broker = open(&publish.on.broker)?;
            let published = self::publish(&*broker, publish).await?;
            if json {
                say!("{}", json!({ "channel": publish.on.channel, "published": published }));
            } else {
                say!("{published} published");
            }
        }
        ChannelVerb::Apply { broker, file, verify } => {
            return apply(&*open(broker)?, file, *verify, json).await;
        }
        ChannelVerb::Unregister { on, subscription, yes } => {
            require_answer("the end of a subscription", *yes)?;
            let broker = open(&on.broker)?;
            let channel = found(&*broker, on).await?;
            let subscription = Subscription::new(&channel, subscription.as_str())?;
            let what = format!("Remove {} of {} with all its messages?", subscription.name, channel.name);
            agree(*yes, &what)?;
            broker.unregister(&subscription).await?;
            if json {
                say!("{}", json!({ "channel": on.channel, "unregistered": subscription.name.as_str() }));
            } else {
                say!("{} of {} is unregistered", subscription.name, channel.name);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn found(broker: &dyn Broker, on: &OnChannel) -> Result<Channel> {
    let name = Name::new(on.channel.as_str())?;
    broker.channel(&name).await?.ok_or_else(|| {
        Error::new(code::CHANNEL_MISSING, format!("there is no channel {name}"))
            .with("broker", broker.location())
            .hint("tidegate channel list shows those that are there, tidegate channel apply makes one")
    })
}

fn list(topology: &Topology, json: bool) {
    let of = |channel: &Channel| -> Vec<&str> {
        let all = topology.subscriptions.iter().filter(|subscription| subscription.channel == channel.name);
        all.map(|subscription| subscription.name.as_str()).collect()
    };
    if json {
        let document = |channel: &Channel| {
            json!({
                "name": channel.name.as_str(),
                "lanes": channel.lanes,
                "keep_seconds": match channel.keep {
                    Keep::UntilSettled => None,
                    Keep::AtLeast(time) => Some(time.as_secs_f64()),
                },
                "messages_max": channel.messages_max,
                "bytes_max": channel.bytes_max,
                "subscriptions": of(channel),
            })
        };
        say!("{}", serde_json::Value::from_iter(topology.channels.iter().map(document)));
        return;
    }
    if topology.channels.is_empty() {
        say!("no channels");
        return;
    }
    let row = |channel: &Channel| {
        let keep = match channel.keep {
            Keep::UntilSettled => "until settled".to_owned(),
            Keep::AtLeast(time) => format!("{time:?}"),
        };
        let [messages, bytes] = [channel.messages_max, channel.bytes_max].map(count);
        vec![
            channel.name.to_string(),
            channel.lanes.to_string(),
            keep,
            messages,
            bytes,
            of(channel).join(" "),
        ]
    };
    let head = ["channel", "lanes", "kept", "messages at most", "bytes at most", "subscriptions"];
    say!("{}", table(&head, topology.channels.iter().map(row).collect()));
}

async fn tail(
    broker: &dyn Broker,
    on: &OnChannel,
    start: Option<&str>,
    follow: bool,
    limit: Option<u64>,
    json: bool,
) -> Result<()> {
    let start = match start {
        Some("earliest") => Start::Earliest,
        Some("latest") => Start::Latest,
        Some(position) => Start::After(position.parse::<Position>()?),
        None if follow => Start::Latest,
        None => Start::Earliest,
    };
    let channel = found(broker, on).await?;
    let mut browse = broker.browse(&channel.name, &start).await?;
    let stop = CancellationToken::new();
    let mut signals = Scope::new();
    signals.spawn(stop_on_signal(stop.clone()));
    let mut left = limit.unwrap_or(u64::MAX);
    let mut seen = Vec::new();
    while left > 0 {
        let max = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
        tokio::select! {
            looked = browse.next(max, QUIET, &mut seen) => looked?,
            () = stop.cancelled() => return Ok(()),
        }
        if seen.is_empty() && !follow {
            return Ok(());
        }
        left -= seen.len() as u64;
        seen.drain(..).for_each(|seen| show(&seen, json));
    }
    Ok(())
}

fn show(seen: &Seen, json: bool) {
    if json {
        say!("{}", seen.message.to_json());
        return;
    }
    let time = seen.stored_at.and_then(chrono::DateTime::from_timestamp_micros);
    let time = time.map_or("-".to_owned(), |at| at.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string());
    let position = seen.position.as_ref().map_or("-".to_owned(), ToString::to_string);
    let Message { id, kind, subject, data, .. } = &seen.message;
    let subject = subject.as_deref().unwrap_or("-");
    let body = match std::str::from_utf8(data) {
        // On its line.
        Ok(text) => text.chars().take(BODY_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect(),
        Err(_) => format!("({} bytes)", data.len()),
    };
    say!("{time} {} {position} {id} {} {} {}", seen.lane.0, plain(kind), plain(subject), plain(&body));
}

async fn publish(broker: &dyn Broker, publish: &Publish) -> Result<u64> {
    let channel = found(broker, &publish.on).await?;
    let mut publisher = Publisher::open(broker, &channel).with_patience(PATIENCE).await?;
    let mut published = 0;
    match &publish.lines {
        Some(file) => {
            let mut batch = Vec::new();
            for (line, number) in BufReader::new(input(file)?).lines().zip(1_u64..) {
                let line = line.map_err(|error| unreadable(file, error))?;
                if line.trim().is_empty() {
                    continue;
                }
                let message = Message::from_json(line.as_bytes());
                batch.push(message.map_err(|error| {
                    error.with("line", number).with("published", published).with("file", file.display())
                })?);
                if batch.len() == PIECE {
                    publisher.publish(&batch).await.map_err(|error| error.with("published", published))?;
                    published += batch.len() as u64;
                    batch.clear();
                }
            }
            publisher.publish(&batch).await.map_err(|error| error.with("published", published))?;
            published += batch.len() as u64;
        }
        None => {
            publisher.publish(&[one(publish)?]).await?;
            published = 1;
        }
    }
    publisher.close(PATIENCE).await?;
    Ok(published)
}

fn one(publish: &Publish) -> Result<Message> {
    let kind: Arc<str> = publish.kind.as_deref().unwrap_or_default().into();
    let source = publish.source.as_str();
    let mut message = match &publish.id {
        Some(id) => Message::with_id(id.as_str(), source, kind),
        None => Message::new(&SystemIds, source, kind),
    };
    message.subject = publish.subject.as_deref().map(Into::into);
    for header in &publish.headers {
        let (name, value) = header.split_once('=').ok_or_else(|| {
            Error::new(code::CONFIG_INVALID, format!("the header {header} is not NAME=VALUE"))
        })?;
        message.headers.set(name, value)?;
    }
    if let Some(file) = &publish.body {
        let mut body = Vec::new();
        input(file)?.read_to_end(&mut body).map_err(|error| unreadable(file, error))?;
        message = message.with_data(publish.content_type.as_str(), body);
    }
    Ok(message)
}

fn input(file: &Path) -> Result<Box<dyn Read>> {
    if file.as_os_str() == "-" {
        return Ok(Box::new(stdin()));
    }
    Ok(Box::new(std::fs::File::open(file).map_err(|error| unreadable(file, error))?))
}

fn unreadable(file: &Path, error: std::io::Error) -> Error {
    Error::new(code::CONFIG_INVALID, format!("{} cannot be read", file.display())).because(error)
}

/// The file of `apply`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    channel: Vec<WantedChannel>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedChannel {
    name: String,
    lanes: Option<u32>,
    keep: Option<String>,
    messages_max: Option<u64>,
    bytes_max: Option<u64>,
    #[serde(default)]
    subscriptions: Vec<String>,
}

impl Wanted {
    fn topology(self) -> Result<Topology> {
        let mut topology = Topology::default();
        for wanted in self.channel {
            let mut channel = Channel::new(wanted.name)?;
            channel.lanes = wanted.lanes.unwrap_or(channel.lanes);
            channel.messages_max = wanted.messages_max.unwrap_or(channel.messages_max);
            channel.bytes_max = wanted.bytes_max.unwrap_or(channel.bytes_max);
            if let Some(keep) = wanted.keep {
                let keep = duration(&keep).map_err(|why| {
                    Error::new(code::CONFIG_INVALID, format!("channel {}: keep: {why}", channel.name))
                })?;
                channel.keep = Keep::AtLeast(keep);
            }
            for name in wanted.subscriptions {
                topology.subscriptions.push(Subscription::new(&channel, name)?);
            }
            topology.channels.push(channel);
        }
        Ok(topology)
    }
}

async fn apply(broker: &dyn Broker, file: &Path, verify: bool, json: bool) -> Result<ExitCode> {
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, error))?;
    let wanted: Wanted = toml::from_str(&text).map_err(|error| {
        Error::new(code::CONFIG_INVALID, format!("{}: {error}", file.display())).hint(
            "[[channel]] with name, and if you like lanes, keep, messages_max, bytes_max, subscriptions",
        )
    })?;
    let topology = wanted.topology()?;
    let mode = if verify { Apply::Verify } else { Apply::Create };
    let differences = broker.apply(&topology, mode).await?;
    let text = |difference: &Difference| match difference {
        Difference::ChannelMissing(name) if !verify => format!("made channel {name}"),
        Difference::SubscriptionMissing { channel, name } if !verify => {
            format!("made subscription {name} of {channel}")
        }
        difference => difference.to_string(),
    };
    let texts: Vec<String> = differences.iter().map(text).collect();
    if json {
        let name = if verify { "differences" } else { "made" };
        say!("{}", json!({ name: texts }));
    } else {
        texts.iter().for_each(|text| say!("{text}"));
        if texts.is_empty() {
            say!("everything is there as the file says");
        }
    }
    Ok(ExitCode::from(if verify && !texts.is_empty() { 4 } else { 0 }))
}
