//! `tidegate channel`: channels of any broker, looked at and fed.

use std::io::{BufRead, BufReader, Read, stdin};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tidegate_core::error::code;
use tidegate_core::port::Seen;
use tidegate_core::{
    Apply, Channel, Difference, Error, Keep, Message, Position, Result, Scope, Start, Subscription,
    SystemIds, Topology,
};
use tidegate_runtime::Publisher;
use tokio_util::sync::CancellationToken;

use super::asked::{Asked, File};
use super::question::{agree, require_answer};
use super::run::stop_on_signal;
use crate::arguments::{ChannelVerb, Common, OnChannel, Publish, duration};
use crate::registry::Registry;
use crate::render::{count, plain, say, table};

/// How long nothing has to come for all that is kept to have been shown.
const QUIET: Duration = Duration::from_secs(1);
/// How many messages are looked at, or published, at once.
const PIECE: usize = 500;
/// Longer than the line of any message can be.
const LINE_MAX: u64 = 64 << 20;
/// How much of a body stands in a line.
const BODY_CHARS: usize = 100;

pub(super) async fn channel(verb: &ChannelVerb, registry: &Registry, common: &Common) -> Result<ExitCode> {
    let open = |url: &str| Asked::open_shared(common, registry, url, File::IsThere);
    let json = common.json;
    match verb {
        ChannelVerb::List { broker } => {
            let asked = open(broker)?;
            let topology = asked.within("listing channels", asked.broker.topology()).await;
            list(&topology.map_err(unlisted)?, json);
        }
        ChannelVerb::Tail { on, start, follow, limit } => {
            tail(&open(&on.broker)?, on, start.as_deref(), *follow, *limit, json).await?;
        }
        ChannelVerb::Publish(publish) => {
            let published = self::publish(&open(&publish.on.broker)?, publish).await?;
            if json {
                say!("{}", json!({ "channel": publish.on.channel, "published": published }));
            } else {
                say!("{published} published");
            }
        }
        ChannelVerb::Apply { broker, file, verify } => {
            let made = if *verify { File::IsThere } else { File::IsMade };
            return apply(&Asked::open_shared(common, registry, broker, made)?, file, *verify, json).await;
        }
        ChannelVerb::Unregister { on, subscription, yes } => {
            require_answer("the end of a subscription", *yes)?;
            let asked = open(&on.broker)?;
            let channel = asked.channel(&on.channel).await?;
            let subscription = Subscription::new(&channel, subscription.as_str())?;
            require(&asked, &channel, &subscription).await?;
            let what = format!("Remove {} of {} with all its messages?", subscription.name, channel.name);
            agree(*yes, &what)?;
            asked.within("unregistering", asked.broker.unregister(&subscription)).await?;
            if json {
                say!("{}", json!({ "channel": on.channel, "unregistered": subscription.name.as_str() }));
            } else {
                say!("{} of {} is unregistered", subscription.name, channel.name);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What to do where a broker does not list its channels.
fn unlisted(error: Error) -> Error {
    if error.code() != code::CAPABILITY_MISSING {
        return error;
    }
    error.hint(
        "tidegate channel apply --verify looks at those of a file; the server's own tools list its queues",
    )
}

/// Refuses a subscription that is not there: its end would be said to be reached.
async fn require(asked: &Asked, channel: &Channel, subscription: &Subscription) -> Result<()> {
    let topology = Topology::of(channel).and(subscription);
    let differences =
        asked.within("looking for the subscription", asked.broker.apply(&topology, Apply::Verify));
    let is_missing = |difference: &Difference| matches!(difference, Difference::SubscriptionMissing { .. });
    match differences.await?.into_iter().find(is_missing) {
        Some(difference) => Err(Error::new(code::SUBSCRIPTION_MISSING, difference.to_string())
            .with("broker", asked.broker.location())
            .hint("look at its spelling: nothing was removed")),
        None => Ok(()),
    }
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
        let [messages, bytes] = [channel.messages_max, channel.bytes_max].map(count);
        vec![
            channel.name.to_string(),
            channel.lanes.to_string(),
            channel.keep.to_string(),
            messages,
            bytes,
            of(channel).join(" "),
        ]
    };
    let head = ["channel", "lanes", "kept", "messages at most", "bytes at most", "subscriptions"];
    say!("{}", table(&head, topology.channels.iter().map(row).collect()));
}

async fn tail(
    asked: &Asked,
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
    let channel = asked.channel(&on.channel).await?;
    let browse = asked.broker.browse(&channel.name, &start);
    let mut browse = asked.within("looking at the messages", browse).await?;
    let stop = CancellationToken::new();
    let mut signals = Scope::new();
    signals.spawn(stop_on_signal(stop.clone()));
    let mut left = limit.unwrap_or(u64::MAX);
    let mut seen = Vec::new();
    let mut heading = (!json).then_some("stored lane position id kind subject body");
    while left > 0 {
        let max = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
        tokio::select! {
            looked = asked.within("looking at the messages", browse.next(max, QUIET, &mut seen)) => looked?,
            () = stop.cancelled() => return Ok(()),
        }
        if seen.is_empty() && !follow {
            return Ok(());
        }
        left -= seen.len() as u64;
        if !seen.is_empty()
            && let Some(heading) = heading.take()
        {
            say!("{heading}");
        }
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

async fn publish(asked: &Asked, publish: &Publish) -> Result<u64> {
    let channel = asked.channel(&publish.on.channel).await?;
    let opening = Publisher::open(&*asked.broker, &channel).with_patience(asked.patience);
    let mut publisher = asked.within("opening the channel", opening.into_future()).await?;
    let mut published = 0;
    let store = async |publisher: &mut Publisher, batch: &[Message], published: u64| {
        // It ends by itself, and says why.
        let stored = asked.told("storing", publisher.publish(batch)).await;
        stored.map_err(|error| error.with("published", published))
    };
    match &publish.lines {
        Some(file) => {
            let mut batch = Vec::new();
            let mut lines = BufReader::new(input(file)?);
            for number in 1_u64.. {
                let line = next_line(&mut lines).map_err(|error| unreadable(file, error))?;
                let Some(line) = line else { break };
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let message = Message::from_json(&line);
                batch.push(message.map_err(|error| {
                    error.with("line", number).with("published", published).with("file", file.display())
                })?);
                if batch.len() == PIECE {
                    store(&mut publisher, &batch, published).await?;
                    published += batch.len() as u64;
                    batch.clear();
                }
            }
            store(&mut publisher, &batch, published).await?;
            published += batch.len() as u64;
        }
        None => {
            store(&mut publisher, &[one(publish)?], 0).await?;
            published = 1;
        }
    }
    asked.told("ending", publisher.close(asked.patience)).await?;
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
        message.headers.set(name, value).map_err(usage)?;
    }
    if let Some(file) = &publish.body {
        let mut body = Vec::new();
        input(file)?.read_to_end(&mut body).map_err(|error| unreadable(file, error))?;
        message = message.with_data(publish.content_type.as_str(), body);
        message
            .check_json()
            .map_err(|error| usage(error).hint("correct the body, or say with --content-type what it is"))?;
    }
    message.check().map_err(usage)?;
    Ok(message)
}

/// What cannot stand in a message, where the command line says it.
pub(super) fn usage(error: Error) -> Error {
    Error::new(code::CONFIG_INVALID, error.message().to_owned())
}

/// The next line, if there is one.
fn next_line(lines: &mut impl BufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    lines.take(LINE_MAX).read_until(b'\n', &mut line)?;
    if line.len() as u64 == LINE_MAX {
        return Err(std::io::Error::other(format!("a line is longer than {} bytes", LINE_MAX - 1)));
    }
    Ok(Some(line).filter(|line| !line.is_empty()))
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

async fn apply(asked: &Asked, file: &Path, verify: bool, json: bool) -> Result<ExitCode> {
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, error))?;
    let wanted: Wanted = toml::from_str(&text).map_err(|error| {
        Error::new(code::CONFIG_INVALID, format!("{}: {error}", file.display())).hint(
            "[[channel]] with name, and if you like lanes, keep, messages_max, bytes_max, subscriptions",
        )
    })?;
    let topology = wanted.topology()?;
    let mode = if verify { Apply::Verify } else { Apply::Create };
    let differences = asked.within("applying the file", asked.broker.apply(&topology, mode)).await?;
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
