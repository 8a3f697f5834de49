//! Messages that could not be handled: what is written beside them, and where they are.
//!
//! A dead letter is the message as it was, with its id, body and headers, and with the headers of this module beside them. It is
//! on the channel [`channel`] of its channel's name, for all subscriptions of that channel.

mod letters;

use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::message::COPY;
use tidegate_core::{Channel, Error, Message, Name, Result, Subscription};

pub use letters::DeadLetters;

/// Why it is here: a word of [`Reason`].
pub const REASON: &str = "tg_dlq_reason";
/// What the handler said last.
pub const ERROR: &str = "tg_dlq_error";
/// How often it was tried.
pub const ATTEMPTS: &str = "tg_dlq_attempts";
/// The channel it came from.
pub const CHANNEL: &str = "tg_dlq_source";
/// The subscription that could not handle it.
pub const SUBSCRIPTION: &str = "tg_dlq_subscription";
/// Which dead letter of its subject it is, for a subscription whose subjects wait behind them: only the first of those that are dead
/// still is tried again, whatever is replayed. Opaque.
pub const PLACE: &str = "tg_dlq_place";
/// When it became a dead letter for the first time, in RFC 3339.
pub const FIRST_AT: &str = "tg_dlq_first_at";
/// When it became one for the last time.
pub const LAST_AT: &str = "tg_dlq_last_at";
/// The only channel and subscription that a replayed message is for: `orders/billing`.
pub const ONLY: &str = "tg_only";

/// The kind of a message that says that a dead letter will not be replayed; its id is the dead letter's.
pub const RELEASE: &str = "tidegate.release.v1";

/// How long what a handler said may be.
const ERROR_CHARS: usize = 1_000;

/// Why a message is a dead letter.
#[derive(Clone, std::marker::Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It was tried as often as the policy says.
    Exhausted,
    /// Its handler said that it will fail for ever.
    Refused,
    /// What the broker carried is no message, or not what its kind says.
    Undecodable,
    /// Nothing handles its kind.
    Unhandled,
    /// Its body is elsewhere, and was not found there.
    Unclaimed,
    /// An earlier message of its subject is a dead letter.
    Behind,
}

impl Reason {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Exhausted => "exhausted",
            Reason::Refused => "refused",
            Reason::Undecodable => "undecodable",
            Reason::Unhandled => "unhandled",
            Reason::Unclaimed => "unclaimed",
            Reason::Behind => "behind",
        }
    }
}

/// The channel of the dead letters of a channel. It has one lane, so that they are in the order in which they came.
///
/// # Errors
/// `config-invalid` if the channel's name leaves no room for the ending `.dead`.
pub fn channel(of: &Name) -> Result<Channel> {
    Ok(Channel::new(format!("{of}.dead"))?.with_lanes(1))
}

/// Who reads the dead letters of a channel.
///
/// # Errors
/// As [`channel`].
pub fn subscription(of: &Name) -> Result<Subscription> {
    Subscription::new(&channel(of)?, "dead")
}

/// Why, and where, a message becomes a dead letter.
pub(crate) struct Burial<'a> {
    pub(crate) channel: &'a Name,
    pub(crate) subscription: &'a Name,
    pub(crate) reason: Reason,
    pub(crate) error: &'a str,
    pub(crate) attempts: u32,
    /// Which of its subject it is, if that is known.
    pub(crate) place: Option<String>,
    pub(crate) now: i64,
}

impl Burial<'_> {
    /// The dead letter.
    ///
    /// # Errors
    /// `message-invalid` if the headers have no room for what is to be written beside them.
    pub(crate) fn letter(&self, message: &Message) -> Result<Message> {
        let mut dead = self.least(message)?;
        let at = jiff::Timestamp::from_microsecond(self.now).unwrap_or_default().to_string();
        let error: String = self.error.chars().filter(|c| !c.is_control()).take(ERROR_CHARS).collect();
        if dead.headers.get(FIRST_AT).is_none() {
            dead.headers.set(FIRST_AT, at.clone())?;
        }
        for (name, value) in [(ERROR, error), (ATTEMPTS, self.attempts.to_string()), (LAST_AT, at)] {
            dead.headers.set(name, value)?;
        }
        dead.check()?;
        Ok(dead)
    }

    /// With no more than what makes it one.
    ///
    /// # Errors
    /// As [`letter`](Self::letter).
    pub(crate) fn least(&self, message: &Message) -> Result<Message> {
        let mut dead = message.clone();
        let round = copy_number(message);
        dead.headers.remove(ONLY);
        for (name, value) in [
            (REASON, self.reason.word().to_owned()),
            (CHANNEL, self.channel.to_string()),
            (SUBSCRIPTION, self.subscription.to_string()),
            // Each subscription's dead letter is another one, and so is each time that a copy fails again.
            (COPY, format!("{}/{round}", self.subscription)),
        ] {
            dead.headers.set(name, value)?;
        }
        match &self.place {
            Some(place) => dead.headers.set(PLACE, place.as_str())?,
            None => dead.headers.remove(PLACE),
        }
        Ok(dead)
    }
}

/// For whom a message is.
#[derive(Clone, std::marker::Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copy {
    /// For everybody.
    None,
    /// A copy that was replayed for this subscription, or for another one.
    Ours,
    Others,
}

