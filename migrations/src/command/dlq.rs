//! `tidegate dlq`: messages that could not be handled.

use std::process::ExitCode;

use serde_json::{Map, Value, json};
use tidegate_core::error::code;
use tidegate_core::{Endpoint, Error, Message, Name, Result, SystemClock};
use tidegate_runtime::dead_letter::{self, DeadLetters};

use super::question::{agree, require_answer};
use crate::arguments::{Chosen, Dlq, Letters, ReasonWord};
use crate::registry::Registry;
use crate::render::{say, table};

pub(super) async fn dlq(verb: &Dlq, registry: &Registry, json: bool) -> Result<ExitCode> {
    match verb {
        Dlq::List { letters, chosen } => {
            let mut dead = open(letters, registry).await?;
            let listed = read(&mut dead, |letter| chosen.has(letter)).await;
            list(&close(dead, listed).await?, letters, json);
        }
        Dlq::Show { letters, id } => {
            let mut dead = open(letters, registry).await?;
            let found = read(&mut dead, |letter| *letter.id == **id).await;
            let found = close(dead, found).await?;
            show(found.first().ok_or_else(|| missing(letters, id))?, json);
        }
        Dlq::Replay { letters, chosen, all } => {
            chosen.require(*all, "replay")?;
            let mut dead = open(letters, registry).await?;
            let replayed = async {
                dead.read().await?.for_each(drop);
                dead.replay(|letter| chosen.has(letter)).await
            };
            let replayed = replayed.await;
            done("replayed", close(dead, replayed).await?, letters, json);
        }
        Dlq::Edit { letters, id, body } => {
            let with = std::fs::read(body).map_err(|error| {
                let text = format!("the body {} cannot be read", body.display());
                Error::new(code::CONFIG_INVALID, text).because(error)
            })?;
            let mut dead = open(letters, registry).await?;
            let replayed = async {
                dead.read().await?.for_each(drop);
                dead.replay_with(id, &with.into()).await
            };
            let replayed = replayed.await;
            let count = close(dead, replayed).await?;
            if count == 0 {
                return Err(missing(letters, id));
            }
            done("replayed", count, letters, json);
        }
        Dlq::Purge { letters, chosen, all, yes } => {
            chosen.require(*all, "purge")?;
            require_answer("a purge", *yes)?;
            let mut dead = open(letters, registry).await?;
            let purged = async {
                let count = dead.read().await?.filter(|letter| chosen.has(letter)).count();
                if count > 0 {
                    agree(*yes, &format!("Take {count} dead letters of {} away for ever?", letters.channel))?;
                }
                dead.purge(|letter| chosen.has(letter)).await
            };
            let purged = purged.await;
            done("purged", close(dead, purged).await?, letters, json);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn open(letters: &Letters, registry: &Registry) -> Result<DeadLetters> {
    let broker = registry.open_broker(&Endpoint::parse(&letters.broker)?)?;
    let channel = Name::new(letters.channel.as_str())?;
    DeadLetters::open(&*broker, &channel, letters.limit as usize, SystemClock::shared()).await
}

/// The dead letters that are meant.
async fn read(dead: &mut DeadLetters, is_meant: impl Fn(&Message) -> bool) -> Result<Vec<Message>> {
    Ok(dead.read().await?.filter(|letter| is_meant(letter)).cloned().collect())
}

/// Gives back what is in hand, however it ended: nobody else has it until then.
async fn close<T>(dead: DeadLetters, ended: Result<T>) -> Result<T> {
    let closed = dead.close().await;
    let ended = ended?;
    closed.map(|()| ended)
}

fn missing(letters: &Letters, id: &str) -> Error {
    let text = format!("there is no dead letter {id} of channel {}", letters.channel);
    Error::new(code::CONFIG_INVALID, text)
        .hint("tidegate dlq list shows their ids; --limit says how many are looked at")
}

fn done(what: &str, count: usize, letters: &Letters, json: bool) {
    if json {
        let mut document = Map::from_iter([("channel".to_owned(), json!(letters.channel))]);
        document.insert(what.to_owned(), json!(count));
        say!("{}", Value::from(document));
    } else {
        say!("{count} {what}");
    }
}

impl Chosen {
    /// Whether it was said which ones are meant.
    fn require(&self, all: bool, verb: &str) -> Result<()> {
        let is_said = self.subscription.is_some()
            || self.subject.is_some()
            || self.kind.is_some()
            || self.reason.is_some()
            || !self.ids.is_empty();
        if all || is_said {
            return Ok(());
        }
        Err(Error::new(code::CONFIG_INVALID, format!("it was not said which dead letters to {verb}"))
            .hint("give --id, --subject, --kind, --reason or --subscription, or --all"))
    }

    fn has(&self, letter: &Message) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == found)
        };
        is(&self.subscription, letter.headers.get(dead_letter::SUBSCRIPTION))
            && is(&self.subject, letter.subject.as_deref())
            && is(&self.kind, Some(&letter.kind))
            && self.reason.is_none_or(|reason| letter.headers.get(dead_letter::REASON) == Some(reason.word()))
            && (self.ids.is_empty() || self.ids.iter().any(|id| **id == *letter.id))
    }
}

impl ReasonWord {
    fn word(self) -> &'static str {
        match self {
            ReasonWord::Exhausted => dead_letter::Reason::Exhausted,
            ReasonWord::Refused => dead_letter::Reason::Refused,
            ReasonWord::Undecodable => dead_letter::Reason::Undecodable,
            ReasonWord::Unhandled => dead_letter::Reason::Unhandled,
            ReasonWord::Unclaimed => dead_letter::Reason::Unclaimed,
            ReasonWord::Behind => dead_letter::Reason::Behind,
        }
        .word()
    }
}

fn list(listed: &[Message], letters: &Letters, json: bool) {
    if json {
        // Without the bodies: `show` has them.
        let bare = |letter: &Message| {
            let mut letter = letter.clone();
            letter.data.clear();
            letter.to_json()
        };
        say!("[{}]", listed.iter().map(bare).collect::<Vec<_>>().join(","));
        return;
    }
    if listed.is_empty() {
        say!("no dead letters of channel {}", letters.channel);
        return;
    }
    let header = |letter: &Message, name| letter.headers.get(name).unwrap_or_default().to_owned();
    let row = |letter: &Message| {
        vec![
            letter.id.to_string(),
            letter.kind.to_string(),
            letter.subject.as_deref().unwrap_or_default().to_owned(),
            header(letter, dead_letter::SUBSCRIPTION),
            header(letter, dead_letter::REASON),
            header(letter, dead_letter::ATTEMPTS),
            header(letter, dead_letter::LAST_AT),
            header(letter, dead_letter::ERROR),
        ]
    };
    let head = ["id", "kind", "subject", "subscription", "reason", "attempts", "since", "error"];
    say!("{}", table(&head, listed.iter().map(row).collect()));
}

fn show(letter: &Message, json: bool) {
    if json {
        say!("{}", letter.to_json());
        return;
    }
    for (name, value) in letter.attributes() {
        say!("{name}: {value}");
    }
    for (name, value) in letter.headers.iter() {
        say!("{name}: {value}");
    }
    say!();
    match std::str::from_utf8(&letter.data) {
        Ok(text) => say!("{text}"),
        Err(_) => say!("({} bytes that are no text; --json has them in base64)", letter.data.len()),
    }
}
