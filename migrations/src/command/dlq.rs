//! `tidegate dlq`: messages that could not be handled.

use std::process::ExitCode;

use serde_json::{Map, Value, json};
use tidegate_core::error::code;
use tidegate_core::{Error, Message, Result, SystemClock};
use tidegate_runtime::dead_letter::{self, DeadLetters};

use super::asked::{Asked, File};
use super::channel::usage;
use super::question::{agree, require_answer};
use crate::arguments::{Chosen, Common, Dlq, Letters, ReasonWord};
use crate::registry::Registry;
use crate::render::{say, table};

pub(super) async fn dlq(verb: &Dlq, registry: &Registry, common: &Common) -> Result<ExitCode> {
    let json = common.json;
    let open = |letters| Dead::open(letters, registry, common);
    match verb {
        Dlq::List { letters, chosen } => {
            let mut dead = open(letters).await?;
            let listed = dead.read(|letter| chosen.has(letter)).await;
            list(&dead.close(listed).await?, letters, json);
        }
        Dlq::Show { letters, id } => {
            let mut dead = open(letters).await?;
            let found = dead.one(id).await;
            show(&dead.close(found).await?, json);
        }
        Dlq::Replay { letters, chosen, all } => {
            chosen.require(*all, "replay")?;
            let mut dead = open(letters).await?;
            let replayed = async {
                let there = dead.read(|_| true).await?.len();
                Ok((dead.held.replay(|letter| chosen.has(letter)).await?, there))
            };
            let replayed = replayed.await;
            done("replayed", dead.close(replayed).await?, letters, json);
        }
        Dlq::Edit { letters, id, body, yes } => {
            require_answer("another body", *yes)?;
            let with = std::fs::read(body).map_err(|error| {
                let text = format!("the body {} cannot be read", body.display());
                Error::new(code::CONFIG_INVALID, text).because(error)
            })?;
            let mut dead = open(letters).await?;
            let replayed = async {
                let mut letter = dead.one(id).await?;
                let before = std::mem::replace(&mut letter.data, with.into());
                letter.check_json().map_err(usage)?;
                let (id, body) = (&letter.id, &letter.data);
                let question = format!(
                    "Replay {id} with a body of {} bytes instead of its {}? That one is gone then: `tidegate dlq show` shows it.",
                    body.len(),
                    before.len()
                );
                agree(*yes, &question)?;
                Ok((dead.held.replay_with(id, body).await?, 1))
            };
            let replayed = replayed.await;
            done("replayed", dead.close(replayed).await?, letters, json);
        }
        Dlq::Purge { letters, chosen, all, yes } => {
            chosen.require(*all, "purge")?;
            require_answer("a purge", *yes)?;
            let mut dead = open(letters).await?;
            let purged = async {
                let there = dead.read(|_| true).await?;
                let count = there.iter().filter(|letter| chosen.has(letter)).count();
                if count > 0 {
                    agree(*yes, &format!("Take {count} dead letters of {} away for ever?", letters.channel))?;
                }
                Ok((dead.held.purge(|letter| chosen.has(letter)).await?, there.len()))
            };
            let purged = purged.await;
            done("purged", dead.close(purged).await?, letters, json);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The dead letters of a channel, in the hand of this command.
struct Dead<'a> {
    asked: Asked,
    held: DeadLetters,
    letters: &'a Letters,
}

impl<'a> Dead<'a> {
    async fn open(letters: &'a Letters, registry: &Registry, common: &Common) -> Result<Self> {
        let asked = Asked::open_shared(common, registry, &letters.broker, File::IsThere)?;
        let channel = asked.channel(&letters.channel).await?;
        let limit = letters.limit as usize;
        let opening = DeadLetters::open(&*asked.broker, &channel.name, limit, SystemClock::shared());
        let held = asked.within("opening the dead letters", opening).await?.with_patience(asked.patience);
        Ok(Self { asked, held, letters })
    }

    /// The dead letters that are meant.
    async fn read(&mut self, is_meant: impl Fn(&Message) -> bool) -> Result<Vec<Message>> {
        let Self { asked, held, .. } = &mut *self;
        let what = "having the dead letters in hand, which somebody else may have,";
        let read = async { Ok(held.read().await?.cloned().collect::<Vec<Message>>()) };
        let mut there = asked.told(what, read).await?;
        if there.len() >= self.letters.limit as usize {
            self.asked.tell(format_args!(
                "the oldest {} dead letters were looked at, and there may be more: say --limit, or do it again",
                there.len()
            ));
        }
        there.retain(is_meant);
        Ok(there)
    }

    /// The one that an id, or its beginning, names.
    ///
    /// # Errors
    /// `letter-missing` if there is none, or several begin so.
    async fn one(&mut self, id: &str) -> Result<Message> {
        let mut found = self.read(|letter| letter.id.starts_with(id)).await?;
        if let Some(at) = found.iter().position(|letter| *letter.id == *id) {
            return Ok(found.swap_remove(at));
        }
        let channel = &self.letters.channel;
        let text = match found.pop() {
            Some(one) if found.is_empty() => return Ok(one),
            Some(_) => format!("{} dead letters of channel {channel} begin with {id}", found.len() + 1),
            None => format!("there is no dead letter {id} of channel {channel}"),
        };
        Err(Error::new(code::LETTER_MISSING, text)
            .hint("tidegate dlq list shows their ids; --limit says how many are looked at"))
    }

    /// Gives back what is in hand, however it ended: nobody else has it until then.
    async fn close<T>(self, ended: Result<T>) -> Result<T> {
        let closed = self.asked.within("giving them back", self.held.close()).await;
        let ended = ended?;
        closed.map(|()| ended)
    }
}

/// Says how many it was, of how many.
fn done(what: &str, (count, there): (usize, usize), letters: &Letters, json: bool) {
    if json {
        let mut document = Map::from_iter([("channel".to_owned(), json!(letters.channel))]);
        document.insert(what.to_owned(), json!(count));
        say!("{}", Value::from(document));
    } else if count == 0 && there > 0 {
        say!("0 {what}: none of the {there} dead letters of channel {} is meant", letters.channel);
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