impl Copy {
    pub(crate) fn of(message: &Message, channel: &Name, subscription: &Name) -> Self {
        match message.headers.get(ONLY).and_then(|only| only.split_once('/')) {
            // On another channel it is a message that somebody passed on.
            Some((from, only)) if from == channel.as_str() => {
                if only == subscription.as_str() {
                    Copy::Ours
                } else {
                    Copy::Others
                }
            }
            _ => Copy::None,
        }
    }
}

/// Takes away what makes a message a copy.
pub(crate) fn forget_copy(message: &mut Message) {
    for name in [COPY, ONLY, FIRST_AT, PLACE] {
        message.headers.remove(name);
    }
}

/// Makes of a dead letter the message that its subscription is to try again, and the channel where it belongs.
///
/// # Errors
/// `message-invalid` if it is no dead letter.
pub fn replay(dead: &Message) -> Result<(Name, Message)> {
    let (from, subscription) = origin(dead)?;
    let mut message = dead.clone();
    let round = copy_number(dead).saturating_add(1);
    for name in [REASON, ERROR, ATTEMPTS, CHANNEL, SUBSCRIPTION, LAST_AT] {
        message.headers.remove(name);
    }
    message.headers.set(COPY, format!("{subscription}/{round}"))?;
    message.headers.set(ONLY, format!("{from}/{subscription}"))?;
    Ok((from, message))
}

/// Makes the message that says that a dead letter will not be replayed, and the channel where it belongs: what waits behind
/// it may be.
///
/// # Errors
/// `message-invalid` if it is no dead letter.
pub fn release(dead: &Message) -> Result<(Name, Message)> {
    let (from, message) = replay(dead)?;
    let mut release = Message::with_id(Arc::clone(&dead.id), Arc::clone(&dead.source), RELEASE);
    release.subject = dead.subject.clone();
    for name in [COPY, ONLY, PLACE] {
        let Some(value) = message.headers.get(name) else { continue };
        release.headers.set(name, value)?;
    }
    // It is no duplicate of the copy that it stands for.
    let copy = format!("{}/gone", release.headers.get(COPY).unwrap_or_default());
    release.headers.set(COPY, copy)?;
    Ok((from, release))
}

/// The channel and the subscription of a dead letter.
///
/// # Errors
/// `message-invalid` if it is none.
pub fn origin(dead: &Message) -> Result<(Name, Name)> {
    let name = |header| {
        let name = dead.headers.get(header).ok_or_else(|| {
            Error::new(code::MESSAGE_INVALID, format!("the message {} is no dead letter", dead.id))
                .with("header", header)
        })?;
        Name::new(name)
    };
    Ok((name(CHANNEL)?, name(SUBSCRIPTION)?))
}

/// Which copy of a message it is: 0 for the message itself.
fn copy_number(message: &Message) -> u64 {
    let number = message.headers.get(COPY).and_then(|copy| copy.split('/').nth(1));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_is_the_message_and_why_and_comes_back_as_it_was() {
        let message = Message::with_id("7", "shop", "order.placed")
            .with_subject("k")
            .with_data("application/json", "{}")
            .with_header("region", "eu")
            .unwrap();
        let names = (Name::new("orders").unwrap(), Name::new("billing").unwrap());
        let died = |message: &Message, now| {
            let (channel, subscription) = (&names.0, &names.1);
            let (reason, error) = (Reason::Exhausted, "no\nmoney");
            Burial { channel, subscription, reason, error, attempts: 5, place: Some("3.1".to_owned()), now }
                .letter(message)
                .unwrap()
        };
        let dead = died(&message, 1_700_000_000_000_000);
        let headers: Vec<_> = dead.headers.iter().collect();
        assert_eq!(
            headers,
            [
                ("region", "eu"),
                (COPY, "billing/0"),
                (ATTEMPTS, "5"),
                (ERROR, "nomoney"),
                (FIRST_AT, "2023-11-14T22:13:20Z"),
                (LAST_AT, "2023-11-14T22:13:20Z"),
                (PLACE, "3.1"),
                (REASON, "exhausted"),
                (CHANNEL, "orders"),
                (SUBSCRIPTION, "billing"),
            ]
        );
        assert_eq!((&dead.id, &dead.data, &dead.subject), (&message.id, &message.data, &message.subject));
        assert_eq!(origin(&dead).unwrap(), names);
        let (channel, again) = replay(&dead).unwrap();
        assert_eq!(channel, names.0);
        let headers: Vec<_> = again.headers.iter().collect();
        let kept = [
            ("region", "eu"),
            (COPY, "billing/1"),
            (FIRST_AT, "2023-11-14T22:13:20Z"),
            (PLACE, "3.1"),
            (ONLY, "orders/billing"),
        ];
        assert_eq!(headers, kept);
        let twice = died(&again, 1_800_000_000_000_000);
        assert_eq!(twice.headers.get(FIRST_AT), Some("2023-11-14T22:13:20Z"));
        assert_eq!(twice.headers.get(COPY), Some("billing/1"));
        let ids: std::collections::BTreeSet<_> =
            [&message, &dead, &again, &release(&dead).unwrap().1].map(Message::dedupe_id).into();
        assert_eq!(ids.len(), 4, "no two of them are one message for a broker that knows ids: {ids:?}");
        assert_eq!(replay(&twice).unwrap().1.headers.get(COPY), Some("billing/2"));
        assert!(replay(&message).is_err());
    }
}
